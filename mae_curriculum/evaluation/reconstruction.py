"""What a masked autoencoder makes of images: the input it is shown, what is hidden of it, and what it puts there.

Only arithmetic: `pictures.py` draws it. Axes as in `model.py`.
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

HIDDEN = 0.5
"""The grey that stands for a hidden patch, between black (0) and white (1), as in MAE's own figures."""


@dataclass(frozen=True)
class Reconstruction:
    """Images as a model saw and completed them, at one size; 0 is black, 1 is white, and resizing may overshoot."""

    seen: Tensor
    """(b, c, h, w): the input, nothing hidden."""
    hidden: Tensor
    """(b, 1, h, w) bool: the pixels that the model did not see."""
    completed: Tensor
    """(b, c, h, w): the prediction where the input was hidden, elsewhere the input itself."""
    target: Target
    """What was predicted. Of "norm_pixels" each patch is shown with the mean and variance of the true one."""
    visible_count: int
    patch_count: int

    @property
    def masked(self) -> Tensor:
        """What the encoder saw, (b, c, h, w): the input, with hidden patches grey."""
        return self.seen.where(~self.hidden, HIDDEN)

    @property
    def error(self) -> Tensor:
        """The distance of the completed image from the input, (b, 1, h, w): root mean square over the channels."""
        return (self.completed - self.seen).square().mean(dim=1, keepdim=True).sqrt()


def why_no_reconstruction(target: str) -> str | None:
    """Say why predictions of a target cannot be shown; None if they can."""
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
    resize: str,
) -> Reconstruction:
    """Show images at a size (height, width), hide patches, and let the model put them back.

    Which patches of an image are hidden is a function of the seed, the image's place among the images, and the grid; on
    a smaller grid they lie near those of the full one.

    images             (b, c, h, w) uint8, of the model's full size.
    mean, std, resize  those of `data.show`.
    Raises             ValueError if the model predicts no pixels.
    """
    device = model.mask_token.device
    grid = model.grid(view.size)
    seen = preprocess(images.to(device), view.size, mean=mean, std=std, resize=resize)
    noise = fixed_noise(len(images), model.full_grid, grid, seed=seed).to(device)
    patches = patchify(seen, model.patch_size)
    ids_keep, ids_mask = split_by_noise(noise, model.shape.visible_count(view))
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
    """Draw the noise that ranks the patches of images, (count, n): on a smaller grid, that of the full one nearby."""
    noise = mask_noise(seed=seed, step=0, places=range(count), patch_count=full_grid[0] * full_grid[1])
    return F.interpolate(noise.view(count, 1, *full_grid), size=grid, mode="nearest").flatten(1)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """Put patches back together, (b, n, p*q*c) -> (b, c, h, w): the inverse of `model.patchify`."""
    return rearrange(
        patches,
        "b (y x) (p q c) -> b c (y p) (x q)",
        y=grid[0],
        p=patch_size[0],
        q=patch_size[1],
    )


def choose_spread(total: int, count: int) -> list[int]:
    """Choose `count` of `total` things, or all if they are fewer, at even distances."""
    count = min(count, total)
    return [place * total // count for place in range(count)]
