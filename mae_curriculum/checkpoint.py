"""The run folder: what is written there, and that nothing in it is ever half written.

    runs/NAME/
        config.yaml                     the settings of the run, complete
        journal.jsonl                   what happened, one line an event, only ever appended to
        checkpoints/step-00001234.pt    weights, optimizer, step, stopwatch
        summary.json                    the result, once the run is over

The folder is the state: the same command continues from the newest checkpoint.
"""

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mae_curriculum.config import ConfigError, differences, dump, exempt, load_file

ASIDE = ".aside"
"""Name of a file that is being written: always the same, so that what a killed process left is overwritten."""


@dataclass(frozen=True)
class SavingConfig:
    """When the state of a run is saved."""

    every_minutes: float = exempt(10.0)
    """Minutes of running time between checkpoints; one is always written at the end."""
    keep: int = exempt(2)
    """Newest checkpoints that stay, at least 1."""

    def __post_init__(self) -> None:
        if self.every_minutes <= 0:
            raise ConfigError(f"saving.every_minutes must be above 0, got {self.every_minutes}")
        if self.keep < 1:
            raise ConfigError(f"saving.keep must be at least 1, got {self.keep}")


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The settings."""
        return self.path / "config.yaml"

    @property
    def journal(self) -> Path:
        """The events."""
        return self.path / "journal.jsonl"

    @property
    def summary(self) -> Path:
        """The result."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*.pt"))

    def claim(self, config: Any) -> None:
        """Make the folder this config's, or check that it is already.

        Raises  ConfigError if the folder holds another config, naming the keys that differ, or other things.
        """
        if self.config.exists():
            if changed := differences(load_file(type(config), self.config), config):
                raise ConfigError(
                    f"{self.path} belongs to a run with other settings ({'; '.join(changed)}); "
                    "choose another --run, or the settings of that run to continue it"
                )
        elif self.path.exists() and any(child.name != ASIDE for child in self.path.iterdir()):
            raise ConfigError(f"{self.path} is no run folder (no config.yaml) and not empty; choose another --run")
        self.path.mkdir(parents=True, exist_ok=True)
        text = dump(config)
        if not self.config.exists() or self.config.read_text() != text:
            write_whole(self.config, text.encode())
        (self.path / "checkpoints").mkdir(exist_ok=True)  # last: until there is a config, the folder is nobody's

    def save(self, state: dict[str, Any], *, keep: int) -> Path:
        """Write a checkpoint for `state["step"]`; once it is complete on disk, drop all but the newest `keep`."""
        path = self.path / "checkpoints" / f"step-{state['step']:08d}.pt"
        buffer = io.BytesIO()  # torch, writing to a full disk itself, would not say so
        torch.save(state, buffer)
        with buffer.getbuffer() as content:  # released even if writing fails: CPython 3.12 may crash on one left over
            write_whole(path, content)
        for old in self.checkpoints[:-keep]:
            old.unlink()
        return path

    def newest(self) -> dict[str, Any] | None:
        """Read the newest checkpoint onto the CPU, or None if there is none."""
        return load_state(self.checkpoints[-1]) if self.checkpoints else None


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; raises ConfigError if it cannot be read."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... for a damaged file
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}; remove it to go on") from error
    return state


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the old or the new content is there at any moment, and nothing else."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text())


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file aside, flush it to disk, then rename it; of a failure nothing remains."""
    aside = path.with_name(ASIDE)
    try:
        with aside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself reaches the disk with its folder
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
