"""Pyramid Vision Transformer, the first version (arXiv:2102.12122); timm has the second.

Each stage holds learned positions for the full image size, resampled in each forward pass for the images that come: one
set of parameters serves all sizes.

Shapes: b images, h w grid, t tokens, d width, n heads.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.drop import calculate_drop_path_rates
from timm.layers.helpers import to_2tuple
from timm.layers.norm import LayerNorm
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from finetune.backbones.pyramid import Block, Pyramid, Size, timm_settings
from mae_curriculum.model.positions import resample_table

DEPTHS = {
    "pvt_tiny": (2, 2, 2, 2),
    "pvt_small": (3, 4, 6, 3),
    "pvt_medium": (3, 4, 18, 3),
    "pvt_large": (3, 8, 27, 3),
}

PATCHES = (4, 2, 2, 2)
"""Side of a stage's patches on the grid before it, the first in pixels."""

MLP_RATIOS = (8, 8, 4, 4)

REDUCTIONS = (8, 4, 2, 1)
"""How many times coarser than a stage's grid are its keys and values."""

default_cfgs = timm_settings(DEPTHS, first_conv="stages.0.patch_embed")  # by this name, timm finds it


class ReducedAttention(nn.Module):
    """Attention of every token to keys and values on a coarser grid."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        """Build it for grids that are multiples of `reduction`; with 1, tokens attend to each other."""
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.reduce = nn.Conv2d(width, width, reduction, stride=reduction) if reduction > 1 else None
        self.norm = LayerNorm(width) if reduction > 1 else None

    def forward(self, x: Tensor, grid: Size) -> Tensor:
        """Attend among tokens (b, t, d), those of the grid row by row."""
        q = rearrange(self.q(x), "b t (n d) -> b n t d", n=self.heads)
        if self.reduce is not None and self.norm is not None:
            image = rearrange(x, "b (h w) d -> b d h w", h=grid[0])
            x = self.norm(rearrange(self.reduce(image), "b d h w -> b (h w) d"))
        k, v = rearrange(self.kv(x), "b t (s n d) -> s b n t d", s=2, n=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(rearrange(attended, "b n t d -> b t (n d)"))
        return out


class Stage(nn.Module):
    """Patches with learned positions, and blocks."""

    def __init__(self, patch_embed: nn.Conv2d, grid: Size, blocks: nn.ModuleList, *, has_class_token: bool) -> None:
        """Build a stage whose full image has this grid of patches."""
        super().__init__()
        width = patch_embed.out_channels
        self.grid = grid
        self.patch_embed = patch_embed
        self.norm = LayerNorm(width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if has_class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, has_class_token + grid[0] * grid[1], width))
        self.blocks = blocks
        for value in (self.cls_token, self.pos_embed):
            if value is not None:
                nn.init.trunc_normal_(value, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        """Return tokens (b, t, d), the class token first, and their grid, of (b, c, height, width)."""
        x = self.patch_embed(x)
        grid = x.shape[2], x.shape[3]
        x = self.norm(rearrange(x, "b d h w -> b (h w) d"))
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + resample_table(self.pos_embed, self.grid, grid)
        for block in self.blocks:
            x = block(x, grid)
        return x, grid


class PyramidVisionTransformer(Pyramid):
    """Pyramid Vision Transformer, which classifies the class token of its last stage."""

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        img_size: int | Size = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        drop_path_rate: float = 0.0,
    ) -> None:
        assert global_pool == "token", f"PVT classifies its class token: global_pool is token, not {global_pool}"
        rates: Any = calculate_drop_path_rates(drop_path_rate, [*depths], stagewise=True)
        channels, grid = in_chans, to_2tuple(img_size)
        stages = []
        for number, (width, heads, patch) in enumerate(zip(embed_dims, num_heads, PATCHES, strict=True)):
            ratio, reduction = MLP_RATIOS[number], REDUCTIONS[number]
            blocks = nn.ModuleList(
                Block(ReducedAttention(width, heads, reduction), width, mlp_ratio=ratio, drop_path=rate)
                for rate in rates[number]
            )
            grid = grid[0] // patch, grid[1] // patch
            patch_embed = nn.Conv2d(channels, width, patch, stride=patch)
            stages.append(Stage(patch_embed, grid, blocks, has_class_token=number == 3))
            channels = width
        super().__init__(stages, embed_dims, in_chans, num_classes)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters without weight decay besides biases and norms, as the authors have it."""
        return {"stages.3.cls_token"}

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (b, classes) of images (b, c, height, width) whose sides are multiples of 32 pixels."""
        x = images
        for stage in self.stages[:3]:
            tokens, grid = stage(x)
            x = rearrange(tokens, "b (h w) d -> b d h w", h=grid[0])
        tokens, _ = self.stages[3](x)
        logits: Tensor = self.head(self.norm(tokens[:, 0]))
        return logits


def _build(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    return build_model_with_cfg(PyramidVisionTransformer, name, pretrained, **{"depths": DEPTHS[name]} | options)


@register_model
def pvt_tiny(pretrained: bool = False, **options: Any) -> Any:
    """Build PVT-Tiny."""
    return _build("pvt_tiny", pretrained, options)


@register_model
def pvt_small(pretrained: bool = False, **options: Any) -> Any:
    """Build PVT-Small."""
    return _build("pvt_small", pretrained, options)


@register_model
def pvt_medium(pretrained: bool = False, **options: Any) -> Any:
    """Build PVT-Medium."""
    return _build("pvt_medium", pretrained, options)


@register_model
def pvt_large(pretrained: bool = False, **options: Any) -> Any:
    """Build PVT-Large."""
    return _build("pvt_large", pretrained, options)
