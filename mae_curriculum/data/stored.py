"""Where encoded images are stored, and how their bytes are read; without loading torch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np


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
class Files:
    """Image files."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return the path."""
        return str(self.paths[index])

    def content(self, index: int) -> bytes:
        """Return the file's content; raises OSError."""
        return self.paths[index].read_bytes()

    def open(self, index: int) -> BinaryIO:
        """Open the file; raises OSError."""
        return self.paths[index].open("rb")

    def fingerprint(self) -> str:
        """Return a hash of the paths, sizes and modification times."""
        state = hashlib.sha256()
        for path in self.paths:
            try:
                stat = path.stat()
                size, time = stat.st_size, stat.st_mtime_ns
            except FileNotFoundError:  # a link to nothing
                size = time = -1
            state.update(f"{path}\0{size}\0{time}\0".encode(errors="surrogateescape"))
        return state.hexdigest()


def read_array_head(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of the array in a .npy file; raises ValueError if it holds none."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype
