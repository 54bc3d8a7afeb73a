"""What fine-tuning and probing choose where their settings leave it open: a batch size and epochs for their images.

For images as many as those of ImageNet-1k the choice is MAE's.
"""

from dataclasses import dataclass, replace
from typing import TypeVar

from finetune.config import FinetuneConfig, LinprobeConfig
from mae_curriculum.config import load_file
from mae_curriculum.distributed import World
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.training.choices import choose_batch_size, choose_epochs

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
    published = FINETUNING if isinstance(config, FinetuneConfig) else PROBING
    saved = world.on_main(lambda: read_saved(config, published.command)) if resumes else config
    batch_size = config.batch_size or saved.batch_size or choose_batch_size(images, most=published.batch_size)
    epochs = config.epochs or saved.epochs
    epochs = epochs or choose_epochs(images, batch_size, steps=MIN_STEPS, least=published.epochs)
    chosen = {"batch_size": batch_size, "epochs": epochs}
    open_settings = [f"{key} {value}" for key, value in chosen.items() if getattr(config, key) is None]
    if open_settings:
        world.log(f"chosen for these {images:,} images, where not set: {', '.join(open_settings)}")
    return replace(config, batch_size=batch_size, epochs=epochs)


def read_saved(config: C, command: str) -> C:
    """Return the settings of the run in a config's folder, so that a resumed run stays as it is; or the config."""
    folder = RunFolder(config.run)
    if not folder.config.exists() or folder.info.get("command") != command:
        return config
    return load_file(type(config), folder.config)
