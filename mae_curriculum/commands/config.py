"""Settings of the commands that are neither training nor evaluation of a checkpoint."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import RUNS_IMAGES, DataConfig
from mae_curriculum.evaluation.config import KnnConfig
from mae_curriculum.png import check_png
from mae_curriculum.precision import Precision
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.tracking.config import MAX_IMAGES


@dataclass(frozen=True)
class ExportConfig:
    """Export of an encoder, or of the whole autoencoder."""

    checkpoint: Path
    """Run folder, or any checkpoint that can be imported."""
    out: Path
    """File to write (timm: .safetensors, mae: .pth) or folder (hf, hf_mae)."""
    heads: int | None = None
    """Attention heads of the encoder, where the checkpoint does not show them."""
    format: Literal["timm", "hf", "hf_mae", "mae"] = "timm"
    """timm: encoder as safetensors. hf: transformers' ViTModel. hf_mae: its ViTMAEForPreTraining. mae: the layout of
    facebookresearch/mae, decoder included."""

    def __post_init__(self) -> None:
        wanted = {"timm": ".safetensors", "mae": ".pth"}.get(self.format, "")
        if self.out.suffix != wanted:
            raise ConfigError(f"out: --format {self.format} writes a {wanted or 'folder'}, got '{self.out}'")
        if self.out.exists():
            raise ConfigError(f"out: {self.out} exists; remove it or choose another")
        if self.format.startswith("hf") and find_spec("transformers") is None:
            raise ConfigError(f"format {self.format} needs transformers: pip install 'mae-curriculum[hf]'")


@dataclass(frozen=True)
class PlanConfig(PretrainConfig):
    """The plan of a pretraining run: the run's own settings, and these."""

    json: bool = False
    """Print one JSON object instead of a table."""
    devices: int = 1
    """Processes that the run will have, which share each batch."""
    rate: float = 1000.0
    """Images/s that all devices together train at full size; smaller stages go faster by their FLOPs."""
    picture: Path | None = None
    """PNG file to draw the curriculum into, with the first image of the data as each stage sees it; null for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.devices < 1:
            raise ConfigError(f"devices must be at least 1, got {self.devices}")
        if self.rate <= 0:
            raise ConfigError(f"rate must be above 0 images/s, got {self.rate}")
        check_png("picture", self.picture)


@dataclass(frozen=True)
class BenchConfig(PretrainConfig):
    """The speed of a pretraining run's stages, on random images: the run's own settings, and these."""

    rounds: int = 7
    """Times that each stage is measured, in turn with the others; medians are told."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise ConfigError(f"rounds must be at least 1, got {self.rounds}")


@dataclass(frozen=True)
class EvaluateConfig:
    """kNN accuracy of an encoder."""

    checkpoint: Path
    """Run folder, or any checkpoint that can be imported."""
    run: Path | None = None
    """Folder for results.json; null for the checkpoint's own, where it is a run folder."""
    data: DataConfig = DataConfig(source=RUNS_IMAGES)
    """The images; source `run` takes the run's own, with its normalisation."""
    knn: KnnConfig = KnnConfig()
    """The classification."""
    precision: Precision = "auto"
    """Arithmetic of the encoder, as in pretraining."""
    heads: int | None = None
    """Attention heads of the encoder, where the checkpoint does not show them."""

    def __post_init__(self) -> None:
        if self.knn.every_epochs is not None:
            raise ConfigError("knn.every_epochs is for pretraining; leave it out here")


@dataclass(frozen=True)
class ReconstructConfig:
    """A picture of what a masked autoencoder makes of images: input, masked, reconstruction, error."""

    checkpoint: Path
    """Run folder, or any checkpoint with a decoder that can be imported."""
    images: tuple[Path, ...]
    """Image files, 1 to 64; the middle of each is cut to the model's shape, at its full size."""
    out: Path | None = None
    """PNG file; null for pictures/reconstruction.png of the run folder, or reconstruction.png here if it is none."""
    seed: int = 0
    """Of the places of the hidden patches."""
    heads: int | None = None
    """Attention heads of the encoder, where the checkpoint does not show them."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.images) <= MAX_IMAGES:
            raise ConfigError(f"images: give 1 to {MAX_IMAGES} image files, got {len(self.images)}")
        check_png("out", self.out)
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be in 0..2**63-1, got {self.seed}")


@dataclass(frozen=True)
class ReportConfig:
    """One HTML page about runs: `python -m mae_curriculum report RUN... [--baseline RUN] [--out FILE]`."""

    runs: tuple[Path, ...]
    """Run folders."""
    baseline: Path | None = None
    """Folder of the run that the others are held against; it may be one of them."""
    out: Path | None = None
    """Where the page is written; null for report.html in the first run's folder."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("runs: name at least one, as in `python -m mae_curriculum report RUN`")


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


@dataclass(frozen=True)
class ReplayConfig:
    """The first of the steps that ended a pretraining, since their gradients were not finite, once more."""

    run: Path
    """Folder of the run."""
