"""What a source of images holds: where they come from, how many, of which classes and sizes; without loading torch."""

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from textwrap import shorten

from PIL import Image

from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.parts import Part, list_sources
from mae_curriculum.data.stored import Stored, choose_spread, is_array, read_array_head

MEASURED_IMAGES = 256
"""Number of training images, evenly spread, whose sizes are read: to read those of millions of files takes hours."""

SHOWN_CLASSES = 10
"""Number of classes that are named, with their images; all are in `plan --json`."""

LINE_WIDTH = 100
"""Characters of a line about classes, whose names may be long."""


@dataclass(frozen=True)
class Side:
    """The training or the validation images."""

    folder: str | None
    """Where they lie; None for those of a named source."""
    images: int
    classes: Mapping[str, int]
    """Number of images of each class; empty without classes."""
    left_out: Mapping[str, int]
    """Number of image files that are not read, by suffix, or `hidden`."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a sample of the training images, each (height, width) in pixels as stored, before EXIF rotation."""

    measured: int
    unreadable: int
    """Further images of the sample whose size cannot be read."""
    smallest: tuple[int, int]
    """The one with the fewest pixels."""
    largest: tuple[int, int]
    shorter_side: int
    """Median of the images' shorter sides."""


@dataclass(frozen=True)
class Contents:
    """What a source holds."""

    source: str
    train: Side
    val: Side | None
    sizes: Sizes | None
    """None if no image was measured."""


def _in_memory(source: str, train: Mapping[str, int], val: Mapping[str, int], side: int) -> Contents:
    """Return the contents of a source whose images are squares of one size."""
    sizes = Sizes(sum(train.values()), 0, (side, side), (side, side), side)
    train_side, val_side = (Side(None, sum(classes.values()), classes, {}) for classes in (train, val))
    return Contents(source, train_side, val_side, sizes)


DIGITS_TRAIN = dict(zip("0123456789", (151, 161, 143, 131, 147, 154, 150, 136, 127, 138), strict=True))
DIGITS_VAL = dict(zip("0123456789", (27, 21, 34, 52, 34, 28, 31, 43, 47, 42), strict=True))
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

NAMED = {
    "digits": _in_memory("digits", DIGITS_TRAIN, DIGITS_VAL, 8),
    "cifar10": _in_memory("cifar10", dict.fromkeys(CIFAR10, 5000), dict.fromkeys(CIFAR10, 1000), 32),
    "imagenette": Contents("imagenette", Side(None, 9469, {}, {}), Side(None, 3925, {}, {}), None),
}
"""The named sources, for plans made without the data; Imagenette's classes and sizes are known once it is there."""


def look_at(config: DataConfig) -> Contents:
    """Return what a source holds without opening it, downloading it, or loading torch.

    With `image_count`, only that is known: it is for plans made where the folder is out of reach, or slow to list.

    Raises  ConfigError for a folder that is missing, empty or ambiguous.
    """
    if config.image_count is not None:
        return Contents(config.source, Side(None, config.image_count, {}, {}), None, None)
    if config.source in NAMED:
        return NAMED[config.source]
    return describe_source(config.source, list_sources(config.sources, config.cache))


def describe_source(source: str, parts: tuple[Part, Part | None] | None) -> Contents:
    """Return what a source holds; `parts` are the files of a folder, None for a source that is in memory."""
    if parts is None:
        return NAMED[source]
    train, val = parts
    return Contents(source, _describe_part(train), _describe_part(val) if val else None, measure(train.stored))


def _describe_part(part: Part) -> Side:
    counts = Counter(part.labels or ())
    classes = {name: counts[number] for number, name in enumerate(part.classes)}
    return Side(str(part.folder), len(part.stored), classes, dict(part.left_out))


def measure(stored: Stored) -> Sizes | None:
    """Return the sizes of some images, evenly spread; None if none of them can be read."""
    read = [read_size(stored, index) for index in choose_spread(len(stored), MEASURED_IMAGES)]
    sizes = [size for size in read if size is not None]
    if not sizes:
        return None
    sizes.sort(key=lambda size: size[0] * size[1])
    return Sizes(len(sizes), len(read) - len(sizes), sizes[0], sizes[-1], int(median(map(min, sizes))))


def read_size(stored: Stored, index: int) -> tuple[int, int] | None:
    """Return height and width of an encoded image or array, read from its head; None if that cannot be read."""
    try:
        with stored.open(index) as stream, warnings.catch_warnings(action="ignore"):  # of huge images, odd metadata
            if is_array(stream):
                height, width = read_array_head(stream)[0][:2]
                return height, width
            image = Image.open(stream)
            return image.height, image.width
    except Exception:  # parsers raise almost anything for damaged bytes
        return None


def format_contents(contents: Contents) -> list[str]:
    """Format what a source holds, for people: a few lines."""
    train, val, sizes = contents.train, contents.val, contents.sizes
    lines = [f"images: {contents.source}", *_format_side("training", train)]
    if train.classes:
        lines.append(f"  {_format_classes(train.classes)}")
    if val is not None:
        lines += _format_side("validation", val)
    elif sizes is not None:  # without a look at the images, nothing is known of validation
        lines.append("  validation: none; to measure accuracy, every fifth training image is held out")
    if sizes is not None:
        lines.append(f"  {format_sizes(sizes)}")
    return lines


def format_part(name: str, part: Part) -> list[str]:
    """Format what a part of a folder holds, which is no training or validation side."""
    sizes = measure(part.stored)
    return [*_format_side(name, _describe_part(part)), *([f"  {format_sizes(sizes)}"] if sizes else [])]


def _format_side(name: str, side: Side) -> list[str]:
    where = f" in {side.folder}" if side.folder else ""
    lines = [f"  {name}: {side.images:,} images{where}"]
    if side.left_out:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(side.left_out.items()))
        lines.append(f"  left out of {name}, as hidden or of a format that cannot be read: {counts}")
    return lines


def _format_classes(classes: Mapping[str, int]) -> str:
    counts = [f"{name} {count:,}" for name, count in classes.items()]
    more = ["..."] if len(counts) > SHOWN_CLASSES else []
    text = ", ".join([*counts[:SHOWN_CLASSES], *more])
    return shorten(f"{len(classes)} classes: {text}", LINE_WIDTH - 2, placeholder=" ...")


def format_sizes(sizes: Sizes) -> str:
    """Format the sizes of a sample of images."""
    smallest, largest = (f"{width}x{height}" for height, width in (sizes.smallest, sizes.largest))
    span = smallest if smallest == largest else f"{smallest} to {largest}"
    unreadable = f"; {sizes.unreadable} cannot be read" if sizes.unreadable else ""
    return f"width x height of {sizes.measured:,} of them: {span}{unreadable}"
