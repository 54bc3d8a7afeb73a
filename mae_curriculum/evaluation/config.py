"""Settings of evaluations."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mae_curriculum.config import ConfigError, exempt
from mae_curriculum.evaluation.scaling import Hardware

Pool = Literal["token", "avg", "class_avg", "tokens"]
"""What an encoder says of an image: the (first) class token, the mean of the patch tokens, the mean of several class
tokens, or all patch tokens."""

VectorPool = Literal["token", "avg", "class_avg"]
"""The poolings that give one vector per image."""

Block = int | Literal["all"]
"""A block of an encoder, indexed as in Python, or each of them."""


@dataclass(frozen=True)
class KnnConfig:
    """kNN classification of labeled images by their features."""

    every_epochs: int | None = exempt(None)
    """Equivalent epochs between evaluations during pretraining; null to evaluate only at the end."""
    neighbors: int = 20
    """Number of nearest training images that vote, k."""
    images: int | None = None
    """Maximum number of training images, and of validation images, evenly spaced within each; null for all, as in
    published figures. A pass over all of ImageNet-1k costs as much as 0.6 epochs of training a ViT-B."""
    pool: VectorPool = "avg"
    """Feature of an image: (first) class token, mean of the patch tokens, or mean of several class tokens."""
    temperature: float = 0.07
    """Temperature of the vote: each neighbor has weight exp(cosine similarity / temperature)."""
    batch_images: int = exempt(256)
    """Images per batch on each device."""

    def __post_init__(self) -> None:
        if self.every_epochs is not None and self.every_epochs < 1:
            raise ConfigError(f"knn.every_epochs must be at least 1 or null, got {self.every_epochs}")
        if self.images is not None and self.images < 1:
            raise ConfigError(f"knn.images must be at least 1 or null, got {self.images}")
        if self.neighbors < 1 or self.temperature <= 0 or self.batch_images < 1:
            raise ConfigError(f"knn: neighbors and batch_images must be at least 1, temperature above 0; got {self}")


@dataclass(frozen=True)
class PlanOptions:
    """What plans of pretraining and of fine-tuning share."""

    files_apart: ClassVar[bool] = True
    """Words without a flag are files of separate plans."""

    json: bool = False
    """Print JSON instead of a table: an object, or a list of those of several plans."""
    devices: int = 1
    """Number of processes of the run, which share each batch."""
    rate: float = 1000.0
    """Training throughput of all devices together at full size, in images/s, without communication between nodes; other
    sizes are scaled by their FLOPs."""
    nodes: int = 1
    """Number of machines with these devices; with several, steps also take the time in which gradients are averaged."""
    bandwidth: float = 25.0
    """Network bandwidth of a node in each direction, in GB/s; 25 is that of a 200 Gbit/s link."""

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ConfigError(f"devices must be at least 1, got {self.devices}")
        if self.rate <= 0:
            raise ConfigError(f"rate must be above 0 images/s, got {self.rate}")
        if not 1 <= self.nodes <= self.devices:
            raise ConfigError(f"nodes must be in 1..devices, which is {self.devices}, got {self.nodes}; set --devices")
        if self.bandwidth <= 0:
            raise ConfigError(f"bandwidth must be above 0 GB/s, got {self.bandwidth}")

    @property
    def hardware(self) -> Hardware:
        """What the plan assumes of the machines."""
        return Hardware(self.devices, self.rate, self.nodes, self.bandwidth)
