"""The results of a study: what its finished runs came to, as one small JSON file, and the text that follows from it.

A study compares variants of a pretraining with a baseline, over several seeds. Everything that is published of it is
made from the JSON file alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from mae_curriculum.evaluation.results import format_percent, spread
from mae_curriculum.files import read_json, write_json
from mae_curriculum.report.curves import thin
from mae_curriculum.report.runs import RunData
from mae_curriculum.terminal import UNKNOWN, format_count, format_duration, format_flops

CONFIDENCE = 0.95
"""Probability with which an interval covers the mean difference, if differences are normally distributed."""

CURVE_POINTS = 60
"""Points kept of a curve."""

AXES = ("images", "flops", "train_seconds")
"""What a run costs."""

HEADS = {"images": "images", "flops": "FLOPs", "train_seconds": "training time"}

FORMATS: dict[str, Callable[[float], str]] = {
    "images": format_count,
    "flops": format_flops,
    "train_seconds": format_duration,
}


@dataclass(frozen=True)
class StudyRun:
    """A pretraining of a study and its evaluations."""

    variant: str
    """Its combination of values without the seed, such as `curriculum=none`."""
    baseline: str | None
    """The variant that it is compared with, perhaps its own; None for no comparison."""
    seed: int
    costs: dict[str, float]
    """The `AXES` at its end."""
    accuracies: dict[str, float]
    """By evaluation, 0 to 1; the kNN accuracy of pretraining itself if there are no evaluations."""
    untrained: float | None = None
    """kNN accuracy of the encoder before pretraining, measured as in `evaluations`."""
    losses: dict[str, list[float]] = field(default_factory=dict)
    """`loss` and the `AXES` at some of its steps."""
    evaluations: dict[str, list[float]] = field(default_factory=dict)
    """`knn` and the `AXES` at its evaluations during pretraining."""


@dataclass(frozen=True)
class Study:
    """A finished study."""

    name: str
    facts: dict[str, list[str]]
    """Command, commit, hardware and software of its runs; several where they differ."""
    runs: tuple[StudyRun, ...]
    shared: bool = False
    """Whether runs shared a machine, so that their seconds do not compare."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Those of the `AXES` that compare."""
        return tuple(axis for axis in AXES if not (self.shared and axis == "train_seconds"))

    @property
    def variants(self) -> dict[str, list[StudyRun]]:
        """The runs of each variant, in the order of the study."""
        grouped: dict[str, list[StudyRun]] = {}
        for run in self.runs:
            grouped.setdefault(run.variant, []).append(run)
        return grouped

    @property
    def evaluations(self) -> list[str]:
        """Names of the evaluations."""
        return list(dict.fromkeys(name for run in self.runs for name in run.accuracies))


def write_study(study: Study, path: Path) -> None:
    """Write a study as JSON."""
    write_json(path, asdict(study))


def read_study(path: Path) -> Study:
    """Read what `write_study` wrote."""
    content = read_json(path)
    runs = tuple(StudyRun(**run) for run in content["runs"])
    return Study(content["name"], content["facts"], runs, content["shared"])


def curves_of(run: RunData) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the loss and the kNN accuracy of a run with their positions on the `AXES`, in few points."""
    loss = run.curves["loss"]
    kept = thin(loss, CURVE_POINTS)
    kept = kept[np.isfinite(loss[kept])]
    losses = {"loss": loss[kept].tolist(), **{axis: run.positions(axis)[kept].tolist() for axis in AXES}}
    steps, accuracies = run.evaluations("knn")
    positions = {axis: run.interpolate(steps, axis).tolist() for axis in AXES}
    return losses, {"knn": accuracies.tolist(), **positions}


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> tuple[float, float] | None:
    """Return the mean difference of values to a baseline's, seed by seed, and half the width of its interval.

    values, baseline  by seed.
    Returns           None for fewer than two seeds in common; the interval of Student's t has `CONFIDENCE`.
    """
    from scipy.stats import t

    seeds = values.keys() & baseline.keys()
    differences = [values[seed] - baseline[seed] for seed in sorted(seeds)]
    if len(differences) < 2:
        return None
    factor = float(t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
    return fmean(differences), factor * stdev(differences) / sqrt(len(differences))


def format_study(study: Study) -> str:
    """Format a study as a section of Markdown: a table of its variants, and how it was made."""
    head = ["variant", "seeds", *study.evaluations, *(HEADS[axis] for axis in study.axes)]
    rows = [head, ["---"] * len(head)]
    rows += [_row(study, variant, runs) for variant, runs in study.variants.items()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    facts = "\n".join(f"- {name}: {'; '.join(values)}" for name, values in study.facts.items())
    note = (
        "Accuracies: mean ± standard deviation over the seeds; in brackets, percentage points above the baseline, "
        f"paired by seed, with the {CONFIDENCE:.0%} confidence interval of their mean."
    )
    untrained = [run.untrained for run in study.runs if run.untrained is not None]
    if untrained:
        share = format_percent(spread(untrained))
        note += f" kNN accuracy of untrained encoders, measured as during pretraining: {share}."
    if study.shared:
        note += " Runs shared the machine, so their seconds do not compare; `bench` measures the stages."
    return f"## {study.name}\n\n{table}\n\n{note}\n\n{facts}\n"


def _row(study: Study, variant: str, runs: Sequence[StudyRun]) -> list[str]:
    cells = [variant, str(len(runs))]
    baseline = runs[0].baseline
    others = study.variants.get(baseline or "", [])
    for name in study.evaluations:
        values, compared = (
            {run.seed: run.accuracies[name] for run in each if name in run.accuracies} for each in (runs, others)
        )
        mean = format_percent(spread(list(values.values()))) if values else UNKNOWN
        if baseline is None or not values:
            cells.append(mean)
        else:
            cells.append(f"{mean} ({'baseline' if variant == baseline else _format_difference(values, compared)})")
    return [*cells, *(FORMATS[axis](fmean(run.costs[axis] for run in runs)) for axis in study.axes)]


def _format_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> str:
    found, pairs = paired_difference(values, baseline), len(values.keys() & baseline.keys())
    if found is None:
        return "one seed" if pairs else "no baseline yet"
    mean, half = (100 * each for each in found)
    of_fewer = "" if pairs == len(values) else f" of {pairs} seeds"
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]{of_fewer}"


def facts_of(runs: Sequence[RunData], command: str) -> dict[str, list[str]]:
    """Return how the runs of a study were made: each different value once."""
    starts: list[dict[str, Any]] = [session.start for run in runs for session in run.history.sessions]
    facts = {"command": [command]}
    for name, key in (("commit", "commit"), ("hardware", "device"), ("software", "software")):
        facts[name] = list(dict.fromkeys(str(start.get(key) or "unknown") for start in starts))
    return facts
