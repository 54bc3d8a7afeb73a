"""What fine-tuning and probing choose where their settings leave it open: a batch size and epochs for their images.

For images as many as those of ImageNet-1k the choice is MAE's.
"""

from dataclasses import replace
from typing import TypeVar

from finetune.config import FinetuneConfig, LinprobeConfig
from mae_curriculum.config import load_file
from mae_curriculum.distributed import World
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.training.choices import choose_batch_size, choose_epochs

MAE_BATCH = {FinetuneConfig: 1024, LinprobeConfig: 16384}
"""MAE's batch sizes for ImageNet-1k (arXiv:2111.06377), the largest that are chosen."""

MAE_EPOCHS = {FinetuneConfig: 100, LinprobeConfig: 90}
"""MAE's epochs, likewise; the fewest that are chosen."""

MIN_STEPS = 1000
"""Steps that a run should have: twice those that BiT (arXiv:1912.11370) takes for fewer than 20,000 images."""

C = TypeVar("C", FinetuneConfig, LinprobeConfig)


def settle(config: C, images: int, world: World) -> C:
    """Return settings that are complete: what they leave open is the run's choice, or is chosen now, and logged.

    images  number of images to train on.
    """
    saved = world.on_main(lambda: read_saved(config))
    batch_size = config.batch_size or saved.batch_size or choose_batch_size(images, most=MAE_BATCH[type(config)])
    least = MAE_EPOCHS[type(config)]
    epochs = config.epochs or saved.epochs or choose_epochs(images, batch_size, steps=MIN_STEPS, least=least)
    chosen = {"batch_size": batch_size, "epochs": epochs}
    told = ", ".join(f"{key} {value}" for key, value in chosen.items() if getattr(config, key) is None)
    if told:
        world.log(f"chosen for these {images} images, where not set: {told}")
    return replace(config, **chosen)


def read_saved(config: C) -> C:
    """Return the settings of the run in a config's folder, so that a resumed run stays as it is; or the config."""
    folder, command = RunFolder(config.run), "finetune" if isinstance(config, FinetuneConfig) else "linprobe"
    if not folder.config.exists() or folder.info.get("command") != command:
        return config
    return load_file(type(config), folder.config)
