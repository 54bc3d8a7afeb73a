"""Settings of reports, pictures and Weights & Biases."""

import re
from dataclasses import dataclass
from typing import Literal

from mae_curriculum.config import ConfigError, exempt

Mode = Literal["online", "offline", "disabled"]


MAX_IMAGES = 64
"""In one picture: more would make it longer than viewers take."""


@dataclass(frozen=True)
class TrackingConfig:
    """How often a run reports, and where."""

    every_steps: int = exempt(20)
    """Steps between two rows of the journal; only then are results brought over from the device."""
    wandb: Mode = exempt("disabled")
    """Whether W&B is told what the journal is told; offline: into RUN/wandb, for `wandb sync`."""
    project: str = exempt("mae-curriculum")
    """Project at W&B."""
    entity: str | None = exempt(None)
    """User or team at W&B; null for the user's own choice there."""
    pictures: int = exempt(8)
    """Images whose reconstruction pretraining draws after each stage, always the same, 0 to 64; 0 for no pictures."""

    def __post_init__(self) -> None:
        if not 0 <= self.pictures <= MAX_IMAGES:
            raise ConfigError(f"tracking.pictures must be in 0..{MAX_IMAGES}, got {self.pictures}")
        if not re.fullmatch(r"[^/\\#?%:]{1,128}", self.project):
            raise ConfigError(f"tracking.project: 1 to 128 characters, none of / \\ # ? % :, got '{self.project}'")
        if self.every_steps < 1:
            raise ConfigError(f"tracking.every_steps must be at least 1, got {self.every_steps}")
