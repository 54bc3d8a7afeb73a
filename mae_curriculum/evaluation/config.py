"""Settings of evaluations."""

from dataclasses import dataclass

from mae_curriculum.config import ConfigError, exempt


@dataclass(frozen=True)
class KnnConfig:
    """The kNN accuracy of a run, where its images have classes."""

    every_epochs: int | None = exempt(None)
    """Equivalent epochs between two measurements during pretraining; null for the end alone."""
    neighbours: int = exempt(20)
    """Nearest training images that vote."""
    temperature: float = exempt(0.07)
    """A vote weighs exp(cosine similarity / temperature)."""
    batch_images: int = exempt(256)
    """Images encoded at once on each device."""

    def __post_init__(self) -> None:
        if self.every_epochs is not None and self.every_epochs < 1:
            raise ConfigError(f"knn.every_epochs must be at least 1 or null, got {self.every_epochs}")
        if self.neighbours < 1 or self.temperature <= 0 or self.batch_images < 1:
            raise ConfigError("knn: neighbours >= 1, temperature > 0 and batch_images >= 1, got " + repr(self))
