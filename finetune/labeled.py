"""Training and validation images with class labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.sources import Images, download, hold_out, open_images
from mae_curriculum.distributed import World


@dataclass(frozen=True)
class LabeledImages:
    """Images and their classes."""

    images: Images
    labels: Tensor
    """(n,) int64 class numbers."""
    classes: Sequence[str]
    """Names of all classes, in the order of their numbers."""


def open_labeled(data: DataConfig, world: World) -> tuple[LabeledImages, LabeledImages]:
    """Open training and validation images; without validation images, every fifth training image is held out.

    Raises  ConfigError if there are fewer than two classes, or if a class has no training image.
    """
    world.on_main(lambda: download(data))
    train, val = hold_out(*open_images(data))
    if train.labels is None or val.labels is None:
        raise ConfigError(
            f"data.source: the images of {data.source} are not sorted into two or more classes; put those of each "
            "class into a folder of its own, under train/ and val/"
        )
    counts = np.bincount(train.labels, minlength=len(train.classes))
    empty = [train.classes[number] for number in np.flatnonzero(counts == 0)]
    if empty:
        raise ConfigError(
            f"data.source: {data.source} has no training images of class {', '.join(empty[:10])}; add some, or remove "
            "the folder"
        )
    return (
        LabeledImages(train, torch.tensor(train.labels), train.classes),
        LabeledImages(val, torch.tensor(val.labels), train.classes),
    )
