"""Floating-point operations of the masked autoencoder, counted from its shapes.

One multiply-add is two operations; only matrix products count, as in torch's own counter.
"""

from torch import nn

from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder

TRAINING_FACTOR = 3
"""A training step costs three forward passes: the backward pass forms two products for each one of the forward pass."""


def forward_flops(model: MaskedAutoencoder, size: tuple[int, int]) -> int:
    """Count one image's forward pass: encoder on the visible patches, decoder on all, prediction of the masked.

    size  (height, width) that the encoder sees, pixels. A model on the meta device will do.
    """
    grid = model.grid(size)
    patches, visible = grid[0] * grid[1], model.visible_count(grid)
    prefix = model.encoder.num_prefix_tokens
    flops: int = (
        2 * visible * model.encoder.patch_embed.proj.weight.numel()
        + sum(_block_flops(block, prefix + visible, model.encoder.embed_dim) for block in model.encoder.blocks)
        + 2 * (prefix + visible) * model.decoder_embed.weight.numel()
        + sum(_block_flops(block, prefix + patches, model.decoder_embed.out_features) for block in model.decoder_blocks)
        + 2 * (patches - visible) * model.decoder_pred.weight.numel()
    )
    return flops


def training_flops(model: MaskedAutoencoder, size: tuple[int, int]) -> int:
    """Count one image's share of a training step."""
    return TRAINING_FACTOR * forward_flops(model, size)


def _block_flops(block: nn.Module, tokens: int, width: int) -> int:
    """Count one transformer block: its linear layers on each token, and attention between all pairs of tokens."""
    weights = sum(module.weight.numel() for module in block.modules() if isinstance(module, nn.Linear))
    return 2 * tokens * weights + 4 * tokens**2 * width
