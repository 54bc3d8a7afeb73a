"""A model, clocks and a sampler that are small enough for any test."""

from typing import Any

from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.curriculum.config import Augmentation, Curriculum, Stage
from mae_curriculum.data.requests import RequestSampler
from mae_curriculum.model.config import ModelConfig

SMALL = ModelConfig(
    name="vit_tiny_patch16_224",
    image_size=32,
    patch_size=8,
    width=48,
    depth=2,
    heads=3,
    decoder_width=32,
    decoder_depth=1,
    decoder_heads=2,
)

CLOCK = Clock(
    Curriculum(stages=(Stage(0.5, 112), Stage(0.5, 224))),
    image_size=(16, 16),
    patch_size=(4, 4),
    images_per_epoch=8,
    epochs=4,
    batch_images=4,
    mask_ratio=0.75,
)
"""4 steps of 4 images at 8 px, then 4 at 16 px."""

GROWING = Curriculum(
    stages=(Stage(0.5, 112), Stage(0.5, 224)), augmentation=Augmentation(randaug=(0, 9), min_area=(0.5, 0.3))
)


def make_clock(batch_images: int = 8, images_per_epoch: int = 30) -> Clock:
    return Clock(
        GROWING,
        image_size=(16, 16),
        patch_size=(4, 4),
        images_per_epoch=images_per_epoch,
        epochs=3,
        batch_images=batch_images,
    )


def make_sampler(
    first_step: int = 0, rank: int = 0, world_size: int = 1, micro_batch: int | None = None, **changes: Any
) -> RequestSampler:
    return RequestSampler(make_clock(), first_step, 5, rank, world_size, micro_batch, **changes)
