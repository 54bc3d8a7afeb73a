"""Figures as PNG files: reconstructions, the plan of a run, the loss of runs.

A figure that cannot be written raises OSError; an existing file is then kept.
"""

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from mae_curriculum.curriculum.clock import Clock, Moment
from mae_curriculum.evaluation.reconstruction import Reconstruction
from mae_curriculum.evaluation.speedup import FlopsOfView
from mae_curriculum.files import write_atomic
from mae_curriculum.report.runs import RunData
from mae_curriculum.report.strokes import draw_strokes
from mae_curriculum.terminal import printable, side

DPI = 120  # pixels per inch
TILE_INCHES = 1.5  # longer side of an image: 180 pixels, so that eight fit on a screen
MAX_COLUMNS = 8  # images in a row; more continue below
CELL_INCHES = 0.105  # least side of a cell of HOG, 12 pixels: its strokes can be told apart, and four images fit
MIN_CELL_PIXELS = 16  # least side of a cell before it is scaled to its place in the figure
MAX_LETTERS = 22  # letters of a name that fit above an image of `TILE_INCHES`

MAX_ERROR = 0.5
"""End of the color scale of errors, where 1 is black against white: always the same, so that figures are comparable."""

COLOR_COUNT = 10  # colors of lines, those of matplotlib
LINE_STYLES = ("solid", "dashed", "dotted", "dashdot")  # one for each round of colors

CURVE_POINTS = 200  # points of a learning rate curve per stage, enough for it to look smooth


def draw_reconstructions(path: Path, images: Reconstruction, names: Sequence[str], *, title: str) -> None:
    """Draw, for each image from top to bottom: input, visible patches, reconstruction, error.

    For a target of "hog", the last two are the HOG of the input, and its prediction.

    names  of the images, in order; any text.
    """
    h, w = images.seen.shape[-2:]
    is_hog = images.target == "hog"
    tile_inches = max(TILE_INCHES, CELL_INCHES * max(images.truth.shape[-2:])) if is_hog else TILE_INCHES
    tile_h, tile_w = (tile_inches * length / max(h, w) for length in (h, w))
    blocks = -(-len(names) // max(1, int(MAX_COLUMNS * TILE_INCHES / tile_inches)))
    columns = -(-len(names) // blocks)
    width, height = max(5.0, columns * (tile_w + 0.1) + 1.8), blocks * (4 * tile_h + 0.5) + 1.8
    figure = empty_figure(width, height, layout="compressed")
    figure.suptitle(drawable(title), parse_math=False)
    parts = _parts(images)
    axes = figure.subplots(4 * blocks, 1)
    for row, axis in enumerate(axes):
        block = slice(row // 4 * columns, row // 4 * columns + columns)
        heading, part = parts[row % 4]
        h, w = part.shape[-2:]
        gap = max(1, w // 24)
        drawn = axis.imshow(_row_of_images(part[block], columns, gap), cmap="magma", vmin=0, vmax=MAX_ERROR)
        hide_frame(axis)
        axis.set_yticks([(h - 1) / 2], [heading], fontsize=9)
        axis.tick_params(length=0)
        if row % 4 == 0:
            _draw_names(axis, names[block], [index * (w + gap) + (w - 1) / 2 for index in range(len(names[block]))])
    if not is_hog:
        _draw_error_scale(figure, axes, drawn, columns)
    figure.supxlabel(_caption(images), fontsize=8)
    save(figure, path)


def _parts(images: Reconstruction) -> list[tuple[str, Tensor]]:
    """Return the headings and the images of the four rows."""
    h, w = images.seen.shape[-2:]
    parts = [
        (f"input\n{side((h, w))} px", to_rgb(images.seen)),
        (f"masked\n{images.visible_count} of {images.patch_count}\npatches\nvisible", to_rgb(images.masked)),
    ]
    if images.target == "hog":
        cell = h // images.truth.shape[-2]
        scale = -(-MIN_CELL_PIXELS // cell)  # whole, so that all rows have one shape
        true, predicted = (to_rgb(draw_strokes(each, cell * scale)) for each in (images.truth, images.completed))
        return [*parts, ("HOG of\nthe input", true), ("HOG,\npredicted", predicted)]
    note = "\ndenormalized" if images.target == "norm_pixels" else ""
    return [*parts, (f"reconstruction{note}", to_rgb(images.completed)), ("error", images.error)]


def _draw_error_scale(figure: Any, axes: Any, errors: Any, columns: int) -> None:
    shrink = min(1.0, 4 / columns)
    bar = figure.colorbar(errors, ax=axes, location="bottom", extend="max", shrink=shrink, aspect=10 * shrink * columns)
    bar.set_label("error (1: black against white)", fontsize=9)


def _draw_names(axis: Any, names: Sequence[str], centers: list[float]) -> None:
    labels = [drawable(name, max_letters=MAX_LETTERS) for name in names]
    axis.set_xticks(centers, labels, fontsize=7, parse_math=False)
    axis.xaxis.tick_top()


def _caption(images: Reconstruction) -> str:
    lines = ["Masked patches are predicted, visible ones copied from the input, which is not augmented here."]
    if images.target == "norm_pixels":
        lines.append(
            "The model predicts patches normalized to mean 0 and variance 1;\n"
            "they are denormalized with mean and variance of the true patch, which the model does not see."
        )
    if images.target == "hog":
        lines.append("Each cell shows the edges in it; a stroke is as bright as its share, the mean of the channels.")
    if images.seen.shape[1] not in (1, 3):
        lines.append(f"Shown in gray: the mean of the {images.seen.shape[1]} channels.")
    return "\n".join(lines)


def draw_plan(
    path: Path,
    clock: Clock,
    samples: Sequence[tuple[Moment, Tensor]],
    *,
    title: str,
    flops: FlopsOfView,
    baseline_flops: int,
    lr: Callable[[float, int], float],
) -> None:
    """Draw the encoder's input in each stage, and size, magnitude, learning rate and compute over progress.

    samples         an image (c, h, w), 0 (black) to 1 (white), as the encoder sees it at some moments; may be empty.
    flops           training FLOPs of an image.
    baseline_flops  FLOPs of the whole run without a curriculum.
    lr              learning rate as a function of progress and batch size.
    """
    randaug = clock.curriculum.augmentation.randaug
    curve_count = 3 if randaug is None else 4
    samples_inches, curves_inches = 2.6 if samples else 0.1, 1.5 * curve_count + 0.5
    figure = empty_figure(9, samples_inches + curves_inches + 0.4)
    figure.suptitle(drawable(title), parse_math=False)
    costs = [span.images * flops(span.view) / baseline_flops for span in clock.spans]
    top, bottom = figure.subfigures(2, 1, height_ratios=[samples_inches, curves_inches])
    _draw_samples(top, samples)
    axes = bottom.subplots(curve_count, 1, sharex=True)
    for axis in axes:
        for span in clock.spans[::2]:
            axis.axvspan(float(span.start), float(span.end), color="0.95")
    _draw_size(axes[0], clock)
    if randaug is not None:
        axes[1].plot([0, 1], randaug, color="tab:green")
        axes[1].set(ylabel="RandAugment\nmagnitude", ylim=(0, None))
    _draw_lr(axes[-2], clock, lr)
    _draw_compute(axes[-1], clock, costs)
    axes[-1].set(xlabel="progress of the run (every other stage is shaded)", xlim=(0, 1))
    bottom.align_ylabels()
    save(figure, path)


def draw_plans(path: Path, plans: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the image sizes of several plans over progress and over compute.

    plans  what `compute_plan` returns, by name.
    """
    figure = empty_figure(9, 6 + 0.2 * len(plans))
    figure.suptitle("image size over the run (dots: its end)", fontsize=11)
    axes = figure.subplots(2, 1)
    tallest = max(stage["size"][0] for facts in plans.values() for stage in facts["stages"])
    for place, facts in enumerate(plans.values()):
        stages = facts["stages"]
        heights = [stage["size"][0] for stage in stages]
        progress = [0.0, *(stage["progress"][1] for stage in stages)]
        flops = [0.0, *accumulate(float(stage["images"] * stage["flops_per_image"]) for stage in stages)]
        width = 8 * (1 - place / len(plans))  # points: each line shows below later ones
        style = {**line_style(place), "linewidth": width}
        for axis, edges in zip(axes, (progress, flops), strict=True):
            axis.stairs(heights, edges, baseline=None, **style)
            axis.plot(edges[-1], heights[-1], "o", clip_on=False, **style)
    for axis, label in zip(axes, ("progress of the run", "training FLOPs"), strict=True):
        axis.set(xlabel=label, ylabel="image height\npixels", xlim=(0, None), ylim=(0, 1.1 * tallest))
        axis.grid(alpha=0.3)
    _draw_legend(figure, axes[0].get_lines(), list(plans))
    save(figure, path)


def _draw_legend(figure: Any, lines: Sequence[Any], names: Sequence[str]) -> None:
    legend = figure.legend(lines, [drawable(name) for name in names], loc="outside lower center")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_samples(figure: Any, samples: Sequence[tuple[Moment, Tensor]]) -> None:
    if samples:
        figure.suptitle("the first training image as the encoder sees it halfway through each stage", fontsize=10)
    for number, (moment, image) in enumerate(samples, start=1):
        axis = figure.add_subplot(1, len(samples), number)
        axis.imshow(to_rgb(image[None])[0].permute(1, 2, 0).numpy())
        magnitude = "" if moment.magnitude is None else f"\nmagnitude {moment.magnitude:.1f}"
        axis.set_title(f"stage {moment.stage + 1}: {side(moment.size)} px{magnitude}", fontsize=9)
        hide_frame(axis)


def _draw_size(axis: Any, clock: Clock) -> None:
    heights = [span.size[0] for span in clock.spans]
    axis.stairs(heights, _edges(clock), baseline=None, color="tab:blue", linewidth=2)
    axis.set(ylabel="image height\npixels", ylim=(0, 1.3 * max(heights)))
    for span in clock.spans:
        center, top = float(span.start + span.end) / 2, span.size[0] + 0.05 * max(heights)
        axis.text(center, top, side(span.size), ha="center", fontsize=8)


def _draw_lr(axis: Any, clock: Clock, lr: Callable[[float, int], float]) -> None:
    for span in clock.spans:
        progress = [float(span.start + span.share * point / CURVE_POINTS) for point in range(CURVE_POINTS + 1)]
        axis.plot(progress, [lr(point, span.batch_images) for point in progress], color="tab:red")
    axis.set(ylabel="learning rate", ylim=(0, None))


def _draw_compute(axis: Any, clock: Clock, costs: list[float]) -> None:
    totals = [0.0, *accumulate(costs)]
    axis.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="without a curriculum")
    axis.plot(_edges(clock), totals, color="tab:orange", label="this run, with the share of each stage")
    axis.set(ylabel="compute,\nshare of the run\nwithout a curriculum", ylim=(0, None))
    axis.legend(loc="upper left", fontsize=8)
    for span, cost, total in zip(clock.spans, costs, totals[1:], strict=True):
        center = float(span.start + span.end) / 2, total - cost / 2
        text = f"{cost / totals[-1]:.0%}"
        axis.annotate(text, center, xytext=(3, -3), textcoords="offset points", va="top", fontsize=8)


def _edges(clock: Clock) -> list[float]:
    return [float(span.start) for span in clock.spans] + [1.0]


def draw_losses(path: Path, runs: Sequence[RunData]) -> None:
    """Draw the loss of runs against images, FLOPs and training seconds."""
    figure = empty_figure(12, 4.2 + 0.2 * len(runs))
    title = "training loss against images, FLOPs and training time"
    if any(len({stage.height for stage in run.stages}) > 1 for run in runs):
        title += "\nit jumps where the image size changes, as losses at different sizes are not comparable"
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(1, 3, sharey=True)
    for number, run in enumerate(runs):
        style = {**line_style(number), "marker": "o", "markersize": 5}
        known = np.isfinite(run.curves["loss"])
        starts = np.isin(run.curves["steps_done"][known], [stage.first_step for stage in run.stages[1:]])
        dots = np.flatnonzero(starts).tolist()
        for axis, key in zip(axes, ("images", "flops", "train_seconds"), strict=True):
            axis.plot(run.curves[key][known], run.curves["loss"][known], markevery=dots, **style)
    for axis, label in zip(axes, ("images seen", "training FLOPs", "training seconds"), strict=True):
        axis.set(xlabel=label, xlim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="loss (dots: start of a stage)")
    _draw_legend(figure, axes[0].get_lines(), [run.name for run in runs])
    save(figure, path)


def line_style(number: int) -> dict[str, str]:
    """Return color and line style of a line by its number, so that more lines than there are colors differ."""
    return {"color": f"C{number % COLOR_COUNT}", "linestyle": LINE_STYLES[number // COLOR_COUNT % len(LINE_STYLES)]}


def drawable(name: str, *, max_letters: int = 120) -> str:
    """Return a file name as printable text, whatever bytes it has; of a long name, the end."""
    text = printable(name)
    return text if len(text) <= max_letters else "…" + text[1 - max_letters :]


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, atomically; raises OSError."""
    content = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # letters that the font lacks are drawn as boxes
        figure.savefig(content, format="png", dpi=DPI)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content.getvalue())


def empty_figure(width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Any:
    """Create an empty figure; width and height are in inches."""
    from matplotlib.figure import Figure  # takes a second, which only figures need; no pyplot: it has global state

    return Figure(figsize=(width, height), layout=layout)


def hide_frame(axis: Any) -> None:
    """Remove the ticks and the frame around an image."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def to_rgb(images: Tensor) -> Tensor:
    """Convert images of any number of channels to (b, 3, h, w), 0 to 1; unless it is 3, as the mean of the channels."""
    if images.shape[1] != 3:
        images = images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    return images.clamp(0, 1)


def _row_of_images(images: Tensor, columns: int, gap: int) -> NDArray[Any]:
    """Join images (b, c, h, w) to a row (h, width, c), `gap` pixels apart, and white up to the last column."""
    filler = 1.0 if images.shape[1] == 3 else math.nan  # color maps leave NaN white
    padded = F.pad(images.float().cpu(), (0, gap, 0, 0, 0, 0, 0, columns - len(images)), value=filler)
    row: NDArray[Any] = rearrange(padded, "b c h w -> h (b w) c")[:, :-gap].numpy()
    return row
