"""Draw the confusion matrix of a classifier."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mae_curriculum.report.figures import drawable, empty_figure, save

MAX_NAMES = 40
"""Class names are drawn for up to this many classes; more would overlap."""

MAX_LETTERS = 30
"""Letters of a class name that are drawn; a longer name is cut at its start."""

MAX_NUMBERS = 12
"""Image counts are drawn for up to this many classes."""


def draw_confusion(confusion: Tensor, classes: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix and the accuracy of each class as a PNG.

    confusion  (classes, classes) image counts: rows are classes, columns predictions.
    """
    count = len(classes)
    inches = max(5.0, min(0.32 * count, 14.0))
    figure = empty_figure(1.7 * inches, inches)
    matrix, bars = figure.subplots(1, 2, width_ratios=[2, 1])
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    shown = matrix.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=matrix, label="share of the class", shrink=0.8)
    matrix.set(xlabel="predicted", ylabel="class")
    bars.barh(range(count), shares.diagonal().numpy(), color="tab:blue")
    bars.set(xlim=(0, 1), ylim=(count - 0.5, -0.5), xlabel="accuracy")
    mean = float(confusion.trace() / confusion.sum())
    bars.axvline(mean, color="black", linestyle="--", linewidth=1, label=f"all images: {mean:.3f}")
    bars.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    if count <= MAX_NAMES:
        names = [drawable(name, max_letters=MAX_LETTERS) for name in classes]
        matrix.set_xticks(range(count), names, rotation=90, parse_math=False)
        for axis in (matrix, bars):
            axis.set_yticks(range(count), names, parse_math=False)
    if count <= MAX_NUMBERS:
        for row, column in confusion.nonzero().tolist():
            color = "white" if shares[row, column] > 0.5 else "black"
            text = str(int(confusion[row, column]))
            matrix.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    save(figure, path)
