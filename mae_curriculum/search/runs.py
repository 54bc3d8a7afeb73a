"""The training runs of a search: their settings, how they are shared among jobs, and what each came to."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from mae_curriculum.config import ConfigError, load_file
from mae_curriculum.distributed import World
from mae_curriculum.files import rename_into_place, temporary_name, write_json
from mae_curriculum.run.checkpoint import steps_of
from mae_curriculum.run.folder import RunFolder, read_facts
from mae_curriculum.run.lock import InUseError, hold_in_turn, is_held
from mae_curriculum.run.stop import Stop, StoppedError
from mae_curriculum.search.config import C
from mae_curriculum.search.methods import Candidate
from mae_curriculum.tracking.journal import Journal
from mae_curriculum.training.anomalies import DivergedError
from mae_curriculum.training.config import TrainingConfig
from mae_curriculum.training.loop import raise_if_stopped
from mae_curriculum.weights.read import find_kept

T = TypeVar("T")

DIVERGED = "diverged.json"
"""File in the folder of a run that diverged, so that no job tries it again."""

WAIT_SECONDS = 5
"""Time between two looks at what other jobs are at work on."""


def run_folder(search: Path, candidate: Candidate, seed: int) -> Path:
    """Return the run folder of a candidate."""
    return search / "runs" / f"{candidate.name}-seed{seed}"


def prepare_run(world: World, search: Path, training: C, candidate: Candidate, seed: int, *, command: str) -> C:
    """Return the settings of a candidate's run; its folder is there if it is a fork.

    command  that trains it: "pretrain" or "finetune".
    """
    config = configure_run(search, training, candidate, seed)
    if candidate.previous:
        parent, epochs = RunFolder(run_folder(search, candidate.previous, seed)), candidate.previous.kept_epochs
        assert epochs is not None, "what others are forked from keeps a checkpoint"
        world.on_main(partial(fork_once, search, parent, epochs, config, command=command))
    return config


def configure_run(search: Path, training: C, candidate: Candidate, seed: int) -> C:
    """Return the settings of a candidate's run."""
    config = replace(
        training,
        run=run_folder(search, candidate, seed),
        seed=seed,
        curriculum=candidate.curriculum,
        epochs=candidate.epochs,
    )
    if candidate.kept_epochs:
        config = replace(config, saving=replace(config.saving, keep_every_epochs=candidate.kept_epochs))
    return config


def fork_once(search: Path, parent: RunFolder, epochs: int, config: TrainingConfig, *, command: str) -> None:
    """Copy a run as `fork_run` does, unless this or another job has copied it before."""
    if config.run.exists():
        return
    with hold_in_turn(RunFolder(search).lock):
        if not config.run.exists():
            fork_run(parent, epochs, config, command=command)


def fork_run(parent: RunFolder, epochs: int, config: TrainingConfig, *, command: str) -> None:
    """Copy a run as it was when it kept a checkpoint, to go on with another curriculum.

    The curricula agree up to there, and schedules are functions of progress alone: the copy is what a run with the new
    curriculum would have become. Only what a run keeps besides, such as a classifier's best weights, starts anew.

    epochs  equivalent epochs after which the checkpoint was kept.
    config  whose run folder and curriculum the copy has.
    """
    checkpoint = find_kept(parent, epochs)
    step = steps_of(checkpoint)
    copy = RunFolder(temporary_name(config.run))
    shutil.rmtree(copy.path, ignore_errors=True)  # what a kill left
    settings = replace(load_file(type(config), parent.config), run=config.run, curriculum=config.curriculum)
    copy.claim(settings, command=command)
    shutil.copy(checkpoint, copy.path / "checkpoints")
    rows = [*takewhile(partial(is_within, step), Journal(parent.journal).rows())]
    stop = {"event": "stop", "time": rows[-1]["time"], "steps_done": step, "reason": f"forked from {parent.path}"}
    copy.journal.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, stop]))
    rename_into_place(copy.path, config.run)


def is_within(steps: int, row: Mapping[str, Any]) -> bool:
    """Return whether a journal's row tells of the first steps of a run; that of a stage comes before its first step."""
    done = row.get("steps_done", 0)
    return bool(done < steps if row["event"] == "stage" else done <= steps)


def share(tasks: Sequence[T], work: Callable[[T], float], *, wait: Callable[[], None]) -> dict[T, float]:
    """Do each task, and come back to those that other jobs are at work on; returns the results.

    work  returns the result of a task, at once if it is known; raises InUseError if another job is at work on it.
    wait  called before coming back.
    """
    done: dict[T, float] = {}
    while True:
        for task in tasks:
            if task not in done:
                with suppress(InUseError):
                    done[task] = work(task)
        if len(done) == len(tasks):
            return done
        wait()


def wait_for_others(stop: Stop, world: World) -> None:
    """Wait a little for other jobs; raises StoppedError if asked to stop."""
    for _ in range(WAIT_SECONDS):
        raise_if_stopped(stop, world)
        time.sleep(1)


def finish_run(
    stop: Stop, world: World, config: C, train: Callable[[C], dict[str, Any] | None]
) -> dict[str, Any] | None:
    """Return the summary of a run, which is read if it has finished, else trained or resumed; None if it diverged.

    train   trains a run or resumes it; returns its summary, None if it was asked to stop.
    Raises  StoppedError if it was asked to stop, InUseError if another job is at work on the run.
    """
    facts: dict[str, Any] | None
    facts, held = world.on_main(partial(read_state, config))
    if not facts:
        raise_if_stopped(stop, world)
        if held:
            raise InUseError(f"{config.run} is in use")
        try:
            facts = train(config)
        except DivergedError as error:
            world.log(f"{config.run} has no score and loses: {error}")
            facts = world.on_main(partial(keep_fact, config, DIVERGED, {"error": str(error)}))
    if facts is None:
        raise StoppedError
    return None if "error" in facts else facts


def read_state(config: TrainingConfig) -> tuple[dict[str, Any], bool]:
    """Return what `read_outcome` does, and whether another job is at work on a run that has no outcome."""
    facts = read_outcome(config)
    if facts:
        return facts, False
    held = is_held(RunFolder(config.run).lock)
    return read_outcome(config), held  # again: it may have finished in between


def keep_fact(config: TrainingConfig, name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write a file into a run folder, unless another job of the search has; returns what is in it."""
    with hold_in_turn(RunFolder(config.run).lock):
        if not (config.run / name).exists():
            write_json(config.run / name, facts)
    return read_facts(config.run / name)


def read_outcome(config: TrainingConfig) -> dict[str, Any]:
    """Return the summary of a finished run, the "error" of one that diverged; nothing of one that has not finished.

    Raises  ConfigError if it had another curriculum, whose file has changed since.
    """
    folder = RunFolder(config.run)
    facts = read_facts(folder.path / DIVERGED) or read_facts(folder.summary)
    if facts and load_file(type(config), folder.config).curriculum != config.curriculum:
        raise ConfigError(
            f"{config.run} was trained with another curriculum than the search has now; restore the curriculum's "
            "file, or choose another --run"
        )
    return facts
