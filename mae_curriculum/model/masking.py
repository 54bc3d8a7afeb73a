"""Random masking: which patches of an image the encoder sees."""

import numpy as np
import torch
from torch import Tensor


def split_by_noise(noise: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Rank the patches of each image by noise (b, n): ids of the `keep` lowest (b, k), and of the others (b, m)."""
    ids_keep, ids_mask = noise.argsort(dim=1, stable=True).tensor_split([keep], dim=1)
    return ids_keep, ids_mask


def mask_noise(*, seed: int, step: int, places: range, patch_count: int) -> Tensor:
    """Draw the noise that ranks the patches of some images of a global batch, (len(places), patch_count) in [0, 1).

    It is a function of seed, step and place in the batch alone, whoever asks for whichever part: Philox is a counter
    generator, so each place starts at its own count (a count gives four values).
    """
    counts = -(-patch_count // 4)
    generator = np.random.Generator(np.random.Philox(key=[seed, step], counter=places.start * counts))
    noise = generator.random((len(places), counts * 4))
    return torch.from_numpy(noise[:, :patch_count]).float()
