"""What the rows of a journal are at W&B: metrics of a step, facts of the whole run, how it ended."""

from pathlib import Path
from typing import Any

from mae_curriculum.run.folder import RunFolder
from mae_curriculum.tracking.wandb.launch import without_home

AXES = ("images", "epochs", "flops", "train_seconds")
"""Against which curves are drawn: curricula compare at equal images and at equal cost."""

COMPARED = ("loss", "val_loss", "knn", "accuracy")
"""Drawn against each axis; other metrics against images."""

PLACES = ("time", "steps_done")
"""W&B has these of its own."""

EXIT_CODES = {"end": 0, "stop": 75, "error": 2}
"""By how a job ended: W&B shows the run as finished, preempted or failed. It is failed, too, without any word."""

Row = dict[str, Any]


def position_of(row: Row) -> int | None:
    """Tell at which optimizer step W&B shows a row: W&B itself would count from 0 in each job. None for other rows."""
    match row:
        case {"event": "step" | "evaluation" | "pictures", "steps_done": steps_done}:
            return int(steps_done)
    return None


def ending_after(row: Row, ending: str) -> str:
    """Tell how a run's last job ended, after another row: end, stop, error, or not yet known."""
    if row["event"] == "start":
        return ""
    return str(row["event"]) if row["event"] in EXIT_CODES else ending


def bring_facts(run: Any, row: Row, starts: int) -> None:
    """Tell W&B what a row tells of the whole run; `starts` counts its jobs."""
    match row:
        case {"event": "start"}:
            run.config.update({f"start_{starts}": without_home(row)}, allow_val_change=True)
            run.summary["ending"] = None
        case {"event": "end"}:
            run.summary.update({key: value for key, value in row.items() if isinstance(value, int | float)})
            run.summary["ending"] = "finished"
        case {"event": "stop" | "error", "reason": reason}:
            run.summary["ending"] = without_home(reason)


def metrics_of(row: Row, folder: RunFolder) -> Row:
    """Give the metrics of a row: its numbers, a size by its sides, each activity's share of all time."""
    if row["event"] == "pictures":
        import wandb

        paths = [folder.path / "pictures" / Path(path).name for path in row["files"]]  # wherever the folder was then
        return {"pictures": [wandb.Image(str(path)) for path in paths if path.exists()]}
    numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and key not in PLACES}
    if row["event"] == "evaluation":
        return compared({key: value for key, value in numbers.items() if key in COMPARED})
    height, width = row["size"]
    spent = {key.removesuffix("_seconds"): value for key, value in numbers.items() if key.endswith("_seconds")}
    shares = {f"broadcast_{key}": value / sum(spent.values()) for key, value in spent.items()}
    return compared({**numbers, "size": height, "width": width, **shares})


def compared(metrics: Row) -> Row:
    """Add those metrics that are drawn against each axis."""
    known = [name for name in COMPARED if metrics.get(name) is not None]
    return metrics | {f"{name}_by_{axis}": metrics[name] for name in known for axis in AXES}
