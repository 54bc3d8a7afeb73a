"""Augmentation of one image: random crop, flip, RandAugment. Strength is an argument, and so is the random choice."""

import random
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F


def augment(
    image: Tensor,
    size: tuple[int, int],
    *,
    min_area: float,
    flip: bool,
    magnitude: float | None,
    position: tuple[int, ...],
) -> Tensor:
    """Crop at random and resize, flip, and apply RandAugment.

    image      (c, h, w) uint8; 1 or 3 channels where there is a magnitude.
    size       (height, width) of the result, pixels.
    min_area   smallest crop, as a share of the image's area; the largest is 1. Its shape is that of `size`, up to 4:3.
    magnitude  of timm's RandAugment with mstd 0.5 and increasing ops, or None for no RandAugment.
    position   whole numbers, at least 0, of which alone the random choices are a function.
    Returns    (c, height, width) uint8.
    """
    seeds = [int(seed) for seed in np.random.SeedSequence(position).generate_state(3)]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seeds[0])
        shape = size[1] / size[0]
        box = RandomResizedCrop.get_params(image, scale=[min_area, 1.0], ratio=[3 / 4 * shape, 4 / 3 * shape])
        mirrored = flip and bool(torch.rand(()) < 0.5)
    image = F.resized_crop(image, *box, size=list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
    if mirrored:
        image = F.horizontal_flip(image)
    return image if magnitude is None else _rand_augment(image, magnitude, seeds[1:])


def resize_and_crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the largest centred part shaped like `size` (height, width) out of an image (c, h, w) uint8; resize it."""
    (h, w), scale = image.shape[1:], max(size[0] / image.shape[1], size[1] / image.shape[2])
    height, width = min(h, round(size[0] / scale)), min(w, round(size[1] / scale))
    box = ((h - height) // 2, (w - width) // 2, max(1, height), max(1, width))
    cropped: Tensor = F.resized_crop(
        image, *box, size=list(size), interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return cropped


def _rand_augment(image: Tensor, magnitude: float, seeds: list[int]) -> Tensor:
    policy = _policy(magnitude)
    picture = F.to_pil_image(image.expand(3, -1, -1))
    python_state, numpy_state = random.getstate(), np.random.get_state()  # timm draws from the global states
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    try:
        augmented = F.pil_to_tensor(policy(picture))
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
    result: Tensor = augmented if len(image) == 3 else F.rgb_to_grayscale(augmented)
    return result


@lru_cache(maxsize=16)
def _policy(magnitude: float) -> RandAugment:
    """Make timm's `rand-mM-mstd0.5-inc1` for any M: its text form takes whole magnitudes only."""
    grey = (124, 116, 104)  # ImageNet's mean, where a shear or a rotation leaves a gap
    policy: RandAugment = rand_augment_transform(
        "rand-m0-mstd0.5-inc1", {"img_mean": grey, "interpolation": Image.Resampling.BICUBIC}
    )
    for op in policy.ops:
        op.magnitude = magnitude
    return policy
