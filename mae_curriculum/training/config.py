"""Settings that every training run shares."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from mae_curriculum.config import ConfigError, exempt
from mae_curriculum.curriculum.schedule import REFERENCE_SIZE, Curriculum, Stage
from mae_curriculum.data.config import DataConfig
from mae_curriculum.precision import Precision
from mae_curriculum.run.config import SavingConfig
from mae_curriculum.run.stop import parse_duration
from mae_curriculum.tracking.config import TrackingConfig


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, with MAE's values by default."""

    base_lr: float = 1.5e-4
    """Peak learning rate for a batch of 256; it grows in proportion to the batch."""
    min_lr: float = 0.0
    """Learning rate at the end, for a batch of 256."""
    warmup: float = 0.05
    """Share of the run during which the learning rate rises, 0 to below 1."""
    weight_decay: float = 0.05
    """For weight matrices; biases, norms and tokens have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's two moments."""
    clip_norm: float | None = None
    """Largest norm of the gradient, or null for no clipping."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"optim.warmup is a share of the run, 0 to below 1, got {self.warmup}")
        if self.base_lr <= 0 or not 0 <= self.min_lr <= self.base_lr:
            raise ConfigError(f"optim: 0 <= min_lr <= base_lr and base_lr > 0, got {self.min_lr} and {self.base_lr}")
        if self.weight_decay < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim: weight_decay >= 0, betas in 0..1, got {self.weight_decay}, {list(self.betas)}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ConfigError(f"optim.clip_norm must be above 0 or null, got {self.clip_norm}")


@dataclass(frozen=True)
class TrainingConfig:
    """What every training run is told."""

    run: Path = exempt(Path("runs/training"))
    """Folder of the run. Starting again with the same folder and settings continues the run."""
    data: DataConfig = DataConfig()
    """The images."""
    curriculum: Curriculum = Curriculum()
    """Image size and augmentation over the run: inline, or a path to its own file, laid over what stands here."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    saving: SavingConfig = SavingConfig()
    """When the run is saved."""
    tracking: TrackingConfig = TrackingConfig()
    """How often the run reports."""
    batch_size: int = 4096
    """Images per optimizer step, over all devices."""
    micro_batch: int | None = exempt(None)
    """Most images that a device takes at once at full size, more at smaller ones; null for no limit. A step's images
    beyond it are accumulated."""
    epochs: int = 800
    """Equivalent epochs: passes over the data that the run without curriculum would make."""
    seed: int = 0
    """Of weights, order, augmentation and every other random choice."""
    time_limit: str | None = exempt(None)
    """How long the command may run before it saves and stops, to be continued: minutes, HH:MM:SS or D-HH:MM:SS; null
    for no limit but the scheduler's."""
    precision: Precision = "auto"
    """Arithmetic of the model. auto is bfloat16 on GPUs that have it, else float32: on a CPU bfloat16 pays only where
    it has units for it, and then only for large models."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch", "epochs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.time_limit is not None:
            parse_duration(self.time_limit)
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be in 0..2**63-1, got {self.seed}")


C = TypeVar("C", bound=TrainingConfig)


def check_channels(config: TrainingConfig, channels: int) -> None:
    """Raise ConfigError for settings that do not go with images of so many channels."""
    if config.curriculum.augmentation.randaug and channels not in (1, 3):
        raise ConfigError(f"curriculum.augmentation.randaug needs 1 or 3 channels, not {channels}; set it to null")
    config.data.statistics(channels)


def without_curriculum(config: C) -> C:
    """Give the settings of the baseline: the same run at full size from the beginning."""
    full = replace(config.curriculum, pace="images", stages=(Stage(share=1.0, size=REFERENCE_SIZE),))
    return replace(config, curriculum=full)
