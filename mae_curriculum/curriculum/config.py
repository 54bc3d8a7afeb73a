"""Settings of the curriculum: how large images are and how strongly they are augmented, in shares of a run.

`clock` applies them to one run. Pure Python, without torch.
Source  EfficientTrain (arXiv:2211.09703), EfficientTrain++ (arXiv:2405.08768).
"""

from dataclasses import dataclass
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
    reset_moments: bool = False
    """Reset the optimizer's moments at the start of each stage; for ablations."""

    def __post_init__(self) -> None:
        shares = [stage.share for stage in self.stages]
        if min(shares, default=0) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(
                f"curriculum.stages: shares must be positive and sum to 1; got {shares}, which sum to {sum(shares):g}"
            )

    @classmethod
    def preset(cls, name: str) -> "Curriculum":
        """Load a curriculum by the name of its recipe, such as "efficienttrain", or from a YAML file.

        Raises  ConfigError for an unknown name, with those that there are, and for a file that cannot be read.
        """
        try:
            return load_file(cls, Path(name))
        except ConfigError as error:
            raise ConfigError(f"curriculum: {str(error).removeprefix('--config: ')}") from error
