"""What a pretraining run chooses where its settings leave it open: a model, a batch size and epochs for its images.

The choice depends on the images alone, not on the machine, so that a run can be resumed on any other.
"""

from dataclasses import replace
from textwrap import wrap
from typing import Any

from mae_curriculum.config import ConfigError
from mae_curriculum.data.contents import Contents
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.shape import PLAIN_VITS, decoder_settings, fit_decoder

IMAGE_SIZES = (32, 64, 96, 128, 224)
"""Image sizes to choose from, pixels: those of CIFAR-10, Tiny ImageNet, STL-10, small ImageNet copies and ImageNet."""

PATCH_SIZES = ((144, 16), (64, 8), (0, 4))
"""Patch size for images of at least a size, pixels: 64 to 256 patches for each of `IMAGE_SIZES`, of which the
encoder sees a quarter; ViT-B/16 has 196 at 224 pixels."""

MODELS = ((300_000, "vit_base_patch16_224"), (20_000, "vit_small_patch16_224"), (0, "vit_tiny_patch16_224"))
"""Encoder for at least a number of images: ViT-B from a quarter of ImageNet-1k, where MAE was shown; smaller ones learn
as much from less, in a tenth of the time."""

MAX_BATCH = 4096
"""MAE's batch size, for ImageNet-1k."""
MIN_BATCH = 64
"""Batch size that keeps a device busy."""
STEPS_PER_EPOCH = 32
"""An epoch has at least as many steps, unless `MIN_BATCH` is reached: few images need small batches to have steps."""

MIN_STEPS = 20_000
"""Steps that a run should have, if they take at most `MAX_EPOCHS`."""
MIN_EPOCHS, MAX_EPOCHS = 200, 800
"""MAE gains most up to 200 epochs of ImageNet-1k, and a little more up to 800 and beyond (arXiv:2111.06377)."""


def choose_model(config: ModelConfig, contents: Contents) -> ModelConfig:
    """Return settings of a model that fits the images; what the given ones say stays, and the rest follows from it.

    Raises  ConfigError if the sizes of the images are needed and not known.
    """
    if config.name is not None:
        return replace(config, **decoder_settings(config))
    name = next(name for least, name in MODELS if contents.train.images >= least)
    size = config.image_size or choose_image_size(contents)
    side = min(size) if isinstance(size, tuple) else size
    patch = config.patch_size or next(patch for least, patch in PATCH_SIZES if side >= least)
    _, width, _, _ = PLAIN_VITS[name]
    decoder = fit_decoder(config, config.width or width)
    return replace(config, name=name, image_size=size, patch_size=patch, **decoder)


def choose_image_size(contents: Contents) -> int:
    """Return the largest of `IMAGE_SIZES` that the median image has in both directions; at least the smallest."""
    if contents.sizes is None:
        raise ConfigError(
            f"model.name: null chooses a model for the sizes of the images, and those of {contents.source} are not "
            "known here; set model.name, or model.image_size"
        )
    return max(size for size in IMAGE_SIZES if size <= max(contents.sizes.shorter_side, IMAGE_SIZES[0]))


def choose_batch_size(images: int, *, most: int = MAX_BATCH) -> int:
    """Return a power of two with at least `STEPS_PER_EPOCH` steps an epoch, within 64 to `most`, at most `images`."""
    wanted = min(max(images // STEPS_PER_EPOCH, MIN_BATCH), most, images)
    return 1 << (wanted.bit_length() - 1)


def choose_epochs(images: int, batch_size: int, *, steps: int = MIN_STEPS, least: int = MIN_EPOCHS) -> int:
    """Return the epochs, in tens, that a number of steps takes, within `least` to 800."""
    tens = -(-steps * batch_size // (10 * images))
    return min(max(10 * tens, least), MAX_EPOCHS)


def format_choices(choices: dict[str, Any]) -> list[str]:
    """Format what was chosen, for people: a few lines, or none."""
    if not choices:
        return []
    settings = ", ".join(f"{key} {value}" for key, value in choices.items())
    return wrap(f"chosen for these images, where not set: {settings}", 100, subsequent_indent="  ")
