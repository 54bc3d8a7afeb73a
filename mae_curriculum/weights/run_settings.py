"""Settings of the run that a checkpoint belongs to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mae_curriculum.config import ConfigError, differences, load_part
from mae_curriculum.data.config import RUNS_IMAGES, DataConfig
from mae_curriculum.run.folder import run_and_epochs


def resolve_source(data: DataConfig, checkpoint: Path | None) -> DataConfig:
    """Replace the source `run` by the images that the checkpoint's run was trained on; raises ConfigError if none."""
    if data.source != RUNS_IMAGES:
        return data
    settings = run_settings(checkpoint) if checkpoint is not None else {}
    if "data" not in settings:
        raise ConfigError(f"data.source: {checkpoint} is not a run with its own images; choose some with --data.source")
    ignored = differences(DataConfig(source=RUNS_IMAGES), data)
    if ignored:
        raise ConfigError(f"data: source `run` uses the run's settings, not {'; '.join(ignored)}; set --data.source")
    own = load_part(DataConfig, settings["data"])
    cache = own.cache if data.cache == DataConfig.cache else data.cache
    return replace(own, workers=data.workers, cache=cache)


def run_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a run folder; empty if `path` is not one."""
    config = run_and_epochs(path)[0].config
    settings: dict[str, Any] = yaml.safe_load(config.read_text()) if config.exists() else {}
    return settings
