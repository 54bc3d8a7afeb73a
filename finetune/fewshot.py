"""Few-shot classification: logistic regression on the features of a few images per class, or of a share of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.labels import open_labelled
from mae_curriculum.checkpoint import RunFolder
from mae_curriculum.config import ConfigError, exempt
from mae_curriculum.distributed import Precision, connect
from mae_curriculum.inference import Inference
from mae_curriculum.results import as_percent, record, spread
from mae_curriculum.sources import DataConfig
from mae_curriculum.table import as_table
from mae_curriculum.weights import RUNS_IMAGES, encoder_of, read_together, resolve_images


@dataclass(frozen=True)
class FewshotConfig:
    """Few-shot classification by a frozen encoder."""

    run: Path = exempt(Path("runs/fewshot"))
    """Folder for results.json."""
    checkpoint: Path = field(kw_only=True)
    """Pretraining run, or any checkpoint of a ViT that can be imported."""
    heads: int | None = None
    """Attention heads of the encoder, where the checkpoint does not show them."""
    data: DataConfig = DataConfig(source=RUNS_IMAGES)
    """Images with classes; source `run` takes those of the checkpoint's run, with its normalisation."""
    shots: tuple[float, ...] = (1, 5, 10)
    """How many labels to learn from: from 1 on, images a class; below 1, a share of all images, such as 0.01."""
    regularisation: float = 1.0
    """Strength of the L2 penalty on standardised features: scikit-learn's 1 / C."""
    precision: Precision = "auto"
    """Arithmetic of the encoder."""
    crop: float = 0.875
    """Share of an image's shorter side that is kept, above 0 and at most 1: 224 of 256, as MAE."""
    evaluation_batch: int = exempt(256)
    """Images encoded at once on each device."""
    seed: int = 0
    """Of the choice of images."""
    seeds: int = 5
    """Choices to average over, with seeds `seed`, `seed + 1`, ..."""

    def __post_init__(self) -> None:
        if not self.shots or not all(0 < shots < 1 or (shots >= 1 and shots % 1 == 0) for shots in self.shots):
            raise ConfigError(f"shots: whole numbers of images a class, or shares below 1; got {list(self.shots)}")
        if self.regularisation <= 0 or not 0 < self.crop <= 1:
            raise ConfigError(
                f"regularisation must be above 0, crop above 0 and at most 1; got {self.regularisation}, {self.crop}"
            )
        if min(self.seeds, self.evaluation_batch) < 1 or self.seed < 0:
            raise ConfigError(
                "seeds and evaluation_batch must be at least 1, seed at least 0; "
                f"got {self.seeds}, {self.evaluation_batch}, {self.seed}"
            )


def fewshot(config: FewshotConfig) -> int:
    """Classify from few labels; print and record the results; returns the exit code."""
    config = replace(config, data=resolve_images(config.data, config.checkpoint))
    with connect() as world:
        weights = read_together(config.checkpoint, world, heads=config.heads)
        encoder = encoder_of(weights, config.checkpoint).to(world.device)
        train, val = open_labelled(config.data, world)
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
                        accuracy_of_few(
                            *sides,
                            ids=choose(sides[1], train.classes, shots=shots, seed=seed),
                            regularisation=config.regularisation,
                        )
                        for seed in seeds
                    ]
                )
            print(
                as_table([["labels", "accuracy"], *([name_shots(float(k)), as_percent(v)] for k, v in result.items())])
            )
            everything = {"source": config.data.source, "seeds": list(seeds), "accuracy": result}
            record("fewshot", everything, config, run=config.run, checkpoint=config.checkpoint)

        if world.is_main:  # it may take long, and nobody waits for anything after it
            conclude()
    return 0


def name_shots(shots: float) -> str:
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


def accuracy_of_few(
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
