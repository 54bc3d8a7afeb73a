"""What an encoder is worth without training anything on top: weighted k-nearest-neighbour classification.

Source  Wu et al., arXiv:1805.01978, as DINO (arXiv:2104.14294) uses it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mae_curriculum.config import ConfigError, exempt
from mae_curriculum.data import EvaluationImages, normalise
from mae_curriculum.distributed import Precision, World
from mae_curriculum.model import MaskedAutoencoder
from mae_curriculum.sources import Images


@dataclass(frozen=True)
class KnnConfig:
    """The kNN accuracy that a run ends with, where its images have classes."""

    neighbours: int = exempt(20)
    """Nearest training images that vote."""
    temperature: float = exempt(0.07)
    """A vote weighs exp(cosine similarity / temperature)."""
    batch_images: int = exempt(256)
    """Images encoded at once on each device."""

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.temperature <= 0 or self.batch_images < 1:
            raise ConfigError("knn: neighbours >= 1, temperature > 0 and batch_images >= 1, got " + repr(self))


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
    bank_count = len(train) if val else len(train) - len(train) // 5
    if train.labels is None or (val is not None and val.labels is None):
        return "the images are not sorted into two or more classes"
    if config.neighbours > bank_count:
        return f"knn.neighbours is {config.neighbours}, and only {bank_count} images can be neighbours"
    return None


def knn_of_encoder(
    model: MaskedAutoencoder,
    train: Images,
    val: Images | None,
    *,
    config: KnnConfig,
    mean: Sequence[float],
    std: Sequence[float],
    workers: int,
    precision: Precision,
    world: World,
) -> float | None:
    """Measure the kNN accuracy of the model's features at full size; None where `why_no_knn` has a reason.

    Without validation images every fifth training image is a query, and the others are the bank.
    """
    if why_no_knn(train, val, config):
        return None
    everything = range(len(train))
    bank_ids = everything if val else [index for index in everything if index % 5 != 4]
    query_ids = range(len(val)) if val else everything[4::5]
    sides = []
    for images, ids in ((train, bank_ids), (val or train, query_ids)):
        features, indices = encode(
            model,
            images,
            ids,
            mean=mean,
            std=std,
            batch_images=config.batch_images,
            workers=workers,
            precision=precision,
            world=world,
        )
        sides += [features, torch.tensor(images.labels, device=world.device)[indices]]
    return knn_accuracy(*sides, neighbours=config.neighbours, temperature=config.temperature)


@torch.inference_mode()
def encode(
    model: MaskedAutoencoder,
    images: Images,
    ids: Sequence[int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_images: int,
    workers: int,
    precision: Precision,
    world: World,
) -> tuple[Tensor, Tensor]:
    """Encode chosen images, shared out over the ranks.

    Returns  (n, d) features and (n,) indices of their images, equal on all ranks; broken images are left out.
    """
    mine = ids[world.rank :: world.size]
    loader = DataLoader(
        EvaluationImages(images, mine, model.image_size, model.channels), batch_size=batch_images, num_workers=workers
    )
    model.eval()
    features = [torch.empty(0, model.encoder.embed_dim, device=world.device)]
    indices = [torch.empty(0, dtype=torch.int64, device=world.device)]
    for pixels, index in loader:
        usable = index >= 0
        with world.autocast(precision):
            features.append(model.features(normalise(world.bring(pixels[usable]), mean, std)).float())
        indices.append(index[usable].to(world.device))
    model.train()
    return world.gather_rows(torch.cat(features)), world.gather_rows(torch.cat(indices))
