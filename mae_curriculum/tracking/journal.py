"""The journal of a run: one JSON object a line, only ever appended to."""

import errno
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsFloat

from mae_curriculum.terminal import say

IDEMPOTENT_EVENTS = ("step", "stage", "evaluation", "pictures", "skipped", "spike")
"""Events that follow from the position in the run: a job that does steps again, after a kill, writes none again."""


@dataclass
class Journal:
    """An append-only file of events, one JSON object a line. None writes nothing: only the main process keeps it."""

    path: Path | None
    newest: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The newest row of each event of `IDEMPOTENT_EVENTS`, once `resume` has read them."""
    _unwritten: list[str] = field(default_factory=list)
    """Lines that a full disk refused: they are written with the next one that it takes."""

    def write(self, event: str, **facts: Any) -> None:
        """Append an event with the time of day, in one write, so that a line is whole or missing.

        A line that cannot be written is no reason to end a run: it waits, and a warning is logged. An event of
        `IDEMPOTENT_EVENTS` that the journal has of this step or a later one is not written again.
        """
        if self.path is None:
            return
        row = {"event": event, "time": round(time.time(), 3), **facts}
        if event in IDEMPOTENT_EVENTS:
            if event in self.newest and row["steps_done"] <= self.newest[event]["steps_done"]:
                return
            self.newest[event] = row
        self._unwritten.append(json.dumps(row) + "\n")
        try:
            append_whole(self.path, "".join(self._unwritten).encode())
        except OSError as error:
            say(f"warning: {error}; {len(self._unwritten)} lines of the journal wait")
        else:
            self._unwritten.clear()

    def resume(self, data_fingerprint: str) -> None:
        """Read what is not to be written again: the newest rows of a run with the same origin: images and weights."""
        same = False
        for row in self.rows():
            if row["event"] == "start":
                same = row.get("data_fingerprint") == data_fingerprint
                if not same:
                    self.newest.clear()
            elif same and row["event"] in IDEMPOTENT_EVENTS:
                self.newest[row["event"]] = row

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read all rows, oldest first."""
        if self.path is None or not self.path.exists():
            return
        with self.path.open(errors="replace") as lines:
            yield from filter(None, map(as_row, lines))


def finite_or_none(value: SupportsFloat | None) -> float | None:
    """Give a number as JSON can hold it."""
    return None if value is None or not math.isfinite(value) else float(value)


def as_row(line: str) -> dict[str, Any] | None:
    """Read a line of a journal; None for one that a kill or a full disk cut."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "event" in row else None


def append_whole(path: Path, content: bytes) -> None:
    """Append lines to a file, all or nothing; a line that a killed process left unfinished is ended first."""
    with path.open("ab+", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(size - 1)
            if stream.read(1) != b"\n":
                content = b"\n" + content
        try:
            if stream.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            stream.truncate(size)
            raise
