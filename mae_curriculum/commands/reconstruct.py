"""Draw the reconstructions of image files by any checkpoint with a decoder."""

import logging
from pathlib import Path

import torch

from mae_curriculum.commands.config import ReconstructConfig
from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import View
from mae_curriculum.data.augment import resize_and_crop
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.contents import format_sizes, measure
from mae_curriculum.data.decode import BrokenImageError, read_image
from mae_curriculum.data.stored import Files, Names
from mae_curriculum.evaluation.reconstruction import reconstruct_images
from mae_curriculum.report.figures import draw_reconstructions
from mae_curriculum.run.folder import RunFolder, check_checkpoint
from mae_curriculum.terminal import printable, side
from mae_curriculum.weights.build import build_autoencoder
from mae_curriculum.weights.normalization import with_normalization
from mae_curriculum.weights.read import read_weights

logger = logging.getLogger(__name__)


def reconstruct(config: ReconstructConfig) -> int:
    """Draw the figure; returns the exit code."""
    check_checkpoint(config.checkpoint)
    weights = read_weights(config.checkpoint, **config.hints)
    model = build_autoencoder(weights, config.checkpoint)
    data = DataConfig(mean=config.mean, std=config.std)
    mean, std = with_normalization(data, weights, config.checkpoint, logger.warning).statistics(model.channels)
    pixels = []
    for path in config.images:
        if path.is_dir():
            raise ConfigError(f"images: {path} is a folder; name the files, as in --images {path}/*")
        try:
            pixels.append(resize_and_crop(read_image(path, model.channels), model.image_size))
        except BrokenImageError as error:
            raise ConfigError(f"images: {path} cannot be read: {error}") from error
    if sizes := measure(Files(Names.of(map(str, config.images)))):
        logger.info(f"images: {len(pixels)}, {format_sizes(sizes)}; resized and cropped to {side(model.image_size)} px")
    view = View(model.image_size, weights.model.mask_ratio)
    reconstructions = reconstruct_images(model, torch.stack(pixels), view, seed=config.seed, mean=mean, std=std)
    folder = RunFolder(config.checkpoint)
    default = folder.path / "pictures" if folder.config.exists() else Path()
    out = config.out or default / "reconstruction.png"
    names = [path.name for path in config.images]
    try:
        draw_reconstructions(out, reconstructions, names, title=f"{config.checkpoint.name} ({weights.origin})")
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}); choose another --out") from error
    print(printable(out))
    return 0
