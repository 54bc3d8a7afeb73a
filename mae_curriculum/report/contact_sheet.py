"""A contact sheet as a PNG file: an image per row, and those most similar to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mae_curriculum.report.figures import drawable, empty_figure, hide_frame, save, to_rgb

TILE_INCHES = 1.2
MAX_LETTERS = 20  # of a caption's line that fit above a tile


@dataclass(frozen=True)
class Tile:
    """An image of a contact sheet."""

    pixels: Tensor
    """(c, h, w) uint8."""
    lines: Sequence[str]
    """Shown above it; any text, of which the end is shown where it is long."""


def draw_contact_sheet(path: Path, rows: Sequence[Sequence[Tile]], *, title: str) -> None:
    """Draw rows of equally many images, the first of each apart from the others; raises OSError."""
    columns = len(rows[0])
    figure = empty_figure((TILE_INCHES + 0.15) * columns + 0.3, (TILE_INCHES + 0.45) * len(rows) + 0.7)
    figure.suptitle(drawable(title), parse_math=False, fontsize=10)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, tiles in zip(grid, rows, strict=True):
        for axis, tile in zip(axes, tiles, strict=True):
            axis.imshow(to_rgb(tile.pixels[None] / 255)[0].permute(1, 2, 0).numpy())
            caption = "\n".join(drawable(line, max_letters=MAX_LETTERS) for line in tile.lines)
            axis.set_title(caption, fontsize=7, parse_math=False)
            hide_frame(axis)
        axes[0].spines[:].set(visible=True, color="tab:red", linewidth=3)
    save(figure, path)
