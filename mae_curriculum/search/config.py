"""Settings that all searches share, whatever is trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from mae_curriculum.config import ConfigError, exempt
from mae_curriculum.curriculum.config import REFERENCE_SIZE
from mae_curriculum.run.stop import parse_duration
from mae_curriculum.training.config import TrainingConfig

C = TypeVar("C", bound=TrainingConfig)
"""Training settings."""

Score = Literal["knn", "linear", "accuracy"]
"""What a candidate is judged by; accuracy is that of a classifier on its validation images."""


@dataclass(frozen=True)
class SearchOptions:
    """Settings of a search of a curriculum."""

    command: ClassVar[str] = "search"
    """What the folder of the search is claimed as."""
    part: ClassVar[str]
    """Name of the field with the training settings, and command that trains: pretrain or finetune."""

    run: Path = exempt(Path("runs/search"))
    """Folder of the search, with its training runs in `runs/`. Running the same command again resumes the search."""
    method: Literal["greedy", "sequential", "halving"] = "greedy"
    """greedy (EfficientTrain): stage by stage, the smallest size with which a full training run scores no less than the
    baseline. sequential (EfficientTrain++): stage by stage, the size that scores best at equal compute, in forks of the
    best run so far. halving: the better half of `curricula` goes on to runs of twice the epochs."""
    epochs: int | None = None
    """Equivalent epochs of a full training run; sequential divides them among its stages, and its finish comes on top.
    null for those of the training settings."""
    seeds: int = 1
    """Number of seeds, 0, 1, ...; each candidate is trained with each, and its score is the mean."""
    sizes: tuple[int, ...] = (96, 128, 160, 192, 224)
    """Candidates of greedy and sequential, at a reference of 224; whole patches."""
    stages: int = 5
    """Number of stages, of equal shares, whose sizes greedy and sequential choose."""
    tolerance: float = 0.0
    """How far below the baseline a score of greedy may be, 0 to 1."""
    finish_epochs: int = 1
    """Equivalent epochs at full size at the end of each run of sequential, before it is scored."""
    curricula: tuple[str, ...] = ()
    """Candidates of halving: names or paths of curriculum files, without their augmentation and resizing, which are
    those of the training settings."""
    time_limit: str | None = exempt(None)
    """Time after which the search stops, so that it can be resumed: minutes, HH:MM:SS or D-HH:MM:SS; null for none."""
    dry_run: bool = exempt(False)
    """Print the budget, and do nothing else."""
    json: bool = exempt(False)
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"seeds must be at least 1, got {self.seeds}")
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"epochs must be at least 1 or null, got {self.epochs}")
        if self.time_limit is not None:
            parse_duration(self.time_limit)
        if self.training.time_limit is not None:
            raise ConfigError(f"{self.part}.time_limit: a search has one limit for all its runs, --time_limit")
        if self.method == "sequential" and self.training.optim.warmup_epochs is not None:
            raise ConfigError(
                f"{self.part}.optim.warmup_epochs: real epochs depend on the sizes, but the candidates of sequential "
                f"share their warm-up; set it to null, and {self.part}.optim.warmup to a share of the run"
            )
        if self.tolerance and self.method != "greedy":
            raise ConfigError(f"tolerance is for greedy, which compares with a baseline; leave it out of {self.method}")
        if not 0 <= self.tolerance <= 1:
            raise ConfigError(f"tolerance is a difference of accuracies, 0 to 1, got {self.tolerance}")
        if self.method == "halving":
            self._check_curricula()
        else:
            self._check_sizes()

    @property
    def training(self) -> TrainingConfig:
        """The training settings."""
        settings: TrainingConfig = getattr(self, self.part)
        return settings

    def _check_curricula(self) -> None:
        names = [Path(name).stem for name in self.curricula]
        if len(names) < 2 or len({*names}) < len(names):
            raise ConfigError(f"curricula: two or more files with different names, got {list(self.curricula)}")

    def _check_sizes(self) -> None:
        if self.curricula:
            raise ConfigError(f"curricula are for halving; leave them out of {self.method}, which builds its own")
        if len(self.sizes) < 2 or len({*self.sizes}) < len(self.sizes):
            raise ConfigError(f"sizes: two or more, all different, got {list(self.sizes)}")
        if not all(0 < size <= REFERENCE_SIZE for size in self.sizes):
            raise ConfigError(f"sizes are in 1..{REFERENCE_SIZE}, where that is full size; got {list(self.sizes)}")
        if self.stages < 2:
            raise ConfigError(f"stages must be at least 2, got {self.stages}")
        if self.finish_epochs < 1:
            raise ConfigError(f"finish_epochs must be at least 1, got {self.finish_epochs}")
