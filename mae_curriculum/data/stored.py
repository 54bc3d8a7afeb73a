"""Where encoded images are stored, and how their bytes are read; without loading torch."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from mae_curriculum.config import ConfigError

NPY_SIGNATURE = b"\x93NUMPY"

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
    | {".jp2", ".avif", ".npy"}
)
"""Suffixes, in lower case, of the files that count as images."""

UNREADABLE = frozenset(
    {".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".psd", ".svg", ".exr", ".tga", ".dcm"}
)
"""Suffixes, in lower case, of images that are left out, and counted."""

HIDDEN = "hidden"
"""What images are counted as whose names start with a dot, such as those that macOS adds to archives."""

SYSTEM = frozenset({"__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information"})
"""Names, in lower case, of folders that operating systems and archives add."""

IMAGE = "image"
"""What files are called that are read."""


class Stored(Protocol):
    """Encoded images with random access."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return a path, for messages and the journal."""
        ...

    def content(self, index: int) -> bytes:
        """Return an encoded image; raises OSError."""
        ...

    def open(self, index: int) -> BinaryIO:
        """Open an encoded image, whose head may be all that is read; raises OSError."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of what is stored: the key of what is cached on disk."""
        ...


@dataclass(frozen=True)
class Joined:
    """Encoded images of several places, one after another."""

    parts: Sequence[Stored]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def name(self, index: int) -> str:
        """Return the name that its place gives it."""
        part, own = self._find(index)
        return part.name(own)

    def content(self, index: int) -> bytes:
        """Return an encoded image; raises OSError."""
        part, own = self._find(index)
        return part.content(own)

    def open(self, index: int) -> BinaryIO:
        """Open an encoded image; raises OSError."""
        part, own = self._find(index)
        return part.open(own)

    def fingerprint(self) -> str:
        """Return a hash of what is stored in all places."""
        return hashlib.sha256("".join(part.fingerprint() for part in self.parts).encode()).hexdigest()

    def _find(self, index: int) -> tuple[Stored, int]:
        """Return the place of an image, and its index there."""
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)


@dataclass(frozen=True)
class Records:
    """Encoded images that come with the names of their classes."""

    stored: Stored
    labels: Sequence[str] | None
    """Name of the class of each image; None without classes."""
    classes: Sequence[str] | None = None
    """All classes in order, where the source gives one."""


@dataclass(frozen=True, eq=False)
class Names:
    """Names of images in two arrays, which take less memory than strings, and which processes share after a fork."""

    letters: NDArray[np.uint8]
    """All names, one after another, in UTF-8."""
    ends: NDArray[np.int64]
    """(n,): where each name ends."""

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Store some names."""
        encoded = [name.encode(errors="surrogateescape") for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return self.letters[start : self.ends[index]].tobytes().decode(errors="surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))


@dataclass(frozen=True)
class Files:
    """Image files."""

    names: Names
    """Paths, relative to `folder` if there is one."""
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the path."""
        return self._prefix + self.names[index]  # a Path would take four times as long

    @cached_property
    def _prefix(self) -> str:
        """What comes before the names: nothing for the current folder, as in a Path."""
        return "" if self.folder is None else str(self.folder / "-")[:-1]

    def content(self, index: int) -> bytes:
        """Return the file's content; raises OSError."""
        return Path(self.name(index)).read_bytes()

    def open(self, index: int) -> BinaryIO:
        """Open the file; raises OSError."""
        return Path(self.name(index)).open("rb")

    def fingerprint(self) -> str:
        """Return a hash of the paths, sizes and modification times."""
        state = hashlib.sha256()
        for path in map(self.name, range(len(self))):
            try:
                stat = Path(path).stat()
                size, time = stat.st_size, stat.st_mtime_ns
            except FileNotFoundError:  # a link to nothing
                size = time = -1
            state.update(f"{path}\0{size}\0{time}\0".encode(errors="surrogateescape"))
        return state.hexdigest()


def is_array(stream: BinaryIO) -> bool:
    """Return whether a stream starts as a .npy file does; it is left at its start."""
    start = stream.read(len(NPY_SIGNATURE))
    stream.seek(0)
    return start == NPY_SIGNATURE


def read_array_head(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of the array in a .npy file; raises ValueError if it holds none."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def choose_spread(total: int, count: int) -> list[int]:
    """Return `count` evenly spaced indices of `total` items, or all indices if there are fewer."""
    count = min(count, total)
    return [index * total // count for index in range(count)]


def kind_of(name: str) -> str | None:
    """Return `IMAGE` for an image that is read, `HIDDEN` or the suffix of one that is left out, None for other files.

    name  with the folders that it is in, of which none may be hidden.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix not in EXTENSIONS | UNREADABLE:
        return None
    if not all(map(is_visible, name.split("/"))):
        return HIDDEN
    return IMAGE if suffix in EXTENSIONS else suffix


def is_visible(name: str) -> bool:
    """Return whether a file or folder is neither hidden nor the operating system's."""
    return not name.startswith(".") and name.lower() not in SYSTEM


def choose_classes(folders: Set[str], beside: Sequence[str], total: int, where: Path) -> list[str]:
    """Return the class folders, sorted, if every image is in one of at least two; else nothing.

    beside  names of the images that are in no folder.
    total   number of all images.
    Raises  ConfigError if a few images, at most 1%, lie beside the folders.
    """
    if len(folders) < 2:
        return []
    if 0 < len(beside) <= total / 100:
        names = ", ".join(sorted(beside)[:5])
        raise ConfigError(f"data.source: {where} has images beside its class folders: {names}; move them elsewhere")
    return [] if beside else sorted(folders)
