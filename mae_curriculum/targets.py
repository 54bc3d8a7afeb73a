"""What the decoder has to predict for a masked patch."""

from typing import Literal

import torch
from torch import Tensor

Target = Literal["pixels", "norm_pixels"]


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
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()
