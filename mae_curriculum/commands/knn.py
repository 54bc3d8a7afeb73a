"""Measure the kNN accuracy of any checkpoint on any labeled images."""

from mae_curriculum.commands.config import EvaluateConfig
from mae_curriculum.config import ConfigError
from mae_curriculum.data.sources import open_together
from mae_curriculum.distributed import connect
from mae_curriculum.evaluation.blocks import find_blocks, format_best
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.evaluation.knn import knn_by_block, why_no_knn
from mae_curriculum.evaluation.results import record, spread
from mae_curriculum.run.folder import check_checkpoint
from mae_curriculum.terminal import format_table, printable
from mae_curriculum.weights.build import build_encoder, read_together
from mae_curriculum.weights.normalization import with_normalization
from mae_curriculum.weights.run_settings import resolve_source


def evaluate(config: EvaluateConfig) -> int:
    """Measure, print and record the accuracy; returns the exit code."""
    check_checkpoint(config.checkpoint)
    data = resolve_source(config.data, config.checkpoint)
    with connect() as world:
        weights = read_together(config.checkpoint, world, **config.hints)
        data = with_normalization(data, weights, config.checkpoint, world.log)
        model = build_encoder(weights, config.checkpoint).to(world.device)
        blocks = find_blocks(config.block, len(model.encoder.blocks))
        train, val, _ = open_together(data, world)
        if why := why_no_knn(train, val, config.knn):
            raise ConfigError(f"no kNN accuracy: {why}")
        inference = Inference(world, data, config.precision, config.knn.batch_images)
        accuracies = knn_by_block(model, train, val, blocks, config=config.knn, inference=inference)
        result = {
            "origin": weights.origin,
            "source": data.source,
            "neighbors": config.knn.neighbors,
            "images": config.knn.images,
            "pool": config.knn.pool,
            "block": config.block,
            "accuracy": spread(accuracies[-1:]),  # of the last block, to be compared with other encoders
        }
        what = printable(f"{config.checkpoint} ({weights.origin}) on {data.source}")
        if config.block == "all":
            result["by_block"] = [spread([accuracy]) for accuracy in accuracies]
            rows = [[str(block), f"{accuracy:.4f}"] for block, accuracy in zip(blocks, accuracies, strict=True)]
            world.print(format_table([["block", "kNN accuracy"], *rows]))
            world.print(format_best(accuracies))
        world.print(f"kNN accuracy {accuracies[-1]:.4f} of {what}")
        world.on_main(lambda: record("knn", result, config, run=config.run, checkpoint=config.checkpoint))
    return 0
