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

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mae_curriculum.config import ConfigError, differences, dump, load_file
from mae_curriculum.files import rename_into_place, temporary_name, write_atomic, write_temporary
from mae_curriculum.run.checkpoint import is_intact, steps_of, write_state

SUBMISSION = "submission.json"
"""Id and log of the SLURM job last submitted for the run."""


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
        submission = self.path / SUBMISSION
        return {temporary_name(self.config), self.lock, submission, temporary_name(submission)}

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
            write_atomic(self.config, text.encode())
        (self.path / "checkpoints").mkdir(exist_ok=True)  # last: until there is a config, the folder is nobody's

    def save(self, state: dict[str, Any], *, keep: int, spare: Callable[[int], bool] = lambda _: False) -> Path:
        """Write a checkpoint for `state["steps_done"]`; once it is complete on disk, drop all but the newest `keep`.

        spare   tells of a step that its checkpoint stays all the same.
        Raises  OSError if it cannot be written; what was there before stays.
        """
        folder = self.path / "checkpoints"
        aside = folder / ".checkpoint.aside"  # always the same, so that what a killed process left is overwritten
        checksum = write_temporary(aside, partial(write_state, state))
        path = folder / f"step-{state['steps_done']:08d}.{checksum}.pt"
        rename_into_place(aside, path)
        for old in self.checkpoints[:-keep]:
            if not spare(steps_of(old)):
                old.unlink(missing_ok=True)
        return path

    def newest(self, *, on_damaged: Callable[[Path], object] = lambda _: None) -> Path | None:
        """Find the newest checkpoint that is whole, or None if there is none at all.

        on_damaged  is told of each one that is not.
        Raises        ConfigError if there are some, but none is whole.
        """
        for path in reversed(self.checkpoints):
            if is_intact(path):
                return path
            on_damaged(path)
        if any((self.path / "checkpoints").glob("step-*")):
            raise ConfigError(f"no checkpoint in {self.path / 'checkpoints'} is whole; remove them to begin anew")
        return None


def run_and_epochs(checkpoint: Path) -> tuple[RunFolder, int | None]:
    """Read what names a run's checkpoint: RUN, its newest, or RUN@EPOCHS, the one kept at so many equivalent epochs."""
    match = re.fullmatch(r"(.+)@(\d+)", checkpoint.name)
    if match and not checkpoint.exists():
        return RunFolder(checkpoint.with_name(match[1])), int(match[2])
    return RunFolder(checkpoint), None
