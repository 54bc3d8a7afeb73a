"""Record the evaluation of a checkpoint: results.json, and a row in the journal of the pretraining run."""

from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mae_curriculum.config import config_fingerprint
from mae_curriculum.files import write_json
from mae_curriculum.run.folder import run_and_epochs
from mae_curriculum.tracking.journal import Journal


def spread(values: list[float]) -> dict[str, Any]:
    """Return the mean, the standard deviation (None for a single value), and the values themselves."""
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None, "values": values}


def format_percent(figures: dict[str, Any]) -> str:
    """Format the `spread` of shares: 83.5%, or 83.5 ± 0.2%."""
    deviation = "" if figures["std"] is None else f" ± {100 * figures['std']:.1f}"
    return f"{100 * figures['mean']:.1f}{deviation}%"


def record(command: str, result: dict[str, Any], config: Any, *, run: Path | None, checkpoint: Path | None) -> None:
    """Write results.json, and a row in the journal of the checkpoint's run.

    run  folder of results.json; None for the folder of the checkpoint's run, if it has one.
    """
    result = {
        "command": command,
        "config_fingerprint": config_fingerprint(config),
        "checkpoint": checkpoint and str(checkpoint),
        **result,
    }
    pretrained = run_and_epochs(checkpoint)[0] if checkpoint is not None else None
    if pretrained is not None and not pretrained.config.exists():
        pretrained = None
    if folder := run or (pretrained and pretrained.path):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "results.json", result)
    if pretrained is not None:
        Journal(pretrained.journal).write(**{"event": command, **{k: v for k, v in result.items() if k != "command"}})
