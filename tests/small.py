"""A model and a clock that are small enough for any test."""

from mae_curriculum.curriculum.schedule import Clock, Curriculum, Stage
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
