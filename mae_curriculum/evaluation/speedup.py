"""What a run saved: its FLOPs and training seconds beside those of the same run without curriculum."""

from collections.abc import Callable
from typing import Any

from mae_curriculum.curriculum.schedule import Clock
from mae_curriculum.terminal import format_or_dash
from mae_curriculum.tracking.stopwatch import ACTIVITIES, Stopwatch

FlopsOfSize = Callable[[tuple[int, int]], int]
"""Training FLOPs of one image of a size (height, width)."""


def run_flops(clock: Clock, flops: FlopsOfSize) -> int:
    """Count the training FLOPs of a whole run."""
    return sum(span.images * flops(span.size) for span in clock.spans)


def summarize(
    clock: Clock, baseline: Clock, flops_of_size: FlopsOfSize, stopwatch: Stopwatch, *, baseline_seconds: float
) -> dict[str, Any]:
    """Put a finished run's figures together.

    baseline          the clock of the same run without curriculum.
    baseline_seconds  measured training seconds of one of its steps.
    """
    flops, baseline_flops = run_flops(clock, flops_of_size), run_flops(baseline, flops_of_size)
    train_seconds = stopwatch.total("train")
    return {
        "images": clock.total_images,
        "flops": flops,
        "baseline_flops": baseline_flops,
        "speedup_flops": baseline_flops / flops,
        "baseline_train_seconds": baseline_seconds * baseline.total_steps,
        "speedup_seconds": baseline_seconds * baseline.total_steps / train_seconds,
        **{f"{name}_seconds": stopwatch.total(name) for name in ACTIVITIES},
        "stages": [
            {
                "size": list(span.size),
                "images": span.images,
                "flops_per_image": flops_of_size(span.size),
                "train_seconds": (seconds := stopwatch.total(f"train/{span.index}")),
                "seconds_per_image": seconds / span.images,
            }
            for span in clock.spans
        ],
        "baseline_seconds_per_image": baseline_seconds / baseline.spans[0].batch_images,
    }


def describe(summary: dict[str, Any]) -> str:
    """Say a summary in a few lines."""
    lines = [
        f"loss {format_or_dash(summary['loss'], '{:.4f}')} after {summary['images']} images, "
        f"{summary['train_seconds']:.1f} s of training and {summary['wait_seconds']:.1f} s of waiting for data",
        f"curriculum: {summary['flops']:.3g} FLOPs instead of {summary['baseline_flops']:.3g} "
        f"({summary['speedup_flops']:.2f}x), "
        f"{summary['train_seconds']:.1f} training seconds instead of {summary['baseline_train_seconds']:.1f} "
        f"({summary['speedup_seconds']:.2f}x)",
    ]
    if summary.get("knn") is not None:
        lines.append(f"kNN accuracy {summary['knn']:.4f}, of the untrained encoder {summary['knn_untrained']:.4f}")
    return "\n".join(lines)
