"""The loss of runs against what it took: images, FLOPs, seconds."""

import numpy as np

from mae_curriculum.commands.config import PlotConfig
from mae_curriculum.config import ConfigError
from mae_curriculum.report.figures import Curve, draw_losses, drawable
from mae_curriculum.report.runs import RunData, read_runs


def plot(config: PlotConfig) -> int:
    """Draw the picture; returns the exit code."""
    draw_losses(config.out, [curve_of(run) for run in read_runs(config.runs)])
    print(drawable(str(config.out)))
    return 0


def curve_of(run: RunData) -> Curve:
    """Give the loss of a run by its reports; raises ConfigError if there is none, or if FLOPs were not counted."""
    known = np.isfinite(run.curves["loss"])
    if not known.any():
        raise ConfigError(f"{run.path} has reported no loss yet")
    if not np.isfinite(run.curves["flops"]).any():
        raise ConfigError(f"{run.path} counted no FLOPs; plot takes runs of pretraining and fine-tuning")
    columns = {axis: run.curves[axis][known] for axis in ("loss", "images", "flops", "train_seconds")}
    edges = np.isin(run.curves["steps_done"][known], [stage.first_step for stage in run.stages[1:]])
    return Curve(run.name, **columns, edges=[*map(int, np.flatnonzero(edges))])
