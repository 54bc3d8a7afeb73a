"""The decoder of the masked autoencoder.

Axes    b images, n patches, k visible patches, m masked patches, d width.
Source  MAE, arXiv:2111.06377.
"""

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mae_curriculum.model.positions import sincos_positions
from mae_curriculum.model.shape import DecoderShape

_layer_norm: Any = partial(nn.LayerNorm, eps=1e-6)  # the epsilon of timm's ViT and of MAE


class Decoder(nn.Module):
    """Predict the masked patches from the encoded visible ones."""

    def __init__(self, shape: DecoderShape, *, full_grid: tuple[int, int]) -> None:
        """Build the layers; `full_grid` is the grid (rows, columns) of a full-size image."""
        super().__init__()
        self.full_grid = full_grid
        self.embed = nn.Linear(shape.encoder_width, shape.width)
        self.blocks = nn.Sequential(
            *(Block(shape.width, shape.heads, qkv_bias=True, norm_layer=_layer_norm) for _ in range(shape.depth))
        )
        self.norm = _layer_norm(shape.width)
        self.pred = nn.Linear(shape.width, shape.target_width)

    def forward(
        self, tokens: Tensor, mask_token: Tensor, grid: tuple[int, int], ids_keep: Tensor, ids_mask: Tensor
    ) -> Tensor:
        """Predict the target of the patches `ids_mask`.

        tokens      (b, prefix + k, d), encoded: prefix tokens, then the patches `ids_keep` (b, k) of the grid.
        mask_token  (1, 1, decoder width), which replaces each patch that is to be predicted.
        ids_mask    (b, m) patches to predict: all that are not visible, or some of them.
        Returns     (b, m, target width).
        """
        tokens = self.embed(tokens)
        prefix, visible = tokens.tensor_split([tokens.shape[1] - ids_keep.shape[1]], dim=1)
        hidden = mask_token.expand(len(tokens), ids_mask.shape[1], -1)
        patches, ids = torch.cat([visible, hidden], dim=1), torch.cat([ids_keep, ids_mask], dim=1)
        patches = patches + sincos_positions(grid, self.full_grid, tokens.shape[-1], tokens.device)[ids]
        decoded = self.blocks(torch.cat([prefix, patches], dim=1))
        predicted: Tensor = self.pred(self.norm(decoded[:, -ids_mask.shape[1] :]))
        return predicted
