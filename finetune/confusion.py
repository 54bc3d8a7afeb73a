"""How a classifier errs, as a picture."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mae_curriculum.report.figures import drawable, empty_figure, save

MAX_NAMES = 40
"""With more classes than this their names would overlap; they are left out."""

MAX_LETTERS = 30
"""Of a name; of a longer one the end is shown."""


def draw_confusion(confusion: Tensor, classes: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix and each class's accuracy into a PNG.

    confusion  (classes, classes) images by class, row, and predicted class, column.
    """
    count = len(classes)
    named = count <= MAX_NAMES
    inches = max(5.0, min(0.32 * count, 14.0))
    figure = empty_figure(1.7 * inches, inches)
    matrix, bars = figure.subplots(1, 2, width_ratios=[2, 1])
    totals = confusion.sum(dim=1, keepdim=True)
    shares = confusion / totals.clamp(min=1)
    shown = matrix.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=matrix, label="share of the class", shrink=0.8)
    matrix.set(xlabel="predicted", ylabel="class")
    accuracy = shares.diagonal().numpy()
    bars.barh(range(count), accuracy, color="tab:blue")
    bars.set(xlim=(0, 1), ylim=(count - 0.5, -0.5), xlabel="accuracy")
    mean = float(confusion.trace() / confusion.sum())
    bars.axvline(mean, color="black", linestyle="--", linewidth=1, label=f"all images: {mean:.3f}")
    bars.legend(loc="lower left")
    if named:
        names = [drawable(name, max_letters=MAX_LETTERS) for name in classes]
        matrix.set_xticks(range(count), names, rotation=90, parse_math=False)
        for axis in (matrix, bars):
            axis.set_yticks(range(count), names, parse_math=False)
    if count <= 12:
        for row in range(count):
            for column in range(count):
                if confusion[row, column]:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    text = str(int(confusion[row, column]))
                    matrix.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    save(figure, path)
