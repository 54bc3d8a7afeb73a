"""Compare runs with a baseline."""

import math
from collections.abc import Sequence

import numpy as np

from mae_curriculum.report.curves import Column, newest_mean
from mae_curriculum.report.runs import RunData
from mae_curriculum.report.tables import Table
from mae_curriculum.terminal import UNKNOWN, format_count, format_duration, format_flops, format_share

MATCHED_AXES = {
    "images": ("images", format_count),
    "flops": ("FLOPs", format_flops),
    "train_seconds": ("training time", format_duration),
}
"""Axes on which runs are compared at equal values, with the axis title and the format of the value."""

LOSS_SETTINGS = (
    "data.source",
    "model.patch_size",
    "model.mask_ratio",
    "model.target",
    "model.target_from",
    "mixup",
    "cutmix",
    "smoothing",
)
"""Settings that must be equal for losses to be comparable."""


def comparison_table(runs: Sequence[RunData], baseline: RunData) -> Table:
    """Compare runs with a baseline at equal images, FLOPs and training seconds: the last that both runs reached.

    Losses are left out if a setting that changes their meaning differs, accuracies if the images differ. Unknown
    settings count as equal.
    """
    is_classifier = len(baseline.evaluations("accuracy")[0]) > 0
    key, title = ("accuracy", "accuracy") if is_classifier else ("knn", "kNN")
    rows = []
    for run in runs:
        differences = _differences(run, baseline)
        for axis, (name, format_value) in MATCHED_AXES.items():
            value = min(_last(run.positions(axis)), _last(baseline.positions(axis)))
            if value < 0:
                continue
            losses = accuracies = [UNKNOWN, UNKNOWN]
            if not differences:
                losses = [_loss_at(each, axis, value) for each in (run, baseline)]
            if "data.source" not in differences:
                accuracies = [_evaluated_at(each, key, axis, value) for each in (run, baseline)]
            rows.append([run.name, name, format_value(value), *losses, *accuracies])
    caption = f"Compared with {baseline.name} at the last point that both runs reached"
    if any(_differences(run, baseline) for run in runs):
        caption += "; values with different images, targets or masks are not comparable and left out"
    return Table(caption, ["run", "matched on", "value", "loss", "baseline loss", title, f"baseline {title}"], rows)


def format_speedup(run: RunData, baseline: RunData | None, key: str) -> str:
    """Format how many times less of something a run used than the baseline; empty until both are finished."""
    if baseline is None or run is baseline or {run.state, baseline.state} != {"finished"}:
        return ""
    used, baseline_used = run.newest.get(key), baseline.newest.get(key)
    if not used or not baseline_used or f"{baseline_used / used:.2f}" == "1.00":
        return ""
    return f"{baseline_used / used:.2f}× less" if used <= baseline_used else f"{used / baseline_used:.2f}× more"


def _differences(run: RunData, baseline: RunData) -> list[str]:
    if not run.settings or not baseline.settings:
        return []
    return [name for name in LOSS_SETTINGS if run.settings.get(name) != baseline.settings.get(name)]


def _last(positions: Column) -> float:
    """Return the last known position, or -1 if there is none."""
    known = positions[np.isfinite(positions)]
    return float(known[-1]) if len(known) else -1.0


def _loss_at(run: RunData, axis: str, value: float) -> str:
    """Format the mean loss of the last rows up to `value` that have the same image size."""
    sizes, before = run.curves["size"], run.positions(axis) <= value
    size = sizes[before][-1] if before.any() else math.nan
    comparable = before & ((sizes == size) | math.isnan(size))  # losses at different sizes are not comparable
    loss = newest_mean(run.curves["loss"][comparable])
    at_size = f" at {size:.0f} px" if math.isfinite(size) else ""
    return UNKNOWN if loss is None else f"{loss:.4f}{at_size}"


def _evaluated_at(run: RunData, key: str, axis: str, value: float) -> str:
    """Format the accuracy at `value`, interpolated between evaluations; after the last one, that of the last one."""
    steps, accuracies = run.evaluations(key)
    positions = run.interpolate(steps, axis)
    known = len(positions) and positions[0] <= value
    return format_share(float(np.interp(value, positions, accuracies))) if known else UNKNOWN
