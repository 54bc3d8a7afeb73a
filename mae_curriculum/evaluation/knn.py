"""Weighted k-nearest-neighbor classification of frozen features.

Source  Wu et al., arXiv:1805.01978, as DINO (arXiv:2104.14294) uses it.
"""

import torch
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.data.sources import Images
from mae_curriculum.data.subsets import hold_out
from mae_curriculum.evaluation.config import KnnConfig
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder


@torch.inference_mode()
def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, *, neighbors: int, temperature: float
) -> float:
    """Classify each query by the weighted vote of its nearest bank features; return the accuracy, 0 to 1.

    bank, queries  (n, d) features, compared by cosine similarity.
    labels         (n,) int64.
    Raises         ConfigError if there are fewer bank features than neighbors.
    """
    if neighbors > len(bank):
        raise ConfigError(f"knn.neighbors is {neighbors}, but there are only {len(bank)} training images")
    bank, queries = (torch.nn.functional.normalize(features.float(), dim=1) for features in (bank, queries))
    classes = int(torch.cat([bank_labels, query_labels]).max()) + 1
    chunk = _queries_at_once(len(bank))
    correct = 0
    for part, labels in zip(torch.split(queries, chunk), torch.split(query_labels, chunk), strict=True):
        similarity, nearest = (part @ bank.T).topk(neighbors, dim=1)
        votes = torch.zeros(len(part), classes, device=bank.device)
        votes.scatter_add_(1, bank_labels[nearest], (similarity / temperature).exp())
        correct += int((votes.argmax(dim=1) == labels).sum())
    return correct / len(queries)


@torch.inference_mode()
def nearest_others(vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the cosine similarity and the index of the vectors nearest to each, without itself: (n, count) each.

    vectors  (n, d) of norm 1, more than `count`. The nearest comes first.
    """
    similarities, indices = [], []
    numbers = torch.arange(len(vectors), device=vectors.device)
    for own in torch.split(numbers, _queries_at_once(len(vectors))):
        similarity = vectors[own] @ vectors.T
        similarity[numbers[: len(own)], own] = -torch.inf
        nearest = similarity.topk(count, dim=1)
        similarities.append(nearest.values)
        indices.append(nearest.indices)
    return torch.cat(similarities), torch.cat(indices)


def _queries_at_once(bank_size: int) -> int:
    """Return how many queries to compare at once: at most 256 MB of similarities, whatever the size of the bank."""
    return max(1, 2**26 // bank_size)


def why_no_knn(train: Images, val: Images | None, config: KnnConfig) -> str | None:
    """Return the reason why these images have no kNN accuracy, or None if they have one."""
    bank, queries = hold_out(train, val)
    if bank.labels is None or queries.labels is None:
        return "the images are not sorted into two or more classes"
    if config.neighbors > len(bank):
        return f"knn.neighbors is {config.neighbors}, but there are only {len(bank)} training images"
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
    """Return the kNN accuracy of the model's features at full size, or None if `why_no_knn` gives a reason.

    cached  whether to keep the features on disk, for models whose weights do not change.
    Raises  ConfigError for a pool that the model lacks.
    """
    if why_no_knn(train, val, config):
        return None
    if config.pool not in model.pools:
        raise ConfigError(f"knn.pool: this encoder has no {config.pool}, only {', '.join(model.pools)}")
    pool, device = model.pools.index(config.pool), inference.world.device
    bank_and_queries = []
    for images in hold_out(train, val):
        if cached:
            features = torch.from_numpy(inference.cached(model, images)[:, pool].copy())
            indices = features.isfinite().all(dim=1).nonzero().flatten()
            features = features[indices].to(device)
        else:
            features, indices = inference.encode(model, images)
            features = features[:, pool]
        bank_and_queries += [features, torch.tensor(images.labels)[indices.cpu()].to(device)]
    return knn_accuracy(*bank_and_queries, neighbors=config.neighbors, temperature=config.temperature)
