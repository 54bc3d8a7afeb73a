"""Sources of images: a data set by name, or a folder; sets of images that can be read in any order."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import IMAGE_COUNTS, IMAGENETTE, DataConfig
from mae_curriculum.data.decode import EXTENSIONS, read_image, to_channels


class Images(Protocol):
    """A set of images that can be read in any order."""

    @property
    def labels(self) -> Sequence[int] | None:
        """Class of each image, or None where there are no classes to tell apart."""

    @property
    def classes(self) -> Sequence[str]:
        """Name of each class, in the order of their numbers; empty where there are none."""

    def __len__(self) -> int: ...

    def read(self, index: int, channels: int) -> Tensor:
        """Read an image as (channels, h, w) uint8; raises BrokenImageError."""
        ...

    def name(self, index: int) -> str:
        """Name an image for messages."""
        ...

    def fingerprint(self) -> str:
        """Tell this set from any other, contents included: for what is kept of it on disk."""
        ...


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory."""

    pixels: NDArray[np.uint8]
    """(n, c, h, w)."""
    labels: Sequence[int]
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int, channels: int) -> Tensor:
        """Read an image as (channels, h, w) uint8."""
        return to_channels(torch.from_numpy(self.pixels[index]), channels)

    def name(self, index: int) -> str:
        """Name an image for messages."""
        return f"image {index}"

    def fingerprint(self) -> str:
        """Tell this set from any other, by its pixels."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()


@dataclass(frozen=True)
class FileImages:
    """Images in files."""

    paths: Sequence[Path]
    labels: Sequence[int] | None
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, channels: int) -> Tensor:
        """Read an image as (channels, h, w) uint8; raises BrokenImageError."""
        return read_image(self.paths[index], channels)

    def name(self, index: int) -> str:
        """Name an image for messages."""
        return str(self.paths[index])

    def fingerprint(self) -> str:
        """Tell this set from any other, by the paths, sizes and times of change of its files."""
        state = hashlib.sha256()
        for path in self.paths:
            facts = path.stat()
            state.update(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode(errors="surrogateescape"))
        return state.hexdigest()


@dataclass(frozen=True)
class Subset:
    """Some images of a set."""

    images: Images
    ids: Sequence[int]

    @property
    def labels(self) -> Sequence[int] | None:
        """Class of each image."""
        every = self.images.labels
        return None if every is None else [every[index] for index in self.ids]

    @property
    def classes(self) -> Sequence[str]:
        """Name of each class of the whole set."""
        return self.images.classes

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int, channels: int) -> Tensor:
        """Read an image as (channels, h, w) uint8; raises BrokenImageError."""
        return self.images.read(self.ids[index], channels)

    def name(self, index: int) -> str:
        """Name an image for messages."""
        return self.images.name(self.ids[index])

    def fingerprint(self) -> str:
        """Tell this set from any other."""
        return f"{self.images.fingerprint()} {hashlib.sha256(np.asarray(self.ids).tobytes()).hexdigest()}"


def hold_out(train: Images, val: Images | None) -> tuple[Images, Images]:
    """Give images to learn from and images to be judged by: without validation images every fifth one is kept apart."""
    if val is not None:
        return train, val
    everything = range(len(train))
    return Subset(train, [index for index in everything if index % 5 != 4]), Subset(train, everything[4::5])


def download(config: DataConfig) -> None:
    """Bring a named source to `cache`, unless it is there; one process of several should.

    Raises  ConfigError if it cannot be had.
    """
    from torchvision.datasets import CIFAR10, Imagenette

    try:
        if config.source == "cifar10":
            CIFAR10(config.cache, download=True)
        if config.source == "imagenette" and not (config.cache / IMAGENETTE).is_dir():
            Imagenette(config.cache, size="320px", download=True)
    except (OSError, RuntimeError, EOFError, HTTPException, TarError) as error:
        raise ConfigError(
            f"data.source: could not download {config.source} to {config.cache}: {error}; or give a folder of images"
        ) from error


def open_images(config: DataConfig) -> tuple[Images, Images | None]:
    """Open the training images, and the validation images if the source keeps some apart.

    A named source must have been downloaded.

    Raises  ConfigError if the source is not there, is empty, or has another number of images than `image_count`.
    """
    train: Images
    val: Images | None
    match config.source:
        case "digits":
            train, val = _digits("train"), _digits("val")
        case "cifar10":
            train, val = _cifar10(config.cache, train=True), _cifar10(config.cache, train=False)
        case "imagenette":
            train, val = _open_folder(config.cache / IMAGENETTE)
            if len(train) != IMAGE_COUNTS["imagenette"]:
                raise ConfigError(f"{config.cache / IMAGENETTE} is not complete; remove it to download it again")
        case folder:
            train, val = _open_folder(Path(folder))
    if config.image_count not in (None, len(train)):
        raise ConfigError(
            f"data.image_count is {config.image_count}, but {config.source} holds {len(train)}; mend it, or set null"
        )
    return train, val


def names_fingerprint(images: Images) -> str:
    """Name a set of images by their number and their names, so that a run goes on with the set it began with."""
    names = "\n".join("/".join(Path(images.name(index)).parts[-2:]) for index in range(len(images)))
    return f"{len(images)} images {hashlib.sha256(names.encode(errors='surrogateescape')).hexdigest()[:12]}"


def _digits(part: Literal["train", "val"]) -> ArrayImages:
    """Take scikit-learn's 1,797 digits of 8x8 pixels; every fifth one is kept for validation."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = (np.arange(len(digits.target)) % 5 == 4) == (part == "val")
    pixels = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return ArrayImages(pixels[:, None], [int(label) for label in digits.target[chosen]], tuple("0123456789"))


def _cifar10(cache: Path, *, train: bool) -> ArrayImages:
    from torchvision.datasets import CIFAR10

    data = CIFAR10(cache, train=train)
    return ArrayImages(data.data.transpose(0, 3, 1, 2), data.targets, data.classes)


def _open_folder(folder: Path) -> tuple[FileImages, FileImages | None]:
    if not folder.is_dir():
        raise ConfigError(f"data.source: '{folder}' is neither a folder nor one of {', '.join(IMAGE_COUNTS)}")
    train = folder / "train"
    if not train.is_dir():
        return _label(folder, list_images(folder)), None
    images = _label(train, list_images(train))
    val = next((part for part in (folder / "val", folder / "test") if part.is_dir()), None)
    return images, _label(val, list_images(val), classes=_classes(train, images.paths)) if val else None


def list_images(folder: Path) -> list[Path]:
    """List the images of a tree in order of their paths; links are followed, but no folder is entered twice."""
    paths: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = Path(parent).stat()
        if (place.st_dev, place.st_ino) in seen:
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        paths += [Path(parent) / name for name in names if Path(name).suffix.lower() in EXTENSIONS]
    if not paths:
        raise ConfigError(f"data.source: no images in {folder}; files that count end in {' '.join(sorted(EXTENSIONS))}")
    return sorted(paths)


def _classes(folder: Path, paths: Sequence[Path]) -> dict[str, int]:
    """Number the classes: a tree's top folders, empty ones too, if every image lies in one of two or more."""
    tops = {path.relative_to(folder).parts[0] for path in paths}
    if len(tops) < 2 or any(len(path.relative_to(folder).parts) < 2 for path in paths):
        return {}
    tops |= {child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")}
    return {top: number for number, top in enumerate(sorted(tops))}


def _label(folder: Path, paths: list[Path], classes: dict[str, int] | None = None) -> FileImages:
    """Label images by their top folder: with the classes given (the training images'), or their own."""
    own = _classes(folder, paths)
    if classes is None:
        classes = own
    if unknown := own.keys() - classes.keys() if classes else ():
        raise ConfigError(f"data.source: {folder} has classes that train/ lacks: {', '.join(sorted(unknown)[:10])}")
    tops = [path.relative_to(folder).parts[0] for path in paths]
    labels = [classes[top] for top in tops] if classes and all(top in classes for top in tops) else None
    return FileImages(paths, labels, tuple(classes) if labels else ())
