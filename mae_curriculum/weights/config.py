"""Settings that say what a checkpoint leaves open."""

from dataclasses import dataclass
from typing import Any

from mae_curriculum.model.config import Target


@dataclass(frozen=True)
class EncoderHints:
    """What a checkpoint may not say of its encoder."""

    heads: int | None = None
    """Number of attention heads in the encoder, if it cannot be read from the checkpoint."""
    image_size: int | tuple[int, int] | None = None
    """Image size of the checkpoint in pixels, a side or [height, width], if it cannot be read from the checkpoint."""
    weights: str | None = None
    """Which weights of a checkpoint with several, such as model_ema or teacher; null for those that were trained."""

    @property
    def hints(self) -> dict[str, Any]:
        """The hints as arguments of `read_weights`."""
        return {"heads": self.heads, "image_size": self.image_size, "weights": self.weights}


@dataclass(frozen=True)
class AutoencoderHints(EncoderHints):
    """What a checkpoint may not say of its encoder, its decoder and its images."""

    decoder_heads: int | None = None
    """Number of attention heads in the decoder, if it cannot be read from the checkpoint."""
    target: Target | None = None
    """What the decoder predicts, if it cannot be read from the checkpoint."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel that images are normalized with, from 0 to 1; null for the checkpoint's, or ImageNet's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, likewise."""

    @property
    def hints(self) -> dict[str, Any]:
        """The hints as arguments of `read_weights`."""
        return super().hints | {"decoder_heads": self.decoder_heads, "target": self.target}
