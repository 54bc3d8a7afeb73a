"""The kNN accuracy of any checkpoint on any images with classes."""

from dataclasses import dataclass, replace
from pathlib import Path

from mae_curriculum.checkpoint import RunFolder
from mae_curriculum.config import ConfigError, differences, load_file
from mae_curriculum.distributed import Precision, connect
from mae_curriculum.knn import KnnConfig, knn_of_encoder, why_no_knn
from mae_curriculum.model import build_model
from mae_curriculum.sources import DataConfig, download, open_images
from mae_curriculum.tracking import Journal
from mae_curriculum.training import PretrainConfig
from mae_curriculum.weights import load_into_, read_weights

OWN = "run"
"""The `data.source` that stands for the images that the run was trained on."""


@dataclass(frozen=True)
class EvaluateConfig:
    """kNN accuracy of an encoder."""

    checkpoint: Path
    """Run folder, or any checkpoint that can be imported."""
    data: DataConfig = DataConfig(source=OWN)
    """The images; source `run` takes the run's own, with its normalisation."""
    knn: KnnConfig = KnnConfig()
    """The classification."""
    precision: Precision = "auto"
    """Arithmetic of the encoder, as in pretraining."""
    heads: int | None = None
    """Attention heads of the encoder, where the checkpoint does not show them."""


def evaluate(config: EvaluateConfig) -> int:
    """Measure and print; a run's journal keeps the result; returns the exit code."""
    folder = RunFolder(config.checkpoint)
    data = config.data
    if data.source == OWN:
        if not folder.config.exists():
            raise ConfigError(f"data.source: {config.checkpoint} is no run folder, so say which images: --data.source")
        if ignored := differences(EvaluateConfig(config.checkpoint).data, data):
            raise ConfigError(
                f"data: source `run` keeps the run's own settings, not {'; '.join(ignored)}; say --data.source"
            )
        data = replace(load_file(PretrainConfig, folder.config).data, workers=data.workers)
    with connect() as world:
        weights = read_weights(config.checkpoint, heads=config.heads)
        model = build_model(weights.model, seed=0)
        load_into_(model.encoder, weights.encoder, f"the encoder of {config.checkpoint}")
        world.on_main(lambda: download(data))
        train, val = open_images(data)
        if why := why_no_knn(train, val, config.knn):
            raise ConfigError(f"no kNN accuracy: {why}")
        mean, std = data.statistics(model.channels)
        accuracy = knn_of_encoder(
            model.to(world.device),
            train,
            val,
            config=config.knn,
            mean=mean,
            std=std,
            workers=data.workers,
            precision=config.precision,
            world=world,
        )
        world.say(f"kNN accuracy {accuracy:.4f} of {config.checkpoint} ({weights.origin}) on {data.source}")
        if world.is_main and folder.config.exists():
            Journal(folder.journal).write("knn", accuracy=accuracy, origin=weights.origin, source=data.source)
    return 0
