"""Plan a run without data, GPU or torch: its stages, their cost, and the speed-up over the baseline."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from mae_curriculum.commands.config import PlanConfig
from mae_curriculum.commands.scaling import ASSUMPTIONS, Hardware, StepTimes
from mae_curriculum.commands.shapes import find_shape
from mae_curriculum.config import ConfigError, plain
from mae_curriculum.curriculum.batches import micro_batches
from mae_curriculum.curriculum.schedule import Clock, Span
from mae_curriculum.data.contents import Contents, format_contents, look_at
from mae_curriculum.evaluation.speedup import run_flops
from mae_curriculum.pretraining_config import (
    PretrainConfig,
    build_clock,
    format_choices,
    list_choices,
    with_choices,
)
from mae_curriculum.terminal import format_duration, format_epochs, format_flops, format_table, own_settings, side
from mae_curriculum.training.config import without_curriculum
from mae_curriculum.training.learning_rate import stage_lr

P = TypeVar("P", bound=PretrainConfig)


def plan(plans: Mapping[str, PlanConfig]) -> int:
    """Print a plan, or several by their names side by side; returns the exit code."""
    config, *others = plans.values()
    if others:
        return compare(plans, as_json=config.json, picture=config.picture)
    contents = look_at(config.data)
    facts = describe_plan(config, contents, config.hardware)
    if config.picture is not None:
        from mae_curriculum.commands.plan_picture import plan_figure  # loads torch and matplotlib

        plan_figure(config.picture, complete(config, contents), facts)
    if config.json:
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join([*format_contents(contents), *format_choices(facts["chosen"]), format_plan(facts)]))
    return 0


def complete(config: P, contents: Contents) -> P:
    """Return settings whose model fits the images or follows from `init`, which is null then."""
    config = with_choices(config, contents)
    if config.init is None:
        return config
    from mae_curriculum.distributed import connect  # loads torch
    from mae_curriculum.initialization import resolve_init

    with connect() as world:
        return replace(resolve_init(config, world)[0], init=None, stop_below_start=False)


def compare(plans: Mapping[str, PlanConfig], *, as_json: bool, picture: Path | None) -> int:
    """Print plans side by side, and draw them if there is a file for the picture; returns the exit code."""
    computed = {}
    for name, config in plans.items():
        try:
            computed[name] = describe_plan(config, look_at(config.data), config.hardware)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    if picture is not None:
        from mae_curriculum.report.figures import draw_plans  # loads torch and matplotlib

        draw_plans(picture, computed)
    facts = [{"name": name, **facts} for name, facts in computed.items()]
    print(json.dumps(facts, indent=2) if as_json else format_comparison(facts))
    return 0


def compute_plan(config: PretrainConfig, *, devices: int = 1, rate: float = 1000.0) -> dict[str, Any]:
    """Compute what a pretraining run will do and cost, without training: totals, and one row per stage.

    devices  processes that share each batch.
    rate     images/s of all devices together at full size, for the hours.
    Returns  "steps", "images", "flops", "speedup", "hours", "stages" and more, as `plan --json` prints them.
    Raises   ConfigError for stages that cannot be trained.
    """
    return describe_plan(config, look_at(config.data), Hardware(devices, rate))


def describe_plan(given: PretrainConfig, contents: Contents, hardware: Hardware) -> dict[str, Any]:
    """Return the plan, as `compute_plan`, for what a source holds."""
    config = complete(given, contents)
    shape = find_shape(config.model)
    count = contents.train.images
    clock = build_clock(config, shape, images_per_epoch=count, processes=hardware.devices)
    baseline = build_clock(without_curriculum(config), shape, images_per_epoch=count)
    flops, baseline_flops = (run_flops(each, shape.training_flops) for each in (clock, baseline))
    times = StepTimes(shape, baseline.spans[0].view, hardware)
    last = clock.total_steps
    return {
        "source": asdict(contents),
        "chosen": list_choices(given, config),
        "model": config.model.name,
        "images_per_epoch": clock.images_per_epoch,
        "equivalent_epochs": clock.epochs,
        "real_epochs": float(clock.real_epochs(last)),
        "images": clock.total_images,
        "steps": last,
        "flops": flops,
        "baseline_flops": baseline_flops,
        "speedup": baseline_flops / flops,
        "rate": hardware.rate,
        "hours": times.run(clock) / 3600,
        "baseline_hours": times.run(baseline) / 3600,
        "checkpoint_bytes": shape.checkpoint_bytes,
        "nodes": plan_nodes(config, clock, baseline, times) if hardware.nodes > 1 else None,
        "stages": [plan_stage(clock, span, times, config) for span in clock.spans],
    }


def plan_nodes(config: PretrainConfig, clock: Clock, baseline: Clock, times: StepTimes) -> dict[str, Any]:
    """Return what several nodes make of the speed-up, with the batch factors of the stages and without them."""
    stages = tuple(replace(stage, batch_factor=1.0) for stage in config.curriculum.stages)
    plain_batches = replace(config, curriculum=replace(config.curriculum, stages=stages))
    unscaled = build_clock(plain_batches, times.shape, images_per_epoch=clock.images_per_epoch)
    seconds = times.run(baseline)
    return {
        "count": times.hardware.nodes,
        "bandwidth": times.hardware.bandwidth,
        "gradient_bytes": times.shape.gradient_bytes,
        "all_reduce_seconds": times.all_reduce,
        "speedup": seconds / times.run(clock),
        "speedup_without_batch_factors": seconds / times.run(unscaled),
    }


def plan_stage(clock: Clock, span: Span, times: StepTimes, config: PretrainConfig) -> dict[str, Any]:
    """Return the entry of a stage."""
    shape, hardware = times.shape, times.hardware
    parts = micro_batches(span, 0, hardware.devices, config.micro_batch)
    flops_per_image = shape.training_flops(span.view)
    randaug = clock.curriculum.augmentation.randaug
    progress = [float(span.start), float(span.end)]
    return {
        "size": list(span.size),
        "grid": list(shape.grid(span.size)),
        "visible_tokens": shape.visible_count(span.view),
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
        "compute_share": span.images * flops_per_image / run_flops(clock, shape.training_flops),
        "loader_images_per_second": span.batch_images / times.compute(span),
        "compute_seconds": times.compute(span),
        "peak_lr": stage_lr(config.optim.base_lr, clock, span.batch_images, config.optim),
        "settings": own_settings(plain(clock.curriculum.stages[span.index])),
    }


def format_plan(facts: dict[str, Any]) -> str:
    """Format the plan as text."""
    header = "stage size grid visible magnitude epochs equivalent images steps batch/device GFLOP/image compute loader"
    rows = [header.split()]
    for number, stage in enumerate(facts["stages"], start=1):
        rows.append(
            [
                str(number),
                side(stage["size"]),
                "x".join(map(str, stage["grid"])),
                f"{stage['visible_tokens']}/{math.prod(stage['grid'])}",
                "off" if stage["magnitude"] is None else "{:.1f}-{:.1f}".format(*stage["magnitude"]),
                f"{stage['real_epochs']:.1f}",
                f"{stage['equivalent_epochs']:.1f}",
                f"{stage['images']:,}",
                f"{stage['steps']:,}",
                f"{stage['accumulation']}x{stage['micro_batch']}",
                f"{stage['flops_per_image'] / 1e9:.3g}",
                f"{stage['compute_share']:.1%}",
                f"{stage['loader_images_per_second']:,.0f}/s",
            ]
        )
    head = f"{facts['model']}: {format_epochs(facts['equivalent_epochs'], facts['real_epochs'])} of "
    head += f"{facts['images_per_epoch']:,} images"
    totals = (
        "total: {images:,} images, {steps:,} steps, {flops:.3g} FLOPs; "
        "without a curriculum {baseline_flops:.3g}: speed-up {speedup:.2f}x"
    )
    own, without = (format_duration(3600 * facts[key]) for key in ("hours", "baseline_hours"))
    times = (
        f"at {facts['rate']:g} images/s at full size, if time goes with FLOPs: {own} of training instead of {without}; "
        "loader: images/s that data loading must supply"
    )
    lines = [head, format_table(rows), *format_own_settings(facts["stages"]), totals.format(**facts), times]
    return "\n".join(lines if facts["nodes"] is None else [*lines, *format_nodes(facts["nodes"], facts["stages"])])


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
        f"speed-up in time, that included: {nodes['speedup']:.2f}x; "
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
