"""Reconstruct the history of a run from its journal: its sessions, the work lost in kills, and its state."""

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
"""Events that end a session, unless it was killed."""


@dataclass(frozen=True)
class Session:
    """One job's part of a run."""

    rows: list[Row]
    """Its rows, the "start" first. Of consecutive steps only the newest is kept, as there may be millions."""
    later_rows: list[Row]
    """Rows written after it ended, by the next job before that job's "start"."""

    @property
    def last_beat(self) -> float:
        """Time of its last heartbeat in seconds since 1970, recorded by the job that took over its lock; else 0.

        Also 0 if the session was not killed: then the lock was that of a job killed before its "start".
        """
        if any(row["event"] in ENDINGS for row in self.rows):
            return 0.0
        for row in self.later_rows:
            if row["event"] == "lock_taken_over" and row.get("last_beat"):
                return float(row["last_beat"])
        return 0.0

    @property
    def start(self) -> Row:
        """Its "start" row."""
        return self.rows[0]

    @property
    def last_sign(self) -> float:
        """When it was last known to be alive, in seconds since 1970."""
        return float(max(self.last_beat, self.rows[-1]["time"]))

    def newest(self, event: str) -> Row | None:
        """Return its newest row of an event, or None."""
        return next((row for row in reversed(self.rows + self.later_rows) if row["event"] == event), None)

    @property
    def ending(self) -> str:
        """How it ended: "finished", the reason of its error or stop, or "killed" if the journal does not say."""
        row = next((row for row in reversed(self.rows) if row["event"] in ENDINGS), None)
        return str(row.get("reason", "finished")) if row else "killed"

    def reached(self, steps: int) -> float:
        """Return when `steps` steps were done and saved, as far as known, in seconds since 1970."""
        saves = [row for row in self.rows[1:] if row["event"] in ("save", "stop") and row["steps_done"] <= steps]
        return float(max(row["time"] for row in (self.start, *saves)))


@dataclass(frozen=True)
class Restart:
    """The transition from one session to the next."""

    before: Session
    after: Session

    @property
    def lost_seconds(self) -> float:
        """Seconds of work that had to be repeated, since a kill came before it was saved."""
        return self.before.last_sign - self.before.reached(self.after.start["steps_done"])

    @property
    def away_seconds(self) -> float:
        """Seconds between the sessions, such as in the queue."""
        return float(self.after.start["time"]) - self.before.last_sign


@dataclass(frozen=True)
class History:
    """All sessions of a run."""

    sessions: list[Session]
    results: list[Row]
    """Rows written by commands that evaluated the run's checkpoints."""

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
        """The transitions between consecutive sessions."""
        return [Restart(before, after) for before, after in pairwise(self.sessions)]

    def rows(self, event: str) -> Iterator[Row]:
        """Iterate over the rows of an event, oldest first; of consecutive steps there is only the newest."""
        for session in self.sessions:
            yield from (row for row in (*session.rows, *session.later_rows) if row["event"] == event)

    def newest(self, event: str) -> Row | None:
        """Return the newest row of an event, or None."""
        rows = (session.newest(event) for session in reversed(self.sessions))
        return next((row for row in rows if row), None)


def run_state(folder: RunFolder, history: History) -> str:
    """Return the state of a run: finished, running, failed, stopped or died."""
    if folder.summary.exists():
        return "finished"
    if lock_holder(folder.lock):
        return "running"
    if history.last.newest("error"):
        return "failed"
    return "stopped" if history.last.newest("stop") else "died"


def read_history(
    journal: Path, *, on_step: Callable[[Row], object] = lambda _: None, on_reset: Callable[[], object] = lambda: None
) -> History | None:
    """Read the history of a run from its journal; None if it has no session.

    on_step   called with the row of each step, oldest first.
    on_reset  called where the run was restarted with other data or weights: earlier rows belong to another run.
    """
    sessions: list[Session] = []
    results: list[Row] = []
    is_over = False
    for row in Journal(journal).rows():
        if "checkpoint" in row:
            results.append(row)
            continue
        if row["event"] == "start":
            if sessions and row.get("data_fingerprint") != sessions[-1].start.get("data_fingerprint"):
                sessions.clear()
                results.clear()
                on_reset()
            sessions.append(Session([], []))
            is_over = False
        is_over = is_over or row["event"] == "lock_taken_over"
        if sessions:
            rows = sessions[-1].later_rows if is_over else sessions[-1].rows
            if row["event"] == "step":
                on_step(row)
                if rows and rows[-1]["event"] == "step":
                    rows.pop()
            rows.append(row)
        is_over = is_over or row["event"] in ENDINGS
    return History(sessions, results) if sessions else None
