"""Settings that all training runs share, and the clock that follows from them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from mae_curriculum.config import ConfigError, exempt
from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.curriculum.config import REFERENCE_SIZE, Curriculum, Stage
from mae_curriculum.data.config import DataConfig
from mae_curriculum.precision import Precision
from mae_curriculum.run.config import SavingConfig
from mae_curriculum.run.stop import parse_duration
from mae_curriculum.tracking.config import TrackingConfig


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, with MAE's values by default."""

    base_lr: float = 1.5e-4
    """Peak learning rate for a batch size of 256; scaled linearly with `batch_size`."""
    min_lr: float = 0.0
    """Final learning rate for a batch size of 256; scaled like `base_lr`."""
    batch_factor_lr: Literal["linear", "sqrt", "none"] = "linear"
    """How the learning rate of a stage follows its `batch_factor`: in proportion, by the square root, or not at all."""
    warmup: float | None = 0.05
    """Fraction of the run's progress spent in linear warm-up, at least 0 and below 1; null where `warmup_epochs` is
    given. EfficientTrain++ has 0.2 for DeiT: its 96-pixel stage."""
    warmup_epochs: float | None = None
    """Real epochs of linear warm-up, at least 0, in place of `warmup`. EfficientTrain++ has 20 for all but DeiT."""
    weight_decay: float = 0.05
    """Weight decay of matrices, class token and mask token; biases and normalization parameters are not decayed."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas: decay rates of its two moment estimates."""
    clip_norm: float | None = None
    """Maximum gradient norm; larger gradients are clipped to it. null for no clipping."""

    def __post_init__(self) -> None:
        if (self.warmup is None) == (self.warmup_epochs is None):
            raise ConfigError(
                f"optim: warm-up is either a share of the run or real epochs, got warmup {self.warmup} and "
                f"warmup_epochs {self.warmup_epochs}; set one of them to null"
            )
        if self.warmup_epochs is not None and self.warmup_epochs < 0:
            raise ConfigError(f"optim.warmup_epochs must be at least 0 or null, got {self.warmup_epochs}")
        if self.warmup is not None and not 0 <= self.warmup < 1:
            raise ConfigError(f"optim.warmup is a share of the run, 0 to below 1, got {self.warmup}")
        if self.base_lr <= 0 or not 0 <= self.min_lr <= self.base_lr:
            raise ConfigError(f"optim: 0 <= min_lr <= base_lr and base_lr > 0, got {self.min_lr} and {self.base_lr}")
        if self.weight_decay < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim: weight_decay >= 0, betas in 0..1, got {self.weight_decay}, {list(self.betas)}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ConfigError(f"optim.clip_norm must be above 0 or null, got {self.clip_norm}")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings shared by all training runs."""

    run: Path = exempt(Path("runs/training"))
    """Run folder. Running the same command again resumes the run."""
    data: DataConfig = DataConfig()
    """Images and how to load them."""
    curriculum: Curriculum = Curriculum()
    """Image size and augmentation over the run, given inline or as the name or path of a curriculum file."""
    optim: OptimConfig = OptimConfig()
    """Optimizer and learning rate."""
    saving: SavingConfig = SavingConfig()
    """Checkpoints."""
    tracking: TrackingConfig = TrackingConfig()
    """Reports, pictures and W&B."""
    batch_size: int | None = None
    """Images per optimizer step, across all devices. null lets pretraining choose it from the number of images."""
    micro_batch: int | None = None
    """Maximum number of images that a device processes at once at full size (more at smaller sizes); larger batches
    accumulate gradients. null for no limit. Affects batch norm and drop path, so it cannot change within a run."""
    epochs: int | None = None
    """Equivalent epochs: passes over the data that the same run without a curriculum would make. null lets pretraining
    choose them from the number of images."""
    seed: int = 0
    """Seed for weights, data order, augmentation, masks and all other randomness, 0 to 2**63 - 1."""
    time_limit: str | None = exempt(None)
    """Time after which the command saves and stops, so that it can be resumed: minutes, HH:MM:SS or D-HH:MM:SS; null
    for no limit other than the scheduler's."""
    precision: Precision = "auto"
    """Precision of the model's computations. auto: bfloat16 on GPUs that support it, otherwise float32."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "run", Path(self.run))  # scripts may give it as text
        for name in ("batch_size", "micro_batch", "epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.time_limit is not None:
            parse_duration(self.time_limit)
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be in 0..2**63-1, got {self.seed}")


C = TypeVar("C", bound=TrainingConfig)


def check_channels(config: TrainingConfig, channels: int) -> None:
    """Raise ConfigError for settings that do not fit images with this number of channels."""
    if config.curriculum.augmentation.randaug and channels not in (1, 3):
        raise ConfigError(f"curriculum.augmentation.randaug needs 1 or 3 channels, not {channels}; set it to null")
    config.data.statistics(channels)


def without_curriculum(config: C) -> C:
    """Return the settings of the baseline: the same run at full size from the start.

    It is there to be costed, and has no warm-up of real epochs: the baseline may have fewer than the run's warm-up.
    """
    full = replace(config.curriculum, pace="images", stages=(Stage(share=1.0, size=REFERENCE_SIZE),))
    optim = replace(config.optim, warmup=config.optim.warmup or 0.0, warmup_epochs=None)
    return replace(config, curriculum=full, optim=optim)


def without_batch_factors(config: C) -> C:
    """Return the settings of the same run with equal batches in all stages."""
    stages = tuple(replace(stage, batch_factor=1.0) for stage in config.curriculum.stages)
    return replace(config, curriculum=replace(config.curriculum, stages=stages))


def build_training_clock(
    config: TrainingConfig,
    *,
    image_size: tuple[int, int],
    patch_size: tuple[int, int],
    images_per_epoch: int,
    processes: int = 1,
    mask_ratio: float = 0.0,
) -> Clock:
    """Build the clock of a run; raises ConfigError for stages that cannot be trained."""
    assert config.epochs is not None, "choices come first"
    assert config.batch_size is not None, "choices come first"
    clock = Clock(
        config.curriculum,
        image_size=image_size,
        patch_size=patch_size,
        images_per_epoch=images_per_epoch,
        epochs=config.epochs,
        batch_images=config.batch_size,
        mask_ratio=mask_ratio,
    )
    warmup, real_epochs = config.optim.warmup_epochs or 0, clock.real_epochs(clock.total_steps)
    if warmup >= real_epochs:
        raise ConfigError(
            f"optim.warmup_epochs must be below the run's {float(real_epochs):.4g} real epochs, got {warmup}"
        )
    fewest = min(span.batch_images for span in clock.spans)
    if fewest < processes:
        raise ConfigError(
            f"batch_size {config.batch_size} makes steps of {fewest} images, fewer than the {processes} "
            "processes; raise it or start fewer processes"
        )
    return clock
