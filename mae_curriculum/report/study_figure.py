"""The plots of a study, as a PNG file."""

from pathlib import Path
from typing import Any

from mae_curriculum.report.figures import empty_figure, line_style, save
from mae_curriculum.report.study import AXES, Study

TITLES = {"images": "images", "flops": "training FLOPs", "train_seconds": "seconds of training"}


def draw_study(path: Path, study: Study) -> None:
    """Draw kNN accuracy and loss of all runs against images, FLOPs and training seconds; a style for each variant."""
    figure = empty_figure(12, 7)
    figure.suptitle(f"{study.name}: each line is a run; runs of a variant look alike", fontsize=11)
    axes = figure.subplots(2, len(AXES), sharey="row")
    for column, axis in enumerate(AXES):
        for number, runs in enumerate(study.variants.values()):
            style: dict[str, Any] = {**line_style(number), "linewidth": 1.2, "alpha": 0.8}
            for run in runs:
                top, bottom = axes[0][column], axes[1][column]
                start = [] if run.untrained is None else [run.untrained]
                accuracies = [100 * value for value in (*start, *run.evaluations["knn"])]
                top.plot([0] * len(start) + run.evaluations[axis], accuracies, marker=".", **style)
                bottom.plot(run.losses[axis], run.losses["loss"], **style)
        axes[1][column].set_xlabel(TITLES[axis])
        for row in axes:
            row[column].grid(alpha=0.3)
            row[column].set_xlim(0, None)
    axes[0][0].set_ylabel("kNN accuracy, %")
    axes[1][0].set_ylabel("loss (not comparable between sizes)")
    lines = [axes[1][0].plot([], [], **line_style(number))[0] for number in range(len(study.variants))]
    figure.legend(lines, list(study.variants), loc="outside lower center", ncols=2, fontsize=8)
    save(figure, path)
