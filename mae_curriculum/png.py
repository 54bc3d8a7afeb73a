"""Check settings that name a picture."""

from pathlib import Path

from mae_curriculum.config import ConfigError


def check_png(key: str, path: Path | None) -> None:
    """Raise ConfigError for a setting that names a file which is no PNG."""
    if path is not None and path.suffix.lower() != ".png":
        raise ConfigError(f"{key}: the picture is a PNG file, so its name ends in .png; got {path.name}")
