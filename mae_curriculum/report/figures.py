"""Pictures of a run, as PNG files: reconstructions, the plan, the loss. What they show is worked out elsewhere."""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from mae_curriculum.curriculum.schedule import Clock, Moment
from mae_curriculum.evaluation.reconstruction import Reconstruction
from mae_curriculum.evaluation.speedup import FlopsOfView
from mae_curriculum.files import write_atomic
from mae_curriculum.report.curves import Column
from mae_curriculum.terminal import side

DPI = 120
"""Pixels an inch."""


TILE_INCHES = 1.5
"""Longer side of an image on a picture: 180 pixels, so that eight fit a screen."""


COLUMNS = 8
"""Images beside each other; more go on below."""


MAX_LETTERS = 22
"""Of a name above an image, at `TILE_INCHES`."""


LARGEST_ERROR = 0.5
"""End of the scale of error maps, where 1 is black against white: the same in all pictures, so that they compare."""


SAMPLES = 200
"""Points of a curve within a stage: enough for any bend of the learning rate."""


def draw_reconstructions(path: Path, images: Reconstruction, names: Sequence[str], *, title: str) -> None:
    """Draw of each image, from top to bottom, the input, what was visible of it, the completed image, the error.

    names   of the images, in order; any text.
    Raises  OSError if the file cannot be written; one that was there stays.
    """
    h, w = images.seen.shape[-2:]
    tile_h, tile_w = (TILE_INCHES * length / max(h, w) for length in (h, w))
    blocks = -(-len(names) // COLUMNS)
    columns = -(-len(names) // blocks)
    figure = empty_figure(
        max(5.0, columns * (tile_w + 0.1) + 1.8), blocks * (4 * tile_h + 0.5) + 1.8, layout="compressed"
    )
    figure.suptitle(drawable(title), parse_math=False)
    gap = max(1, w // 24)
    parts = [
        (f"input\n{side((h, w))} px", _in_colour(images.seen)),
        (f"masked\n{images.visible_count} of {images.patch_count}\npatches\nvisible", _in_colour(images.masked)),
        ("reconstruction" + "\nnormalised back" * (images.target == "norm_pixels"), _in_colour(images.completed)),
        ("error", images.error),
    ]
    axes = figure.subplots(4 * blocks, 1)
    for row, axis in enumerate(axes):
        block = slice(row // 4 * columns, row // 4 * columns + columns)
        heading, part = parts[row % 4]
        drawn = axis.imshow(_row(part[block], columns, gap), cmap="magma", vmin=0, vmax=LARGEST_ERROR)
        _bare(axis)
        axis.set_yticks([(h - 1) / 2], [heading], fontsize=9)
        axis.tick_params(length=0)
        if row % 4 == 0:
            middles = [place * (w + gap) + (w - 1) / 2 for place in range(len(names[block]))]
            labels = [drawable(name, max_letters=MAX_LETTERS) for name in names[block]]
            axis.set_xticks(middles, labels, fontsize=7, parse_math=False)
            axis.xaxis.tick_top()
    shrink = min(1.0, 4 / columns)
    bar = figure.colorbar(drawn, ax=axes, location="bottom", extend="max", shrink=shrink, aspect=10 * shrink * columns)
    bar.set_label("error: 1 is black against white", fontsize=9)
    figure.supxlabel(_explain(images), fontsize=8)
    save(figure, path)


def _explain(images: Reconstruction) -> str:
    """Say what a newcomer cannot see."""
    lines = ["Hidden patches are predicted, visible ones pasted from the input, which is not augmented here."]
    if images.target == "norm_pixels":
        lines.append(
            "The model predicts patches normalised to mean 0 and variance 1;\n"
            "mean and variance are put back from the true patch, which the model does not know."
        )
    if images.seen.shape[1] not in (1, 3):
        lines.append(f"Shown in grey: the mean of the {images.seen.shape[1]} channels.")
    return "\n".join(lines)


@dataclass(frozen=True)
class Plan:
    """A curriculum laid over a run, with what it costs."""

    title: str
    clock: Clock
    flops: FlopsOfView
    baseline_flops: int
    """Of the whole run without curriculum."""
    lr: Callable[[float, int], float]
    """Learning rate at a progress, for a batch of so many images."""
    photos: Sequence[tuple[Moment, Tensor]]
    """A photo (c, h, w), from 0 (black) to 1 (white), as it is seen at some moments; may be empty."""


def draw_plan(path: Path, plan: Plan) -> None:
    """Draw photos as the encoder sees them on the way; size, magnitude, learning rate and compute over progress.

    Raises  OSError if the file cannot be written; one that was there stays.
    """
    randaug = plan.clock.curriculum.augmentation.randaug
    curve_count = 3 if randaug is None else 4
    photos_inches, curves_inches = 2.6 if plan.photos else 0.1, 1.5 * curve_count + 0.5
    figure = empty_figure(9, photos_inches + curves_inches + 0.4)
    figure.suptitle(drawable(plan.title), parse_math=False)
    top, bottom = figure.subfigures(2, 1, height_ratios=[photos_inches, curves_inches])
    _draw_photos(top, plan.photos)
    axes = bottom.subplots(curve_count, 1, sharex=True)
    for axis in axes:
        for span in plan.clock.spans[::2]:
            axis.axvspan(float(span.start), float(span.end), color="0.95")
    _draw_size(axes[0], plan.clock)
    if randaug is not None:
        axes[1].plot([0, 1], randaug, color="tab:green")
        axes[1].set(ylabel="RandAugment\nmagnitude", ylim=(0, None))
    _draw_rate(axes[-2], plan)
    _draw_compute(axes[-1], plan)
    axes[-1].set(xlabel="progress of the run; stages are shaded in turn", xlim=(0, 1))
    bottom.align_ylabels()
    save(figure, path)


def _draw_photos(figure: Any, photos: Sequence[tuple[Moment, Tensor]]) -> None:
    if photos:
        figure.suptitle("the first training image as the encoder sees it half-way through each stage", fontsize=10)
    for place, (moment, photo) in enumerate(photos, start=1):
        axis = figure.add_subplot(1, len(photos), place)
        axis.imshow(_in_colour(photo[None])[0].permute(1, 2, 0).numpy())
        strength = "" if moment.magnitude is None else f"\nmagnitude {moment.magnitude:.1f}"
        axis.set_title(f"stage {moment.stage + 1}: {side(moment.size)} px{strength}", fontsize=9)
        _bare(axis)


def _draw_size(axis: Any, clock: Clock) -> None:
    edges = [float(span.start) for span in clock.spans] + [1.0]
    heights = [span.size[0] for span in clock.spans]
    axis.stairs(heights, edges, baseline=None, color="tab:blue", linewidth=2)
    axis.set(ylabel="image height\npixels", ylim=(0, 1.3 * max(heights)))
    for span in clock.spans:
        place = float(span.start + span.end) / 2, span.size[0] + 0.05 * max(heights)
        axis.text(*place, side(span.size), ha="center", fontsize=8)


def _draw_rate(axis: Any, plan: Plan) -> None:
    for span in plan.clock.spans:
        points = [float(span.start + span.share * place / SAMPLES) for place in range(SAMPLES + 1)]
        axis.plot(points, [plan.lr(point, span.batch_images) for point in points], color="tab:red")
    axis.set(ylabel="learning rate", ylim=(0, None))


def _draw_compute(axis: Any, plan: Plan) -> None:
    spans = plan.clock.spans
    costs = [span.images * plan.flops(span.view) / plan.baseline_flops for span in spans]
    spent = [0.0, *accumulate(costs)]
    axis.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="without curriculum")
    edges = [float(span.start) for span in spans] + [1.0]
    axis.plot(edges, spent, color="tab:orange", label="this run, and the share of each stage in it")
    axis.set(ylabel="compute spent,\nshare of the run\nwithout curriculum", ylim=(0, None))
    axis.legend(loc="upper left", fontsize=8)
    for span, cost, end in zip(spans, costs, spent[1:], strict=True):
        middle = float(span.start + span.end) / 2, end - cost / 2
        text = f"{cost / spent[-1]:.0%}"
        axis.annotate(text, middle, xytext=(3, -3), textcoords="offset points", va="top", fontsize=8)


@dataclass(frozen=True)
class Curve:
    """The loss of a run on its way: a value for each report, in order."""

    name: str
    loss: Column
    images: Column
    flops: Column
    train_seconds: Column
    edges: Sequence[int]
    """The reports at whose step another stage begins."""


def draw_losses(path: Path, curves: Sequence[Curve]) -> None:
    """Draw the loss of runs against the images, the FLOPs and the training seconds that it took.

    Raises  OSError if the file cannot be written; one that was there stays.
    """
    figure = empty_figure(12, 4.2 + 0.2 * len(curves))
    figure.suptitle("training loss against what it took")
    axes = figure.subplots(1, 3, sharey=True)
    for number, curve in enumerate(curves):
        for axis, spent in zip(axes, (curve.images, curve.flops, curve.train_seconds), strict=True):
            axis.plot(spent, curve.loss, color=f"C{number}", marker="o", markersize=5, markevery=curve.edges)
    for axis, label in zip(axes, ("images seen", "training FLOPs", "training seconds"), strict=True):
        axis.set(xlabel=label, xlim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="loss (a dot: another stage begins)")
    names = [drawable(curve.name) for curve in curves]
    legend: Any = figure.legend(axes[0].get_lines(), names, loc="outside lower center")
    for text in legend.get_texts():
        text.set_parse_math(False)
    save(figure, path)


def drawable(name: str, *, max_letters: int = 120) -> str:
    """Make a text that can be drawn and printed of a file's name, whatever bytes are in it; of a long one, the end."""
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    return text if len(text) <= max_letters else "…" + text[1 - max_letters :]


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all; raises OSError."""
    content = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of letters in names that the font lacks; they come as boxes
        figure.savefig(content, format="png", dpi=DPI)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content.getvalue())


def empty_figure(width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Any:
    """Make an empty figure of so many inches."""
    from matplotlib.figure import Figure  # takes a second, which only pictures need; no pyplot: nothing global

    return Figure(figsize=(width, height), layout=layout)


def _bare(axis: Any) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _in_colour(images: Tensor) -> Tensor:
    """Make (b, 3, h, w), 0 to 1, of images of any number of channels: of neither 1 nor 3, their mean."""
    images = images if images.shape[1] == 3 else images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    return images.clamp(0, 1)


def _row(images: Tensor, columns: int, gap: int) -> NDArray[Any]:
    """Put images (b, c, h, w) in a row with gaps of so many pixels, white up to the last column: (h, width, c)."""
    filler = 1.0 if images.shape[1] == 3 else math.nan  # which a map of colours leaves white
    padded = F.pad(images.float().cpu(), (0, gap, 0, 0, 0, 0, 0, columns - len(images)), value=filler)
    row: NDArray[Any] = rearrange(padded, "b c h w -> h (b w) c")[:, :-gap].numpy()
    return row
