"""Parts of a fine-tuning recipe: layer-wise learning rates, mixup and cutmix, random seeds."""

from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]  # public, but timm has no __all__
from torch import Tensor


def layer_decay_groups(net: Any, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Return timm's parameter groups by layer, except that the final norm learns at the head's rate, as in MAE."""
    excluded: set[str] = net.no_weight_decay() if hasattr(net, "no_weight_decay") else set()
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        net, weight_decay=weight_decay, no_weight_decay_list=excluded, layer_decay=layer_decay
    )
    norm = list(net.norm.parameters()) if hasattr(net, "norm") else []
    norm_ids = {id(parameter) for parameter in norm}
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in norm_ids]
    groups.append({"params": norm, "weight_decay": 0.0, "lr_scale": 1.0})
    return [group for group in groups if group["params"]]


def mix(mixer: Mixup, images: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Mix each image (b, c, h, w) with its neighbor in the batch; returns images and target distributions.

    All pairs of a step are mixed alike, on any number of devices: the random choices depend on the seed only.
    """
    even, odd = torch.arange(0, len(images), 2), torch.arange(1, len(images), 2)
    order = torch.cat([even, odd.flip(0)]).to(images.device)  # timm mixes the first with the last, and so on
    state = np.random.get_state()  # timm draws from this global state
    np.random.seed(seed % 2**32)
    try:
        mixed: tuple[Tensor, Tensor] = mixer(images[order], labels[order])
    finally:
        np.random.set_state(state)
    return mixed


def position_seed(*position: int) -> int:
    """Hash integers, at least 0, to a random seed."""
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> 1)
