"""The training loop, whatever is trained: steps, reports, saves; what is done on the way, and where it goes on."""

import math
import time
from collections import ChainMap
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch

from mae_curriculum.checkpoint import RunFolder
from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum import Clock, Moment
from mae_curriculum.data import BROKEN_LIMIT, micro_batches
from mae_curriculum.distributed import World
from mae_curriculum.table import side
from mae_curriculum.tracking import Journal, Progress, Stopwatch
from mae_curriculum.training import Step, Training, run_steps_

STOPPED = 75
"""Exit code of a run that was asked to stop and can be continued (EX_TEMPFAIL of sysexits.h)."""

MOST_SKIPPED = 5
"""Steps in a row without a finite gradient that end a run: one may be a bad batch, five are a run that has diverged."""


def train_(
    training: Training[Any],
    folder: RunFolder,
    journal: Journal,
    stopwatch: Stopwatch,
    *,
    first_step: int,
    stop_asked: Callable[[], bool],
    evaluate: Callable[[int], object],
    evaluate_every_epochs: int | None,
) -> bool:
    """Train from a step to the end, reporting and saving on the way; tells whether the end was reached.

    evaluate  measures the model after so many steps, every `evaluate_every_epochs` equivalent epochs and at the end;
              None for never. It is done before the step is saved, so a killed run does it again.
    """
    config, world, clock = training.config, training.world, training.clock
    progress = Progress(total_images=clock.total_images, done_images=clock.images(first_step), shown=world.is_main)
    unread: list[Step] = []
    known_broken: dict[str, str] = {}
    facts, skipped, last_save = "", 0, time.monotonic()
    for step in run_steps_(training, clock, stopwatch, first_step=first_step):
        moment, done = step.moment, step.moment.step + 1
        unread.append(step)
        if moment.step in (first_step, clock.spans[moment.stage].first_step):
            progress.say(describe_stage(training, moment))
            journal.write("stage", step=moment.step, stage=moment.stage, size=moment.size)
        evaluating = is_due(clock, done, evaluate_every_epochs)
        stopping = world.size == 1 and stop_asked()  # several processes agree at the next report
        # counted from the end, so that the last report covers as many steps as any
        if (clock.total_steps - done) % config.tracking.every_steps and not stopping and not evaluating:
            progress.update(clock.images(done), describe_moment(clock, moment) + facts)
            continue
        with stopwatch(f"train/{moment.stage}"):
            losses, norms = bring_over(unread, world)  # here the device is waited for
        name_broken_(training, journal, unread, known_broken)
        skipped = name_skipped(training, journal, unread, norms, before=skipped)
        facts = report(training, journal, stopwatch, moment, losses=losses, norms=norms)
        progress.update(clock.images(done), describe_moment(clock, moment) + facts)
        unread.clear()
        if evaluating:
            with stopwatch("evaluate"):
                evaluate(done)
        stopping = world.any(stop_asked())
        save_due = world.any(time.monotonic() - last_save > 60 * config.saving.every_minutes)
        if stopping or save_due or done == clock.total_steps:
            save(training, folder, journal, stopwatch, step=done)
            last_save = time.monotonic()
        if stopping and done < clock.total_steps:
            progress.close()
            progress.say(f"stopped and saved at step {done} of {clock.total_steps}; the same command continues")
            return False
    progress.close()
    return True


def is_due(clock: Clock, done: int, every_epochs: int | None) -> bool:
    """Tell whether a multiple of so many equivalent epochs, or the end, is reached by the last of `done` steps."""
    if every_epochs is None:
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


def save(training: Training[Any], folder: RunFolder, journal: Journal, stopwatch: Stopwatch, *, step: int) -> None:
    """Save the state of the run, from the main process."""
    with stopwatch("save"):
        state = {
            "step": step,
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "seconds": dict(stopwatch.seconds),
            "images": training.images_id,
        }
        if training.average is not None:
            state["average"] = training.average.state_dict()
        training.world.on_main(lambda: folder.save(state, keep=training.config.saving.keep))
    journal.write("save", step=step)


def restore_(training: Training[Any], state: dict[str, Any] | None) -> tuple[Stopwatch, int]:
    """Bring model and optimizer to a checkpoint's state; returns its stopwatch and the step to go on with."""
    if state is None:
        return Stopwatch(), 0
    if state["images"] != training.images_id:
        raise ConfigError(
            f"data.source: the run began with {state['images']}, and {training.config.data.source} now holds "
            f"{training.images_id}; bring the images back as they were, or begin another --run"
        )
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    if training.average is not None:
        training.average.load_state_dict(state["average"])
    return Stopwatch(state["seconds"]), state["step"]
