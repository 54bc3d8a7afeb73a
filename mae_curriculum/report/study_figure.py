"""The plots of a study, as a PNG file."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mae_curriculum.report.figures import empty_figure, line_style, save
from mae_curriculum.report.study import Study, StudyRun

LEGEND_COLUMNS = 3

TITLES = {"images": "images", "flops": "training FLOPs", "train_seconds": "seconds of training"}


def draw_study(path: Path, study: Study) -> None:
    """Draw the kNN accuracy during pretraining, and the loss, against what they cost: means over the seeds."""
    legend_rows = ceil(len(study.variants) / LEGEND_COLUMNS)
    figure = empty_figure(6 * len(study.axes), 7.3 + 0.2 * legend_rows)
    figure.suptitle(f"{study.name}: means over the seeds, with the standard deviation", fontsize=11)
    panels = figure.subplots(2, len(study.axes), sharey="row", squeeze=False)
    for column, axis in enumerate(study.axes):
        top, bottom = panels[:, column]
        for number, runs in enumerate(study.variants.values()):
            style: dict[str, Any] = {**line_style(number), "linewidth": 1.3}
            accuracies = 100 * np.array([_from_start(run) for run in runs])
            costs = _mean([[0.0] * _has_start(run) + run.evaluations[axis] for run in runs])
            top.errorbar(costs, accuracies.mean(axis=0), accuracies.std(axis=0, ddof=len(runs) > 1), capsize=2, **style)
            places = runs[0].losses[axis]  # those of other runs may differ
            bottom.plot(
                places, _mean([np.interp(places, run.losses[axis], run.losses["loss"]) for run in runs]), **style
            )
        bottom.set(xlabel=TITLES[axis], yscale="log")
        for panel in (top, bottom):
            panel.grid(alpha=0.3)
            panel.set_xlim(0, None)
    panels[0][0].set_ylabel("kNN accuracy\nduring pretraining, %")
    panels[1][0].set_ylabel("loss (not comparable\nbetween sizes or targets)")
    lines = [panels[1][0].plot([], [], **line_style(number))[0] for number in range(len(study.variants))]
    figure.legend(lines, list(study.variants), loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize=8)
    save(figure, path)


def _has_start(run: StudyRun) -> bool:
    return run.untrained is not None


def _from_start(run: StudyRun) -> list[float]:
    """Return the kNN accuracies of a run, that of the untrained encoder first if it was measured."""
    start = [] if run.untrained is None else [run.untrained]
    return [*start, *run.evaluations["knn"]]


def _mean(curves: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Return the mean of the curves of several seeds, which have the same steps."""
    mean: NDArray[np.float64] = np.mean(np.asarray(curves, np.float64), axis=0)
    return mean
