"""What a curriculum saved: FLOPs and training seconds beside those of the same run without it."""

from collections.abc import Callable, Sequence
from statistics import quantiles
from typing import Any

from mae_curriculum.curriculum.clock import Clock, View
from mae_curriculum.terminal import format_duration, format_or_dash
from mae_curriculum.tracking.stopwatch import ACTIVITIES, Stopwatch

MAX_SPREAD = 0.1
"""Largest spread of the middle half of the measured speed-ups, relative to their median, at which it is reported."""

FlopsOfView = Callable[[View], int]
"""Returns the training FLOPs of one image of a view."""


def run_flops(clock: Clock, flops: FlopsOfView) -> int:
    """Return the training FLOPs of a whole run."""
    return sum(span.images * flops(span.view) for span in clock.spans)


def summarize_costs(
    clock: Clock, baseline: Clock, flops: FlopsOfView, stopwatch: Stopwatch, *, speedups: Sequence[float]
) -> dict[str, Any]:
    """Return what a finished run cost, and what its baseline would have cost.

    baseline  the clock of the same run without a curriculum.
    speedups  how many times faster the run's steps are than the baseline's, by each of several measurements; where
              these differ by more than `MAX_SPREAD`, its seconds are unknown.
    """
    own_flops, baseline_flops = run_flops(clock, flops), run_flops(baseline, flops)
    low, speedup, high = quantiles(speedups, n=4, method="inclusive") if len(speedups) > 1 else 3 * [speedups[0]]
    is_known = high - low <= MAX_SPREAD * speedup
    stages = []
    for span in clock.spans:
        seconds = stopwatch.total(f"train/{span.index}")
        stages.append(
            {
                "size": list(span.size),
                "images": span.images,
                "flops_per_image": flops(span.view),
                "train_seconds": seconds,
                "seconds_per_image": seconds / span.images,
            }
        )
    return {
        "epochs": clock.epochs,
        "real_epochs": float(clock.real_epochs(clock.total_steps)),
        "images": clock.total_images,
        "flops": own_flops,
        "baseline_flops": baseline_flops,
        "speedup_flops": baseline_flops / own_flops,
        "baseline_train_seconds": speedup * stopwatch.total("train") if is_known else None,
        "speedup_seconds": speedup if is_known else None,
        "speedup_range": [low, high],
        **{f"{name}_seconds": stopwatch.total(name) for name in ACTIVITIES},
        "stages": stages,
    }


def describe_costs(summary: dict[str, Any]) -> str:
    """Return a run's loss and costs in a line, and what its curriculum saved in another."""
    costs = (
        f"loss {format_or_dash(summary['loss'], '{:.4f}')} after {summary['images']:,} images: "
        f"{format_duration(summary['train_seconds'])} of training, "
        f"{format_duration(summary['wait_seconds'])} of waiting for data"
    )
    flops = summary["baseline_flops"]
    if summary["flops"] == flops:  # without a curriculum
        return costs
    return (
        f"{costs}\nwith this curriculum {summary['flops']:.3g} FLOPs instead of {flops:.3g} "
        f"({format_factor(summary['speedup_flops'], 'fewer', 'more')}){_describe_seconds(summary)}"
    )


def _describe_seconds(summary: dict[str, Any]) -> str:
    """Return what was measured of the speed-up in seconds; empty for a run of an earlier version, which guessed it."""
    if "speedup_range" not in summary:
        return ""
    speedup, (low, high) = summary["speedup_seconds"], summary["speedup_range"]
    factor, measured = "not measurable", f"{low:.2f}x to {high:.2f}x"
    if speedup is not None:
        slower = speedup < 1
        factor = format_factor(speedup, "faster", "slower")
        measured = f"{1 / high:.2f}x to {1 / low:.2f}x" if slower else f"{low:.2f}x to {high:.2f}x"
    measured += " by steps with and without it, timed in turn"
    return f"; {factor} in seconds ({measured})"


def format_factor(factor: float, better: str, worse: str) -> str:
    """Format a factor above or below 1: 1.50x fewer, 1.20x more."""
    return f"{factor:.2f}x {better}" if factor >= 1 else f"{1 / factor:.2f}x {worse}"
