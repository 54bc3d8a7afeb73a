"""Settings of a pretraining run, and the clock that follows from them."""

from dataclasses import dataclass
from pathlib import Path

from mae_curriculum.config import ConfigError, exempt
from mae_curriculum.curriculum.schedule import Clock
from mae_curriculum.evaluation.config import KnnConfig
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.shape import ModelShape
from mae_curriculum.terminal import side
from mae_curriculum.training.config import TrainingConfig, build_training_clock, check_channels


@dataclass(frozen=True)
class PretrainConfig(TrainingConfig):
    """Pretrain a masked autoencoder with a curriculum."""

    run: Path = exempt(Path("runs/pretrain"))
    """Run folder. Running the same command again resumes the run."""
    micro_batch: int | None = exempt(None)
    """Maximum number of images that a device processes at once at full size (more at smaller sizes); larger batches
    accumulate gradients. null for no limit."""
    init: Path | None = None
    """Weights to start from: a run, RUN@EPOCHS, any checkpoint that `knn` reads, or the name of one in the cache of
    Hugging Face, such as vit_base_patch16_224.mae or facebook/vit-mae-base. The model follows from them where `model`
    leaves it open; another image size, patch size or number of channels is converted. null for random weights."""
    init_decoder_epochs: int = 5
    """Equivalent epochs at the start in which a decoder that `init` lacks trains alone, while the encoder keeps its
    weights: gradients of a random decoder would ruin them."""
    stop_below_start: bool = False
    """End a run with `init` whose kNN accuracy stays below that of its start, for three evaluations in a row once the
    learning rate has warmed up; needs knn.every_epochs."""
    model: ModelConfig = ModelConfig()
    """Encoder, masking, decoder and target."""
    knn: KnnConfig = KnnConfig()
    """kNN accuracy, at the end and during the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_channels(self, self.model.channels)
        if self.init_decoder_epochs < 0:
            raise ConfigError(f"init_decoder_epochs must be at least 0, got {self.init_decoder_epochs}")
        if self.stop_below_start and (self.init is None or self.knn.every_epochs is None):
            raise ConfigError("stop_below_start compares with the start: it needs init and knn.every_epochs")


def build_clock(config: PretrainConfig, shape: ModelShape, *, images_per_epoch: int, processes: int = 1) -> Clock:
    """Build the clock of a pretraining run; raises ConfigError for stages that cannot be trained."""
    clock = build_training_clock(
        config,
        image_size=shape.encoder.image_size,
        patch_size=shape.encoder.patch_size,
        images_per_epoch=images_per_epoch,
        processes=processes,
        mask_ratio=config.model.mask_ratio,
    )
    for span, stage in zip(clock.spans, config.curriculum.stages, strict=True):
        if span.size == shape.encoder.patch_size:
            raise ConfigError(
                f"curriculum.stages: size {stage.size} is a single patch here ({side(span.size)} px), so nothing could "
                "be masked; make it larger, or model.patch_size smaller"
            )
    return clock
