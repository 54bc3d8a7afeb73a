"""Images in plain tars, as WebDataset stores them: read one by one, at the offsets that an index holds."""

import hashlib
import io
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mae_curriculum.data.stored import Names

MEMBER = np.dtype(
    [("tar", np.int32), ("offset", np.int64), ("size", np.uint32), ("label", np.int32), ("name_end", np.int64)]
)
"""An image: its tar, where it lies in it (bytes), its class (-1 for none), where its name ends among all names."""

OPEN_TARS = 64
"""Tars that a process keeps open at most."""


@dataclass(frozen=True)
class TarMembers:
    """The images of some tars."""

    tars: Sequence[Path]
    members: NDArray[Any]
    """(n,) of `MEMBER`."""
    letters: NDArray[np.uint8]
    """Names of the members, one after another."""
    classes: Sequence[str]
    """Name of each class, in the order of their numbers; empty without classes."""
    left_out: Mapping[str, int]
    """Numbers of members that are not read, as in a folder."""

    def __len__(self) -> int:
        return len(self.members)

    def name(self, index: int) -> str:
        """Return the path of the tar and the name of the member."""
        names = Names(self.letters, self.members["name_end"])
        return f"{self.tars[self.members['tar'][index]]}/{names[index]}"

    def content(self, index: int) -> bytes:
        """Return the content of the member; raises OSError."""
        tar, offset, size = (int(self.members[key][index]) for key in ("tar", "offset", "size"))
        content = _OPEN.read(self.tars[tar], offset, size)
        if len(content) < size:
            raise OSError(f"{self.tars[tar]} has been cut since its index was made")
        return content

    def open(self, index: int) -> BinaryIO:
        """Return the content of the member as a stream; raises OSError."""
        return io.BytesIO(self.content(index))

    def fingerprint(self) -> str:
        """Return a hash of the index and of the tars' modification times."""
        state = hashlib.sha256(self.members.tobytes())
        state.update(self.letters.tobytes())
        state.update(repr([(str(tar), tar.stat().st_mtime_ns) for tar in self.tars]).encode())
        return state.hexdigest()


class _OpenFiles:
    """Files that this process keeps open for reading, at most `OPEN_TARS`."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Return bytes of a file."""
        if path not in self._descriptors:
            if len(self._descriptors) >= OPEN_TARS:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[path] = os.open(path, os.O_RDONLY)
        self._descriptors.move_to_end(path)
        return os.pread(self._descriptors[path], size, offset)


_OPEN = _OpenFiles()
