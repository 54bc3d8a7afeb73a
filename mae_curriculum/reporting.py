"""What a run says of its steps, on the terminal and in the journal: brought over from the device many at a time."""

import math
from collections import ChainMap
from statistics import fmean
from typing import Any

import torch

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum import Clock, Moment
from mae_curriculum.data import BROKEN_LIMIT, micro_batches
from mae_curriculum.distributed import World
from mae_curriculum.table import side, spell_seconds
from mae_curriculum.tracking import Journal, Progress, Stopwatch
from mae_curriculum.training import Step, Training

MOST_SKIPPED = 5
"""Steps in a row without a finite gradient that end a run: one may be a bad batch, five are a run that has diverged."""

ACTIVITIES = ("train", "wait", "save", "evaluate", "pictures")
"""What a run spends its time on, as its stopwatch calls it."""


class Reporter:
    """Reports on a run's steps."""

    def __init__(self, training: Training[Any], journal: Journal, stopwatch: Stopwatch, *, first_step: int) -> None:
        """Go on reporting from a step; what the journal has, from a job that was killed, is not written again."""
        clock = training.clock
        self.progress = Progress(
            total_images=clock.total_images, done_images=clock.images(first_step), shown=training.world.is_main
        )
        self._training, self._journal, self._stopwatch = training, journal, stopwatch
        self._first_step, self._written = first_step, _last_step(journal)
        self._unread: list[Step] = []
        self._broken: dict[str, str] = {}
        self._skipped = 0
        self._seconds = self._at_work()
        self._facts = ""
        self._flops = [training.flops(span.size) for span in clock.spans] if training.flops else None
        """Of training on one image, by stage."""

    def take(self, step: Step) -> None:
        """Remember a step, and show how far the run is."""
        clock, moment = self._training.clock, step.moment
        self._unread.append(step)
        if moment.step in (self._first_step, clock.spans[moment.stage].first_step):
            self.progress.say(describe_stage(self._training, moment))
            self._journal.write("stage", step=moment.step, stage=moment.stage, size=moment.size)
        self.progress.update(clock.images(moment.step + 1), describe_moment(clock, moment) + self._facts)

    def report(self) -> None:
        """Report on the steps taken since the last time; raises ConfigError if they tell that the run is to end."""
        training, moment = self._training, self._unread[-1].moment
        with self._stopwatch(f"train/{moment.stage}"):
            losses, norms = bring_over(self._unread, training.world)  # here the device is waited for
        name_broken_(training, self._journal, self._unread, self._broken)
        self._skipped = name_skipped(training, self._journal, self._unread, norms, before=self._skipped)
        finite = [loss for loss, norm in zip(losses, norms, strict=True) if math.isfinite(norm)]
        before, self._seconds = self._seconds, self._at_work()
        row = {
            "step": moment.step,
            "images": moment.first_image + moment.batch_images,
            "epochs": float(training.clock.equivalent_epochs(moment.step + 1)),
            "flops": self._flops_done(moment.step + 1),
            "progress": round(moment.progress, 6),
            "stage": moment.stage,
            "size": moment.size,
            "magnitude": moment.magnitude,
            "loss": fmean(finite) if finite else None,
            "gradient_norm": norms[-1] if math.isfinite(norms[-1]) else None,
            "lr": max(group["lr"] for group in training.optimizer.param_groups),
            "images_per_second": sum(step.moment.batch_images for step in self._unread) / (self._seconds - before),
            "seconds_left": seconds_left(training.clock, self._stopwatch, moment.step + 1),
            **{f"{name}_seconds": round(self._stopwatch.total(name), 3) for name in ACTIVITIES},
        }
        if moment.step > self._written:
            self._journal.write("step", **row)
        self._facts = " | loss {} lr {lr:.2e} | {images_per_second:.0f} images/s, {} left".format(
            "none" if row["loss"] is None else f"{row['loss']:.4f}", spell_seconds(row["seconds_left"]), **row
        )
        self.progress.update(row["images"], describe_moment(training.clock, moment) + self._facts, newest=True)
        self._unread.clear()

    def _flops_done(self, done: int) -> int | None:
        if self._flops is None:
            return None
        return sum(
            seen * flops for seen, flops in zip(images_by_stage(self._training.clock, done), self._flops, strict=True)
        )

    def _at_work(self) -> float:
        return self._stopwatch.total("train") + self._stopwatch.total("wait")


def seconds_left(clock: Clock, stopwatch: Stopwatch, done: int) -> float:
    """Estimate the seconds that a run takes after `done` steps, at least one: data, saves and evaluations as until now.

    A stage that has not begun is taken to cost, for each pixel, what the one before costs.
    """
    cost, left = 0.0, 0.0
    for span, seen in zip(clock.spans, images_by_stage(clock, done), strict=True):
        area = float(span.area_share)
        if seen:
            cost = stopwatch.total(f"train/{span.index}") / (seen * area)
        left += (span.images - seen) * area * cost
    return left * sum(stopwatch.seconds.values()) / stopwatch.total("train")


def images_by_stage(clock: Clock, done: int) -> list[int]:
    """Count the images that each stage has seen after `done` steps."""
    return [
        clock.images(min(max(done, span.first_step), span.first_step + span.steps)) - span.first_image
        for span in clock.spans
    ]


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


def _last_step(journal: Journal) -> int:
    try:
        return int(journal.last("step")["step"])
    except LookupError:
        return -1
