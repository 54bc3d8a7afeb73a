"""The plan of a run, without data or GPU: its stages, their cost, and the speed-up over the run without curriculum."""

import json
import math
from functools import partial
from typing import Any

from mae_curriculum.commands.config import PlanConfig
from mae_curriculum.commands.plan_picture import picture
from mae_curriculum.curriculum.schedule import Clock, Span
from mae_curriculum.data.loader import micro_batches
from mae_curriculum.evaluation.speedup import run_flops
from mae_curriculum.model.flops import training_flops
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.pretraining import build_clock, build_shapes
from mae_curriculum.report.figures import draw_plan
from mae_curriculum.terminal import format_table, side
from mae_curriculum.training.config import without_curriculum


def plan(config: PlanConfig) -> int:
    """Print the plan; returns the exit code."""
    facts = compute_plan(config)
    if config.picture is not None:
        draw_plan(config.picture, picture(config, facts))
    print(json.dumps(facts, indent=2) if config.json else as_text(facts))
    return 0


def compute_plan(config: PlanConfig) -> dict[str, Any]:
    """Work out the plan: totals, and a row for each stage."""
    model, clock = build_shapes(config, processes=config.devices)
    baseline = build_clock(without_curriculum(config), model, images_per_epoch=clock.images_per_epoch)
    flops, baseline_flops = (run_flops(each, partial(training_flops, model)) for each in (clock, baseline))
    full_flops = training_flops(model, model.image_size)
    last = clock.total_steps
    return {
        "model": config.model.name,
        "images_per_epoch": clock.images_per_epoch,
        "equivalent_epochs": clock.epochs,
        "real_epochs": float(clock.real_epochs(last)),
        "images": clock.total_images,
        "steps": last,
        "flops": flops,
        "baseline_flops": baseline_flops,
        "speedup": baseline_flops / flops,
        "rate": config.rate,
        "hours": flops / full_flops / config.rate / 3600,
        "baseline_hours": baseline.total_images / config.rate / 3600,
        # weights and AdamW's two moments of those that are trained
        "checkpoint_bytes": sum(p.nbytes * (3 if p.requires_grad else 1) for p in model.parameters()),
        "stages": [plan_stage(clock, span, model, config) for span in clock.spans],
    }


def plan_stage(clock: Clock, span: Span, model: MaskedAutoencoder, config: PlanConfig) -> dict[str, Any]:
    """Work out a stage's row."""
    grid = model.grid(span.size)
    parts = micro_batches(span, 0, config.devices, config.micro_batch)
    flops_per_image = training_flops(model, span.size)
    randaug = clock.curriculum.augmentation.randaug
    ends = [float(span.start), float(span.end)]
    return {
        "size": list(span.size),
        "grid": list(grid),
        "visible_tokens": model.visible_count(grid),
        "magnitude": randaug and [randaug[0] + (randaug[1] - randaug[0]) * end for end in ends],
        "progress": ends,
        "real_epochs": span.images / clock.images_per_epoch,
        "equivalent_epochs": float(span.share * clock.epochs),
        "images": span.images,
        "steps": span.steps,
        "batch_images": span.batch_images,
        "micro_batch": max(map(len, parts)),
        "accumulation": len(parts),
        "flops_per_image": flops_per_image,
        "compute_share": span.images * flops_per_image / run_flops(clock, partial(training_flops, model)),
        "loader_images_per_second": config.rate * training_flops(model, model.image_size) / flops_per_image,
    }


def as_text(facts: dict[str, Any]) -> str:
    """Lay the plan out for the terminal."""
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
    head = "{model}: {equivalent_epochs} equivalent epochs of {images_per_epoch:,} images, {real_epochs:.1f} real ones"
    totals = (
        "in all {images:,} images, {steps:,} steps, {flops:.3g} FLOPs; "
        "without curriculum {baseline_flops:.3g}: speed-up {speedup:.2f}x"
    )
    hours = (
        "at {rate:g} images/s at full size: {hours:.3g} h of training instead of {baseline_hours:.3g} h; "
        "the loader column is what it must supply meanwhile"
    )
    return "\n".join([head.format(**facts), format_table(rows), totals.format(**facts), hours.format(**facts)])
