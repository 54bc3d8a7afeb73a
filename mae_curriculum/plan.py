"""The plan of a run, without data or GPU: its stages, their cost, and the speed-up over the run without curriculum."""

import json
import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum import Clock, Moment, Span
from mae_curriculum.data import Request, TrainingImages, micro_batches
from mae_curriculum.flops import training_flops
from mae_curriculum.frequency import RESIZE
from mae_curriculum.model import MaskedAutoencoder
from mae_curriculum.optim import scaled_lr
from mae_curriculum.pictures import Plan, check_png, draw_plan
from mae_curriculum.pretrain import PretrainConfig, build_clock
from mae_curriculum.schedule import learning_rate
from mae_curriculum.sources import Images, count_images, open_images
from mae_curriculum.summary import run_flops
from mae_curriculum.table import as_table, side
from mae_curriculum.training import without_curriculum


@dataclass(frozen=True)
class PlanConfig(PretrainConfig):
    """The plan of a pretraining run: the run's own settings, and these."""

    json: bool = False
    """Print one JSON object instead of a table."""
    devices: int = 1
    """Processes that the run will have, which share each batch."""
    rate: float = 1000.0
    """Images/s that all devices together train at full size; smaller stages go faster by their FLOPs."""
    picture: Path | None = None
    """PNG file to draw the curriculum into, with the first image of the data as each stage sees it; null for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.devices < 1:
            raise ConfigError(f"devices must be at least 1, got {self.devices}")
        if self.rate <= 0:
            raise ConfigError(f"rate must be above 0 images/s, got {self.rate}")
        check_png("picture", self.picture)


def plan(config: PlanConfig) -> int:
    """Print the plan; returns the exit code."""
    facts = work_out(config)
    if config.picture is not None:
        draw_plan(config.picture, picture(config, facts))
    print(json.dumps(facts, indent=2) if config.json else as_text(facts))
    return 0


def work_out(config: PlanConfig) -> dict[str, Any]:
    """Work out the plan: totals, and a row for each stage."""
    model, clock = build_shapes(config)
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
        "stages": [lay_out_stage(clock, span, model, config) for span in clock.spans],
    }


def build_shapes(config: PlanConfig) -> tuple[MaskedAutoencoder, Clock]:
    """Make the run's model, of shapes alone, and its clock."""
    with torch.device("meta"):  # a plan of the largest model takes no memory
        model = MaskedAutoencoder(config.model)
    clock = build_clock(config, model, images_per_epoch=count_images(config.data), processes=config.devices)
    return model, clock


def lay_out_stage(clock: Clock, span: Span, model: MaskedAutoencoder, config: PlanConfig) -> dict[str, Any]:
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


def picture(config: PlanConfig, facts: dict[str, Any]) -> Plan:
    """Put together what the picture of the plan shows; without the data it does without photos, and says so."""

    def lr(progress: float, batch_images: int) -> float:
        peak, floor = (scaled_lr(lr, batch_images) for lr in (config.optim.base_lr, config.optim.min_lr))
        return learning_rate(progress, peak=peak, warmup=config.optim.warmup, floor=floor)

    model, clock = build_shapes(config)
    try:
        images, _ = open_images(config.data)
        photos = [see(images, clock.moment(span.first_step + span.steps // 2), model, config) for span in clock.spans]
    except (ConfigError, RuntimeError) as error:  # RuntimeError of torchvision, for what was not downloaded
        print(f"no photos in the picture: {error}", file=sys.stderr)
        photos = []
    title = "{model}, {equivalent_epochs} equivalent epochs: {flops:.3g} FLOPs, speed-up {speedup:.2f}x".format(**facts)
    return Plan(title, clock, partial(training_flops, model), facts["baseline_flops"], lr, photos)


def see(images: Images, moment: Moment, model: MaskedAutoencoder, config: PlanConfig) -> tuple[Moment, Tensor]:
    """Make the first image as the encoder sees it at a moment, (c, h, w) from 0 (black) to 1 (white)."""
    dataset = TrainingImages(images, model.image_size, model.channels, config.curriculum.augmentation, config.seed)
    pixels = dataset[Request(0, 0, moment.magnitude, moment.min_area)][0]
    return moment, RESIZE[config.curriculum.resize](pixels[None] / 255, moment.size)[0]


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
    return "\n".join([head.format(**facts), as_table(rows), totals.format(**facts), hours.format(**facts)])
