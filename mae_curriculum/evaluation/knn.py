"""What an encoder is worth without training anything on top: weighted k-nearest-neighbour classification.

Source  Wu et al., arXiv:1805.01978, as DINO (arXiv:2104.14294) uses it.
"""

import torch
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.data.sources import Images, hold_out
from mae_curriculum.evaluation.config import KnnConfig
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder


@torch.inference_mode()
def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, *, neighbours: int, temperature: float
) -> float:
    """Classify each query by the weighted vote of its nearest bank features; tell the share that is right, 0 to 1.

    bank, queries  (n, d) features, of any length: they are compared by cosine.
    labels         (n,) int64.
    Raises         ConfigError if there are fewer bank features than neighbours.
    """
    if neighbours > len(bank):
        raise ConfigError(f"knn.neighbours is {neighbours}, but there are only {len(bank)} images to be neighbours")
    bank, queries = (torch.nn.functional.normalize(features.float(), dim=1) for features in (bank, queries))
    classes = int(torch.cat([bank_labels, query_labels]).max()) + 1
    chunk = max(1, 2**26 // len(bank))  # at most 256 MB of similarities at once, for a bank of any size
    right = 0
    for part, labels in zip(torch.split(queries, chunk), torch.split(query_labels, chunk), strict=True):
        similarity, nearest = (part @ bank.T).topk(neighbours, dim=1)
        votes = torch.zeros(len(part), classes, device=bank.device)
        votes.scatter_add_(1, bank_labels[nearest], (similarity / temperature).exp())
        right += int((votes.argmax(dim=1) == labels).sum())
    return right / len(queries)


def why_no_knn(train: Images, val: Images | None, config: KnnConfig) -> str | None:
    """Say why a kNN accuracy cannot be had of these images, or None if it can."""
    bank, queries = hold_out(train, val)
    if bank.labels is None or queries.labels is None:
        return "the images are not sorted into two or more classes"
    if config.neighbours > len(bank):
        return f"knn.neighbours is {config.neighbours}, and only {len(bank)} images can be neighbours"
    return None


def knn_of_encoder(
    model: MaskedAutoencoder,
    train: Images,
    val: Images | None,
    *,
    config: KnnConfig,
    inference: Inference,
    cached: bool = False,
) -> float | None:
    """Measure the kNN accuracy of the mean of the model's patches at full size; None where `why_no_knn` has a reason.

    cached  keep the features on disk, or take them from there: for models whose weights stay.
    """
    if why_no_knn(train, val, config):
        return None
    pool, device = model.pools.index("avg"), inference.world.device
    sides = []
    for images in hold_out(train, val):
        if cached:
            features = torch.from_numpy(inference.cached(model, images)[:, pool].copy())
            indices = features.isfinite().all(dim=1).nonzero().flatten()
            features = features[indices].to(device)
        else:
            every_pool, indices = inference.encode(model, images)
            features = every_pool[:, pool]
        sides += [features, torch.tensor(images.labels)[indices.cpu()].to(device)]
    return knn_accuracy(*sides, neighbours=config.neighbours, temperature=config.temperature)
