"""What a curriculum saved: FLOPs and training seconds beside those of the same run without it."""

from collections.abc import Callable
from typing import Any

from mae_curriculum.curriculum.schedule import Clock, View
from mae_curriculum.terminal import format_or_dash
from mae_curriculum.tracking.stopwatch import ACTIVITIES, Stopwatch

FlopsOfView = Callable[[View], int]
"""Returns the training FLOPs of one image of a view."""


def run_flops(clock: Clock, flops: FlopsOfView) -> int:
    """Return the training FLOPs of a whole run."""
    return sum(span.images * flops(span.view) for span in clock.spans)


def summarize_costs(
    clock: Clock, baseline: Clock, flops: FlopsOfView, stopwatch: Stopwatch, *, baseline_seconds: float
) -> dict[str, Any]:
    """Return what a finished run cost, and what its baseline would have cost.

    baseline          the clock of the same run without a curriculum.
    baseline_seconds  measured training seconds of one of its steps.
    """
    own_flops, baseline_flops = run_flops(clock, flops), run_flops(baseline, flops)
    baseline_train_seconds = baseline_seconds * baseline.total_steps
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
        "images": clock.total_images,
        "flops": own_flops,
        "baseline_flops": baseline_flops,
        "speedup_flops": baseline_flops / own_flops,
        "baseline_train_seconds": baseline_train_seconds,
        "speedup_seconds": baseline_train_seconds / stopwatch.total("train"),
        **{f"{name}_seconds": stopwatch.total(name) for name in ACTIVITIES},
        "stages": stages,
        "baseline_seconds_per_image": baseline_seconds / baseline.spans[0].batch_images,
    }


def describe_costs(summary: dict[str, Any]) -> str:
    """Return a run's loss and costs in a line, and what its curriculum saved in another."""
    costs = (
        f"loss {format_or_dash(summary['loss'], '{:.4f}')} after {summary['images']:,} images: "
        f"{summary['train_seconds']:.1f} s of training, {summary['wait_seconds']:.1f} s of waiting for data"
    )
    seconds, flops = summary["baseline_train_seconds"], summary["baseline_flops"]
    if summary["flops"] == flops:  # without a curriculum
        return costs
    return (
        f"{costs}\nwith this curriculum {summary['train_seconds']:.1f} training seconds instead of {seconds:.1f} "
        f"({summary['speedup_seconds']:.2f}x faster), {summary['flops']:.3g} FLOPs instead of {flops:.3g} "
        f"({summary['speedup_flops']:.2f}x fewer)"
    )
