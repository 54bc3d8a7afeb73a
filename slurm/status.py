"""How runs stand: read off their folders, and where there is SLURM, off its queue."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mae_curriculum.checkpoint import RunFolder
from mae_curriculum.config import ConfigError
from mae_curriculum.history import History, read_history
from mae_curriculum.lock import holder_of
from mae_curriculum.table import as_table, spell_seconds

COLUMNS = ["run", "state", "stage", "progress", "left", "images/s", "restarts", "lost", "away"]

QUEUE_SECONDS = 20
"""For SLURM's answer."""

LOG_BYTES = 100_000
"""Of a log's end in which an error is looked for."""


@dataclass(frozen=True)
class StatusConfig:
    """How runs stand: `python -m slurm status [RUN...]`."""

    runs: tuple[Path, ...] = (Path("runs"),)
    """Run folders, or folders in which they lie."""


def status(config: StatusConfig) -> int:
    """Print a line for each run, and why those that failed did; returns the exit code."""
    folders = find_runs(config.runs)
    queue = ask_queue()
    told = [describe(folder, queue) for folder in folders]
    print(as_table([COLUMNS, *(cells for cells, _ in told)]))
    for error in filter(None, (error for _, error in told)):
        print(error)
    print("lost: work that was done again, since a kill came before it was saved; away: between one job and the next")
    return 0


def find_runs(places: tuple[Path, ...]) -> list[RunFolder]:
    """Find the run folders in some places; raises ConfigError where there are none."""
    found = []
    for place in places:
        here = [RunFolder(path.parent) for path in sorted(place.rglob("journal.jsonl"))]
        if not here:
            raise ConfigError(f"no run in {place}; a run's folder has a journal.jsonl")
        found += here
    return found


def describe(folder: RunFolder, queue: dict[str, str]) -> tuple[list[str], str | None]:
    """Give a run's cells of the table, and the line that tells its last error."""
    history = read_history(folder.journal)
    if history is None:
        return [str(folder.path), "not begun", *["-"] * (len(COLUMNS) - 2)], None
    state = state_of(folder, history, queue)
    start, step, stage = history.last.start, history.newest("step"), history.newest("stage")
    left = "-"
    if step and state != "finished":
        left = spell_seconds(step["seconds_left"])
    cells = [
        str(folder.path),
        state,
        f"{stage['stage'] + 1}/{start['stages']}" if stage else "-",
        f"{(step['step'] + 1) / start['steps']:.1%}" if step else "0.0%",
        left,
        f"{step['images_per_second']:.0f}" if step else "-",
        str(len(history.sessions) - 1),
        f"{history.lost_seconds / 3600:.2f} h",
        f"{history.away_seconds / 3600:.2f} h",
    ]
    if state not in ("failed", "died"):
        return cells, None
    error = history.last.newest("error")
    log = start.get("log")
    reason = error["reason"] if error else last_error(log) or "no word of why"
    return cells, f"{folder.path}: {reason}" + (f" (log: {log})" if log else f" (on {start['host']})")


def state_of(folder: RunFolder, history: History, queue: dict[str, str]) -> str:
    """Tell a run's state: running, finished, failed, stopped, died, or what SLURM says of its job."""
    if folder.summary.exists():
        return "finished"
    if holder_of(folder.lock):
        return "running"
    waiting = queue.get(str(history.last.start.get("job")))
    if waiting:
        return waiting
    for event, state in (("error", "failed"), ("stop", "stopped")):
        if history.last.newest(event):
            return state
    return "died"


def ask_queue() -> dict[str, str]:
    """Ask SLURM for this user's jobs: number -> state, with the reason for waiting; empty where there is none.

    A task of an array goes by its own number, as its processes know it, and by array_task.
    """
    command = ["squeue", "--me", "--array", "--noheader", "--format", "%A %i %T %r"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=QUEUE_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return {}
    queue = {}
    for own, number, state, reason in (line.split(maxsplit=3) for line in told.stdout.splitlines()):
        queue[own] = queue[number] = state.lower() + f" ({reason})" * (state == "PENDING")
    return queue


def last_error(log: str | None) -> str | None:
    """Find the last line of a log that tells an error."""
    path = Path(log or "")
    if log is None or not path.is_file():
        return None
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - LOG_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    telling = re.compile("error|killed|out of memory|cancelled", re.IGNORECASE)
    return next((line.strip() for line in reversed(lines) if telling.search(line)), None)
