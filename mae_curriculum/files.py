"""Atomic file writes: a file has its old content or its new one, never a part of it."""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")

DAY_SECONDS = 86_400

USER_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
"""No space, quota exceeded, no permission, read-only file system: what a user can fix."""


def is_user_error(error: OSError) -> bool:
    """Return whether the user can fix an error of the operating system; any other is a bug or a broken machine."""
    return error.errno in USER_ERRNOS


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Load JSON."""
    return json.loads(path.read_text())


def write_atomic(path: Path, content: bytes) -> None:
    """Write a temporary file, flush it to disk, then rename it; a failure leaves nothing behind."""
    temporary = temporary_name(path)
    try:
        write_temporary(temporary, lambda stream: stream.write(content))
        rename_into_place(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # the user knows this name


def write_temporary(temporary: Path, write: Callable[[IO[bytes]], T]) -> T:
    """Write a new file with `write`, flush it to disk, and return the result of `write`; a failure leaves no file.

    What is there under its name is removed, and not followed if it is a link: a run folder may come from elsewhere.
    """
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as stream:
            result = write(stream)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return result


def rename_into_place(temporary: Path, path: Path) -> None:
    """Rename a temporary file to its final name, and flush the rename to disk."""
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # a rename is on disk once its folder is
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes have left in a folder: those older than a day."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):  # another process removes them too, or they are somebody else's
            if time.time() - path.stat().st_mtime > DAY_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def temporary_name(path: Path) -> Path:
    """Return the temporary name under which a file is written."""
    return path.with_name(f".{path.name}.tmp")
