"""Positional embeddings: the 2-D sine-cosine table, on the full grid and on the smaller grids of a curriculum.

One formula serves all grids. A patch of a smaller grid covers more of the image; the formula is evaluated at its
center, measured in patches of the full grid. So a smaller grid interpolates the embedding without any error, and the
full grid has MAE's own table.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@lru_cache(maxsize=64)
def sincos_positions(grid: tuple[int, int], full_grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """Return the fixed 2-D sine-cosine embedding of MAE for a grid that covers the same image as `full_grid`.

    grid, full_grid  patches per column and per row (height, width).
    width            embedding width, a multiple of 4: half for the column, half for the row, sines before cosines.
    Returns          (grid height * grid width, width), float32, row by row.
    Source           facebookresearch/mae, whose first half holds the horizontal position.
    """
    with torch.device("cpu"):  # not every device has float64
        frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
        y, x = (
            (torch.arange(count, dtype=torch.float64) + 0.5) * (full / count) - 0.5
            for count, full in zip(grid, full_grid, strict=True)
        )
    down, across = (
        torch.cat([(axis[:, None] * frequency).sin(), (axis[:, None] * frequency).cos()], 1) for axis in (y, x)
    )
    table = torch.cat(
        [across[None].expand(grid[0], -1, -1), down[:, None].expand(-1, grid[1], -1)],
        dim=-1,
    )
    return table.flatten(0, 1).to(device, torch.float32)


def is_sincos(positions: Tensor, grid: tuple[int, int]) -> bool:
    """Return whether positions (prefix + n, d) are MAE's fixed table of a grid, which is zero for prefix tokens.

    Values that were rounded to half precision, whatever their type is now, may differ by that rounding.
    """
    if positions.shape[-1] % 4 or len(positions) < grid[0] * grid[1]:
        return False
    table = sincos_positions(grid, grid, positions.shape[-1], positions.device)
    prefix, patches = positions.float().tensor_split([len(positions) - len(table)])
    return not prefix.any() and torch.allclose(patches, table, atol=max(1e-4, _rounding(patches)), rtol=0)


def _rounding(values: Tensor) -> float:
    """Return the largest error of values up to 1 in the coarsest type that represents these exactly."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(values.to(dtype).float(), values):
            return torch.finfo(dtype).eps / 2
    return 0.0


def resample_positions(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Resample learned patch positions (n, d) from a grid to another that spans the same image: (m, d), row by row.

    Bicubic at the new patches' centres, differentiable. MAE's sine-cosine table of 14x14 becomes the one of 10x10 with
    a root-mean-square error of 0.006, the one of 6x6 with 0.008; EfficientTrain's bilinear filter has 0.011 and 0.011,
    an antialiased one 0.006 and 0.026.
    """
    if grid == new_grid:
        return table
    image = table.T.reshape(1, -1, *grid)
    return F.interpolate(image, size=new_grid, mode="bicubic").flatten(2)[0].T


def resample_table(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Resample a ViT's positions (1, prefix + n, d); those of class and register tokens come first and are kept."""
    prefix, patches = table[0].tensor_split([table.shape[1] - grid[0] * grid[1]])
    return torch.cat([prefix, resample_positions(patches, grid, new_grid)])[None]


def resample_bias(
    table: Tensor, window: tuple[int, int], new_window: tuple[int, int], scale: tuple[float, float]
) -> Tensor:
    """Return the bias table of window attention, resampled for another window, differentiably.

    table       ((2h-1)(2w-1), heads) for a window (h, w): displacements of 1-h..h-1 patches down, 1-w..w-1 across.
    new_window  (h', w') of the new window, in its own patches.
    scale       size of a new patch in patches of the table, down and across.
    Returns     ((2h'-1)(2w'-1), heads): the table at the same displacements in the image, bicubic.
    """
    axes = [
        torch.arange(1 - new, new, device=table.device, dtype=torch.float32) * step / max(1, old - 1)
        for old, new, step in zip(window, new_window, scale, strict=True)
    ]
    down, across = torch.meshgrid(*axes, indexing="ij")
    image = table.float().T.reshape(1, -1, 2 * window[0] - 1, 2 * window[1] - 1)
    places = torch.stack([across, down], dim=-1)[None]
    sampled = F.grid_sample(image, places, mode="bicubic", padding_mode="border", align_corners=True)
    return sampled.flatten(2)[0].T.to(table.dtype)
