"""What any checkpoint with a decoder makes of some image files, as a picture."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mae_curriculum.augment import resize_and_crop
from mae_curriculum.checkpoint import RunFolder
from mae_curriculum.config import ConfigError, load_part
from mae_curriculum.curriculum import Curriculum
from mae_curriculum.decode import BrokenImageError, read_image
from mae_curriculum.pictures import check_png, draw_reconstructions, drawable
from mae_curriculum.reconstruction import reconstruct_images, why_no_reconstruction
from mae_curriculum.sources import DataConfig
from mae_curriculum.tracking import MOST_IMAGES
from mae_curriculum.weights import autoencoder_of, read_weights, run_settings


@dataclass(frozen=True)
class ReconstructConfig:
    """A picture of what a masked autoencoder makes of images: input, masked, reconstruction, error."""

    checkpoint: Path
    """Run folder, or any checkpoint with a decoder that can be imported."""
    images: tuple[Path, ...]
    """Image files, 1 to 64; the middle of each is cut to the model's shape, at its full size."""
    out: Path | None = None
    """PNG file; null for pictures/reconstruction.png of the run folder, or reconstruction.png here if it is none."""
    seed: int = 0
    """Of the places of the hidden patches."""
    heads: int | None = None
    """Attention heads of the encoder, where the checkpoint does not show them."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.images) <= MOST_IMAGES:
            raise ConfigError(f"images: give 1 to {MOST_IMAGES} image files, got {len(self.images)}")
        check_png("out", self.out)
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be in 0..2**63-1, got {self.seed}")


def reconstruct(config: ReconstructConfig) -> int:
    """Draw the picture; returns the exit code."""
    weights = read_weights(config.checkpoint, heads=config.heads)
    if why := why_no_reconstruction(weights.model.target):
        raise ConfigError(f"{config.checkpoint}: {why}")
    model = autoencoder_of(weights, config.checkpoint)
    data = load_part(DataConfig, run_settings(config.checkpoint).get("data", {}))
    mean, std = data.statistics(model.channels)  # ImageNet's where the checkpoint is no run
    pixels = []
    for path in config.images:
        try:
            pixels.append(resize_and_crop(read_image(path, model.channels), model.image_size))
        except BrokenImageError as error:
            raise ConfigError(f"images: {path} cannot be shown: {error}") from error
    found = reconstruct_images(
        model, torch.stack(pixels), model.image_size, seed=config.seed, mean=mean, std=std, resize=Curriculum.resize
    )
    folder = RunFolder(config.checkpoint)
    default = folder.path / "pictures" if folder.config.exists() else Path()
    out = config.out or default / "reconstruction.png"
    names = [path.name for path in config.images]
    try:
        draw_reconstructions(out, found, names, title=f"{config.checkpoint.name} ({weights.origin})")
    except OSError as error:
        raise ConfigError(f"{drawable(str(out))} cannot be written ({error.strerror}); choose another --out") from error
    print(drawable(str(out)))
    return 0
