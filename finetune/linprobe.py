"""Linear and attentive probes of a frozen encoder: a grid of heads side by side, for the price of one."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim.lars import Lars
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import Dataset

from finetune.heads import Heads, Kind
from finetune.labels import Labelled, open_labelled
from finetune.seeds import run_seeds
from mae_curriculum.checkpoint import read_json, write_json
from mae_curriculum.config import ConfigError, exempt
from mae_curriculum.curriculum import REFERENCE_SIZE, Augmentation, Curriculum, Moment
from mae_curriculum.data import Batch, Request, TrainingImages, micro_batches, show
from mae_curriculum.distributed import World, connect
from mae_curriculum.holding import begin, go_on_, open_run
from mae_curriculum.inference import Inference
from mae_curriculum.loop import StoppedError, raise_if_stopped, train_, until_stopped
from mae_curriculum.model import MaskedAutoencoder
from mae_curriculum.optim import OptimConfig, build_adamw
from mae_curriculum.results import as_percent, record, spread
from mae_curriculum.sources import Chosen, DataConfig, identify
from mae_curriculum.stopping import Stop
from mae_curriculum.table import as_table
from mae_curriculum.training import Training, TrainingConfig, check_channels, lay_out_clock, wrap
from mae_curriculum.weights import RUNS_IMAGES, encoder_of, fingerprint, read_together, resolve_images

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
class FeatureRows(Dataset[tuple[Tensor, int, dict[str, str]]]):
    """Features kept on disk, in place of images."""

    features: NDArray[np.float32]
    ids: NDArray[np.int64]

    def __getitem__(self, request: Request) -> tuple[Tensor, int, dict[str, str]]:
        """Give an image's features (p, d)."""
        return torch.from_numpy(self.features[self.ids[request.image]].copy()), request.image, {}


def linprobe(config: LinprobeConfig) -> int:
    """Probe once for each seed, or continue; print and record the results; returns the exit code."""
    config = replace(config, data=resolve_images(config.data, config.checkpoint))
    with connect() as world, until_stopped(config) as stop:
        weights = read_together(config.checkpoint, world, heads=config.heads)
        encoder = encoder_of(weights, config.checkpoint).to(world.device).requires_grad_(False)
        if lacking := [pool for pool in config.pools if config.head == "linear" and pool not in encoder.pools]:
            raise ConfigError(f"pools: this encoder has no {lacking[0]}, only {', '.join(encoder.pools)}")
        train, val = open_labelled(config.data, world)
        once = partial(probe_once, encoder=encoder, train=train, val=val, world=world, stop=stop)
        return run_seeds(config, world, once, conclude)


def probe_once(
    config: LinprobeConfig,
    encoder: MaskedAutoencoder,
    train: Labelled,
    val: Labelled,
    world: World,
    stop: Stop,
) -> dict[str, Any] | None:
    """Train and choose heads, or continue where the run folder stands; returns the summary, None if stopped."""
    inference = Inference(world, config.data, config.precision, config.evaluation_batch, config.crop)
    learning, held_out = set_apart(train, config.held_out, seed=config.seed)
    training = set_up(config, encoder, learning, world, inference)
    with open_run(config, world) as run:
        stopwatch, step = go_on_(training, run)
        if step == training.clock.total_steps and run.folder.summary.exists():
            summary: dict[str, Any] = read_json(run.folder.summary)
            return summary
        begin(run, training, step=step)
        reached_end = train_(
            training,
            run,
            stopwatch,
            first_step=step,
            stop=stop,
            evaluate=lambda _: None,
            evaluate_every_epochs=None,
        )
        if not reached_end:
            return None
        check = partial(raise_if_stopped, run, world, stop, step=training.clock.total_steps)
        look = replace(inference, check=check)
        try:
            accuracies = [measure(training.model, encoder, side, look, config) for side in (held_out, val) if side]
        except StoppedError:
            return None
        names = [{"pool": pool, "lr": factor * config.optim.base_lr} for pool, factor in training.model.names]
        best = max(range(len(names)), key=lambda number: accuracies[0][number])
        summary = {
            "accuracy": accuracies[-1][best],
            "chosen": names[best],
            "heads": [
                {**name, "held_out_accuracy": chosen_by if held_out else None, "accuracy": accuracy}
                for name, chosen_by, accuracy in zip(names, accuracies[0], accuracies[-1], strict=True)
            ],
            "train_seconds": stopwatch.total("train"),
            "wait_seconds": stopwatch.total("wait"),
            "images": training.clock.total_images,
        }
        world.on_main(lambda: write_json(run.folder.summary, summary))
        run.journal.write("end", **summary)
        return summary


def set_apart(train: Labelled, share: float, *, seed: int) -> tuple[Labelled, Labelled | None]:
    """Split images to learn from into those and others to choose by, at random; None for no others."""
    order = np.random.default_rng((seed, 0)).permutation(len(train.images))
    count = round(share * len(order))
    if share and not 0 < count < len(order):
        raise ConfigError(f"held_out: a share of {share} of {len(order)} images leaves none on one side")
    sides = [np.sort(ids) for ids in (order[count:], order[:count])]
    first, second = (Labelled(Chosen(train.images, ids.tolist()), train.labels[ids], train.classes) for ids in sides)
    return first, second if count else None


def set_up(
    config: LinprobeConfig, encoder: MaskedAutoencoder, learning: Labelled, world: World, inference: Inference
) -> Training[Heads]:
    """Build the heads and all that trains them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        heads = encoder.encoder.blocks[0].attn.num_heads
        model = Heads(
            config.head,
            config.pools if config.head == "linear" else ("attention",),
            config.grid,
            width=encoder.encoder.embed_dim,
            attention_heads=heads,
            class_count=len(learning.classes),
        ).to(world.device)
    images, labels = learning.images, learning.labels
    mean, std = config.data.statistics(encoder.channels)
    dataset: Dataset[Any]
    if config.augment:
        augmentation = config.curriculum.augmentation
        dataset = TrainingImages(images, encoder.image_size, encoder.channels, augmentation, config.seed)
    else:
        features = inference.cached(encoder, images)
        whole = np.flatnonzero(np.isfinite(features[:, 0, 0]))
        images, labels = Chosen(images, whole.tolist()), labels[whole]
        dataset = FeatureRows(features, whole)
    wanted = [encoder.pools.index(pool) for pool in config.pools if pool in encoder.pools]

    def inputs(batch: Batch, moment: Moment, _places: range) -> tuple[Tensor, Tensor]:
        seen = world.bring(batch.images)
        if config.augment:
            seen = show(seen, moment.size, mean=mean, std=std, resize=config.curriculum.resize)
            with torch.no_grad(), world.autocast(config.precision):
                seen = describe(encoder, seen, config.head)
        return seen[:, wanted] if config.head == "linear" else seen, world.bring(labels[batch.ids])

    clock = lay_out_clock(
        config,
        image_size=encoder.image_size,
        patch_size=encoder.patch_size,
        images_per_epoch=len(images),
        processes=world.size,
    )
    check_channels(config, encoder.channels)
    for span in clock.spans:
        if min(map(len, micro_batches(span, world.rank, world.size, config.micro_batch))) < 2:
            raise ConfigError("batch_size, micro_batch: batch normalisation needs two images or more on a device")
    origin = f"{identify(images)}, encoder {fingerprint(encoder.encoder.state_dict())}"
    groups = model.groups(config.optim.weight_decay)
    optimizer: Optimizer = build_adamw(groups, config.optim)
    if config.head == "linear":
        optimizer = Lars(groups, momentum=config.optim.betas[0])
    return Training(config, world, images, origin, dataset, inputs, model, wrap(model, world), optimizer, clock)


def describe(encoder: MaskedAutoencoder, images: Tensor, head: str) -> Tensor:
    """Describe images for a kind of head: (b, p, d) of each pool, or (b, n, d) of each patch."""
    if head == "linear":
        return encoder.features(images).float()
    return encoder.tokens(images)[:, encoder.encoder.num_prefix_tokens :].float()


def measure(
    model: Heads, encoder: MaskedAutoencoder, side: Labelled, inference: Inference, config: LinprobeConfig
) -> list[float]:
    """Tell the accuracy of each head on images as they are."""
    wanted = [encoder.pools.index(pool) for pool in config.pools if pool in encoder.pools]

    def predict(images: Tensor) -> Tensor:
        described = describe(encoder, images, config.head)
        return model.logits(described[:, wanted] if config.head == "linear" else described).argmax(dim=2)

    model.eval()
    right, count = torch.zeros(len(model.names)), 0
    for predicted, ids in inference.run(predict, side.images, size=encoder.image_size, channels=encoder.channels):
        right += (predicted.cpu() == side.labels[ids.cpu()][:, None]).sum(dim=0)
        count += len(ids)
    model.train()
    return [float(share) for share in right / count]


def conclude(config: LinprobeConfig, summaries: list[dict[str, Any]]) -> None:
    """Print and record what came of all seeds."""
    rows = [["seed", "pool", "lr", "held out", "val", ""]]
    for number, summary in enumerate(summaries):
        for head in summary["heads"]:
            chosen = all(head[key] == value for key, value in summary["chosen"].items())
            chosen_by = "" if head["held_out_accuracy"] is None else f"{head['held_out_accuracy']:.4f}"
            rows.append(
                [
                    str(config.seed + number),
                    head["pool"],
                    f"{head['lr']:g}",
                    chosen_by,
                    f"{head['accuracy']:.4f}",
                    "chosen" if chosen else "",
                ]
            )
    accuracy = spread([summary["accuracy"] for summary in summaries])
    print(as_table(rows))
    print(f"{config.head} probe: accuracy {as_percent(accuracy)} of the head that did best on the images held out")
    result = {
        "source": config.data.source,
        "seeds": [config.seed + number for number in range(len(summaries))],
        "head": config.head,
        "accuracy": accuracy,
        "chosen": [summary["chosen"] for summary in summaries],
        "train_seconds": spread([summary["train_seconds"] for summary in summaries]),
    }
    record("linprobe", result, config, run=config.run, checkpoint=config.checkpoint)
