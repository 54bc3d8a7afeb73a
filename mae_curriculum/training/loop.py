"""The training loop, whatever is trained: steps, reports, evaluations, pictures, saves, stops."""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.data.loader import POLL_SECONDS, Batch, Delay
from mae_curriculum.distributed import Agreement, World, job_end, launcher
from mae_curriculum.run.stop import Stop, StoppedError, catch_signals, parse_duration
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.config import TrainingConfig
from mae_curriculum.training.metrics import Reporter
from mae_curriculum.training.session import RunSession
from mae_curriculum.training.step import Training, is_reported, run_steps_

LONG_WAIT = 10.0
"""Seconds of waiting for data after which that is logged; again after twice the time, and so on."""


Check = Callable[[], object]
"""Raises StoppedError on all ranks if the run was asked to stop."""


@dataclass(frozen=True)
class Hooks:
    """What a run does besides training.

    Evaluation and drawing come before a step is saved, so that a killed run repeats them. A stop leaves them to the
    job that resumes the run.
    """

    conclude: Callable[[Stopwatch, Check], dict[str, Any]]
    """Evaluates the trained model, with a check now and then whether to stop; returns the summary."""
    evaluate: Callable[[int, Check], object] = lambda *_: None
    """Evaluates the model after a number of steps, with a check now and then whether to stop."""
    evaluate_every_epochs: int | None = None
    """Equivalent epochs between evaluations before the end; None for none."""
    evaluates_start: bool = False
    """Whether the model is evaluated before the first step too."""
    report: Callable[[int], object] = lambda _: None
    """Called after each report, with the number of steps that are done."""
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
    vote, stopping, done = StepVote(training, session, stop), False, first_step
    with closing(reporter.progress):  # later messages have a line of their own
        for step in run_steps_(training, clock, stopwatch, first_step=first_step, gate=vote):
            done = step.moment.step + 1
            reporter.take(step)
            due = due_after(clock, done, config, evaluate_every_epochs=hooks.evaluate_every_epochs)
            if not due.report:
                continue
            stopping = vote.stop_asked()
            if stopping:
                break
            with stopwatch("report"):
                reporter.report()
            hooks.report(done)
            stopping = not run_hooks(hooks, due, session, stopwatch, done, vote.check)
            if stopping:
                break
            with stopwatch("save"):
                skipping = reporter.is_skipping
                save_if_due(training, session, stopwatch, due, done, stop=stop, skipping=skipping)
        if done == clock.total_steps and not stopping:
            return True
        with stopwatch("report"):
            reporter.report()
        if done > first_step:
            with stopwatch("save"):
                session.save_now(training, stopwatch, step=done, keep_forever=keeps(training), stop=stop)
    what = "saved and stopped" if done else "stopped"
    log_stop(session, training.world, vote.reason, f"{what} at step {done} of {clock.total_steps}", done)
    return False


def run_hooks(hooks: Hooks, due: Due, session: RunSession, stopwatch: Stopwatch, steps_done: int, check: Check) -> bool:
    """Draw and evaluate, where that is due; returns False if the run was asked to stop during the evaluation."""
    if due.draw:
        with stopwatch("pictures"):
            hooks.draw(steps_done)
    if due.evaluate:
        session.saver.wait()  # evaluation forks loader processes, during which no other thread should be at work
        with stopwatch("evaluate"):
            try:
                hooks.evaluate(steps_done, check)
            except StoppedError:
                return False
    return True


def run_missed_hooks(
    training: Training[Any], session: RunSession, stopwatch: Stopwatch, hooks: Hooks, *, steps_done: int, stop: Stop
) -> bool:
    """Draw and evaluate what was due before a run was stopped; returns False if it is asked to stop again."""
    clock, vote = training.clock, StepVote(training, session, stop)
    due = Due(report=False, evaluate=hooks.evaluates_start, draw=False, keep=False, end=False)
    if steps_done:
        due = due_after(clock, steps_done, training.config, evaluate_every_epochs=hooks.evaluate_every_epochs)

    def is_missing(event: str) -> bool:
        newest = session.journal.newest.get(event)
        return newest is None or newest["steps_done"] < steps_done

    missing = training.world.on_main(lambda: (is_missing("evaluation"), is_missing("pictures")))
    due = replace(due, evaluate=due.evaluate and missing[0], draw=due.draw and missing[1])
    if run_hooks(hooks, due, session, stopwatch, steps_done, vote.check):
        return True
    log_stop(session, training.world, vote.reason, f"stopped at step {steps_done} of {clock.total_steps}", steps_done)
    return False


def save_if_due(
    training: Training[Any],
    session: RunSession,
    stopwatch: Stopwatch,
    due: Due,
    steps_done: int,
    *,
    stop: Stop,
    skipping: bool,
) -> None:
    """Save the run's state if it is time: in the background, but at the end of the run until it is on disk.

    skipping  steps are being skipped, so that the newest checkpoint should stay.
    """
    session.retry_after_failure()
    if due.end:
        session.save_now(training, stopwatch, step=steps_done, keep_forever=keeps(training), stop=stop)
    elif (session.save_due() and not skipping) or due.keep:
        session.save(training, stopwatch, step=steps_done, keep_forever=keeps(training))


def keeps(training: Training[Any]) -> Callable[[int], bool]:
    """Return whether the checkpoint of a step is never deleted, as a function of the step."""
    return partial(completes_epochs, training.clock, every=training.config.saving.keep_every_epochs)


class StepVote:
    """Decides for each step, on all ranks together, whether it is made: all have its images, and nobody should stop."""

    def __init__(self, training: Training[Any], session: RunSession, stop: Stop) -> None:
        """Start to measure how long it takes from one question to the next."""
        self._training, self._session, self._stop = training, session, stop
        self._agreement = Agreement(training.world)
        self._last, self._longest = time.monotonic(), 0.0
        self._waiting_since: float | None = None
        self._next_notice = LONG_WAIT
        self.reason: str | None = None
        """Why this rank should stop, if it should."""

    def __call__(self, item: Batch | Delay) -> bool:
        """Return whether to go on with the step, given a micro-batch or the news that none is there yet.

        A rank with all its images waits for the others, which vote again and again while they wait for theirs.
        """
        waited = self._seconds_waited(item)
        if isinstance(item, Batch) and not item.is_last:
            return True
        while True:
            stopping, longest_wait = self._vote(item, waited)
            if stopping:
                return False
            if longest_wait > self._next_notice:
                self._log_wait(item, waited)
            if isinstance(item, Delay):
                return True
            if longest_wait == 0.0:
                self._next_notice = LONG_WAIT
                return True

    def check(self) -> None:
        """Raise StoppedError on all ranks if any rank should stop; all ranks must ask together."""
        if self.stop_asked():
            raise StoppedError

    def stop_asked(self) -> bool:
        """Return whether any rank should stop before the next step; all ranks must ask together."""
        self.reason = self._ask()
        return bool(self._agreement(self.reason is not None)[0])

    def _seconds_waited(self, item: Batch | Delay) -> float:
        if isinstance(item, Batch):
            self._waiting_since = None
            return 0.0
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now - POLL_SECONDS
        return now - self._waiting_since

    def _vote(self, item: Batch | Delay, seconds: float) -> list[float]:
        self.reason = item.failure if isinstance(item, Delay) and item.failure else self._ask()
        return self._agreement(self.reason is not None, seconds)

    def _ask(self) -> str | None:
        session, now = self._session, time.monotonic()
        self._last, self._longest = now, max(self._longest, now - self._last)
        needed = self._longest + 2 * session.saver.seconds + session.shutdown_seconds
        return self._stop.reason(needed_seconds=needed)

    def _log_wait(self, item: Batch | Delay, seconds: float) -> None:
        """Name who has waited for data for how long, and the files that are being loaded; less and less often."""
        world, images = self._training.world, self._training.images
        self._next_notice *= 2
        files = [images.name(index) for index in item.in_hand] if isinstance(item, Delay) else []
        own = {"host": socket.gethostname(), "seconds": round(seconds), "files": files}
        for rank, wait in enumerate(world.gather(own)):
            if wait["seconds"]:
                self._session.journal.write("stall", rank=rank, **wait)
                names = ", ".join(wait["files"]) or "images"
                world.log(f"rank {rank} on {wait['host']} has waited {wait['seconds']} s for {names}", logging.WARNING)


def raise_if_stopped(stop: Stop, world: World) -> None:
    """Raise StoppedError on all ranks if one of them was asked to stop."""
    if world.any(stop.reason(needed_seconds=0) is not None):
        raise StoppedError


def stop_before_end(session: RunSession, world: World, stop: Stop, *, step: int) -> None:
    """Raise StoppedError on all ranks, and log it, if one of them was asked to stop after the last step."""
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
def watch_for_stop(config: TrainingConfig, *, exits: bool = False) -> Iterator[Stop]:
    """Watch for signals, for the time limits of the settings and of the scheduler, and for the end of the launcher.

    exits  that of `catch_signals`.
    """
    ends = [job_end()]
    if config.time_limit is not None:
        ends.append(time.time() + parse_duration(config.time_limit))
    deadline = min((end for end in ends if end is not None), default=None)
    with catch_signals(deadline, launcher=launcher(), exits=exits) as stop:
        yield stop
