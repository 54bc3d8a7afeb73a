"""Positional embeddings: the 2-D sine-cosine table, on the full grid and on the smaller grids of a curriculum.

Table and smaller grids are one formula. A patch of a smaller grid covers more of the image; its centre, measured in
patches of the full grid, is where the formula is evaluated. So shrinking the grid interpolates the embedding without
any interpolation error, and at the full grid gives MAE's own table.
"""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def sincos_positions(grid: tuple[int, int], full_grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """Make the fixed 2-D sine-cosine embedding of MAE for a grid that spans the same image as `full_grid`.

    grid, full_grid  patches per column and per row (height, width).
    width            embedding width, a multiple of 4: half for the column, half for the row, sines before cosines.
    Returns          (grid height * grid width, width), float32, row by row.
    Source           facebookresearch/mae, whose first half holds the horizontal position.
    """
    with torch.device("cpu"):  # float64 is not to be had everywhere
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
