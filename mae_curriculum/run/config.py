"""When a run is saved."""

from dataclasses import dataclass

from mae_curriculum.config import ConfigError, exempt


@dataclass(frozen=True)
class SavingConfig:
    """When the state of a run is saved."""

    every_minutes: float = exempt(10.0)
    """Minutes of running time between checkpoints; one is always written at the end."""
    keep: int = exempt(2)
    """Newest checkpoints that stay, at least 1."""
    keep_every_epochs: int | None = exempt(None)
    """A checkpoint is written, and stays, every so many equivalent epochs; null for none."""

    def __post_init__(self) -> None:
        if self.every_minutes <= 0:
            raise ConfigError(f"saving.every_minutes must be above 0, got {self.every_minutes}")
        for name in ("keep", "keep_every_epochs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"saving.{name} must be at least 1, got {value}")
