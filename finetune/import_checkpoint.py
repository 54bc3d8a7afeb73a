"""Import a checkpoint of other code as a run folder, which every command accepts."""

from dataclasses import dataclass
from pathlib import Path

from finetune.config import ImportConfig
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.run.folder import RunFolder, check_checkpoint
from mae_curriculum.terminal import printable
from mae_curriculum.tracking.journal import Journal
from mae_curriculum.weights.build import build_autoencoder, build_encoder
from mae_curriculum.weights.names import decoder_from_mae
from mae_curriculum.weights.read import read_weights


@dataclass(frozen=True)
class ImportedConfig:
    """The config.yaml of an imported run."""

    checkpoint: Path
    """The imported file or folder."""
    model: ModelConfig
    """The model that it holds."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel that its images are normalized with, on a scale of 0 to 1; null if unknown."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, likewise."""


def import_(config: ImportConfig) -> int:
    """Create the run folder; returns the exit code."""
    check_checkpoint(config.checkpoint)
    weights = read_weights(config.checkpoint, **config.hints)
    build = build_autoencoder if weights.decoder else build_encoder
    build(weights, config.checkpoint)  # raises if the weights do not fit
    folder = RunFolder(config.run)
    mean, std = config.mean or weights.mean, config.std or weights.std
    folder.claim(ImportedConfig(config.checkpoint, weights.model, mean, std), command="import")
    encoder = {f"encoder.{key}": value for key, value in weights.encoder.items()}
    folder.save({"steps_done": 0, "model": encoder | decoder_from_mae(weights.decoder)}, keep=1)
    Journal(folder.journal).write("import", checkpoint=str(config.checkpoint), origin=weights.origin)
    parts = "encoder and decoder" if weights.decoder else "encoder"
    print(printable(f"{config.run}: {parts} of {config.checkpoint} ({weights.origin}), {weights.model.name}"))
    return 0
