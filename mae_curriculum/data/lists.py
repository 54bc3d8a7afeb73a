"""Lists of image files, with labels and parts if they say so: CSV, TSV, or plain text."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_curriculum.config import ConfigError
from mae_curriculum.data.stored import IMAGE, choose_spread, kind_of

SEPARATORS = "\t;,"

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "name"),
    "label": ("label", "class", "class_name", "target", "category"),
    "part": ("part", "split", "set", "subset"),
}
"""Names of columns, in lower case."""

CHECKED_FILES = 256
"""Number of files of a list, evenly spread, that must exist: to look at millions takes hours on network disks."""


@dataclass(frozen=True)
class ImageList:
    """What a list says: of each image its path, and its label and part where there are such columns."""

    paths: Sequence[Path]
    labels: Sequence[str] | None
    parts: Sequence[str] | None

    def choose(self, names: Sequence[str]) -> "ImageList":
        """Return the images of a part, by one of its names in lower case."""
        assert self.parts is not None, "only lists with parts are split"
        kept = [row for row, part in enumerate(self.parts) if part.lower() in names]
        labels = None if self.labels is None else [self.labels[row] for row in kept]
        return ImageList([self.paths[row] for row in kept], labels, [self.parts[row] for row in kept])


def read_list(path: Path) -> ImageList:
    """Read a list; paths in it are relative to its folder.

    A table has a header with a column of `COLUMNS["path"]`, or none: then the first column is the path and the second,
    if there is one, the label. In plain text each line is a path, with a label after a space if every line has a number
    there.

    Raises  ConfigError for a list that is empty, has gaps, or names files that are missing.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.source: cannot read {path} as text: {error}") from error
    if not lines:
        raise ConfigError(f"data.source: {path} is empty")
    rows = _split_text(lines) if path.suffix.lower() == ".txt" else _split_table(lines)
    header, rows = _split_header(path, rows)
    columns = {name: [row[place].strip() for row in rows] for name, place in header.items()}
    for name, values in columns.items():
        if "" in values:
            raise ConfigError(
                f"data.source: {path}: row {values.index('') + 1} of the images has no {name}; fill it in"
            )
    paths = [path.parent / value for value in columns["path"]]
    _refuse_missing(path, paths)
    return ImageList(paths, columns.get("label"), columns.get("part"))


def _split_text(lines: Sequence[str]) -> list[list[str]]:
    """Return path and label of each line, or the path alone."""
    rows = [line.rsplit(maxsplit=1) for line in lines]
    if all(len(row) == 2 and row[1].isdecimal() for row in rows):
        return rows
    return [[line] for line in lines]


def _split_table(lines: Sequence[str]) -> list[list[str]]:
    """Return the cells of each line; the separator is that of the first line."""
    separator = max(SEPARATORS, key=lines[0].count)
    return list(csv.reader(lines, delimiter=separator))


def _split_header(path: Path, rows: list[list[str]]) -> tuple[dict[str, int], list[list[str]]]:
    """Return the place of each column, and the rows without the header."""
    first = [cell.strip().lower() for cell in rows[0]]
    header = {}
    for name, words in COLUMNS.items():
        known = [word for word in words if word in first]
        if known:
            header[name] = first.index(known[0])
    if "path" in header:
        rows = rows[1:]
    elif kind_of(first[0].rpartition("/")[2]) == IMAGE:
        header = {"path": 0, "label": 1} if len(first) > 1 else {"path": 0}
    else:
        raise ConfigError(
            f"data.source: {path} starts with '{rows[0][0]}', neither an image file nor a header with a column named "
            f"{', '.join(COLUMNS['path'])}"
        )
    if not rows:
        raise ConfigError(f"data.source: {path} has a header and nothing else")
    if short := next((row for row in rows if len(row) <= max(header.values())), None):
        raise ConfigError(f"data.source: {path}: the row of '{short[0]}' has {len(short)} cells, fewer than the others")
    return header, rows


def _refuse_missing(path: Path, paths: Sequence[Path]) -> None:
    chosen = choose_spread(len(paths), CHECKED_FILES)
    missing = [paths[index] for index in chosen if not paths[index].exists()]
    if missing:
        raise ConfigError(
            f"data.source: {path}: {len(missing)} of {len(chosen)} files that were looked for do not exist, such as "
            f"{missing[0]}; paths are relative to the folder of the list"
        )
