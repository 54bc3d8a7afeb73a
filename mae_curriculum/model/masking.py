"""Patches, and random masking: which of them the encoder sees."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor


def split_by_noise(noise: Tensor, keep: int, *, grid: tuple[int, int], block: int = 1) -> tuple[Tensor, Tensor]:
    """Return which patches of each image are visible: the ids (b, k) of the `keep` of lowest noise, and (b, m) others.

    noise  (b, n / block**2): one value per block of block x block patches, row by row.
    keep   patches, a multiple of block**2.
    grid   patches per column and per row, multiples of the block.
    """
    numbers = torch.arange(grid[0] * grid[1], device=noise.device).view(grid)
    patches = rearrange(numbers, "(y p) (x q) -> (y x) (p q)", p=block, q=block)
    order = noise.argsort(dim=1, stable=True)
    ids_keep, ids_mask = patches[order].flatten(1).tensor_split([keep], dim=1)
    return ids_keep, ids_mask


def mask_noise(*, seed: int, step: int, places: range, count: int) -> Tensor:
    """Return the noise that ranks the patches, or blocks, of images of a global batch: (len(places), count) in [0, 1).

    It is a function of seed, step and place in the batch alone, whichever rank computes whichever part: Philox is a
    counter-based generator, and each place starts at its own count (a count yields four values).
    """
    counts = -(-count // 4)
    generator = np.random.Generator(np.random.Philox(key=[seed, step], counter=places.start * counts))
    noise = generator.random((len(places), counts * 4))
    return torch.from_numpy(noise[:, :count]).float()


def take_patches(patches: Tensor, ids: Tensor) -> Tensor:
    """Return the patches (b, n, d) with the given ids (b, k): (b, k, d)."""
    return patches.gather(1, ids[..., None].expand(-1, -1, patches.shape[-1]))


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Cut images into patches, (b, c, h, w) -> (b, n, p*q*c), row by row; MAE's order of values within a patch."""
    return rearrange(images, "b c (y p) (x q) -> b (y x) (p q c)", p=patch_size[0], q=patch_size[1])
