"""Reconstruct images with a masked autoencoder; `report.figures` draws the result.

Axes are named as in `model.masked_autoencoder`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mae_curriculum.curriculum.clock import View
from mae_curriculum.curriculum.low_frequency import RESIZE
from mae_curriculum.data.preprocess import normalize
from mae_curriculum.model.config import Target
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.model.masking import mask_noise, patchify, split_by_noise, take_patches
from mae_curriculum.model.shape import HOG_BINS, hog_cells
from mae_curriculum.model.targets import target_pixels

MASK_GRAY = 0.5
"""Gray of masked patches, from black (0) to white (1), as in MAE's figures."""


@dataclass(frozen=True)
class Reconstruction:
    """Images and their reconstructions, at one size; 0 is black, 1 is white, and resizing may overshoot.

    For a target of "hog", what is predicted are histograms (b, c, o, y, x), as `model.hog` returns them.
    """

    seen: Tensor
    """(b, c, h, w): the input."""
    hidden: Tensor
    """(b, 1, h, w) bool: the masked pixels."""
    truth: Tensor
    """What is to be predicted: the input, or its histograms."""
    completed: Tensor
    """The prediction in masked patches, the truth elsewhere."""
    target: Target
    """Target of the model. For "norm_pixels", patches are denormalized with mean and variance of the true patch."""
    visible_count: int
    patch_count: int

    @property
    def masked(self) -> Tensor:
        """The encoder's input, (b, c, h, w), with masked patches gray."""
        return self.seen.where(~self.hidden, MASK_GRAY)

    @property
    def error(self) -> Tensor:
        """The error of the reconstruction, (b, 1, h, w): root mean square over the channels."""
        return (self.completed - self.truth).square().mean(dim=1, keepdim=True).sqrt()


@torch.no_grad()
def reconstruct_images(
    model: MaskedAutoencoder,
    images: Tensor,
    view: View,
    *,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Reconstruction:
    """Resize images to a view's size, mask them, and reconstruct them.

    The mask depends only on the seed, the position of the image among the images, and the grid; on a smaller grid it is
    similar to that on the full grid.

    images     (b, c, h, w) uint8, at the model's full size.
    mean, std  as in `data.preprocess`.
    """
    device = model.mask_token.device
    grid = model.grid(view.size)
    full = normalize(images.to(device), mean, std)
    seen = RESIZE[view.resize](full, view.size)
    full_blocks, blocks = model.shape.mask_grid(model.image_size), model.shape.mask_grid(view.size)
    noise = fixed_noise(len(images), full_blocks, blocks, seed=seed).to(device)
    patches = patchify(seen, model.patch_size)
    ids_keep, ids_mask = split_by_noise(noise, model.shape.visible_count(view), grid=grid, block=model.shape.mask_block)
    visible = take_patches(patches, ids_keep)
    predicted = model.decoder(model.encode(visible, grid, ids_keep), model.mask_token, grid, ids_keep, ids_mask)
    every = torch.arange(len(patches[0]), device=device).expand(len(patches), -1)
    target = model.make_target(seen, every, full)
    completed = target.scatter(1, ids_mask[..., None].expand_as(predicted), predicted.float())
    is_hidden = torch.zeros_like(patches).scatter(1, ids_mask[..., None].expand(-1, -1, patches.shape[2]), 1.0)
    hidden = unpatchify(is_hidden, grid, model.patch_size)[:, :1] > 0
    shift, scale = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
    truth = shown = seen * scale + shift
    if model.target == "hog":
        truth, completed = (join_histograms(values, grid, model.patch_size) for values in (target, completed))
    else:
        pixels = unpatchify(target_pixels(completed, patches, model.target), grid, model.patch_size)
        completed = (pixels * scale + shift).where(hidden, shown)
    return Reconstruction(shown, hidden, truth, completed, model.target, ids_keep.shape[1], len(patches[0]))


def fixed_noise(count: int, full_grid: tuple[int, int], grid: tuple[int, int], *, seed: int) -> Tensor:
    """Return the mask noise of images, (count, n); on a smaller grid it is the nearest value of the full grid."""
    noise = mask_noise(seed=seed, step=0, places=range(count), count=full_grid[0] * full_grid[1])
    return F.interpolate(noise.view(count, 1, *full_grid), size=grid, mode="nearest").flatten(1)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """Join patches to images, (b, n, p*q*c) -> (b, c, h, w): the inverse of `patchify`."""
    return rearrange(patches, "b (y x) (p q c) -> b c (y p) (x q)", y=grid[0], p=patch_size[0], q=patch_size[1])


def join_histograms(target: Tensor, grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """Join the HOG targets of all patches, (b, n, d), to histograms (b, c, o, y, x)."""
    rows, columns = hog_cells(patch_size)
    sizes = {"y": grid[0], "o": HOG_BINS, "p": rows, "q": columns}
    return rearrange(target, "b (y x) (c o p q) -> b c o (y p) (x q)", **sizes)
