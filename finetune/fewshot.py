"""Few-shot classification: logistic regression on the features of a few images per class, or of a share of them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.config import FewshotConfig
from finetune.labeled import open_labeled
from mae_curriculum.config import ConfigError
from mae_curriculum.distributed import connect
from mae_curriculum.evaluation.blocks import find_blocks, format_best
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.evaluation.linear import linear_accuracy
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
        blocks = find_blocks(config.block, len(encoder.encoder.blocks))
        train, val = open_labeled(config.data, world)
        chosen = {  # before the encoder runs, which may take hours
            f"{shots:g}": [choose(train.labels.numpy(), train.classes, shots=shots, seed=seed) for seed in seeds]
            for shots in config.shots
        }
        world.on_main(lambda: RunFolder(config.run).claim(config, command="fewshot"))
        inference = Inference(world, config.data, config.precision, config.evaluation_batch, config.crop)
        features = [inference.cached(encoder, part.images, blocks) for part in (train, val)]
        if not world.is_main:  # the rest may take long, and no rank waits for it
            return 0
        pool, by_block = encoder.pools.index("avg"), []
        for sides in zip(*features, strict=True):
            vectors = [np.asarray(side[:, pool]) for side in sides]
            accuracies = fewshot_accuracies(config, vectors, [train.labels.numpy(), val.labels.numpy()], chosen)
            by_block.append(accuracies)
        print_accuracies(blocks, by_block)
        result: dict[str, Any] = {"source": config.data.source, "seeds": seeds, "block": config.block}
        result["accuracy"] = by_block[-1]  # of the last block, to be compared with other encoders
        if config.block == "all":
            result["by_block"] = by_block
        record("fewshot", result, config, run=config.run, checkpoint=config.checkpoint)
    return 0


def fewshot_accuracies(
    config: FewshotConfig,
    vectors: Sequence[NDArray[np.float32]],
    labels: Sequence[NDArray[np.int64]],
    chosen: dict[str, list[NDArray[np.int64]]],
) -> dict[str, Any]:
    """Return the `spread` of the accuracies of each number of labels.

    vectors, labels  of the training and of the validation images.
    chosen           the training images of each seed, by number of labels.
    """
    (train, val), (train_labels, val_labels) = vectors, labels
    given = partial(linear_accuracy, queries=val, query_labels=val_labels, regularization=config.regularization)
    return {
        shots: spread([given(train[ids], train_labels[ids]) for ids in choices]) for shots, choices in chosen.items()
    }


def print_accuracies(blocks: Sequence[int], by_block: Sequence[dict[str, Any]]) -> None:
    """Print the accuracies of each number of labels; of several blocks, also which is best."""
    heads = [format_shots(float(shots)) for shots in by_block[0]]
    if len(by_block) == 1:
        rows = zip(heads, map(format_percent, by_block[0].values()), strict=True)
        print(format_table([["labels", "accuracy"], *rows]))
        return
    rows_by_block = [
        [str(block), *map(format_percent, accuracies.values())]
        for block, accuracies in zip(blocks, by_block, strict=True)
    ]
    print(format_table([["block", *heads], *rows_by_block]))
    for head, shots in zip(heads, by_block[0], strict=True):
        print(f"{head}: {format_best([accuracies[shots]['mean'] for accuracies in by_block])}")


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
