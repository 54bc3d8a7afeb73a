"""Settings of reports, pictures and Weights & Biases."""

import re
from dataclasses import dataclass
from typing import Literal

from mae_curriculum.config import ConfigError, exempt

Mode = Literal["online", "offline", "disabled"]


MAX_IMAGES = 64
"""Maximum number of images in one picture: viewers refuse taller files."""


@dataclass(frozen=True)
class TrackingConfig:
    """What a run logs, how often, and where."""

    every_steps: int = exempt(20)
    """Steps between rows of metrics in the journal, at least 1; losses are copied from the device only then."""
    wandb: Mode = exempt("disabled")
    """Weights & Biases: online, offline (writes to RUN/wandb, for `wandb sync`) or disabled."""
    project: str = exempt("mae-curriculum")
    """W&B project."""
    entity: str | None = exempt(None)
    """W&B user or team; null for the account's default."""
    pictures: int = exempt(8)
    """Number of images whose reconstructions are drawn after each pretraining stage, always the same ones; 0 to 64."""

    def __post_init__(self) -> None:
        if not 0 <= self.pictures <= MAX_IMAGES:
            raise ConfigError(f"tracking.pictures must be in 0..{MAX_IMAGES}, got {self.pictures}")
        if not re.fullmatch(r"[^/\\#?%:]{1,128}", self.project):
            raise ConfigError(
                f"tracking.project must be 1 to 128 characters, none of / \\ # ? % :, got '{self.project}'"
            )
        if self.every_steps < 1:
            raise ConfigError(f"tracking.every_steps must be at least 1, got {self.every_steps}")
