"""Settings of a search."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mae_curriculum.config import ConfigError, exempt
from mae_curriculum.curriculum.config import REFERENCE_SIZE
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.run.stop import parse_duration

Score = Literal["knn", "linear"]
"""What a candidate is judged by."""


@dataclass(frozen=True)
class SearchConfig:
    """Search a curriculum by pretraining with candidates, scored by accuracy."""

    run: Path = exempt(Path("runs/search"))
    """Folder of the search, with its pretrainings in `runs/`. Running the same command again resumes the search."""
    method: Literal["greedy", "sequential", "halving"] = "greedy"
    """greedy (EfficientTrain): stage by stage, the smallest size with which a whole pretraining scores no less than the
    baseline. sequential (EfficientTrain++): stage by stage, the size that scores best at equal compute, in forks of the
    best run so far. halving: the better half of `curricula` goes on to a pretraining of twice the epochs."""
    pretrain: PretrainConfig = PretrainConfig()
    """Settings of the pretrainings, given inline or as a recipe; run, seed, epochs and the curriculum's sizes and pace
    are the search's."""
    score: Score = "knn"
    """Accuracy that decides: kNN, or linear, of logistic regression on the features. `pretrain.knn` sets the images and
    the pool of both; on large data, `pretrain.knn.images` limits what the regression takes."""
    epochs: int | None = None
    """Equivalent epochs of a whole pretraining; sequential divides them among its stages, and its finish comes on top.
    null for those of `pretrain`."""
    seeds: tuple[int, ...] = (0,)
    """Each candidate is pretrained with each seed; its score is the mean."""
    sizes: tuple[int, ...] = (96, 128, 160, 192, 224)
    """Candidates of greedy and sequential, at a reference of 224; whole patches."""
    stages: int = 5
    """Number of stages, of equal shares, whose sizes greedy and sequential choose."""
    tolerance: float = 0.0
    """How far below the baseline a score of greedy may be, 0 to 1."""
    finish_epochs: int = 1
    """Equivalent epochs at full size at the end of each pretraining of sequential, before it is scored."""
    curricula: tuple[str, ...] = ()
    """Candidates of halving: names or paths of curriculum files; augmentation and resizing are those of `pretrain`."""
    time_limit: str | None = exempt(None)
    """Time after which the search stops, so that it can be resumed: minutes, HH:MM:SS or D-HH:MM:SS; null for none."""
    dry_run: bool = exempt(False)
    """Print the budget, and do nothing else."""
    json: bool = exempt(False)
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        if not self.seeds or len({*self.seeds}) < len(self.seeds):
            raise ConfigError(f"seeds: at least one, all different, got {list(self.seeds)}")
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"epochs must be at least 1 or null, got {self.epochs}")
        if self.time_limit is not None:
            parse_duration(self.time_limit)
        if self.pretrain.time_limit is not None:
            raise ConfigError("pretrain.time_limit: a search has one limit for all its runs, --time_limit")
        if self.pretrain.stop_below_start:
            raise ConfigError("pretrain.stop_below_start would end the search with a run; set it to false")
        if self.method == "sequential" and self.pretrain.optim.warmup_epochs is not None:
            raise ConfigError(
                "pretrain.optim.warmup_epochs: real epochs depend on the sizes, but the candidates of sequential share "
                "their warm-up; set it to null, and pretrain.optim.warmup to a share of the run"
            )
        if self.tolerance and self.method != "greedy":
            raise ConfigError(f"tolerance is for greedy, which compares with a baseline; leave it out of {self.method}")
        if not 0 <= self.tolerance <= 1:
            raise ConfigError(f"tolerance is a difference of accuracies, 0 to 1, got {self.tolerance}")
        if self.method == "halving":
            self._check_curricula()
        else:
            self._check_sizes()

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
