"""The history of a run, read off its journal: its sessions, what a kill cost it, where it stands."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_curriculum.tracking import Journal

Row = dict[str, Any]


@dataclass(frozen=True)
class Session:
    """One job's time on a run: its rows of the journal, the first of which tells its start."""

    rows: list[Row]
    afterwards: list[Row]
    """What was written once it was over, by the next job before it began."""

    @property
    def last_beat(self) -> float:
        """When its lock was last renewed, in seconds since 1970; told by the job that took the lock over, else 0."""
        beats = (row.get("last_beat") for row in self.afterwards if row["event"] == "lock_taken_over")
        return next(filter(None, beats), 0.0)

    @property
    def start(self) -> Row:
        """How it began."""
        return self.rows[0]

    @property
    def last_sign(self) -> float:
        """When it was last known to live, in seconds since 1970."""
        return float(max(self.last_beat, self.rows[-1]["time"]))

    def newest(self, event: str) -> Row | None:
        """Give its newest row of an event, or None."""
        return next((row for row in reversed(self.rows + self.afterwards) if row["event"] == event), None)

    def reached(self, step: int) -> float:
        """Tell when so many steps were done and safe, as far as its rows tell."""
        safe = (row for row in self.rows[1:] if row["event"] in ("save", "stop") and row["step"] <= step)
        return float(max(row["time"] for row in (self.start, *safe)))


@dataclass(frozen=True)
class History:
    """All sessions of a run."""

    sessions: list[Session]
    results: list[Row]
    """What was measured of its checkpoints by other commands."""

    @property
    def last(self) -> Session:
        """The newest session."""
        return self.sessions[-1]

    @property
    def lost_seconds(self) -> float:
        """Seconds of work that was done again, since a kill came before it was saved."""
        return sum(before.last_sign - before.reached(after.start["step"]) for before, after in self._restarts())

    @property
    def away_seconds(self) -> float:
        """Seconds between one session and the next: in the queue, or until somebody started the run again."""
        return sum(float(after.start["time"]) - before.last_sign for before, after in self._restarts())

    def newest(self, event: str) -> Row | None:
        """Give the newest row of an event, or None."""
        found = (session.newest(event) for session in reversed(self.sessions))
        return next((row for row in found if row), None)

    def _restarts(self) -> Iterator[tuple[Session, Session]]:
        return zip(self.sessions, self.sessions[1:], strict=False)


def read_history(journal: Path) -> History | None:
    """Read a run's history; None if no job has begun it."""
    sessions: list[Session] = []
    results: list[Row] = []
    over = False
    for row in Journal(journal).rows():
        if "checkpoint" in row:
            results.append(row)
            continue
        if row["event"] == "start":
            sessions.append(Session([], []))
            over = False
        over = over or row["event"] == "lock_taken_over"
        if sessions:
            (sessions[-1].afterwards if over else sessions[-1].rows).append(row)
        over = over or row["event"] in ("stop", "end", "error")
    return History(sessions, results) if sessions else None
