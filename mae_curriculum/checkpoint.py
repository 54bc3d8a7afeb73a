"""The run folder: what is written there, and that nothing in it is ever half written.

    runs/NAME/
        config.yaml                                     the settings of the run, complete
        journal.jsonl                                   what happened, one line an event, only ever appended to
        checkpoints/step-00001234.0123456789abcdef.pt   weights, optimizer, step, stopwatch; sha256 of the file
        pictures/step-00001234.png                      what the model made of a few images, after each stage
        summary.json                                    the result, once the run is over
        lock.json                                       who is at it

The folder is the state: the same command continues from the newest checkpoint.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from mae_curriculum.config import ConfigError, differences, dump, exempt, load_file

T = TypeVar("T")


@dataclass(frozen=True)
class SavingConfig:
    """When the state of a run is saved."""

    every_minutes: float = exempt(10.0)
    """Minutes of running time between checkpoints; one is always written at the end."""
    keep: int = exempt(2)
    """Newest checkpoints that stay, at least 1."""
    keep_every_epochs: int | None = exempt(None)
    """A checkpoint is written, and stays, every so many equivalent epochs; null for none."""

    def __post_init__(self) -> None:
        if self.every_minutes <= 0:
            raise ConfigError(f"saving.every_minutes must be above 0, got {self.every_minutes}")
        for name in ("keep", "keep_every_epochs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"saving.{name} must be at least 1, got {value}")


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
    def lock(self) -> Path:
        """Who is at it."""
        return self.path / "lock.json"

    @property
    def _early(self) -> set[Path]:
        """What may be there before anybody claims the folder: a lock, the note of a submission, what a kill left."""
        submission = self.path / "submission.json"
        return {_aside(self.config), self.lock, submission, _aside(submission)}

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*.pt"))

    @property
    def pictures(self) -> list[Path]:
        """The pictures of reconstructions that are there, oldest first."""
        return sorted((self.path / "pictures").glob("step-*.png"))

    def picture(self, step: int) -> Path:
        """Where the picture after so many steps belongs."""
        return self.path / "pictures" / f"step-{step:08d}.png"

    def refuse_others(self, config: Any) -> None:
        """Raise ConfigError if the folder holds another config, naming the keys that differ, or other things."""
        if self.config.exists():
            if changed := differences(load_file(type(config), self.config), config):
                raise ConfigError(
                    f"{self.path} belongs to a run with other settings ({'; '.join(changed)}); "
                    "choose another --run, or the settings of that run to continue it"
                )
        elif self.path.exists() and not {*self.path.iterdir()} <= self._early:
            raise ConfigError(f"{self.path} is no run folder (no config.yaml) and not empty; choose another --run")

    def claim(self, config: Any) -> None:
        """Make the folder this config's, or check that it is already; raises ConfigError as `refuse_others`."""
        self.refuse_others(config)
        self.path.mkdir(parents=True, exist_ok=True)
        text = dump(config)
        if not self.config.exists() or self.config.read_text() != text:
            write_whole(self.config, text.encode())
        (self.path / "checkpoints").mkdir(exist_ok=True)  # last: until there is a config, the folder is nobody's

    def save(self, state: dict[str, Any], *, keep: int, spare: Callable[[int], bool] = lambda _: False) -> Path:
        """Write a checkpoint for `state["step"]`; once it is complete on disk, drop all but the newest `keep`.

        spare   tells of a step that its checkpoint stays all the same.
        Raises  OSError if it cannot be written; what was there before stays.
        """
        folder = self.path / "checkpoints"
        aside = folder / ".checkpoint.aside"  # always the same, so that what a killed process left is overwritten
        checksum = write_aside(aside, partial(write_state, state))
        path = folder / f"step-{state['step']:08d}.{checksum}.pt"
        put_in_place(aside, path)
        for old in self.checkpoints[:-keep]:
            if not spare(step_of(old)):
                old.unlink(missing_ok=True)
        return path

    def newest(self, *, tell_damaged: Callable[[Path], object] = lambda _: None) -> Path | None:
        """Find the newest checkpoint that is whole, or None if there is none at all.

        tell_damaged  is told of each one that is not.
        Raises        ConfigError if there are some, but none is whole.
        """
        for path in reversed(self.checkpoints):
            if is_whole(path):
                return path
            tell_damaged(path)
        if any((self.path / "checkpoints").glob("step-*")):
            raise ConfigError(f"no checkpoint in {self.path / 'checkpoints'} is whole; remove them to begin anew")
        return None


def run_and_epochs(checkpoint: Path) -> tuple[RunFolder, int | None]:
    """Read what names a run's checkpoint: RUN, its newest, or RUN@EPOCHS, the one kept at so many equivalent epochs."""
    match = re.fullmatch(r"(.+)@(\d+)", checkpoint.name)
    if match and not checkpoint.exists():
        return RunFolder(checkpoint.with_name(match[1])), int(match[2])
    return RunFolder(checkpoint), None


def step_of(checkpoint: Path) -> int:
    """Read the step off a checkpoint's name."""
    return int(checkpoint.name.split(".")[0].removeprefix("step-"))


def is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint's content is what its name says."""
    with checkpoint.open("rb") as stream:
        return checkpoint.name.split(".")[1] == hashlib.file_digest(stream, "sha256").hexdigest()[:16]


class _Checked:
    """A stream for torch.save that sums up what it writes, and keeps a failure that torch would not survive."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.sum = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: memoryview) -> int:
        if self.failure is None:
            self.sum.update(content)
            try:
                self._stream.write(content)
            except OSError as error:
                self.failure = error
        return len(content)

    def flush(self) -> None:
        pass


def write_state(state: dict[str, Any], stream: IO[bytes]) -> str:
    """Write a state; returns its checksum. Raises OSError if it cannot be written."""
    import torch  # only now: `status` reads run folders on login nodes, and is to answer at once

    checked = _Checked(stream)
    torch.save(state, checked)  # type: ignore[arg-type]  # all that it uses is there
    if checked.failure is not None:
        raise checked.failure
    return checked.sum.hexdigest()[:16]


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; raises ConfigError if it cannot be read."""
    import torch

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


def write_whole(path: Path, content: bytes) -> None:
    """Write a file aside, flush it to disk, then rename it; of a failure nothing remains."""
    aside = _aside(path)
    try:
        write_aside(aside, lambda stream: stream.write(content))
        put_in_place(aside, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # the name that the user knows


def write_aside(aside: Path, write: Callable[[IO[bytes]], T]) -> T:
    """Have a file written, and flush it to disk; of a failure nothing remains. Returns what `write` does."""
    try:
        with aside.open("wb") as stream:
            result = write(stream)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    return result


def put_in_place(aside: Path, path: Path) -> None:
    """Give a file its name."""
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself reaches the disk with its folder
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.aside")
