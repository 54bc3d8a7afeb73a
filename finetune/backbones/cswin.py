"""CSWin Transformer (arXiv:2107.00652), whose parameters do not depend on the size of the images.

With the one change of EfficientTrain (arXiv:2211.09703): the stripes that are 7 patches wide for images of 224 pixels
are a 32nd of the image's side in pixels.

Shapes: b images, h w grid, d width, n heads, p q window.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.drop import calculate_drop_path_rates
from timm.layers.norm import LayerNorm
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from finetune.backbones.pyramid import CELL, Block, Pyramid, Size, timm_settings

SIZES: dict[str, dict[str, Any]] = {
    "cswin_tiny": {"embed_dim": 64, "depths": (1, 2, 21, 1), "num_heads": (2, 4, 8, 16)},
    "cswin_small": {"embed_dim": 64, "depths": (2, 4, 32, 2), "num_heads": (2, 4, 8, 16)},
    "cswin_base": {"embed_dim": 96, "depths": (2, 4, 32, 2), "num_heads": (4, 8, 16, 32)},
}

default_cfgs = timm_settings(SIZES, first_conv="stages.0.downsample")  # by this name, timm finds it


class StripeAttention(nn.Module):
    """Attention in two branches, each with half of the heads: within vertical stripes and within horizontal ones."""

    def __init__(self, width: int, heads: int, *, branches: int) -> None:
        """Build attention with 2 branches, or with 1 for grids that are a single stripe."""
        super().__init__()
        self.heads = heads // branches
        self.qkv = nn.Linear(width, 3 * width)
        own = width // branches
        self.positions = nn.ModuleList(nn.Conv2d(own, own, 3, padding=1, groups=own) for _ in range(branches))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, stripe: Size) -> Tensor:
        """Attend in a grid (b, h, w, d), whose horizontal stripes are stripe[0] high, the vertical stripe[1] wide."""
        windows = (x.shape[1], stripe[1]), (stripe[0], x.shape[2])
        branches = self.qkv(x).unflatten(-1, (3, -1)).chunk(len(self.positions), dim=-1)
        attended = map(self._attend, branches, self.positions, windows)
        out: Tensor = self.proj(torch.cat([*attended], dim=-1))
        return out

    def _attend(self, qkv: Tensor, position: nn.Module, window: Size) -> Tensor:
        """Attend within the windows of (b, h, w, 3, d); a convolution of the values in a window tells positions."""
        sizes = {"h": qkv.shape[1] // window[0], "p": window[0], "q": window[1]}
        q, k, v = rearrange(qkv, "b (h p) (w q) s (n d) -> s (b h w) n (p q) d", n=self.heads, **sizes)
        positions = position(rearrange(v, "b n (p q) d -> b (n d) p q", p=window[0]))
        x = F.scaled_dot_product_attention(q, k, v)
        x = x + rearrange(positions, "b (n d) p q -> b n (p q) d", n=self.heads)
        out: Tensor = rearrange(x, "(b h w) n (p q) d -> b (h p) (w q) (n d)", b=qkv.shape[0], **sizes)
        return out


class Stage(nn.Module):
    """A convolution to a coarser grid, and blocks."""

    def __init__(self, downsample: nn.Conv2d, heads: int, branches: int, drop_path: list[float]) -> None:
        """Build one block for each rate of drop path."""
        super().__init__()
        width = downsample.out_channels
        self.downsample = downsample
        self.norm = LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(StripeAttention(width, heads, branches=branches), width, mlp_ratio=4, drop_path=rate)
            for rate in drop_path
        )

    def forward(self, x: Tensor, stripe: Size) -> Tensor:
        """Return features (b, h, w, d) of an image or a finer grid (b, height, width, channels)."""
        x = self.norm(self.downsample(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        for block in self.blocks:
            x = block(x, stripe)
        return x


class CSwin(Pyramid):
    """CSWin Transformer, which classifies the mean of the last grid."""

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_path_rate: float = 0.0,
    ) -> None:
        assert global_pool == "avg", f"CSWin has no class token: global_pool is avg, not {global_pool}"
        widths = tuple(embed_dim << stage for stage in range(4))
        downsample = [nn.Conv2d(in_chans, embed_dim, 7, stride=4, padding=2)]
        downsample += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1) for width in widths[:3]]
        rates: Any = calculate_drop_path_rates(drop_path_rate, [*depths], stagewise=True)
        stages = map(Stage, downsample, num_heads, (2, 2, 2, 1), rates)
        super().__init__(stages, widths, in_chans, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (b, classes) of images (b, c, height, width) whose sides are multiples of 32 pixels."""
        cells = images.shape[2] // CELL, images.shape[3] // CELL
        x = images.permute(0, 2, 3, 1)
        for stage, stripe in zip(self.stages, ((1, 1), (2, 2), cells, cells), strict=True):
            x = stage(x, stripe)
        logits: Tensor = self.head(self.norm(x).mean(dim=(1, 2)))
        return logits


def _build(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    return build_model_with_cfg(CSwin, name, pretrained, **SIZES[name] | options)


@register_model
def cswin_tiny(pretrained: bool = False, **options: Any) -> Any:
    """Build CSWin-T."""
    return _build("cswin_tiny", pretrained, options)


@register_model
def cswin_small(pretrained: bool = False, **options: Any) -> Any:
    """Build CSWin-S."""
    return _build("cswin_small", pretrained, options)


@register_model
def cswin_base(pretrained: bool = False, **options: Any) -> Any:
    """Build CSWin-B."""
    return _build("cswin_base", pretrained, options)
