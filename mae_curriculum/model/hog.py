"""Histograms of oriented gradients (HOG), MaskFeat's target; how many cells a patch has is `hog_cells` in `shape.py`.

Axes    b images, c channels, h w pixels, o orientations, y x cells.
Source  MaskFeat, arXiv:2112.09133, as its code in SlowFast has it (`HOGLayerC`): no window, no blocks of cells.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_curriculum.model.shape import HOG_BINS


def hog(images: Tensor, cells: tuple[int, int]) -> Tensor:
    """Return a histogram of orientations per cell and channel, of length 1, or 0 where all pixels are equal.

    Each pixel votes with the magnitude of its gradient for the bin of its orientation. Brightness and contrast of a
    channel drop out. No sum depends on the order of threads, so that a resumed run has the same bits.

    images   (b, c, h, w).
    cells    per column and per row; a pixel between two of them votes in each for the share of its area.
    Returns  (b, c, o, y, x), float32, also inside autocast.
    """
    magnitude, bins = gradients(images.float())
    rows, columns = (area_weights(*sides, images.device) for sides in zip(images.shape[-2:], cells, strict=True))
    with torch.autocast(images.device.type, enabled=False):
        votes = [rows @ torch.where(bins == number, magnitude, 0.0) for number in range(HOG_BINS)]
        return F.normalize(torch.stack(votes, dim=2) @ columns.T, dim=2)


def gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return magnitude and bin, 0 to 8, of each pixel's Sobel gradient; images (b, c, h, w) are reflected at the edge.

    Bins are 20 degrees wide, the first from the vertical on; opposite gradients share one.
    """
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    across = padded[..., :-2] - padded[..., 2:]
    down = padded[..., :-2, :] - padded[..., 2:, :]
    gx = (across[..., :-2, :] + across[..., 2:, :]).add_(across[..., 1:-1, :], alpha=2)
    gy = (down[..., :-2] + down[..., 2:]).add_(down[..., 1:-1], alpha=2)
    bins = torch.atan2(gx, gy).mul_(HOG_BINS / math.pi).floor_().remainder_(HOG_BINS)
    return torch.hypot(gx, gy), bins


@lru_cache(maxsize=64)
def area_weights(pixels: int, cells: int, device: torch.device) -> Tensor:
    """Return which share of each pixel of an axis lies in each of equally long cells, (cells, pixels)."""
    edges = torch.arange(cells + 1, dtype=torch.float64) * pixels / cells
    starts = torch.arange(pixels)
    shares = torch.minimum(starts + 1, edges[1:, None]) - torch.maximum(starts, edges[:-1, None])
    return shares.clamp(min=0).float().to(device)
