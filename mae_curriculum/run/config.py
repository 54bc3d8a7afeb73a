"""Settings of saving."""

from dataclasses import dataclass

from mae_curriculum.config import ConfigError, exempt


@dataclass(frozen=True)
class SavingConfig:
    """When a run is saved, and which checkpoints are kept."""

    every_minutes: float = exempt(10.0)
    """Minutes between checkpoints, above 0; a final one is always written at the end."""
    keep: int = exempt(2)
    """Number of most recent checkpoints to keep, at least 1."""
    keep_every_epochs: int | None = exempt(None)
    """Equivalent epochs between checkpoints that are kept permanently, at least 1; null for none."""

    def __post_init__(self) -> None:
        if self.every_minutes <= 0:
            raise ConfigError(f"saving.every_minutes must be above 0, got {self.every_minutes}")
        for name in ("keep", "keep_every_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"saving.{name} must be at least 1, got {value}")
