"""A run's logged metrics as columns, and thinning of long curves that keeps every spike."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A metric of training steps or of evaluations, and how a chart shows it."""

    key: str
    """Name in the journal."""
    title: str
    note: str = ""
    """Explanation below the chart."""
    unit: str = ""
    """Unit in the chart."""
    scale: float = 1.0
    """Factor from the journal's unit to the chart's."""
    stepped: bool = False
    """Whether a value holds for all steps since the previous row."""


STEP_METRICS = (
    Metric(
        "loss",
        "Loss",
        "In pretraining, of the masked patches. It jumps where the image size changes: not comparable between sizes.",
    ),
    Metric("size", "Image size", "Height of the encoder's input, set by the curriculum.", "px", stepped=True),
    Metric("magnitude", "RandAugment magnitude", "Strength of the augmentation, 0 to 10."),
    Metric("lr", "Learning rate"),
    Metric("gradient_norm", "Gradient norm", "Before clipping. Spikes are a sign of instability."),
    Metric("update_ratio", "Update ratio", "Norm of a step's weight update relative to the norm of the weights."),
    Metric("images_per_second", "Throughput", "Includes waiting for data.", "images/s"),
    Metric("tokens_per_second", "Tokens", "Tokens that the encoder sees, class token included.", "tokens/s"),
    Metric("mfu", "Model FLOPs utilization", "Of the peak in the data sheet, or measured at the start.", "%", 100),
    Metric("memory_bytes", "Device memory", "", "GiB", 2**-30),
    Metric("energy_joules", "Energy", "", "kWh", 1 / 3.6e6),
)
"""Metrics in the rows of steps; older journals have fewer."""

EVALUATION_METRICS = (
    Metric("knn", "kNN accuracy", "Images classified by the classes of their nearest neighbors.", "%", 100),
    Metric("accuracy", "Accuracy", "", "%", 100),
    Metric("val_loss", "Validation loss", "On validation images; if a pretraining has none, on training images."),
    Metric("effective_rank", "Effective rank", "Number of directions that the features fill."),
)
"""Metrics in the rows of evaluations."""

AXES = {
    "steps_done": "Steps",
    "images": "Images",
    "epochs": "Equivalent epochs",
    "real_epochs": "Real epochs",
    "flops": "FLOPs",
    "train_seconds": "Training time",
    "elapsed": "Time since the start",
}
"""What a curve can be plotted against. Equivalent epochs are shares of the run's length."""

TIME_AXES = ("train_seconds", "elapsed")
"""Axes in seconds."""

_FIELDS = ["steps_done", "time", "images", "epochs", "real_epochs", "flops", "train_seconds", "progress"]
_FIELDS += [metric.key for metric in STEP_METRICS]


class Curves:
    """Per-step metrics of a run: one number per field and journal row, NaN where the row has none."""

    def __init__(self) -> None:
        self._fields = {field: array("d") for field in _FIELDS}

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row of the journal."""
        for field, column in self._fields.items():
            value = row.get(field)
            if isinstance(value, list):  # image size: height and width
                value = value[0] if value else None
            column.append(value if isinstance(value, int | float) else np.nan)

    def clear(self) -> None:
        """Remove all rows."""
        for column in self._fields.values():
            del column[:]

    def __len__(self) -> int:
        return len(self._fields["steps_done"])

    def __getitem__(self, field: str) -> Column:
        column = np.asarray(self._fields[field], dtype=np.float64)
        return np.where(np.isfinite(column), column, np.nan)


def thin(values: Column, count: int) -> NDArray[np.intp]:
    """Return the indices of at most `count` points of a curve (4 or more) that keep its extremes.

    The curve is split into equal parts; each keeps its lowest and highest point. The first and last point are kept too.
    """
    if len(values) <= count:
        return np.arange(len(values))
    chosen = {0, len(values) - 1}
    for start, end in pairwise(_part_edges(values, count)):
        part = values[start:end]
        if np.isfinite(part).any():
            chosen |= {start + int(np.nanargmin(part)), start + int(np.nanargmax(part))}
        else:
            chosen.add(start)
    return np.array(sorted(chosen))


def means(values: Column, count: int) -> Column:
    """Return the mean of the surrounding part for each point that `thin` chooses: the curve without noise."""
    known, edges = np.isfinite(values), _part_edges(values, count)
    sums = np.add.reduceat(np.where(known, values, 0), edges[:-1])
    counts = np.add.reduceat(known.astype(float), edges[:-1])
    part_means: Column = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    parts = np.searchsorted(edges, thin(values, count), side="right") - 1
    return part_means[parts]


def _part_edges(values: Column, count: int) -> NDArray[np.intp]:
    return np.linspace(0, len(values), count // 2).astype(np.intp)


def newest_mean(values: Column) -> float | None:
    """Return the mean of a curve's last values, as single ones are noisy: a tenth, at most 10. None if it is empty."""
    known = values[np.isfinite(values)]
    count = max(1, min(10, len(known) // 10))
    return float(known[-count:].mean()) if len(known) else None
