"""Settings of all commands except training."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import DataConfig
from mae_curriculum.evaluation.config import Block, KnnConfig, PlanOptions, Pool
from mae_curriculum.png import check_png
from mae_curriculum.precision import Precision
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.search.config import SearchOptions
from mae_curriculum.tracking.config import MAX_IMAGES
from mae_curriculum.weights.config import AutoencoderHints, EncoderHints


@dataclass(frozen=True)
class ExportConfig(AutoencoderHints):
    """Export an encoder or the whole autoencoder."""

    checkpoint: Path = field(kw_only=True)
    """Run folder, or any other supported checkpoint."""
    out: Path = field(kw_only=True)
    """Output file (timm: .safetensors, mae: .pth) or folder (hf, hf_mae)."""
    format: Literal["timm", "hf", "hf_mae", "mae"] = "timm"
    """timm: encoder as safetensors. hf: transformers' ViTModel. hf_mae: transformers' ViTMAEForPreTraining. mae: the
    layout of facebookresearch/mae, decoder included."""

    def __post_init__(self) -> None:
        suffix = {"timm": ".safetensors", "mae": ".pth"}.get(self.format, "")
        if self.out.suffix != suffix:
            raise ConfigError(f"out: --format {self.format} writes a {suffix or 'folder'}, got '{self.out}'")
        if self.out.exists():
            raise ConfigError(f"out: {self.out} exists; remove it or choose another")
        if self.format.startswith("hf") and find_spec("transformers") is None:
            raise ConfigError(f"format {self.format} needs transformers: pip install 'mae-curriculum[hf]'")


@dataclass(frozen=True)
class PlanConfig(PlanOptions, PretrainConfig):
    """Plan a pretraining run and its cost, or compare several: `plan A.yaml B.yaml`."""

    picture: Path | None = None
    """PNG file for a figure of the curriculum, with the first training image as each stage sees it, or of the image
    sizes of several plans; null for none."""

    def __post_init__(self) -> None:
        PretrainConfig.__post_init__(self)
        PlanOptions.__post_init__(self)
        check_png("picture", self.picture)


@dataclass(frozen=True)
class BenchConfig(PretrainConfig):
    """Measure the speed of a run's stages on random images, and of loading your images."""

    rounds: int = 7
    """Number of measurements of each stage, interleaved with the others; the median is reported."""
    loading: bool = False
    """Measure also how fast images are loaded for each stage, beside MAE's own transform, and what limits the run."""
    original: str | None = None
    """What `data.source` was packed from, a source too: MAE's own transform is then measured on these images; null for
    those of `data.source`."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.original is not None and not self.loading:
            raise ConfigError("original is compared with where loading is measured; add --loading true")
        if self.rounds < 1:
            raise ConfigError(f"rounds must be at least 1, got {self.rounds}")


@dataclass(frozen=True)
class EvaluateConfig(EncoderHints):
    """Measure the kNN accuracy of an encoder."""

    checkpoint: Path = field(kw_only=True)
    """Run folder, or any other supported checkpoint."""
    run: Path | None = None
    """Folder for results.json; null for the checkpoint's folder, if it is a run folder."""
    data: DataConfig = DataConfig()
    """Labeled images; source `run` uses those of the checkpoint's run, with its normalization."""
    block: Block = -1
    """The last block that is used, indexed as in Python; the encoder's final norm follows it. Or all, to
    measure each block in one pass over the images."""
    knn: KnnConfig = KnnConfig()
    """Settings of the kNN classifier."""
    precision: Precision = "auto"
    """Precision of the encoder, as in pretraining."""

    def __post_init__(self) -> None:
        if self.knn.every_epochs is not None:
            raise ConfigError(f"knn.every_epochs is for pretraining only, got {self.knn.every_epochs}; omit it")


@dataclass(frozen=True)
class EmbedConfig(EncoderHints):
    """Write an encoder's features of all images to one file, with names and labels."""

    checkpoint: Path = field(kw_only=True)
    """Run folder, or any other supported checkpoint."""
    out: Path = field(kw_only=True)
    """Output file, .parquet (needs pyarrow), .npz or .safetensors; a card of the same name and .json is beside it."""
    data: DataConfig = DataConfig()
    """Images, training and validation; source `run` uses those of the checkpoint's run, with its normalization."""
    pool: Pool = "avg"
    """avg: mean of the patch tokens. token: (first) class token. class_avg: mean of several class tokens. tokens: all
    patch tokens."""
    block: int = -1
    """The last block that is used, indexed as in Python; the encoder's final norm follows it."""
    neighbors: int | None = None
    """Number of most similar images to add to each, with a contact sheet of a few; null for none."""
    batch_images: int = 256
    """Images per batch on each device; a batch is also what an interrupted process has to compute again."""
    precision: Precision = "auto"
    """Precision of the encoder, as in pretraining; vectors are always stored as float32."""

    def __post_init__(self) -> None:
        if self.out.suffix not in (".parquet", ".npz", ".safetensors"):
            raise ConfigError(f"out: the file name must end in .parquet, .npz or .safetensors, got '{self.out}'")
        if self.out.suffix == ".parquet" and find_spec("pyarrow") is None:
            raise ConfigError(".parquet needs pyarrow: pip install 'mae-curriculum[parquet]', or choose .npz for out")
        if self.batch_images < 1:
            raise ConfigError(f"batch_images must be at least 1, got {self.batch_images}")
        if self.neighbors is not None and self.neighbors < 1:
            raise ConfigError(f"neighbors must be at least 1 or null, got {self.neighbors}")
        if self.neighbors is not None and self.pool == "tokens":
            raise ConfigError("neighbors need one vector per image, not pool tokens; choose avg or token")


@dataclass(frozen=True)
class PackConfig:
    """Pack the images of any source into tars, which suit network disks."""

    out: Path = field(kw_only=True)
    """Folder for the tars, their index and manifest.json; afterwards a `data.source`."""
    data: DataConfig = field(kw_only=True)
    """Images, training and validation."""
    short_side: int | None = 256
    """Larger images are reduced to this shorter side, pixels; null for no reduction."""
    quality: int = 90
    """Quality of JPEGs of reduced images, 1 to 100."""
    format: Literal["jpeg", "npy"] = "jpeg"
    """jpeg: store reduced images as JPEG, and the others as they are. npy: store the pixels of every image, which
    training need not decode; about eight times as large, for data that fit into memory, or onto a fast disk. Files that
    are .npy already stay as they are."""
    images_per_tar: int = 10_000
    """Images in each tar; a tar is also what an interrupted command has to pack again."""

    def __post_init__(self) -> None:
        if self.short_side is not None and self.short_side < 2:
            raise ConfigError(f"short_side must be at least 2 pixels or null, got {self.short_side}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality must be in 1..100, got {self.quality}")
        if self.images_per_tar < 1:
            raise ConfigError(f"images_per_tar must be at least 1, got {self.images_per_tar}")


@dataclass(frozen=True)
class ReconstructConfig(AutoencoderHints):
    """Draw reconstructions of images: input, visible patches, reconstruction, error.

    Those of a model with HOG targets are of the input's HOG.
    """

    checkpoint: Path = field(kw_only=True)
    """Run folder, or any supported checkpoint that includes a decoder."""
    images: tuple[Path, ...] = field(kw_only=True)
    """Image files, 1 to 64; each is center-cropped and resized to the model's full size."""
    out: Path | None = None
    """PNG file; null for pictures/reconstruction.png in the run folder, or reconstruction.png if there is none."""
    seed: int = 0
    """Seed for the masks."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.images) <= MAX_IMAGES:
            raise ConfigError(f"images must be 1 to {MAX_IMAGES} image files, got {len(self.images)}")
        check_png("out", self.out)
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be in 0..2**63-1, got {self.seed}")


@dataclass(frozen=True)
class ReportConfig:
    """Write an HTML report on runs, compared with a baseline."""

    runs: tuple[Path, ...]
    """Run folders."""
    baseline: Path | None = None
    """Folder of the run that the others are compared with; can be one of `runs`."""
    out: Path | None = None
    """Output file; null for report.html in the first run's folder."""
    reference: Path | None = None
    """File for reference curves, .json, made from the runs instead of a page: at least three finished pretrainings that
    differ in their seeds. Those in configs/reference/ are compared with every pretraining of the same settings."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("runs: got none; name one or more run folders, as in `mae_curriculum report RUN`")


@dataclass(frozen=True)
class PlotConfig:
    """Plot the loss of runs against images, FLOPs and training seconds."""

    runs: tuple[Path, ...]
    """Run folders of pretraining or fine-tuning."""
    out: Path = Path("loss.png")
    """PNG file."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("runs: got none; name one or more run folders")
        check_png("out", self.out)


@dataclass(frozen=True)
class ReplayConfig:
    """Replay the first of the steps with non-finite loss or gradient that ended a run."""

    run: Path
    """Run folder."""


@dataclass(frozen=True)
class SearchConfig(SearchOptions):
    """Search a curriculum by pretraining with candidates, scored by accuracy."""

    part: ClassVar = "pretrain"

    pretrain: PretrainConfig = PretrainConfig()
    """Settings of the pretrainings, given inline or as a recipe; run, seed, epochs and the curriculum's sizes and pace
    are the search's."""
    score: Literal["knn", "linear"] = "knn"
    """Accuracy that decides: kNN, or linear, of logistic regression on the features. `pretrain.knn` sets the images and
    the pool of both; on large data, `pretrain.knn.images` limits what the regression takes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrain.stop_below_start:
            raise ConfigError("pretrain.stop_below_start would end the search with a run; set it to false")
