"""What the decoder has to predict for a masked patch."""

import torch
from torch import Tensor

from mae_curriculum.model.config import Target

PIXEL_TARGETS = ("pixels", "norm_pixels")
"""The targets that `target_pixels` brings back to an image."""


def patch_target(patches: Tensor, kind: Target) -> Tensor:
    """Make the regression target of patches.

    patches  (..., d): the d values of a patch of the normalised image.
    kind     "pixels": the values as they are. "norm_pixels": each patch shifted to mean 0 and scaled to variance 1.
    Returns  (..., d), float32.
    Source   MAE, arXiv:2111.06377: variance over d - 1, plus 1e-6 for flat patches.
    """
    patches = patches.float()
    if kind == "pixels":
        return patches
    scale, mean = _scale_and_mean(patches)
    return (patches - mean) / scale


def target_pixels(target: Tensor, patches: Tensor, kind: Target) -> Tensor:
    """Bring a target, or a prediction of it, back to the values of the normalised image.

    target   (..., d), as `patch_target` makes it.
    patches  (..., d): the true patches; what "norm_pixels" lost, mean and variance, is taken from them.
    Returns  (..., d), float32.
    Raises   ValueError for a target that holds no pixels.
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
