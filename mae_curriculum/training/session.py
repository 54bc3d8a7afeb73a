"""A run folder in the hands of one job: opened, gone on with, saved, and left with nothing half done."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mae_curriculum.config import ConfigError, config_fingerprint
from mae_curriculum.distributed import World, job_facts
from mae_curriculum.run.background_save import RETRY_SECONDS, BackgroundSaver
from mae_curriculum.run.checkpoint import load_state
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.run.lock import hold
from mae_curriculum.run.stop import Stop
from mae_curriculum.terminal import say
from mae_curriculum.tracking.journal import Journal
from mae_curriculum.tracking.progress import Progress
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.tracking.wandb.launch import CLOSE_SECONDS, log_to_wandb, require_wandb
from mae_curriculum.training.config import TrainingConfig
from mae_curriculum.training.step import Training
from mae_curriculum.version import code_version

LAST_ATTEMPTS, HURRIED_ATTEMPTS = 20, 3
"""How often the last save of a run is tried, and one at a stop, where little time is left."""

HURRIED_SECONDS = 2.0
"""Between two attempts at a stop."""


@dataclass(frozen=True)
class Run:
    """A run folder that this job holds."""

    folder: RunFolder
    journal: Journal
    saver: BackgroundSaver
    check_lock: Callable[[], None]
    """Raises ConfigError once another job has taken the run over."""
    shutdown_seconds: float
    """What leaving it may take."""


@contextmanager
def open_session(config: TrainingConfig, world: World) -> Iterator[Run]:
    """Make the run folder this config's, and hold it for as long as the context lasts; raises ConfigError."""
    folder = RunFolder(config.run)
    journal = Journal(folder.journal if world.is_main else None)
    locks: list[Callable[[], None]] = []
    ends: list[Callable[[], None]] = []

    def claim() -> None:
        if config.tracking.wandb != "disabled":
            require_wandb()
        folder.refuse_others(config)
        folder.path.mkdir(parents=True, exist_ok=True)
        dead: list[dict[str, Any]] = []
        locks.append(stack.enter_context(hold(folder.lock, tell=dead.append)))
        folder.claim(config)
        ends.append(stack.callback(log_to_wandb(folder, config.tracking, config)))
        for holder in dead:
            journal.write("lock_taken_over", **{key: holder.get(key) for key in ("host", "pid", "last_beat")})

    with ExitStack() as stack:
        world.on_main(claim)
        saver = BackgroundSaver(folder, keep=config.saving.keep)
        stack.callback(saver.wait)  # however this ends, nothing is being written once the lock is released
        try:
            check = partial(world.on_main, locks[0] if locks else lambda: None)
            yield Run(folder, journal, saver, check, 0.0 if config.tracking.wandb == "disabled" else CLOSE_SECONDS)
        except Exception as error:
            kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
            journal.write("error", reason=" ".join(f"{kind}{error}".split()))
            raise
        world.on_main(lambda: [end() for end in ends])  # together: a launcher ends the others once one has left


def try_drawing(run: Run, draw: Callable[[], object], *, step: int) -> None:
    """Draw a picture of the model after so many steps; of one that cannot be drawn the journal says why."""
    try:
        draw()
    except Exception as error:  # whatever it is, a picture is worth no run
        run.journal.write("picture_failed", steps_done=step, reason=str(error))
        say(f"warning: no picture of step {step}: {error}")


def begin(run: Run, training: Training[Any], *, step: int, **facts: Any) -> None:
    """Write in the journal that this job begins, or goes on with, the run."""
    world, clock = training.world, training.clock

    def write() -> None:
        run.journal.resume(training.data_fingerprint)
        run.journal.write(
            "start",
            steps_done=step,
            total_steps=clock.total_steps,
            stages=len(clock.spans),
            world_size=world.world_size,
            device=str(world.device),
            config_fingerprint=config_fingerprint(training.config),
            data_fingerprint=training.data_fingerprint,
            commit=code_version(),
            **job_facts(),
            **facts,
        )

    world.on_main(write)


def resume_(training: Training[Any], run: Run) -> tuple[Stopwatch, int]:
    """Bring model and optimizer to the state of the newest whole checkpoint; damaged ones are named in the journal.

    Returns  its stopwatch, and the step to go on with.
    """

    def put_aside(damaged: Path) -> None:
        run.journal.write("damaged_checkpoint", name=damaged.name)
        damaged.rename(damaged.with_suffix(".damaged"))

    path = training.world.on_main(partial(run.folder.newest, on_damaged=put_aside))
    if path is None:
        return Stopwatch(), 0
    state = load_state(path)
    if state["data_fingerprint"] != training.data_fingerprint:
        raise ConfigError(
            f"{run.folder.path} was started with {state['data_fingerprint']}, but {training.config.data.source} now "
            f"gives {training.data_fingerprint}; restore the former, or choose another --run"
        )
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    if training.ema is not None:
        training.ema.load_state_dict(state["ema"])
    return Stopwatch(state["seconds"]), state["steps_done"]


def state_of(training: Training[Any], stopwatch: Stopwatch, *, step: int) -> dict[str, Any]:
    """Give all that a run needs to go on: there is no other state."""
    state = {
        "steps_done": step,
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "seconds": dict(stopwatch.seconds),
        "data_fingerprint": training.data_fingerprint,
    }
    if training.ema is not None:
        state["ema"] = training.ema.state_dict()
    return state


def start_save(
    training: Training[Any], run: Run, stopwatch: Stopwatch, spare: Callable[[int], bool], *, step: int
) -> None:
    """Begin to write the state of the run, from the main process; `spare` tells which checkpoints always stay."""
    run.check_lock()
    if training.world.is_main:
        run.saver.begin(state_of(training, stopwatch, step=step), spare)
        epochs = round(float(training.clock.equivalent_epochs(step)), 6)
        run.journal.write("save", steps_done=step, epochs=epochs, kept=spare(step))


def save_with_retries(
    training: Training[Any],
    run: Run,
    stopwatch: Stopwatch,
    spare: Callable[[int], bool],
    stop: Stop,
    progress: Progress,
    *,
    step: int,
) -> None:
    """Wait until the state is written, and try again if it was not: a while at a stop, longer at the end of a run.

    Raises  what saving raises, OSError mostly, if it cannot be written; the checkpoint before is unharmed.
    """
    saver = run.saver
    for attempt in range(LAST_ATTEMPTS):
        saver.wait()
        failure = saver.failure()
        if failure is None:
            return
        log_save_failure(run, progress, failure)
        again = time.monotonic() + RETRY_SECONDS
        while not (hurried := stop.reason(needed_seconds=saver.seconds) is not None) and time.monotonic() < again:
            time.sleep(0.2)
        if attempt >= (HURRIED_ATTEMPTS if hurried else LAST_ATTEMPTS) - 1:
            raise failure
        if hurried:
            time.sleep(HURRIED_SECONDS)
        saver.begin(state_of(training, stopwatch, step=step), spare)


def log_save_failure(run: Run, progress: Progress, failure: Exception) -> None:
    """Say loudly that a checkpoint could not be written."""
    run.journal.write("save_failed", reason=str(failure))
    progress.say(f"warning: the checkpoint could not be written: {failure}; the one before is unharmed; trying again")
