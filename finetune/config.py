"""Settings of fine-tuning, probing, few-shot evaluation, predictions, export and import."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mae_curriculum.config import ConfigError, exempt
from mae_curriculum.curriculum.config import REFERENCE_SIZE, Augmentation, Curriculum
from mae_curriculum.data.config import DataConfig
from mae_curriculum.evaluation.config import Block, PlanOptions, VectorPool
from mae_curriculum.precision import Precision
from mae_curriculum.training.config import OptimConfig, TrainingConfig
from mae_curriculum.weights.config import AutoencoderHints, EncoderHints

Kind = Literal["linear", "attentive", "ep"]
Pool = Literal["token", "avg"]


@dataclass(frozen=True)
class ClassifierConfig:
    """The classifier."""

    name: str | None = None
    """Any timm classifier that accepts images of different sizes; null for the checkpoint's ViT."""
    image_size: int | tuple[int, int] | None = None
    """Full image size in pixels, a side or [height, width]; null for the checkpoint's, or what `name` implies."""
    patch_size: int | None = None
    """Side of a patch in pixels; null for the checkpoint's, or what `name` implies. Pretrained ones are resampled."""
    channels: int | None = None
    """Number of image channels; null for the checkpoint's, or 3."""
    pool: Pool | None = None
    """Input to a ViT's head, class token or patch mean; null for avg with a checkpoint, otherwise timm's default."""
    drop_path: float = 0.1
    """Fraction of residual branches dropped in training, rising with depth to this value; at least 0 and below 1."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments for the timm model, such as {embed_dim: 96, depths: [2, 2]}."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"model.drop_path must be at least 0 and below 1, got {self.drop_path}")
        for name in ("image_size", "patch_size", "channels"):
            value = getattr(self, name)
            smallest = min(value) if isinstance(value, tuple) else value
            if smallest is not None and smallest < 1:
                raise ConfigError(f"model.{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class LabeledConfig(EncoderHints):
    """Settings that fine-tuning, probing and few-shot evaluation share."""

    data: DataConfig = DataConfig()
    """Labeled images; source `run` uses those of the checkpoint's run, with its normalization."""
    crop: float = 0.875
    """Fraction of an image's shorter side kept in evaluation, above 0 and at most 1; MAE keeps 224 of 256 pixels."""
    evaluation_batch: int = exempt(256)
    """Images per evaluation batch on each device."""
    seeds: int = exempt(1)
    """Number of runs, with seeds `seed`, `seed + 1`, ...; if there are several, each gets a subfolder."""

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ConfigError(f"crop must be above 0 and at most 1, got {self.crop}")
        if min(self.evaluation_batch, self.seeds) < 1:
            raise ConfigError(f"evaluation_batch, seeds: at least 1, got {self.evaluation_batch}, {self.seeds}")


@dataclass(frozen=True)
class FinetuneConfig(LabeledConfig, TrainingConfig):
    """Fine-tune a classifier, by default with MAE's recipe for ViT-B."""

    run: Path = exempt(Path("runs/finetune"))
    """Run folder. Running the same command again resumes the run."""
    checkpoint: Path | None = None
    """Pretraining run, or any ViT checkpoint that can be imported; null trains `model.name` from scratch."""
    model: ClassifierConfig = ClassifierConfig()
    """The classifier."""
    curriculum: Curriculum = Curriculum(
        augmentation=Augmentation(randaug=(9.0, 9.0), min_area=(0.08, 0.08), erasing=0.25)
    )
    """Image size and augmentation over the run, given inline or as the name or path of a curriculum file."""
    optim: OptimConfig = OptimConfig(base_lr=5e-4, min_lr=2.5e-7, warmup=0.05, betas=(0.9, 0.999))
    """Optimizer and learning rate."""
    layer_decay: float | None = None
    """Learning-rate factor per layer toward the input, above 0, at most 1; null for 0.65 with a checkpoint, else 1."""
    mixup: float = 0.8
    """Alpha of mixup (arXiv:1710.09412); 0 to disable. If cutmix is on too, each is used in half of the steps."""
    cutmix: float = 1.0
    """Alpha of cutmix (arXiv:1905.04899); 0 to disable."""
    smoothing: float = 0.1
    """Label smoothing: fraction of the target spread evenly over all classes, at least 0 and below 1."""
    drop_path_epochs: int | None = None
    """Equivalent epochs that `model.drop_path` is meant for: it is multiplied by `epochs` / drop_path_epochs, as in the
    scripts of EfficientTrain++ with 200; null for no scaling."""
    average_decay: float | None = None
    """Per-step decay, such as 0.9999, of an average of the weights, which is evaluated and kept; null for none."""
    batch_size: int | None = None
    """Images per optimizer step, across all devices. null chooses from the number of images: 64 of up to 4,000, MAE's
    1024 of ImageNet-1k."""
    epochs: int | None = None
    """Equivalent epochs: passes over the data that the same run without a curriculum would make. null chooses at least
    MAE's 100, and 1,000 steps."""
    evaluate_every_epochs: int = exempt(1)
    """Equivalent epochs between evaluations."""

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        LabeledConfig.__post_init__(self)
        _refuse_masks(self.curriculum)
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        if min(self.mixup, self.cutmix) < 0:
            raise ConfigError(f"mixup and cutmix must be at least 0, got {self.mixup}, {self.cutmix}")
        if self.data.repeats > 1 and max(self.mixup, self.cutmix) > 0:
            raise ConfigError(
                "data.repeats: mixup and cutmix would mix crops of one image; set both to 0, or repeats to 1"
            )
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"smoothing must be at least 0 and below 1, got {self.smoothing}")
        if self.average_decay is not None and not 0 < self.average_decay < 1:
            raise ConfigError(f"average_decay must be above 0 and below 1, or null, got {self.average_decay}")
        if self.evaluate_every_epochs < 1:
            raise ConfigError(f"evaluate_every_epochs must be at least 1, got {self.evaluate_every_epochs}")
        if self.drop_path_epochs is not None and self.drop_path_epochs < 1:
            raise ConfigError(f"drop_path_epochs must be at least 1 or null, got {self.drop_path_epochs}")
        if self.scaled_drop_path >= 1:
            raise ConfigError(
                f"model.drop_path {self.model.drop_path} for drop_path_epochs {self.drop_path_epochs} would be "
                f"{self.scaled_drop_path:.3g} for {self.epochs} epochs; it must stay below 1"
            )

    @property
    def scaled_drop_path(self) -> float:
        """Drop path for this number of epochs."""
        if self.drop_path_epochs is None or self.epochs is None:  # epochs are chosen later
            return self.model.drop_path
        return self.model.drop_path * self.epochs / self.drop_path_epochs


@dataclass(frozen=True)
class PlanConfig(PlanOptions, FinetuneConfig):
    """Plan a fine-tuning and its cost, or compare several: `plan A.yaml B.yaml`."""

    baseline_epochs: int | None = None
    """Epochs of the run without a curriculum that the plan is compared with; null for `epochs`."""

    def __post_init__(self) -> None:
        FinetuneConfig.__post_init__(self)
        PlanOptions.__post_init__(self)
        if self.baseline_epochs is not None and self.baseline_epochs < 1:
            raise ConfigError(f"baseline_epochs must be at least 1 or null, got {self.baseline_epochs}")


@dataclass(frozen=True)
class LinprobeConfig(LabeledConfig, TrainingConfig):
    """Train linear or attentive probes on a frozen encoder, by default with MAE's recipe.

    MAE's but for the crop: facebookresearch/mae draws one box and clips it to the image (mean area 0.53 on square
    images), here a box that does not fit is drawn again, as by torchvision (0.48).
    """

    run: Path = exempt(Path("runs/linprobe"))
    """Run folder. Running the same command again resumes the run."""
    checkpoint: Path = field(kw_only=True)
    """Pretraining run, or any ViT checkpoint that can be imported."""
    curriculum: Curriculum = Curriculum(augmentation=Augmentation(min_area=(0.08, 0.08)))
    """Image size and augmentation over the run, given inline or as the name or path of a curriculum file."""
    head: Kind = "linear"
    """linear: BatchNorm without affine parameters and a linear layer, trained with LARS, whose momentum is the first of
    `optim.betas`. attentive: attention over the patches with a learned query and a linear layer, trained with AdamW.
    ep: attention with several queries that are not projected (arXiv:2506.10178), likewise."""
    block: Block = -1
    """The last block that is used, indexed as in Python; the encoder's final norm follows it. Or all, for
    separate linear heads on each block."""
    grid: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
    """Learning rates as multiples of `optim.base_lr`: one head is trained with each, all on the same features. Batches
    smaller than MAE's need the larger ones, as the best learning rate of LARS hardly falls with the batch: 50 to 500
    for batches of 64."""
    pools: tuple[VectorPool, ...] = ("token", "avg")
    """Inputs to the linear heads, class token (token), patch mean (avg), or mean of several class tokens (class_avg):
    separate heads are trained on each."""
    held_out: float = 0.1
    """Fraction of training images held out to choose the best head, below 1; can be 0 only for a single head."""
    augment: bool = True
    """Use random crops and flips; if false, the encoder runs once over unchanged images and its features are cached."""
    optim: OptimConfig = OptimConfig(base_lr=0.1, warmup=0.11, weight_decay=0.0)
    """Optimizer and learning rate."""
    batch_size: int | None = None
    """Images per optimizer step, across all devices. null chooses from the number of images: 64 of up to 4,000, MAE's
    16384 of ImageNet-1k."""
    epochs: int | None = None
    """Passes over the images. null chooses at least MAE's 90, and 1,000 steps."""

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        LabeledConfig.__post_init__(self)
        _refuse_masks(self.curriculum)
        self._check_heads()
        if self.head != "linear":
            self._check_attention()
        if not self.augment:
            self._check_unchanged_images()

    def _check_heads(self) -> None:
        if not self.grid or min(self.grid) <= 0:
            raise ConfigError(f"grid: give at least one multiple of optim.base_lr, each above 0, got {list(self.grid)}")
        if not self.pools or len(set(self.pools)) < len(self.pools):
            raise ConfigError(f"pools: at least one of token, avg and class_avg, each once, got {list(self.pools)}")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out must be at least 0 and below 1, got {self.held_out}")
        several = self.head_count > 1 or self.block == "all"
        if several and self.held_out == 0:
            heads = "the heads of all blocks" if self.block == "all" else f"{self.head_count} heads"
            raise ConfigError(f"held_out: choosing among {heads} needs held-out images")
        if several and self.optim.clip_norm is not None:
            raise ConfigError("optim.clip_norm would clip all heads by one norm; omit it, or train a single head")

    def _check_attention(self) -> None:
        if not self.augment:
            raise ConfigError(
                f"augment: a head of kind {self.head} needs every patch, and these are not cached; leave it true"
            )
        if self.block != -1:
            raise ConfigError(f"block: heads with attention see the last block only, got {self.block}; omit it")
        if self.optim.base_lr > 0.01:
            raise ConfigError(
                f"optim.base_lr: heads with attention use AdamW, so at most 0.01; got {self.optim.base_lr}"
            )

    def _check_unchanged_images(self) -> None:
        sizes = [stage.size for stage in self.curriculum.stages]
        if self.curriculum.augmentation.randaug or sizes != [REFERENCE_SIZE]:
            raise ConfigError("augment: false uses unchanged images: curriculum needs one stage of 224 and no randaug")
        if self.data.repeats > 1:
            raise ConfigError("data.repeats: augment: false has no crops to repeat; omit it")

    @property
    def head_count(self) -> int:
        """Number of heads that are trained on each block."""
        return len(self.grid) * (len(self.pools) if self.head == "linear" else 1)


@dataclass(frozen=True)
class FewshotConfig(LabeledConfig):
    """Measure the few-shot accuracy of a frozen encoder."""

    run: Path = exempt(Path("runs/fewshot"))
    """Folder for results.json."""
    checkpoint: Path = field(kw_only=True)
    """Pretraining run, or any ViT checkpoint that can be imported."""
    block: Block = -1
    """The last block that is used, indexed as in Python; the encoder's final norm follows it. Or all, to
    measure each block in one pass over the images."""
    shots: tuple[float, ...] = (1, 5, 10)
    """Labels to train on: 1 and above are images per class; below 1, such as 0.01, a fraction of all images."""
    regularization: float = 1.0
    """Strength of the L2 penalty on standardized features, 1 / C in scikit-learn."""
    precision: Precision = "auto"
    """Precision of the encoder, as in pretraining."""
    seed: int = 0
    """Seed for the random selection of images."""
    seeds: int = 5
    """Number of random selections to average over, with seeds `seed`, `seed + 1`, ..."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shots or not all(0 < shots < 1 or (shots >= 1 and shots % 1 == 0) for shots in self.shots):
            raise ConfigError(f"shots: whole numbers of images per class, or shares below 1; got {list(self.shots)}")
        if self.regularization <= 0:
            raise ConfigError(f"regularization must be above 0, got {self.regularization}")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}")


@dataclass(frozen=True)
class PredictConfig:
    """Classify images with a fine-tuned or probed classifier."""

    checkpoint: Path = field(kw_only=True)
    """Run of `finetune` or `linprobe`, its best.safetensors, or a model folder of timm."""
    out: Path = field(kw_only=True)
    """CSV file of the predictions; each image is a row: file, class, probability, top5 (JSON), error."""
    data: DataConfig = DataConfig()
    """Images: all those of a folder, or the validation images of a named source; `run` uses the classifier's source."""
    precision: Precision = "auto"
    """Precision of the network, as in training."""
    evaluation_batch: int = 256
    """Images per batch on each device."""

    def __post_init__(self) -> None:
        if self.evaluation_batch < 1:
            raise ConfigError(f"evaluation_batch must be at least 1, got {self.evaluation_batch}")
        if self.out.suffix != ".csv":
            raise ConfigError(f"out: predictions are written to a .csv file, got '{self.out}'")
        _refuse_existing(self.out)


@dataclass(frozen=True)
class ExportConfig:
    """Export a fine-tuned or probed classifier."""

    checkpoint: Path = field(kw_only=True)
    """Run of `finetune` or `linprobe`, its best.safetensors, or a model folder of timm."""
    out: Path = field(kw_only=True)
    """Output folder (timm) or .onnx file (onnx)."""
    format: Literal["timm", "onnx"] = "timm"
    """timm: a model folder for timm and for transformers. onnx: a file for ONNX Runtime and others."""

    def __post_init__(self) -> None:
        suffix = {"onnx": ".onnx"}.get(self.format, "")
        if self.out.suffix != suffix:
            raise ConfigError(f"out: --format {self.format} writes a {suffix or 'folder'}, got '{self.out}'")
        _refuse_existing(self.out)
        if self.format == "onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
            raise ConfigError("format onnx needs onnx and onnxscript: pip install 'mae-curriculum[onnx]'")


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise ConfigError(f"out: {path} exists; remove it or choose another")


def _refuse_masks(curriculum: Curriculum) -> None:
    ratios = [stage.mask_ratio for stage in curriculum.stages if stage.mask_ratio is not None]
    if ratios:
        raise ConfigError(
            f"curriculum.stages: mask_ratio is for pretraining, where patches are hidden, got {ratios[0]}; omit it"
        )


@dataclass(frozen=True)
class ImportConfig(AutoencoderHints):
    """Import a checkpoint from facebookresearch/mae, Hugging Face, timm or this project."""

    checkpoint: Path = field(kw_only=True)
    """File or folder in any of these formats; the format is recognized from its keys."""
    run: Path = field(kw_only=True)
    """Folder of the new run."""
