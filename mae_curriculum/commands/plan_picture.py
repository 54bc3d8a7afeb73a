"""The picture of a plan."""

import sys
from typing import Any

from torch import Tensor

from mae_curriculum.commands.config import PlanConfig
from mae_curriculum.commands.shapes import find_shape
from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.low_frequency import RESIZE
from mae_curriculum.curriculum.schedule import Moment
from mae_curriculum.data.loader import Request, TrainingImages
from mae_curriculum.data.sources import Images, open_images
from mae_curriculum.model.shape import ModelShape
from mae_curriculum.pretraining_config import build_clock
from mae_curriculum.report.figures import Plan
from mae_curriculum.training.learning_rate import learning_rate
from mae_curriculum.training.optimizer import scaled_lr


def picture(config: PlanConfig, facts: dict[str, Any]) -> Plan:
    """Put together what the picture of the plan shows; without the data it does without photos, and says so."""

    def lr(progress: float, batch_images: int) -> float:
        peak, floor = (scaled_lr(lr, batch_images) for lr in (config.optim.base_lr, config.optim.min_lr))
        return learning_rate(progress, peak=peak, warmup=config.optim.warmup, floor=floor)

    shape = find_shape(config.model)
    clock = build_clock(config, shape, images_per_epoch=facts["images_per_epoch"], processes=config.devices)
    try:
        images, _ = open_images(config.data)
        photos = [see(images, clock.moment(span.first_step + span.steps // 2), shape, config) for span in clock.spans]
    except (ConfigError, RuntimeError) as error:  # RuntimeError of torchvision, for what was not downloaded
        print(f"no photos in the picture: {error}", file=sys.stderr)
        photos = []
    title = "{model}, {equivalent_epochs} equivalent epochs: {flops:.3g} FLOPs, speed-up {speedup:.2f}x".format(**facts)
    return Plan(title, clock, shape.training_flops, facts["baseline_flops"], lr, photos)


def see(images: Images, moment: Moment, shape: ModelShape, config: PlanConfig) -> tuple[Moment, Tensor]:
    """Make the first image as the encoder sees it at a moment, (c, h, w) from 0 (black) to 1 (white)."""
    dataset = TrainingImages(
        images, shape.encoder.image_size, shape.encoder.channels, config.curriculum.augmentation, config.seed
    )
    pixels = dataset[Request(0, 0, moment.magnitude, moment.min_area)][0]
    return moment, RESIZE[config.curriculum.resize](pixels[None] / 255, moment.size)[0]
