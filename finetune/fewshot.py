"""Few-shot classification: logistic regression on the features of a few images per class, or of a share of them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from finetune.config import FewshotConfig
from finetune.labeled import open_labeled
from mae_curriculum.config import ConfigError
from mae_curriculum.distributed import connect
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.evaluation.results import format_percent, record, spread
from mae_curriculum.run.folder import RunFolder, check_checkpoint
from mae_curriculum.terminal import format_table
from mae_curriculum.weights.build import build_encoder, read_together
from mae_curriculum.weights.normalization import with_normalization
from mae_curriculum.weights.run_settings import resolve_source


def fewshot(config: FewshotConfig) -> int:
    """Classify from few labels, print and record the accuracies; returns the exit code."""
    check_checkpoint(config.checkpoint)
    config = replace(config, data=resolve_source(config.data, config.checkpoint))
    seeds = list(range(config.seed, config.seed + config.seeds))
    with connect() as world:
        weights = read_together(config.checkpoint, world, **config.hints)
        config = replace(config, data=with_normalization(config.data, weights, config.checkpoint, world.log))
        encoder = build_encoder(weights, config.checkpoint).to(world.device)
        train, val = open_labeled(config.data, world)
        chosen = {  # before the encoder runs, which may take hours
            f"{shots:g}": [choose(train.labels.numpy(), train.classes, shots=shots, seed=seed) for seed in seeds]
            for shots in config.shots
        }
        world.on_main(lambda: RunFolder(config.run).claim(config, command="fewshot"))
        inference = Inference(world, config.data, config.precision, config.evaluation_batch, config.crop)
        pool = encoder.pools.index("avg")
        train_features, val_features = (
            np.asarray(inference.cached(encoder, part.images)[:, pool]) for part in (train, val)
        )
        if not world.is_main:  # the rest may take long, and no rank waits for it
            return 0
        accuracy = partial(
            fewshot_accuracy,
            train_features,
            train.labels.numpy(),
            val_features,
            val.labels.numpy(),
            regularization=config.regularization,
        )
        accuracies = {shots: spread([accuracy(ids=ids) for ids in choices]) for shots, choices in chosen.items()}
        rows = [[format_shots(float(shots)), format_percent(figures)] for shots, figures in accuracies.items()]
        print(format_table([["labels", "accuracy"], *rows]))
        result = {"source": config.data.source, "seeds": seeds, "accuracy": accuracies}
        record("fewshot", result, config, run=config.run, checkpoint=config.checkpoint)
    return 0


def format_shots(shots: float) -> str:
    """Format the number of labels."""
    return f"{shots:.0f} per class" if shots >= 1 else f"{shots:.3g} of all"


def choose(labels: NDArray[np.int64], classes: Sequence[str], *, shots: float, seed: int) -> NDArray[np.int64]:
    """Choose training images at random: `shots` of each class, or below 1 that share of each class, at least one.

    Raises  ConfigError if a class has too few images.
    """
    generator = np.random.default_rng((seed, 1))
    chosen = []
    for number, name in enumerate(classes):
        own = np.flatnonzero(labels == number)
        count = int(shots) if shots >= 1 else max(1, round(shots * len(own)))
        if count > len(own):
            raise ConfigError(f"shots: {count} images per class, but class {name} has only {len(own)} training images")
        chosen.append(generator.permutation(own)[:count])
    return np.concatenate(chosen)


def fewshot_accuracy(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    query_labels: NDArray[np.int64],
    *,
    ids: NDArray[np.int64],
    regularization: float,
) -> float:
    """Fit a classifier to the chosen features (n, d), standardized; returns its accuracy on the queries, 0 to 1.

    Features of broken images, which are NaN, are left out.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    ids = ids[np.isfinite(features[ids, 0])]
    readable = np.isfinite(queries[:, 0])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / regularization, max_iter=1000))
    model.fit(features[ids], labels[ids])
    return float(model.score(queries[readable], query_labels[readable]))
