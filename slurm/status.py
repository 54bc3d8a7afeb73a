"""`status`: the state of runs, read from their folders and, where there is SLURM, from its queue."""

import logging
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from mae_curriculum.config import ConfigError
from mae_curriculum.run.folder import SUBMISSION, RunFolder, no_run
from mae_curriculum.terminal import format_clock, format_duration, format_table, printable
from mae_curriculum.tracking.history import History, read_history, run_state
from slurm.cluster import last_message, read_submission, submitted_jobs

logger = logging.getLogger(__name__)

COLUMNS = ["run", "state", "stage", "progress", "left", "images/s", "restarts", "lost", "downtime"]

NO_PROGRESS = ["-"] * (len(COLUMNS) - 2)
"""The columns after the state, where nothing is known."""

QUEUE_SECONDS = 20
"""Timeout of a question to SLURM."""

MAX_LOG_BYTES = 100_000
"""How much of the end of a log is searched for an error."""

CAUSES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        "^error: (?!.*(connection (closed|reset)|NCCL))",
        r"tasks? \S+ (killed|out of memory)|oom.kill",
        "error|killed|out of memory|cancelled",
    )
)
"""Lines of a log that tell why a job failed, the most telling first: of the command, of SLURM, of anything."""

CONSEQUENCE = re.compile("Exited with exit code|ended with exit code|triggered an exception")
"""Lines of a log that follow from an error that others name."""

DISCONNECTED = re.compile("connection (closed|reset)|NCCL", re.IGNORECASE)
"""What a process reports when another one has died."""


@dataclass(frozen=True)
class StatusConfig:
    """Show the state of runs: `python -m slurm status [RUN...]`."""

    runs: tuple[Path, ...] = (Path("runs"),)
    """Run folders, or folders that contain them."""


def status(config: StatusConfig) -> int:
    """Print a line per run, then the errors of those that failed; returns the exit code."""
    folders = find_runs(config.runs)
    try:
        queue = read_queue()
    except ConfigError as no_answer:
        logger.warning(f"{no_answer}; these are the states of the run folders alone")
        queue = {}
    lines = [COLUMNS]
    errors = []
    for folder in folders:
        try:
            history = read_history(folder.journal)
            state, error = state_and_error(folder, history, queue)
            cells = [state, *format_progress(history, state)]
        except Exception as odd:  # whatever somebody left there, the other runs are shown
            cells, error = ["unreadable", *NO_PROGRESS], f"{type(odd).__name__}: {odd}"
        lines.append([str(folder.path), *cells])
        if error:
            errors.append(printable(f"{folder.path}: {error}"))
    print(format_table(lines), *errors, sep="\n")
    print("lost: work redone because a kill came before it was saved; downtime: time between jobs")
    return 0


def find_runs(places: tuple[Path, ...]) -> list[RunFolder]:
    """Find the run folders below some folders, including those of jobs that have not started.

    Raises  ConfigError for a folder without runs.
    """
    found: dict[Path, None] = {}
    for place in places:
        here = {path.parent for name in ("journal.jsonl", SUBMISSION) for path in place.rglob(name)}
        if not here:
            raise ConfigError(no_run(place))
        found |= dict.fromkeys(sorted(here))
    return [RunFolder(path) for path in found]


def format_progress(history: History | None, state: str) -> list[str]:
    """Format the columns of a run after its state."""
    if history is None:
        return NO_PROGRESS
    start = history.last.start
    step = history.newest("step") or {}
    stage = history.newest("stage")
    left = step.get("seconds_left")
    rate = step.get("images_per_second")
    return [
        f"{stage['stage'] + 1}/{start['stages']}" if stage and "stages" in start else "-",
        f"{step.get('steps_done', 0) / start['total_steps']:.1%}" if "total_steps" in start else "-",
        "-" if left is None or state == "finished" else format_clock(left),
        "-" if rate is None else f"{rate:.0f}",
        str(len(history.sessions) - 1),
        format_duration(history.lost_seconds),
        format_duration(history.away_seconds),
    ]


def state_and_error(folder: RunFolder, history: History | None, queue: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the state of a run, or of its job while it is in the queue; and the error if the run failed or died."""
    if history:
        state = run_state(folder, history)
    else:  # an evaluation writes no journal
        state = "finished" if (folder.path / "results.json").exists() else "failed"
    if state in ("finished", "running"):
        return state, None
    start = history.last.start if history else {}
    for job in (*submitted_jobs(folder.path), str(start.get("job"))):
        if job in queue:
            return queue[job], None
    if state == "stopped":
        return state, None
    error = history.last.newest("error") if history else None
    log = start.get("log") or read_submission(folder.path).get("log")
    reason = error["reason"] if error and not DISCONNECTED.search(error["reason"]) else last_error(log)
    if log and not history and not Path(log).exists():
        return state, "its job never started: it was canceled, or what it waited for failed"
    where = f"log: {log}" if log else f"on {start.get('host', 'an unknown host')}"
    return state, f"{reason or 'no error message'} ({where})"


def read_queue() -> dict[str, str]:
    """Ask SLURM for the states of this user's jobs by id, with the reason for waiting; empty if there is no SLURM.

    A task of an array is listed by its own id, as its processes know it, and as ARRAY_INDEX.

    Raises  ConfigError if SLURM does not answer.
    """
    if shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--me", "--array", "--noheader", "--format", "%A %i %T %r"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=QUEUE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"SLURM does not answer within {QUEUE_SECONDS} s; try again later") from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"SLURM does not answer: {last_message(error.stderr)}; try again later") from error
    queue: dict[str, str] = {}
    for line in answer.stdout.splitlines():
        own_id, array_id, state, reason = line.split(maxsplit=3)
        reason = shorten(reason, 40, placeholder=" ...")  # SLURM has some of a hundred letters
        text = f"pending ({reason})" if state == "PENDING" and reason != "None" else state.lower()
        queue |= {own_id: text, array_id: text}
    return queue


def last_error(log: str | None) -> str | None:
    """Return the line of a log that tells best why its last job failed; None if there is none."""
    path = Path(log or "")
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - MAX_LOG_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if "Starting with JobEnvironment" in line]
    last = [line.strip() for line in reversed(lines[starts[-1] if starts else 0 :]) if not CONSEQUENCE.search(line)]
    found = (next(filter(pattern.search, last), None) for pattern in CAUSES)
    return next(filter(None, found), None)
