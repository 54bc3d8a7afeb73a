"""Indexes of images on disk: a folder of arrays, and a JSON file that says what they index.

`data.cache`/indexes holds those that are not beside what they index.
"""

import hashlib
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mae_curriculum.files import read_json, write_json

ABOUT = "about.json"


def folder_in(cache: Path, indexed: Path) -> Path:
    """Return where the index of a path is kept in `data.cache`."""
    return cache / "indexes" / hashlib.sha256(str(indexed.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]


def write_index(folder: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
    """Write an index, in the place of an older one; it appears once it is complete.

    arrays  by the names of their files, without `.bin`.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        for name, array in arrays.items():
            array.tofile(temporary / f"{name}.bin")
        write_json(temporary / ABOUT, about)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.exists():  # else another job has made it in the meantime
            raise


def read_about(folder: Path) -> dict[str, Any] | None:
    """Return what an index says of itself; None if there is no index."""
    path = folder / ABOUT
    about: dict[str, Any] | None = read_json(path) if path.exists() else None
    return about
