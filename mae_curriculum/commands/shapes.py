"""The shape of a model, without loading torch where it is known."""

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
