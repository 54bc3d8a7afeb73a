"""Detect broken images, steps without finite loss or gradient, loss spikes and data stalls; warn or end the run."""

import logging
import math
from collections import ChainMap, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mae_curriculum.config import ConfigError
from mae_curriculum.data.loader import BROKEN_LIMIT
from mae_curriculum.files import rename_into_place, write_temporary
from mae_curriculum.run.checkpoint import steps_of, write_state
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.tracking.journal import Journal, finite_or_none
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.step import Step, Training

MAX_SKIPPED = 5
"""Steps in a row without finite loss or gradient that end a run: one may be a bad batch, five mean divergence."""

MAX_WAIT_SHARE = 0.05
"""Share of a stage's time that it may wait for data without a warning."""

MIN_WAIT_SECONDS = 5.0
"""Shorter waits are not worth a warning."""

SPIKE_FACTOR = 2.0
"""A loss this many times the lowest of the last `SPIKE_REPORTS` of its stage is a spike."""

SPIKE_REPORTS = 10

DIVERGENCE_ADVICE = "lower optim.base_lr, or set optim.clip_norm or precision float32"

CAPTURE = "capture.pt"
"""File in the run folder: the weights before the first of the steps that ended the run, for `replay`."""


class DivergedError(ConfigError):
    """Training has diverged: only other settings help."""


@dataclass(frozen=True)
class SkippedStep:
    """What one rank knows of a step that was skipped."""

    loss: float | None
    """This rank's share of the loss; None if it is not finite."""
    images: list[str]


@dataclass(frozen=True)
class RankReport:
    """What one rank contributes to a report; gathered once per report."""

    broken: dict[str, str]
    """Broken images since the last report, with reasons."""
    skipped: list[SkippedStep]
    wait_share: float
    """Share of this job's time in the current stage that was spent waiting for data."""
    stage_seconds: float
    """This job's time in the current stage."""
    memory_bytes: int
    joules: float | None
    """Energy since the last report; None where it is not counted."""


class AnomalyDetector:
    """Examines a run's steps at each report; logs what it finds, and ends a run that has diverged."""

    def __init__(self, training: Training[Any], journal: Journal, stopwatch: Stopwatch) -> None:
        """Start with no anomalies; what earlier jobs found is not known."""
        self._training, self._journal, self._stopwatch = training, journal, stopwatch
        self._broken: dict[str, str] = {}
        self._skipped_in_a_row: list[int] = []
        self._skipped_count = 0
        self._losses: deque[float] = deque(maxlen=SPIKE_REPORTS)
        """Losses of the last reports of this stage."""
        self._stage = 0
        self._earlier_jobs = Stopwatch(dict(stopwatch.seconds))
        """Time of earlier jobs, perhaps with other workers and on another machine."""
        self._warned_stages: set[int] = set()

    @property
    def is_skipping(self) -> bool:
        """Whether the last step that was examined was skipped."""
        return bool(self._skipped_in_a_row)

    def local_report(
        self, steps: list[Step], norms: list[float], *, memory_bytes: int, joules: float | None
    ) -> RankReport:
        """Return this rank's part of a report on some steps, of which `norms` are the gradient norms."""
        name, stage = self._training.images.name, steps[-1].moment.stage
        skipped = [step for step, norm in zip(steps, norms, strict=True) if not math.isfinite(norm)]
        waited, trained = (
            self._stopwatch.total(f"{activity}/{stage}") - self._earlier_jobs.total(f"{activity}/{stage}")
            for activity in ("wait", "train")
        )
        return RankReport(
            broken=dict(ChainMap(*(step.broken for step in steps))),
            skipped=[SkippedStep(finite_or_none(step.loss_share), [name(i) for i in step.ids]) for step in skipped],
            wait_share=waited / (waited + trained),
            stage_seconds=waited + trained,
            memory_bytes=memory_bytes,
            joules=joules,
        )

    def examine(self, steps: list[Step], norms: list[float], loss: float | None, reports: Sequence[RankReport]) -> None:
        """Examine some steps, given their gradient norms, their mean loss, and every rank's report.

        Raises  ConfigError, on all ranks, if the run should end.
        """
        last = steps[-1].moment
        self._examine_images(last.step + 1, dict(ChainMap(*(report.broken for report in reports))))
        self._examine_gradients(steps, norms, reports)
        self._examine_loss(last.step + 1, last.stage, loss)
        self._examine_waiting(last.stage, reports)

    def _warn(self, text: str) -> None:
        self._training.world.log(text, logging.WARNING)

    def _examine_images(self, steps_done: int, broken: dict[str, str]) -> None:
        new = sorted(broken.keys() - self._broken.keys())
        for name in new:
            self._journal.write("broken_image", steps_done=steps_done, image=name, reason=broken[name])
        self._broken |= broken
        count, total = len(self._broken), len(self._training.images)
        if count / total > BROKEN_LIMIT:
            name = min(self._broken)
            raise ConfigError(
                f"{count} of {total} images are broken, more than {BROKEN_LIMIT:.0%}, such as {name} "
                f"({self._broken[name]}); repair or remove the images listed in journal.jsonl"
            )
        if new:
            self._warn(
                f"{count} broken images were replaced by others, such as {new[0]}; the journal lists them all, and "
                f"more than {BROKEN_LIMIT:.0%} of them end the run"
            )

    def _examine_gradients(self, steps: list[Step], norms: list[float], reports: Sequence[RankReport]) -> None:
        skipped = iter(zip(*(report.skipped for report in reports), strict=True))
        for index, (step, norm) in enumerate(zip(steps, norms, strict=True)):
            if math.isfinite(norm):
                self._skipped_in_a_row.clear()
                continue
            self._skipped_in_a_row.append(step.moment.step)
            by_rank = next(skipped)
            self._log_skipped(step, by_rank)
            if len(self._skipped_in_a_row) == MAX_SKIPPED:
                self._capture(exact=not any(map(math.isfinite, norms[index:])))
                raise DivergedError(
                    f"loss or gradient was not finite in {MAX_SKIPPED} steps in a row, up to step {step.moment.step} "
                    f"({by_rank[guilty_rank(by_rank) or 0].images[0]} and others, listed in journal.jsonl); "
                    f"{DIVERGENCE_ADVICE}, in a new --run; {self._good_checkpoint()}"
                )

    def _log_skipped(self, step: Step, by_rank: Sequence[SkippedStep]) -> None:
        moment, guilty = step.moment, guilty_rank(by_rank)
        self._skipped_count += 1
        self._journal.write(
            "skipped",
            steps_done=moment.step + 1,
            stage=moment.stage,
            losses_by_rank=[each.loss for each in by_rank],
            images_by_rank=[each.images for each in by_rank],
        )
        cause = "its gradient" if guilty is None else f"the loss of rank {guilty}"
        advice = f". The journal lists its images; if more follow, {DIVERGENCE_ADVICE}"
        self._warn(
            f"step {moment.step} in stage {moment.stage + 1} is skipped, {self._skipped_count} so far: {cause} was not "
            f"finite{advice if self._skipped_count == 1 else ''}"
        )

    def _good_checkpoint(self) -> str:
        """Return words for the newest checkpoint from before the skipped steps."""
        if self._journal.path is None:  # only rank 0 prints them
            return ""
        steps = map(steps_of, RunFolder(self._journal.path.parent).checkpoints)
        before = max((step for step in steps if step <= self._skipped_in_a_row[0]), default=None)
        return "there is no checkpoint from before" if before is None else f"the checkpoint of step {before} is good"

    def _capture(self, *, exact: bool) -> None:
        """Save the weights for `replay`; not exact if steps were made since the first skipped one."""
        if self._journal.path is None:
            return
        state = {"steps_done": self._skipped_in_a_row[0], "exact": exact, "model": self._training.model.state_dict()}
        path = self._journal.path.with_name(CAPTURE)
        temporary = path.with_suffix(".aside")
        try:
            write_temporary(temporary, partial(write_state, state))
            rename_into_place(temporary, path)
        except OSError as error:
            self._warn(f"the weights could not be captured: {error}")

    def _examine_loss(self, steps_done: int, stage: int, loss: float | None) -> None:
        if stage != self._stage:
            self._losses.clear()  # losses at other sizes do not compare
        self._stage = stage
        if loss is None:
            return
        if is_spike(loss, self._losses):
            lowest = min(self._losses)
            self._journal.write("spike", steps_done=steps_done, loss=loss, before=lowest)
            self._warn(
                f"the loss is {loss:.4g} at step {steps_done}, {loss / lowest:.1f} times what it was; if it stays "
                "there, lower optim.base_lr, lengthen optim.warmup or set optim.clip_norm"
            )
            self._losses.clear()
        self._losses.append(loss)

    def _examine_waiting(self, stage: int, reports: Sequence[RankReport]) -> None:
        worst = max(reports, key=lambda report: report.wait_share)
        long = worst.wait_share * worst.stage_seconds > MIN_WAIT_SECONDS
        if stage in self._warned_stages or worst.wait_share <= MAX_WAIT_SHARE or not long:
            return
        self._warned_stages.add(stage)
        workers = self._training.config.data.workers
        self._journal.write("waiting", stage=stage, share=worst.wait_share, workers=workers)
        self._warn(
            f"stage {stage + 1} waits for data {worst.wait_share:.0%} of its time; raise data.workers (now {workers} "
            "per process), give the job more CPU cores, or move the images to a faster disk"
        )


def guilty_rank(by_rank: Sequence[SkippedStep]) -> int | None:
    """Return the first rank whose loss was not finite; None if only the gradient was not."""
    return next((rank for rank, skipped in enumerate(by_rank) if skipped.loss is None), None)


def is_spike(loss: float, before: Collection[float]) -> bool:
    """Return whether a loss is a spike after the losses `before`."""
    return len(before) == SPIKE_REPORTS and loss > SPIKE_FACTOR * min(before) > 0
