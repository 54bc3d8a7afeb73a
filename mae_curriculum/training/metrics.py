"""What a run says of its steps, on the terminal and in the journal: brought over from the device many at a time."""

import math
from statistics import fmean
from typing import Any

import torch

from mae_curriculum.curriculum.schedule import Clock, Moment
from mae_curriculum.data.loader import micro_batches
from mae_curriculum.distributed import World
from mae_curriculum.terminal import format_clock, side
from mae_curriculum.tracking.hardware import EnergyMeter, memory_bytes, peak_flops
from mae_curriculum.tracking.journal import Journal, finite_or_none
from mae_curriculum.tracking.progress import Progress
from mae_curriculum.tracking.stopwatch import ACTIVITIES, Stopwatch
from mae_curriculum.training.anomalies import AnomalyDetector
from mae_curriculum.training.step import Step, Training

PACE_REPORTS = 10
"""Over about so many reports the pace is averaged by which the end is foretold."""


class Reporter:
    """Reports on a run's steps."""

    def __init__(self, training: Training[Any], journal: Journal, stopwatch: Stopwatch, *, first_step: int) -> None:
        """Go on reporting from a step."""
        clock, world = training.clock, training.world
        self.progress = Progress(
            total_images=clock.total_images, done_images=clock.images(first_step), shown=world.is_main
        )
        self._training, self._journal, self._stopwatch, self._first_step = training, journal, stopwatch, first_step
        self._joules: float = journal.newest.get("step", {}).get("energy_joules") or 0.0
        self._energy = EnergyMeter(world.device)
        self._loads = [training.cost_of(span.size) for span in clock.spans] if training.cost_of else None
        self._peak = peak_flops(world.device, world.dtype(training.config.precision))
        self._unread: list[Step] = []
        self._health = AnomalyDetector(training, journal, stopwatch, self.progress.say)
        self._at_work = stopwatch.total("train") + stopwatch.total("wait")
        self._pace: float | None = None
        """Seconds of training and waiting for each image, counted at full size: of the last few reports."""
        self._facts = ""

    @property
    def is_skipping(self) -> bool:
        """Whether the last step that was reported on was skipped."""
        return self._health.is_skipping

    def take(self, step: Step) -> None:
        """Remember a step, and show how far the run is."""
        clock, moment = self._training.clock, step.moment
        self._unread.append(step)
        if moment.step in (self._first_step, clock.spans[moment.stage].first_step):
            self.progress.say(describe_stage(self._training, moment))
            self._journal.write("stage", steps_done=moment.step, stage=moment.stage, size=moment.size)
        self.progress.update(clock.images(moment.step + 1), describe_moment(clock, moment) + self._facts)

    def report(self) -> None:
        """Report on the steps taken since the last time; raises ConfigError if they tell that the run is to end."""
        training, moment = self._training, self._unread[-1].moment
        with self._stopwatch(f"train/{moment.stage}"):
            losses, norms = fetch_losses(self._unread, training.world)  # here the device is waited for
        finite = [loss for loss, norm in zip(losses, norms, strict=True) if math.isfinite(norm)]
        loss = fmean(finite) if finite else None
        self._health.examine(self._unread, norms, loss)
        row = {
            **self._position(moment),
            "loss": loss,
            "gradient_norm": finite_or_none(norms[-1]),
            "update_ratio": finite_or_none(self._unread[-1].update_ratio),
            "lr": max(group["lr"] for group in training.optimizer.param_groups),
            **self._costs(moment),
        }
        self._journal.write("step", **row)
        self._facts = " | loss {} lr {lr:.2e} | {images_per_second:.0f} images/s, {} left".format(
            "none" if loss is None else f"{loss:.4f}", format_clock(row["seconds_left"]), **row
        )
        self.progress.update(row["images"], describe_moment(training.clock, moment) + self._facts)
        self._unread.clear()

    def _position(self, moment: Moment) -> dict[str, Any]:
        """Tell where a step stands: the axes of curves, and what the encoder sees."""
        clock, done = self._training.clock, moment.step + 1
        load = self._loads and self._loads[moment.stage]
        return {
            "steps_done": done,
            "images": clock.images(done),
            "epochs": float(clock.equivalent_epochs(done)),
            "flops": self._flops(done),
            "progress": round(float(clock.progress(done)), 6),
            "stage": moment.stage,
            "size": moment.size,
            "magnitude": moment.magnitude,
            "mask_ratio": load and load.mask_ratio,
        }

    def _costs(self, moment: Moment) -> dict[str, Any]:
        """Tell what the steps taken since the last report took, and how long the rest will."""
        world, clock, stopwatch = self._training.world, self._training.clock, self._stopwatch
        at_work = stopwatch.total("train") + stopwatch.total("wait")
        seconds, self._at_work = at_work - self._at_work, at_work
        pace = seconds / sum(area(clock, step.moment) for step in self._unread)
        self._pace = pace if self._pace is None else self._pace + (pace - self._pace) / PACE_REPORTS
        totals = {f"{name}_seconds": round(stopwatch.total(name), 3) for name in ACTIVITIES}
        images = sum(step.moment.batch_images for step in self._unread)
        flops = tokens = None
        if self._loads:
            flops = sum(step.moment.batch_images * self._loads[step.moment.stage].flops for step in self._unread)
            tokens = self._loads[moment.stage].tokens
        memories, energies = zip(*world.gather((memory_bytes(world.device), self._energy.since_last())), strict=True)
        if None not in energies:
            self._joules += sum(energies)
        return {
            "images_per_second": images / seconds,
            "tokens_per_second": tokens and images * tokens / seconds,
            "mfu": flops and flops / seconds / (self._peak * world.world_size),
            "memory_bytes": max(memories),
            "energy_joules": None if None in energies else round(self._joules),
            "seconds_left": self._pace * sum(totals.values()) / at_work * area_left(clock, moment.step + 1),
            **totals,
        }

    def _flops(self, done: int) -> int | None:
        if self._loads is None:
            return None
        seen = images_by_stage(self._training.clock, done)
        return sum(count * load.flops for count, load in zip(seen, self._loads, strict=True))


def area(clock: Clock, moment: Moment) -> float:
    """Count a step's images, as if at full size: smaller ones cost about as much less as they have fewer pixels."""
    return moment.batch_images * float(clock.spans[moment.stage].area_share)


def area_left(clock: Clock, done: int) -> float:
    """Count the images that are left after `done` steps, as if at full size."""
    seen = images_by_stage(clock, done)
    return sum((span.images - seen[span.index]) * float(span.area_share) for span in clock.spans)


def images_by_stage(clock: Clock, done: int) -> list[int]:
    """Count the images that each stage has seen after `done` steps."""
    return [
        clock.images(min(max(done, span.first_step), span.first_step + span.steps)) - span.first_image
        for span in clock.spans
    ]


def fetch_losses(steps: list[Step], world: World) -> tuple[list[float], list[float]]:
    """Bring the losses of some steps, and the norms of their gradients, over from the device, in one go."""
    losses = world.sum(torch.stack([step.loss_share for step in steps]))
    norms = torch.stack([step.gradient_norm for step in steps])
    both: list[list[float]] = torch.stack([losses, norms]).tolist()
    return both[0], both[1]


def describe_moment(clock: Clock, moment: Moment) -> str:
    """Say in a few words what the encoder sees."""
    strength = "" if moment.magnitude is None else f" magnitude {moment.magnitude:.1f}"
    return f"stage {moment.stage + 1}/{len(clock.spans)} {side(moment.size)} px{strength}"


def describe_stage(training: Training[Any], moment: Moment) -> str:
    """Say in a line how large a stage's images are, and how its steps are made."""
    span, world = training.clock.spans[moment.stage], training.world
    parts = micro_batches(span, world.rank, world.world_size, training.config.micro_batch, training.pair_size)
    return (
        f"stage {span.index + 1} of {len(training.clock.spans)}: {side(span.size)} px, {span.steps} steps of "
        f"{span.batch_images} images ({world.world_size} processes x {len(parts)} micro-batches x "
        f"{max(map(len, parts))} images)"
    )
