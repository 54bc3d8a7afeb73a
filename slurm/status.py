"""How runs stand: read off their folders, and where there is SLURM, off its queue."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mae_curriculum.config import ConfigError
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.terminal import format_clock, format_table
from mae_curriculum.tracking.history import History, read_history, run_state
from slurm.cluster import SUBMISSION, read_submission

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
    try:
        queue = ask_queue()
    except ConfigError as silence:
        print(f"{silence}; here is what the run folders tell")
        queue = {}
    told = [describe(folder, queue) for folder in folders]
    print(format_table([COLUMNS, *(cells for cells, _ in told)]))
    for error in filter(None, (error for _, error in told)):
        print(error)
    print("lost: work that was done again, since a kill came before it was saved; away: between one job and the next")
    return 0


def find_runs(places: tuple[Path, ...]) -> list[RunFolder]:
    """Find the run folders in some places, those of jobs that have not begun too; raises ConfigError for none."""
    found: dict[Path, None] = {}
    for place in places:
        here = sorted({path.parent for name in ("journal.jsonl", SUBMISSION) for path in place.rglob(name)})
        if not here:
            raise ConfigError(f"no run in {place}; a run's folder has a journal.jsonl, a submitted one {SUBMISSION}")
        found |= dict.fromkeys(here)
    return [RunFolder(path) for path in found]


def describe(folder: RunFolder, queue: Mapping[str, str]) -> tuple[list[str], str | None]:
    """Give a run's cells of the table, and the line that tells its last error."""
    history = read_history(folder.journal)
    state, error = stands(folder, history, queue)
    told = error and f"{folder.path}: {error}"
    if history is None:
        return [str(folder.path), state, *["-"] * (len(COLUMNS) - 2)], told
    start, step, stage = history.last.start, history.newest("step") or {}, history.newest("stage") or {}
    left, rate = step.get("seconds_left"), step.get("images_per_second")
    cells = [
        str(folder.path),
        state,
        f"{stage['stage'] + 1}/{start['stages']}" if stage and "stages" in start else "-",
        f"{step.get('steps_done', 0) / start['total_steps']:.1%}" if "total_steps" in start else "-",
        "-" if left is None or state == "finished" else format_clock(left),
        "-" if rate is None else f"{rate:.0f}",
        str(len(history.sessions) - 1),
        f"{history.lost_seconds / 3600:.2f} h",
        f"{history.away_seconds / 3600:.2f} h",
    ]
    return cells, told


def stands(folder: RunFolder, history: History | None, queue: Mapping[str, str]) -> tuple[str, str | None]:
    """Tell how a run stands, or what SLURM says of its job; and the last error."""
    done = (folder.path / "results.json").exists()  # a command that evaluates trains no run, and writes no journal
    state = run_state(folder, history) if history else "finished" if done else "failed"
    if state in ("finished", "running"):
        return state, None
    start = history.last.start if history else {}
    submission = read_submission(folder.path) or {}
    for job in (submission.get("job"), start.get("job")):
        if str(job) in queue:
            return queue[str(job)], None
    if state == "stopped":
        return state, None
    error = history and history.last.newest("error")
    log = start.get("log") or submission.get("log")
    reason = error["reason"] if error else last_error(log) or "no word of why"
    where = f"log: {log}" if log else f"on {start.get('host', 'an unknown host')}"
    return state, f"{reason} ({where})"


def ask_queue() -> dict[str, str]:
    """Ask SLURM for this user's jobs: number -> state, with the reason for waiting; empty where there is no SLURM.

    A task of an array goes by its own number, as its processes know it, and by array_task.

    Raises  ConfigError if SLURM does not answer.
    """
    if shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--me", "--array", "--noheader", "--format", "%A %i %T %r"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=QUEUE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"SLURM does not answer within {QUEUE_SECONDS} s; try again later") from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"SLURM does not answer: {' '.join(error.stderr.split())}; try again later") from error
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
