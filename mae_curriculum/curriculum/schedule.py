"""The curriculum: what the encoder sees at every step of a run.

A `Curriculum` defines, in shares of a run, how large images are and how strongly they are augmented. A `Clock` applies
it to one run (image size, patch size, images per epoch, epochs, batch size) and answers every question about time: it
converts between steps, images, epochs and progress, and knows size and strength at each step. Nothing else decides
these. Pure Python: positions are fractions, so nothing drifts on long runs.

Terms   *step* is one optimizer update; *progress* is the share of the run that is done, 0 to 1; an *equivalent epoch*
        is 1/epochs of the progress: with `pace: compute` it has more than one real pass while images are small.
Source  EfficientTrain (arXiv:2211.09703), EfficientTrain++ (arXiv:2405.08768).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Literal

from mae_curriculum.config import ConfigError, load_file

REFERENCE_SIZE = 224
"""Image size in pixels that the sizes of a curriculum refer to, as in the papers' tables."""

Resize = Literal["fourier", "lanczos", "bicubic"]
"""How images are resized to a stage's size."""


@dataclass(frozen=True)
class ReplayBuffer:
    """Crops that are used more than once, so that fewer images have to be loaded; masks are new each time."""

    factor: int
    """Of this many crops in a batch, one is new; the others are drawn from the buffer. At least 2."""
    steps: int
    """Steps of the stage, the present one included, whose new crops are kept, at least 1."""

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise ConfigError(f"curriculum.stages: replay_buffer.factor must be at least 2, got {self.factor}")
        if self.steps < 1:
            raise ConfigError(f"curriculum.stages: replay_buffer.steps must be at least 1, got {self.steps}")


@dataclass(frozen=True)
class Stage:
    """A part of a run with one image size."""

    share: float
    """Share of the run, above 0; the shares of all stages sum to 1."""
    size: int
    """Image side relative to a reference of 224: 224 stands for the model's full image size, 112 for half of it."""
    batch_factor: float = 1.0
    """Images per step in this stage, as a multiple of `batch_size`; other than 1, rounded to an even number of images.
    `optim.batch_factor_lr` says how the learning rate follows."""
    mask_ratio: float | None = None
    """Fraction of the patches hidden from the encoder in this stage, above 0 and below 1; null for that of the model.
    `micro_batch` does not know it: a lower one needs more memory per image."""
    min_area: float | None = None
    """Smallest random crop in this stage, as a fraction of the image's area, above 0 and at most 1; null for the value
    that `augmentation.min_area` has at each step."""
    resize: Resize | None = None
    """How images are resized in this stage; null for the curriculum's `resize`."""
    replay_buffer: ReplayBuffer | None = None
    """EfficientTrain++'s buffer of crops that are used again, such as {factor: 4, steps: 60}; null for none."""
    images_factor: float = 1.0
    """Images of this stage, as a multiple of those that its share stands for. Below 1, learning rate and augmentation
    go through the stage's share of the run faster: so `search` ends a run early."""

    def __post_init__(self) -> None:
        if not 0 < self.size <= REFERENCE_SIZE:
            raise ConfigError(
                f"curriculum.stages: size {self.size} is larger than the image or not positive; sizes are in "
                f"1..{REFERENCE_SIZE}, at a reference where {REFERENCE_SIZE} is the full image"
            )
        if self.batch_factor <= 0:
            raise ConfigError(f"curriculum.stages: batch_factor must be above 0, got {self.batch_factor}")
        if self.images_factor <= 0:
            raise ConfigError(f"curriculum.stages: images_factor must be above 0, got {self.images_factor}")
        if self.mask_ratio is not None and not 0 < self.mask_ratio < 1:
            raise ConfigError(
                f"curriculum.stages: mask_ratio must be above 0 and below 1, or null, got {self.mask_ratio}"
            )
        if self.min_area is not None and not 0 < self.min_area <= 1:
            raise ConfigError(
                f"curriculum.stages: min_area must be above 0 and at most 1, or null, got {self.min_area}"
            )


@dataclass(frozen=True)
class Augmentation:
    """How strongly images are augmented; each [start, end] is interpolated linearly over the run's progress."""

    randaug: tuple[float, float] | None = None
    """[start, end] of RandAugment's magnitude (mstd 0.5, increasing ops), 0 to 10; null for none. It hurts MAE.
    EfficientTrain's paper has a ramp, as here, with a mean of 4.5; its script steps 1, 3, 5, 7, 9, a mean of 5.0."""
    min_area: tuple[float, float] = (0.2, 0.2)
    """[start, end] of RandomResizedCrop's smallest area, as a fraction of the image's area, above 0 and at most 1."""
    flip: bool = True
    """Flip images horizontally with probability 0.5."""
    erasing: float = 0.0
    """Probability of random erasing (arXiv:1708.04896), 0 to 1; used by classifiers only."""

    def __post_init__(self) -> None:
        if self.randaug is not None and not all(0 <= magnitude <= 10 for magnitude in self.randaug):
            raise ConfigError(f"curriculum.augmentation.randaug: magnitudes are in 0..10, got {list(self.randaug)}")
        if not all(0 < area <= 1 for area in self.min_area):
            raise ConfigError(
                f"curriculum.augmentation.min_area: areas are above 0 and at most 1, got {list(self.min_area)}"
            )
        if not 0 <= self.erasing <= 1:
            raise ConfigError(f"curriculum.augmentation.erasing: a probability, 0 to 1, got {self.erasing}")


@dataclass(frozen=True)
class Curriculum:
    """How input size and augmentation strength grow over a run. A single stage of size 224 is plain MAE."""

    pace: Literal["images", "compute"] = "images"
    """What the shares of stages refer to: the run's images (EfficientTrain) or its compute (EfficientTrain++). With
    compute, a stage sees (full area / area) times as many images as with images."""
    stages: tuple[Stage, ...] = (Stage(share=1.0, size=REFERENCE_SIZE),)
    """Stages, in order."""
    augmentation: Augmentation = Augmentation()
    """Augmentation strength over the run."""
    resize: Resize = "fourier"
    """How images are resized to a stage's size: fourier is the papers' low-frequency crop, the others are cheaper
    approximations."""

    def __post_init__(self) -> None:
        shares = [stage.share for stage in self.stages]
        if min(shares, default=0) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(
                f"curriculum.stages: shares must be positive and sum to 1; got {shares}, which sum to {sum(shares):g}"
            )

    @classmethod
    def preset(cls, name: str) -> "Curriculum":
        """Load a curriculum by the name of its recipe, such as "efficienttrain", or from a YAML file."""
        return load_file(cls, Path(name))


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
