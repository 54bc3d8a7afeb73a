"""What the tree of a folder means: its training and validation parts, its classes, its image files."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from mae_curriculum.config import ConfigError
from mae_curriculum.data.stored import EXTENSIONS, IMAGE, choose_classes, is_visible, kind_of
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
    paths: Sequence[Path]
    """Image files, sorted."""
    tars: Sequence[Path]
    """Sorted; their images are read if there are no image files."""
    left_out: Counter[str]
    """Numbers of image files that are not read: of kinds that cannot be, by suffix, and `HIDDEN` ones."""


def has_image_files(folder: Path) -> bool:
    """Return whether there are image files in a tree, which has none if it is missing."""
    return folder.is_dir() and any(_is_image(path) for path in _walk(folder))


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
    if nested and (len(folders) > 1 or any(_is_image(path) for path in _files(folder))):
        raise ConfigError(f"data.source: {folder} holds several data sets, {_names(folders)}; give one of them")
    return find_parts(nested[0]) if nested else (folder, None)


def find_classes(folder: Path, paths: Sequence[Path]) -> Sequence[str]:
    """Return the top folders, empty ones too, if every image is in one of at least two; else nothing.

    Raises  ConfigError if a few images, at most 1%, lie beside the folders.
    """
    tops = {path.relative_to(folder).parts[0] for path in paths if path.parent != folder}
    beside = [path.name for path in paths if path.parent == folder]
    classes = choose_classes(tops, beside, len(paths), folder)
    return tuple(sorted({*classes, *(child.name for child in _visible_folders(folder))})) if classes else ()


def label_images(folder: Path, paths: Sequence[Path], classes: Sequence[str]) -> list[int]:
    """Return the class numbers of images, which lie in folders named as the classes; ConfigError if one does not."""
    numbers = {name: number for number, name in enumerate(classes)}
    tops = [path.relative_to(folder).parts[0] for path in paths]
    refuse_unknown(folder, {*tops}, classes)
    return [numbers[top] for top in tops]


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
    paths, tars, left_out = [], [], Counter[str]()
    for path in _walk(folder):
        kind = kind_of(path.name)
        if kind == IMAGE:
            paths.append(path)
        elif kind is not None:
            left_out[kind] += 1
        elif is_tar(path.name):
            tars.append(path)
    if not paths and not tars:
        raise ConfigError(
            f"data.source: no images in {folder}; image files end in {' '.join(sorted(EXTENSIONS))}, archives in .tar"
        )
    return Listing(folder, sorted(paths), sorted(tars), left_out)


def _part(folder: Path, folders: Sequence[Path], part: str) -> Path | None:
    """Return the folder of a part, if there is one; raises ConfigError for several."""
    found = [child for child in folders if child.name.lower() in PARTS[part]]
    if len(found) > 1:
        names = " and ".join(f"{child.name}/" for child in found)
        raise ConfigError(f"data.source: {folder} has several {part} folders, {names}; keep one of them there")
    return found[0] if found else None


def _refuse_images(folder: Path, train: Path, others: Sequence[Path]) -> None:
    """Raise ConfigError if folders beside train/ have images: then train/ may be a class of that name."""
    if any(_is_image(path) for child in others for path in _walk(child)):
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


def _is_image(path: Path) -> bool:
    return kind_of(path.name) == IMAGE


def _visible_folders(folder: Path) -> list[Path]:
    """List the folders in a folder that are neither hidden nor the operating system's."""
    with os.scandir(folder) as entries:
        return sorted(Path(entry) for entry in entries if entry.is_dir() and is_visible(entry.name))


def _files(folder: Path) -> Iterator[Path]:
    """Yield a folder's own files: regular ones, and links to them or to nothing."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry)
            if entry.is_file() or (entry.is_symlink() and not path.exists()):
                yield path


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files of a tree, in no order; no folder is entered twice."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        parent = waiting.pop()
        stat = parent.stat()
        if (stat.st_dev, stat.st_ino) not in seen:
            seen.add((stat.st_dev, stat.st_ino))
            yield from _files(parent)
            waiting += _visible_folders(parent)
