"""The process beside a run that brings its journal to W&B: one run there for each run folder, for ever.

A run that was never online lies in RUN/wandb, for `wandb sync RUN/wandb/offline-run-*`. Of one that was, W&B's server
alone can tell how far it came, and `wandb sync` would send again what it has: then the next job that reaches the server
brings what is missing, from the journal.
"""

import fcntl
import json
import math
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

from mae_curriculum.cli import open_streams
from mae_curriculum.files import read_json, write_json
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.tracking.config import TrackingConfig
from mae_curriculum.tracking.journal import as_row
from mae_curriculum.tracking.wandb.datastore import newest_step
from mae_curriculum.tracking.wandb.launch import REST, without_home
from mae_curriculum.tracking.wandb.rows import (
    AXES,
    COMPARED,
    EXIT_CODES,
    Row,
    bring_facts,
    ending_after,
    metrics_of,
    position_of,
)

INIT_SECONDS, FINISH_SECONDS = 10.0, 10.0
"""For W&B's server to answer at the beginning, and to take what is left at the end."""

POLL_SECONDS = 1.0
"""Between two looks at the journal."""


def main() -> None:
    """Bring the journal over until the run says that it is over, or is gone."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # they are for the run, which says when it is over
    open_streams()
    run = open(0, "rb", buffering=0)  # noqa: SIM115 -- open as long as this process lives
    told = json.loads(run.readline())
    over = Event()

    def listen() -> None:
        run.read(1)
        over.set()

    Thread(target=listen, daemon=True).start()
    folder, tracking = RunFolder(Path(told["folder"])), TrackingConfig(**told["tracking"])
    try:
        with (folder.path / "wandb.lock").open("w") as lock:
            with suppress(OSError):  # where the file system has no such locks, there is none
                fcntl.flock(lock, fcntl.LOCK_EX)  # the process of a job that was killed may still be at it
            if is_needed(folder, tracking, over):
                bring(folder, tracking, told["config"], over)
    except Exception as error:  # W&B is no reason to end a run; the journal has it all
        say(f"warning: W&B is given up: {type(error).__name__} {error}; {REST}")


def is_needed(folder: RunFolder, tracking: TrackingConfig, over: Event) -> bool:
    """Wait for a row that W&B has not, or for the end; tells whether there is anything to bring."""
    state, ending = read_state(folder), ""
    known = state["delivered"] if tracking.wandb == "online" else known_offline(folder, state)
    for row in follow(folder.journal, over):
        if (position_of(row) or 0) > known:
            return True
        ending = ending_after(row, ending)
    return ending not in ("", state["ending"])


def bring(folder: RunFolder, tracking: TrackingConfig, config: Row, over: Event) -> None:
    """Bring rows over in the order of the journal, those of one step together, as W&B wants them."""
    begun = begin_wandb(folder, tracking, config)
    if begun is None:
        return
    run, known = begun
    try:
        ending = bring_rows(run, folder, follow(folder.journal, over), known)
    except Exception:
        with suppress(Exception):
            run.finish(1)
        raise
    if ending == "stop":
        run.mark_preempting()
    try:
        run.finish(EXIT_CODES.get(ending, 1))
    except TimeoutError:
        say(f"warning: W&B has not taken all of this run in {FINISH_SECONDS:.0f} s; {REST}")
    else:
        update_state(folder, ending=ending)
        if not run.offline:
            update_state(folder, delivered=read_state(folder)["step"])


def bring_rows(run: Any, folder: RunFolder, rows: Iterator[Row], known: int) -> str:
    """Bring rows over that are beyond a known step; returns how the last job ended, as `ending_after` tells it.

    The last rows of a job that did not end the run are left to the next job, which may have more to tell of that step.
    """
    step, metrics, ending, starts = known, Row(), "", 0
    told, noted = max(0, known), -math.inf

    def log() -> None:
        nonlocal told, noted
        if metrics:
            run.log(metrics, step=step, commit=True)
            told = step
        if time.monotonic() > noted + POLL_SECONDS:
            update_state(folder, step=told)
            noted = time.monotonic()

    for row in rows:
        position, ending = position_of(row), ending_after(row, ending)
        if position is None:
            starts += row["event"] == "start"
            bring_facts(run, row, starts)
        elif position > step:
            log()
            step, metrics = position, metrics_or_none(row, folder)
        elif position == step and metrics:
            metrics |= metrics_or_none(row, folder)
    if ending == "end":
        log()
    update_state(folder, step=told)
    return ending


def follow(journal: Path, over: Event) -> Iterator[Row]:
    """Read the rows of a journal from its beginning, and those that come, until it is over."""
    while not journal.exists():
        if over.wait(POLL_SECONDS):
            return
    rest = ""
    with journal.open(errors="replace") as lines:
        while True:
            last = over.is_set()  # before reading: all that was written until then is read
            for part in lines:
                rest += part
                if rest.endswith("\n"):
                    if row := as_row(rest):
                        yield row
                    rest = ""
            if last:
                return
            over.wait(POLL_SECONDS)


def begin_wandb(folder: RunFolder, tracking: TrackingConfig, config: Row) -> tuple[Any, int] | None:
    """Begin or go on with the W&B run of a run folder; offline if the server does not answer or wants a key.

    Returns  the run and the last step of it that W&B has; None where only the server could tell, and does not.
    """
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    state, earlier = read_state(folder), files_of(folder)
    begin = partial(
        wandb.init,
        id=state["id"],
        resume="allow",
        project=tracking.project,
        entity=tracking.entity,
        name=None if state["step"] else name_of(folder),  # later it may have been given another there
        dir=folder.path,
        config=config,
        settings=settings(),
    )
    run = begin_online(begin) if tracking.wandb == "online" else None
    if run is not None:
        say(f"W&B: {run.url}")
        mark_synced(earlier)  # all that they hold is brought by this job, or the next
        known = int(run.starting_step) - 1
        update_state(folder, online=True)
    elif state["online"]:
        say("note: W&B's server has a part of this run; the next job that reaches it brings what is missing there")
        return None
    else:
        if tracking.wandb == "online":
            say("it is logged offline, for `wandb sync`")
        mark_synced(files_of(folder) - earlier)  # what was begun online in vain
        known = known_offline(folder, state)
        run = begin(mode="offline")
        file = Path(run.settings.sync_file).resolve()
        update_state(folder, file=str(file.relative_to(folder.path.resolve())), base=known)
    for axis in AXES:
        run.define_metric(axis, hidden=True)
        for name in COMPARED:
            run.define_metric(f"{name}_by_{axis}", step_metric=axis)
    run.define_metric("*", step_metric=AXES[0])
    return run, known


def begin_online(begin: Callable[..., Any]) -> Any:
    """Begin a run at W&B's server; None if it does not answer or wants a key."""
    import wandb

    try:
        if wandb.login(prompt=False, verify=False):
            return begin(mode="online")
        say("warning: no W&B key here; `wandb login` stores one")
    except Exception as error:  # no answer, a key that is none, ...
        say(f"warning: W&B does not take this run now: {error}")
        wandb.teardown()  # what was begun holds the run's id
    return None


def settings() -> Any:
    """Give W&B's own settings."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        # nothing of this machine or account goes there but what the journal tells
        disable_code=True,
        disable_git=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=1.0,  # seconds: what a kill can cost
    )


def files_of(folder: RunFolder) -> set[Path]:
    """List W&B's own files of a run."""
    return {*folder.path.glob("wandb/*run-*/*.wandb")}


def mark_synced(files: set[Path]) -> None:
    """Keep `wandb sync` from sending files, as it does itself once they are sent."""
    for path in files:
        path.with_name(f"{path.name}.synced").touch()


def known_offline(folder: RunFolder, state: Row) -> int:
    """Tell the last step that the offline files hold: the newest, or what was there before it; ours if it is gone."""
    newest = state["file"] and folder.path / state["file"]
    if newest and newest.exists():
        return int(max(state["base"], newest_step(newest)))
    return int(state["step"])


def name_of(folder: RunFolder) -> str:
    """Name a run by the end of its folder's path: those of a pipeline's variants or of several seeds share the last."""
    return "/".join(Path(without_home(str(folder.path.resolve()))).parts[-3:]).lstrip("/")


def say(line: str) -> None:
    """Print a line for the user, below the bar where there is one."""
    print("\n" * sys.stderr.isatty() + line, file=sys.stderr, flush=True)


def metrics_or_none(row: Row, folder: RunFolder) -> Row:
    """Give the metrics of a row; none, with a warning, of one that cannot be shown."""
    try:
        return metrics_of(row, folder)
    except Exception as error:  # a picture that was damaged, say
        say(f"warning: no {row['event']} of step {row['steps_done']} at W&B: {type(error).__name__} {error}")
        return {}


def read_state(folder: RunFolder) -> Row:
    """Read what stands in RUN/wandb.json.

    id         of the run at W&B, for ever
    step       the last step that it was told
    online     whether its server has any of the run
    delivered  the last step that the server has taken for sure
    file       the newest file of an offline job
    base       the last step that W&B had before that file
    ending     how the last job ended that it was told of
    """
    path = folder.path / "wandb.json"
    state: Row = {"step": 0, "online": False, "delivered": 0, "file": None, "base": 0, "ending": ""}
    if not path.exists():
        write_json(path, {"id": uuid.uuid4().hex[:12]})
    known: Row = read_json(path)
    return state | known


def update_state(folder: RunFolder, **changes: Any) -> None:
    """Change what stands there."""
    with suppress(OSError):  # a full disk: the next change tells this one too, or W&B's own file does
        write_json(folder.path / "wandb.json", read_state(folder) | changes)


if __name__ == "__main__":
    main()
