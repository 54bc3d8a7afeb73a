"""What a fine-tuning recipe does beside the steps: learning rates by layer, mixed images, seeds of a position."""

from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn


def layer_decay_groups(net: Any, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Group a network's parameters by layer: timm's groups, with the final norm beside the head, as in MAE."""
    spared: set[str] = getattr(net, "no_weight_decay", set)()
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        net, weight_decay=weight_decay, no_weight_decay_list=spared, layer_decay=layer_decay
    )
    last = {id(parameter) for parameter in getattr(net, "norm", nn.Identity()).parameters()}
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in last]
    norms = [parameter for parameter in net.parameters() if id(parameter) in last]
    groups.append({"params": norms, "weight_decay": 0.0, "lr_scale": 1.0})
    return [group for group in groups if group["params"]]


def mix(mixer: Mixup, images: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Mix each image (b, c, h, w) with its neighbour in the batch; returns images and target distributions.

    All pairs of a step are mixed alike, whichever devices hold them: the random choices depend on the seed alone.
    """
    ends = torch.cat([torch.arange(0, len(images), 2), torch.arange(1, len(images), 2).flip(0)])
    ends = ends.to(images.device)  # timm mixes the first with the last, and so on
    state = np.random.get_state()  # timm draws from the global one
    np.random.seed(seed % 2**32)
    try:
        mixed: tuple[Tensor, Tensor] = mixer(images[ends], labels[ends])
    finally:
        np.random.set_state(state)
    return mixed


def position_seed(*position: int) -> int:
    """Hash whole numbers, at least 0, to a seed."""
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> 1)
