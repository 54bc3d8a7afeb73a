"""What the tree of a folder means: its training and validation parts, its classes, its image files."""

import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from mae_curriculum.config import ConfigError
from mae_curriculum.data.stored import EXTENSIONS, IMAGE, Names, choose_classes, is_visible, kind_of
from mae_curriculum.data.tar_index import is_tar

PARTS = {
    "training": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names, in any case, of the folders that hold the parts of a data set."""


@dataclass(frozen=True)
class Listing:
    """The images of a tree."""

    folder: Path
    names: Names
    """Paths of the image files, relative to `folder`, sorted."""
    tars: Sequence[Path]
    """Sorted; their images are read if there are no image files."""
    left_out: Counter[str]
    """Numbers of image files that are not read: of kinds that cannot be, by suffix, and `HIDDEN` ones."""
    changed: Mapping[str, int | None]
    """When each folder of the tree last changed, ns, by its path relative to `folder`; None for a link to nothing."""

    @property
    def last_change(self) -> int:
        """When the tree last changed, ns: files came, went or were renamed."""
        return max(changed for changed in self.changed.values() if changed is not None)


def has_image_files(folder: Path) -> bool:
    """Return whether there are image files in a tree, which has none if it is missing."""
    return folder.is_dir() and any(_have_images(found.files) for found in _walk(folder))


def find_parts(folder: Path) -> tuple[Path, Path | None]:
    """Return the folders of the training and of the validation images, if there is one; a test set is never used.

    Names are understood in any case, also if the parts are one level down. A folder without parts is for training.

    Raises  ConfigError for several folders of a part, a part without training images, and a train/ beside other folders
            of images, which may be a class.
    """
    folders = _visible_folders(folder)
    train, val, test = (_part(folder, folders, name) for name in PARTS)
    if train:
        if not val and not test:
            _refuse_images(folder, train, [child for child in folders if child != train])
        return train, val
    if lonely := val or test:
        raise ConfigError(f"data.source: {folder} has {lonely.name}/ but no train/; add it, or rename that folder")
    nested = [child for child in folders if _has_training(child)]
    if nested and (len(folders) > 1 or _have_images(_scan(folder).files)):
        raise ConfigError(f"data.source: {folder} holds several data sets, {_names(folders)}; give one of them")
    return find_parts(nested[0]) if nested else (folder, None)


def find_classes(folder: Path, names: Names) -> Sequence[str]:
    """Return the top folders, empty ones too, if every image is in one of at least two; else nothing.

    names   paths of the images, relative to `folder`.
    Raises  ConfigError if a few images, at most 1%, lie beside the folders.
    """
    tops = {*_top_folders(names)}
    beside = [name for name in names if "/" not in name] if "" in tops else []
    classes = choose_classes(tops - {""}, beside, len(names), folder)
    return tuple(sorted({*classes, *(child.name for child in _visible_folders(folder))})) if classes else ()


def label_images(folder: Path, names: Names, classes: Sequence[str]) -> list[int]:
    """Return the class numbers of images, which lie in folders named as the classes; ConfigError if one does not."""
    numbers = {name: number for number, name in enumerate(classes)}
    tops = _top_folders(names)
    beside = {name for name in names if "/" not in name} if "" in tops else set()
    refuse_unknown(folder, {*tops} - {""} | beside, classes)
    return [numbers[top] for top in tops]


def _top_folders(names: Iterable[str]) -> list[str]:
    """Return the first folder of each path, "" for a path without one; each text is in memory once."""
    return [sys.intern(name.partition("/")[0]) if "/" in name else "" for name in names]


def refuse_unknown(folder: Path, names: Set[str], classes: Sequence[str]) -> None:
    """Raise ConfigError if names are not among the classes of training."""
    unknown = sorted(names - {*classes})
    if unknown:
        raise ConfigError(
            f"data.source: {folder} has {', '.join(unknown[:5])}, not among the {len(classes)} classes of training "
            f"({', '.join(classes[:3])}, ...); sort its images into folders of these names, or give the training "
            "folder alone as data.source"
        )


def list_images(folder: Path) -> Listing:
    """List the images and tars of a tree: regular files, and links to them or to nothing, of these suffixes.

    Hidden and system files are left out, and counted; links to folders are followed, but no folder is entered twice.

    Raises  ConfigError if there are neither.
    """
    names, tars, left_out = [], [], Counter[str]()
    changed: dict[str, int | None] = {}
    for found in _walk(folder):
        changed[found.name] = found.changed
        changed |= dict.fromkeys((f"{found.prefix}{name}" for name in found.dangling), None)
        for file in found.files:
            kind = kind_of(file)
            if kind == IMAGE:
                names.append(f"{found.prefix}{file}")
            elif kind is not None:
                left_out[kind] += 1
            elif is_tar(file):
                tars.append(folder / found.name / file)
    if not names and not tars:
        raise ConfigError(
            f"data.source: no images in {folder}; image files end in {' '.join(sorted(EXTENSIONS))}, archives in .tar"
        )
    names.sort(key=lambda name: name.replace("/", "\0"))  # as paths are sorted, folder by folder
    return Listing(folder, Names.of(names), sorted(tars), left_out, changed)


def _part(folder: Path, folders: Sequence[Path], part: str) -> Path | None:
    """Return the folder of a part, if there is one; raises ConfigError for several."""
    found = [child for child in folders if child.name.lower() in PARTS[part]]
    if len(found) > 1:
        names = " and ".join(f"{child.name}/" for child in found)
        raise ConfigError(f"data.source: {folder} has several {part} folders, {names}; keep one of them there")
    return found[0] if found else None


def _refuse_images(folder: Path, train: Path, others: Sequence[Path]) -> None:
    """Raise ConfigError if folders beside train/ have images: then train/ may be a class of that name."""
    if any(map(has_image_files, others)):
        raise ConfigError(
            f"data.source: {folder} has {train.name}/ beside {_names(others)}: if it holds the training images, "
            f"give {train} as data.source; if it is a class, rename it"
        )


def _has_training(folder: Path) -> bool:
    """Return whether a folder holds a training folder; only common spellings are tried, to list no large folder."""
    names = (spelled for name in PARTS["training"] for spelled in (name, name.capitalize(), name.upper()))
    return any((folder / name).is_dir() for name in names)


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:5])


def _have_images(files: Iterable[str]) -> bool:
    return any(kind_of(file) == IMAGE for file in files)


def _visible_folders(folder: Path) -> list[Path]:
    """List the folders in a folder that are neither hidden nor the operating system's."""
    return sorted(folder / name for name in _scan(folder).folders)


@dataclass(frozen=True)
class _Entries:
    """Names in a folder."""

    files: list[str]
    """Regular files, and links to them or to nothing."""
    folders: list[str]
    """Visible folders."""
    dangling: list[str]
    """Links to nothing."""


def _scan(folder: Path) -> _Entries:
    """Return the names in a folder."""
    found = _Entries([], [], [])
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                found.files.append(entry.name)
            elif entry.is_dir():
                if is_visible(entry.name):
                    found.folders.append(entry.name)
            elif entry.is_symlink() and not Path(entry).exists():
                found.files.append(entry.name)
                found.dangling.append(entry.name)
    return found


@dataclass(frozen=True)
class _Folder:
    """A folder of a tree."""

    name: str
    """Path relative to the tree's root, which is ""."""
    changed: int
    """When it last changed, ns."""
    files: Sequence[str] = ()
    """Names of its own files; none if it was entered before."""
    dangling: Sequence[str] = ()
    """Those that are links to nothing."""

    @property
    def prefix(self) -> str:
        """What comes before the name of a file in a path relative to the tree's root."""
        return f"{self.name}/" if self.name else ""


def _walk(folder: Path) -> Iterator[_Folder]:
    """Yield the visible folders of a tree, in no order; none is entered twice."""
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        name = waiting.pop()
        status = (folder / name).stat()
        found = _Folder(name, status.st_ctime_ns)
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            entries = _scan(folder / name)
            found = replace(found, files=entries.files, dangling=entries.dangling)
            waiting += [f"{found.prefix}{child}" for child in entries.folders]
        yield found


def is_unchanged(listing: Listing) -> bool:
    """Return whether no folder of the tree has changed since it was listed."""
    return all(_last_change(listing.folder / name) == changed for name, changed in listing.changed.items())


def _last_change(folder: Path) -> int | None:
    """Return when a folder last changed, ns; None if it is no folder."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_ctime_ns if stat.S_ISDIR(status.st_mode) else None
