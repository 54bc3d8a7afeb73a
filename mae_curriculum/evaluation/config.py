"""Settings of evaluations."""

from dataclasses import dataclass

from mae_curriculum.config import ConfigError, exempt


@dataclass(frozen=True)
class KnnConfig:
    """kNN accuracy of a run, if its images have classes."""

    every_epochs: int | None = exempt(None)
    """Equivalent epochs between two evaluations during pretraining; null for one at the end."""
    neighbours: int = 20
    """Number of nearest training images that vote."""
    temperature: float = 0.07
    """Temperature of the votes: each weighs exp(cosine similarity / temperature)."""
    batch_images: int = exempt(256)
    """Images that a device encodes at once."""

    def __post_init__(self) -> None:
        if self.every_epochs is not None and self.every_epochs < 1:
            raise ConfigError(f"knn.every_epochs must be at least 1 or null, got {self.every_epochs}")
        if self.neighbours < 1 or self.temperature <= 0 or self.batch_images < 1:
            raise ConfigError("knn: neighbours >= 1, temperature > 0 and batch_images >= 1, got " + repr(self))
