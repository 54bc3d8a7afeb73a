"""The evaluation before the first step of a run with `init`, and how later ones compare with it."""

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.tracking.journal import Journal

METRICS = {"knn": "kNN accuracy", "val_loss": "loss", "effective_rank": "effective rank of the features"}
"""What evaluations measure, in words."""

PATIENCE = 3
"""Number of evaluations in a row below the start that end a run with `stop_below_start`."""


def read_start(journal: Journal) -> dict[str, float]:
    """Return the evaluation before the first step; empty if there was none."""
    evaluations = [row for row in journal.rows() if row["event"] == "evaluation" and row["steps_done"] == 0]
    return {key: evaluations[-1][key] for key in METRICS if key in evaluations[-1]} if evaluations else {}


def refuse_decline(journal: Journal, clock: Clock, warmup: float) -> None:
    """Raise ConfigError if the last evaluations after the warm-up were all below the one before the first step.

    warmup  share of the run with warm-up.
    """
    start = read_start(journal)["knn"]
    rows = {row["steps_done"]: row["knn"] for row in journal.rows() if row["event"] == "evaluation"}
    last = [rows[step] for step in sorted(rows) if clock.progress(step) > warmup][-PATIENCE:]
    if len(last) == PATIENCE and max(last) < start:
        values = ", ".join(f"{value:.4f}" for value in last)
        raise ConfigError(
            f"the kNN accuracy stays below its start, {start:.4f}: {values} in the last {PATIENCE} evaluations; lower "
            "optim.base_lr, raise init_decoder_epochs, or go on without stop_below_start in another --run"
        )


def describe_evaluation(found: dict[str, float], start: dict[str, float]) -> str:
    """Return the results of an evaluation, each beside that of the start if there is one."""
    parts = [
        f"{METRICS[key]} {value:.4f}" + (f" (at the start {start[key]:.4f})" if key in start else "")
        for key, value in found.items()
    ]
    return ", ".join(parts)
