"""Indexes of images on disk: a folder of arrays, and a JSON file that says what they index.

`data.cache`/.indexes holds those that are not beside what they index; its name is hidden, as the cache may lie in a
folder of images.
"""

import hashlib
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mae_curriculum.files import read_json, write_json, write_temporary

ABOUT = "about.json"


def folder_in(cache: Path, indexed: Path) -> Path:
    """Return where the index of a path is kept in `data.cache`."""
    key = hashlib.sha256(str(indexed.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    return cache / ".indexes" / key


def write_index(folder: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
    """Write an index in place of an older one; it appears once it is complete.

    arrays  by the names of their files, without `.bin`.
    Raises  OSError, also if another job writes the same index at the same moment.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        for name, array in arrays.items():
            write_temporary(temporary / f"{name}.bin", lambda stream, array=array: stream.write(array.data))  # type: ignore[misc]
        write_json(temporary / ABOUT, {**about, "bytes": {name: array.nbytes for name, array in arrays.items()}})
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_about(folder: Path) -> dict[str, Any] | None:
    """Return what an index says of itself; None if there is no index, or one that is damaged."""
    try:
        about: dict[str, Any] = read_json(folder / ABOUT)
        is_complete = all((folder / f"{name}.bin").stat().st_size == size for name, size in about["bytes"].items())
    except (OSError, ValueError, KeyError):
        return None
    return about if is_complete else None
