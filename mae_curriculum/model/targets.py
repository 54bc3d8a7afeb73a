"""What the decoder predicts for a masked patch; how many values that are is `target_width` in `shape.py`."""

import torch
from einops import rearrange
from torch import Tensor

from mae_curriculum.model.config import Target
from mae_curriculum.model.hog import hog
from mae_curriculum.model.masking import patchify, take_patches
from mae_curriculum.model.shape import hog_cells


def make_target(
    images: Tensor, ids: Tensor, *, grid: tuple[int, int], patch_size: tuple[int, int], kind: Target
) -> Tensor:
    """Return the regression target of some patches of images.

    images   (b, c, h, w), normalized; of `grid` patches, but of any size for "hog".
    ids      (b, m) the patches, numbered row by row.
    grid     patches per column and per row.
    kind     "pixels": the values of the patch. "norm_pixels": each patch shifted to mean 0 and scaled to variance 1.
             "hog": the histograms of its cells, by channel, bin, and place.
    Returns  (b, m, d), float32.
    Source   MAE, arXiv:2111.06377: variance over d - 1, plus 1e-6 for flat patches. MaskFeat, arXiv:2112.09133.
    """
    if kind == "hog":
        rows, columns = hog_cells(patch_size)
        histograms = hog(images, (grid[0] * rows, grid[1] * columns))
        values = rearrange(histograms, "b c o (y p) (x q) -> b (y x) (c o p q)", p=rows, q=columns)
        return take_patches(values, ids)
    patches = take_patches(patchify(images, patch_size), ids).float()
    if kind == "pixels":
        return patches
    scale, mean = _scale_and_mean(patches)
    return (patches - mean) / scale


def target_pixels(target: Tensor, patches: Tensor, kind: Target) -> Tensor:
    """Return the pixels of the normalized image that belong to a target, or to a prediction of it.

    target   (..., d), as `make_target` returns it.
    patches  (..., d): the true patches, whose mean and variance "norm_pixels" needs.
    kind     "pixels" or "norm_pixels".
    Returns  (..., d), float32.
    """
    if kind == "pixels":
        return target.float()
    scale, mean = _scale_and_mean(patches.float())
    return target.float() * scale + mean


def _scale_and_mean(patches: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (variance + 1e-6).sqrt(), mean
