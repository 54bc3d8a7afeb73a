"""Augment one image: random crop, flip, RandAugment. Both strength and random seed are arguments."""

import random
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomErasing, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from mae_curriculum.data.config import GRAY_MEAN, GRAY_STD


def augment(
    image: Tensor,
    size: tuple[int, int],
    *,
    min_area: float,
    flip: bool,
    magnitude: float | None,
    position: tuple[int, ...],
    erasing: float = 0.0,
) -> Tensor:
    """Return a random crop of an image, resized, maybe flipped, with RandAugment and random erasing.

    image      (c, h, w) uint8; 1 or 3 channels if a magnitude is given.
    size       (height, width) of the result in pixels.
    min_area   area of the smallest crop as a share of the image; the aspect ratio is that of `size`, times 3:4 to 4:3.
    magnitude  of timm's RandAugment with mstd 0.5 and increasing ops, or None for no RandAugment.
    erasing    probability of random erasing: noise with ImageNet's gray mean and variance, on 2% to 33% of the area.
    position   integers, at least 0; all random choices are a function of these alone.
    Returns    (c, height, width) uint8.
    """
    seeds = [int(seed) for seed in np.random.SeedSequence(position).generate_state(4)]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seeds[0])
        aspect = size[1] / size[0]
        box = RandomResizedCrop.get_params(image, scale=[min_area, 1.0], ratio=[3 / 4 * aspect, 4 / 3 * aspect])
        mirrored = flip and bool(torch.rand(()) < 0.5)
        erased = bool(torch.rand(()) < erasing)
    image = F.resized_crop(image, *box, size=list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
    if mirrored:
        image = F.horizontal_flip(image)
    if magnitude is not None:
        image = _rand_augment(image, magnitude, seeds[1:3])
    return _erase(image, seeds[3]) if erased else image


def resize_and_crop(image: Tensor, size: tuple[int, int], *, crop: float = 1.0) -> Tensor:
    """Resize the largest center crop of an image (c, h, w) uint8 that has the aspect ratio of `size` (height, width).

    crop  share of that crop's sides that is kept, above 0 and at most 1: MAE's evaluation keeps 224 of 256 pixels.
    """
    h, w = image.shape[1:]
    scale = max(size[0] / h, size[1] / w) / crop
    height, width = min(h, round(size[0] / scale)), min(w, round(size[1] / scale))
    box = ((h - height) // 2, (w - width) // 2, max(1, height), max(1, width))
    cropped: Tensor = F.resized_crop(
        image, *box, size=list(size), interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return cropped


def _erase(image: Tensor, seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        top, left, height, width, noise = RandomErasing.get_params(image.float(), (0.02, 1 / 3), (0.3, 1 / 0.3))
    noise = (255 * (GRAY_MEAN + GRAY_STD * noise)).round().clamp(0, 255).to(torch.uint8)
    erased: Tensor = F.erase(image, top, left, height, width, noise)
    return erased


def _rand_augment(image: Tensor, magnitude: float, seeds: list[int]) -> Tensor:
    policy = _policy(magnitude)
    picture = F.to_pil_image(image.expand(3, -1, -1))
    python_state, numpy_state = random.getstate(), np.random.get_state()  # timm draws from these global states
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
    """Build timm's `rand-mM-mstd0.5-inc1` for any float M; timm's string form takes integers only."""
    mean = (124, 116, 104)  # ImageNet's mean fills the gaps that a shear or rotation leaves
    policy: RandAugment = rand_augment_transform(
        "rand-m0-mstd0.5-inc1", {"img_mean": mean, "interpolation": Image.Resampling.BICUBIC}
    )
    for op in policy.ops:
        op.magnitude = magnitude
        if op.name == "PosterizeIncreasing":  # at 10 no bits would be left, which Pillow 12 refuses
            op.magnitude_max = 9.99
    return policy
