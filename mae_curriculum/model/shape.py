"""The shape of a masked autoencoder, and what it costs, without building it: pure Python, without torch.

One multiply-add is two floating-point operations; only matrix products count, as in torch's own counter.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import View
from mae_curriculum.model.config import ModelConfig, check_width

TRAINING_FACTOR = 3
"""A training step costs three forward passes: the backward pass forms two products for each one of the forward pass."""

MAE_DECODER = {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}
"""MAE's decoder (arXiv:2111.06377), for settings that leave it open."""

HOG_BINS = 9
"""Orientations in a histogram of the HOG target, 20 degrees each."""

MAX_HOG_CELL = 8
"""Largest side of a cell of the HOG target, pixels; MaskFeat's cells."""

HEAD_WIDTH = MAE_DECODER["decoder_width"] // MAE_DECODER["decoder_heads"]
"""Width of a head in MAE's decoder, and in the smaller ones of `fit_decoder`."""

PLAIN_VITS = {
    "vit_tiny_patch16_224": (16, 192, 12, 3),
    "vit_small_patch8_224": (8, 384, 12, 6),
    "vit_small_patch16_224": (16, 384, 12, 6),
    "vit_small_patch32_224": (32, 384, 12, 6),
    "vit_base_patch8_224": (8, 768, 12, 12),
    "vit_base_patch16_224": (16, 768, 12, 12),
    "vit_base_patch32_224": (32, 768, 12, 12),
    "vit_large_patch14_224": (14, 1024, 24, 16),
    "vit_large_patch16_224": (16, 1024, 24, 16),
    "vit_large_patch32_224": (32, 1024, 24, 16),
    "vit_huge_patch14_224": (14, 1280, 32, 16),
}
"""Patch size, width, depth and heads of timm's plain ViTs with a class token, for plans made without loading timm."""


@dataclass(frozen=True)
class EncoderShape:
    """The shape of a ViT without a head."""

    image_size: tuple[int, int]
    """Height and width of the full-size image, pixels."""
    patch_size: tuple[int, int]
    channels: int
    width: int
    depth: int
    heads: int
    prefix_tokens: int
    """Class token and registers."""
    block_weights: int
    """Weights of the linear layers of one block."""
    parameters: int
    """Trained parameters."""
    fixed_parameters: int
    """Parameters that are not trained: the sine-cosine positions."""

    def flops(self, visible: int) -> int:
        """Return the FLOPs of encoding that many patches of an image."""
        tokens = self.prefix_tokens + visible
        embedding = 2 * visible * prod(self.patch_size) * self.channels * self.width
        return embedding + self.depth * block_flops(self.block_weights, tokens, self.width)


@dataclass(frozen=True)
class DecoderShape:
    """The shape of MAE's decoder."""

    encoder_width: int
    width: int
    depth: int
    heads: int
    target_width: int
    """Values predicted per patch."""
    mlp_width: int
    """Hidden width of a block's MLP."""
    qkv_bias: bool
    """Whether queries, keys and values have a bias."""

    @property
    def block_weights(self) -> int:
        """Weights of the linear layers of one block."""
        return 4 * self.width**2 + 2 * self.width * self.mlp_width

    @property
    def parameters(self) -> int:
        """Trained parameters: input layer, mask token, blocks, norm, output layer."""
        ends = (self.encoder_width + 1) * self.width + (self.width + 1) * self.target_width
        vectors = (9 if self.qkv_bias else 6) * self.width + self.mlp_width  # norms and biases of a block
        return ends + 3 * self.width + self.depth * (self.block_weights + vectors)

    def flops(self, tokens: int, masked: int) -> int:
        """Return the FLOPs of predicting `masked` patches of an image from `tokens` of the encoder."""
        ends = 2 * tokens * self.encoder_width * self.width + 2 * masked * self.width * self.target_width
        return ends + self.depth * block_flops(self.block_weights, tokens + masked, self.width)


@dataclass(frozen=True)
class ModelShape:
    """The shape of encoder and decoder."""

    encoder: EncoderShape
    decoder: DecoderShape
    mask_block: int = 1
    """Side of the blocks that are masked as a whole, patches."""
    decode_share: float = 1.0
    """Share of the masked patches that are predicted."""

    def grid(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Return the patches per column and per row of an image of this size (height, width)."""
        height, width = size
        return height // self.encoder.patch_size[0], width // self.encoder.patch_size[1]

    def mask_grid(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Return the blocks that are masked as a whole, per column and per row of an image of this size."""
        rows, columns = self.grid(size)
        return rows // self.mask_block, columns // self.mask_block

    def holds_blocks(self, size: tuple[int, ...]) -> bool:
        """Return whether an image of this size is made of whole blocks, at least two."""
        is_whole = not any(patches % self.mask_block for patches in self.grid(size))
        return is_whole and prod(self.mask_grid(size)) > 1

    def visible_count(self, view: View) -> int:
        """Return how many patches of a view the encoder sees: those of whole blocks."""
        return visible_count(prod(self.mask_grid(view.size)), view.mask_ratio) * self.mask_block**2

    def predicted_count(self, view: View) -> int:
        """Return how many of a view's masked patches are predicted, at least one."""
        masked = prod(self.grid(view.size)) - self.visible_count(view)
        return max(1, round(self.decode_share * masked))

    def forward_flops(self, view: View) -> int:
        """Return the FLOPs of one image's forward pass: visible patches encoded and decoded, masked ones predicted."""
        visible = self.visible_count(view)
        tokens = self.encoder.prefix_tokens + visible
        return self.encoder.flops(visible) + self.decoder.flops(tokens, self.predicted_count(view))

    def training_flops(self, view: View) -> int:
        """Return the FLOPs of one image's share of a training step."""
        return TRAINING_FACTOR * self.forward_flops(view)

    @property
    def gradient_bytes(self) -> int:
        """Size of the gradients, float32."""
        return 4 * (self.encoder.parameters + self.decoder.parameters)

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint: float32 weights, and AdamW's two moments of the trained ones."""
        return 4 * (3 * (self.encoder.parameters + self.decoder.parameters) + self.encoder.fixed_parameters)


def visible_count(count: int, mask_ratio: float) -> int:
    """Return how many of `count` patches, or blocks, are visible: at least one, and at least one less than all."""
    return min(max(1, int(count * (1 - mask_ratio))), count - 1)


def block_flops(weights: int, tokens: int, width: int) -> int:
    """Return the FLOPs of a transformer block: its linear layers on each token, attention between all pairs."""
    return 2 * tokens * weights + 4 * tokens**2 * width


def plain_vit_shape(config: ModelConfig) -> ModelShape | None:
    """Return the shape of a model whose encoder is one of `PLAIN_VITS`, resized as the settings say; None for others.

    Raises  ConfigError for sizes that do not go together.
    """
    if config.name is None or config.name not in PLAIN_VITS or config.options:
        return None
    patch, width, depth, heads = PLAIN_VITS[config.name]
    patch, width, depth, heads = (
        config.patch_size or patch,
        config.width or width,
        config.depth or depth,
        config.heads or heads,
    )
    size = config.image_size or 224
    height_and_width = size if isinstance(size, tuple) else (size, size)
    patch_values, block_weights = patch * patch * config.channels, 12 * width**2
    patches = prod(side // patch for side in height_and_width)
    encoder = EncoderShape(
        image_size=height_and_width,
        patch_size=(patch, patch),
        channels=config.channels,
        width=width,
        depth=depth,
        heads=heads,
        prefix_tokens=config.class_tokens,
        block_weights=block_weights,
        # patch embedding, class tokens, blocks with 13 vectors each, final norm
        parameters=(patch_values + 1 + config.class_tokens + 2) * width + depth * (block_weights + 13 * width),
        fixed_parameters=(config.class_tokens + patches) * width,
    )
    return model_shape(config, encoder)


def model_shape(config: ModelConfig, encoder: EncoderShape) -> ModelShape:
    """Return the shape of encoder, decoder and masks; raises ConfigError for sizes that do not go together."""
    check_encoder(encoder)
    shape = ModelShape(encoder, decoder_shape(config, encoder), config.mask_block, config.decode_share)
    if not shape.holds_blocks(encoder.image_size):
        cells = "x".join(str(side * config.mask_block) for side in encoder.patch_size)
        grid = "x".join(map(str, shape.grid(encoder.image_size)))
        raise ConfigError(
            f"model.mask_block: blocks of {config.mask_block} do not divide the grid of {grid} patches; image sizes "
            f"that fit are multiples of {cells} px"
        )
    return shape


def decoder_shape(config: ModelConfig, encoder: EncoderShape) -> DecoderShape:
    """Return the shape of the decoder that goes with an encoder; raises ConfigError if its heads do not divide it."""
    own = decoder_settings(config)
    width, heads = own["decoder_width"], own["decoder_heads"]
    check_width("decoder_width", width, heads)
    return DecoderShape(
        encoder_width=encoder.width,
        width=width,
        depth=own["decoder_depth"],
        heads=heads,
        target_width=target_width(config, encoder.patch_size),
        mlp_width=int(width * config.decoder_options.get("mlp_ratio", 4)),
        qkv_bias=config.decoder_options.get("qkv_bias", True),
    )


def decoder_settings(config: ModelConfig) -> dict[str, Any]:
    """Return the settings of the decoder's size; MAE's where they are null."""
    return {key: getattr(config, key) or value for key, value in MAE_DECODER.items()}


def fit_decoder(config: ModelConfig, encoder_width: int) -> dict[str, Any]:
    """Return the settings of the decoder's size; where they are null, of one that fits an encoder of this width.

    That is MAE's for ViT-B and wider ones. Narrower ones get one of half their width, since MAE's would cost more than
    the encoder.
    """
    if encoder_width >= 768:
        usual, depth = MAE_DECODER["decoder_width"], MAE_DECODER["decoder_depth"]
    else:
        usual, depth = max(1, encoder_width // 2 // HEAD_WIDTH) * HEAD_WIDTH, 4 if encoder_width >= 384 else 2
    width = config.decoder_width or usual
    return {
        "decoder_width": width,
        "decoder_depth": config.decoder_depth or depth,
        "decoder_heads": config.decoder_heads or max(1, width // HEAD_WIDTH),
    }


def target_width(config: ModelConfig, patch_size: tuple[int, int]) -> int:
    """Return how many values the target of a patch has: those of its pixels, or of the histograms of its cells."""
    values = HOG_BINS * prod(hog_cells(patch_size)) if config.target == "hog" else prod(patch_size)
    return values * config.channels


def hog_cells(patch_size: tuple[int, int]) -> tuple[int, int]:
    """Return how many cells of the HOG target a patch has per column and per row."""
    return _cells_along(patch_size[0]), _cells_along(patch_size[1])


def _cells_along(side: int) -> int:
    """Return how many cells make up a side of a patch: as few as divide it into at most `MAX_HOG_CELL` pixels each."""
    return next(count for count in range(1, side + 1) if side % count == 0 and side // count <= MAX_HOG_CELL)


def check_encoder(shape: EncoderShape) -> None:
    """Raise ConfigError for a shape that a ViT of patches cannot have."""
    check_width("width", shape.width, shape.heads)
    size, patch = shape.image_size, shape.patch_size
    if any(side % part for side, part in zip(size, patch, strict=True)) or size == patch:
        raise ConfigError(
            f"model.image_size {'x'.join(map(str, size))} must be a multiple of the patch size, {patch[0]}, and hold "
            "more than one patch; change image_size or patch_size"
        )
