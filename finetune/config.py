"""Settings of fine-tuning, probing, few-shot evaluation and import."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mae_curriculum.config import ConfigError, exempt
from mae_curriculum.curriculum.schedule import REFERENCE_SIZE, Augmentation, Curriculum
from mae_curriculum.data.config import RUNS_IMAGES, DataConfig
from mae_curriculum.precision import Precision
from mae_curriculum.training.config import OptimConfig, TrainingConfig


@dataclass(frozen=True)
class ClassifierConfig:
    """The classifier."""

    name: str | None = None
    """Any classifier of timm whose input size may vary; null for the ViT that the checkpoint holds."""
    image_size: int | tuple[int, int] | None = None
    """Full image size in pixels, a side or [height, width]; null for the checkpoint's, or the one of timm's name."""
    patch_size: int | None = None
    """Side of a patch, pixels; null for the checkpoint's, or the one of timm's name. Pretrained patches are
    resampled."""
    channels: int | None = None
    """Image channels; null for the checkpoint's, or 3."""
    pool: Literal["avg", "token"] | None = None
    """What a ViT's head sees: the mean of its patches or the class token; null for the mean after pretraining, and for
    timm's own choice from scratch."""
    drop_path: float = 0.1
    """Share of the residual branches dropped in training, growing with depth up to this, 0 to below 1."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm's model, such as {embed_dim: 96, depths: [2, 2]}."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"model.drop_path must be at least 0 and below 1, got {self.drop_path}")
        for name in ("patch_size", "channels"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"model.{name} must be at least 1, got {value}")
        if min(self.image_size if isinstance(self.image_size, tuple) else (self.image_size or 1,)) < 1:
            raise ConfigError(f"model.image_size must be at least 1, got {self.image_size}")


@dataclass(frozen=True)
class FinetuneConfig(TrainingConfig):
    """Fine-tuning of a classifier, with MAE's recipe for ViT-B by default."""

    run: Path = exempt(Path("runs/finetune"))
    """Folder of the run. Starting again with the same folder and settings continues the run."""
    checkpoint: Path | None = None
    """Pretraining run, or any checkpoint of a ViT that can be imported; null trains `model.name` from scratch."""
    heads: int | None = None
    """Attention heads of the encoder, where the checkpoint does not show them."""
    data: DataConfig = DataConfig(source=RUNS_IMAGES)
    """Images with classes; source `run` takes those of the checkpoint's run, with its normalisation."""
    model: ClassifierConfig = ClassifierConfig()
    """The classifier."""
    curriculum: Curriculum = Curriculum(
        augmentation=Augmentation(randaug=(9.0, 9.0), min_area=(0.08, 0.08), erasing=0.25)
    )
    """Image size and augmentation over the run: inline, or a path to its own file, laid over what stands here."""
    optim: OptimConfig = OptimConfig(base_lr=5e-4, min_lr=2.5e-7, warmup=0.05, betas=(0.9, 0.999))
    """The optimizer."""
    layer_decay: float | None = None
    """Each layer's learning rate as a multiple of the next one's, above 0 and at most 1; null for 0.65 after
    pretraining and 1 from scratch."""
    mixup: float = 0.8
    """Alpha of mixup (arXiv:1710.09412); 0 for none. With cutmix, half of the steps use either."""
    cutmix: float = 1.0
    """Alpha of cutmix (arXiv:1905.04899); 0 for none."""
    smoothing: float = 0.1
    """Share of a target that goes to all classes alike, 0 to below 1."""
    average_decay: float | None = None
    """Decay per step of a moving average of the weights, such as 0.9999, which is then what is evaluated and kept; null
    for none."""
    batch_size: int = 1024
    """Images per optimizer step, over all devices."""
    epochs: int = 100
    """Equivalent epochs."""
    evaluate_every_epochs: int = exempt(1)
    """Equivalent epochs between two evaluations."""
    crop: float = 0.875
    """Share of an image's shorter side that evaluation keeps, above 0 and at most 1: 224 of 256, as MAE."""
    evaluation_batch: int = exempt(256)
    """Images evaluated at once on each device."""
    seeds: int = exempt(1)
    """Runs to make, with seeds `seed`, `seed + 1`, ...; more than one have folders of their own in the run's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        if min(self.mixup, self.cutmix) < 0 or not 0 <= self.smoothing < 1:
            raise ConfigError(
                f"mixup and cutmix must be at least 0, smoothing at least 0 and below 1, got {self.mixup}, "
                f"{self.cutmix}, {self.smoothing}"
            )
        if self.average_decay is not None and not 0 < self.average_decay < 1:
            raise ConfigError(f"average_decay must be above 0 and below 1, or null, got {self.average_decay}")
        if not 0 < self.crop <= 1:
            raise ConfigError(f"crop must be above 0 and at most 1, got {self.crop}")
        for name in ("seeds", "evaluate_every_epochs", "evaluation_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


Kind = Literal["linear", "attentive"]
Pool = Literal["token", "avg"]


@dataclass(frozen=True)
class LinprobeConfig(TrainingConfig):
    """Probe of a frozen encoder, with MAE's recipe by default."""

    run: Path = exempt(Path("runs/linprobe"))
    """Folder of the run. Starting again with the same folder and settings continues the run."""
    checkpoint: Path = field(kw_only=True)
    """Pretraining run, or any checkpoint of a ViT that can be imported."""
    heads: int | None = None
    """Attention heads of the encoder, where the checkpoint does not show them."""
    data: DataConfig = DataConfig(source=RUNS_IMAGES)
    """Images with classes; source `run` takes those of the checkpoint's run, with its normalisation."""
    curriculum: Curriculum = Curriculum(augmentation=Augmentation(min_area=(0.08, 0.08)))
    """Image size and augmentation over the run: inline, or a path to its own file, laid over what stands here."""
    head: Kind = "linear"
    """linear: BatchNorm without affine and a linear layer, trained by LARS, whose momentum is the first of the betas.
    attentive: attention over the patches with a learned query, and a linear layer, trained by AdamW."""
    grid: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
    """Learning rates, as multiples of `optim.base_lr`: a head is trained with each, all on the same features."""
    pools: tuple[Pool, ...] = ("token", "avg")
    """What a linear head sees: the class token, the patches' mean; heads are trained for each."""
    held_out: float = 0.1
    """Share of the training images that heads are not trained on but chosen by, 0 to below 1; 0 only for one head."""
    augment: bool = True
    """Crop and flip at random in each epoch; otherwise the encoder runs once over the images as they are, and its
    features are kept on disk."""
    optim: OptimConfig = OptimConfig(base_lr=0.1, warmup=0.11, weight_decay=0.0)
    """The optimizer."""
    batch_size: int = 16384
    """Images per optimizer step, over all devices."""
    epochs: int = 90
    """Passes over the images."""
    crop: float = 0.875
    """Share of an image's shorter side that evaluation keeps, above 0 and at most 1: 224 of 256, as MAE."""
    evaluation_batch: int = exempt(256)
    """Images evaluated at once on each device."""
    seeds: int = exempt(1)
    """Runs to make, with seeds `seed`, `seed + 1`, ...; more than one have folders of their own in the run's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.grid or min(self.grid) <= 0:
            raise ConfigError(f"grid: one multiple of optim.base_lr or more, above 0, got {list(self.grid)}")
        if not self.pools or len(set(self.pools)) < len(self.pools):
            raise ConfigError(f"pools: token, avg, or both, got {list(self.pools)}")
        if not 0 <= self.held_out < 1 or not 0 < self.crop <= 1:
            raise ConfigError(
                f"held_out is at least 0 and below 1, crop above 0 and at most 1, got {self.held_out}, {self.crop}"
            )
        if min(self.seeds, self.evaluation_batch) < 1:
            raise ConfigError(
                f"seeds and evaluation_batch must be at least 1, got {self.seeds}, {self.evaluation_batch}"
            )
        if self.held_out == 0 and self.head_count > 1:
            raise ConfigError(f"held_out: with {self.head_count} heads some images must be held out to choose by")
        if self.head == "attentive" and not self.augment:
            raise ConfigError("augment: an attentive head sees every patch, which is not kept on disk; leave it true")
        if self.head == "attentive" and self.optim.base_lr > 0.01:
            raise ConfigError(
                f"optim.base_lr: an attentive head is trained by AdamW, so at most 0.01; got {self.optim.base_lr}"
            )
        if self.optim.clip_norm is not None and self.head_count > 1:
            raise ConfigError("optim.clip_norm would clip all heads by one norm; leave it out, or train one head")
        augmentation, stages = self.curriculum.augmentation, self.curriculum.stages
        if not self.augment and (augmentation.randaug or [stage.size for stage in stages] != [REFERENCE_SIZE]):
            raise ConfigError(
                "augment: false shows the images as they are, so curriculum must have one stage of 224 and no randaug"
            )

    @property
    def head_count(self) -> int:
        """How many heads are trained."""
        return len(self.grid) * (len(self.pools) if self.head == "linear" else 1)


@dataclass(frozen=True)
class FewshotConfig:
    """Few-shot classification by a frozen encoder."""

    run: Path = exempt(Path("runs/fewshot"))
    """Folder for results.json."""
    checkpoint: Path = field(kw_only=True)
    """Pretraining run, or any checkpoint of a ViT that can be imported."""
    heads: int | None = None
    """Attention heads of the encoder, where the checkpoint does not show them."""
    data: DataConfig = DataConfig(source=RUNS_IMAGES)
    """Images with classes; source `run` takes those of the checkpoint's run, with its normalisation."""
    shots: tuple[float, ...] = (1, 5, 10)
    """How many labels to learn from: from 1 on, images a class; below 1, a share of all images, such as 0.01."""
    regularisation: float = 1.0
    """Strength of the L2 penalty on standardised features: scikit-learn's 1 / C."""
    precision: Precision = "auto"
    """Arithmetic of the encoder."""
    crop: float = 0.875
    """Share of an image's shorter side that is kept, above 0 and at most 1: 224 of 256, as MAE."""
    evaluation_batch: int = exempt(256)
    """Images encoded at once on each device."""
    seed: int = 0
    """Of the choice of images."""
    seeds: int = 5
    """Choices to average over, with seeds `seed`, `seed + 1`, ..."""

    def __post_init__(self) -> None:
        if not self.shots or not all(0 < shots < 1 or (shots >= 1 and shots % 1 == 0) for shots in self.shots):
            raise ConfigError(f"shots: whole numbers of images a class, or shares below 1; got {list(self.shots)}")
        if self.regularisation <= 0 or not 0 < self.crop <= 1:
            raise ConfigError(
                f"regularisation must be above 0, crop above 0 and at most 1; got {self.regularisation}, {self.crop}"
            )
        if min(self.seeds, self.evaluation_batch) < 1 or self.seed < 0:
            raise ConfigError(
                "seeds and evaluation_batch must be at least 1, seed at least 0; "
                f"got {self.seeds}, {self.evaluation_batch}, {self.seed}"
            )


@dataclass(frozen=True)
class ImportConfig:
    """Import of a checkpoint of facebookresearch/mae, Hugging Face, timm or this project."""

    checkpoint: Path
    """File or folder; what it is, its keys tell."""
    run: Path
    """Folder of the run to make."""
    heads: int | None = None
    """Attention heads of the encoder, where the checkpoint does not show them."""
