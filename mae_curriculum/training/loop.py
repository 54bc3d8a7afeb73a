"""The training loop, whatever is trained: steps, reports, evaluations, pictures, saves, stops."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mae_curriculum.curriculum.schedule import Clock
from mae_curriculum.distributed import Agreement, World, job_end
from mae_curriculum.run.stop import Stop, catch_signals, parse_duration
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.config import TrainingConfig
from mae_curriculum.training.metrics import Reporter
from mae_curriculum.training.session import RunSession
from mae_curriculum.training.step import Training, is_reported, run_steps_


class StoppedError(Exception):
    """The run was asked to stop after its last step, which is saved."""


Check = Callable[[], None]
"""Raises StoppedError on all ranks if the run was asked to stop."""


@dataclass(frozen=True)
class Hooks:
    """What a run does besides training.

    Evaluation and drawing come before a step is saved, so that a killed run repeats them; only at a stop, the save
    comes first.
    """

    conclude: Callable[[Stopwatch, Check], dict[str, Any]]
    """Evaluates the trained model, with a check now and then whether to stop; returns the summary."""
    evaluate: Callable[[int], object] = lambda _: None
    """Evaluates the model after a number of steps."""
    evaluate_every_epochs: int | None = None
    """Equivalent epochs between evaluations before the end; None for none."""
    draw: Callable[[int], object] = lambda _: None
    """Draws a picture of the model after a number of steps, at the end of each stage."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Further facts for the journal's start row."""


@dataclass(frozen=True)
class Due:
    """What is due after a step."""

    report: bool
    evaluate: bool
    draw: bool
    keep: bool
    """Save a checkpoint that is never deleted."""
    end: bool
    """This was the last step."""


def due_after(clock: Clock, steps_done: int, config: TrainingConfig, *, evaluate_every_epochs: int | None) -> Due:
    """Return what is due after `steps_done` steps.

    Whatever is evaluated, drawn or kept is reported too. The evaluation at the end of a run is not counted: it comes
    after the last save.
    """
    end = steps_done == clock.total_steps
    evaluate = not end and completes_epochs(clock, steps_done, every=evaluate_every_epochs)
    keep = completes_epochs(clock, steps_done, every=config.saving.keep_every_epochs)
    report = is_reported(clock, steps_done, every_steps=config.tracking.every_steps)
    draw = steps_done == clock.span(steps_done - 1).end_step
    return Due(report or evaluate or keep, evaluate, draw, keep, end)


def completes_epochs(clock: Clock, steps_done: int, *, every: int | None) -> bool:
    """Return whether the last of `steps_done` steps reached a multiple of `every` equivalent epochs, or the end."""
    if every is None or steps_done == 0:
        return False
    now, before = (clock.equivalent_epochs(step) // every for step in (steps_done, steps_done - 1))
    return now > before or steps_done == clock.total_steps


def train_(
    training: Training[Any], session: RunSession, stopwatch: Stopwatch, hooks: Hooks, *, first_step: int, stop: Stop
) -> bool:
    """Train from a step to the end, reporting and saving on the way; returns whether the end was reached."""
    clock, config = training.clock, training.config
    reporter = Reporter(training, session.journal, stopwatch, first_step=first_step)
    vote, stopping, done = StopVote(training.world, stop), False, first_step
    with closing(reporter.progress):  # later messages have a line of their own
        for step in run_steps_(training, clock, stopwatch, first_step=first_step):
            done = step.moment.step + 1
            reporter.take(step)
            due = due_after(clock, done, config, evaluate_every_epochs=hooks.evaluate_every_epochs)
            stopping = vote(shutdown_seconds=2 * session.saver.seconds + session.shutdown_seconds)
            if not (due.report or stopping):
                continue
            with stopwatch("report"):
                reporter.report()
            if not stopping:
                run_hooks(hooks, due, session, stopwatch, done)
            with stopwatch("save"):
                save_if_due(
                    training,
                    session,
                    stopwatch,
                    due,
                    done,
                    stop=stop if stopping or due.end else None,
                    skipping=reporter.is_skipping,
                )
            if stopping:
                run_hooks(hooks, due, session, stopwatch, done)  # the save was more urgent
                break
    vote.finish()
    if stopping:
        log_stop(session, training.world, vote.reason, f"saved and stopped at step {done} of {clock.total_steps}", done)
    return not stopping


def run_hooks(hooks: Hooks, due: Due, session: RunSession, stopwatch: Stopwatch, steps_done: int) -> None:
    """Draw and evaluate, where that is due."""
    if due.draw:
        with stopwatch("pictures"):
            hooks.draw(steps_done)
    if due.evaluate:
        session.saver.wait()  # evaluation forks loader processes, during which no other thread should be at work
        with stopwatch("evaluate"):
            hooks.evaluate(steps_done)


def save_if_due(
    training: Training[Any],
    session: RunSession,
    stopwatch: Stopwatch,
    due: Due,
    steps_done: int,
    *,
    stop: Stop | None,
    skipping: bool,
) -> None:
    """Save the run's state if it is time.

    stop      given if the run ends or stops here: the state must be on disk before this returns. None to save in the
              background.
    skipping  steps are being skipped, so that the newest checkpoint should stay.
    """
    session.retry_after_failure()
    keep = partial(completes_epochs, training.clock, every=training.config.saving.keep_every_epochs)
    if stop is not None:
        session.save_now(training, stopwatch, step=steps_done, keep_forever=keep, stop=stop)
    elif (session.save_due() and not skipping) or due.keep:
        session.save(training, stopwatch, step=steps_done, keep_forever=keep)


class StopVote:
    """Decides after each step, on all ranks together, whether the run stops there."""

    def __init__(self, world: World, stop: Stop) -> None:
        """Start to measure how long steps take."""
        self._agreement, self._stop = Agreement(world), stop
        self._last, self._longest = time.monotonic(), 0.0
        self.reason: str | None = None
        """Why this rank was asked to stop, if it was."""

    def __call__(self, *, shutdown_seconds: float) -> bool:
        """Return whether any rank was asked to stop, or would miss its time limit by stopping a step later."""
        now = time.monotonic()
        self._last, self._longest = now, max(self._longest, now - self._last)
        self.reason = self._stop.reason(needed_seconds=self._longest + shutdown_seconds)
        return self._agreement(self.reason is not None)

    def finish(self) -> None:
        """Complete the last vote."""
        self._agreement.finish()


def raise_if_stopped(session: RunSession, world: World, stop: Stop, *, step: int) -> None:
    """Raise StoppedError on all ranks if one of them was asked to stop."""
    reason = stop.reason(needed_seconds=session.shutdown_seconds)
    if world.any(reason is not None):
        log_stop(session, world, reason, f"stopped at step {step}, the last one, before the final evaluation", step)
        raise StoppedError


def log_stop(session: RunSession, world: World, reason: str | None, what: str, steps_done: int) -> None:
    """Log that the run stops, and why."""
    why = next(filter(None, world.gather(reason)), "a signal")
    session.journal.write("stop", steps_done=steps_done, reason=why)
    world.log(f"{why}: {what}; run the same command to resume")


@contextmanager
def watch_for_stop(config: TrainingConfig) -> Iterator[Stop]:
    """Watch for signals, for the time limit of the settings, and for the scheduler's."""
    ends = [job_end()]
    if config.time_limit is not None:
        ends.append(time.time() + parse_duration(config.time_limit))
    with catch_signals(min((end for end in ends if end is not None), default=None)) as stop:
        yield stop
