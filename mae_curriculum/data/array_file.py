"""Images in one `.npy` file, (n, h, w) or (n, h, w, channels) uint8 or uint16, which is mapped into memory.

Classes are numbers in a second file, (n,), called NAME_labels.npy beside NAME.npy.
"""

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mae_curriculum.config import ConfigError
from mae_curriculum.data.stored import Records, read_array_head


@dataclass(frozen=True)
class ArrayRows:
    """The images of an array, each encoded as a `.npy` file of its own."""

    path: Path

    @cached_property
    def array(self) -> NDArray[Any]:
        """(n, h, w) or (n, h, w, channels); raises OSError or ValueError for a damaged file."""
        array: NDArray[Any] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return array

    def __len__(self) -> int:
        return len(self.array)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the array, which another process maps again."""
        return {"path": self.path}

    def name(self, index: int) -> str:
        """Return the path of the file and the number of the image."""
        return f"{self.path}/{index:08}"

    def content(self, index: int) -> bytes:
        """Return an image as a `.npy` file."""
        stream = io.BytesIO()
        np.save(stream, self.array[index])
        return stream.getvalue()

    def open(self, index: int) -> BinaryIO:
        """Return an image as a `.npy` file."""
        return io.BytesIO(self.content(index))

    def fingerprint(self) -> str:
        """Return a hash of the path, size and modification time."""
        stat = self.path.stat()
        return hashlib.sha256(f"{self.path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()


def is_stack(path: Path) -> bool:
    """Return whether a file is an array of four dimensions: images, not one image."""
    try:
        with path.open("rb") as stream:
            return len(read_array_head(stream)[0]) == 4
    except (OSError, ValueError, EOFError):
        return False


def open_array(path: Path) -> Records:
    """Return the images of a file, with classes if there is a second file.

    Raises  ConfigError for arrays that hold no images, or whose labels do not fit.
    """
    rows, labels_path = ArrayRows(path), path.with_name(f"{path.stem}_labels.npy")
    array = _load(path, lambda: rows.array)
    shape = array.shape
    if len(shape) not in (3, 4) or not len(rows) or array.dtype not in (np.uint8, np.uint16):
        raise ConfigError(
            f"data.source: {path} must be uint8 or uint16, (images, height, width) or (images, height, width, "
            f"channels), got {array.dtype} {shape}"
        )
    if not labels_path.is_file():
        return Records(rows, None)
    labels = _load(labels_path, lambda: np.load(labels_path, allow_pickle=False))
    if labels.shape != shape[:1] or labels.dtype.kind not in "iu":
        raise ConfigError(f"data.source: {labels_path} must be {shape[0]} integers, got {labels.dtype} {labels.shape}")
    return Records(rows, [str(label) for label in labels.tolist()])


def _load(path: Path, load: Any) -> NDArray[Any]:
    try:
        array: NDArray[Any] = load()
        return array
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"data.source: {path} is damaged: {error}") from error
