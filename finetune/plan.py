"""Plan a fine-tuning without training: its stages, their cost, and the speed-up over the baseline."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

import torch

from finetune.choices import settle
from finetune.classifier import build_classifier
from finetune.config import PlanConfig
from finetune.finetune import build_clock, training_flops
from finetune.labeled import count_classes, count_training
from mae_curriculum.data.contents import look_at
from mae_curriculum.distributed import connect
from mae_curriculum.evaluation.plan import describe_each, describe_run, format_plan, print_comparison
from mae_curriculum.training.config import without_curriculum
from mae_curriculum.weights.read import read_weights
from mae_curriculum.weights.run_settings import resolve_source


def plan(plans: Mapping[str, PlanConfig]) -> int:
    """Print a plan, or several by their names side by side; returns the exit code."""
    config, *others = plans.values()
    if others:
        return print_comparison(describe_each(plans, describe_plan), as_json=config.json)
    facts = describe_plan(config)
    print(json.dumps(facts, indent=2) if config.json else f"{format_network(facts)}\n{format_plan(facts)}")
    return 0


def describe_plan(config: PlanConfig) -> dict[str, Any]:
    """Return what a fine-tuning will do and cost, as `plan --json` prints it.

    Raises  ConfigError for stages that cannot be trained.
    """
    contents = look_at(resolve_source(config.data, config.checkpoint))
    weights = None if config.checkpoint is None else read_weights(config.checkpoint, **config.hints)
    classes = count_classes(contents)
    model, _ = build_classifier(config.model, weights, class_count=classes, seed=config.seed)
    images = count_training(contents)
    with connect() as world:
        settled = settle(config, images, world, resumes=False)
    baseline = replace(without_curriculum(settled), epochs=config.baseline_epochs or settled.epochs)
    build = partial(build_clock, model=model, images_per_epoch=images, processes=config.devices)
    model.make_ready_({span.size for span in build(settled).spans}, torch.device("cpu"))
    parameters = sum(value.numel() for value in model.net.parameters())
    facts = describe_run(
        settled,
        baseline,
        build_clock=build,
        flops=cache(partial(training_flops, model)),
        gradient_bytes=4 * parameters,
        hardware=config.hardware,
    )
    return {
        "source": asdict(contents),
        "model": config.model.name if weights is None else weights.model.name,
        "classes": classes,
        "parameters": parameters,
        "baseline_epochs": baseline.epochs,
        **facts,
    }


def format_network(facts: dict[str, Any]) -> str:
    """Format what is particular to a fine-tuning: its network, and what its speed-up is compared with."""
    assumed = "" if facts["source"]["train"]["classes"] else " (assumed: image_count alone does not tell)"
    return (
        f"{facts['parameters'] / 1e6:.1f} M parameters, {facts['classes']:,} classes{assumed}; "
        f"compared with {facts['baseline_epochs']} epochs at full size"
    )
