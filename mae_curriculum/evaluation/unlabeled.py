"""How good an encoder is, without labels: the masked loss, and the effective rank of its features."""

from math import prod

import torch
from torch import Tensor

from mae_curriculum.data.sources import Images
from mae_curriculum.data.subsets import limit
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.model.masking import mask_noise

MEASURED_IMAGES = 2048
"""Number of images, evenly spread, that are measured: enough for features of any width of a ViT."""


def effective_rank(features: Tensor) -> float:
    """Return how many directions features (n, d) fill, 1 to min(n, d): the exponential entropy of singular values.

    Features that collapse have a low one. Source: RankMe, arXiv:2210.02885.
    """
    singular = torch.linalg.svdvals(features.double())
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


def measure_unlabeled(
    model: MaskedAutoencoder, images: Images, *, mask_ratio: float, inference: Inference
) -> dict[str, float]:
    """Return the loss at full size, with a mask for each image that is always the same, and the effective rank of the
    mean features.

    Of `MEASURED_IMAGES` of the images.
    """
    chosen = limit(images, MEASURED_IMAGES)
    count = prod(model.shape.mask_grid(model.image_size))
    noise = mask_noise(seed=0, step=0, places=range(len(chosen)), count=count)

    def loss_of(batch: Tensor, ids: Tensor) -> Tensor:
        losses: Tensor = model(batch, noise[ids].to(batch.device), mask_ratio)
        return losses[:, None]

    losses = [rows for rows, _ in inference.run(loss_of, chosen, size=model.image_size, channels=model.channels)]
    features, _ = inference.encode(model, chosen)
    return {
        "val_loss": float(torch.cat(losses).mean()),
        "effective_rank": effective_rank(features[:, model.pools.index("avg")]),
    }
