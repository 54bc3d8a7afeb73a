"""A plain MAE, written for the tests from the paper alone: slow, explicit, and with none of the project's code.

It embeds all patches, puts tokens back into image order, predicts every patch and masks the loss.
"""

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def sincos(grid: int, width: int) -> Tensor:
    """Embed a square grid: per position, sines and cosines of the column, then of the row."""
    rows = []
    for y in range(grid):
        for x in range(grid):
            row = []
            for position in (x, y):
                angles = [position / 10000 ** (i / (width // 4)) for i in range(width // 4)]
                row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            rows.append(row)
    return torch.tensor(rows)


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(x: Tensor, w: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def block(x: Tensor, w: Weights, name: str, heads: int) -> Tensor:
    batch, tokens, width = x.shape
    q, k, v = linear(layer_norm(x, w, f"{name}.norm1"), w, f"{name}.attn.qkv").chunk(3, dim=-1)
    q, k, v = (t.reshape(batch, tokens, heads, width // heads).transpose(1, 2) for t in (q, k, v))
    attention = (q @ k.transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1) @ v
    x = x + linear(attention.transpose(1, 2).reshape(batch, tokens, width), w, f"{name}.attn.proj")
    hidden = torch.nn.functional.gelu(linear(layer_norm(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1"))
    return x + linear(hidden, w, f"{name}.mlp.fc2")


def plain_mae_loss(
    images: Tensor,
    noise: Tensor,
    w: Weights,
    *,
    patch: int,
    depth: int,
    heads: int,
    decoder_depth: int,
    decoder_heads: int,
    mask_ratio: float,
    norm_pix: bool,
) -> Tensor:
    """Mean squared error over the masked patches of a batch of square images."""
    batch, _, side, _ = images.shape
    grid = side // patch
    tokens = torch.nn.functional.conv2d(
        images, w["encoder.patch_embed.proj.weight"], w["encoder.patch_embed.proj.bias"], stride=patch
    )
    tokens = tokens.flatten(2).transpose(1, 2)
    tokens = tokens + sincos(grid, tokens.shape[-1])
    order = noise.argsort(1)
    keep = int(grid**2 * (1 - mask_ratio))
    visible = torch.stack([tokens[b, order[b, :keep]] for b in range(batch)])
    x = torch.cat([w["encoder.cls_token"].expand(batch, 1, -1), visible], 1)  # its position is zero
    for i in range(depth):
        x = block(x, w, f"encoder.blocks.{i}", heads)
    x = linear(layer_norm(x, w, "encoder.norm"), w, "decoder_embed")
    full = w["mask_token"].expand(batch, grid**2, -1).clone()
    for b in range(batch):
        full[b, order[b, :keep]] = x[b, 1:]
    x = torch.cat([x[:, :1], full + sincos(grid, x.shape[-1])], 1)
    for i in range(decoder_depth):
        x = block(x, w, f"decoder_blocks.{i}", decoder_heads)
    predicted = linear(layer_norm(x, w, "decoder_norm"), w, "decoder_pred")[:, 1:]
    target = torch.stack(
        [
            images[:, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].permute(0, 2, 3, 1).flatten(1)
            for y in range(grid)
            for x in range(grid)
        ],
        dim=1,
    )
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    error = (predicted - target).square().mean(-1)
    masked = torch.ones(batch, grid**2)
    for b in range(batch):
        masked[b, order[b, :keep]] = 0
    return (error * masked).sum() / masked.sum()
