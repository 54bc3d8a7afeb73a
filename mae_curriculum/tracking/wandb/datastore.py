"""W&B's files of a run, read back: how far they hold it, whatever a kill has cost them."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
"""Bytes; a file is 7 bytes, and then blocks of a LevelDB log."""

WHOLE, LAST = 1, 4
"""Kinds of a log's entry: a whole record, or its last part."""


def newest_step(path: Path) -> int:
    """Tell the last step that a .wandb file holds; 0 if it holds none."""
    return max((record.history.step.num for record in records(path) if record.HasField("history")), default=0)


def records(path: Path) -> Iterator[Any]:
    """Read the records of a .wandb file, up to one that a kill left unfinished."""
    from wandb.proto import wandb_internal_pb2

    record_of = wandb_internal_pb2.Record.FromString  # type: ignore[attr-defined]

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:  # no room for another entry's head
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)  # after a checksum
        place += 7 + length
        if place > len(content):
            return
        parts += content[place - length : place]
        if kind in (WHOLE, LAST):
            yield record_of(parts)
            parts = b""
