"""Upload a run's journal to Weights & Biases from a process beside the run, so that training never waits for W&B.

Each run folder is one W&B run. Online, the upload continues after the last step that W&B has. Offline, each job writes
the steps since the last job into RUN/wandb/offline-run-*, for `wandb sync`; the next job replaces a folder that a kill
left incomplete. Once a run was online, offline folders are removed: online jobs upload whatever W&B has not.
"""

import fcntl
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from select import select
from typing import Any

from mae_curriculum.config import ConfigError, plain
from mae_curriculum.files import read_json, write_json
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.terminal import configure_logging
from mae_curriculum.tracking.config import TrackingConfig
from mae_curriculum.tracking.journal import as_row

logger = logging.getLogger("mae_curriculum.tracking.wandb")  # __name__ is "__main__" in the process beside the run
Row = dict[str, Any]

CLOSE_SECONDS = 15.0
"""Longest wait for the upload when a run stops early: SLURM kills a stopped job after about 30 s."""
FINAL_SECONDS = 60.0
"""Longest wait for the upload once a run is complete."""
SERVER_SECONDS = 10
"""Longest wait for W&B's server, at the start and at the end."""
RETRY_HINT = "rerun the same command to upload the rest"
METRIC_EVENTS = ("step", "evaluation", "pictures")
EXIT_CODES = {"end": 0, "stop": 75, "error": 2}
"""By the event that ended a job: W&B shows the run as finished, preempted or failed."""


def require_wandb() -> None:
    """Raise ConfigError if wandb is not installed."""
    if getattr(find_spec("wandb"), "origin", None) is None:  # a plain folder named wandb is found too
        raise ConfigError("tracking.wandb needs the package wandb: pip install wandb, or --tracking.wandb disabled")


def log_to_wandb(folder: RunFolder, tracking: TrackingConfig, config: Any) -> Callable[[], None]:
    """Start uploading a run's journal to W&B, unless disabled; return the function that ends the upload.

    config  the run's settings, shown at W&B with the home folder replaced by ~.
    """
    if tracking.wandb == "disabled":
        return lambda: None
    request = {"folder": str(folder.path), "tracking": plain(tracking), "config": without_home(plain(config))}
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # of another process
    environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    environment |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}  # reports delay the exit if offline
    program = [sys.executable, "-m", "mae_curriculum.tracking.wandb"]
    try:  # in a session of its own, as signals that stop the run must not end the upload
        process = subprocess.Popen(program, bufsize=0, env=environment, stdin=subprocess.PIPE, start_new_session=True)
        assert process.stdin is not None
        process.stdin.write(f"{json.dumps(request)}\n".encode())
    except OSError as error:  # a failure of W&B must not end a run
        logger.warning(f"W&B failed: {error}; {RETRY_HINT}")
        return lambda: None
    return partial(_end_upload, process, folder)


def _end_upload(process: subprocess.Popen[bytes], folder: RunFolder) -> None:
    assert process.stdin is not None
    if process.stdin.closed:  # a second call
        return
    with suppress(BrokenPipeError):  # the process has ended
        process.stdin.write(b"over\n")
    process.stdin.close()
    try:
        exit_code = process.wait(FINAL_SECONDS if folder.summary.exists() else CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        exit_code = process.wait()
    if exit_code:
        logger.warning(f"W&B did not receive all of this run (exit code {exit_code}); {RETRY_HINT}")


def main() -> None:
    """Upload the journal of the run that stdin names, until that run is over."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the run handles them
    configure_logging(below_bar=True)
    with open(0, "rb", buffering=0, closefd=False) as pipe:
        request = json.loads(pipe.readline())
    os.chdir(request["folder"])  # W&B records where it runs, and shall not see the path of the home folder
    folder = RunFolder(Path())
    try:
        with (folder.path / "wandb.lock").open("w") as lock:
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(lock, fcntl.LOCK_EX)  # the upload of a killed job may still be running
            upload(folder, TrackingConfig(**request["tracking"]), request["config"])
    except Exception as error:  # a failure of W&B must not end a run
        logger.warning(f"W&B failed: {type(error).__name__} {error}; {RETRY_HINT}")


def upload(folder: RunFolder, tracking: TrackingConfig, config: Row) -> None:
    """Upload what the journal has and W&B has not, until the run is over; nothing if there is nothing new."""
    file = folder.path / "wandb.json"
    state: Row = {"id": uuid.uuid4().hex[:12], "uploaded_rows": 0, "online": False, "unfinished": None}
    state |= read_json(file) if file.exists() else {}
    rows = follow(folder.journal)
    uploaded = list(islice(rows, state["uploaded_rows"]))
    new = next(rows, None)
    if new is None:
        return
    write_json(file, state)
    run = start_run(folder, tracking, config, state)
    if run is None:
        return
    directory = Path(run.dir).parent
    last_step = max((row["steps_done"] for row in uploaded if row["event"] in METRIC_EVENTS), default=0)
    if not run.offline:
        logger.info(f"W&B: {run.url}")
        last_step = max(0, run.starting_step - 1)
        for outdated in {*directory.parent.glob("*run-*")} - {directory}:
            shutil.rmtree(outdated)
    state |= {"online": not run.offline, "unfinished": directory.name if run.offline else None}
    write_json(file, state)
    run.define_metric("*", step_metric="images")  # curricula compare at equal images
    ending, row_count = log_rows(run, folder, chain(uploaded, [new], rows), last_step)
    if ending == "stop":
        run.mark_preempting()
    signal.alarm(SERVER_SECONDS)  # ends this process
    run.finish(EXIT_CODES.get(ending, 1))
    write_json(file, state | {"unfinished": None, "uploaded_rows": max(row_count, len(uploaded))})


def follow(journal: Path) -> Iterator[Row]:
    """Read the rows of a journal from its beginning, and those that are added until stdin is written or closed."""
    line, is_last = "", False
    with journal.open("a+", errors="replace") as lines:  # created if missing
        lines.seek(0)
        while not is_last:
            is_last = bool(select([0], [], [], 1.0)[0])  # before reading, so that no row is missed
            for part in lines:
                line += part
                if line.endswith("\n"):
                    if row := as_row(line):
                        yield row
                    line = ""


def start_run(folder: RunFolder, tracking: TrackingConfig, config: Row, state: Row) -> Any:
    """Start or resume the W&B run of a run folder, offline if the server is not available.

    Returns  None if the server is not available but has a part of this run: an offline folder would repeat that part.
    """
    import wandb

    # beyond the journal, W&B gets facts about the machine, but none about the account or the code
    hidden: Row = {"disable_code": True, "disable_git": True, "save_code": False, "email": ""}
    settings = wandb.Settings(silent=True, console="off", init_timeout=SERVER_SECONDS, **hidden)
    name = None if state["online"] else "/".join(Path(without_home(folder.path.resolve())).parts[-3:]).lstrip("/")
    where = {"id": state["id"], "name": name, "project": tracking.project, "entity": tracking.entity}
    start = partial(wandb.init, **where, resume="allow", dir=".", config=config, settings=settings)
    if tracking.wandb == "online":
        try:
            return start(mode="online")
        except Exception as error:  # no key, a wrong key, no answer
            logger.warning(f"W&B is not available, so this job is not uploaded now: {error}")
            wandb.teardown()
    if state["online"]:
        logger.info("W&B has a part of this run; the next job that reaches it uploads the rest")
        return None
    if state["unfinished"]:
        shutil.rmtree(folder.path / "wandb" / state["unfinished"], ignore_errors=True)
    return start(mode="offline")


def log_rows(run: Any, folder: RunFolder, rows: Iterator[Row], last_step: int) -> tuple[str, int]:
    """Log the rows after a step; return the event that ended the last job ("" if none) and the number of rows done.

    W&B takes each step once, so all rows of a step are logged together. A job that does not end the run leaves its last
    step to the next job, which may add an evaluation.
    """
    step, metrics, ending = last_step, Row(), ""
    count = done_count = 0
    for count, row in enumerate(rows, start=1):
        if row["event"] in ("start", *EXIT_CODES):
            ending = row["event"]
            update_run(run, row)
        elif row["event"] in METRIC_EVENTS and row["steps_done"] > last_step:
            if row["steps_done"] > step:
                if metrics:
                    run.log(metrics, step=step)
                step, metrics, done_count = row["steps_done"], {}, count - 1
            try:
                metrics |= metrics_of(row, folder)
            except Exception as error:  # such as a damaged picture
                logger.warning(f"no {row['event']} of step {step} at W&B: {type(error).__name__} {error}")
    if ending == "end" and metrics:
        run.log(metrics, step=step)
    return ending, count if ending == "end" else done_count


def update_run(run: Any, row: Row) -> None:
    """Update config and summary of the W&B run when a job starts or ends."""
    match row:
        case {"event": "start"}:
            run.config.update({"start": without_home(row)}, allow_val_change=True)
            run.summary["ending"] = None
        case {"event": "end"}:
            run.summary.update({key: value for key, value in row.items() if isinstance(value, int | float)})
            run.summary["ending"] = "finished"
        case {"reason": reason}:
            run.summary["ending"] = without_home(reason)


def metrics_of(row: Row, folder: RunFolder) -> Row:
    """Return the metrics of a row: pictures, or its numbers with the share of time spent on each activity."""
    if row["event"] == "pictures":
        import wandb

        paths = [folder.path / "pictures" / Path(path).name for path in row["files"]]  # the folder may have been moved
        return {"pictures": [wandb.Image(str(path)) for path in paths if path.exists()]}
    metrics = {key: value for key, value in row.items() if isinstance(value, int | float)}
    del metrics["time"], metrics["steps_done"]  # W&B has its own
    if row["event"] == "step":
        metrics["size"], metrics["width"] = row["size"]
        seconds = {key.removesuffix("_seconds"): value for key, value in metrics.items() if key.endswith("_seconds")}
        metrics |= {f"share_{activity}": value / sum(seconds.values()) for activity, value in seconds.items()}
    return metrics


def without_home(value: Any) -> Any:
    """Replace the user's home folder by ~ in all strings and paths of nested dicts and lists."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    with suppress(RuntimeError):  # a user without a home folder, as in containers
        for home in sorted({str(Path.home()), str(Path.home().resolve())} - {"/"}, key=len, reverse=True):
            text = re.sub(rf"{re.escape(json.dumps(home, ensure_ascii=False)[1:-1])}(?![\w.-])", "~", text)
    return json.loads(text)


if __name__ == "__main__":
    main()
