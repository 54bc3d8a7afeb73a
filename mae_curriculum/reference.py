"""Reference curves: what runs of a recipe came to, so that others of the same settings can tell early if all is well.

A file holds the settings of some runs that differ in their seeds, and their curves, averaged over equal parts of the
run. A later run of the same settings and images is compared with a band around these curves.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mae_curriculum.config import ConfigError, differences, load_file, load_part, plain
from mae_curriculum.files import write_json
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.recipes import CONFIGS
from mae_curriculum.report.runs import RunData
from mae_curriculum.tracking.journal import Journal

PARTS = 20
"""Parts of a run over which the loss is averaged."""

CONFIDENCE = 0.99
"""Probability with which a healthy run is inside the band at one point, if values are normally distributed."""

MIN_RUNS = 3
"""Fewest runs that a band is made of."""

FREE = {"seed", "data.source"}
"""Settings in which runs may differ: which images there are is compared by their names."""


@dataclass(frozen=True)
class Reference:
    """What runs of the same settings came to."""

    settings: dict[str, Any]
    data_fingerprint: str
    """Number and names of the images, and any weights that the runs started from."""
    seeds: list[int]
    hardware: list[str]
    losses: list[list[float]]
    """Of each run, the mean loss of each of `PARTS` equal parts."""
    knn: dict[str, list[float]]
    """kNN accuracies of all runs by the number of steps that were done."""

    def fits(self, config: PretrainConfig, data_fingerprint: str) -> bool:
        """Return whether a run has these settings and images."""
        if data_fingerprint != self.data_fingerprint:
            return False
        own = load_part(PretrainConfig, self.settings)  # settings that are newer than the file have their defaults
        return {line.partition(":")[0] for line in differences(own, config)} <= FREE


def _read_references() -> dict[str, Reference]:
    """Read the reference curves that are shipped, by their names."""
    files = sorted((CONFIGS / "reference").glob("*.json"))
    return {path.stem: Reference(**json.loads(path.read_text())) for path in files}


def write_reference(path: Path, runs: Sequence[RunData]) -> None:
    """Write the reference curves of finished runs; raises ConfigError if they are too few or not alike."""
    if len(runs) < MIN_RUNS:
        raise ConfigError(f"reference: a band needs at least {MIN_RUNS} runs, got {len(runs)}")
    configs = [load_file(PretrainConfig, run.folder.config) for run in runs]
    for run, config in zip(runs, configs, strict=True):
        changed = [line for line in differences(configs[0], config) if line.partition(":")[0] not in FREE]
        if changed:
            raise ConfigError(f"reference: {run.path} differs from {runs[0].path}: {'; '.join(changed)}")
        if run.history.newest("end") is None:
            raise ConfigError(f"reference: {run.path} has not finished")
    starts = [run.history.last.start for run in runs]
    fingerprints = {start["data_fingerprint"] for start in starts}
    if len(fingerprints) > 1:
        raise ConfigError(f"reference: the runs have other images: {'; '.join(sorted(fingerprints))}")
    reference = Reference(
        settings=plain(configs[0], with_exempt=False),
        data_fingerprint=fingerprints.pop(),
        seeds=[config.seed for config in configs],
        hardware=sorted({str(start["device"]) for start in starts}),
        losses=[mean_losses(run, starts[0]["total_steps"]) for run in runs],
        knn=_accuracies(runs),
    )
    write_json(path, asdict(reference))


def mean_losses(run: RunData, total_steps: int) -> list[float]:
    """Return the mean loss of each of `PARTS` equal parts of a run."""
    parts: list[list[float]] = [[] for _ in range(PARTS)]
    for steps, loss in zip(run.curves["steps_done"].tolist(), run.curves["loss"].tolist(), strict=True):
        parts[part_of(int(steps), total_steps)].append(loss)
    if not all(parts):
        raise ConfigError(f"reference: {run.path} has too few reports; lower tracking.every_steps")
    return [round(fmean(part), 5) for part in parts]


def part_of(steps_done: int, total_steps: int) -> int:
    """Return the number of the part that a step ends in or belongs to, counted from 0."""
    return (steps_done - 1) * PARTS // total_steps


def _accuracies(runs: Sequence[RunData]) -> dict[str, list[float]]:
    """Return the kNN accuracies of all runs after the numbers of steps at which each has one."""
    by_run = [dict(zip(*(column.tolist() for column in run.evaluations("knn")), strict=True)) for run in runs]
    common = sorted(set.intersection(*(set(found) for found in by_run)))
    return {str(int(steps)): [round(found[steps], 5) for found in by_run] for steps in common}


def band(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval in which another run's value lies with a probability of `CONFIDENCE`."""
    from scipy.stats import t  # takes half a second

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) * sqrt(1 + 1 / len(values))
    return fmean(values) - half, fmean(values) + half


class Watch:
    """Compares a run with reference curves while it goes on."""

    def __init__(self, name: str, reference: Reference, journal: Journal, total_steps: int) -> None:
        """Start to compare."""
        self.title = f"reference: {name}, runs: {len(reference.seeds)} on {', '.join(reference.hardware)}"
        self._reference, self._journal, self._total_steps = reference, journal, total_steps
        self._part: int | None = None
        self._inside: bool | None = None

    def describe_loss(self, steps_done: int) -> str | None:
        """Return a sentence if the part of the run that has just ended enters or leaves the band; else None."""
        part, ended = part_of(steps_done + 1, self._total_steps), self._part
        self._part = part
        if ended is None or ended == part:
            return None
        rows = [row for row in self._journal.rows() if row["event"] == "step"]
        losses = [row["loss"] for row in rows if part_of(row["steps_done"], self._total_steps) == ended]
        if not losses or None in losses:
            return None
        loss = fmean(losses)
        low, high = band([run[ended] for run in self._reference.losses])
        before, self._inside = self._inside, low <= loss <= high
        if before == self._inside:
            return None
        return f"after {part / PARTS:.0%}: mean loss of the last {1 / PARTS:.0%} {compare(loss, low, high)}"

    def describe_knn(self, steps_done: int, accuracy: float) -> str:
        """Return how an accuracy compares; empty if the reference has none after as many steps."""
        values = self._reference.knn.get(str(steps_done))
        if values is None:
            return ""
        low, high = band(values)
        return compare(accuracy, max(low, 0.0), min(high, 1.0))


def find_watch(config: PretrainConfig, data_fingerprint: str, journal: Journal, total_steps: int) -> Watch | None:
    """Return what compares a run with the reference curves of its settings and images, if there are any."""
    for name, reference in _read_references().items():
        if reference.fits(config, data_fingerprint):
            return Watch(name, reference, journal, total_steps)
    return None


def compare(value: float, low: float, high: float) -> str:
    """Format a value beside a band."""
    place = "inside" if low <= value <= high else "above" if value > high else "below"
    return f"{value:.4f}, {place} the reference band ({low:.4f} to {high:.4f})"
