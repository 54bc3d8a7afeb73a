"""Settings of the data."""

from dataclasses import dataclass
from pathlib import Path

from mae_curriculum.config import ConfigError, exempt

IMAGENETTE = "imagenette2-320"
"""Folder that torchvision unpacks the 320-pixel Imagenette to."""

IMAGE_COUNTS = {"digits": 1438, "cifar10": 50_000, "imagenette": 9469}
"""The named sources and their numbers of training images, for plans made without the data."""

RUNS_IMAGES = "run"
"""The `data.source` that stands for the training images of the checkpoint's run."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

LISTS = (".csv", ".tsv", ".txt")
"""Ends of the names of lists of image files."""

GRAY_MEAN = 0.449
GRAY_STD = 0.226
"""Mean and standard deviation of ImageNet over all three channels, for images with another number of channels."""


@dataclass(frozen=True)
class DataConfig:
    """Which images to load, and how."""

    source: str = RUNS_IMAGES
    """run (the images of the run that `checkpoint` or `init` names); digits (of scikit-learn, no download), cifar10 or
    imagenette (downloaded by torchvision); or a folder of images or plain tars, with or without train/ and val/, and
    with or without one folder per class; or a list of files, .csv, .tsv or .txt, with or without labels; or a .npy
    array of images; or parquet files, a data set that the datasets library saved, or hf:OWNER/NAME, one of the Hugging
    Face Hub. Several are joined by commas, A,B."""
    cache: Path = exempt(Path("data"))
    """Folder for downloads, lists of large folders, indexes of tars, and features."""
    local_copy: Path | None = exempt(None)
    """Folder on a fast disk of each node, to which images that were packed are copied before the start, and checked;
    null to read them where they are."""
    image_count: int | None = None
    """Number of training images in the folder, for planning without access to it; checked when training starts."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, on a scale of 0 to 1; null for ImageNet's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, on a scale of 0 to 1; null for ImageNet's."""
    oversample: float | None = None
    """Multiple of a stage's size, 1 or more, at which images are loaded for the Fourier crop: cheaper than the full
    size (null), but not exact. Root mean square error at 96 and 160 of 224 pixels, on photographs with a standard
    deviation of 1: 0.13 and 0.04 with 1.25; 0.08 and 0 with 1.5. For lanczos and bicubic, images are loaded at the
    stage's size."""
    repeats: int = 1
    """Consecutive crops that are taken from each decoded image, at least 1. An epoch has as many crops as there are
    images, so that it takes `repeats` epochs to see all of them."""
    shuffle_window: int | None = None
    """Shuffle approximately, for network disks that are slow at random reads: blocks of a 16th of this many neighbors
    are read in random order, and mixed within as many images. Images of a class should not be neighbors. null for a
    full shuffle."""
    workers: int = exempt(2)
    """Number of loader workers per process; 0 loads images in the training process."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"data.workers must be at least 0, got {self.workers}")
        if self.oversample is not None and self.oversample < 1:
            raise ConfigError(f"data.oversample must be at least 1 or null, got {self.oversample}")
        if self.shuffle_window is not None and self.shuffle_window < 1:
            raise ConfigError(f"data.shuffle_window must be at least 1 or null, got {self.shuffle_window}")
        if self.repeats < 1:
            raise ConfigError(f"data.repeats must be at least 1, got {self.repeats}")
        if self.image_count is not None and self.image_count < 1:
            raise ConfigError(f"data.image_count must be at least 1, got {self.image_count}")
        if self.std is not None and not (self.std and all(value > 0 for value in self.std)):
            raise ConfigError(f"data.std must be above 0, got {list(self.std)}")

    @property
    def sources(self) -> list[Path]:
        """The places that `source` names, for one that is not in `IMAGE_COUNTS`: several are separated by commas."""
        if "," not in self.source or Path(self.source).exists():
            return [Path(self.source)]
        return [Path(part.strip()) for part in self.source.split(",")]

    @property
    def folder(self) -> Path | None:
        """The folder that holds the images; None for a source that is no folder."""
        if self.source == "imagenette":
            return self.cache / IMAGENETTE
        if self.source in IMAGE_COUNTS or len(self.sources) > 1:
            return None
        path = Path(self.source)
        return path.parent if path.suffix.lower() in LISTS else path

    def statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel; raises ConfigError if their number is wrong."""
        default_mean = IMAGENET_MEAN if channels == 3 else (GRAY_MEAN,) * channels
        default_std = IMAGENET_STD if channels == 3 else (GRAY_STD,) * channels
        mean = default_mean if self.mean is None else self.mean
        std = default_std if self.std is None else self.std
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise ConfigError(f"data.{name} has {len(values)} values, model.channels is {channels}; give one each")
        return mean, std
