"""The kNN accuracy of any checkpoint on any images with classes."""

from dataclasses import dataclass
from pathlib import Path

from mae_curriculum.config import ConfigError
from mae_curriculum.distributed import Precision, connect
from mae_curriculum.inference import Inference
from mae_curriculum.knn import KnnConfig, knn_of_encoder, why_no_knn
from mae_curriculum.results import record, spread
from mae_curriculum.sources import DataConfig, download, open_images
from mae_curriculum.weights import RUNS_IMAGES, encoder_of, read_together, resolve_images


@dataclass(frozen=True)
class EvaluateConfig:
    """kNN accuracy of an encoder."""

    checkpoint: Path
    """Run folder, or any checkpoint that can be imported."""
    run: Path | None = None
    """Folder for results.json; null for the checkpoint's own, where it is a run folder."""
    data: DataConfig = DataConfig(source=RUNS_IMAGES)
    """The images; source `run` takes the run's own, with its normalisation."""
    knn: KnnConfig = KnnConfig()
    """The classification."""
    precision: Precision = "auto"
    """Arithmetic of the encoder, as in pretraining."""
    heads: int | None = None
    """Attention heads of the encoder, where the checkpoint does not show them."""

    def __post_init__(self) -> None:
        if self.knn.every_epochs is not None:
            raise ConfigError("knn.every_epochs is for pretraining; leave it out here")


def evaluate(config: EvaluateConfig) -> int:
    """Measure, print and record; returns the exit code."""
    data = resolve_images(config.data, config.checkpoint)
    with connect() as world:
        weights = read_together(config.checkpoint, world, heads=config.heads)
        model = encoder_of(weights, config.checkpoint).to(world.device)
        world.on_main(lambda: download(data))
        train, val = open_images(data)
        if why := why_no_knn(train, val, config.knn):
            raise ConfigError(f"no kNN accuracy: {why}")
        inference = Inference(world, data, config.precision, config.knn.batch_images)
        accuracy = knn_of_encoder(model, train, val, config=config.knn, inference=inference, cached=True)
        assert accuracy is not None, "why_no_knn has no reason"
        result = {
            "origin": weights.origin,
            "source": data.source,
            "neighbours": config.knn.neighbours,
            "accuracy": spread([accuracy]),
        }
        world.say(f"kNN accuracy {accuracy:.4f} of {config.checkpoint} ({weights.origin}) on {data.source}")
        world.on_main(lambda: record("knn", result, config, run=config.run, checkpoint=config.checkpoint))
    return 0
