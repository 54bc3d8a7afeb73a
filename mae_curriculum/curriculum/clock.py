"""What the encoder sees at every step of a run.

A `Clock` applies a `Curriculum` to one run (image size, patch size, images per epoch, epochs, batch size) and answers
every question about time: it converts between steps, images, epochs and progress, and knows size and strength at each
step. Nothing else decides these. Pure Python: positions are fractions, so nothing drifts on long runs.

Terms   *step* is one optimizer update; *progress* is the share of the run that is done, 0 to 1; an *equivalent epoch*
        is 1/epochs of the progress: with `pace: compute` it has more than one real pass while images are small.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.config import REFERENCE_SIZE, Curriculum, Resize, Stage


@dataclass(frozen=True)
class View:
    """What the encoder sees of an image, as far as that depends on the stage. Costs are functions of it."""

    size: tuple[int, int]
    """Height and width, pixels."""
    mask_ratio: float = 0.0
    """Share of the patches that are hidden from the encoder; 0 for models that mask nothing."""
    resize: Resize = "fourier"
    """How images are resized to the size."""


@dataclass(frozen=True)
class Span:
    """A stage of a run: steps first_step .. first_step + steps - 1, all with one view and batch size."""

    index: int
    view: View
    batch_images: int
    """Images in each step, over all ranks."""
    first_step: int
    steps: int
    first_image: int
    """Number of images seen before this stage."""
    start: Fraction
    """Progress before its first step."""
    share: Fraction
    """Share of the run."""
    area_share: Fraction
    """Area of an image in this stage, as a share of the full image's."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, pixels."""
        return self.view.size

    @property
    def images(self) -> int:
        """Number of images that this stage sees."""
        return self.steps * self.batch_images

    @property
    def end_step(self) -> int:
        """Number of the run's steps that are done when this stage ends."""
        return self.first_step + self.steps

    @property
    def end(self) -> Fraction:
        """Progress after its last step."""
        return self.start + self.share


@dataclass(frozen=True)
class Moment:
    """Everything that depends on time, for one step."""

    step: int
    stage: int
    view: View
    first_image: int
    """Position of the step's first image in the sequence of all epochs."""
    batch_images: int
    progress: float
    """Progress before the step."""
    magnitude: float | None
    """RandAugment magnitude, or None for no RandAugment."""
    min_area: float
    """Smallest crop, as a share of the image's area."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that the encoder sees, pixels."""
        return self.view.size


class Clock:
    """A curriculum applied to one run."""

    def __init__(
        self,
        curriculum: Curriculum,
        *,
        image_size: tuple[int, int],
        patch_size: tuple[int, int],
        images_per_epoch: int,
        epochs: int,
        batch_images: int,
        mask_ratio: float = 0.0,
    ) -> None:
        """Compute the stages' steps.

        batch_images  images per step where a stage's `batch_factor` is 1.
        mask_ratio    that of the model, for stages without their own.

        Stages end at the whole step nearest to their share, so that a run paced by images has exactly as many steps as
        the run without a curriculum. Batches continue across the end of an epoch: no image is dropped.

        Raises  ConfigError if a stage would be shorter than a step.
        """
        self.curriculum = curriculum
        self.images_per_epoch = images_per_epoch
        self.epochs = epochs
        self.batch_images = batch_images
        self.spans: tuple[Span, ...] = tuple(self._build_spans(image_size, patch_size, batch_images, mask_ratio))

    def _build_spans(
        self, image_size: tuple[int, int], patch_size: tuple[int, int], batch_images: int, mask_ratio: float
    ) -> Sequence[Span]:
        shares = [Fraction(str(stage.share)) for stage in self.curriculum.stages]
        total_share, full_area = sum(shares), image_size[0] * image_size[1]
        spans: list[Span] = []
        start, exact_steps, first_step, first_image = Fraction(0), Fraction(0), 0, 0
        for index, (stage, share) in enumerate(zip(self.curriculum.stages, shares, strict=True)):
            size = stage_size(stage.size, image_size, patch_size)
            share /= total_share
            area_share = Fraction(size[0] * size[1], full_area)
            images = share * Fraction(str(stage.images_factor)) * self.epochs * self.images_per_epoch
            if self.curriculum.pace == "compute":
                images /= area_share
            batch = _stage_batch(stage, batch_images)
            exact_steps += images / batch
            steps = _round(exact_steps) - first_step
            if steps < 1:
                raise ConfigError(
                    f"curriculum.stages: stage {index + 1} of {len(shares)} would have {float(images):g} images, fewer "
                    f"than one step of {batch}; raise epochs ({self.epochs}) or lower batch_size ({batch_images})"
                )
            view = View(size, stage.mask_ratio or mask_ratio, stage.resize or self.curriculum.resize)
            spans.append(Span(index, view, batch, first_step, steps, first_image, start, share, area_share))
            start, first_step, first_image = spans[-1].end, first_step + steps, first_image + spans[-1].images
        return spans

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        return self.spans[-1].end_step

    @property
    def total_images(self) -> int:
        """Number of images that the whole run sees."""
        return self.spans[-1].first_image + self.spans[-1].images

    def span(self, step: int) -> Span:
        """Return the stage of a step; the end of the run belongs to the last stage."""
        if not 0 <= step <= self.total_steps:
            raise ValueError(f"step must be in 0..{self.total_steps}, got {step}")
        return self.spans[bisect_right(self.spans, step, key=lambda span: span.first_step) - 1]

    def images(self, step: int) -> int:
        """Return the number of images seen before a step."""
        span = self.span(step)
        return span.first_image + (step - span.first_step) * span.batch_images

    def real_epochs(self, step: int) -> Fraction:
        """Return the number of passes over the data before a step."""
        return Fraction(self.images(step), self.images_per_epoch)

    def progress(self, step: int) -> Fraction:
        """Return the share of the run that is done before a step, 0 to 1; it grows linearly within a stage."""
        span = self.span(step)
        return span.start + span.share * Fraction(step - span.first_step, span.steps)

    def progress_after(self, real_epochs: float) -> Fraction:
        """Return the share of the run that is done after a number of passes over the data; 1 beyond its end."""
        images = Fraction(str(real_epochs)) * self.images_per_epoch
        span = next(span for span in reversed(self.spans) if span.first_image <= images)
        return span.start + span.share * min(Fraction(1), (images - span.first_image) / span.images)

    def equivalent_epochs(self, step: int) -> Fraction:
        """Return the number of equivalent epochs before a step."""
        return self.progress(step) * self.epochs

    def moment(self, step: int) -> Moment:
        """Return everything that depends on time, for a step."""
        span, progress = self.span(step), float(self.progress(step))
        augmentation = self.curriculum.augmentation
        min_area = self.curriculum.stages[span.index].min_area
        return Moment(
            step=step,
            stage=span.index,
            view=span.view,
            first_image=self.images(step),
            batch_images=span.batch_images,
            progress=progress,
            magnitude=None if augmentation.randaug is None else _between(augmentation.randaug, progress),
            min_area=_between(augmentation.min_area, progress) if min_area is None else min_area,
        )


def stage_size(size: int, image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Return the size (height, width) that is `size` at the reference of 224, in whole patches, at least one."""
    height, width = (
        max(1, _round(Fraction(size * side, REFERENCE_SIZE * patch))) * patch
        for side, patch in zip(image_size, patch_size, strict=True)
    )
    return height, width


def _stage_batch(stage: Stage, batch_images: int) -> int:
    """Return a stage's images per step; a factor gives an even number of them, since mixup mixes pairs."""
    if stage.batch_factor == 1:
        return batch_images
    return max(2, 2 * _round(Fraction(str(stage.batch_factor)) * batch_images / 2))


def _between(ends: tuple[float, float], progress: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * progress


def _round(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))
