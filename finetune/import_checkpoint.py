"""Checkpoints of other code become run folders, which every command takes."""

from dataclasses import dataclass
from pathlib import Path

from finetune.config import ImportConfig
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.tracking.journal import Journal
from mae_curriculum.weights.build import build_autoencoder, build_encoder
from mae_curriculum.weights.names import decoder_from_mae
from mae_curriculum.weights.read import read_weights


@dataclass(frozen=True)
class ImportedConfig:
    """What the config.yaml of an imported run says."""

    checkpoint: Path
    """Where it came from."""
    model: ModelConfig
    """What it holds."""


def import_(config: ImportConfig) -> int:
    """Make the run folder; returns the exit code."""
    weights = read_weights(config.checkpoint, heads=config.heads)
    check = build_autoencoder if weights.decoder else build_encoder
    check(weights, config.checkpoint)
    folder = RunFolder(config.run)
    folder.claim(ImportedConfig(config.checkpoint, weights.model))
    encoder = {f"encoder.{key}": value for key, value in weights.encoder.items()}
    folder.save({"steps_done": 0, "model": encoder | decoder_from_mae(weights.decoder)}, keep=1)
    Journal(folder.journal).write("import", checkpoint=str(config.checkpoint), origin=weights.origin)
    parts = "encoder and decoder" if weights.decoder else "encoder"
    print(f"{config.run}: {parts} of {config.checkpoint} ({weights.origin}), {weights.model.name}")
    return 0
