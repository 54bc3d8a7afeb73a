"""Settings of the run that a checkpoint belongs to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mae_curriculum.config import ConfigError, differences, load_part, read_yaml
from mae_curriculum.data.config import RUNS_IMAGES, DataConfig
from mae_curriculum.run.folder import run_and_epochs


def resolve_source(data: DataConfig, checkpoint: Path | None, key: str = "data") -> DataConfig:
    """Replace the source `run` by the images that the checkpoint's run was trained on; raises ConfigError if none.

    key  the setting that `data` is.
    """
    if data.source != RUNS_IMAGES:
        return data
    settings = run_settings(checkpoint) if checkpoint is not None else {}
    if "data" not in settings:
        why = "there is no checkpoint" if checkpoint is None else f"{checkpoint} is not a run with its own images"
        raise ConfigError(f"{key}.source: {why}; choose images with --{key}.source")
    ignored = differences(DataConfig(), data)
    if ignored:
        raise ConfigError(f"{key}: source `run` uses the run's settings, not {'; '.join(ignored)}; set --{key}.source")
    own = load_part(DataConfig, settings["data"])
    cache = own.cache if data.cache == DataConfig.cache else data.cache
    return replace(own, workers=data.workers, cache=cache, local_copy=data.local_copy or own.local_copy)


def run_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a run folder; empty if `path` is not one. Raises ConfigError if they cannot be read."""
    config = run_and_epochs(path)[0].config
    try:
        settings = read_yaml(config.read_text()) if config.exists() else {}
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{config}: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{config}: a run's settings are `key: value` lines; this file holds {settings!r:.80}")
    return settings
