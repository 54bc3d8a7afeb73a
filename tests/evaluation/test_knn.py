from dataclasses import dataclass

import pytest
import torch

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.sources import ArrayImages, open_images
from mae_curriculum.evaluation.config import KnnConfig
from mae_curriculum.evaluation.knn import knn_accuracy, nearest_others, why_no_knn


def clusters(count: int, seed: int, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `count` features around each of three directions, of random norm, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat(count)
    features = torch.eye(3)[labels] + noise * torch.randn(3 * count, 3, generator=generator)
    return features * torch.rand(3 * count, 1, generator=generator).add(0.1), labels


def test_clusters_are_separated_whatever_the_norm_of_the_features() -> None:
    bank, queries = clusters(30, seed=0), clusters(20, seed=1)
    assert knn_accuracy(*bank, *queries, neighbors=5, temperature=0.07) == 1.0


def test_wrong_labels_reduce_the_accuracy() -> None:
    bank, (queries, labels) = clusters(30, seed=0), clusters(20, seed=1)
    labels[: len(labels) // 4] = (labels[: len(labels) // 4] + 1) % 3
    assert knn_accuracy(*bank, queries, labels, neighbors=5, temperature=0.07) == 0.75


def test_nearer_neighbors_have_more_weight() -> None:
    # one neighbor at cosine 1, two at cosine 0: e^(1/t) against 2 is decided by the temperature
    bank = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    ask = (bank, torch.tensor([0, 1, 1]), torch.tensor([[2.0, 0, 0]]), torch.tensor([0]))
    assert knn_accuracy(*ask, neighbors=3, temperature=0.5) == 1.0  # 7.4 against 2
    assert knn_accuracy(*ask, neighbors=3, temperature=10.0) == 0.0  # 1.1 against 2


def test_a_low_temperature_takes_the_nearest_neighbor() -> None:
    bank = torch.tensor([[1.0, 0.1], [1.0, 0.0]])
    ask = (bank, torch.tensor([0, 1]), torch.tensor([[1.0, 0.01]]), torch.tensor([1]))
    assert knn_accuracy(*ask, neighbors=2, temperature=1e-3) == 1.0


def test_more_neighbors_than_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="knn.neighbors is 91, but there are only 90 training images"):
        knn_accuracy(*clusters(30, seed=0), *clusters(1, seed=1), neighbors=91, temperature=0.07)


@dataclass(frozen=True)
class Unlabeled:
    labels: None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return 100

    def read(self, index: int, channels: int) -> torch.Tensor:
        raise NotImplementedError

    def name(self, index: int) -> str:
        raise NotImplementedError

    def content(self, index: int) -> bytes:
        raise NotImplementedError

    def fingerprint(self) -> str:
        raise NotImplementedError


def test_reason_for_no_accuracy() -> None:
    train, val = open_images(DataConfig("digits"))
    assert isinstance(train, ArrayImages)
    assert why_no_knn(train, val, KnnConfig()) is None
    assert why_no_knn(Unlabeled(), None, KnnConfig()) == "the images are not sorted into two or more classes"
    few = ArrayImages(train.pixels[:24], train.labels[:24], train.classes)
    assert why_no_knn(few, None, KnnConfig()) is None  # every fifth is a query: 20 are left
    alone = ArrayImages(few.pixels[:10], list(range(10)), train.classes)
    reason = why_no_knn(alone, None, KnnConfig(neighbors=3))
    assert reason == "no class of the images to classify has training images, some of which are held out"
    reason = why_no_knn(few, None, KnnConfig(neighbors=21))
    assert reason == "knn.neighbors is 21, but there are only 20 training images"
    assert why_no_knn(train, val, KnnConfig(images=19)) == "knn.neighbors is 20, but there are only 19 training images"


def test_the_nearest_others_come_in_order_and_without_the_image_itself() -> None:
    angles = torch.tensor([0.0, 0.1, 0.3, 3.0, 0.02])
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    similarity, nearest = nearest_others(vectors, 3)
    assert nearest.tolist() == [[4, 1, 2], [4, 0, 2], [1, 4, 0], [2, 1, 4], [0, 1, 2]]
    torch.testing.assert_close(similarity[2], torch.tensor([0.2, 0.28, 0.3]).cos())
    assert nearest_others(torch.tensor([[1.0, 0.0]] * 2), 1)[1].tolist() == [[1], [0]]  # copies of each other
