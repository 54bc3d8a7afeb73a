"""Plot the loss of runs against images, FLOPs and training seconds."""

import logging

import numpy as np

from mae_curriculum.commands.config import PlotConfig
from mae_curriculum.config import ConfigError
from mae_curriculum.report.figures import draw_losses
from mae_curriculum.report.runs import RunData, read_runs
from mae_curriculum.terminal import printable

logger = logging.getLogger(__name__)


def plot(config: PlotConfig) -> int:
    """Draw the figure, without runs that have nothing to draw; returns the exit code."""
    runs = read_runs(config.runs)
    reasons = [why_no_curve(run) for run in runs]
    drawn = [run for run, why in zip(runs, reasons, strict=True) if why is None]
    if not drawn:
        raise ConfigError(f"{reasons[0]}")
    for why in filter(None, reasons):
        logger.warning(f"left out: {why}")
    draw_losses(config.out, drawn)
    print(printable(config.out))
    return 0


def why_no_curve(run: RunData) -> str | None:
    """Return the reason why a run has no curve to draw, or None if it has one."""
    if not np.isfinite(run.curves["loss"]).any():
        return f"{run.path} has logged no loss yet"
    if not np.isfinite(run.curves["flops"]).any():
        return f"{run.path} has logged no FLOPs; plot takes runs of pretraining and fine-tuning"
    return None
