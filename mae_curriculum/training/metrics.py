"""Per-step metrics, for the journal and the progress bar: fetched from the device many steps at a time."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from mae_curriculum.curriculum.batches import micro_batches
from mae_curriculum.curriculum.clock import Clock, Moment
from mae_curriculum.distributed import World
from mae_curriculum.terminal import format_clock, side
from mae_curriculum.tracking.hardware import EnergyMeter, memory_bytes, peak_flops
from mae_curriculum.tracking.journal import Journal, finite_or_none
from mae_curriculum.tracking.progress import Progress
from mae_curriculum.tracking.stopwatch import ACTIVITIES, Stopwatch
from mae_curriculum.training.anomalies import AnomalyDetector, RankReport
from mae_curriculum.training.step import Step, Training

PACE_REPORTS = 10
"""Number of reports over which the pace is averaged for the remaining time."""


class Reporter:
    """Reports on a run's steps. Ranks exchange data in `report` alone: one sum and one gather."""

    def __init__(self, training: Training[Any], journal: Journal, stopwatch: Stopwatch, *, first_step: int) -> None:
        """Start to report from a step."""
        clock, world = training.clock, training.world
        self.progress = Progress(
            total_images=clock.total_images, done_images=clock.images(first_step), shown=world.is_main
        )
        self._training, self._journal, self._stopwatch, self._first_step = training, journal, stopwatch, first_step
        self._joules: float = journal.newest.get("step", {}).get("energy_joules") or 0.0
        self._energy = EnergyMeter(world.device)
        self._costs = [training.cost_of(span.view) for span in clock.spans] if training.cost_of else None
        self._peak = peak_flops(world.device, world.dtype(training.config.precision))
        self._unread: list[Step] = []
        self._anomalies = AnomalyDetector(training, journal, stopwatch)
        self._work_seconds = stopwatch.total("train") + stopwatch.total("wait")
        self._pace: float | None = None
        """Seconds of training and waiting per image, counted at full size, averaged over the last reports."""
        self._facts = ""

    @property
    def is_skipping(self) -> bool:
        """Whether the last step that was reported was skipped."""
        return self._anomalies.is_skipping

    def take(self, step: Step) -> None:
        """Remember a step until the next report, and show how far the run is."""
        clock, moment = self._training.clock, step.moment
        self._unread.append(step)
        if moment.step in (self._first_step, clock.spans[moment.stage].first_step):
            self._training.world.log(describe_stage(self._training, moment))
            self._journal.write("stage", steps_done=moment.step, stage=moment.stage, size=moment.size)
        self.progress.update(clock.images(moment.step + 1), describe_moment(clock, moment) + self._facts)

    def report(self) -> None:
        """Report on the steps since the last report, if any; raises ConfigError on all ranks if the run should end."""
        if not self._unread:
            return
        training, steps, moment = self._training, self._unread, self._unread[-1].moment
        with self._stopwatch(f"train/{moment.stage}"):
            losses, norms = fetch_losses(steps, training.world)  # this waits for the device
        finite = [loss for loss, norm in zip(losses, norms, strict=True) if math.isfinite(norm)]
        loss = fmean(finite) if finite else None
        memory, joules = memory_bytes(training.world.device), self._energy.since_last()
        local = self._anomalies.local_report(steps, norms, memory_bytes=memory, joules=joules)
        reports: list[RankReport] = training.world.gather(local)
        self._anomalies.examine(steps, norms, loss, reports)
        row = {
            **self._position(moment),
            "loss": loss,
            "gradient_norm": finite_or_none(norms[-1]),
            "update_ratio": finite_or_none(steps[-1].update_ratio),
            "lr": max(group["lr"] for group in training.optimizer.param_groups),
            **self._speed(moment),
            **self._hardware(reports),
        }
        self._journal.write("step", **row)
        self._facts = " | loss {} lr {lr:.2e} | {images_per_second:.0f} images/s, {} left".format(
            "none" if loss is None else f"{loss:.4f}", format_clock(row["seconds_left"]), **row
        )
        self.progress.update(row["images"], describe_moment(training.clock, moment) + self._facts)
        self._unread.clear()

    def _position(self, moment: Moment) -> dict[str, Any]:
        """Return how far the run is after a step, and what the encoder saw in it."""
        clock, done = self._training.clock, moment.step + 1
        flops = mask_ratio = None
        if self._costs is not None:
            seen = images_by_stage(clock, done)
            flops = sum(count * cost.flops for count, cost in zip(seen, self._costs, strict=True))
            mask_ratio = self._costs[moment.stage].mask_ratio
        return {
            "steps_done": done,
            "images": clock.images(done),
            "epochs": float(clock.equivalent_epochs(done)),
            "real_epochs": float(clock.real_epochs(done)),
            "flops": flops,
            "progress": round(float(clock.progress(done)), 6),
            "stage": moment.stage,
            "size": moment.size,
            "magnitude": moment.magnitude,
            "min_area": moment.min_area,
            "mask_ratio": mask_ratio,
        }

    def _speed(self, moment: Moment) -> dict[str, Any]:
        """Return throughput since the last report, the seconds of each activity so far, and those that are left."""
        world, clock, stopwatch = self._training.world, self._training.clock, self._stopwatch
        work_seconds = stopwatch.total("train") + stopwatch.total("wait")
        seconds, self._work_seconds = work_seconds - self._work_seconds, work_seconds
        pace = seconds / sum(area(clock, step.moment) for step in self._unread)
        self._pace = pace if self._pace is None else self._pace + (pace - self._pace) / PACE_REPORTS
        totals = {f"{name}_seconds": round(stopwatch.total(name), 3) for name in ACTIVITIES}
        images = sum(step.moment.batch_images for step in self._unread)
        tokens_per_second = mfu = None
        if self._costs is not None:
            flops = sum(step.moment.batch_images * self._costs[step.moment.stage].flops for step in self._unread)
            mfu = flops / seconds / (self._peak * world.world_size)
            tokens = self._costs[moment.stage].tokens
            tokens_per_second = None if tokens is None else images * tokens / seconds
        return {
            "images_per_second": images / seconds,
            "tokens_per_second": tokens_per_second,
            "mfu": mfu,
            "seconds_left": self._pace * sum(totals.values()) / work_seconds * area_left(clock, moment.step + 1),
            **totals,
        }

    def _hardware(self, reports: Sequence[RankReport]) -> dict[str, Any]:
        """Return the largest memory of any rank, and the energy of all ranks so far."""
        joules = [report.joules for report in reports if report.joules is not None]
        counted = len(joules) == len(reports)
        if counted:
            self._joules += sum(joules)
        return {
            "memory_bytes": max(report.memory_bytes for report in reports),
            "energy_joules": round(self._joules) if counted else None,
        }


def area(clock: Clock, moment: Moment) -> float:
    """Return a step's images, counted at full size: images cost about as much less as they have fewer pixels."""
    return moment.batch_images * float(clock.spans[moment.stage].area_share)


def area_left(clock: Clock, steps_done: int) -> float:
    """Return the images that are left after `steps_done` steps, counted at full size."""
    seen = images_by_stage(clock, steps_done)
    return sum((span.images - seen[span.index]) * float(span.area_share) for span in clock.spans)


def images_by_stage(clock: Clock, steps_done: int) -> list[int]:
    """Return how many images each stage has seen after `steps_done` steps."""
    return [
        clock.images(min(max(steps_done, span.first_step), span.end_step)) - span.first_image for span in clock.spans
    ]


def fetch_losses(steps: list[Step], world: World) -> tuple[list[float], list[float]]:
    """Return the losses of some steps, summed over the ranks, and their gradient norms; one copy from the device."""
    losses = world.sum(torch.stack([step.loss_share for step in steps]))
    norms = torch.stack([step.gradient_norm for step in steps])
    both: list[list[float]] = torch.stack([losses, norms]).tolist()
    return both[0], both[1]


def describe_moment(clock: Clock, moment: Moment) -> str:
    """Return in a few words how far the run is after a step, and what the encoder saw in it."""
    done = moment.step + 1
    real = f" (real {float(clock.real_epochs(done)):.1f})" if clock.curriculum.pace == "compute" else ""
    epochs = f"epoch {float(clock.equivalent_epochs(done)):.1f}/{clock.epochs}{real}"
    strength = "" if moment.magnitude is None else f" magnitude {moment.magnitude:.1f}"
    return f"{epochs} stage {moment.stage + 1}/{len(clock.spans)} {side(moment.size)} px{strength}"


def describe_stage(training: Training[Any], moment: Moment) -> str:
    """Return a line on the image size of a stage, and on how its batches are split."""
    span, world = training.clock.spans[moment.stage], training.world
    parts = micro_batches(span, world.rank, world.world_size, training.config.micro_batch, training.pair_size)
    return (
        f"stage {span.index + 1} of {len(training.clock.spans)}: {side(span.size)} px, {span.steps} steps of "
        f"{span.batch_images} images ({plural(world.world_size, 'process', 'es')}, each with "
        f"{plural(len(parts), 'micro-batch', 'es')} of at most {max(map(len, parts))} images"
        f"{', gradients accumulated' if len(parts) > 1 else ''})"
    )


def plural(count: int, noun: str, ending: str = "s") -> str:
    """Return a number of things: 1 process, 2 processes."""
    return f"{count} {noun}{ending if count != 1 else ''}"
