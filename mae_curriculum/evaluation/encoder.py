"""A pretrained encoder: load it, and turn images into features."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mae_curriculum.config import load_part
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.preprocess import normalize
from mae_curriculum.evaluation.blocks import find_blocks
from mae_curriculum.evaluation.config import Pool
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.run.folder import check_checkpoint
from mae_curriculum.weights.build import build_encoder
from mae_curriculum.weights.normalization import with_normalization
from mae_curriculum.weights.read import Weights, read_weights
from mae_curriculum.weights.run_settings import run_settings

logger = logging.getLogger(__name__)


class Encoder(nn.Module):
    """A pretrained ViT that describes each image by one vector, or each patch by one."""

    def __init__(self, model: MaskedAutoencoder, data: DataConfig) -> None:
        """Wrap a model and the statistics that its images are normalized with."""
        super().__init__()
        self.model = model
        self.data = data
        self.eval()

    @property
    def pools(self) -> tuple[str, ...]:
        """What `features` can return: an encoder without a class token lacks token, one without several class_avg."""
        return (*self.model.pools, "tokens")

    @property
    def vit(self) -> Any:
        """The encoder as a timm model, for instance to fine-tune it; it takes normalized images."""
        return self.model.encoder

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images, as `features` with its defaults."""
        return self.features(images)

    @torch.no_grad()
    def features(self, images: Tensor, pool: Pool = "avg") -> Tensor:
        """Compute one feature vector per image, or one per patch.

        images   (b, c, h, w), uint8 in 0..255 or floating point in 0..1, not normalized; on the encoder's device. h and
                 w are multiples of the patch size, and may differ from the size the encoder was trained at.
        pool     avg: mean of the patch tokens. token: (first) class token. class_avg: mean of several class tokens.
                 tokens: all patch tokens, row by row.
        Returns  (b, d) float32; of tokens, (b, n, d).
        Raises   TypeError for another dtype; ValueError for another shape or range, or a pool the encoder lacks.
        """
        if pool not in self.pools:
            raise ValueError(f"pool must be one of {', '.join(self.pools)} for this encoder, got {pool!r}")
        self._check(images)
        pixels = images if images.dtype == torch.uint8 else images.float() * 255
        mean, std = self.data.statistics(self.model.channels)
        return self.describe(normalize(pixels, mean, std), pool).float()

    def describe(self, images: Tensor, pool: Pool) -> Tensor:
        """Compute features as `features` does, of images that are normalized already; nothing is checked."""
        if pool == "tokens":
            return self.model.tokens(images)[:, self.model.encoder.num_prefix_tokens :]
        return self.model.features(images)[:, self.model.pools.index(pool)]

    def _check(self, images: Tensor) -> None:
        """Raise TypeError or ValueError for images of a wrong dtype, shape or range."""
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images must be uint8 in 0..255 or floating point in 0..1, got {images.dtype}")
        channels, (height, width) = self.model.channels, self.model.patch_size
        fits = images.ndim == 4 and images.shape[1] == channels and images.numel() > 0
        if not fits or images.shape[2] % height or images.shape[3] % width:
            expected = f"(b, {channels}, h, w), with h a multiple of {height} and w of {width}"
            raise ValueError(f"images must have the shape {expected}; got {tuple(images.shape)}")
        if images.is_floating_point():
            low, high = (float(value) for value in torch.aminmax(images))
            if not (low >= 0 and high <= 1):  # also NaN
                raise ValueError(f"floating-point images must be in 0..1, not normalized; got {low:g}..{high:g}")


def load_encoder(
    path: str | Path,
    *,
    block: int = -1,
    heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    weights: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Encoder:
    """Load the encoder of a checkpoint, on the CPU and in evaluation mode.

    path       run folder, RUN@EPOCHS, or a checkpoint of timm, Hugging Face or facebookresearch/mae. What has to be
               assumed about it is logged as a warning.
    block      the last block that is used, indexed as in Python; the final norm follows it.
    heads      attention heads, for a checkpoint that does not say so.
    image_size a side or (height, width), likewise.
    weights    which weights of a checkpoint with several, such as "model_ema" or "teacher".
    mean, std  of each channel, on a scale of 0 to 1; None for what the checkpoint says, or else ImageNet's.
    Raises     ConfigError, one line, for a path that holds no checkpoint or weights that do not fit.
    """
    path = Path(path)
    check_checkpoint(path)
    read = read_weights(path, heads=heads, image_size=image_size, weights=weights)
    data = replace(load_part(DataConfig, run_settings(path).get("data", {})), mean=mean, std=std)
    return encoder_of(read, path, with_normalization(data, read, path, logger.warning), block=block)


def encoder_of(weights: Weights, path: Path, data: DataConfig, *, block: int) -> Encoder:
    """Build the encoder that weights read from `path` belong to, up to a block; `data` has its normalization.

    Raises  ConfigError if the weights do not fit, or if there is no such block.
    """
    model = build_encoder(weights, path)
    del model.decoder, model.mask_token  # untrained here, and features do not need them
    blocks = model.encoder.blocks
    (last,) = find_blocks(block, len(blocks))
    model.encoder.blocks = blocks[: last + 1]
    return Encoder(model, data)
