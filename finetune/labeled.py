"""Images with classes to learn from and to be judged by."""

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
    """Images, and a class for each."""

    images: Images
    labels: Tensor
    """(n,) int64."""
    classes: Sequence[str]
    """Names of all classes, in the order of their numbers."""


def open_labeled(data: DataConfig, world: World) -> tuple[LabeledImages, LabeledImages]:
    """Open images to learn from, and images to be judged by: the validation images, or every fifth one.

    Raises  ConfigError if there are fewer than two classes, or one of them has no image to learn from.
    """
    world.on_main(lambda: download(data))
    train, val = hold_out(*open_images(data))
    if train.labels is None or val.labels is None:
        raise ConfigError(
            f"data.source: the images of {data.source} are not sorted into two or more classes; put those of each "
            "class into a folder of its own, under train/ and val/"
        )
    counts = np.bincount(train.labels, minlength=len(train.classes))
    if empty := [name for name, count in zip(train.classes, counts, strict=True) if count == 0]:
        raise ConfigError(
            f"data.source: no images to learn the class{'es' * (len(empty) > 1)} {', '.join(empty[:10])} from in "
            f"{data.source}; add some, or remove the folder"
        )
    sides = [LabeledImages(images, torch.tensor(images.labels), train.classes) for images in (train, val)]
    return sides[0], sides[1]
