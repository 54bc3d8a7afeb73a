"""The shape of a model and the number of images, without loading torch where they are known."""

from mae_curriculum.data.config import IMAGE_COUNTS, DataConfig
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.shape import ModelShape, plain_vit_shape


def find_shape(config: ModelConfig) -> ModelShape:
    """Return the shape of a model; only of encoders that are not timm's common ViTs the model is built for it."""
    shape = plain_vit_shape(config)
    if shape is None:
        import torch  # only now: it takes seconds

        from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder

        with torch.device("meta"):  # without memory
            shape = MaskedAutoencoder(config).shape
    return shape


def count_images(config: DataConfig) -> int:
    """Return the number of training images, without reading the data where that is known."""
    known = config.image_count or IMAGE_COUNTS.get(config.source)
    if known is None:
        from mae_curriculum.data.sources import open_images  # only now: it loads torch

        known = len(open_images(config)[0])
    return known
