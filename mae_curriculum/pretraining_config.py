"""Settings of a pretraining run, what they leave to the images, and the clock that follows from them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from mae_curriculum.config import ConfigError, exempt, leaves, load_file, plain
from mae_curriculum.curriculum.clock import Clock, stage_size
from mae_curriculum.curriculum.config import REFERENCE_SIZE, Curriculum, Stage
from mae_curriculum.data.config import RUNS_IMAGES
from mae_curriculum.data.contents import Contents
from mae_curriculum.evaluation.config import KnnConfig
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.shape import MAE_DECODER, ModelShape
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.terminal import side
from mae_curriculum.training.choices import choose_batch_size, choose_epochs, choose_model
from mae_curriculum.training.config import TrainingConfig, build_training_clock, check_channels
from mae_curriculum.weights.run_settings import resolve_source, run_settings

EFFICIENTTRAIN = (Stage(0.6, 160), Stage(0.2, 192), Stage(0.2, 224))
"""EfficientTrain's stages (arXiv:2211.09703)."""

CHOSEN = ("name", "image_size", "patch_size", *MAE_DECODER)
"""Settings of the model that follow from the images where they and its name are null."""


@dataclass(frozen=True)
class PretrainConfig(TrainingConfig):
    """Pretrain a masked autoencoder with a curriculum."""

    run: Path = exempt(Path("runs/pretrain"))
    """Run folder. Running the same command again resumes the run."""
    curriculum: Curriculum = Curriculum(stages=EFFICIENTTRAIN)
    """Image size and augmentation over the run, given inline or as the name or path of a curriculum file; `none` is
    plain MAE."""
    micro_batch: int | None = exempt(256)
    """Maximum number of images that a device processes at once at full size (more at smaller sizes); larger batches
    accumulate gradients. null for no limit."""
    init: Path | None = None
    """Weights to start from: a run, RUN@EPOCHS, any checkpoint that `knn` reads, or the name of one in the cache of
    Hugging Face, such as vit_base_patch16_224.mae or facebook/vit-mae-base. The model follows from them where `model`
    leaves it open; another image size, patch size or number of channels is converted. The images are those of the run,
    with as many channels as there, unless data.source names others. null for random weights."""
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
        if self.init is not None:
            object.__setattr__(self, "init", Path(self.init))  # as `run`
            if self.data.source == RUNS_IMAGES:
                self._take_images(self.init)
        check_channels(self, self.model.channels)
        if self.init_decoder_epochs < 0:
            raise ConfigError(f"init_decoder_epochs must be at least 0, got {self.init_decoder_epochs}")
        if self.stop_below_start and (self.init is None or self.knn.every_epochs is None):
            raise ConfigError("stop_below_start compares with the start: it needs init and knn.every_epochs")

    def _take_images(self, init: Path) -> None:
        """Take the images of the run that this one starts from, and their number of channels if that is left open."""
        object.__setattr__(self, "data", resolve_source(self.data, init))
        channels = run_settings(init).get("model", {}).get("channels")
        if self.model.channels == ModelConfig.channels and isinstance(channels, int):
            object.__setattr__(self, "model", replace(self.model, channels=channels))


P = TypeVar("P", bound=PretrainConfig)


def with_choices(config: P, contents: Contents) -> P:
    """Return settings whose model, batch size and epochs fit the images where they were null.

    The model of a run that starts from weights follows from these instead.
    """
    images = contents.train.images
    batch_size = config.batch_size or choose_batch_size(images)
    return replace(
        config,
        model=choose_model(config.model, contents) if config.init is None else config.model,
        batch_size=batch_size,
        epochs=config.epochs or choose_epochs(images, batch_size),
    )


def with_choices_of_run(config: P) -> P:
    """Return settings with what their run chose when it started, where they are null: a resumed run stays as it is."""
    folder = RunFolder(config.run)
    if not folder.config.exists() or folder.info.get("command") != "pretrain":
        return config
    saved, model = load_file(PretrainConfig, folder.config), config.model
    if model.name is None and config.init is None:
        model = replace(model, **{key: getattr(saved.model, key) for key in CHOSEN if getattr(model, key) is None})
    return replace(
        config, model=model, batch_size=config.batch_size or saved.batch_size, epochs=config.epochs or saved.epochs
    )


def list_choices(config: PretrainConfig, resolved: PretrainConfig) -> dict[str, Any]:
    """Return the settings that `with_choices` chose; not MAE's decoder, which comes with a named model."""
    before, after = (dict(leaves(plain(each))) for each in (config, resolved))
    keys = [f"model.{key}" for key in CHOSEN] if config.model.name is None else []
    return {
        key: after[key] for key in [*keys, "batch_size", "epochs"] if before[key] is None and after[key] is not None
    }


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
        if not shape.holds_blocks(span.size):
            fitting = ", ".join(f"{size} ({side(pixels)} px)" for size, pixels in sizes_of_blocks(shape).items())
            raise ConfigError(
                f"curriculum.stages: size {stage.size} ({side(span.size)} px here) has a grid of "
                f"{side(shape.grid(span.size))} patches, which model.mask_block {shape.mask_block} does not divide; "
                f"sizes that fit: {fitting}"
            )
    return clock


def sizes_of_blocks(shape: ModelShape) -> dict[int, tuple[int, int]]:
    """Return the sizes of a stage, at the reference of 224 and in pixels, at which an image is made of whole blocks."""
    full, patch = shape.encoder.image_size, shape.encoder.patch_size
    sides = range(patch[0] * shape.mask_block, full[0] + 1, patch[0] * shape.mask_block)
    sizes = [round(REFERENCE_SIZE * pixels / full[0]) for pixels in sides]
    pixels = {size: stage_size(size, full, patch) for size in sizes}
    return {size: height_width for size, height_width in pixels.items() if shape.holds_blocks(height_width)}
