"""Measure the time that a run spends on each activity."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

ACTIVITIES = ("train", "wait", "save", "evaluate", "pictures", "report")
"""Activities of a run."""


@dataclass
class Stopwatch:
    """Seconds spent on each activity; during an inner activity the outer one's clock is paused."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by activity; part of a checkpoint, so that they continue after a restart."""
    _activity: str | None = None
    _since: float = 0.0

    @contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        """Count the time of the block as time of an activity."""
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
        """Return the seconds of an activity and its parts: "train" includes "train/0", "train/1" and so on."""
        return sum(value for key, value in self.seconds.items() if f"{key}/".startswith(f"{activity}/"))
