"""Augment one image: random crop, flip, RandAugment. Both strength and random seed are arguments."""

import math
import random
from functools import lru_cache

import numpy as np
import torch
from numpy.random import mtrand
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import RandomErasing
from torchvision.transforms.v2 import functional as F

from mae_curriculum.data.config import GRAY_MEAN, GRAY_STD

FOR_TIMM = np.random.MT19937(0)
"""Takes the place of numpy's global generator during RandAugment: to save and restore that one's state would take
longer. What it had kept of a pair of Gaussian numbers is lost."""


def augment(
    image: Tensor,
    size: tuple[int, int],
    *,
    min_area: float,
    flip: bool,
    magnitude: float | None,
    position: tuple[int, ...],
    erasing: float = 0.0,
    lanczos: bool = False,
) -> Tensor:
    """Return a random crop of an image, resized, maybe flipped, with RandAugment and random erasing.

    image      (c, h, w) uint8; 1 or 3 channels if a magnitude is given.
    size       (height, width) of the result in pixels.
    min_area   area of the smallest crop as a share of the image; the aspect ratio is that of `size`, times 3:4 to 4:3.
    magnitude  of timm's RandAugment with mstd 0.5 and increasing ops, 0 to 10; None for no RandAugment.
    erasing    probability of random erasing: noise with ImageNet's gray mean and variance, on 2% to 33% of the area.
    position   integers, at least 0; all random choices are a function of these alone.
    lanczos    resize with a Lanczos filter instead of a bicubic one.
    Returns    (c, height, width) uint8.
    """
    generator = np.random.default_rng(position)
    box = random_box(generator, (image.shape[1], image.shape[2]), min_area=min_area, aspect=size[1] / size[0])
    image = crop_and_resize(image, box, size, lanczos=lanczos)
    if flip and generator.random() < 0.5:
        image = image.flip(-1)
    if magnitude is not None:
        image = _rand_augment(image, magnitude, generator)
    return _erase(image, generator) if erasing and generator.random() < erasing else image


def random_box(
    generator: np.random.Generator, size: tuple[int, int], *, min_area: float, aspect: float
) -> tuple[int, int, int, int]:
    """Return a random part of an image of `size` (height, width): top, left, height and width, pixels.

    As torchvision's RandomResizedCrop draws it, without the cost of torch's generator: a share `min_area` to 1 of the
    image's area, with a width by height of `aspect` times 3:4 to 4:3; after ten boxes that do not fit, the largest
    that does, from the center.
    """
    height, width = size
    low, high = 3 / 4 * aspect, 4 / 3 * aspect
    for _ in range(10):
        area = height * width * generator.uniform(min_area, 1.0)
        ratio = math.exp(generator.uniform(math.log(low), math.log(high)))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1)), h, w
    h, w = min(height, round(width / low)), min(width, round(height * high))
    return (height - h) // 2, (width - w) // 2, h, w


def resize_and_crop(image: Tensor, size: tuple[int, int], *, crop: float = 1.0) -> Tensor:
    """Resize the largest center crop of an image (c, h, w) uint8 that has the aspect ratio of `size` (height, width).

    crop  share of that crop's sides that is kept, above 0 and at most 1: MAE's evaluation keeps 224 of 256 pixels.
    """
    h, w = image.shape[1:]
    scale = max(size[0] / h, size[1] / w) / crop
    height, width = min(h, round(size[0] / scale)), min(w, round(size[1] / scale))
    box = ((h - height) // 2, (w - width) // 2, max(1, height), max(1, width))
    return crop_and_resize(image, box, size)


def crop_and_resize(
    image: Tensor, box: tuple[int, int, int, int], size: tuple[int, int], *, lanczos: bool = False
) -> Tensor:
    """Return a part of an image (c, h, w) uint8, resized to `size` (height, width), with antialiasing.

    As torchvision's `resized_crop`, whose own code takes longer than the resizing of a small image. Bicubic pixels are
    within 2 of 255 of Pillow's, in mean within 0.01. Pillow 13 resizes some tall boxes in the other direction first:
    from these, single pixels beside sharp edges differ by up to 17, and the mean by up to 0.3.

    box      top, left, height and width, pixels.
    lanczos  with Pillow's Lanczos filter instead of torch's bicubic one.
    """
    top, left, height, width = box
    part = image[:, top : top + height, left : left + width]
    if (height, width) == size:
        return part
    if lanczos and len(part) == 3:  # all channels at once: the same bits, faster
        return _resize_lanczos(part.permute(1, 2, 0), size).permute(2, 0, 1)
    if lanczos:
        return torch.stack([_resize_lanczos(channel, size) for channel in part])
    part = part[None].contiguous(memory_format=torch.channels_last)  # as Pillow stores them: the same bits, faster
    return interpolate(part, size=size, mode="bicubic", antialias=True)[0]


def _resize_lanczos(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize pixels (h, w) or (h, w, 3) uint8 to `size` (height, width)."""
    resized = Image.fromarray(pixels.numpy()).resize(size[::-1], Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized))


def _erase(image: Tensor, generator: np.random.Generator) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_seed(generator))
        top, left, height, width, noise = RandomErasing.get_params(image.float(), (0.02, 1 / 3), (0.3, 1 / 0.3))
    noise = (255 * (GRAY_MEAN + GRAY_STD * noise)).round().clamp(0, 255).to(torch.uint8)
    erased: Tensor = F.erase(image, top, left, height, width, noise)
    return erased


def _rand_augment(image: Tensor, magnitude: float, generator: np.random.Generator) -> Tensor:
    policy = rand_augment(magnitude)
    picture = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy())
    python_state, numpy_generator = random.getstate(), mtrand.get_bit_generator()  # timm draws from these
    random.seed(_seed(generator))
    mtrand.set_bit_generator(FOR_TIMM)
    np.random.seed(_seed(generator))
    try:
        augmented = torch.from_numpy(np.array(policy(picture))).permute(2, 0, 1)
    finally:
        random.setstate(python_state)
        mtrand.set_bit_generator(numpy_generator)
    result: Tensor = augmented if len(image) == 3 else F.rgb_to_grayscale(augmented)
    return result


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(2**32))


@lru_cache(maxsize=16)
def rand_augment(magnitude: float) -> RandAugment:
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
