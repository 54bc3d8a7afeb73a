"""Validate settings that name a picture file."""

from pathlib import Path

from mae_curriculum.config import ConfigError


def check_png(key: str, path: Path | None) -> None:
    """Raise ConfigError if the file name in setting `key` does not end in .png."""
    if path is not None and path.suffix.lower() != ".png":
        raise ConfigError(f"{key}: the file name must end in .png, got {path.name}")
