"""One training step, and what it takes: settings, images, model, optimizer and clock of a run."""

import math
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from mae_curriculum.checkpoint import CheckpointConfig
from mae_curriculum.config import ConfigError, exempt
from mae_curriculum.curriculum import REFERENCE_SIZE, Clock, Curriculum, Moment, Stage
from mae_curriculum.data import Batch, RequestSampler, TrainingImages, micro_batches, normalise, training_loader
from mae_curriculum.distributed import Precision, World
from mae_curriculum.frequency import RESIZE
from mae_curriculum.knn import KnnConfig
from mae_curriculum.model import MaskedAutoencoder, ModelConfig, build_model, mask_noise
from mae_curriculum.optim import OptimConfig, build_optimizer, scaled_lr
from mae_curriculum.schedule import learning_rate
from mae_curriculum.sources import DataConfig, Images, identify
from mae_curriculum.table import side
from mae_curriculum.tracking import Stopwatch, TrackingConfig


@dataclass(frozen=True)
class PretrainConfig:
    """Pretraining of a masked autoencoder under a curriculum."""

    run: Path = exempt(Path("runs/pretrain"))
    """Folder of the run. Starting again with the same folder and settings continues the run."""
    data: DataConfig = DataConfig()
    """The images."""
    model: ModelConfig = ModelConfig()
    """Encoder, masking, decoder, target."""
    curriculum: Curriculum = Curriculum()
    """Image size and augmentation over the run: inline, or a path to its own file, laid over what stands here."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the run is saved."""
    tracking: TrackingConfig = TrackingConfig()
    """How often the run reports."""
    knn: KnnConfig = KnnConfig()
    """The kNN accuracy at the end."""
    batch_size: int = 4096
    """Images per optimizer step, over all devices."""
    micro_batch: int | None = exempt(None)
    """Most images that a device takes at once at full size, more at smaller ones; null for no limit. A step's images
    beyond it are accumulated."""
    epochs: int = 800
    """Equivalent epochs: passes over the data that the run without curriculum would make."""
    seed: int = 0
    """Of weights, order, augmentation and masks."""
    precision: Precision = "auto"
    """Arithmetic of the model. auto is bfloat16 on GPUs that have it, else float32: on a CPU bfloat16 pays only where
    it has units for it, and then only for large models."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch", "epochs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be in 0..2**63-1, got {self.seed}")
        if self.curriculum.augmentation.randaug and self.model.channels not in (1, 3):
            raise ConfigError(
                f"curriculum.augmentation.randaug needs 1 or 3 channels, not {self.model.channels}; set it to null"
            )
        self.data.statistics(self.model.channels)


@dataclass(frozen=True)
class Training:
    """What a run is made of; `parallel` is the model, wrapped for several processes if there are."""

    config: PretrainConfig
    world: World
    images: Images
    images_id: str
    """Number and names of the images, as `identify` tells them."""
    val: Images | None
    model: MaskedAutoencoder
    parallel: Any
    optimizer: Optimizer
    clock: Clock


def set_up(config: PretrainConfig, world: World, images: Images, val: Images | None = None) -> Training:
    """Build the model and all that trains it; raises ConfigError for what does not go together."""
    model = build_model(config.model, seed=config.seed).to(world.device)
    clock = build_clock(config, model, images_per_epoch=len(images), processes=world.size)
    parallel: Any = model
    if world.size > 1:
        devices = [world.device] if world.device.type == "cuda" else None
        parallel = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    return Training(
        config, world, images, identify(images), val, model, parallel, build_optimizer(model, config.optim), clock
    )


def build_clock(
    config: PretrainConfig, model: MaskedAutoencoder, *, images_per_epoch: int, processes: int = 1
) -> Clock:
    """Lay the curriculum over the run; raises ConfigError for stages that cannot be trained."""
    clock = Clock(
        config.curriculum,
        image_size=model.image_size,
        patch_size=model.patch_size,
        images_per_epoch=images_per_epoch,
        epochs=config.epochs,
        batch_images=config.batch_size,
    )
    for span, stage in zip(clock.spans, config.curriculum.stages, strict=True):
        if span.size == model.patch_size:
            raise ConfigError(
                f"curriculum.stages: size {stage.size} is a single patch here ({side(span.size)} px), of which nothing "
                "could be masked; make it larger, or model.patch_size smaller"
            )
        if span.batch_images < processes:
            raise ConfigError(
                f"batch_size {config.batch_size} makes steps of {span.batch_images} images, fewer than the {processes} "
                "processes; raise it or start fewer"
            )
    return clock


def without_curriculum(config: PretrainConfig) -> PretrainConfig:
    """Give the settings of the baseline: the same run at full size from the beginning."""
    full = replace(config.curriculum, pace="images", stages=(Stage(share=1.0, size=REFERENCE_SIZE),))
    return replace(config, curriculum=full)


def restore_(training: Training, state: dict[str, Any] | None) -> tuple[Stopwatch, int]:
    """Bring model and optimizer to a checkpoint's state; returns its stopwatch and the step to go on with."""
    if state is None:
        return Stopwatch(), 0
    if state["images"] != training.images_id:
        raise ConfigError(
            f"data.source: the run began with {state['images']}, and {training.config.data.source} now holds "
            f"{training.images_id}; bring the images back as they were, or begin another --run"
        )
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    return Stopwatch(state["seconds"]), state["step"]


def run_steps_(
    training: Training, clock: Clock, stopwatch: Stopwatch, *, first_step: int, still: bool = False
) -> Generator[tuple[Moment, Tensor, dict[str, str]]]:
    """Train step by step along a clock: yields the moment, this rank's share of the loss, and its broken images.

    still  keep the learning rate at 0: all the work of training, without its effect.
    """
    config, world = training.config, training.world
    dataset = TrainingImages(
        training.images,
        training.model.image_size,
        training.model.channels,
        config.curriculum.augmentation.flip,
        config.seed,
    )
    sampler = RequestSampler(clock, first_step, config.seed, world.rank, world.size, config.micro_batch)
    batches = iter(training_loader(dataset, sampler, workers=config.data.workers, device=world.device))
    for step in range(first_step, clock.total_steps):
        moment = clock.moment(step)
        peak, floor = (scaled_lr(lr, moment.batch_images) for lr in (config.optim.base_lr, config.optim.min_lr))
        lr = learning_rate(moment.progress, peak=peak, warmup=config.optim.warmup, floor=floor)
        with stopwatch(f"train/{moment.stage}"):
            loss, broken = update_(training, clock, moment, batches, stopwatch, lr=0.0 if still else lr)
        yield moment, loss, broken


def update_(
    training: Training, clock: Clock, moment: Moment, batches: Iterator[Batch], stopwatch: Stopwatch, *, lr: float
) -> tuple[Tensor, dict[str, str]]:
    """Make one optimizer step; returns this rank's share of the batch's mean loss, and the broken images met."""
    config, world, model = training.config, training.world, training.model
    mean, std = config.data.statistics(model.channels)
    patch_count = math.prod(model.grid(moment.size))
    parts = micro_batches(clock.span(moment.step), world.rank, world.size, config.micro_batch)
    total = torch.zeros((), device=world.device)
    broken: dict[str, str] = {}
    for part, places in enumerate(parts, start=1):
        with stopwatch("wait"):
            batch = next(batches)
        pixels = world.bring(batch.images)
        images = RESIZE[config.curriculum.resize](normalise(pixels, mean, std), moment.size)
        noise = world.bring(mask_noise(seed=config.seed, step=moment.step, places=places, patch_count=patch_count))
        with nullcontext() if part == len(parts) or world.size == 1 else training.parallel.no_sync():
            with world.autocast(config.precision):
                loss = training.parallel(images, noise).sum() / moment.batch_images
            (loss * world.size).backward()  # gradients are averaged over the ranks; the loss is a sum over them
        total += loss.detach()
        broken |= batch.broken
    if config.optim.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
    for group in training.optimizer.param_groups:
        group["lr"] = lr
    training.optimizer.step()
    training.optimizer.zero_grad()
    return total, broken


def measure_seconds(training: Training, clock: Clock) -> float:
    """Measure the training seconds of a clock's step on a few steps with learning rate 0, after some to warm up."""
    uncounted, counted = min(3, clock.total_steps - 1), min(20, max(5, clock.total_steps // 20))
    stopwatch = Stopwatch()
    steps = run_steps_(training, clock, stopwatch, first_step=0, still=True)
    for _ in islice(steps, uncounted):
        pass
    training.world.synchronise()
    stopwatch.seconds.clear()
    measured = sum(1 for _ in islice(steps, counted))
    steps.close()
    with stopwatch("train"):
        training.world.synchronise()
    return stopwatch.total("train") / measured
