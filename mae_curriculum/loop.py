"""The training loop, whatever is trained: steps, reports, saves; what is done on the way."""

import math
import time
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import fmean
from typing import Any

import torch

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum import Clock, Moment
from mae_curriculum.data import BROKEN_LIMIT, micro_batches
from mae_curriculum.distributed import Agreement, World, job_end
from mae_curriculum.holding import Run, begin_save, save_for_sure, tell_failure
from mae_curriculum.saver import RETRY_SECONDS
from mae_curriculum.stopping import Stop, parse_duration, stop_on_signals
from mae_curriculum.table import side
from mae_curriculum.tracking import Journal, Progress, Stopwatch
from mae_curriculum.training import Step, Training, TrainingConfig, run_steps_

STOPPED = 75
"""Exit code of a run that was asked to stop and can be continued (EX_TEMPFAIL of sysexits.h)."""

FIRST_SAVE_SECONDS = 30.0
"""After the start."""

MOST_SKIPPED = 5
"""Steps in a row without a finite gradient that end a run: one may be a bad batch, five are a run that has diverged."""


@contextmanager
def until_stopped(config: TrainingConfig) -> Iterator[Stop]:
    """Watch for signals, the time limit of the settings, and the scheduler's."""
    own = None if config.time_limit is None else time.time() + parse_duration(config.time_limit)
    with stop_on_signals(min((end for end in (own, job_end()) if end is not None), default=None)) as stop:
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
) -> bool:
    """Train from a step to the end, reporting and saving on the way; tells whether the end was reached.

    evaluate  measures the model after so many steps, every `evaluate_every_epochs` equivalent epochs and at the end;
              None for never. It is done before the step is saved, so a killed run does it again.
    """
    config, world, clock, journal = training.config, training.world, training.clock, run.journal
    progress = Progress(total_images=clock.total_images, done_images=clock.images(first_step), shown=world.is_main)
    spare = partial(is_due, clock, every_epochs=config.saving.keep_every_epochs)
    saver = run.saver
    agree = Agreement(world)
    unread: list[Step] = []
    known_broken: dict[str, str] = {}
    facts, skipped = "", 0
    # the first save comes early, so that a time limit finds it known what saves take
    next_save = time.monotonic() + min(60 * config.saving.every_minutes, FIRST_SAVE_SECONDS)
    asked, longest = time.monotonic(), 0.0
    for step in run_steps_(training, clock, stopwatch, first_step=first_step):
        moment, done = step.moment, step.moment.step + 1
        at_end = done == clock.total_steps
        unread.append(step)
        if moment.step in (first_step, clock.spans[moment.stage].first_step):
            progress.say(describe_stage(training, moment))
            journal.write("stage", step=moment.step, stage=moment.stage, size=moment.size)
        asked, longest = time.monotonic(), max(longest, time.monotonic() - asked)
        reason = stop.reason(needed_seconds=longest + 2 * saver.seconds)
        stopping = agree(reason is not None)
        evaluating = is_due(clock, done, every_epochs=evaluate_every_epochs)
        # counted from the end, so that the last report covers as many steps as any
        reporting = (clock.total_steps - done) % config.tracking.every_steps == 0
        if not (reporting or stopping or evaluating or spare(done)):  # the end is always reported
            progress.update(clock.images(done), describe_moment(clock, moment) + facts)
            continue
        with stopwatch(f"train/{moment.stage}"):
            losses, norms = bring_over(unread, world)  # here the device is waited for
        name_broken_(training, journal, unread, known_broken)
        skipped = name_skipped(training, journal, unread, norms, before=skipped)
        facts = report(training, journal, stopwatch, moment, losses=losses, norms=norms)
        progress.update(clock.images(done), describe_moment(clock, moment) + facts)
        unread.clear()
        if failure := saver.failure():
            tell_failure(run, progress, failure)
            next_save = min(next_save, time.monotonic() + RETRY_SECONDS)
        if evaluating and not stopping:
            saver.wait()  # the loader's processes are forked, which other threads had better not be at work during
            with stopwatch("evaluate"):
                evaluate(done)
        due = world.any(time.monotonic() > next_save)
        if due or stopping or at_end or spare(done):
            with stopwatch("save"):
                begin_save(training, run, stopwatch, spare, step=done)
                if stopping or at_end:
                    world.on_main(partial(save_for_sure, training, run, stopwatch, spare, stop, progress, step=done))
            next_save = time.monotonic() + 60 * config.saving.every_minutes
        if evaluating and stopping:  # little time may be left: what is safe goes first
            evaluate(done)
        if stopping and not at_end:
            progress.close()
            why = next(filter(None, world.gather(reason)), "a signal")
            journal.write("stop", step=done, reason=why)
            progress.say(f"{why}: saved and stopped at step {done} of {clock.total_steps}; the same command continues")
            agree.finish()
            return False
    agree.finish()
    progress.close()
    return True


def is_due(clock: Clock, done: int, *, every_epochs: int | None) -> bool:
    """Tell whether a multiple of so many equivalent epochs, or the end, is reached by the last of `done` steps."""
    if every_epochs is None or done == 0:
        return False
    now, before = (clock.equivalent_epochs(step) // every_epochs for step in (done, done - 1))
    return now > before or done == clock.total_steps


def bring_over(steps: list[Step], world: World) -> tuple[list[float], list[float]]:
    """Bring the losses of some steps, and the norms of their gradients, over from the device, in one go."""
    losses = world.sum(torch.stack([step.loss_share for step in steps]))
    norms = torch.stack([step.gradient_norm for step in steps])
    both: list[list[float]] = torch.stack([losses, norms]).tolist()
    return both[0], both[1]


def name_broken_(training: Training[Any], journal: Journal, steps: list[Step], known: dict[str, str]) -> None:
    """Name the broken images of some steps in the journal, and stop a run that has too many; adds them to `known`."""
    broken = dict(ChainMap(*(step.broken for step in steps)))
    everybodys = dict(ChainMap(*training.world.gather(broken)))
    for name in sorted(everybodys.keys() - known.keys()):
        journal.write("broken_image", step=steps[-1].moment.step, image=name, reason=everybodys[name])
    known |= everybodys
    if len(known) > BROKEN_LIMIT * len(training.images):
        name = min(known)
        raise ConfigError(
            f"{len(known)} of {len(training.images)} images are broken, more than {BROKEN_LIMIT:.0%}, such as {name} "
            f"({known[name]}); mend or remove those that journal.jsonl names"
        )


def name_skipped(
    training: Training[Any], journal: Journal, steps: list[Step], norms: list[float], *, before: int
) -> int:
    """Name the steps that were skipped, with their images, in the journal; returns how many stand in a row at the end.

    before  how many in a row were skipped just before these.
    Raises  ConfigError when too many are skipped in a row.
    """
    in_a_row = before
    for step, norm in zip(steps, norms, strict=True):
        in_a_row = 0 if math.isfinite(norm) else in_a_row + 1
        if in_a_row:
            names = [[training.images.name(index) for index in ids] for ids in training.world.gather(step.ids)]
            journal.write("skipped", step=step.moment.step, stage=step.moment.stage, images_by_rank=names)
        if in_a_row == MOST_SKIPPED:
            raise ConfigError(
                f"the gradient was not finite in {MOST_SKIPPED} steps in a row, up to step {step.moment.step} "
                f"({names[0][0]} and others, which journal.jsonl names); lower optim.base_lr, or set optim.clip_norm "
                "or precision float32, in another --run; the newest checkpoint is from before"
            )
    return in_a_row


def report(
    training: Training[Any],
    journal: Journal,
    stopwatch: Stopwatch,
    moment: Moment,
    *,
    losses: list[float],
    norms: list[float],
) -> str:
    """Write a row of the journal on the steps since the last one; returns the facts that the progress bar shows."""
    finite = [loss for loss, norm in zip(losses, norms, strict=True) if math.isfinite(norm)]
    loss = fmean(finite) if finite else None
    lr = max(group["lr"] for group in training.optimizer.param_groups)
    journal.write(
        "step",
        step=moment.step,
        images=moment.first_image + moment.batch_images,
        progress=round(moment.progress, 6),
        stage=moment.stage,
        size=moment.size,
        magnitude=moment.magnitude,
        loss=loss,
        gradient_norm=norms[-1] if math.isfinite(norms[-1]) else None,
        lr=lr,
        train_seconds=round(stopwatch.total("train"), 3),
        wait_seconds=round(stopwatch.total("wait"), 3),
    )
    return f" | loss {'none' if loss is None else f'{loss:.4f}'} lr {lr:.2e}"


def describe_moment(clock: Clock, moment: Moment) -> str:
    """Say in a few words what the encoder sees."""
    strength = "" if moment.magnitude is None else f" magnitude {moment.magnitude:.1f}"
    return f"stage {moment.stage + 1}/{len(clock.spans)} {side(moment.size)} px{strength}"


def describe_stage(training: Training[Any], moment: Moment) -> str:
    """Say in a line how large a stage's images are, and how its steps are made."""
    span, world = training.clock.spans[moment.stage], training.world
    parts = micro_batches(span, world.rank, world.size, training.config.micro_batch, training.unit)
    return (
        f"stage {span.index + 1} of {len(training.clock.spans)}: {side(span.size)} px, {span.steps} steps of "
        f"{span.batch_images} images ({world.size} processes x {len(parts)} micro-batches x {max(map(len, parts))} "
        "images)"
    )
