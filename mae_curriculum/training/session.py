"""The session of one job on a run folder: acquire the folder, resume, save, release."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
from mae_curriculum.tracking.journal import Journal
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.tracking.wandb import CLOSE_SECONDS, log_to_wandb, require_wandb
from mae_curriculum.training.config import TrainingConfig
from mae_curriculum.training.step import Training
from mae_curriculum.version import code_version, describe_software

logger = logging.getLogger(__name__)

FINAL_ATTEMPTS = 20
"""How often the last save of a run is tried, `RETRY_SECONDS` apart."""

HURRIED_ATTEMPTS = 3
"""How often the save before a stop is tried: little time is left then."""

HURRIED_SECONDS = 2.0
"""Seconds between two attempts before a stop."""

FIRST_SAVE_SECONDS = 30.0
"""Seconds until the first save: it comes early, so that a stop at a time limit knows how long saving takes."""


class RunSession:
    """A run folder that this job holds."""

    def __init__(self, config: TrainingConfig, world: World, *, command: str) -> None:
        """Prepare a session; `acquire` claims the folder."""
        self.folder = RunFolder(config.run)
        self.journal = Journal(self.folder.journal if world.is_main else None)
        self.saver = BackgroundSaver(self.folder, keep=config.saving.keep)
        self.shutdown_seconds = 0.0 if config.tracking.wandb == "disabled" else CLOSE_SECONDS
        """Seconds that closing the session may take."""
        self._config, self._world, self._command = config, world, command
        self._resources = ExitStack()
        self._check_lock: Callable[[], None] = lambda: None
        self._close_wandb: Callable[[], None] = lambda: None
        self._next_save = 0.0
        self._saved_step: int | None = None

    def acquire(self) -> None:
        """Claim the folder on rank 0 and hold its lock; raises ConfigError if it is another run's, or in use."""
        self._world.on_main(self._acquire)
        self._resources.callback(self.saver.wait)  # whatever happens, no save is under way when the lock is released
        self._next_save = time.monotonic() + min(60 * self._config.saving.every_minutes, FIRST_SAVE_SECONDS)

    def _acquire(self) -> None:
        config, folder = self._config, self.folder
        if config.tracking.wandb != "disabled":
            require_wandb()
        folder.refuse_others(config, command=self._command)
        folder.path.mkdir(parents=True, exist_ok=True)
        dead: list[dict[str, Any]] = []
        self._check_lock = self._resources.enter_context(hold(folder.lock, on_takeover=dead.append))
        folder.claim(config, command=self._command)
        self._close_wandb = self._resources.callback(log_to_wandb(folder, config.tracking, config))
        for holder in dead:
            self.journal.write("lock_taken_over", **{key: holder.get(key) for key in ("host", "pid", "last_beat")})

    def close(self) -> None:
        """Wait for saves and for W&B, and release the lock."""
        self._resources.close()

    def finish_logging(self) -> None:
        """Let W&B finish on rank 0 while the others wait: a launcher ends all processes once one has left."""
        self._world.on_main(self._close_wandb)

    def check_lock(self) -> None:
        """Raise ConfigError on all ranks if another job has taken the run over."""
        self._world.on_main(self._check_lock)

    def log_start(self, training: Training[Any], *, step: int, **facts: Any) -> None:
        """Write to the journal that this job starts or resumes the run after `step` steps."""
        self._world.on_main(partial(self._log_start, training, step, facts))

    def _log_start(self, training: Training[Any], step: int, facts: dict[str, Any]) -> None:
        self.journal.resume(training.data_fingerprint)
        software = describe_software()
        earlier = [row.get("software") for row in self.journal.rows() if row["event"] == "start"]
        if earlier and earlier[-1] not in (None, software):
            logger.warning(
                f"the run goes on with other software, so the last bits may differ: {software}; before, {earlier[-1]}"
            )
        self.journal.write(
            "start",
            steps_done=step,
            total_steps=training.clock.total_steps,
            stages=len(training.clock.spans),
            world_size=self._world.world_size,
            device=self._world.device_name,
            config_fingerprint=config_fingerprint(training.config),
            data_fingerprint=training.data_fingerprint,
            commit=code_version(),
            software=software,
            **job_facts(),
            **facts,
        )

    def save_due(self) -> bool:
        """Return on all ranks whether the time for the next save has come on any of them."""
        return self._world.any(time.monotonic() > self._next_save)

    def retry_after_failure(self) -> None:
        """If the last save failed, log it and make the next one due soon."""
        failure = self.saver.failure()
        if failure is not None:
            self._log_failure(failure)
            self._next_save = min(self._next_save, time.monotonic() + RETRY_SECONDS)
            self._saved_step = None

    def save(
        self, training: Training[Any], stopwatch: Stopwatch, *, step: int, keep_forever: Callable[[int], bool]
    ) -> None:
        """Start to write the run's state, on rank 0.

        keep_forever  returns whether the checkpoint of a step is never deleted.
        """
        self.check_lock()
        self._next_save = time.monotonic() + 60 * self._config.saving.every_minutes
        self._saved_step = step
        if self._world.is_main:
            self.saver.start(state_of(training, stopwatch, step=step), keep_forever)
            epochs = round(float(training.clock.equivalent_epochs(step)), 6)
            self.journal.write("save", steps_done=step, epochs=epochs, kept=keep_forever(step))

    def save_now(
        self,
        training: Training[Any],
        stopwatch: Stopwatch,
        *,
        step: int,
        keep_forever: Callable[[int], bool],
        stop: Stop,
    ) -> None:
        """Write the run's state and wait until it is on disk; retry if that fails, for a shorter time before a stop.

        A save of this step that is under way, or done, is not repeated.

        Raises  on all ranks what saving raises, mostly OSError; the previous checkpoint is intact.
        """
        if step != self._saved_step:
            self.save(training, stopwatch, step=step, keep_forever=keep_forever)

        def restart() -> None:
            self.saver.start(state_of(training, stopwatch, step=step), keep_forever)

        self._world.on_main(partial(self._wait_for_save, restart, stop))

    def _wait_for_save(self, restart: Callable[[], None], stop: Stop) -> None:
        for attempt in range(FINAL_ATTEMPTS):
            self.saver.wait()
            failure = self.saver.failure()
            if failure is None:
                return
            self._log_failure(failure)
            hurried = self._wait_to_retry(stop)
            if attempt >= (HURRIED_ATTEMPTS if hurried else FINAL_ATTEMPTS) - 1:
                kept = self.folder.checkpoints[-1:]
                lost = f"the work since {kept[0].name}" if kept else "all of its work"
                logger.error(f"{self.folder.path}: no last checkpoint after {attempt + 1} attempts; {lost} is lost")
                raise failure
            restart()

    def _wait_to_retry(self, stop: Stop) -> bool:
        """Wait before another attempt; returns whether the run has been asked to stop."""
        retry_at = time.monotonic() + RETRY_SECONDS
        while time.monotonic() < retry_at:
            if stop.reason(needed_seconds=self.saver.seconds) is not None:
                time.sleep(HURRIED_SECONDS)
                return True
            time.sleep(0.2)
        return False

    def _log_failure(self, failure: Exception) -> None:
        self.journal.write("save_failed", reason=str(failure))
        previous = "the previous one is intact" if self.folder.checkpoints else "there is none yet"
        logger.warning(f"the checkpoint could not be written: {failure}; {previous}; trying again")


@contextmanager
def open_session(config: TrainingConfig, world: World, *, command: str) -> Iterator[RunSession]:
    """Hold the run folder of a config for as long as the context lasts.

    command  what the run is: "pretrain", "finetune" or "linprobe".
    Raises   ConfigError if the folder is another run's, or in use.
    """
    session = RunSession(config, world, command=command)
    try:
        session.acquire()
        try:
            yield session
        except Exception as error:
            kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
            session.journal.write("error", reason=" ".join(f"{kind}{error}".split()))
            raise
        session.finish_logging()
    finally:
        session.close()


def try_drawing(session: RunSession, draw: Callable[[], object], *, step: int) -> None:
    """Draw a picture; if that fails, write the reason to the journal and go on."""
    try:
        draw()
    except Exception as error:  # whatever it is: no picture is worth a run
        session.journal.write("picture_failed", steps_done=step, reason=str(error))
        logger.warning(f"no picture of step {step}: {error}")


def resume_(training: Training[Any], session: RunSession) -> tuple[Stopwatch, int]:
    """Load the newest intact checkpoint into model and optimizer; damaged ones are renamed and named in the journal.

    Returns  the run's stopwatch, and how many steps are done.
    """

    def set_aside(damaged: Path) -> None:
        session.journal.write("damaged_checkpoint", name=damaged.name)
        damaged.rename(damaged.with_suffix(".damaged"))

    path = training.world.on_main(partial(session.folder.newest, on_damaged=set_aside))
    if path is None:
        return Stopwatch(), 0
    state = load_state(path)
    if state["data_fingerprint"] != training.data_fingerprint:
        raise ConfigError(
            f"{session.folder.path} was started with {state['data_fingerprint']}, but {training.config.data.source} "
            f"now gives {training.data_fingerprint}; restore the former, or choose another --run"
        )
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    if training.ema is not None:
        training.ema.load_state_dict(state["ema"])
    return Stopwatch(state["seconds"]), state["steps_done"]


def state_of(training: Training[Any], stopwatch: Stopwatch, *, step: int) -> dict[str, Any]:
    """Return all that a run needs to resume: there is no other state."""
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
