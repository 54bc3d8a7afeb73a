"""What CSWin and PVT share: transformer blocks on four ever coarser grids, and how timm builds and knows them."""

from collections.abc import Iterable
from typing import Any

from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from timm.models import generate_default_cfgs
from torch import Tensor, nn

CELL = 32
"""Pixels between the patches of the last grid; the sides of images are multiples of it."""

Size = tuple[int, int]


class Block(nn.Module):
    """Attention and an MLP, each a residual branch that begins with a norm."""

    def __init__(self, attn: nn.Module, width: int, *, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = attn
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Return new features in the shape of x; `size` is what the attention takes."""
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class Pyramid(nn.Module):
    """Four stages, a norm and a linear classifier; the subclass defines `forward`."""

    def __init__(self, stages: Iterable[nn.Module], widths: tuple[int, ...], in_chans: int, num_classes: int) -> None:
        super().__init__()
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, widths[-1]
        self.stages = nn.ModuleList(stages)
        self.norm = LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        self.feature_info = [
            {"num_chs": width, "reduction": CELL >> (3 - stage), "module": f"stages.{stage}"}
            for stage, width in enumerate(widths)
        ]
        self.apply(init_linear_)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002  timm passes it
        """Return how timm finds the layer of a parameter: a layer is a block, the first with what is before it."""
        return {"blocks": [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^stages\.(\d+)", (0,))]}


def init_linear_(module: nn.Module) -> None:
    """Initialize a linear layer as in ViT; others keep torch's initialization."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def timm_settings(names: Iterable[str], first_conv: str) -> Any:
    """Return the settings under which timm registers networks that have no weights to download."""
    settings = {"crop_pct": 0.9, "first_conv": first_conv, "classifier": "head"}
    return generate_default_cfgs(dict.fromkeys(names, settings))
