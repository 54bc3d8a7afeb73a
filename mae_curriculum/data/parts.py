"""Find the training and the validation images of a source, and their classes: of a folder, of tars, or of a list."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mae_curriculum.config import ConfigError
from mae_curriculum.data.array_file import is_stack, open_array
from mae_curriculum.data.config import IMAGE_COUNTS, LISTS, RUNS_IMAGES
from mae_curriculum.data.folders import (
    PARTS,
    Listing,
    find_classes,
    find_parts,
    has_image_files,
    label_images,
    refuse_unknown,
)
from mae_curriculum.data.kept_lists import open_listing
from mae_curriculum.data.lists import ImageList, read_list
from mae_curriculum.data.stored import Files, Joined, Names, Records, Stored
from mae_curriculum.data.tables import HUB, is_saved, read_hub, read_parquet, read_saved
from mae_curriculum.data.tar_index import is_tar, open_tars

PART_USED = ("training", "validation")
"""The parts that are read; a test set never is."""

PART_NAMES = frozenset(name for part in PART_USED for name in PARTS[part])


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


def list_sources(sources: Sequence[Path], cache: Path) -> tuple[Part, Part | None]:
    """List the training and, if there are any, the validation images of one or more sources, as `list_parts`.

    The classes of several are those of all together, by their names; if one has none, there are none.
    """
    if len(sources) == 1:
        return list_parts(sources[0], cache)
    trains, vals = zip(*(list_parts(source, cache) for source in sources), strict=True)
    classes: Sequence[str] = ()
    if all(part.labels is not None for part in trains):
        classes = sort_classes({name for part in trains for name in part.classes})
    found = [val for val in vals if val is not None]
    return join_parts(trains, classes), join_parts(found, classes) if found else None


def join_parts(parts: Sequence[Part], classes: Sequence[str]) -> Part:
    """Return the images of several sources as one, with these classes, which include theirs; perhaps none."""
    numbers = {name: number for number, name in enumerate(classes)}
    labels: list[int] | None = None
    if classes and all(part.labels is not None for part in parts):
        labels = [numbers[part.classes[label]] for part in parts for label in part.labels or ()]
    left_out = sum((Counter(part.left_out) for part in parts), Counter[str]())
    folder = Path(",".join(str(part.folder) for part in parts))
    return Part(folder, Joined([part.stored for part in parts]), left_out, classes, labels)


def list_parts(source: Path, cache: Path) -> tuple[Part, Part | None]:
    """List the training and, if there are any, the validation images of a source.

    Image files are sought as `find_parts` does. Where there are none but tars, `split_tars` tells their parts.

    cache   where the index of tars is kept if it cannot be beside them.
    Raises  ConfigError for a folder that is missing, empty or ambiguous, and for damaged tars.
    """
    check_source(source)
    if source.suffix.lower() in LISTS:
        return _open_list(source)
    if records := find_records(source):
        return _choose_parts(source, records)
    if source.is_file():
        return _open_tars(source.parent, [source], None, cache), None
    train_folder, val_folder = find_parts(source)
    listing = open_listing(train_folder, cache)
    if val_folder is None and not len(listing.names):
        train_tars, val_tars = split_files(train_folder, listing.tars)
        train = _open_tars(train_folder, train_tars, None, cache)
        return train, _open_tars(train_folder, val_tars, train.classes, cache) if val_tars else None
    train = _open_listing(listing, None, cache)
    if val_folder is None:
        return train, None
    return train, _open_listing(open_listing(val_folder, cache), train.classes, cache)


def list_all(source: Path, cache: Path) -> Part:
    """List all images of a folder, or of a tar, without classes, whatever the folders in it mean; see `list_parts`."""
    check_source(source)
    if source.suffix.lower() in LISTS:
        return _part_of_list(source, read_list(source), ())
    if records := find_records(source):
        return _only_part(source, records)
    if source.is_file():
        return _open_tars(source.parent, [source], (), cache)
    return _open_listing(open_listing(source, cache), (), cache)


def check_source(source: Path) -> None:
    """Raise ConfigError if a path is neither a folder nor a tar nor a list."""
    is_readable = is_tar(source.name) or source.suffix.lower() in (*LISTS, ".npy", ".parquet")
    if str(source).startswith(HUB):
        return
    if str(source) == RUNS_IMAGES:
        raise ConfigError("data.source: choose images, such as a folder, with --data.source (for a trial: digits)")
    if not source.is_dir() and not (source.is_file() and is_readable):
        lists, named = ", ".join(LISTS), ", ".join(IMAGE_COUNTS)
        raise ConfigError(
            f"data.source: '{source}' is neither a folder nor a .tar, .npy or .parquet file nor a list ({lists}) nor "
            f"{HUB}OWNER/NAME nor one of {named}"
        )


def find_records(source: Path) -> dict[str, Records]:
    """Return the parts of an array, of parquet files or of a data set of Hugging Face; nothing for other sources."""
    if str(source).startswith(HUB):
        return read_hub(str(source))
    if source.suffix.lower() == ".npy":
        return {"train": open_array(source)}
    if source.suffix.lower() == ".parquet":
        return read_parquet({"train": [source]})
    if is_saved(source):
        return read_saved(source)
    arrays = {path.stem: path for path in source.glob("*.npy") if path.stem.lower() in PART_NAMES}
    if any(map(is_stack, arrays.values())):
        return {part: open_array(path) for part, path in arrays.items()}
    tables = sorted([*source.glob("*.parquet"), *source.glob("data/*.parquet")])
    if not tables or any(source.glob("*.tar")) or has_image_files(source):  # tables beside images describe them
        return {}
    train, val = split_files(source, tables)
    return read_parquet({"train": train, "validation": val} if val else {"train": train})


def _choose_parts(source: Path, records: Mapping[str, Records]) -> tuple[Part, Part | None]:
    """Return the training and validation images of several parts; raises ConfigError if none is for training."""
    train, val = (next((part for part in records if part.lower() in PARTS[name]), None) for name in PART_USED)
    if train is None:
        raise ConfigError(f"data.source: {source} has the parts {', '.join(records)}, but no `train`")
    train_part = _part_of_records(source, records[train], None)
    return train_part, None if val is None else _part_of_records(source, records[val], train_part.classes)


def _only_part(source: Path, records: Mapping[str, Records]) -> Part:
    """Return the images of one part, without classes; raises ConfigError for several parts."""
    if len(records) > 1:
        raise ConfigError(f"data.source: {source} has the parts {', '.join(records)}; give the file of one")
    return _part_of_records(source, next(iter(records.values())), ())


def _part_of_records(source: Path, records: Records, train_classes: Sequence[str] | None) -> Part:
    """Return images with the names of their classes; see `_open_listing`."""
    classes, labels = train_classes or (), None
    if records.labels is not None and train_classes is None:
        classes = records.classes or sort_classes({*records.labels})
    if records.labels is not None and classes:
        refuse_unknown(source, {*records.labels}, classes)
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[label] for label in records.labels]
    return Part(source, records.stored, {}, classes, labels)


def split_files(folder: Path, files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the training and the validation files of a folder, by the words in their names, such as train-0001.tar.

    If none has such a word, all are for training; a test set is never used.

    Raises  ConfigError if there are files of other parts but none for training.
    """
    parts: dict[str | None, list[Path]] = {}
    for file in files:
        words = set(re.split(r"[^a-z]+", file.stem.lower()))
        part = next((part for part, names in PARTS.items() if words.intersection(names)), None)
        parts.setdefault(part, []).append(file)
    if parts.keys() == {None}:
        return parts[None], []
    if "training" not in parts:
        raise ConfigError(f"data.source: {folder} has {files[0].name} but no file with `train` in its name; add one")
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
    return _part_of_records(path, Records(Files(Names.of(map(str, listed.paths))), listed.labels), train_classes)


def sort_classes(names: Set[str]) -> tuple[str, ...]:
    """Return the names of classes in order: numbers by value, other names by letter."""
    return tuple(sorted(names, key=int) if all(map(str.isdecimal, names)) else sorted(names))


def _open_listing(listing: Listing, train_classes: Sequence[str] | None, cache: Path) -> Part:
    """Return the images of a listing.

    train_classes  numbers the classes; None for those that are found, none of them for no classes.
    """
    folder, names = listing.folder, listing.names
    if not len(names):
        return _open_tars(folder, listing.tars, train_classes, cache)
    left_out = listing.left_out + Counter({".tar": len(listing.tars)})
    classes = find_classes(folder, names) if train_classes is None else train_classes
    labels = label_images(folder, names, classes) if classes else None
    return Part(folder, Files(names, folder), left_out, classes, labels)


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
