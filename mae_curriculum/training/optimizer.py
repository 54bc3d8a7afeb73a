"""The optimizer: AdamW with MAE's parameter groups."""

from typing import Any

from torch import nn
from torch.optim import AdamW

from mae_curriculum.training.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """Return AdamW over the trained parameters; vectors and tokens (1, n, d) have no weight decay."""
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
    """Return AdamW over parameter groups with their own weight decay; the training step sets the learning rates."""
    return AdamW(groups, lr=0.0, betas=config.betas, fused=True)
