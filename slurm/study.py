"""Collect the results of a pipeline's finished runs, and write them: JSON, Markdown and a plot."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_curriculum.files import read_json, write_atomic
from mae_curriculum.report.runs import RunData, read_runs
from mae_curriculum.report.study import AXES, Study, StudyRun, curves_of, facts_of, format_study, write_study
from slurm.pipeline_config import PipelineRun, variant_name
from slurm.result_table import row_name


def write_results(
    name: str,
    groups: Sequence[Sequence[PipelineRun]],
    baseline: dict[str, Any],
    folder: Path,
    *,
    missing: int,
    shared: bool = False,
) -> None:
    """Write NAME.json, and NAME.md and NAME.png, which follow from it, into a folder.

    groups    finished runs.
    baseline  the values of the variant that the others are compared with; they keep their other values. Empty for none.
    missing   number of pretrainings that have not finished yet, or lack an evaluation.
    shared    several ran on this machine at once.
    """
    from mae_curriculum.report.study_figure import draw_study  # loads matplotlib

    data = [read_runs([run.folder])[0] for run in groups[0]]
    command = f"python -m slurm {shlex.join(sys.argv[1:])}"
    runs = [
        collect(run, each, [group[place] for group in groups[1:]], baseline)
        for place, (run, each) in enumerate(zip(groups[0], data, strict=True))
    ]
    facts = facts_of(data, command)
    if missing:
        facts["not finished"] = [f"{missing} of {missing + len(runs)} runs"]
    study = Study(name, facts, tuple(runs), shared)
    folder.mkdir(parents=True, exist_ok=True)
    write_study(study, folder / f"{name}.json")
    write_atomic(folder / f"{name}.md", format_study(study).encode())
    draw_study(folder / f"{name}.png", study)


def collect(run: PipelineRun, data: RunData, evaluations: Sequence[PipelineRun], baseline: dict[str, Any]) -> StudyRun:
    """Return what a pretraining and its evaluations came to."""
    summary = read_json(run.result)
    losses, knn = curves_of(data)
    accuracies = {} if evaluations or summary["knn"] is None else {"kNN": summary["knn"]}
    for evaluation in evaluations:
        accuracies |= accuracies_of(evaluation)
    compared = {key: value for key, value in (run.variant | baseline).items() if key != "seed"}
    return StudyRun(
        variant=row_name(run),
        baseline=(variant_name(compared) or "-") if baseline else None,
        seed=run.settings.seed,
        costs={axis: summary[axis] for axis in AXES},
        accuracies=accuracies,
        untrained=summary["knn_untrained"],
        losses=losses,
        evaluations=knn,
    )


def accuracies_of(evaluation: PipelineRun) -> dict[str, float]:
    """Return the accuracies of an evaluation, the mean over its own seeds; few-shot evaluations have one per shots.

    One of all blocks has those of the last and, on the same images, of the best.
    """
    name, result = evaluation.folder.name, read_json(evaluation.result)
    accuracies = _name_accuracies(name, result["accuracy"])
    blocks = [_name_accuracies(name, found) for found in result.get("by_block", [])]
    if blocks:
        accuracies |= {f"{key}, best block": max(block[key] for block in blocks) for key in accuracies}
    return accuracies


def _name_accuracies(name: str, found: dict[str, Any]) -> dict[str, float]:
    if "mean" in found:
        return {name: found["mean"]}
    return {f"{name} {shots}": figures["mean"] for shots, figures in found.items()}
