"""Plans: what a training run will do and cost, computed without training, and how that is printed."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from mae_curriculum.config import ConfigError, plain
from mae_curriculum.curriculum.batches import micro_batches
from mae_curriculum.curriculum.clock import Clock, Span
from mae_curriculum.data.replay_buffer import ReplayedStage
from mae_curriculum.evaluation.scaling import ASSUMPTIONS, Hardware, StepTimes
from mae_curriculum.evaluation.speedup import FlopsOfView, run_flops
from mae_curriculum.terminal import format_duration, format_epochs, format_flops, format_table, own_settings, side
from mae_curriculum.training.config import TrainingConfig, without_batch_factors
from mae_curriculum.training.learning_rate import stage_lr

C = TypeVar("C", bound=TrainingConfig)


def describe_run(
    config: C,
    baseline: C,
    *,
    build_clock: Callable[[C], Clock],
    flops: FlopsOfView,
    gradient_bytes: int,
    hardware: Hardware,
) -> dict[str, Any]:
    """Return what any training run does and costs, beside its baseline.

    baseline  the settings of the run without a curriculum that it is compared with.
    """
    clock, full = build_clock(config), build_clock(baseline)
    own_flops, baseline_flops = (run_flops(each, flops) for each in (clock, full))
    times = StepTimes(flops, gradient_bytes, full.spans[0].view, hardware)
    nodes = None
    if hardware.nodes > 1:
        nodes = describe_nodes(clock, full, build_clock(without_batch_factors(config)), times)
    return {
        "images_per_epoch": clock.images_per_epoch,
        "equivalent_epochs": clock.epochs,
        "real_epochs": float(clock.real_epochs(clock.total_steps)),
        "images": clock.total_images,
        "steps": clock.total_steps,
        "flops": own_flops,
        "baseline_flops": baseline_flops,
        "speedup": baseline_flops / own_flops,
        "rate": hardware.rate,
        "hours": times.run(clock) / 3600,
        "baseline_hours": times.run(full) / 3600,
        "nodes": nodes,
        "stages": [describe_stage(clock, span, times, config) for span in clock.spans],
    }


def describe_nodes(clock: Clock, baseline: Clock, unscaled: Clock, times: StepTimes) -> dict[str, Any]:
    """Return what several nodes make of the speed-up, with the batch factors of the stages and without (`unscaled`)."""
    seconds = times.run(baseline)
    return {
        "count": times.hardware.nodes,
        "bandwidth": times.hardware.bandwidth,
        "gradient_bytes": times.gradient_bytes,
        "all_reduce_seconds": times.all_reduce,
        "speedup": seconds / times.run(clock),
        "speedup_without_batch_factors": seconds / times.run(unscaled),
    }


def describe_stage(clock: Clock, span: Span, times: StepTimes, config: TrainingConfig) -> dict[str, Any]:
    """Return the entry of a stage."""
    parts = micro_batches(span, 0, times.hardware.devices, config.micro_batch)
    flops_per_image = times.flops(span.view)
    randaug = clock.curriculum.augmentation.randaug
    progress = [float(span.start), float(span.end)]
    buffer = clock.curriculum.stages[span.index].replay_buffer
    loaded = span.batch_images if buffer is None else ReplayedStage(span, buffer).new_in_step
    return {
        "size": list(span.size),
        "magnitude": randaug and [randaug[0] + (randaug[1] - randaug[0]) * end for end in progress],
        "progress": progress,
        "real_epochs": span.images / clock.images_per_epoch,
        "equivalent_epochs": float(span.share * clock.epochs),
        "images": span.images,
        "steps": span.steps,
        "batch_images": span.batch_images,
        "micro_batch": max(map(len, parts)),
        "accumulation": len(parts),
        "flops_per_image": flops_per_image,
        "compute_share": span.images * flops_per_image / run_flops(clock, times.flops),
        "loader_images_per_second": loaded / times.compute(span),
        "compute_seconds": times.compute(span),
        "peak_lr": stage_lr(config.optim.base_lr, clock, span.batch_images, config.optim),
        "settings": own_settings(plain(clock.curriculum.stages[span.index])),
    }


def describe_each(plans: Mapping[str, C], describe: Callable[[C], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the facts of several plans by their names; a ConfigError names the plan."""
    computed = {}
    for name, config in plans.items():
        try:
            computed[name] = describe(config)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    return computed


def print_comparison(plans: Mapping[str, dict[str, Any]], *, as_json: bool) -> int:
    """Print the facts of several plans; returns the exit code."""
    facts = [{"name": name, **facts} for name, facts in plans.items()]
    print(json.dumps(facts, indent=2) if as_json else format_comparison(facts))
    return 0


def format_plan(facts: dict[str, Any]) -> str:
    """Format the plan as text."""
    rows = [format_stage(number, stage) for number, stage in enumerate(facts["stages"], start=1)]
    table = format_table([[*rows[0]], *([*row.values()] for row in rows)])
    head = f"{facts['model']}: {format_epochs(facts['equivalent_epochs'], facts['real_epochs'])} of "
    head += f"{facts['images_per_epoch']:,} images"
    totals = (
        "total: {images:,} images, {steps:,} steps, {flops:.3g} FLOPs; "
        "without a curriculum {baseline_flops:.3g}: speed-up {speedup:.2f}x"
    )
    own, without = (format_duration(3600 * facts[key]) for key in ("hours", "baseline_hours"))
    times = (
        f"at {facts['rate']:g} images/s at full size, if time is proportional to FLOPs: {own} of training instead of "
        f"{without}; loader: images/s that data loading must supply"
    )
    lines = [head, table, *format_own_settings(facts["stages"]), totals.format(**facts), times]
    return "\n".join(lines if facts["nodes"] is None else [*lines, *format_nodes(facts["nodes"], facts["stages"])])


def format_stage(number: int, stage: dict[str, Any]) -> dict[str, str]:
    """Format a stage's row by the names of its columns; a classifier sees all patches, so they are left out."""
    patches = {}
    if "grid" in stage:
        patches["grid"] = "x".join(map(str, stage["grid"]))
        patches["visible"] = f"{stage['visible_tokens']}/{math.prod(stage['grid'])}"
    return {
        "stage": str(number),
        "size": side(stage["size"]),
        **patches,
        "magnitude": "off" if stage["magnitude"] is None else "{:.1f}-{:.1f}".format(*stage["magnitude"]),
        "epochs": f"{stage['real_epochs']:.1f}",
        "equivalent": f"{stage['equivalent_epochs']:.1f}",
        "images": f"{stage['images']:,}",
        "steps": f"{stage['steps']:,}",
        "batch/device": f"{stage['accumulation']}x{stage['micro_batch']}",
        "GFLOP/image": f"{stage['flops_per_image'] / 1e9:.3g}",
        "compute": f"{stage['compute_share']:.1%}",
        "loader": f"{stage['loader_images_per_second']:,.0f}/s",
    }


def format_own_settings(stages: Sequence[dict[str, Any]]) -> list[str]:
    """Format what stages set besides share and size: a line for each that does."""
    lines = []
    for number, stage in enumerate(stages, start=1):
        if stage["settings"]:
            settings = ", ".join(f"{key} {value}" for key, value in stage["settings"].items())
            step = f"steps of {stage['batch_images']:,} images, peak learning rate {stage['peak_lr']:.3g}"
            lines.append(f"stage {number}: {settings}; {step}")
    return lines


def format_nodes(nodes: dict[str, Any], stages: Sequence[dict[str, Any]]) -> list[str]:
    """Format how long steps take on several nodes, and what remains of the speed-up."""
    compute = ", ".join(f"{1000 * stage['compute_seconds']:.3g}" for stage in stages)
    milliseconds, gigabytes = 1000 * nodes["all_reduce_seconds"], nodes["gradient_bytes"] / 1e9
    return [
        f"{nodes['count']} nodes: {milliseconds:.3g} ms a step to average {gigabytes:.3g} GB of gradients at "
        f"{nodes['bandwidth']:g} GB/s, after {compute} ms of compute",
        f"speed-up in time, including this: {nodes['speedup']:.2f}x; "
        f"with batch_factor 1 in all stages {nodes['speedup_without_batch_factors']:.2f}x",
        ASSUMPTIONS,
    ]


def format_comparison(plans: Sequence[dict[str, Any]]) -> str:
    """Format the totals of plans as a table with a column for each."""
    columns = [
        {
            "plan": facts["name"],
            "model": facts["model"],
            "sizes in pixels": " ".join(side(stage["size"]) for stage in facts["stages"]),
            "equivalent epochs": str(facts["equivalent_epochs"]),
            "real epochs": f"{facts['real_epochs']:.1f}",
            "images per epoch": f"{facts['images_per_epoch']:,}",
            "images": f"{facts['images']:,}",
            "steps": f"{facts['steps']:,}",
            "FLOPs": format_flops(facts["flops"]),
            "FLOPs without a curriculum": format_flops(facts["baseline_flops"]),
            "speed-up": f"{facts['speedup']:.2f}x",
            "images/s at full size, assumed": f"{facts['rate']:g}",
            "averaging gradients, per step": format_duration(facts["nodes"] and facts["nodes"]["all_reduce_seconds"]),
            "training time": format_duration(3600 * facts["hours"]),
        }
        for facts in plans
    ]
    return format_table([[quantity, *(column[quantity] for column in columns)] for quantity in columns[0]])
