"""Measure what a run spends its time on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

ACTIVITIES = ("train", "wait", "save", "evaluate", "pictures", "report")
"""What a run spends its time on, as its stopwatch calls it."""


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
