"""W&B's files of a run, read back: how far they hold it, whatever a kill has cost them."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
"""Bytes; a file is 7 bytes, and then blocks of a LevelDB log."""

WHOLE, LAST = 1, 4
"""Kinds of a log's entry: a whole record, or its last part."""


def newest_step(run: Path) -> int | None:
    """Tell the last step that the newest of a run folder's W&B files hold; None where none holds any."""
    paths = sorted(run.glob("wandb/*run-*/*.wandb"), key=lambda path: path.parent.name.split("run-")[-1])
    for path in reversed(paths):
        if steps := [record.history.step.num for record in records(path) if record.HasField("history")]:
            return int(max(steps))
    return None


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
