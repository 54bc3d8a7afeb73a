"""Compare a run with its baseline."""

import math
from collections.abc import Sequence

import numpy as np

from mae_curriculum.report.curves import Column, newest_mean
from mae_curriculum.report.runs import RunData
from mae_curriculum.report.tables import Table
from mae_curriculum.terminal import UNKNOWN, format_count, format_duration, format_flops, format_share

COMPARED = {"images": "images", "flops": "FLOPs", "train_seconds": "training time"}
"""What a run is held against the baseline at equal amounts of."""


LOSS_SETTINGS = ("data.source", "model.patch_size", "model.mask_ratio", "model.target", "mixup", "cutmix", "smoothing")
"""Losses compare where these are the same."""


def comparison(runs: Sequence[RunData], baseline: RunData) -> Table:
    """Hold runs against a baseline at equal images, FLOPs and training seconds: as far as both got.

    Losses of other images, targets or masks do not compare, nor do accuracies on other images; where a run's settings
    are lost, nobody knows.
    """
    key, title = ("accuracy", "accuracy") if baseline.evaluations("accuracy")[0].size else ("knn", "kNN")
    rows, apart = [], False
    for run in runs:
        both = [run, baseline]
        known = run.settings and baseline.settings
        others = [name for name in LOSS_SETTINGS if known and run.settings.get(name) != baseline.settings.get(name)]
        apart |= bool(others)
        for axis, name in COMPARED.items():
            point = min(_last(each.positions(axis)) for each in both)
            if not math.isfinite(point):
                continue
            cells = [run.name, name, _AMOUNTS[axis](point)]
            cells += [UNKNOWN if others else _loss_at(each, axis, point) for each in both]
            unlike = "data.source" in others
            cells += [UNKNOWN if unlike else _evaluated_at(each, key, axis, point) for each in both]
            rows.append(cells)
    head = ["run", "at equal", "namely", "loss", "of baseline", title, "of baseline"]
    caption = f"Held against {baseline.name}, as far as both got"
    caption += "; what is of other images, targets or masks does not compare" if apart else ""
    return Table(caption, head, rows)


def less(run: RunData, baseline: RunData | None, key: str) -> str:
    """Say how many times less of something a run took than the baseline; empty until both are finished."""
    if baseline is None or run is baseline or {run.state, baseline.state} != {"finished"}:
        return ""
    mine, its = run.newest.get(key), baseline.newest.get(key)
    if not mine or not its or f"{its / mine:.2f}" == "1.00":
        return ""
    return f"{its / mine:.2f}× less" if mine <= its else f"{mine / its:.2f}× more"


_AMOUNTS = {"images": format_count, "flops": format_flops, "train_seconds": format_duration}


def _last(positions: Column) -> float:
    known = positions[np.isfinite(positions)]
    return float(known[-1]) if len(known) else math.nan


def _loss_at(run: RunData, axis: str, point: float) -> str:
    positions = run.positions(axis)
    sizes, before = run.curves["size"], positions <= point
    size = sizes[before][-1] if before.any() else math.nan
    alike = before & ((sizes == size) | math.isnan(size))  # losses at different sizes do not compare
    loss = newest_mean(run.curves["loss"][alike])
    at_size = f" at {size:.0f} px" if math.isfinite(size) else ""
    return UNKNOWN if loss is None else f"{loss:.4f}{at_size}"


def _evaluated_at(run: RunData, key: str, axis: str, point: float) -> str:
    """Tell the accuracy at a point: on the straight line between two evaluations, or that of the last one before."""
    steps, accuracies = run.evaluations(key)
    places = run.place(steps, axis)
    known = len(places) and places[0] <= point
    return format_share(float(np.interp(point, places, accuracies))) if known else UNKNOWN
