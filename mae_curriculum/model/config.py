"""Settings of the model."""

from dataclasses import dataclass, field
from typing import Any, Literal

from mae_curriculum.config import ConfigError

Target = Literal["pixels", "norm_pixels", "hog"]

TIMM_NAMES = {
    "image_size": "img_size",
    "patch_size": "patch_size",
    "channels": "in_chans",
    "width": "embed_dim",
    "depth": "depth",
    "heads": "num_heads",
}
"""Settings of `ModelConfig` that override what the model's name implies, and timm's names for them."""

COUNTS = (
    *("patch_size", "width", "depth", "heads"),
    *("decoder_width", "decoder_depth", "decoder_heads"),
    *("class_tokens", "mask_block"),
)
"""Settings of `ModelConfig` that are at least 1."""


@dataclass(frozen=True)
class ModelConfig:
    """Encoder, decoder, masking and target. null keeps what `name` implies."""

    name: str | None = None
    """Encoder: any plain ViT in timm. null lets pretraining choose encoder, image size, patch size and decoder from the
    number of images and their sizes, as far as they are null."""
    image_size: int | tuple[int, int] | None = None
    """Full image size in pixels, a side or [height, width]; multiple of the patch size. null keeps that of `name`."""
    patch_size: int | None = None
    """Side of a patch in pixels; null keeps what `name` implies."""
    channels: int = 3
    """Number of image channels, 1 to 16."""
    width: int | None = None
    """Width of the encoder; a multiple of 4 and of `heads`. null keeps what `name` implies."""
    depth: int | None = None
    """Number of encoder blocks; null keeps what `name` implies."""
    heads: int | None = None
    """Number of attention heads in the encoder; null keeps what `name` implies."""
    norm_eps: float | None = None
    """Epsilon of the layer norms; null keeps what `name` implies in the encoder, and MAE's 1e-6 in the decoder."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments for timm's VisionTransformer, such as {reg_tokens: 4, qk_norm: true}."""
    class_tokens: int = 1
    """Number of class tokens; all but the first are timm's register tokens. Their mean describes an image as class_avg
    (arXiv:2512.15715)."""
    mask_ratio: float = 0.75
    """Fraction of the patches hidden from the encoder, above 0 and below 1."""
    mask_block: int = 1
    """Side, in patches, of the blocks that are hidden or seen as a whole (arXiv:2512.15715); divides every grid."""
    decode_share: float = 1.0
    """Fraction of the hidden patches that are predicted, above 0 and at most 1: a random part of them, as in CrossMAE
    (arXiv:2401.14391). A lower one makes the decoder cheaper; whether that costs accuracy is contested."""
    target: Target = "norm_pixels"
    """What the decoder predicts: pixels, pixels normalized per patch (norm_pix_loss), or histograms of oriented
    gradients per patch (hog), as MaskFeat does."""
    target_from: Literal["crop", "full"] = "crop"
    """Whether hog describes the image that the encoder sees, or the full-size one; pixels are those of the crop."""
    decoder_width: int | None = None
    """Width of the decoder; a multiple of 4 and of `decoder_heads`. null for MAE's 512."""
    decoder_depth: int | None = None
    """Number of decoder blocks; null for MAE's 8."""
    decoder_heads: int | None = None
    """Number of attention heads in the decoder; null for MAE's 16."""
    decoder_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments for timm's Block in the decoder, such as {mlp_ratio: 2.0, act_layer: relu}."""

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ConfigError(f"model.mask_ratio must be above 0 and below 1, got {self.mask_ratio}")
        if not 0 < self.decode_share <= 1:
            raise ConfigError(f"model.decode_share must be above 0 and at most 1, got {self.decode_share}")
        if not 1 <= self.channels <= 16:
            raise ConfigError(f"model.channels must be in 1..16, got {self.channels}")
        if min(self.image_size if isinstance(self.image_size, tuple) else (self.image_size or 1,)) < 1:
            raise ConfigError(f"model.image_size must be at least 1, got {self.image_size}")
        if self.norm_eps is not None and self.norm_eps <= 0:
            raise ConfigError(f"model.norm_eps must be above 0, got {self.norm_eps}")
        for name in COUNTS:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"model.{name} must be at least 1, got {value}")
        taken = [key for key in ("class_token", "reg_tokens") if key in self.options]
        if self.class_tokens > 1 and taken:
            raise ConfigError(
                f"model.class_tokens: {self.class_tokens} sets timm's {taken[0]}; omit it in model.options"
            )
        if self.target_from == "full" and self.target != "hog":
            raise ConfigError(
                f"model.target_from: full is possible with model.target hog only, got {self.target}; leave it out, or "
                "set model.target to hog"
            )
        mlp_ratio = self.decoder_options.get("mlp_ratio", 4.0)
        if not isinstance(mlp_ratio, int | float) or mlp_ratio <= 0:
            raise ConfigError(f"model.decoder_options: mlp_ratio must be above 0, got {mlp_ratio!r}")
        if self.decoder_width is not None and self.decoder_heads is not None:
            check_width("decoder_width", self.decoder_width, self.decoder_heads)


def check_width(key: str, width: int, heads: int) -> None:
    """Raise ConfigError for a width that is no multiple of 4 and of its heads."""
    if width % 4 or width % heads:
        raise ConfigError(f"model.{key} must be a multiple of 4 and of its {heads} heads, got {width}")
