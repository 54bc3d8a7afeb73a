"""The optimizer: AdamW with MAE's parameter groups."""

from typing import Any

from torch import nn
from torch.optim import AdamW

from mae_curriculum.training.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """Return AdamW over the trained parameters; those of one dimension, biases and norms, have no weight decay.

    The class token and the mask token, (1, 1, d), are decayed, as in facebookresearch/mae.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return build_adamw(groups, config)


def build_adamw(groups: list[dict[str, Any]], config: OptimConfig) -> AdamW:
    """Return AdamW over parameter groups with their own weight decay; the training step sets the learning rates."""
    return AdamW(groups, lr=0.0, betas=config.betas, fused=True)
