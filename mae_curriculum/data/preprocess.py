"""What happens to a batch on the device before the model sees it: normalization and the low-frequency crop."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from mae_curriculum.curriculum.low_frequency import RESIZE


def preprocess(
    images: Tensor, size: tuple[int, int], *, mean: Sequence[float], std: Sequence[float], resize: str
) -> Tensor:
    """Normalize images (b, c, h, w) uint8 and resize them to `size` (height, width).

    mean, std  of each channel, on a scale of 0 to 1.
    resize     a key of `low_frequency.RESIZE`, such as "fourier": the low-frequency crop.
    Returns    (b, c, *size), float32.
    """
    return RESIZE[resize](normalize(images, mean, std), size)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return images (b, c, h, w) uint8 as float32, minus `mean`, divided by `std`, on a scale of 0 to 1."""
    planes = images.contiguous()  # `join` leaves them channels last
    return (planes - _for_channels(tuple(mean), images.device)) / _for_channels(tuple(std), images.device)


@lru_cache(maxsize=16)
def _for_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a value per channel on the device, (c, 1, 1), on a scale of 0 to 255; cached, as each copy waits."""
    return (255 * torch.tensor(values)).view(-1, 1, 1).to(device)
