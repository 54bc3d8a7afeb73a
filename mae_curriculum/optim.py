"""The optimizer: AdamW with MAE's groups, and the batch-size rule."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW

from mae_curriculum.config import ConfigError


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, with MAE's values by default."""

    base_lr: float = 1.5e-4
    """Peak learning rate for a batch of 256; it grows in proportion to the batch."""
    min_lr: float = 0.0
    """Learning rate at the end, for a batch of 256."""
    warmup: float = 0.05
    """Share of the run during which the learning rate rises, 0 to below 1."""
    weight_decay: float = 0.05
    """For weight matrices; biases, norms and tokens have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's two moments."""
    clip_norm: float | None = None
    """Largest norm of the gradient, or null for no clipping."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"optim.warmup is a share of the run, 0 to below 1, got {self.warmup}")
        if self.base_lr <= 0 or not 0 <= self.min_lr <= self.base_lr:
            raise ConfigError(f"optim: 0 <= min_lr <= base_lr and base_lr > 0, got {self.min_lr} and {self.base_lr}")
        if self.weight_decay < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim: weight_decay >= 0, betas in 0..1, got {self.weight_decay}, {list(self.betas)}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ConfigError(f"optim.clip_norm must be above 0 or null, got {self.clip_norm}")


def scaled_lr(base_lr: float, batch_images: int) -> float:
    """Scale a learning rate given for 256 images to a batch (arXiv:1706.02677; MAE does so with AdamW)."""
    return base_lr * batch_images / 256


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """Make AdamW over the trained parameters; vectors and tokens (1, n, d) are not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    is_matrix = [parameter.ndim > 1 and parameter.shape[0] > 1 for parameter in trained]
    groups = [
        {
            "params": [p for p, matrix in zip(trained, is_matrix, strict=True) if matrix],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p, matrix in zip(trained, is_matrix, strict=True) if not matrix], "weight_decay": 0.0},
    ]
    return build_adamw(groups, config)


def build_adamw(groups: list[dict[str, Any]], config: OptimConfig) -> AdamW:
    """Make AdamW over groups of parameters that say their weight decay; the loop sets their learning rates."""
    return AdamW(groups, lr=0.0, betas=config.betas, fused=True)
