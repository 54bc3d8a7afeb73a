"""Data sets of images with random access: a named one, or a folder."""

import hashlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from http.client import HTTPException
from importlib.metadata import distribution
from pathlib import Path
from tarfile import TarError
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import IMAGE_COUNTS, IMAGENETTE, DataConfig
from mae_curriculum.data.contents import Contents, describe_source, format_contents
from mae_curriculum.data.decode import BrokenImageError, ChannelsError, check_array, decode_image, to_channels
from mae_curriculum.data.local_copy import copy_to_node
from mae_curriculum.data.parts import Part, list_parts, list_sources
from mae_curriculum.data.stored import Stored, choose_spread
from mae_curriculum.data.tables import HUB
from mae_curriculum.distributed import World

COMPARED_IMAGES = 8
"""Number of images, evenly spread, whose content the ranks compare."""

NAMES_AT_ONCE = 100_000
"""Number of images whose names are hashed at once: those of all would take much memory."""


class Images(Protocol):
    """A data set of images with random access."""

    @property
    def labels(self) -> Sequence[int] | None:
        """Class number of each image, or None without classes."""

    @property
    def classes(self) -> Sequence[str]:
        """Name of each class, in the order of their numbers; empty without classes."""

    def __len__(self) -> int: ...

    def read(self, index: int, channels: int) -> Tensor:
        """Read an image as (channels, h, w) uint8; raises BrokenImageError."""
        ...

    def name(self, index: int) -> str:
        """Return a name for messages and the journal."""
        ...

    def content(self, index: int) -> bytes:
        """Return what is stored of an image; raises OSError."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of the data set, contents included: the key of what is cached on disk."""
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
        """Return a name for messages and the journal."""
        return f"image {index}"

    def content(self, index: int) -> bytes:
        """Return the pixels."""
        pixels: bytes = self.pixels[index].tobytes()
        return pixels

    def fingerprint(self) -> str:
        """Return a hash of the pixels."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()


@dataclass(frozen=True)
class EncodedImages:
    """Images that are decoded when they are read."""

    stored: Stored
    labels: Sequence[int] | None
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.stored)

    def read(self, index: int, channels: int) -> Tensor:
        """Read an image as (channels, h, w) uint8; raises BrokenImageError."""
        return decode_image(partial(self.stored.content, index), channels)

    def name(self, index: int) -> str:
        """Return a name for messages and the journal."""
        return self.stored.name(index)

    def content(self, index: int) -> bytes:
        """Return the encoded image; raises OSError."""
        return self.stored.content(index)

    def fingerprint(self) -> str:
        """Return a hash of what is stored."""
        return self.stored.fingerprint()


def prepare(config: DataConfig) -> None:
    """Download a named source, or make the index of one that needs it, unless it is there; call it on one rank.

    Raises  ConfigError if that fails.
    """
    for path in config.sources if config.source not in IMAGE_COUNTS else ():
        if str(path).startswith(HUB) or path.exists():
            list_parts(path, config.cache)
    from torchvision.datasets import CIFAR10, Imagenette

    try:
        if config.source == "cifar10":
            CIFAR10(config.cache, download=True)
        if config.source == "imagenette" and not (config.cache / IMAGENETTE).is_dir():
            Imagenette(config.cache, size="320px", download=True)
    except (OSError, RuntimeError, EOFError, HTTPException, TarError) as error:
        raise ConfigError(f"data.source: cannot download {config.source} to {config.cache}: {error}") from error


@dataclass(frozen=True)
class Opened:
    """The images of a source."""

    train: Images
    val: Images | None
    """None if the source has none."""
    parts: tuple[Part, Part | None] | None
    """The files of a folder; None for a source that is in memory."""


def open_images(config: DataConfig) -> tuple[Images, Images | None]:
    """Open the training images and, if the source has any, the validation images, as `open_source`."""
    opened = open_source(config)
    return opened.train, opened.val


def open_source(config: DataConfig) -> Opened:
    """Open the images of a source; `prepare` must have run before.

    Raises  ConfigError if the source is missing or empty, or if its number of images is not `image_count`.
    """
    match config.source:
        case "digits":
            opened = Opened(_digits("train"), _digits("val"), None)
        case "cifar10":
            opened = Opened(_cifar10(config.cache, train=True), _cifar10(config.cache, train=False), None)
        case "imagenette":
            opened = _open_folders([config.cache / IMAGENETTE], config.cache)
            if len(opened.train) != IMAGE_COUNTS["imagenette"]:
                raise ConfigError(f"{config.cache / IMAGENETTE} is incomplete; remove it to download it again")
        case _:
            opened = _open_folders(config.sources, config.cache)
    count = len(opened.train)
    if config.image_count not in (None, count):
        raise ConfigError(f"data.image_count is {config.image_count}, but {config.source} has {count}; set null")
    return opened


def open_together(config: DataConfig, world: World) -> tuple[Images, Images | None, Contents]:
    """Open the training and validation images on all ranks, as `open_alike`, and log what they are."""
    opened = open_alike(config, world, open_source)
    contents = world.on_main(partial(describe_source, config.source, opened.parts))
    for line in format_contents(contents):
        world.log(line)
    return opened.train, opened.val, contents


def open_alike(config: DataConfig, world: World, open_source: Callable[[DataConfig], Opened]) -> Opened:
    """Prepare the images, and open them on all ranks.

    Raises  ConfigError, also if ranks see other images: other names, another number, or other content of a few.
    """
    config = copy_to_node(config, world, prepare)
    world.on_main(partial(prepare, config))
    opened, seen, failure = None, "", None
    try:
        opened = open_source(config)
        if world.world_size > 1:
            both = (opened.train, opened.val)
            seen = " and ".join(describe_images(images) for images in both if images is not None)
    except Exception as error:  # or the other ranks would wait for this one
        seen, failure = str(error), error
    views = world.gather((socket.gethostname(), seen))
    for rank, (host, other) in enumerate(views):
        if other != views[0][1]:
            raise ConfigError(
                f"data.source: rank 0 on {views[0][0]} sees {views[0][1]}, rank {rank} on {host} sees {other}; "
                f"put the same files in {config.source} on every host"
            )
    if failure is not None:
        raise failure
    assert opened is not None
    return opened


def describe_images(images: Images) -> str:
    """Return the number of images, and hashes of their names and of the content of a few."""
    state = hashlib.sha256()
    for index in choose_spread(len(images), COMPARED_IMAGES):
        try:
            state.update(images.content(index))
        except OSError as error:
            state.update(str(error.errno).encode())
    return f"{names_fingerprint(images)} with content {state.hexdigest()[:12]}"


def refuse_channels(images: Images, channels: int) -> None:
    """Raise ConfigError if the first image has a number of channels that cannot be converted to this one."""
    try:
        images.read(0, channels)
    except ChannelsError as error:
        raise ConfigError(f"data.source: {images.name(0)}: {error}; it must fit the images") from error
    except BrokenImageError:
        return


def names_fingerprint(images: Images) -> str:
    """Return number and hash of the image names: a run resumes only with the images that it started with."""
    state = hashlib.sha256()
    for start in range(0, len(images), NAMES_AT_ONCE):
        names = map(images.name, range(start, min(start + NAMES_AT_ONCE, len(images))))
        text = "\n".join("/".join(name.rsplit("/", 2)[-2:]) for name in names)
        state.update((f"\n{text}" if start else text).encode(errors="surrogateescape"))
    return f"{len(images)} images {state.hexdigest()[:12]}"


@cache
def _digits_table() -> NDArray[np.float64]:
    """Read the file of scikit-learn's 1,797 digits, without importing scikit-learn, which takes two seconds."""
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    return np.loadtxt(str(path), delimiter=",")


def _digits(part: Literal["train", "val"]) -> ArrayImages:
    """Take scikit-learn's 1,797 digits of 8x8 pixels; every fifth one is kept for validation."""
    table = _digits_table()
    chosen = table[(np.arange(len(table)) % 5 == 4) == (part == "val")]
    pixels, labels = chosen[:, :-1].reshape(-1, 1, 8, 8), chosen[:, -1]
    return ArrayImages(
        np.round(pixels * (255 / 16)).astype(np.uint8), [int(label) for label in labels], tuple("0123456789")
    )


def _cifar10(cache: Path, *, train: bool) -> ArrayImages:
    from torchvision.datasets import CIFAR10

    data = CIFAR10(cache, train=train)
    return ArrayImages(data.data.transpose(0, 3, 1, 2), data.targets, data.classes)


def _open_folders(folders: Sequence[Path], cache: Path) -> Opened:
    train, val = list_sources(folders, cache)
    return Opened(open_part(train), open_part(val) if val else None, (train, val))


def open_part(part: Part) -> EncodedImages:
    """Open the images of a part of a folder; raises ConfigError for arrays that hold no images."""
    _check_arrays(part.stored)
    return EncodedImages(part.stored, part.labels, part.classes)


def _check_arrays(stored: Stored) -> None:
    """Raise ConfigError if the first .npy file, like whom the others are, holds no image."""
    first = next((index for index in range(len(stored)) if stored.name(index).lower().endswith(".npy")), None)
    if first is not None:
        try:
            with stored.open(first) as stream:
                check_array(stream)
        except BrokenImageError as error:
            raise ConfigError(f"data.source: {stored.name(first)}: {error}; scale and convert them first") from error
