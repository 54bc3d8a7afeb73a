"""Training steps, whatever is trained: what a run is told, what it is made of, and how it makes one step.

A run is a model that maps its inputs to each image's loss, and a clock that says what it sees when. Pretraining,
fine-tuning and probing differ in their model and in their inputs; they share these steps, and the loop around them.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.schedule import Clock, Moment
from mae_curriculum.data.loader import Batch, RequestSampler, micro_batches, training_loader
from mae_curriculum.data.sources import Images
from mae_curriculum.distributed import World
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.config import TrainingConfig
from mae_curriculum.training.learning_rate import learning_rate
from mae_curriculum.training.optimizer import scaled_lr

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class ImageCost:
    """What training on one image takes."""

    flops: int
    tokens: int | None = None
    """That the encoder sees; None for networks without tokens."""
    mask_ratio: float | None = None
    """Share of the patches that are masked, 0 to 1; None where nothing is."""


@dataclass(frozen=True)
class Training(Generic[M]):
    """What a run is made of."""

    config: TrainingConfig
    world: World
    images: Images
    data_fingerprint: str
    """What the run begins with: number and names of the images, and the weights, if others than its seed's."""
    dataset: Dataset[Any]
    """Makes what a `Request` of the sampler asks for."""
    inputs: Callable[[Batch, Moment, range], tuple[Tensor, ...]]
    """Brings a micro-batch, of these places in the global batch, to the device as the model's arguments."""
    model: M
    """Maps its inputs to (b,) losses; its state is what is saved."""
    ddp_model: Any
    """The model, wrapped for several processes if there are."""
    optimizer: Optimizer
    """A group's `lr_scale`, where it has one, multiplies its learning rate."""
    clock: Clock
    pair_size: int = 1
    """Neighbours in the global batch that stay together in a micro-batch."""
    ema: AveragedModel | None = None
    """Moving average of the model's weights."""
    cost_of: Callable[[tuple[int, int]], ImageCost] | None = None
    """Tells what training on one image of a size (height, width) takes; None where that is not counted."""


@dataclass(frozen=True)
class Step:
    """What is known of a step once it is on its way: the device may zero_lr be at it."""

    moment: Moment
    loss_share: Tensor
    """This rank's share of the batch's mean loss."""
    gradient_norm: Tensor
    """Norm of the whole gradient before clipping; not finite where loss or gradient is not and the step is skipped."""
    ids: list[int]
    """This rank's images."""
    broken: dict[str, str]
    """Broken images that others stand for, with reasons."""
    update_ratio: Tensor | None
    """Norm of the weights' change by that of the weights; None but for steps that are reported on."""


def wrap(model: nn.Module, world: World) -> Any:
    """Wrap a model so that several processes average their gradients."""
    if world.world_size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def build_clock_of(
    config: TrainingConfig,
    *,
    image_size: tuple[int, int],
    patch_size: tuple[int, int],
    images_per_epoch: int,
    processes: int = 1,
) -> Clock:
    """Lay a run's curriculum over its images; raises ConfigError for stages that cannot be trained."""
    clock = Clock(
        config.curriculum,
        image_size=image_size,
        patch_size=patch_size,
        images_per_epoch=images_per_epoch,
        epochs=config.epochs,
        batch_images=config.batch_size,
    )
    fewest = min(span.batch_images for span in clock.spans)
    if fewest < processes:
        raise ConfigError(
            f"batch_size {config.batch_size} makes steps of {fewest} images, fewer than the {processes} "
            "processes; raise it or start fewer"
        )
    return clock


def run_steps_(
    training: Training[Any], clock: Clock, stopwatch: Stopwatch, *, first_step: int, zero_lr: bool = False
) -> Generator[Step]:
    """Train step by step along a clock.

    zero_lr  keep the learning rate at 0: all the work of training, without its effect.
    """
    config, world = training.config, training.world
    every = config.tracking.every_steps
    sampler = RequestSampler(
        clock, first_step, config.seed, world.rank, world.world_size, config.micro_batch, training.pair_size
    )
    batches = iter(training_loader(training.dataset, sampler, workers=config.data.workers, device=world.device))
    for step in range(first_step, clock.total_steps):
        moment = clock.moment(step)
        peak, floor = (scaled_lr(lr, moment.batch_images) for lr in (config.optim.base_lr, config.optim.min_lr))
        lr = learning_rate(moment.progress, peak=peak, warmup=config.optim.warmup, floor=floor)
        with stopwatch(f"train/{moment.stage}"):
            measured = not zero_lr and is_reported(clock, step + 1, every_steps=every)
            done = update_(training, clock, moment, batches, stopwatch, lr=0.0 if zero_lr else lr, measured=measured)
        yield done


def is_reported(clock: Clock, done: int, *, every_steps: int) -> bool:
    """Return whether the last of `done` steps is reported: every `every_steps`, and at the end of each stage."""
    return done % every_steps == 0 or done == clock.span(done - 1).end_step


def update_(
    training: Training[Any],
    clock: Clock,
    moment: Moment,
    batches: Iterator[Batch],
    stopwatch: Stopwatch,
    *,
    lr: float,
    measured: bool = False,
) -> Step:
    """Make one optimizer step, unless its loss or gradient is not finite: then weights and moments stay as they are.

    measured  measure how much it changes the weights.
    """
    config, world = training.config, training.world
    parts = micro_batches(clock.span(moment.step), world.rank, world.world_size, config.micro_batch, training.pair_size)
    buffers = list(training.model.buffers())  # of batch norm: what a step leaves in them is undone if it is skipped
    before = [buffer.clone() for buffer in buffers]
    total = torch.zeros((), device=world.device)
    broken: dict[str, str] = {}
    ids: list[int] = []
    for part, places in enumerate(parts, start=1):
        with stopwatch(f"wait/{moment.stage}"):
            batch = next(batches)
        inputs = training.inputs(batch, moment, places)
        with nullcontext() if part == len(parts) or world.world_size == 1 else training.ddp_model.no_sync():
            with world.autocast(config.precision):
                loss = training.ddp_model(*inputs).sum() / moment.batch_images
            # gradients are averaged over the ranks, the loss is a sum over them; one that is not finite, on any rank,
            # makes the whole gradient so, and the step is skipped by all of them
            (loss * (world.world_size + 0 * loss.detach())).backward()
        total += loss.detach()
        broken |= batch.broken
        ids += batch.ids.tolist()
    parameters = [parameter for parameter in training.model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if config.optim.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, config.optim.clip_norm, norm)
    for group in training.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    weights = [parameter.detach().clone() for parameter in parameters] if measured else []
    step_if_finite_(training.optimizer, norm)
    ratio = change(weights, parameters) if measured else None
    training.optimizer.zero_grad()
    world.broadcast_(buffers)  # each rank has seen images of its own
    for buffer, earlier in zip(buffers, before, strict=True):
        buffer.copy_(torch.where(norm.isfinite(), buffer, earlier))
    if training.ema is not None:
        training.ema.update_parameters(training.model)
    return Step(moment, total, norm, ids, broken, ratio)


@torch.no_grad()
def change(before: list[Tensor], after: list[nn.Parameter]) -> Tensor:
    """Tell how far weights have moved, by their norm before: the update ratio."""
    moved = [new - old for new, old in zip(after, before, strict=True)]
    return nn.utils.get_total_norm(moved) / nn.utils.get_total_norm(before)


def step_if_finite_(optimizer: Optimizer, norm: Tensor) -> None:
    """Step, but for a gradient whose norm is not finite; ranks agree, since they hold the same gradient."""
    if isinstance(optimizer, AdamW):  # leaves weights, moments and count on the device's own finding: no waiting for it
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif bool(norm.isfinite()):
        optimizer.step()


def seconds_per_step(training: Training[Any], clock: Clock, spent: Stopwatch) -> float:
    """Tell the training seconds of a clock's step: spent, if the run had these very stages, else measured.

    A few steps are taken for it with learning rate 0, after some to warm up.
    """
    if clock.spans == training.clock.spans:
        return spent.total("train") / clock.total_steps
    uncounted, counted = min(3, clock.total_steps - 1), min(20, max(5, clock.total_steps // 20))
    stopwatch = Stopwatch()
    steps = run_steps_(training, clock, stopwatch, first_step=0, zero_lr=True)
    for _ in islice(steps, uncounted):
        pass
    training.world.synchronize()
    stopwatch.seconds.clear()
    measured = sum(1 for _ in islice(steps, counted))
    steps.close()
    with stopwatch("train"):
        training.world.synchronize()
    return stopwatch.total("train") / measured
