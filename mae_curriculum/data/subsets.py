"""Parts of data sets, and several data sets as one."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mae_curriculum.data.sources import Images
from mae_curriculum.data.stored import choose_spread


@dataclass(frozen=True)
class Subset:
    """Some images of a data set."""

    images: Images
    ids: Sequence[int]

    @property
    def labels(self) -> Sequence[int] | None:
        """Class number of each image."""
        labels = self.images.labels
        return None if labels is None else [labels[index] for index in self.ids]

    @property
    def classes(self) -> Sequence[str]:
        """Name of each class of the whole data set."""
        return self.images.classes

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int, channels: int) -> Tensor:
        """Read an image as (channels, h, w) uint8; raises BrokenImageError."""
        return self.images.read(self.ids[index], channels)

    def name(self, index: int) -> str:
        """Return a name for messages and the journal."""
        return self.images.name(self.ids[index])

    def content(self, index: int) -> bytes:
        """Return what is stored of an image; raises OSError."""
        return self.images.content(self.ids[index])

    def fingerprint(self) -> str:
        """Return a hash of the whole data set and the indices."""
        return f"{self.images.fingerprint()} {hashlib.sha256(np.asarray(self.ids).tobytes()).hexdigest()}"


@dataclass(frozen=True)
class Joined:
    """Data sets of the same classes, one after the other."""

    parts: Sequence[Images]

    @property
    def labels(self) -> Sequence[int] | None:
        """Class number of each image, or None if a part has no classes."""
        labels: list[int] = []
        for part in self.parts:
            if part.labels is None:
                return None
            labels += part.labels
        return labels

    @property
    def classes(self) -> Sequence[str]:
        """Name of each class."""
        return self.parts[0].classes

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def find(self, index: int) -> tuple[int, int]:
        """Return the number of an image's part, and the image's index in it."""
        for number, part in enumerate(self.parts):
            if index < len(part):
                return number, index
            index -= len(part)
        raise IndexError(f"no image {index} beyond the last part")

    def read(self, index: int, channels: int) -> Tensor:
        """Read an image as (channels, h, w) uint8; raises BrokenImageError."""
        part, place = self.find(index)
        return self.parts[part].read(place, channels)

    def name(self, index: int) -> str:
        """Return a name for messages and the journal."""
        part, place = self.find(index)
        return self.parts[part].name(place)

    def content(self, index: int) -> bytes:
        """Return what is stored of an image; raises OSError."""
        part, place = self.find(index)
        return self.parts[part].content(place)

    def fingerprint(self) -> str:
        """Return a hash of all parts."""
        return hashlib.sha256(" ".join(part.fingerprint() for part in self.parts).encode()).hexdigest()


def hold_out(train: Images, val: Images | None) -> tuple[Images, Images]:
    """Return training and validation images; without validation images, every fifth training image is held out."""
    if val is not None:
        return train, val
    indices = range(len(train))
    return Subset(train, [index for index in indices if index % 5 != 4]), Subset(train, indices[4::5])


def limit(images: Images, count: int | None) -> Images:
    """Return at most `count` images, spread evenly over the data set; all for None."""
    if count is None or count >= len(images):
        return images
    return Subset(images, choose_spread(len(images), count))
