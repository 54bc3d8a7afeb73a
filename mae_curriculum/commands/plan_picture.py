"""The figure of a plan."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mae_curriculum.commands.config import PlanConfig
from mae_curriculum.commands.shapes import find_shape
from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import Moment
from mae_curriculum.curriculum.low_frequency import RESIZE
from mae_curriculum.data.requests import Request
from mae_curriculum.data.sources import Images, open_images
from mae_curriculum.model.shape import ModelShape
from mae_curriculum.pretraining_config import build_clock
from mae_curriculum.report.figures import draw_plan
from mae_curriculum.terminal import format_epochs
from mae_curriculum.training.inputs import training_images
from mae_curriculum.training.learning_rate import step_learning_rate

logger = logging.getLogger(__name__)


def plan_figure(path: Path, config: PlanConfig, facts: dict[str, Any]) -> None:
    """Draw the plan; without the data it has no images, and the reason is logged."""
    shape = find_shape(config.model)
    clock = build_clock(config, shape, images_per_epoch=facts["images_per_epoch"], processes=config.devices)
    samples = []
    try:
        images, _ = open_images(config.data)
        for span in clock.spans:
            moment = clock.moment(span.first_step + span.steps // 2)
            samples.append((moment, render_sample(images, moment, shape, config)))
    except (ConfigError, RuntimeError) as error:  # torchvision raises RuntimeError for data that is not downloaded
        logger.warning(f"the figure shows no images: {error}")
    epochs = format_epochs(facts["equivalent_epochs"], facts["real_epochs"])
    title = f"{facts['model']}, {epochs}: {facts['flops']:.3g} FLOPs, speed-up {facts['speedup']:.2f}x"
    lr = partial(step_learning_rate, clock, optim=config.optim)
    flops, baseline_flops = shape.training_flops, facts["baseline_flops"]
    draw_plan(path, clock, samples, title=title, flops=flops, baseline_flops=baseline_flops, lr=lr)


def render_sample(images: Images, moment: Moment, shape: ModelShape, config: PlanConfig) -> Tensor:
    """Return the first image as the encoder sees it at a moment, (c, h, w) from 0 (black) to 1 (white)."""
    dataset = training_images(config, images, shape.encoder.image_size, shape.encoder.channels)
    pixels = dataset[Request(0, 0, moment.view, moment.magnitude, moment.min_area)][0]
    return RESIZE[moment.view.resize](pixels[None] / 255, moment.size)[0]
