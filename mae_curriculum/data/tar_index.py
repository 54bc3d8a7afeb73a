"""The index of the images in some tars: made by one pass over their headers, and kept in files.

    train-000000.tar, ...        members: CLASS/NAME.jpg and, perhaps, CLASS/NAME.cls with the number of the class
    train-000000.tar.index/      beside the first tar, or in `data.cache` where nothing can be written beside it
        members.bin              `MEMBER` of each image, in the order of the tars
        names.bin                their names
        about.json               the tars with their sizes and times, the classes, what is left out

All processes map these files into memory, so that even millions of images take it once.
"""

import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_curriculum.config import ConfigError
from mae_curriculum.data.index_files import ABOUT, folder_in, read_about, write_index
from mae_curriculum.data.shards import MEMBER, TarMembers
from mae_curriculum.data.stored import EXTENSIONS, IMAGE, choose_classes, choose_spread, is_visible, kind_of
from mae_curriculum.files import read_json

logger = logging.getLogger(__name__)

FORMAT = 1
"""Format of the index; one of another format is made anew."""

FILES = {"members": MEMBER, "names": np.dtype(np.uint8)}
"""Arrays of the index, and the types of their items."""

LABEL = ".cls"
"""Suffix of the members that hold class numbers."""

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Ends of the names of tars whose images cannot be read one by one."""

CHECKED_MEMBERS = 8
"""Number of members, evenly spread, whose headers are compared with the index."""


def is_tar(name: str) -> bool:
    """Return whether a file is a tar by its name, perhaps a compressed one."""
    return name.lower().endswith((".tar", *COMPRESSED)) and is_visible(name)


def open_tars(tars: Sequence[Path], cache: Path) -> TarMembers:
    """Open the images of plain tars by their index; if there is none that fits, it is made.

    tars    at least one, in order.
    cache   where the index is kept if nothing can be written beside the tars.
    Raises  ConfigError for tars that are compressed or damaged, or hold no images.
    """
    if packed := next((tar for tar in tars if tar.name.lower().endswith(COMPRESSED)), None):
        raise ConfigError(
            f"data.source: {packed} is compressed, so its images cannot be read one by one; decompress it"
        )
    folder = index_folder(tars, cache)
    if not fits(folder, tars):
        others = f" and {len(tars) - 1} more" if len(tars) > 1 else ""
        logger.info(f"making the index of {tars[0]}{others}: {folder}")
        make_index(folder, tars)
    return read_index(folder, tars)


def index_folder(tars: Sequence[Path], cache: Path) -> Path:
    """Return where the index of tars is, or will be."""
    beside = tars[0].with_name(f"{tars[0].name}.index")
    return beside if os.access(beside.parent, os.W_OK) or fits(beside, tars) else folder_in(cache, beside)


def read_index(folder: Path, tars: Sequence[Path]) -> TarMembers:
    """Read the index of tars."""
    about = read_json(folder / ABOUT)
    members, letters = (np.memmap(folder / f"{name}.bin", kind, "r") for name, kind in FILES.items())
    return TarMembers(tars, members, letters, about["classes"], about["left_out"])


def fits(folder: Path, tars: Sequence[Path]) -> bool:
    """Return whether there is an index of these tars, as far as their sizes, their times and a few headers tell."""
    about = read_about(folder)
    if about is None or about["format"] != FORMAT or about["tars"] != _facts(tars):
        return False
    members = read_index(folder, tars).members
    chosen = members[choose_spread(len(members), CHECKED_MEMBERS)]
    return all(_has_header(tars[member["tar"]], member) for member in chosen)


def _has_header(tar: Path, member: NDArray[Any]) -> bool:
    """Return whether the header of a member lies before its content."""
    with tar.open("rb") as stream:
        stream.seek(int(member["offset"]) - tarfile.BLOCKSIZE)
        try:
            header = tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return False
    return header.size == member["size"]


def _facts(tars: Sequence[Path]) -> list[list[Any]]:
    return [[tar.name, tar.stat().st_size, tar.stat().st_mtime_ns] for tar in tars]


@dataclass
class _Found:
    """What a pass over tars has found."""

    members: list[NDArray[Any]] = field(default_factory=list)
    """Images of each tar: of `MEMBER`, with the length of the name in place of its end."""
    names: list[bytes] = field(default_factory=list)
    """Their names, of each tar."""
    folders: dict[str, int] = field(default_factory=dict)
    """Number of each folder in the tars."""
    folder_of: list[NDArray[Any]] = field(default_factory=list)
    """Number of the folder of each image, of each tar."""
    left_out: Counter[str] = field(default_factory=Counter)


def make_index(folder: Path, tars: Sequence[Path]) -> None:
    """Make the index of tars; it appears once it is complete. Raises ConfigError as `open_tars`."""
    found = _Found()
    for number, tar in enumerate(tars):
        _scan(tar, number, found)
    members = np.concatenate(found.members)
    if not len(members):
        others = " or the tars beside it" if len(tars) > 1 else ""
        raise ConfigError(f"data.source: no images in {tars[0]}{others}; they end in {' '.join(sorted(EXTENSIONS))}")
    members["name_end"] = np.cumsum(members["name_end"])
    letters = np.frombuffer(b"".join(found.names), np.uint8)
    classes = _name_classes(TarMembers(tars, members, letters, [], {}), found)
    about = {"format": FORMAT, "tars": _facts(tars), "classes": classes, "left_out": found.left_out}
    try:
        write_index(folder, {"members": members, "names": letters}, about)
    except OSError:
        if not fits(folder, tars):  # else another job has made it in the meantime
            raise


def _scan(path: Path, number: int, found: _Found) -> None:
    """Add the images of a tar to what was found."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    for member, content in _read_members(path):
        name = member.name.removeprefix("./")
        kind = kind_of(name)
        if kind == IMAGE:
            if name in images:
                raise ConfigError(f"data.source: {path} has two images named {name}; make it anew")
            images[name] = (member.offset_data, member.size)
        elif kind is not None:
            found.left_out[kind] += 1
        elif content is not None:
            labels[name.removesuffix(LABEL)] = _parse_label(f"{path}/{name}", content)
    stems = [name.rpartition(".")[0] for name in images]
    if lonely := len(labels.keys() - {*stems}):
        found.left_out["labels without an image"] += lonely
    bare = [stem for stem in stems if stem not in labels]
    if labels and bare:
        raise ConfigError(f"data.source: {path} has labels ({LABEL}), but none of {bare[0]}")
    names = [name.encode(errors="surrogateescape") for name in images]
    rows = [
        (number, *place, labels.get(stem, -1), len(name))
        for place, stem, name in zip(images.values(), stems, names, strict=True)
    ]
    found.members.append(np.array(rows, MEMBER))
    found.names.append(b"".join(names))
    folders = [found.folders.setdefault(name.rpartition("/")[0], len(found.folders)) for name in images]
    found.folder_of.append(np.array(folders, np.int32))


def _read_members(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Yield the files in a tar, with the content of those that hold a class number.

    Raises  ConfigError if the tar is damaged.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # they would take much memory
                if not member.isfile():
                    continue
                stream = tar.extractfile(member) if member.name.endswith(LABEL) else None
                yield member, None if stream is None else stream.read()
            file.seek(tar.offset)  # where tarfile stopped, perhaps in silence at half a header
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("its end is missing")
    except tarfile.TarError as error:
        raise ConfigError(
            f"data.source: {path} is damaged or no plain tar ({error}); fetch or make it again"
        ) from error


def _parse_label(name: str, content: bytes) -> int:
    try:
        label = int(content)
    except ValueError:
        label = -1
    if label < 0:
        raise ConfigError(f"data.source: {name} must hold a class number, 0 or above, got {content[:20]!r}")
    return label


def _name_classes(images: TarMembers, found: _Found) -> list[str]:
    """Return the names of the classes, and number the labels of the members by them.

    Classes are the folders in the tars, as in a folder of images. Numbers in `.cls` members come first: then folders
    only name them, if each number has its own.
    """
    folders = _top_folders(list(found.folders))
    tops = np.array(folders)[np.concatenate(found.folder_of)]
    labels = images.members["label"]
    if labels.max() >= 0:
        return _name_numbers(labels, tops)
    beside = [images.name(int(index)) for index in np.flatnonzero(tops == "")]
    classes = choose_classes({*folders} - {""}, beside, len(images), images.tars[0].parent)
    if classes:
        labels[:] = np.searchsorted(classes, tops)
    return classes


def _name_numbers(labels: NDArray[np.int32], tops: NDArray[np.str_]) -> list[str]:
    """Return a name for each class number: its folder, if each number has its own, else the number."""
    pairs = {(int(label), str(top)) for label, top in np.unique(np.stack([labels.astype(str), tops]), axis=1).T}
    names = dict(pairs)
    is_named = len(pairs) == len(names) == len({*names.values()}) and "" not in names.values()
    return [names.get(number, str(number)) if is_named else str(number) for number in range(int(labels.max()) + 1)]


def _top_folders(folders: Sequence[str]) -> list[str]:
    """Return the top folder of each of some folders, below those that all of them share; "" for one that has none."""
    parts = [PurePosixPath(folder).parts for folder in folders]
    shared = 0
    while parts[0][shared:] and len({each[: shared + 1] for each in parts}) == 1:
        shared += 1
    return [each[shared] if len(each) > shared else "" for each in parts]
