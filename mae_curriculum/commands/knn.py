"""Measure the kNN accuracy of any checkpoint on any labeled images."""

from mae_curriculum.commands.config import EvaluateConfig
from mae_curriculum.config import ConfigError
from mae_curriculum.data.sources import open_together
from mae_curriculum.distributed import connect
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.evaluation.knn import knn_of_encoder, why_no_knn
from mae_curriculum.evaluation.results import record, spread
from mae_curriculum.run.folder import check_checkpoint
from mae_curriculum.terminal import printable
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
        train, val, _ = open_together(data, world)
        if why := why_no_knn(train, val, config.knn):
            raise ConfigError(f"no kNN accuracy: {why}")
        inference = Inference(world, data, config.precision, config.knn.batch_images)
        accuracy = knn_of_encoder(model, train, val, config=config.knn, inference=inference, cached=True)
        assert accuracy is not None, "why_no_knn gave no reason"
        result = {
            "origin": weights.origin,
            "source": data.source,
            "neighbors": config.knn.neighbors,
            "pool": config.knn.pool,
            "accuracy": spread([accuracy]),
        }
        what = printable(f"{config.checkpoint} ({weights.origin}) on {data.source}")
        world.print(f"kNN accuracy {accuracy:.4f} of {what}")
        world.on_main(lambda: record("knn", result, config, run=config.run, checkpoint=config.checkpoint))
    return 0
