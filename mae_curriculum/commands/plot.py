"""Plot the loss of runs against images, FLOPs and training seconds."""

import numpy as np

from mae_curriculum.commands.config import PlotConfig
from mae_curriculum.config import ConfigError
from mae_curriculum.report.figures import draw_losses, drawable
from mae_curriculum.report.runs import read_runs


def plot(config: PlotConfig) -> int:
    """Draw the figure; returns the exit code."""
    runs = read_runs(config.runs)
    for run in runs:
        if not np.isfinite(run.curves["loss"]).any():
            raise ConfigError(f"{run.path} has logged no loss yet")
        if not np.isfinite(run.curves["flops"]).any():
            raise ConfigError(f"{run.path} has logged no FLOPs; plot takes runs of pretraining and fine-tuning")
    draw_losses(config.out, runs)
    print(drawable(str(config.out)))
    return 0
