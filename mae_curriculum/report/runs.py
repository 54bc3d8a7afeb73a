"""Read everything that a report needs from run folders."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mae_curriculum.config import ConfigError, leaves, read_yaml
from mae_curriculum.report.curves import EVALUATION_METRICS, Column, Curves, Metric
from mae_curriculum.run.folder import RunFolder, no_run, runs_below
from mae_curriculum.terminal import printable
from mae_curriculum.tracking.history import History, Row, read_history, run_state

logger = logging.getLogger(__name__)

STAGE_AXES = ("progress", "epochs", "real_epochs", "steps_done", "images", "flops", "train_seconds")
"""Axes on which the length of a stage is measured, in the order of `StageData`'s fields."""


@dataclass(frozen=True)
class StageData:
    """One stage of a run, up to the last logged step; NaN is unknown."""

    number: int
    """Counted from 1."""
    size: list[int] | None
    """Height and width in pixels."""
    first_step: int
    progress: float
    """Share of the run, 0 to 1."""
    epochs: float
    """Equivalent epochs."""
    real_epochs: float
    steps: float
    images: float
    flops: float
    train_seconds: float

    @property
    def height(self) -> int:
        """Image height in pixels, or 1 if it is unknown."""
        return self.size[0] if self.size else 1


@dataclass(frozen=True)
class RunData:
    """The contents of a run folder."""

    name: str
    folder: RunFolder
    history: History
    curves: Curves
    settings: dict[str, Any]
    """By dotted key; empty without a readable config.yaml."""

    @property
    def path(self) -> str:
        """The folder's path, as printable text."""
        return printable(self.folder.path)

    @cached_property
    def state(self) -> str:
        """State of the run: finished, running, failed, stopped or died."""
        return run_state(self.folder, self.history)

    @property
    def start_time(self) -> float:
        """Time of the first start, in seconds since 1970."""
        return float(self.history.sessions[0].start["time"])

    @cached_property
    def newest(self) -> Row:
        """Newest value of every field in the rows of evaluations, steps and the end."""
        rows = [self.history.newest(event) or {} for event in ("evaluation", "step", "end")]
        return {key: value for row in rows for key, value in row.items() if value is not None}

    @property
    def progress(self) -> float:
        """Share of the run's steps that are done, 0 to 1."""
        total_steps = self.history.last.start.get("total_steps")
        return self.steps_done / total_steps if total_steps else 0.0

    @property
    def steps_done(self) -> int:
        """Number of steps done at the last logged step."""
        step = self.history.newest("step")
        return int(step["steps_done"]) if step else 0

    def positions(self, axis: str) -> Column:
        """Return the position of each logged step on an axis."""
        return self.curves["time"] - self.start_time if axis == "elapsed" else self.curves[axis]

    def interpolate(self, steps: Column, axis: str) -> Column:
        """Return the positions on an axis at which `steps` steps were done; 0 steps are at position 0."""
        positions = self.positions(axis)
        known = np.isfinite(positions)
        if not known.any():
            return np.full(len(steps), np.nan)
        known_steps = np.concatenate([[0.0], self.curves["steps_done"][known]])
        return np.asarray(np.interp(steps, known_steps, np.concatenate([[0.0], positions[known]])))

    def has(self, metric: Metric) -> bool:
        """Return whether there is any value of a metric."""
        values = self.evaluations(metric.key)[1] if metric in EVALUATION_METRICS else self.curves[metric.key]
        return bool(np.isfinite(values).any())

    def evaluations(self, key: str) -> tuple[Column, Column]:
        """Return the numbers of steps after which a metric was evaluated, each once, and its values."""
        values = {row["steps_done"]: row[key] for row in self.history.rows("evaluation") if row.get(key) is not None}
        steps = sorted(values)
        return np.array(steps, dtype=np.float64), np.array([values[step] for step in steps], dtype=np.float64)

    @cached_property
    def stages(self) -> list[StageData]:
        """The stages that have started."""
        starts: dict[int, Row] = {}
        for row in self.history.rows("stage"):
            if row["steps_done"] < self.steps_done:
                starts.setdefault(row["stage"], row)
        edges = np.array([*(row["steps_done"] for row in starts.values()), self.steps_done], dtype=np.float64)
        lengths = np.diff([self.interpolate(edges, axis) for axis in STAGE_AXES]).T
        return [
            StageData(row["stage"] + 1, row.get("size"), row["steps_done"], *map(float, length))
            for row, length in zip(starts.values(), lengths, strict=True)
        ]


def read_runs(paths: Sequence[Path]) -> list[RunData]:
    """Read run folders, and those below a folder that is none, such as a pipeline's; each once.

    They are named by their last part or, if that is ambiguous, by their path below the folder that holds them all. One
    of several that cannot be read is left out, with a warning.

    Raises  ConfigError if none can be read.
    """
    folders = list({run.resolve(): None for path in paths for run in _runs_at(path)})
    counts = Counter(folder.name for folder in folders)
    above = Path(os.path.commonpath(folders))
    runs, failures = [], []
    for folder in folders:
        name = folder.name if counts[folder.name] == 1 else folder.relative_to(above)
        try:
            runs.append(_read_run(folder, printable(name)))
        except (ConfigError, OSError) as error:
            failures.append(error)
    if not runs:
        raise ConfigError(str(failures[0]))
    for failure in failures:
        logger.warning(f"left out: {failure}")
    return runs


def _runs_at(path: Path) -> list[Path]:
    return [path] if RunFolder(path).journal.exists() else runs_below(path) or [path]


def _read_run(path: Path, name: str) -> RunData:
    folder, curves = RunFolder(path), Curves()
    if not folder.journal.exists():
        raise ConfigError(no_run(path))
    history = read_history(folder.journal, on_step=curves.append, on_reset=curves.clear)
    if history is None:
        raise ConfigError(f"{path}: this run was never started; its journal has no start")
    return RunData(name, folder, history, curves, _read_settings(folder.config))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return dict(leaves(read_yaml(path.read_text())))
    except (OSError, ValueError, yaml.YAMLError):  # missing or damaged: the report uses the journal alone
        return {}
