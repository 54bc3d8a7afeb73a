"""What the decoder predicts for a masked patch; how many values that are is `target_width` in `shape.py`."""

import torch
from torch import Tensor

from mae_curriculum.model.config import Target
from mae_curriculum.model.masking import patchify, take_patches

PIXEL_TARGETS = ("pixels", "norm_pixels")
"""The targets from which `target_pixels` recovers an image."""


def make_target(images: Tensor, ids: Tensor, *, patch_size: tuple[int, int], kind: Target) -> Tensor:
    """Return the regression target of some patches of images.

    images   (b, c, h, w), normalized.
    ids      (b, m) the patches, numbered row by row.
    kind     "pixels": the values of the patch. "norm_pixels": each patch shifted to mean 0 and scaled to variance 1.
    Returns  (b, m, d), float32.
    Source   MAE, arXiv:2111.06377: variance over d - 1, plus 1e-6 for flat patches.
    """
    patches = take_patches(patchify(images, patch_size), ids).float()
    if kind == "pixels":
        return patches
    if kind == "norm_pixels":
        scale, mean = _scale_and_mean(patches)
        return (patches - mean) / scale
    raise ValueError(f"unknown target '{kind}'")


def target_pixels(target: Tensor, patches: Tensor, kind: Target) -> Tensor:
    """Return the pixels of the normalized image that belong to a target, or to a prediction of it.

    target   (..., d), as `make_target` returns it.
    patches  (..., d): the true patches, whose mean and variance "norm_pixels" needs.
    Returns  (..., d), float32.
    Raises   ValueError for a target that is not made of pixels.
    """
    if kind not in PIXEL_TARGETS:
        raise ValueError(f"a target of {kind} holds no pixels; those that do: {', '.join(PIXEL_TARGETS)}")
    if kind == "pixels":
        return target.float()
    scale, mean = _scale_and_mean(patches.float())
    return target.float() * scale + mean


def _scale_and_mean(patches: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (variance + 1e-6).sqrt(), mean
