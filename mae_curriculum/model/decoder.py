"""The decoder of the masked autoencoder.

Axes    b images, n patches, k visible patches, m masked patches, d width.
Source  MAE, arXiv:2111.06377.
"""

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import torch
from timm.layers.create_act import get_act_layer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mae_curriculum.model.positions import resample_positions, sincos_positions
from mae_curriculum.model.shape import DecoderShape


class Decoder(nn.Module):
    """Predict the masked patches from the encoded visible ones."""

    pos_embed: Tensor | None

    def __init__(
        self, shape: DecoderShape, *, full_grid: tuple[int, int], norm_eps: float, options: Mapping[str, Any]
    ) -> None:
        """Build the layers.

        full_grid  grid (rows, columns) of a full-size image.
        options    further arguments for timm's `Block`.
        """
        super().__init__()
        self.full_grid = full_grid
        norm: Any = partial(nn.LayerNorm, eps=norm_eps)
        arguments: dict[str, Any] = {"qkv_bias": True, "norm_layer": norm, **options}
        if "act_layer" in arguments:  # timm's ViT takes its name, timm's block takes the class
            arguments["act_layer"] = get_act_layer(arguments["act_layer"])
        self.embed = nn.Linear(shape.encoder_width, shape.width)
        self.blocks = nn.Sequential(*(Block(shape.width, shape.heads, **arguments) for _ in range(shape.depth)))
        self.norm = norm(shape.width)
        self.pred = nn.Linear(shape.width, shape.target_width)
        self.register_buffer("pos_embed", None)  # positions of a checkpoint (1, prefix + n, d) that are not MAE's table

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
        own, positions = self._positions(grid, tokens)
        prefix = prefix + own if len(own) else prefix
        decoded = self.blocks(torch.cat([prefix, patches + positions[ids]], dim=1))
        predicted: Tensor = self.pred(self.norm(decoded[:, -ids_mask.shape[1] :]))
        return predicted

    def _positions(self, grid: tuple[int, int], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions of the prefix tokens, none for MAE's table, and of a grid's patches (n, d)."""
        if self.pos_embed is None:
            return tokens.new_empty(0), sincos_positions(grid, self.full_grid, tokens.shape[-1], tokens.device)
        own, patches = self.pos_embed[0].tensor_split([self.pos_embed.shape[1] - prod(self.full_grid)])
        return own, resample_positions(patches, self.full_grid, grid)
