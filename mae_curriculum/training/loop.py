"""The training loop, whatever is trained: steps, reports, saves; what is done on the way."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from mae_curriculum.curriculum.schedule import Clock
from mae_curriculum.distributed import Agreement, World, job_end
from mae_curriculum.run.background_save import RETRY_SECONDS
from mae_curriculum.run.stop import Stop, catch_signals, parse_duration
from mae_curriculum.terminal import say
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.config import TrainingConfig
from mae_curriculum.training.metrics import Reporter
from mae_curriculum.training.session import Run, log_save_failure, save_with_retries, start_save
from mae_curriculum.training.step import Training, is_reported, run_steps_

EXIT_RESUMABLE = 75
"""Exit code of a run that was asked to stop and can be continued (EX_TEMPFAIL of sysexits.h)."""

FIRST_SAVE_SECONDS = 30.0
"""After the start."""


class StoppedError(Exception):
    """The run was asked to stop after its last step, which is saved."""


def raise_if_stopped(run: Run, world: World, stop: Stop, *, step: int) -> None:
    """Raise StoppedError on all ranks if one of them was asked to stop."""
    reason = stop.reason(needed_seconds=run.shutdown_seconds)
    if world.any(reason is not None):
        log_stop(run, world, reason, f"stopped at step {step}, the last one, before all was evaluated", step=step)
        raise StoppedError


def log_stop(run: Run, world: World, reason: str | None, what: str, *, step: int) -> None:
    """Write and say why the run stops."""
    why = next(filter(None, world.gather(reason)), "a signal")
    run.journal.write("stop", steps_done=step, reason=why)
    if world.is_main:
        say(f"{why}: {what}; the same command continues")


@contextmanager
def watch_for_stop(config: TrainingConfig) -> Iterator[Stop]:
    """Watch for signals, the time limit of the settings, and the scheduler's."""
    own = None if config.time_limit is None else time.time() + parse_duration(config.time_limit)
    with catch_signals(min((end for end in (own, job_end()) if end is not None), default=None)) as stop:
        yield stop


def train_(
    training: Training[Any],
    run: Run,
    stopwatch: Stopwatch,
    *,
    first_step: int,
    stop: Stop,
    evaluate: Callable[[int], object],
    evaluate_every_epochs: int | None,
    draw: Callable[[int], object] = lambda _: None,
) -> bool:
    """Train from a step to the end, reporting and saving on the way; tells whether the end was reached.

    evaluate  measures the model after so many steps, every `evaluate_every_epochs` equivalent epochs until the end,
              where the caller does; null for never. It is done before the step is saved, so a killed run does it again,
              but for a step at which the run is asked to stop, of which the save is more urgent.
    draw      pictures the model after so many steps, at the end of each stage; likewise.
    """
    config, world, clock, journal = training.config, training.world, training.clock, run.journal
    reporter = Reporter(training, journal, stopwatch, first_step=first_step)
    progress = reporter.progress
    spare = partial(is_due, clock, every_epochs=config.saving.keep_every_epochs)
    saver = run.saver
    agree = Agreement(world)
    # the first save comes early, so that a time limit finds it known what saves take
    next_save = time.monotonic() + min(60 * config.saving.every_minutes, FIRST_SAVE_SECONDS)
    asked, longest = time.monotonic(), 0.0
    with closing(progress):  # a message after it has a line of its own
        for step in run_steps_(training, clock, stopwatch, first_step=first_step):
            done = step.moment.step + 1
            at_end = done == clock.total_steps
            reporter.take(step)
            asked, longest = time.monotonic(), max(longest, time.monotonic() - asked)
            reason = stop.reason(needed_seconds=longest + 2 * saver.seconds + run.shutdown_seconds)
            stopping = agree(reason is not None)
            evaluating = not at_end and is_due(clock, done, every_epochs=evaluate_every_epochs)
            stage = clock.spans[step.moment.stage]
            stage_over = done == stage.end_step
            if stage_over and not stopping:
                with stopwatch(f"train/{stage.index}"):
                    world.synchronize()  # what the device still has to do is training
                with stopwatch("pictures"):
                    draw(done)
            reporting = is_reported(clock, done, every_steps=config.tracking.every_steps)
            if not (reporting or stopping or evaluating or spare(done)):  # the end is always reported
                continue
            with stopwatch("report"):
                reporter.report()
            if failure := saver.failure():
                log_save_failure(run, progress, failure)
                next_save = min(next_save, time.monotonic() + RETRY_SECONDS)
            if evaluating and not stopping:
                saver.wait()  # the loader's processes are forked, which other threads had better not be at work during
                with stopwatch("evaluate"):
                    evaluate(done)
            # while steps are skipped, what was saved before stays the newest
            due = world.any(time.monotonic() > next_save) and not reporter.is_skipping
            if due or stopping or at_end or spare(done):
                with stopwatch("save"):
                    start_save(training, run, stopwatch, spare, step=done)
                    if stopping or at_end:
                        world.on_main(
                            partial(save_with_retries, training, run, stopwatch, spare, stop, progress, step=done)
                        )
                next_save = time.monotonic() + 60 * config.saving.every_minutes
            if not stopping:
                continue
            if stage_over:
                with stopwatch("pictures"):
                    draw(done)
            if evaluating:
                with stopwatch("evaluate"):
                    evaluate(done)
            progress.close()
            log_stop(run, world, reason, f"saved and stopped at step {done} of {clock.total_steps}", step=done)
            agree.finish()
            return False
    agree.finish()
    return True


def is_due(clock: Clock, done: int, *, every_epochs: int | None) -> bool:
    """Tell whether a multiple of so many equivalent epochs, or the end, is reached by the last of `done` steps."""
    if every_epochs is None or done == 0:
        return False
    now, before = (clock.equivalent_epochs(step) // every_epochs for step in (done, done - 1))
    return now > before or done == clock.total_steps
