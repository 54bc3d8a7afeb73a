"""Few-shot classification: logistic regression on the features of a few images per class, or of a share of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from finetune.config import FewshotConfig
from finetune.labeled import open_labeled
from mae_curriculum.config import ConfigError
from mae_curriculum.distributed import connect
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.evaluation.results import format_percent, record, spread
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.terminal import format_table
from mae_curriculum.weights.build import build_encoder, read_together
from mae_curriculum.weights.run_settings import resolve_source


def fewshot(config: FewshotConfig) -> int:
    """Classify from few labels; print and record the results; returns the exit code."""
    config = replace(config, data=resolve_source(config.data, config.checkpoint))
    with connect() as world:
        weights = read_together(config.checkpoint, world, heads=config.heads)
        encoder = build_encoder(weights, config.checkpoint).to(world.device)
        train, val = open_labeled(config.data, world)
        for shots in config.shots:  # before the encoder runs, which may take hours
            choose(train.labels.numpy(), train.classes, shots=shots, seed=config.seed)
        world.on_main(lambda: RunFolder(config.run).claim(config))
        inference = Inference(world, config.data, config.precision, config.evaluation_batch, config.crop)
        sides = []
        for side in (train, val):
            features = inference.cached(encoder, side.images)[:, encoder.pools.index("avg")]
            sides += [np.asarray(features), side.labels.numpy()]

        def conclude() -> None:
            result = {}
            for shots in config.shots:
                seeds = range(config.seed, config.seed + config.seeds)
                result[f"{shots:g}"] = spread(
                    [
                        fewshot_accuracy(
                            *sides,
                            ids=choose(sides[1], train.classes, shots=shots, seed=seed),
                            regularisation=config.regularisation,
                        )
                        for seed in seeds
                    ]
                )
            print(
                format_table(
                    [["labels", "accuracy"], *([format_shots(float(k)), format_percent(v)] for k, v in result.items())]
                )
            )
            everything = {"source": config.data.source, "seeds": list(seeds), "accuracy": result}
            record("fewshot", everything, config, run=config.run, checkpoint=config.checkpoint)

        if world.is_main:  # it may take long, and nobody waits for anything after it
            conclude()
    return 0


def format_shots(shots: float) -> str:
    """Say how many labels there are."""
    return f"{shots:.0f} a class" if shots >= 1 else f"{shots:.3g} of all"


def choose(labels: NDArray[np.int64], classes: Sequence[str], *, shots: float, seed: int) -> NDArray[np.int64]:
    """Choose images to learn from at random: so many a class, or below 1 that share of each class, at least one.

    Raises  ConfigError for a class that has too few.
    """
    generator = np.random.default_rng((seed, 1))
    chosen = []
    for number, name in enumerate(classes):
        own = np.flatnonzero(labels == number)
        count = int(shots) if shots >= 1 else max(1, round(shots * len(own)))
        if count > len(own):
            raise ConfigError(f"shots: {count} images a class, but class {name} has only {len(own)} to learn from")
        chosen.append(generator.permutation(own)[:count])
    return np.concatenate(chosen)


def fewshot_accuracy(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    query_labels: NDArray[np.int64],
    *,
    ids: NDArray[np.int64],
    regularisation: float,
) -> float:
    """Learn from the chosen features (n, d), standardised by their own mean and deviation; tell the accuracy on others.

    Features of broken images, which are NaN, are left out.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    ids = ids[np.isfinite(features[ids, 0])]
    readable = np.isfinite(queries[:, 0])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / regularisation, max_iter=1000))
    model.fit(features[ids], labels[ids])
    return float(model.score(queries[readable], query_labels[readable]))
