"""Weighted k-nearest-neighbor classification of frozen features.

Source  Wu et al., arXiv:1805.01978, as DINO (arXiv:2104.14294) uses it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.data.sources import Images
from mae_curriculum.data.subsets import hold_out, limit
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
        relative = (similarity - similarity[:, :1]) / temperature  # at most 0, so that no weight is infinite
        votes.scatter_add_(1, bank_labels[nearest], relative.exp())
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
    bank, queries = bank_and_queries(train, val, config)
    if bank.labels is None or queries.labels is None:
        return "the images are not sorted into two or more classes"
    if config.neighbors > len(bank):
        return f"knn.neighbors is {config.neighbors}, but there are only {len(bank)} training images"
    if {*bank.labels}.isdisjoint(queries.labels):
        held_out = ", some of which are held out" if val is None else ""
        return f"no class of the images to classify has training images{held_out}"
    return None


def bank_and_queries(train: Images, val: Images | None, config: KnnConfig) -> tuple[Images, Images]:
    """Return the images that vote and those that are classified."""
    bank, queries = (limit(side, config.images) for side in hold_out(train, val))
    return bank, queries


def knn_of_encoder(
    model: MaskedAutoencoder, train: Images, val: Images | None, *, config: KnnConfig, inference: Inference
) -> float | None:
    """Return the kNN accuracy of the model's features at full size, or None if `why_no_knn` gives a reason.

    Nothing is kept on disk: for a model that is being trained.
    Raises  ConfigError for a pool that the model lacks.
    """
    if why_no_knn(train, val, config):
        return None
    pool, device = find_pool(model, config), inference.world.device
    labeled = []
    for images in bank_and_queries(train, val, config):
        features, indices = inference.encode(model, images)
        labeled += [features[:, pool], torch.tensor(images.labels)[indices.cpu()].to(device)]
    return knn_accuracy(*labeled, neighbors=config.neighbors, temperature=config.temperature)


def knn_by_block(
    model: MaskedAutoencoder,
    train: Images,
    val: Images | None,
    blocks: Sequence[int],
    *,
    config: KnnConfig,
    inference: Inference,
) -> list[float]:
    """Return the kNN accuracy of the model's features after each of some blocks; features are kept on disk.

    The images must have labels: `why_no_knn` gives no reason.

    Raises  ConfigError for a pool that the model lacks.
    """
    pool, device = find_pool(model, config), inference.world.device
    sides = bank_and_queries(train, val, config)
    by_side = [inference.cached(model, images, blocks) for images in sides]
    accuracies = []
    for features_of_block in zip(*by_side, strict=True):
        labeled = []
        for images, stored in zip(sides, features_of_block, strict=True):
            features = torch.from_numpy(stored[:, pool].copy())
            intact = features.isfinite().all(dim=1).nonzero().flatten()
            labeled += [features[intact].to(device), torch.tensor(images.labels)[intact].to(device)]
        accuracy = knn_accuracy(*labeled, neighbors=config.neighbors, temperature=config.temperature)
        accuracies.append(accuracy)
    return accuracies


def find_pool(model: MaskedAutoencoder, config: KnnConfig) -> int:
    """Return the place of the pool in the model's features; raises ConfigError if it has none."""
    if config.pool not in model.pools:
        raise ConfigError(f"knn.pool: this encoder has no {config.pool}, only {', '.join(model.pools)}")
    return model.pools.index(config.pool)
