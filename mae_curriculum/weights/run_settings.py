"""Settings of the run that a checkpoint comes from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mae_curriculum.config import ConfigError, differences, load_part
from mae_curriculum.data.config import RUNS_IMAGES, DataConfig
from mae_curriculum.run.folder import run_and_epochs


def resolve_source(data: DataConfig, checkpoint: Path | None) -> DataConfig:
    """Replace the source `run` by the images that the checkpoint's run was trained on."""
    if data.source != RUNS_IMAGES:
        return data
    settings = run_settings(checkpoint) if checkpoint is not None else {}
    if "data" not in settings:
        raise ConfigError(f"data.source: {checkpoint} is no run with images of its own, so say which: --data.source")
    if ignored := differences(DataConfig(source=RUNS_IMAGES), data):
        raise ConfigError(
            f"data: source `run` keeps the run's own settings, not {'; '.join(ignored)}; say --data.source"
        )
    own = load_part(DataConfig, settings["data"])
    return replace(own, workers=data.workers, cache=own.cache if data.cache == DataConfig.cache else data.cache)


def run_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a run folder; none where there is no run."""
    config = run_and_epochs(path)[0].config
    settings: dict[str, Any] = yaml.safe_load(config.read_text()) if config.exists() else {}
    return settings
