"""Atomic file writes: a file has its old content or its new one, never a part."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the old or the new content is there at any moment, and nothing else."""
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text())


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file aside, flush it to disk, then rename it; of a failure nothing remains."""
    aside = temporary_name(path)
    try:
        write_temporary(aside, lambda stream: stream.write(content))
        rename_into_place(aside, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # the name that the user knows


def write_temporary(aside: Path, write: Callable[[IO[bytes]], T]) -> T:
    """Have a file written, and flush it to disk; of a failure nothing remains. Returns what `write` does."""
    try:
        with aside.open("wb") as stream:
            result = write(stream)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    return result


def rename_into_place(aside: Path, path: Path) -> None:
    """Give a file its name."""
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself reaches the disk with its folder
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def temporary_name(path: Path) -> Path:
    """Return the temporary name under which a file is written."""
    return path.with_name(f".{path.name}.aside")
