"""Plan a run without data, GPU or torch: its stages, their cost, and the speed-up over the baseline."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from mae_curriculum.commands.config import PlanConfig
from mae_curriculum.commands.shapes import find_shape
from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.batches import micro_batches
from mae_curriculum.curriculum.schedule import Clock, Span
from mae_curriculum.data.contents import Contents, format_contents, look_at
from mae_curriculum.evaluation.speedup import FlopsOfView, run_flops
from mae_curriculum.pretraining_config import (
    PretrainConfig,
    build_clock,
    format_choices,
    list_choices,
    with_choices,
)
from mae_curriculum.terminal import format_duration, format_flops, format_table, side
from mae_curriculum.training.config import TrainingConfig, without_curriculum

P = TypeVar("P", bound=PretrainConfig)
C = TypeVar("C", bound=TrainingConfig)


def plan(plans: Mapping[str, PlanConfig]) -> int:
    """Print a plan, or several by their names side by side; returns the exit code."""
    config, *others = plans.values()
    if others:
        return compare(plans, as_json=config.json, picture=config.picture)
    contents = look_at(config.data)
    facts = describe_plan(config, contents, devices=config.devices, rate=config.rate)
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
    computed = describe_each(plans, lambda config: compute_plan(config, devices=config.devices, rate=config.rate))
    if picture is not None:
        from mae_curriculum.report.figures import draw_plans  # loads torch and matplotlib

        draw_plans(picture, computed)
    return print_comparison(computed, as_json=as_json)


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


def compute_plan(config: PretrainConfig, *, devices: int = 1, rate: float = 1000.0) -> dict[str, Any]:
    """Compute what a pretraining run will do and cost, without training: totals, and one row per stage.

    devices  processes that share each batch.
    rate     images/s of all devices together at full size, for the hours.
    Returns  "steps", "images", "flops", "speedup", "hours", "stages" and more, as `plan --json` prints them.
    Raises   ConfigError for stages that cannot be trained.
    """
    return describe_plan(config, look_at(config.data), devices=devices, rate=rate)


def describe_plan(given: PretrainConfig, contents: Contents, *, devices: int, rate: float) -> dict[str, Any]:
    """Return the plan, as `compute_plan`, for what a source holds."""
    config = complete(given, contents)
    shape = find_shape(config.model)
    count = contents.train.images
    clock = build_clock(config, shape, images_per_epoch=count, processes=devices)
    baseline = build_clock(without_curriculum(config), shape, images_per_epoch=count)
    facts = describe_run(config, clock, baseline, shape.training_flops, devices=devices, rate=rate)
    for stage, span in zip(facts["stages"], clock.spans, strict=True):
        stage |= {"grid": list(shape.grid(span.size)), "visible_tokens": shape.visible_count(span.view)}
    return {
        "source": asdict(contents),
        "chosen": list_choices(given, config),
        "model": config.model.name,
        "checkpoint_bytes": shape.checkpoint_bytes,
        **facts,
    }


def describe_run(
    config: TrainingConfig, clock: Clock, baseline: Clock, flops: FlopsOfView, *, devices: int, rate: float
) -> dict[str, Any]:
    """Return what any training run does and costs, beside the same run without a curriculum."""
    own_flops, baseline_flops = (run_flops(each, flops) for each in (clock, baseline))
    full = flops(baseline.spans[0].view)
    return {
        "images_per_epoch": clock.images_per_epoch,
        "equivalent_epochs": clock.epochs,
        "real_epochs": float(clock.real_epochs(clock.total_steps)),
        "images": clock.total_images,
        "steps": clock.total_steps,
        "flops": own_flops,
        "baseline_flops": baseline_flops,
        "speedup": baseline_flops / own_flops,
        "rate": rate,
        "hours": own_flops / full / rate / 3600,
        "baseline_hours": baseline.total_images / rate / 3600,
        "stages": [
            describe_stage(clock, span, flops, full, micro_batch=config.micro_batch, devices=devices, rate=rate)
            for span in clock.spans
        ],
    }


def describe_stage(
    clock: Clock,
    span: Span,
    flops: FlopsOfView,
    full_flops: int,
    *,
    micro_batch: int | None,
    devices: int,
    rate: float,
) -> dict[str, Any]:
    """Return the entry of a stage."""
    parts = micro_batches(span, 0, devices, micro_batch)
    flops_per_image = flops(span.view)
    randaug = clock.curriculum.augmentation.randaug
    progress = [float(span.start), float(span.end)]
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
        "compute_share": span.images * flops_per_image / run_flops(clock, flops),
        "loader_images_per_second": rate * full_flops / flops_per_image,
    }


def format_plan(facts: dict[str, Any]) -> str:
    """Format the plan as text."""
    rows = [format_stage(number, stage) for number, stage in enumerate(facts["stages"], start=1)]
    table = format_table([[*rows[0]], *([*row.values()] for row in rows)])
    head = "{model}: {equivalent_epochs} equivalent epochs ({real_epochs:.1f} real) of {images_per_epoch:,} images"
    totals = (
        "total: {images:,} images, {steps:,} steps, {flops:.3g} FLOPs; "
        "without a curriculum {baseline_flops:.3g}: speed-up {speedup:.2f}x"
    )
    own, without = (format_duration(3600 * facts[key]) for key in ("hours", "baseline_hours"))
    times = (
        f"at {facts['rate']:g} images/s at full size, if time goes with FLOPs: {own} of training instead of {without}; "
        "loader: images/s that data loading must supply"
    )
    return "\n".join([head.format(**facts), table, totals.format(**facts), times])


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
            "training time": format_duration(3600 * facts["hours"]),
        }
        for facts in plans
    ]
    return format_table([[quantity, *(column[quantity] for column in columns)] for quantity in columns[0]])
