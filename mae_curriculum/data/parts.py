"""Find the training and the validation images of a source, and their classes: of a folder, of tars, or of a list."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import IMAGE_COUNTS, LISTS
from mae_curriculum.data.folders import (
    PARTS,
    Listing,
    find_classes,
    find_parts,
    label_images,
    list_images,
    refuse_unknown,
)
from mae_curriculum.data.lists import ImageList, read_list
from mae_curriculum.data.stored import Files, Stored
from mae_curriculum.data.tar_index import is_tar, open_tars


@dataclass(frozen=True)
class Part:
    """The training or the validation images of a folder, and their classes."""

    folder: Path
    stored: Stored
    left_out: Mapping[str, int]
    """As in a `Listing`, of what is read."""
    classes: Sequence[str]
    """Name of each class, in the order of their numbers; empty without classes."""
    labels: Sequence[int] | None
    """Class number of each image, or None without classes."""


def list_parts(source: Path, cache: Path) -> tuple[Part, Part | None]:
    """List the training and, if there are any, the validation images of a folder, or of a tar.

    Image files are sought as `find_parts` does. Where there are none but tars, `split_tars` tells their parts.

    cache   where the index of tars is kept if it cannot be beside them.
    Raises  ConfigError for a folder that is missing, empty or ambiguous, and for damaged tars.
    """
    check_source(source)
    if source.suffix.lower() in LISTS:
        return _open_list(source)
    if source.is_file():
        return _open_tars(source.parent, [source], None, cache), None
    train_folder, val_folder = find_parts(source)
    listing = list_images(train_folder)
    if val_folder is None and not listing.paths:
        train_tars, val_tars = split_tars(train_folder, listing.tars)
        train = _open_tars(train_folder, train_tars, None, cache)
        return train, _open_tars(train_folder, val_tars, train.classes, cache) if val_tars else None
    train = _open_listing(listing, None, cache)
    return train, _open_listing(list_images(val_folder), train.classes, cache) if val_folder else None


def list_all(source: Path, cache: Path) -> Part:
    """List all images of a folder, or of a tar, without classes, whatever the folders in it mean; see `list_parts`."""
    check_source(source)
    if source.suffix.lower() in LISTS:
        return _part_of_list(source, read_list(source), ())
    if source.is_file():
        return _open_tars(source.parent, [source], (), cache)
    return _open_listing(list_images(source), (), cache)


def check_source(source: Path) -> None:
    """Raise ConfigError if a path is neither a folder nor a tar nor a list."""
    is_readable = is_tar(source.name) or source.suffix.lower() in LISTS
    if not source.is_dir() and not (source.is_file() and is_readable):
        lists, named = ", ".join(LISTS), ", ".join(IMAGE_COUNTS)
        raise ConfigError(
            f"data.source: '{source}' is neither a folder nor a .tar nor a list ({lists}) nor one of {named}"
        )


def split_tars(folder: Path, tars: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the training and the validation tars of a folder, by the words in their names, such as train-0001.tar.

    If none has such a word, all are for training; a test set is never used.

    Raises  ConfigError if there are tars of other parts but none for training.
    """
    parts: dict[str | None, list[Path]] = {}
    for tar in tars:
        words = set(re.split(r"[^a-z]+", tar.stem.lower()))
        part = next((part for part, names in PARTS.items() if words.intersection(names)), None)
        parts.setdefault(part, []).append(tar)
    if parts.keys() == {None}:
        return parts[None], []
    if "training" not in parts:
        raise ConfigError(f"data.source: {folder} has {tars[0].name} but no tars with `train` in their names; add them")
    return parts["training"], parts.get("validation", [])


def _open_list(path: Path) -> tuple[Part, Part | None]:
    """Return the parts of a list of files; raises ConfigError if it has parts, but none for training."""
    listed = read_list(path)
    if listed.parts is None:
        return _part_of_list(path, listed, None), None
    train, val = (listed.choose(PARTS[part]) for part in ("training", "validation"))
    if not train.paths:
        found = ", ".join(sorted({*listed.parts})[:5])
        raise ConfigError(f"data.source: {path} has the parts {found}, but no `train`")
    train_part = _part_of_list(path, train, None)
    return train_part, _part_of_list(path, val, train_part.classes) if val.paths else None


def _part_of_list(path: Path, listed: ImageList, train_classes: Sequence[str] | None) -> Part:
    """Return images of a list; see `_open_listing`."""
    classes, labels = train_classes or (), None
    if listed.labels is not None and train_classes is None:
        classes = sort_classes({*listed.labels})
    if listed.labels is not None and classes:
        refuse_unknown(path, {*listed.labels}, classes)
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[label] for label in listed.labels]
    return Part(path, Files(listed.paths), {}, classes, labels)


def sort_classes(names: Set[str]) -> tuple[str, ...]:
    """Return the names of classes in order: numbers by value, other names by letter."""
    return tuple(sorted(names, key=int) if all(map(str.isdecimal, names)) else sorted(names))


def _open_listing(listing: Listing, train_classes: Sequence[str] | None, cache: Path) -> Part:
    """Return the images of a listing.

    train_classes  numbers the classes; None for those that are found, none of them for no classes.
    """
    folder, paths = listing.folder, listing.paths
    if not paths:
        return _open_tars(folder, listing.tars, train_classes, cache)
    left_out = listing.left_out + Counter({".tar": len(listing.tars)})
    classes = find_classes(folder, paths) if train_classes is None else train_classes
    labels = label_images(folder, paths, classes) if classes else None
    return Part(folder, Files(paths), left_out, classes, labels)


def _open_tars(folder: Path, tars: Sequence[Path], train_classes: Sequence[str] | None, cache: Path) -> Part:
    """Return the images of tars, as `_open_listing`."""
    stored = open_tars(tars, cache)
    classes = tuple(stored.classes) if train_classes is None else train_classes
    labels = None
    if classes:
        found = stored.members["label"]
        used = {stored.classes[number] if number >= 0 else "no class" for number in np.unique(found)}
        refuse_unknown(folder, used, classes)
        numbers = [classes.index(name) if name in used else -1 for name in stored.classes]
        labels = np.array(numbers)[found].tolist()
    return Part(folder, stored, stored.left_out, classes, labels)
