"""The journal of a run: one JSON object per line, only appended to."""

import errno
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsFloat

logger = logging.getLogger(__name__)

IDEMPOTENT_EVENTS = ("step", "stage", "evaluation", "pictures", "skipped", "spike")
"""Events that depend on the step alone: a job that repeats steps after a kill does not write them again."""


NUMBERS = frozenset({"time", "steps_done", "total_steps", "stage", "last_beat", "share", "knn", "world_size"})
"""Facts that are numbers in every row; in the row of a step, all but its size are."""

NEEDED = {
    **dict.fromkeys((*IDEMPOTENT_EVENTS, "start", "save", "stop"), frozenset({"steps_done"})),
    "stage": {"steps_done", "stage"},
    "waiting": {"stage", "share"},
    "stall": {"rank", "host", "seconds"},
    "broken_image": {"image", "reason"},
    "save_failed": {"reason"},
    "error": {"reason"},
    "damaged_checkpoint": {"name"},
}
"""Facts that the rows of an event have, besides the time."""


@dataclass
class Journal:
    """An append-only file of events, one JSON object per line; None, as on all ranks but the first, writes nothing."""

    path: Path | None
    newest: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The newest row of each event in `IDEMPOTENT_EVENTS`: those since the start, and before it after `resume`."""
    _unwritten: list[str] = field(default_factory=list)
    """Lines that did not fit on a full disk; they are written with the next line that fits."""

    def write(self, event: str, **facts: Any) -> None:
        """Append an event with the time of day, in one write, so that a line is complete or missing.

        A line that cannot be written is kept for later, with a warning. An event in `IDEMPOTENT_EVENTS` is skipped if
        the journal has it for this step or a later one.
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
            logger.warning(f"{error}; {len(self._unwritten)} lines of the journal are kept for later")
        else:
            self._unwritten.clear()

    def resume(self, data_fingerprint: str) -> None:
        """Read the newest rows, which are not to be written again, if the run started with the same data."""
        same = False
        for row in self.rows():
            if row["event"] == "start":
                same = row.get("data_fingerprint") == data_fingerprint
                if not same:
                    self.newest.clear()
            elif same and row["event"] in IDEMPOTENT_EVENTS:
                self.newest[row["event"]] = row

    def rows(self) -> Iterator[dict[str, Any]]:
        """Iterate over all rows, oldest first."""
        if self.path is None or not self.path.is_file():
            return
        with self.path.open(errors="replace") as lines:
            yield from filter(None, map(as_row, lines))


def finite_or_none(value: SupportsFloat | None) -> float | None:
    """Return a number, or None for NaN and infinity, which JSON does not have."""
    return None if value is None or not math.isfinite(value) else float(value)


def as_row(line: str) -> dict[str, Any] | None:
    """Parse a line of a journal; None for a line cut off by a kill or a full disk, and for one that is no row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and _is_row(row) else None


def _is_row(row: dict[str, Any]) -> bool:
    """Return whether what readers of journals rely on is there and of the right type; a journal may be damaged."""
    event = row.get("event")
    if not isinstance(event, str):
        return False
    needed = {"time", *NEEDED.get(event, ())}
    numbers = row.keys() - {"event", "size"} if event == "step" else row.keys() & NUMBERS
    size = row.get("size", [])
    return (
        all(row.get(key) is not None for key in needed)
        and all(row[key] is None or _is_number(row[key]) for key in numbers)
        and isinstance(size, list)
        and all(map(_is_number, size))
        and (_is_result(row["accuracy"]) if "checkpoint" in row and "accuracy" in row else True)
    )


def _is_result(accuracy: Any) -> bool:
    """Return whether this is the spread of an accuracy, or several by the number of labels."""
    if not isinstance(accuracy, dict):
        return False
    spreads = [accuracy] if "mean" in accuracy else accuracy.values()
    return all(isinstance(each, dict) and _is_number(each.get("mean")) and "std" in each for each in spreads)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300  # not NaN; larger integers are no float


def append_whole(path: Path, content: bytes) -> None:
    """Append lines to a file, all or nothing; a line that a kill left unfinished is ended first."""
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
