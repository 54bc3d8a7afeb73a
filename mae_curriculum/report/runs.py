"""All that a run's folder tells, for a report."""

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
from mae_curriculum.report.curves import EVALUATIONS, Column, Curves, Measure
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.tracking.history import History, Row, read_history, run_state

STAGE_AXES = ("progress", "steps_done", "images", "flops", "train_seconds")
"""What is told of a stage."""


@dataclass(frozen=True)
class Stage:
    """A stage of a run, as far as it was run; NaN is not known."""

    number: int
    """From 1."""
    size: list[int] | None
    """Height and width, pixels."""
    first_step: int
    progress: float
    """The share of the run that it took."""
    steps: float
    images: float
    flops: float
    train_seconds: float

    @property
    def height(self) -> int:
        """Of its images, in pixels; 1 if it is not known."""
        return self.size[0] if self.size else 1


@dataclass(frozen=True)
class RunData:
    """What a run's folder tells."""

    name: str
    folder: RunFolder
    history: History
    curves: Curves
    settings: dict[str, Any]
    """By dotted key; empty without a readable config.yaml."""

    @property
    def path(self) -> str:
        """The folder's path; bytes that are no text are replaced."""
        return readable(self.folder.path)

    @cached_property
    def state(self) -> str:
        """How it stands."""
        return run_state(self.folder, self.history)

    @property
    def began(self) -> float:
        """When the run did, in seconds since 1970."""
        return float(self.history.sessions[0].start["time"])

    @cached_property
    def newest(self) -> Row:
        """The newest value of all that evaluations, steps and the end tell."""
        rows = [self.history.newest(event) or {} for event in ("evaluation", "step", "end")]
        return {key: value for row in rows for key, value in row.items() if value is not None}

    @property
    def progress(self) -> float:
        """The share of the run's steps that is done, 0 to 1."""
        steps = self.history.last.start.get("total_steps")
        return self.done / steps if steps else 0.0

    @property
    def done(self) -> int:
        """How many steps are done."""
        step = self.history.newest("step")
        return int(step["steps_done"]) if step else 0

    def positions(self, axis: str) -> Column:
        """Tell where on an axis the rows of steps stand."""
        return self.curves["time"] - self.began if axis == "elapsed" else self.curves[axis]

    def place(self, steps: Column, axis: str) -> Column:
        """Tell where on an axis so many steps were done: a run begins at 0 of everything."""
        there = self.positions(axis)
        known = np.isfinite(there)
        if not known.any():
            return np.full(len(steps), np.nan)
        done = np.concatenate([[0.0], self.curves["steps_done"][known]])
        return np.asarray(np.interp(steps, done, np.concatenate([[0.0], there[known]])))

    def tells(self, measure: Measure) -> bool:
        """Tell whether there is any number of a measure."""
        values = self.evaluations(measure.key)[1] if measure in EVALUATIONS else self.curves[measure.key]
        return bool(np.isfinite(values).any())

    def evaluations(self, key: str) -> tuple[Column, Column]:
        """Give the steps after which something was evaluated, and what came out; each step once."""
        found = {row["steps_done"]: row[key] for row in self.history.rows("evaluation") if row.get(key) is not None}
        steps = sorted(found)
        return np.array(steps, dtype=np.float64), np.array([found[step] for step in steps], dtype=np.float64)

    @cached_property
    def stages(self) -> list[Stage]:
        """The stages that have begun."""
        begun: dict[int, Row] = {}
        for row in self.history.rows("stage"):
            if row["steps_done"] < self.done:
                begun.setdefault(row["stage"], row)
        edges = np.array([*(row["steps_done"] for row in begun.values()), self.done], dtype=np.float64)
        places = [self.place(edges, axis) for axis in STAGE_AXES]
        return [
            Stage(row["stage"] + 1, row.get("size"), row["steps_done"], *map(float, spent))
            for row, spent in zip(begun.values(), np.diff(places).T, strict=True)
        ]


def read_runs(paths: Sequence[Path]) -> list[RunData]:
    """Read runs' folders, each once, named by their last part where that tells them apart; raises ConfigError."""
    folders = list({path.resolve(): path for path in paths})
    names = Counter(folder.name for folder in folders)
    return [read_run(each, readable(each.name if names[each.name] == 1 else each)) for each in folders]


def read_run(path: Path, name: str) -> RunData:
    """Read a run's folder; raises ConfigError if it is none."""
    folder, curves = RunFolder(path), Curves()
    if not folder.journal.exists():
        seeds = ", ".join(sorted(each.name for each in path.glob("seed-*")))
        here = f", but in {seeds} of it" if seeds else ""
        raise ConfigError(f"no run in {readable(path)}{here}; a run's folder has a journal.jsonl")
    history = read_history(folder.journal, on_step=curves.take, on_reset=curves.clear)
    if history is None:
        raise ConfigError(f"{readable(path)}: no job has begun this run; its journal has no start")
    return RunData(name, folder, history, curves, _read_settings(folder.config))


def readable(path: str | Path) -> str:
    """Spell a path; bytes that are no text are replaced."""
    return os.fsencode(path).decode(errors="replace")


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return dict(leaves(read_yaml(path.read_text())))
    except (OSError, ValueError, yaml.YAMLError):  # an old or a damaged one: the journal tells the rest
        return {}
