"""The outcome of a pipeline: what is done, what each variant came to, what is still on its way."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mae_curriculum.evaluation.results import format_percent, spread
from mae_curriculum.files import read_json
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.terminal import format_table
from mae_curriculum.tracking.history import read_history
from slurm.cluster import read_submission
from slurm.status import stands


@dataclass(frozen=True)
class Entry:
    """One run in the table."""

    row: str
    """Its variant; those of several seeds share a row."""
    run: Path
    result: Path
    """What is there once it is done."""


def as_outcome(groups: Sequence[Sequence[Entry]], queue: Mapping[str, str]) -> str:
    """Lay out the table: a row for each variant, a column for each group."""
    rows = list(dict.fromkeys(entry.row for entry in groups[0]))
    header = ["variant", *(group[0].run.name for group in groups)]
    cells = [[row, *(as_cell([e for e in group if e.row == row], queue) for group in groups)] for row in rows]
    return format_table([header, *cells])


def as_cell(entries: Sequence[Entry], queue: Mapping[str, str]) -> str:
    """Say what the runs of a variant's seeds came to, and how those stand that are not done."""
    results = [read_json(entry.result) for entry in entries if entry.result.exists()]
    others = Counter(stand(entry.run, queue) for entry in entries if not entry.result.exists())
    told = [f"{count} {state}" if len(entries) > 1 else state for state, count in others.items()]
    return ", ".join(([summarize(results)] if results else []) + told)


def summarize(results: Sequence[Mapping[str, Any]]) -> str:
    """Spell the results of a variant's seeds: the accuracy where there is one, else the loss."""
    if "accuracy" not in results[0]:
        losses = [result["loss"] for result in results if result["loss"] is not None]
        return f"loss {fmean(losses):.4f}" if losses else "no loss"
    accuracies = [result["accuracy"] for result in results]
    if "mean" in accuracies[0]:
        return over_seeds(accuracies)
    return "; ".join(f"{key}: {over_seeds([each[key] for each in accuracies])}" for key in accuracies[0])


def over_seeds(figures: Sequence[dict[str, Any]]) -> str:
    """Spell figures of several pretrainings by their means; those of a single one with their own spread."""
    return format_percent(figures[0] if len(figures) == 1 else spread([each["mean"] for each in figures]))


def stand(run: Path, queue: Mapping[str, str]) -> str:
    """Say how a run stands that is not done; one of several seeds, as the newest of them does."""
    journals = [journal for place in (".", "seed-*") for journal in run.glob(f"{place}/journal.jsonl")]
    if not journals and read_submission(run) is None:
        return "to do"
    begun = [journal for journal in journals if not RunFolder(journal.parent).summary.exists()]
    folder = RunFolder(max(begun, key=lambda journal: journal.stat().st_mtime).parent if begun else run)
    return stands(folder, read_history(folder.journal), queue)[0]
