"""The run folder: its files, each complete at any moment.

    runs/NAME/
        run.json                                        command and version that created the run, format of the folder
        config.yaml                                     all settings of the run
        journal.jsonl                                   events, one per line, only appended to
        checkpoints/step-00001234.0123456789abcdef.pt   weights, optimizer, steps done, stopwatch; sha256 of the file
        pictures/step-00001234.png                      reconstructions of a few images, after each stage
        summary.json                                    the result, once the run is complete
        lock.json                                       the job that is working on the run

The folder is the state: the same command resumes from the newest checkpoint.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mae_curriculum.config import ConfigError, differences, dump, load_file
from mae_curriculum.files import read_json, rename_into_place, temporary_name, write_atomic, write_json, write_temporary
from mae_curriculum.run.checkpoint import is_intact, steps_of, write_state
from mae_curriculum.version import __version__

FORMAT = 4
"""Version of the run folder's layout; it changes when older folders can no longer be read."""

SUBMISSION = "submission.json"
"""Id and log of the SLURM job last submitted for the run."""


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path

    @property
    def info(self) -> dict[str, Any]:
        """The command and the package version that created the run, and the folder's format.

        Raises  ConfigError if another version created it, with another format.
        """
        info = read_facts(self.path / "run.json")
        if info.get("format") != FORMAT:
            version = f"version {info['version']}" if "version" in info else "an older version (0.1.0 or earlier)"
            raise ConfigError(
                f"{self.path} was written by {version} of mae-curriculum and cannot be used by version "
                f"{__version__}; start a new run with another --run, or use that version"
            )
        return info

    @property
    def config(self) -> Path:
        """The file of the settings."""
        return self.path / "config.yaml"

    @property
    def journal(self) -> Path:
        """The file of the events."""
        return self.path / "journal.jsonl"

    @property
    def summary(self) -> Path:
        """The file of the result."""
        return self.path / "summary.json"

    @property
    def lock(self) -> Path:
        """The file that names the job working on the run."""
        return self.path / "lock.json"

    @property
    def _early(self) -> set[Path]:
        """What may be there before the folder has a config: a lock, a submission's facts, what a kill left."""
        written = [self.config, self.path / "run.json", self.path / SUBMISSION]
        return {*written, *map(temporary_name, written), self.lock}

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*.pt"))

    @property
    def pictures(self) -> list[Path]:
        """The pictures of reconstructions, oldest first."""
        return sorted((self.path / "pictures").glob("step-*.png"))

    def picture(self, step: int) -> Path:
        """Return the file of the picture after `step` steps."""
        return self.path / "pictures" / f"step-{step:08d}.png"

    def refuse_others(self, config: Any, *, command: str) -> None:
        """Raise ConfigError if the folder is not empty and not that of a run with these settings in this format."""
        fork = f"; or start from its weights: --init {self.path} --run NEW" if hasattr(config, "init") else ""
        if self.config.exists():
            created_by = self.info["command"]
            if created_by != command:
                raise ConfigError(f"{self.path} was created by `{created_by}`; choose another --run{fork}")
            changed = differences(load_file(type(config), self.config), config)
            if changed:
                raise ConfigError(
                    f"{self.path} belongs to a run with other settings ({'; '.join(changed)}); "
                    f"choose another --run, or use the settings of that run to resume it{fork}"
                )
        elif self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file, no run folder; choose another --run")
        elif self.path.exists() and not {*self.path.iterdir()} <= self._early:
            raise ConfigError(f"{self.path} is not empty and is no run folder (no config.yaml); choose another --run")

    def claim(self, config: Any, *, command: str) -> None:
        """Create the folder of a run, or check that it is that of this config; raises ConfigError as `refuse_others`.

        command  what created the run, such as "pretrain" or "finetune".
        """
        self.refuse_others(config, command=command)
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.config.exists():
            write_json(self.path / "run.json", {"command": command, "version": __version__, "format": FORMAT})
        text = dump(config)
        if not self.config.exists() or self.config.read_text() != text:
            write_atomic(self.config, text.encode())
        (self.path / "checkpoints").mkdir(exist_ok=True)  # last: only a folder with a config is a run

    def save(self, state: dict[str, Any], *, keep: int, keep_forever: Callable[[int], bool] = lambda _: False) -> Path:
        """Write a checkpoint for `state["steps_done"]`; once it is on disk, delete all but the newest `keep`.

        keep_forever  returns whether the checkpoint of a step is never deleted.
        Raises        OSError if it cannot be written; earlier checkpoints are kept.
        """
        folder = self.path / "checkpoints"
        folder.mkdir(exist_ok=True)  # somebody may have removed it
        temporary = folder / ".checkpoint.tmp"  # always the same: the next save overwrites what a kill left
        checksum = write_temporary(temporary, partial(write_state, state))
        path = folder / f"step-{state['steps_done']:08d}.{checksum}.pt"
        rename_into_place(temporary, path)
        for old in self.checkpoints[:-keep]:
            if not keep_forever(steps_of(old)):
                old.unlink(missing_ok=True)
        return path

    def newest(self, *, on_damaged: Callable[[Path], object] = lambda _: None) -> Path | None:
        """Return the newest checkpoint that is intact, or None if there are none.

        on_damaged  called with each damaged checkpoint.
        Raises      ConfigError if there are some, but none is intact.
        """
        for path in reversed(self.checkpoints):
            if is_intact(path):
                return path
            on_damaged(path)
        if any((self.path / "checkpoints").glob("step-*")):
            raise ConfigError(f"no checkpoint in {self.path / 'checkpoints'} is intact; remove them to restart the run")
        return None


def run_and_epochs(checkpoint: Path) -> tuple[RunFolder, int | None]:
    """Parse the name of a run's checkpoint: RUN for the newest, RUN@EPOCHS for the one kept after so many epochs."""
    match = re.fullmatch(r"(.+)@(\d+)", checkpoint.name)
    if match and not checkpoint.exists():
        return RunFolder(checkpoint.with_name(match[1])), int(match[2])
    return RunFolder(checkpoint), None


def check_checkpoint(path: Path, key: str = "checkpoint") -> None:
    """Raise ConfigError with what leads on if there is no checkpoint: nothing at all, a part of a run, settings.

    key  the setting that names the checkpoint.
    """
    if run_and_epochs(path)[0].config.exists():
        return
    if not path.exists():
        if cached_model(str(path)):
            return
        raise ConfigError(f"{key}: {path} does not exist")
    if path.suffix != ".safetensors" and (run := _run_around(path)):
        raise ConfigError(f"{key}: {path} is only a part of a run; did you mean {run}?")
    if path.suffix in (".yaml", ".yml"):
        raise ConfigError(f"{key}: {path} is a file of settings, not of weights; settings are given by --config")
    if runs := runs_below(path):
        names = ", ".join(str(run) for run in runs[:3])
        raise ConfigError(f"{key}: {path} is no run folder, but holds {len(runs)}, such as {names}; name one")


def cached_model(name: str) -> Path | None:
    """Return the folder of a model in Hugging Face's cache, by its repository's name; timm's can omit `timm/`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name if "/" in name else f"timm/{name}", local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def no_run(path: Path) -> str:
    """Return why a path is no run folder, and what leads on."""
    if not path.exists():
        return f"no run in {path}, which does not exist"
    run = _run_around(path)
    hint = f"did you mean {run}?" if run else f"a run's folder has a journal.jsonl, a submitted one a {SUBMISSION}"
    return f"no run in {path}; {hint}"


def runs_below(place: Path) -> list[Path]:
    """Return the run folders in a folder and in those below it, sorted."""
    return sorted({journal.parent for journal in place.rglob("journal.jsonl")})


def _run_around(path: Path) -> Path | None:
    """Return the run folder that a path lies in, or None."""
    return next((parent for parent in path.parents[:2] if RunFolder(parent).config.exists()), None)


def read_facts(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run folder; empty if it is missing. Raises ConfigError if it is damaged."""
    try:
        facts = read_json(path) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(facts, dict):
        raise ConfigError(f"{path} holds no facts but {facts!r:.80}")
    return facts
