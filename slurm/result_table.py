"""The table of a pipeline: results of what has finished, the state of everything else."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mae_curriculum.evaluation.results import format_percent, spread
from mae_curriculum.files import read_json
from mae_curriculum.run.folder import RunFolder, read_facts
from mae_curriculum.terminal import format_duration, format_flops, format_table
from mae_curriculum.tracking.history import read_history
from slurm.cluster import read_submission
from slurm.pipeline_config import PipelineRun, variant_name
from slurm.status import state_and_error


def format_result_table(groups: Sequence[Sequence[PipelineRun]], queue: Mapping[str, str]) -> str:
    """Format the table: a row per variant, seeds together; a column per group, and the cost of the pretraining."""
    rows = list(dict.fromkeys(row_name(run) for run in groups[0]))
    lines = [["variant", *(group[0].folder.name for group in groups), "FLOPs", "training time"]]
    for row in rows:
        seeds = [[run for run in group if row_name(run) == row] for group in groups]
        lines.append([row, *(format_cell(runs, queue) for runs in seeds), *format_costs(seeds[0])])
    return format_table(lines)


def row_name(run: PipelineRun) -> str:
    """Return the row of a run: runs that differ in their seed alone share one."""
    return variant_name({key: value for key, value in run.variant.items() if key != "seed"}) or "-"


def format_cell(runs: Sequence[PipelineRun], queue: Mapping[str, str]) -> str:
    """Format the results of the seeds of a variant that have finished, and the states of the others."""
    results = [read_json(run.result) for run in runs if run.result.exists()]
    states = Counter(unfinished_state(run.folder, queue) for run in runs if not run.result.exists())
    parts = [format_results(results)] if results else []
    for state, count in states.items():
        parts.append(f"{count} {state}" if len(runs) > 1 else state)
    return ", ".join(parts)


def format_costs(pretrainings: Sequence[PipelineRun]) -> tuple[str, str]:
    """Format the FLOPs and the training time of a variant's pretrainings that have finished: means over the seeds."""
    summaries = [read_facts(run.result) for run in pretrainings]
    flops, seconds = ([facts[key] for facts in summaries if key in facts] for key in ("flops", "train_seconds"))
    return (
        format_flops(fmean(flops) if flops else None),
        format_duration(fmean(seconds) if seconds else None),
    )


def format_results(results: Sequence[Mapping[str, Any]]) -> str:
    """Format the results of a variant's seeds: the accuracy if there is one, else the loss."""
    if "accuracy" not in results[0]:
        losses = [result["loss"] for result in results if result["loss"] is not None]
        return f"loss {fmean(losses):.4f}" if losses else "no loss"
    accuracies = [result["accuracy"] for result in results]
    if "mean" in accuracies[0]:
        return format_accuracy(accuracies)
    return "; ".join(f"{key}: {format_accuracy([each[key] for each in accuracies])}" for key in accuracies[0])


def format_accuracy(accuracies: Sequence[dict[str, Any]]) -> str:
    """Format the spread over the means of several pretrainings, or that of a single one over its own seeds."""
    if len(accuracies) == 1:
        return format_percent(accuracies[0])
    return format_percent(spread([each["mean"] for each in accuracies]))


def unfinished_state(run: Path, queue: Mapping[str, str]) -> str:
    """Return the state of a run that has not finished; with several seeds, of the newest that has not."""
    journals = [*run.glob("journal.jsonl"), *run.glob("seed-*/journal.jsonl")]
    if not journals and not read_submission(run):
        return "to do"
    unfinished = [journal for journal in journals if not RunFolder(journal.parent).summary.exists()]
    folder = RunFolder(run)
    if unfinished:
        folder = RunFolder(max(unfinished, key=lambda journal: journal.stat().st_mtime).parent)
    return state_and_error(folder, read_history(folder.journal), queue)[0]
