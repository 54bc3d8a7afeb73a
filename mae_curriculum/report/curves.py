"""A run's curves: what the rows of its steps tell, in columns, and thinned so that no spike is lost."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """Something that a run tells of its steps or its evaluations, as a chart shows it."""

    key: str
    """As the journal calls it."""
    title: str
    note: str = ""
    """What a newcomer should know."""
    unit: str = ""
    scale: float = 1.0
    """From the journal's unit to the chart's."""
    stepped: bool = False
    """Whether a value is that of all steps since the row before."""


MEASURES = (
    Measure("loss", "Loss", "In pretraining, of the masked patches. Losses at different sizes do not compare."),
    Measure("size", "Image size", "Height of what the encoder sees: the curriculum.", "px", stepped=True),
    Measure("magnitude", "RandAugment magnitude", "How strongly images are augmented, 0 to 10."),
    Measure("lr", "Learning rate"),
    Measure("gradient_norm", "Gradient norm", "Before clipping. Spikes tell of trouble."),
    Measure("update_ratio", "Update ratio", "Length of a step's change against the weights'."),
    Measure("images_per_second", "Throughput", "Over training and waiting for data.", "images/s"),
    Measure("tokens_per_second", "Tokens", "That the encoder sees, the class token too.", "tokens/s"),
    Measure("mfu", "Model FLOPs utilisation", "Against the data sheet's peak, or one measured at the start.", "%", 100),
    Measure("memory_bytes", "Device memory", "", "GiB", 2**-30),
    Measure("energy_joules", "Energy", "", "kWh", 1 / 3.6e6),
)
"""What rows of steps may tell; older journals tell less."""

EVALUATIONS = (
    Measure("knn", "kNN accuracy", "Images classified by their nearest neighbours' classes.", "%", 100),
    Measure("accuracy", "Accuracy", "", "%", 100),
    Measure("val_loss", "Validation loss", "Of images that are not trained on."),
)
"""What rows of evaluations may tell."""

AXES = {
    "steps_done": "Steps",
    "images": "Images",
    "epochs": "Equivalent epochs",
    "flops": "FLOPs",
    "train_seconds": "Training time",
    "elapsed": "Time since the start",
}
"""What a curve may be drawn against. Epochs are equivalent ones: shares of the run's length."""

TIMES = ("train_seconds", "elapsed")
"""Axes in seconds."""

_FIELDS = ("steps_done", "time", "images", "epochs", "flops", "train_seconds", "progress", *(m.key for m in MEASURES))

LAST_ROWS, LAST_SHARE = 10, 0.1
"""At most so many, and that share of all: their mean tells where a noisy curve stands, of which a row is luck."""


class Curves:
    """What a run's steps told, a number for each row of its journal; NaN where a row says nothing."""

    def __init__(self) -> None:
        self._fields = {field: array("d") for field in _FIELDS}

    def take(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        for field, column in self._fields.items():
            value = row.get(field)
            if isinstance(value, list):  # a size: height and width
                value = value[0] if value else None
            column.append(value if isinstance(value, int | float) else np.nan)

    def clear(self) -> None:
        """Forget all rows."""
        for column in self._fields.values():
            del column[:]

    def __len__(self) -> int:
        return len(self._fields["steps_done"])

    def __getitem__(self, field: str) -> Column:
        column = np.asarray(self._fields[field], dtype=np.float64)
        return np.where(np.isfinite(column), column, np.nan)


def thin(values: Column, count: int) -> NDArray[np.intp]:
    """Choose at most `count` points of a curve, 4 or more, between which nothing stands out.

    Of each of equal parts the lowest and the highest point stay, and of the whole the first and the last.
    """
    if len(values) <= count:
        return np.arange(len(values))
    chosen = {0, len(values) - 1}
    for start, end in pairwise(_parts(values, count)):
        part = values[start:end]
        known = np.isfinite(part).any()
        chosen |= {start + int(np.nanargmin(part)), start + int(np.nanargmax(part))} if known else {start}
    return np.array(sorted(chosen))


def means(values: Column, count: int) -> Column:
    """Give for each point that `thin` chooses the mean of its part: the curve without its noise."""
    known, edges = np.isfinite(values), _parts(values, count)
    sums, counts = (np.add.reduceat(each, edges[:-1]) for each in (np.where(known, values, 0), known.astype(float)))
    parts = np.searchsorted(edges, thin(values, count), side="right") - 1
    of_parts: Column = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return of_parts[parts]


def _parts(values: Column, count: int) -> NDArray[np.intp]:
    """Tell where the equal parts of a curve begin, and where the last ends."""
    return np.linspace(0, len(values), count // 2).astype(np.intp)


def newest_mean(values: Column) -> float | None:
    """Tell the mean of a curve's last rows; None if there are none."""
    known = values[np.isfinite(values)]
    count = max(1, min(LAST_ROWS, int(LAST_SHARE * len(known))))
    return float(known[-count:].mean()) if len(known) else None
