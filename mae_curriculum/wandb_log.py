"""W&B: one run there for each run folder, for ever, told what the journal is told; training never waits for it.

A thread of its own brings rows over, so that neither the import, nor a server that does not answer, nor a key that is
missing holds up a step. Without network or key the files lie in RUN/wandb, for `wandb sync RUN/wandb/offline-run-*`.
"""

import json
import sys
import uuid
from importlib.util import find_spec
from itertools import chain, takewhile
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from mae_curriculum.checkpoint import RunFolder, read_json, write_json
from mae_curriculum.config import ConfigError, plain
from mae_curriculum.tracking import Journal, Mode, TrackingConfig

AXES = ("images", "epochs", "flops", "train_seconds")
"""Against which curves are drawn: curricula compare at equal images and at equal cost."""

COMPARED = ("loss", "val_loss", "knn", "accuracy")
"""Drawn against each axis; other metrics against images."""

INIT_SECONDS = 15.0
"""For W&B's server to answer, before this job's part of the run is logged offline."""

FINISH_SECONDS, CLOSE_SECONDS = 10.0, 15.0
"""For what is left to be uploaded at the end, and for the end in all: a job that was asked to stop has about 30."""

Row = dict[str, Any]


class WandbLog:
    """Brings a run's rows to W&B."""

    def __init__(self, folder: RunFolder, tracking: TrackingConfig, config: Any) -> None:
        """Log the run of a folder; raises ConfigError if wandb is not installed.

        config  the run's settings, as W&B shows them.
        """
        if find_spec("wandb") is None:
            raise ConfigError("tracking.wandb needs the package wandb: pip install wandb, or --tracking.wandb disabled")
        self._folder, self._tracking, self._config = folder, tracking, config
        self._rows: SimpleQueue[Row | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._began: float | None = None
        """When this job wrote its first row: those before are other jobs'."""
        self._given_up = False

    def take(self, row: Row) -> None:
        """Take a row of the journal over. W&B begins with the first step, once the loader's processes are forked.

        What the journal has and W&B has not, from a job that was killed or did without, is brought over first.
        """
        if self._given_up:
            return
        self._began = self._began or row["time"]
        self._rows.put(row)
        if self._thread is None and row["event"] == "step":
            self._thread = Thread(target=self._work, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Bring over what is left, for a few seconds."""
        self._rows.put(None)
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        try:
            run = begin_wandb(self._folder, self._tracking, self._config)
            try:
                self._bring_all(run)
            finally:
                run.finish()
        except Exception as error:  # W&B is no reason to end a run; the journal has it all
            self._given_up = True
            print(f"warning: W&B is given up: {type(error).__name__} {error}", file=sys.stderr, flush=True)

    def _bring_all(self, run: Any) -> None:
        """Bring rows over in the order of the journal, those of one step together, as W&B wants them."""
        state = read_state(self._folder)
        known = state["step"]
        journal = Journal(self._folder.journal).rows()
        earlier = takewhile(lambda row: row["time"] < (self._began or 0), journal)
        later = iter(self._rows.get, None)
        metrics: Row = {}
        for row in chain((row for row in earlier if (position_of(row) or 0) > known), later):
            position = position_of(row)
            if position is None:
                bring_facts(run, row)
            elif position >= state["step"]:
                if position > state["step"] and metrics:
                    run.log(metrics, step=state["step"], commit=True)
                    metrics = {}
                    write_json(state_path(self._folder), state)  # only what was logged counts, should a kill come now
                state["step"] = position
                metrics |= metrics_of(row)
        if metrics:
            run.log(metrics, step=state["step"], commit=True)
        write_json(state_path(self._folder), state)


def begin_wandb(folder: RunFolder, tracking: TrackingConfig, config: Any) -> Any:
    """Begin or go on with the W&B run of a run folder; offline if the server does not answer or wants a key."""
    import wandb  # only now: it takes a second, and most runs do without

    def begin(mode: Mode) -> Any:
        return wandb.init(
            id=read_state(folder)["id"],
            resume="allow",
            mode=mode,
            project=tracking.project,
            entity=tracking.entity,
            name=folder.path.name,
            dir=folder.path,
            config=without_home(plain(config)),
            settings=settings,
        )

    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        # nothing of this machine or account goes there but what is told below
        disable_code=True,
        disable_git=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=1.0,  # seconds: what a kill can cost
    )
    mode: Mode = tracking.wandb
    try:
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            print("warning: no W&B key here, so W&B is logged offline; `wandb login` stores one", file=sys.stderr)
            mode = "offline"
        run = begin(mode)
    except Exception as error:  # no answer, a key that is none, ...
        if mode == "offline":
            raise
        print(f"warning: W&B does not answer ({error}); it is logged offline", file=sys.stderr, flush=True)
        wandb.teardown()  # what was begun holds the run's id
        run = begin("offline")
    for axis in AXES:
        run.define_metric(axis, hidden=True)
        for name in COMPARED:
            run.define_metric(f"{name}_by_{axis}", step_metric=axis)
    run.define_metric("*", step_metric=AXES[0])
    return run


def position_of(row: Row) -> int | None:
    """Tell at which optimizer step W&B shows a row: W&B itself would count from 0 in each job. None for other rows."""
    match row:
        case {"event": "step", "step": step}:
            return int(step) + 1
        case {"event": "evaluation" | "pictures", "step": step}:
            return int(step)
    return None


def bring_facts(run: Any, row: Row) -> None:
    """Tell W&B what a row tells of the whole run."""
    match row:
        case {"event": "start", "step": step}:
            run.config.update({f"start_at_{step}": without_home(row)}, allow_val_change=True)
        case {"event": "end"}:
            run.summary.update({key: value for key, value in row.items() if isinstance(value, int | float)})


def metrics_of(row: Row) -> Row:
    """Give the metrics of a row: its numbers, a size by its sides, each activity's share of all time."""
    if row["event"] == "pictures":
        import wandb

        return {"pictures": [wandb.Image(str(path)) for path in row["files"]]}
    numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
    if row["event"] == "evaluation":  # its loss is that of other images
        renamed = {"val_loss" if key == "loss" else key: value for key, value in numbers.items()}
        return compared({key: value for key, value in renamed.items() if key in COMPARED})
    height, width = row["size"]
    spent = {key.removesuffix("_seconds"): value for key, value in numbers.items() if key.endswith("_seconds")}
    shares = {f"share_{key}": value / sum(spent.values()) for key, value in spent.items()}
    return compared({**numbers, "size": height, "width": width, **shares})


def compared(metrics: Row) -> Row:
    """Add those metrics that are drawn against each axis."""
    known = [name for name in COMPARED if metrics.get(name) is not None]
    return metrics | {f"{name}_by_{axis}": metrics[name] for name in known for axis in AXES}


def state_path(folder: RunFolder) -> Path:
    """Tell where the run's id at W&B stands, which it keeps for ever, and how many of its steps are there."""
    return folder.path / "wandb.json"


def read_state(folder: RunFolder) -> Row:
    """Read what `state_path` tells; a new id and no steps where there is nothing yet."""
    path = state_path(folder)
    if not path.exists():
        write_json(path, {"id": uuid.uuid4().hex[:12], "step": 0})
    state: Row = read_json(path)
    return state


def without_home(tree: Any) -> Any:
    """Spell the user's home folder ~ wherever it stands."""
    return json.loads(json.dumps(tree, default=str).replace(str(Path.home()), "~"))
