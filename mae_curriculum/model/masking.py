"""Patches, and random masking: which of them the encoder sees."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor


def split_by_noise(noise: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return the ids of the `keep` patches of lowest noise (b, n) of each image, (b, k), and of the others, (b, m)."""
    ids_keep, ids_mask = noise.argsort(dim=1, stable=True).tensor_split([keep], dim=1)
    return ids_keep, ids_mask


def mask_noise(*, seed: int, step: int, places: range, patch_count: int) -> Tensor:
    """Return the noise that ranks the patches of images of a global batch, (len(places), patch_count) in [0, 1).

    It is a function of seed, step and place in the batch alone, whichever rank computes whichever part: Philox is a
    counter-based generator, and each place starts at its own count (a count yields four values).
    """
    counts = -(-patch_count // 4)
    generator = np.random.Generator(np.random.Philox(key=[seed, step], counter=places.start * counts))
    noise = generator.random((len(places), counts * 4))
    return torch.from_numpy(noise[:, :patch_count]).float()


def take_patches(patches: Tensor, ids: Tensor) -> Tensor:
    """Return the patches (b, n, d) with the given ids (b, k): (b, k, d)."""
    return patches.gather(1, ids[..., None].expand(-1, -1, patches.shape[-1]))


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Cut images into patches, (b, c, h, w) -> (b, n, p*q*c), row by row; MAE's order of values within a patch."""
    return rearrange(images, "b c (y p) (x q) -> b (y x) (p q c)", p=patch_size[0], q=patch_size[1])
