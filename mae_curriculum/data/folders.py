"""Find the images of a folder: its training and validation parts, its classes, its files."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import IMAGE_COUNTS
from mae_curriculum.data.stored import Files, Stored

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
    | {".jp2", ".avif", ".npy"}
)
"""Suffixes, in lower case, of the files that count as images."""

UNREADABLE = frozenset(
    {".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".psd", ".svg", ".exr", ".tga", ".dcm"}
)
"""Suffixes, in lower case, of images that are left out, and counted."""

PARTS = {
    "training": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names, in any case, of the folders that hold the parts of a data set."""

HIDDEN = "hidden"
"""What images are counted as whose names start with a dot, such as those that macOS adds to archives."""

SYSTEM = frozenset({"__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information"})
"""Names, in lower case, of folders that operating systems and archives add."""


@dataclass(frozen=True)
class Part:
    """The training or the validation images of a folder, and their classes."""

    folder: Path
    stored: Stored
    left_out: Mapping[str, int]
    """Numbers of image files that are not read: of kinds that cannot be, by suffix, and `HIDDEN` ones."""
    classes: Sequence[str]
    """Name of each class, in the order of their numbers; empty without classes."""
    labels: Sequence[int] | None
    """Class number of each image, or None without classes."""


def list_parts(folder: Path) -> tuple[Part, Part | None]:
    """List the training and, if there are any, the validation images of a folder, as `find_parts` finds them.

    Raises  ConfigError for a folder that is missing, empty or ambiguous.
    """
    check_folder(folder)
    train_folder, val_folder = find_parts(folder)
    train = list_part(train_folder, None)
    return train, list_part(val_folder, train.classes) if val_folder else None


def check_folder(folder: Path) -> None:
    """Raise ConfigError if there is no such folder."""
    if not folder.is_dir():
        raise ConfigError(f"data.source: '{folder}' is neither a folder nor one of {', '.join(IMAGE_COUNTS)}")


def list_part(folder: Path, train_classes: Sequence[str] | None) -> Part:
    """List the images of a tree; their classes are its top folders, numbered as in `train_classes` if given.

    train_classes  None for classes of its own, none of them to ignore the folders.
    """
    paths, left_out = list_images(folder)
    classes = find_classes(folder, paths) if train_classes is None else train_classes
    labels = label_images(folder, paths, classes) if classes else None
    return Part(folder, Files(paths), left_out, classes, labels)


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
    if len(tops) < 2:
        return ()
    if 0 < len(beside) <= len(paths) / 100:
        names = ", ".join(sorted(beside)[:5])
        raise ConfigError(f"data.source: {folder} has images beside its class folders: {names}; move them elsewhere")
    return () if beside else tuple(sorted(tops | {child.name for child in _visible_folders(folder)}))


def label_images(folder: Path, paths: Sequence[Path], classes: Sequence[str]) -> list[int]:
    """Return the class numbers of images, which lie in folders named as the classes; ConfigError if one does not."""
    numbers = {name: number for number, name in enumerate(classes)}
    tops = [path.relative_to(folder).parts[0] for path in paths]
    unknown = sorted({top for top in tops if top not in numbers})
    if unknown:
        raise ConfigError(
            f"data.source: {folder} has {', '.join(unknown[:5])}, not among the {len(classes)} classes of training "
            f"({', '.join(classes[:3])}, ...); sort its images into folders of these names, or give the training "
            "folder alone as data.source"
        )
    return [numbers[top] for top in tops]


def list_images(folder: Path) -> tuple[list[Path], Counter[str]]:
    """List the images of a tree, sorted: regular files, and links to them or to nothing, with an image's suffix.

    Hidden and system files are left out, and counted; links to folders are followed, but no folder is entered twice.

    Raises  ConfigError if there are no images.
    """
    paths, left_out = [], Counter[str]()
    for path in _walk(folder):
        if _is_image(path):
            paths.append(path)
        elif _has_suffix(path, EXTENSIONS | UNREADABLE):
            left_out[path.suffix.lower() if _is_visible(path.name) else HIDDEN] += 1
    if not paths:
        raise ConfigError(f"data.source: no images in {folder}; image files end in {' '.join(sorted(EXTENSIONS))}")
    return sorted(paths), left_out


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
    return _has_suffix(path, EXTENSIONS) and _is_visible(path.name)


def _has_suffix(path: Path, suffixes: frozenset[str]) -> bool:
    return path.suffix.lower() in suffixes


def _visible_folders(folder: Path) -> list[Path]:
    """List the folders in a folder that are neither hidden nor the operating system's."""
    with os.scandir(folder) as entries:
        return sorted(Path(entry) for entry in entries if entry.is_dir() and _is_visible(entry.name))


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in SYSTEM


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
