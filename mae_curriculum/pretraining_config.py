"""Settings of a pretraining run."""

from dataclasses import dataclass
from pathlib import Path

from mae_curriculum.config import exempt
from mae_curriculum.evaluation.config import KnnConfig
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.training.config import TrainingConfig, check_channels


@dataclass(frozen=True)
class PretrainConfig(TrainingConfig):
    """Pretraining of a masked autoencoder under a curriculum."""

    run: Path = exempt(Path("runs/pretrain"))
    """Folder of the run. Starting again with the same folder and settings continues the run."""
    model: ModelConfig = ModelConfig()
    """Encoder, masking, decoder, target."""
    knn: KnnConfig = KnnConfig()
    """The kNN accuracy, at the end and on the way."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_channels(self, self.model.channels)
