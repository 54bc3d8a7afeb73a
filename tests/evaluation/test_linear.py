"""Linear accuracy against a classifier that is fitted by Newton's method."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.sources import open_images
from mae_curriculum.distributed import World
from mae_curriculum.evaluation.config import KnnConfig
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.evaluation.knn import bank_and_queries
from mae_curriculum.evaluation.linear import linear_accuracy, linear_of_encoder
from mae_curriculum.model.masked_autoencoder import build_model
from tests.small import SMALL


def two_classes(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features of very different scales, of which the second tells two overlapping classes apart."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    features = generator.normal(size=(count, 3)) + np.outer(labels, [0, 1, 0])
    return (features * [1000, 1, 0.01]).astype(np.float32), labels


def newton_predictions(
    train: NDArray[np.float64], labels: NDArray[np.int64], queries: NDArray[np.float64]
) -> NDArray[Any]:
    """Return the classes that ridge-regularized logistic regression predicts."""
    scale = (train.mean(axis=0), train.std(axis=0))
    rows, asked = (np.c_[(side - scale[0]) / scale[1], np.ones(len(side))] for side in (train, queries))
    weights, ridge = np.zeros(rows.shape[1]), np.diag([1.0] * train.shape[1] + [0.0])
    for _ in range(30):
        chance = 1 / (1 + np.exp(-rows @ weights))
        curvature = rows.T @ (rows * (chance * (1 - chance))[:, None]) + ridge
        weights -= np.linalg.solve(curvature, rows.T @ (chance - labels) + ridge @ weights)
    predictions: NDArray[Any] = asked @ weights > 0
    return predictions


def test_it_is_that_of_regularized_logistic_regression_on_standardized_features() -> None:
    (train, labels), (queries, asked) = two_classes(40, seed=0), two_classes(2001, seed=1)
    expected = float((newton_predictions(train.astype(float), labels, queries.astype(float)) == asked).mean())
    assert 0.6 < expected < 0.75
    assert abs(linear_accuracy(train, labels, queries, asked) - expected) <= 1 / 2001


def test_features_of_broken_images_are_left_out() -> None:
    (train, labels), (queries, asked) = two_classes(40, seed=0), two_classes(200, seed=1)
    whole = linear_accuracy(train, labels, queries, asked)
    broken = np.full((7, 3), np.nan, dtype=np.float32)
    more = np.concatenate([broken, train]), np.concatenate([np.ones(7, dtype=np.int64), labels])
    asked_more = np.concatenate([queries, broken]), np.concatenate([asked, np.zeros(7, dtype=np.int64)])
    assert linear_accuracy(*more, *asked_more) == whole


def test_that_of_an_encoder_is_of_the_features_that_knn_has() -> None:
    data, config = DataConfig(source="digits", workers=0), KnnConfig(images=200)
    model = build_model(SMALL, seed=0)
    train, val, *_ = open_images(data)
    inference = Inference(World(0, 1, torch.device("cpu")), data, "float32", 64)
    accuracy = linear_of_encoder(model, train, val, config=config, inference=inference)
    bank, queries = bank_and_queries(train, val, config)
    assert len(bank) == 200
    pool = model.pools.index("avg")
    sides = []
    for images in (bank, queries):
        features, indices = inference.encode(model, images)
        sides += [features[:, pool].numpy(), np.asarray(images.labels)[indices]]
    assert accuracy == linear_accuracy(*sides)
    assert accuracy > 0.5
