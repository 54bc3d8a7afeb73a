"""Training and validation images with class labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.contents import Contents
from mae_curriculum.data.sources import Images, open_together
from mae_curriculum.data.subsets import hold_out
from mae_curriculum.distributed import World

IMAGENET_CLASSES = 1000
"""Number of classes where only `data.image_count` is known; a head of other ones changes the FLOPs by less than 1%."""


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
    given, given_val, _ = open_together(data, world)
    train, val = hold_out(given, given_val)
    if train.labels is None or val.labels is None:
        raise ConfigError(f"data.source: {data.source} needs one folder per class, at least two, under train/ and val/")
    counts = np.bincount(train.labels, minlength=len(train.classes))
    empty = [name for name, count in zip(train.classes, counts, strict=True) if count == 0]
    if empty:
        raise ConfigError(f"data.source: no training images of class {', '.join(empty[:10])}; add some, or remove it")
    labels, val_labels = torch.tensor(train.labels), torch.tensor(val.labels)
    return LabeledImages(train, labels, train.classes), LabeledImages(val, val_labels, train.classes)


def count_training(contents: Contents) -> int:
    """Return the number of images that `open_labeled` leaves for training; all where only their number is known."""
    images = contents.train.images
    return images if contents.val or not contents.train.classes else images - images // 5


def count_classes(contents: Contents) -> int:
    """Return the number of classes, that of ImageNet where only the number of images is known."""
    return len(contents.train.classes) or IMAGENET_CLASSES
