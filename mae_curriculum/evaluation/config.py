"""Settings of evaluations."""

from dataclasses import dataclass
from typing import Literal

from mae_curriculum.config import ConfigError, exempt

Pool = Literal["token", "avg", "class_avg", "tokens"]
"""What an encoder says of an image: the (first) class token, the mean of the patch tokens, the mean of several class
tokens, or all patch tokens."""


@dataclass(frozen=True)
class KnnConfig:
    """kNN classification of labeled images by their features."""

    every_epochs: int | None = exempt(None)
    """Equivalent epochs between evaluations during pretraining; null to evaluate only at the end."""
    neighbors: int = 20
    """Number of nearest training images that vote, k."""
    pool: Literal["token", "avg", "class_avg"] = "avg"
    """Feature of an image: (first) class token, mean of the patch tokens, or mean of several class tokens."""
    temperature: float = 0.07
    """Temperature of the vote: each neighbor has weight exp(cosine similarity / temperature)."""
    batch_images: int = exempt(256)
    """Images per batch on each device."""

    def __post_init__(self) -> None:
        if self.every_epochs is not None and self.every_epochs < 1:
            raise ConfigError(f"knn.every_epochs must be at least 1 or null, got {self.every_epochs}")
        if self.neighbors < 1 or self.temperature <= 0 or self.batch_images < 1:
            raise ConfigError(f"knn: neighbors and batch_images must be at least 1, temperature above 0; got {self}")
