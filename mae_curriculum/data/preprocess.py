"""What happens to a batch on the device before the model sees it: normalisation and the curriculum's resize."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from mae_curriculum.curriculum.low_frequency import RESIZE


def show(images: Tensor, size: tuple[int, int], *, mean: Sequence[float], std: Sequence[float], resize: str) -> Tensor:
    """Make of pixels (b, c, h, w) uint8 what the model sees: normalised, and at a curriculum's size (height, width).

    resize  one of `frequency.RESIZE`; at full size nothing is resized.
    """
    return RESIZE[resize](normalize(images, mean, std), size)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bring pixels (b, c, h, w) uint8 to mean 0 and variance 1: `mean` and `std` are the channels', from 0 to 1."""
    return (images - _for_channels(tuple(mean), images.device)) / _for_channels(tuple(std), images.device)


@lru_cache(maxsize=16)
def _for_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Bring a value for each channel to a device, once: each such copy waits for the device."""
    return (255 * torch.tensor(values)).view(-1, 1, 1).to(device)
