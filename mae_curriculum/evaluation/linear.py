"""Linear classification of frozen features: logistic regression, fitted until it converges."""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from mae_curriculum.data.sources import Images
from mae_curriculum.evaluation.config import KnnConfig
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.evaluation.knn import bank_and_queries, find_pool
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder


def linear_accuracy(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    query_labels: NDArray[np.int64],
    *,
    regularization: float = 1.0,
) -> float:
    """Fit a classifier to features (n, d), standardized; return its accuracy on the queries, 0 to 1.

    regularization  weight of half the squared norm of the classifier's weights, beside the sum of the losses.

    Features of broken images, which are NaN, are left out.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    intact, readable = (np.isfinite(side[:, 0]) for side in (features, queries))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / regularization, max_iter=1000))
    model.fit(features[intact], labels[intact])
    return float(model.score(queries[readable], query_labels[readable]))


def linear_of_encoder(
    model: MaskedAutoencoder, train: Images, val: Images | None, *, config: KnnConfig, inference: Inference
) -> float:
    """Return the linear accuracy of the model's features at full size, of the images and the pool of kNN.

    The images must have labels: `why_no_knn` gives no reason.

    Raises  ConfigError for a pool that the model lacks.
    """
    pool, sides = find_pool(model, config), []
    for images in bank_and_queries(train, val, config):
        features, indices = inference.encode(model, images)
        labels = torch.tensor(images.labels)[indices.cpu()]
        sides += [features[:, pool].cpu().numpy(), labels.numpy()]
    return inference.world.on_main(partial(linear_accuracy, *sides))
