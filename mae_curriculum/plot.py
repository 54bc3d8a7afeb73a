"""The loss of runs against what it took: images, FLOPs, seconds."""

from dataclasses import dataclass
from pathlib import Path

from mae_curriculum.checkpoint import RunFolder
from mae_curriculum.config import ConfigError
from mae_curriculum.pictures import Curve, check_png, draw_losses, drawable
from mae_curriculum.tracking import Journal


@dataclass(frozen=True)
class PlotConfig:
    """The loss of one or several runs against images, FLOPs and training seconds."""

    runs: tuple[Path, ...]
    """Folders of runs of pretraining, or of fine-tuning."""
    out: Path = Path("loss.png")
    """PNG file."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("runs: give one or more run folders")
        check_png("out", self.out)


def plot(config: PlotConfig) -> int:
    """Draw the picture; returns the exit code."""
    draw_losses(config.out, [read_curve(run) for run in config.runs])
    print(drawable(str(config.out)))
    return 0


def read_curve(run: Path) -> Curve:
    """Read the loss of a run off its journal; raises ConfigError if there is none, or if FLOPs were not counted."""
    folder = RunFolder(run)
    if not folder.config.exists():
        raise ConfigError(f"{run} is no run folder: it has no config.yaml")
    reports = [row for row in Journal(folder.journal).rows() if row["event"] == "step" and row["loss"] is not None]
    if not reports:
        raise ConfigError(f"{run} has reported no loss yet")
    if reports[0].get("flops") is None:
        raise ConfigError(f"{run} counted no FLOPs; plot takes runs of pretraining and fine-tuning")
    stages = [report["stage"] for report in reports]
    return Curve(
        str(run),
        loss=[report["loss"] for report in reports],
        images=[report["images"] for report in reports],
        flops=[report["flops"] for report in reports],
        train_seconds=[report["train_seconds"] for report in reports],
        stage_firsts=[stages.index(stage) for stage in sorted(set(stages))],
    )
