"""Settings of the data."""

from dataclasses import dataclass
from pathlib import Path

from mae_curriculum.config import ConfigError, exempt

IMAGENETTE = "imagenette2-320"
"""Folder that torchvision unpacks the 320-pixel Imagenette to."""


IMAGE_COUNTS = {"digits": 1438, "cifar10": 50_000, "imagenette": 9469}
"""Training images of the named sources, for plans made without the data."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are brought in."""

    source: str = "digits"
    """digits (scikit-learn's, embedded), cifar10 or imagenette (downloaded by torchvision), or a folder, with or
    without train/ and val/, sorted into one folder per class or not."""
    cache: Path = exempt(Path("data"))
    """Folder that downloads go to."""
    image_count: int | None = None
    """Training images in the folder, for plans made without it; checked against the folder when training."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel on a scale of 0 to 1; null for ImageNet's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, likewise."""
    workers: int = exempt(2)
    """Processes that load images, for each rank; 0 loads in the training process."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"data.workers must be at least 0, got {self.workers}")
        if self.image_count is not None and self.image_count < 1:
            raise ConfigError(f"data.image_count must be at least 1, got {self.image_count}")
        if self.std is not None and min(self.std, default=0) <= 0:
            raise ConfigError(f"data.std must be above 0, got {list(self.std)}")

    def statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Give mean and standard deviation of each channel; raises ConfigError if their number is wrong."""
        mean: tuple[float, ...] = (GREY_MEAN,) * channels
        std: tuple[float, ...] = (GREY_STD,) * channels
        if channels == 3:
            mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        mean = mean if self.mean is None else self.mean
        std = std if self.std is None else self.std
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise ConfigError(
                    f"data.{name} has {len(values)} values, model.channels is {channels}; give one for each"
                )
        return mean, std


RUNS_IMAGES = "run"
"""The `data.source` that stands for the images that a checkpoint's run was trained on."""


GREY_MEAN, GREY_STD = 0.449, 0.226
"""ImageNet's mean and standard deviation over its three channels, for images of another number of channels."""
