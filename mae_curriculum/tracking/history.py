"""The history of a run, read off its journal: its sessions, what a kill cost it, how it stands."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mae_curriculum.run.folder import RunFolder
from mae_curriculum.run.lock import lock_holder
from mae_curriculum.tracking.journal import Journal

Row = dict[str, Any]

ENDINGS = ("end", "error", "stop")
"""Events with which a session ends by itself."""


@dataclass(frozen=True)
class Session:
    """One job's time on a run."""

    rows: list[Row]
    """The first tells its start; of steps in a row the newest alone stays, as there may be millions."""
    afterwards: list[Row]
    """What was written once it was over, by the next job before it began."""

    @property
    def last_beat(self) -> float:
        """When its lock was last renewed, in seconds since 1970; told by the job that took the lock over, else 0.

        Of a session that ended by itself there is none: the lock was that of a job that never began.
        """
        if any(row["event"] in ENDINGS for row in self.rows):
            return 0.0
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

    @property
    def ending(self) -> str:
        """How it ended, as far as its rows tell: an error's words, why it was stopped, or "killed"."""
        row = next((row for row in reversed(self.rows) if row["event"] in ENDINGS), None)
        return str(row.get("reason", "finished")) if row else "killed"

    def reached(self, step: int) -> float:
        """Tell when so many steps were done and safe, as far as its rows tell."""
        safe = (row for row in self.rows[1:] if row["event"] in ("save", "stop") and row["steps_done"] <= step)
        return float(max(row["time"] for row in (self.start, *safe)))


@dataclass(frozen=True)
class Restart:
    """From one session to the next."""

    before: Session
    after: Session

    @property
    def lost_seconds(self) -> float:
        """Seconds of work that was done again, since a kill came before it was saved."""
        return self.before.last_sign - self.before.reached(self.after.start["steps_done"])

    @property
    def away_seconds(self) -> float:
        """Seconds between the sessions: in the queue, or until somebody started the run again."""
        return float(self.after.start["time"]) - self.before.last_sign


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
        """Seconds lost at all restarts."""
        return sum(restart.lost_seconds for restart in self.restarts)

    @property
    def away_seconds(self) -> float:
        """Seconds between all sessions."""
        return sum(restart.away_seconds for restart in self.restarts)

    @property
    def restarts(self) -> list[Restart]:
        """How the run came from each session to the next."""
        return [Restart(*each) for each in pairwise(self.sessions)]

    def rows(self, event: str) -> Iterator[Row]:
        """Go through the rows of an event, oldest first; of steps in a row there is the newest alone."""
        for session in self.sessions:
            yield from (row for row in (*session.rows, *session.afterwards) if row["event"] == event)

    def newest(self, event: str) -> Row | None:
        """Give the newest row of an event, or None."""
        found = (session.newest(event) for session in reversed(self.sessions))
        return next((row for row in found if row), None)


def run_state(folder: RunFolder, history: History) -> str:
    """Tell how a run stands: finished, running, failed, stopped or died."""
    if folder.summary.exists():
        return "finished"
    if lock_holder(folder.lock):
        return "running"
    known = {"error": "failed", "stop": "stopped"}
    return next((state for event, state in known.items() if history.last.newest(event)), "died")


def read_history(
    journal: Path, *, on_step: Callable[[Row], object] = lambda _: None, forget: Callable[[], object] = lambda: None
) -> History | None:
    """Read a run's history; None if no job has begun it.

    on_step  is told of every step's row, oldest first.
    forget     is called where the run began anew, with other images or weights: what was told before was another run.
    """
    sessions: list[Session] = []
    results: list[Row] = []
    over = False
    for row in Journal(journal).rows():
        if "checkpoint" in row:
            results.append(row)
            continue
        if row["event"] == "start":
            if sessions and row.get("data_fingerprint") != sessions[-1].start.get("data_fingerprint"):
                sessions.clear()
                results.clear()
                forget()
            sessions.append(Session([], []))
            over = False
        over = over or row["event"] == "lock_taken_over"
        if sessions:
            _add(row, sessions[-1].afterwards if over else sessions[-1].rows, on_step)
        over = over or row["event"] in ENDINGS
    return History(sessions, results) if sessions else None


def _add(row: Row, rows: list[Row], on_step: Callable[[Row], object]) -> None:
    if row["event"] == "step":
        on_step(row)
        if rows and rows[-1]["event"] == "step":
            rows.pop()
    rows.append(row)
