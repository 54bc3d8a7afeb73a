"""What a run says of itself: the journal, the clocks, the progress bar."""

import errno
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, SupportsFloat

from tqdm import tqdm

from mae_curriculum.config import ConfigError, exempt

Mode = Literal["online", "offline", "disabled"]

ACTIVITIES = ("train", "wait", "save", "evaluate", "pictures", "report")
"""What a run spends its time on, as its stopwatch calls it."""

ONCE = ("step", "stage", "evaluation", "pictures", "skipped", "spike")
"""Events that follow from the position in the run: a job that does steps again, after a kill, writes none again."""

MOST_IMAGES = 64
"""In one picture: more would make it longer than viewers take."""


@dataclass(frozen=True)
class TrackingConfig:
    """How often a run reports, and where."""

    every_steps: int = exempt(20)
    """Steps between two rows of the journal; only then are results brought over from the device."""
    wandb: Mode = exempt("disabled")
    """Whether W&B is told what the journal is told; offline: into RUN/wandb, for `wandb sync`."""
    project: str = exempt("mae-curriculum")
    """Project at W&B."""
    entity: str | None = exempt(None)
    """User or team at W&B; null for the user's own choice there."""
    pictures: int = exempt(8)
    """Images whose reconstruction pretraining draws after each stage, always the same, 0 to 64; 0 for no pictures."""

    def __post_init__(self) -> None:
        if not 0 <= self.pictures <= MOST_IMAGES:
            raise ConfigError(f"tracking.pictures must be in 0..{MOST_IMAGES}, got {self.pictures}")
        if not re.fullmatch(r"[^/\\#?%:]{1,128}", self.project):
            raise ConfigError(f"tracking.project: 1 to 128 characters, none of / \\ # ? % :, got '{self.project}'")
        if self.every_steps < 1:
            raise ConfigError(f"tracking.every_steps must be at least 1, got {self.every_steps}")


@dataclass
class Stopwatch:
    """Seconds spent on each activity, one at a time: within an inner activity the outer one's clock stands still."""

    seconds: dict[str, float] = field(default_factory=dict)
    """What was measured so far, by activity; saved with the run, so that it survives restarts."""
    _activity: str | None = None
    _since: float = 0.0

    @contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        """Count the time of the block to an activity."""
        outer = self._activity
        self._switch(activity)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, activity: str | None) -> None:
        now = time.perf_counter()
        if self._activity is not None:
            self.seconds[self._activity] = self.seconds.get(self._activity, 0.0) + now - self._since
        self._activity, self._since = activity, now

    def total(self, activity: str) -> float:
        """Sum the seconds of an activity and its parts: "train" is "train", "train/0", "train/1" and so on."""
        return sum(value for key, value in self.seconds.items() if f"{key}/".startswith(f"{activity}/"))


@dataclass
class Journal:
    """An append-only file of events, one JSON object a line. None writes nothing: only the main process keeps it."""

    path: Path | None
    newest: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The newest row of each event of `ONCE`, once `go_on` has read them."""
    _unwritten: list[str] = field(default_factory=list)
    """Lines that a full disk refused: they are written with the next one that it takes."""

    def write(self, event: str, **facts: Any) -> None:
        """Append an event with the time of day, in one write, so that a line is whole or missing.

        A line that cannot be written is no reason to end a run: it waits, and the user is told. An event of `ONCE` that
        the journal has of this step or a later one is not written again.
        """
        if self.path is None:
            return
        row = {"event": event, "time": round(time.time(), 3), **facts}
        if event in ONCE:
            if event in self.newest and row["step"] <= self.newest[event]["step"]:
                return
            self.newest[event] = row
        self._unwritten.append(json.dumps(row) + "\n")
        try:
            append_whole(self.path, "".join(self._unwritten).encode())
        except OSError as error:
            say(f"warning: {error}; {len(self._unwritten)} lines of the journal wait")
        else:
            self._unwritten.clear()

    def go_on(self, origin: str) -> None:
        """Read what is not to be written again: the newest rows of a run with the same origin: images and weights."""
        same = False
        for row in self.rows():
            if row["event"] == "start":
                same = row.get("origin") == origin
                if not same:
                    self.newest.clear()
            elif same and row["event"] in ONCE:
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


def say(line: str) -> None:
    """Print a line for the user, above the bar where there is one."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


class Progress:
    """The progress of a run on the terminal: a bar, or where the output is no terminal, a line a minute."""

    def __init__(self, *, total_images: int, done_images: int, shown: bool) -> None:
        self._shown, self._total, self._images = shown, total_images, done_images
        self._last_line = time.monotonic()
        terminal = shown and sys.stderr.isatty()
        self._bar = (
            tqdm(
                total=total_images,
                initial=done_images,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
            )
            if terminal
            else None
        )

    def update(self, images: int, facts: str) -> None:
        """Show that `images` have been seen in all, with a few facts."""
        step, self._images = images - self._images, images
        if self._bar is not None:
            self._bar.set_description_str(facts, refresh=False)
            self._bar.update(step)
        elif self._shown and (time.monotonic() - self._last_line > 60 or (images == self._total and not step)):
            self._last_line = time.monotonic()
            say(f"{images / self._total:4.0%} {facts}")

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self._shown:
            say(line)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
