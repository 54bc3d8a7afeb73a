"""What fine-tuning and probing choose where their settings leave it open: a batch size and epochs for their images.

For images as many as those of ImageNet-1k the choice is MAE's.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from finetune.config import FinetuneConfig, LinprobeConfig
from mae_curriculum.config import load_file
from mae_curriculum.distributed import World
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.training.choices import choose_batch_size, choose_epochs, format_choices

MIN_STEPS = 1000
"""Steps that a run should have: twice those that BiT (arXiv:1912.11370) takes for fewer than 20,000 images."""


@dataclass(frozen=True)
class Published:
    """MAE's values for ImageNet-1k (arXiv:2111.06377): the largest batch and the fewest epochs that are chosen."""

    command: str
    batch_size: int
    epochs: int


FINETUNING = Published("finetune", 1024, 100)
PROBING = Published("linprobe", 16384, 90)

C = TypeVar("C", FinetuneConfig, LinprobeConfig)


def settle(config: C, images: int, world: World, *, resumes: bool = True) -> C:
    """Return settings that are complete: what they leave open is the run's choice, or is chosen now, and logged.

    images   number of images to train on.
    resumes  whether the choices of a run that is there hold.
    """
    saved = world.on_main(lambda: read_saved(config)) if resumes else config
    settled = with_choices(
        replace(config, batch_size=config.batch_size or saved.batch_size, epochs=config.epochs or saved.epochs), images
    )
    for line in format_choices(list_choices(config, settled)):
        world.log(line)
    return settled


def with_choices(config: C, images: int) -> C:
    """Return settings whose batch size and epochs fit a number of training images where they were null."""
    published = published_for(config)
    batch_size = config.batch_size or choose_batch_size(images, most=published.batch_size)
    epochs = config.epochs or choose_epochs(images, batch_size, steps=MIN_STEPS, least=published.epochs)
    return replace(config, batch_size=batch_size, epochs=epochs)


def list_choices(config: C, settled: C) -> dict[str, Any]:
    """Return the settings that were null, and are chosen now."""
    return {key: getattr(settled, key) for key in ("batch_size", "epochs") if getattr(config, key) is None}


def published_for(config: C) -> Published:
    """Return MAE's values for the command of these settings."""
    return FINETUNING if isinstance(config, FinetuneConfig) else PROBING


def read_saved(config: C) -> C:
    """Return the settings of the run in a config's folder, so that a resumed run stays as it is; or the config."""
    folder = RunFolder(config.run)
    if not folder.config.exists() or folder.info.get("command") != published_for(config).command:
        return config
    return load_file(type(config), folder.config)
