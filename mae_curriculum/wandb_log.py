"""W&B: one run there for each run folder, for ever, told what the journal is told; training never waits for it.

A thread of its own brings rows over, so that neither the import, nor a server that does not answer, nor a key that is
missing holds up a step. Without network or key the files lie in RUN/wandb, for `wandb sync RUN/wandb/offline-run-*`.
What W&B has of the run is W&B's to tell, so that a killed job leaves no hole there: the server, or else its files.
"""

import json
import sys
import uuid
from itertools import chain, takewhile
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from mae_curriculum.checkpoint import RunFolder, read_json, write_json
from mae_curriculum.config import ConfigError, plain
from mae_curriculum.tracking import Journal, Mode, TrackingConfig
from mae_curriculum.wandb_files import newest_step

AXES = ("images", "epochs", "flops", "train_seconds")
"""Against which curves are drawn: curricula compare at equal images and at equal cost."""

COMPARED = ("loss", "val_loss", "knn", "accuracy")
"""Drawn against each axis; other metrics against images."""

INIT_SECONDS = 15.0
"""For W&B's server to answer, before this job's part of the run is logged offline."""

FINISH_SECONDS, CLOSE_SECONDS = 10.0, 15.0
"""For what is left to be uploaded at the end, and for the end in all: a job that was asked to stop has about 30."""

EXIT_CODES = {"end": 0, "stop": 75, "error": 2}
"""By how a job ended: W&B shows the run as finished, preempted or failed. It is failed, too, without any word."""

Row = dict[str, Any]


class WandbLog:
    """Brings a run's rows to W&B."""

    def __init__(self, folder: RunFolder, tracking: TrackingConfig, config: Any) -> None:
        """Log the run of a folder; raises ConfigError if wandb is not installed.

        config  the run's settings, as W&B shows them.
        """
        try:
            import wandb  # noqa: F401 -- not by the thread, while the loader's processes are forked
        except ImportError as error:
            wanted = "tracking.wandb needs the package wandb: pip install wandb, or --tracking.wandb disabled"
            raise ConfigError(wanted) from error
        self._folder, self._tracking, self._config = folder, tracking, config
        self._rows: SimpleQueue[Row | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._first: Row = {}
        """The first row that this job wrote: those before are other jobs'."""
        self._given_up = False
        self._ending = ""
        """The event that ended this job: end, stop or error."""

    def take(self, row: Row) -> None:
        """Take a row of the journal over. W&B begins with the first step, once the loader's processes are forked.

        What the journal has and W&B has not, from a job that was killed or did without, is brought over first.
        """
        if self._given_up:
            return
        self._first = self._first or row
        self._rows.put(row)
        if row["event"] in EXIT_CODES:
            self._ending = row["event"]
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
                self._finish(run)
        except Exception as error:  # W&B is no reason to end a run; the journal has it all
            self._given_up = True
            say(f"warning: W&B is given up: {type(error).__name__} {error}")

    def _finish(self, run: Any) -> None:
        """End this job's part of the run, with the state that W&B is to show."""
        if self._ending == "stop":
            run.mark_preempting()
        try:
            run.finish(EXIT_CODES.get(self._ending, 1))
        except TimeoutError:
            folder = Path(run.settings.sync_dir)
            rest = f"`wandb sync --include-online {folder}` brings" if self._ending == "end" else "its next job brings"
            say(f"warning: W&B has not taken all of this run in {FINISH_SECONDS:.0f} s; {rest} the rest")

    def _bring_all(self, run: Any) -> None:
        """Bring rows over in the order of the journal, those of one step together, as W&B wants them."""
        step = known = last_known(run, self._folder)
        metrics: Row = {}

        def log() -> None:
            if metrics:
                run.log(metrics, step=step, commit=True)
                write_json(state_path(self._folder), {"id": run.id, "step": step})

        journal = Journal(self._folder.journal).rows()
        earlier = takewhile(lambda row: any(row[key] != self._first[key] for key in ("event", "time")), journal)
        later = iter(self._rows.get, None)
        for row in chain((row for row in earlier if (position_of(row) or 0) > known), later):
            position = position_of(row)
            if position is None:
                bring_facts(run, row)
            elif position > step:
                log()
                step, metrics = position, metrics_of(row)
            elif position == step and metrics:
                metrics |= metrics_of(row)
        log()


def begin_wandb(folder: RunFolder, tracking: TrackingConfig, config: Any) -> Any:
    """Begin or go on with the W&B run of a run folder; offline if the server does not answer or wants a key."""
    import wandb  # only now: it takes a second, and most runs do without

    state = read_state(folder)

    def begin(mode: Mode) -> Any:
        return wandb.init(
            id=state["id"],
            resume="allow",
            mode=mode,
            project=tracking.project,
            entity=tracking.entity,
            name=None if state["step"] else name_of(folder),  # later it may have been given another there
            dir=folder.path,
            config=without_home(plain(config)),
            settings=settings,
        )

    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        reinit="create_new",  # whatever else this process does with W&B, such as another seed's run
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
    wandb.setup(wandb.Settings(silent=True))
    try:
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            say("warning: no W&B key here, so W&B is logged offline; `wandb login` stores one")
            mode = "offline"
        run = begin(mode)
    except Exception as error:  # no answer, a key that is none, ...
        if mode == "offline":
            raise
        say(f"warning: W&B does not answer ({error}); it is logged offline")
        wandb.teardown()  # what was begun holds the run's id
        run = begin("offline")
    if not run.offline:
        say(f"W&B: {run.url}")
    for axis in AXES:
        run.define_metric(axis, hidden=True)
        for name in COMPARED:
            run.define_metric(f"{name}_by_{axis}", step_metric=axis)
    run.define_metric("*", step_metric=AXES[0])
    return run


def name_of(folder: RunFolder) -> str:
    """Name a run by the end of its folder's path: those of a pipeline's variants or of several seeds share the last."""
    return "/".join(folder.path.resolve().parts[1:][-3:])


def say(line: str) -> None:
    """Print a line for the user."""
    print(line, file=sys.stderr, flush=True)


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
            run.summary["ending"] = "finished"
        case {"event": "stop" | "error", "reason": reason}:
            run.summary["ending"] = without_home(reason)


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


def last_known(run: Any, folder: RunFolder) -> int:
    """Tell the last step of the run that W&B has: by its server, its files, or if they were cleared away, our word."""
    if not run.offline:
        return int(run.starting_step) - 1
    step = newest_step(folder.path)
    return int(read_state(folder)["step"]) if step is None else step


def state_path(folder: RunFolder) -> Path:
    """Tell where the run's id at W&B stands, which it keeps for ever, and up to which step it was told to W&B."""
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
