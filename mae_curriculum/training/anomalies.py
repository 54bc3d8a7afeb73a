"""A run's health: what is named, warned of with the knob to turn, and what ends it."""

import math
from collections import ChainMap, deque
from collections.abc import Callable, Collection
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
"""Steps in a row without finite loss or gradient that end a run: one may be a bad batch, five tell that it diverged."""

MAX_WAIT_SHARE, MIN_WAIT_SECONDS = 0.05, 5.0
"""Share of a stage's time that it may wait for data without a warning; of less than these seconds nobody need know."""

SPIKE, SPIKE_REPORTS = 2.0, 10
"""A loss so many times the least of so many reports before is told: at a change of size it moves by less."""

DIVERGENCE_ADVICE = "lower optim.base_lr, or set optim.clip_norm or precision float32"

CAPTURE = "capture.pt"
"""In the run folder: the weights before the first of the steps that ended the run, for `replay`."""


class AnomalyDetector:
    """Watches over a run's steps; what it finds goes to the journal and to the user."""

    def __init__(
        self, training: Training[Any], journal: Journal, stopwatch: Stopwatch, say: Callable[[str], object]
    ) -> None:
        """Begin to watch; `say` prints a line."""
        self._training, self._journal, self._stopwatch, self._say = training, journal, stopwatch, say
        self._broken: dict[str, str] = {}
        self._skipped: list[int] = []
        """The steps that were skipped last, in a row."""
        self._skips = 0
        """Steps that were skipped, in this job."""
        self._losses: deque[float] = deque(maxlen=SPIKE_REPORTS)
        self._before = Stopwatch(dict(stopwatch.seconds))
        """What earlier jobs took: with other workers, maybe, and on another machine."""
        self._waited: set[int] = set()
        """Stages of whose waiting the user has been warned."""

    @property
    def is_skipping(self) -> bool:
        """Whether the last step that was examined was skipped."""
        return bool(self._skipped)

    def examine(self, steps: list[Step], norms: list[float], loss: float | None) -> None:
        """Look at some steps, their gradients' norms and mean loss; raises ConfigError if the run had better end."""
        self._name_broken(steps)
        self._name_skipped(steps, norms)
        self._warn_of_spike(steps[-1].moment.step, loss)
        self._warn_of_waiting(steps[-1].moment.stage)

    def _name_broken(self, steps: list[Step]) -> None:
        training = self._training
        reasons = dict(ChainMap(*training.world.gather(dict(ChainMap(*(step.broken for step in steps))))))
        new = sorted(reasons.keys() - self._broken.keys())
        for name in new:
            self._journal.write("broken_image", steps_done=steps[-1].moment.step + 1, image=name, reason=reasons[name])
        self._broken |= reasons
        share = len(self._broken) / len(training.images)
        if share > BROKEN_LIMIT:
            name = min(self._broken)
            raise ConfigError(
                f"{len(self._broken)} of {len(training.images)} images are broken, more than {BROKEN_LIMIT:.0%}, such "
                f"as {name} ({self._broken[name]}); mend or remove those that journal.jsonl names"
            )
        if new:
            self._say(
                f"warning: {len(self._broken)} broken images are replaced by others, such as {new[0]}; the journal "
                f"names them all, and more than {BROKEN_LIMIT:.0%} of them end the run"
            )

    def _name_skipped(self, steps: list[Step], norms: list[float]) -> None:
        for index, (step, norm) in enumerate(zip(steps, norms, strict=True)):
            if math.isfinite(norm):
                self._skipped.clear()
                continue
            self._skipped.append(step.moment.step)
            mine = (finite_or_none(step.loss_share), [self._training.images.name(index) for index in step.ids])
            losses, names = zip(*self._training.world.gather(mine), strict=True)
            facts = {"stage": step.moment.stage, "losses_by_rank": losses, "images_by_rank": names}
            self._journal.write("skipped", steps_done=step.moment.step + 1, **facts)
            guilty = [rank for rank, loss in enumerate(losses) if loss is None]
            self._skips += 1
            self._say(
                f"warning: step {step.moment.step} in stage {step.moment.stage + 1} is skipped, {self._skips} so far: "
                f"{f'the loss of rank {guilty[0]}' if guilty else 'its gradient'} was not finite"
                + (
                    f". The journal names its images; if there are more, {DIVERGENCE_ADVICE}"
                    if self._skips == 1
                    else ""
                )
            )
            if len(self._skipped) == MAX_SKIPPED:
                self._capture(exact=not any(map(math.isfinite, norms[index:])))
                raise ConfigError(
                    f"loss or gradient was not finite in {MAX_SKIPPED} steps in a row, up to step {step.moment.step} "
                    f"({names[guilty[0] if guilty else 0][0]} and others, which journal.jsonl names); "
                    f"{DIVERGENCE_ADVICE}, in another --run, which begins anew; {self._good_checkpoint()}"
                )

    def _good_checkpoint(self) -> str:
        """Say which checkpoint is from before the steps that were skipped."""
        if self._journal.path is None:  # another rank says it
            return ""
        steps = map(steps_of, RunFolder(self._journal.path.parent).checkpoints)
        before = max((step for step in steps if step <= self._skipped[0]), default=None)
        return "there is no checkpoint from before" if before is None else f"the checkpoint of step {before} is good"

    def _capture(self, *, exact: bool) -> None:
        """Keep the weights with which the steps were skipped; not exact if others were made since."""
        if self._journal.path is not None:
            state = {"steps_done": self._skipped[0], "exact": exact, "model": self._training.model.state_dict()}
            path = self._journal.path.with_name(CAPTURE)
            try:
                write_temporary(aside := path.with_suffix(".aside"), partial(write_state, state))
                rename_into_place(aside, path)
            except OSError as error:
                self._say(f"warning: no capture of the weights: {error}")

    def _warn_of_spike(self, step: int, loss: float | None) -> None:
        if loss is None:
            return
        if is_spike(loss, self._losses):
            self._journal.write("spike", steps_done=step + 1, loss=loss, before=min(self._losses))
            self._say(
                f"warning: the loss is {loss:.4g} at step {step}, {loss / min(self._losses):.1f} times what it was; if "
                "it stays, lower optim.base_lr, lengthen optim.warmup or set optim.clip_norm"
            )
            self._losses.clear()
        self._losses.append(loss)

    def _warn_of_waiting(self, stage: int) -> None:
        clocks = [f"{name}/{stage}" for name in ("wait", "train")]
        waited, trained = (self._stopwatch.total(clock) - self._before.total(clock) for clock in clocks)
        shares = self._training.world.gather(waited / (waited + trained))
        share = max(shares)
        if stage not in self._waited and share > MAX_WAIT_SHARE and share * (waited + trained) > MIN_WAIT_SECONDS:
            self._waited.add(stage)
            workers = self._training.config.data.workers
            self._journal.write("waiting", stage=stage, share=share, workers=workers)
            self._say(
                f"warning: stage {stage + 1} waits for data {share:.0%} of its time; raise data.workers ({workers} for "
                "each process now), give the job more CPU cores, or bring the images nearer"
            )


def is_spike(loss: float, before: Collection[float]) -> bool:
    """Tell whether a loss stands out from enough of those before it."""
    return len(before) == SPIKE_REPORTS and loss > SPIKE * min(before) > 0
