"""Plan a run without data, GPU or torch: its stages, their cost, and the speed-up over the baseline."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mae_curriculum.commands.config import PlanConfig
from mae_curriculum.commands.shapes import find_shape
from mae_curriculum.data.contents import Contents, format_contents, look_at
from mae_curriculum.evaluation.plan import describe_each, describe_run, format_plan, print_comparison
from mae_curriculum.evaluation.scaling import Hardware
from mae_curriculum.pretraining_config import (
    PretrainConfig,
    build_clock,
    list_choices,
    with_choices,
)
from mae_curriculum.training.choices import format_choices
from mae_curriculum.training.config import without_curriculum

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
    computed = describe_each(plans, lambda config: describe_plan(config, look_at(config.data), config.hardware))
    if picture is not None:
        from mae_curriculum.report.figures import draw_plans  # loads torch and matplotlib

        draw_plans(picture, computed)
    return print_comparison(computed, as_json=as_json)


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
    build = partial(build_clock, shape=shape, images_per_epoch=contents.train.images, processes=hardware.devices)
    facts = describe_run(
        config,
        without_curriculum(config),
        build_clock=build,
        flops=shape.training_flops,
        gradient_bytes=shape.gradient_bytes,
        hardware=hardware,
    )
    for stage, span in zip(facts["stages"], build(config).spans, strict=True):
        stage |= {"grid": list(shape.grid(span.size)), "visible_tokens": shape.visible_count(span.view)}
    return {
        "source": asdict(contents),
        "chosen": list_choices(given, config),
        "model": config.model.name,
        "checkpoint_bytes": shape.checkpoint_bytes,
        **facts,
    }
