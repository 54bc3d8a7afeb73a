"""Reconstruct images with a masked autoencoder; `report.figures` draws the result.

Axes are named as in `model.masked_autoencoder`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mae_curriculum.curriculum.schedule import View
from mae_curriculum.data.preprocess import preprocess
from mae_curriculum.model.config import Target
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.model.masking import mask_noise, patchify, split_by_noise
from mae_curriculum.model.targets import PIXEL_TARGETS, target_pixels

MASK_GRAY = 0.5
"""Gray of masked patches, from black (0) to white (1), as in MAE's figures."""


@dataclass(frozen=True)
class Reconstruction:
    """Images and their reconstructions, at one size; 0 is black, 1 is white, and resizing may overshoot."""

    seen: Tensor
    """(b, c, h, w): the input."""
    hidden: Tensor
    """(b, 1, h, w) bool: the masked pixels."""
    completed: Tensor
    """(b, c, h, w): the prediction in masked patches, the input elsewhere."""
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
        return (self.completed - self.seen).square().mean(dim=1, keepdim=True).sqrt()


def why_no_reconstruction(target: str) -> str | None:
    """Return the reason why predictions of a target cannot be shown, or None if they can."""
    if target in PIXEL_TARGETS:
        return None
    return f"the decoder predicts {target}, not pixels, so there is no image to show"


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
    Raises     ValueError if the model does not predict pixels.
    """
    device = model.mask_token.device
    grid = model.grid(view.size)
    seen = preprocess(images.to(device), view.size, mean=mean, std=std, resize=view.resize)
    full_blocks, blocks = model.shape.mask_grid(model.image_size), model.shape.mask_grid(view.size)
    noise = fixed_noise(len(images), full_blocks, blocks, seed=seed).to(device)
    patches = patchify(seen, model.patch_size)
    ids_keep, ids_mask = split_by_noise(noise, model.shape.visible_count(view), grid=grid, block=model.shape.mask_block)
    visible, hidden = (patches.take_along_dim(ids[..., None], dim=1) for ids in (ids_keep, ids_mask))
    predicted = model.decoder(model.encode(visible, grid, ids_keep), model.mask_token, grid, ids_keep, ids_mask)
    values = target_pixels(predicted, hidden, model.target)
    places = ids_mask[..., None].expand_as(values)
    completed = unpatchify(patches.scatter(1, places, values), grid, model.patch_size)
    is_hidden = unpatchify(torch.zeros_like(patches).scatter(1, places, 1.0), grid, model.patch_size)[:, :1] > 0
    shift, scale = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
    seen, completed = (image * scale + shift for image in (seen, completed))
    return Reconstruction(seen, is_hidden, completed, model.target, ids_keep.shape[1], len(patches[0]))


def fixed_noise(count: int, full_grid: tuple[int, int], grid: tuple[int, int], *, seed: int) -> Tensor:
    """Return the mask noise of images, (count, n); on a smaller grid it is the nearest value of the full grid."""
    noise = mask_noise(seed=seed, step=0, places=range(count), count=full_grid[0] * full_grid[1])
    return F.interpolate(noise.view(count, 1, *full_grid), size=grid, mode="nearest").flatten(1)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """Join patches to images, (b, n, p*q*c) -> (b, c, h, w): the inverse of `patchify`."""
    return rearrange(patches, "b (y x) (p q c) -> b c (y p) (x q)", y=grid[0], p=patch_size[0], q=patch_size[1])


def choose_spread(total: int, count: int) -> list[int]:
    """Return `count` evenly spaced indices of `total` items, or all indices if there are fewer."""
    count = min(count, total)
    return [index * total // count for index in range(count)]
