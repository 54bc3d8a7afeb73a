"""One training step, whatever is trained.

A run is a model that maps its inputs to a loss per image, and a clock that decides what it sees when. Pretraining,
fine-tuning and probing differ in their model and inputs; they share these steps and the loop around them.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset

from mae_curriculum.curriculum.clock import Clock, Moment, View
from mae_curriculum.data.loader import Batch, Delay, receive, training_loader
from mae_curriculum.data.requests import RequestSampler
from mae_curriculum.data.sources import Images
from mae_curriculum.distributed import World
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.config import TrainingConfig
from mae_curriculum.training.learning_rate import step_learning_rate

M = TypeVar("M", bound=nn.Module)

Gate = Callable[[Batch | Delay], bool]
"""Called with each micro-batch, and with each delay before one; returns whether to go on with the step."""


@dataclass(frozen=True)
class ImageCost:
    """What training on one image costs."""

    flops: int
    tokens: int | None = None
    """Tokens that the encoder sees; None for networks without tokens."""
    mask_ratio: float | None = None
    """Share of the patches that are really hidden, in whole patches; None where nothing is."""


@dataclass(frozen=True, kw_only=True)
class Training(Generic[M]):
    """What is trained, on what, and by whom."""

    name: str = "a model"
    """What is trained, such as vit_tiny_patch16_224."""
    config: TrainingConfig
    world: World
    images: Images
    data_fingerprint: str
    """Identifies what the run starts from: number and names of the images, and any pretrained weights."""
    dataset: Dataset[Any]
    """Returns what a `Request` of the sampler asks for."""
    inputs: Callable[[Batch, Moment], tuple[Any, ...]]
    """Returns the model's arguments for a micro-batch, on the device."""
    model: M
    """Maps its inputs to (b,) losses; its state is what is saved."""
    optimizer: Optimizer
    """A parameter group's `lr_scale`, if it has one, multiplies its learning rate."""
    clock: Clock
    pair_size: int = 1
    """Neighbors in the global batch that stay together in a micro-batch."""
    ema: AveragedModel | None = None
    """Moving average of the model's weights."""
    cost_of: Callable[[View], ImageCost] | None = None
    """Returns what training on one image of a view costs; None where that is not counted."""
    frozen: Callable[[Moment], Sequence[nn.Parameter]] = lambda _: ()
    """Returns the parameters that keep their values in a step, and the optimizer's moments of them."""
    ddp_model: Any = field(init=False)
    """The model, wrapped if there are several processes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ddp_model", wrap(self.model, self.world))


@dataclass(frozen=True)
class Step:
    """A step that was launched; the device may still be computing it."""

    moment: Moment
    loss_share: Tensor
    """This rank's share of the batch's mean loss."""
    gradient_norm: Tensor
    """Norm of the global gradient before clipping; not finite if the step was skipped."""
    ids: list[int]
    """Indices of this rank's images."""
    broken: dict[str, str]
    """Broken images that others replaced, with reasons."""
    update_ratio: Tensor | None
    """Norm of the weights' change divided by the weights' norm; None unless the step is reported."""


def wrap(model: nn.Module, world: World) -> Any:
    """Return the model such that several processes average their gradients."""
    if world.world_size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def run_steps_(
    training: Training[Any],
    clock: Clock,
    stopwatch: Stopwatch,
    *,
    first_step: int,
    gate: Gate = lambda _: True,
) -> Generator[Step]:
    """Train step by step along a clock, to its end or to a step that is abandoned.

    gate  decides whether a step goes on; all ranks must decide alike on its last micro-batch.
    """
    config, world = training.config, training.world
    sampler = RequestSampler(
        clock,
        first_step,
        config.seed,
        world.rank,
        world.world_size,
        config.micro_batch,
        training.pair_size,
        config.data.repeats,
        config.data.shuffle_window,
    )
    loader = training_loader(training.dataset, sampler, workers=config.data.workers, device=world.device)
    batches = receive(loader)
    for step in range(first_step, clock.total_steps):
        moment = clock.moment(step)
        if clock.curriculum.reset_moments and step == clock.span(step).first_step:
            training.optimizer.state.clear()
        lr = step_learning_rate(clock, moment.progress, moment.batch_images, config.optim)
        reported = is_reported(clock, step + 1, every_steps=config.tracking.every_steps)
        with stopwatch(f"train/{moment.stage}"):
            done = update_(training, moment, batches, stopwatch, lr=lr, measured=reported, gate=gate)
        if done is None:
            return
        yield done


def is_reported(clock: Clock, steps_done: int, *, every_steps: int) -> bool:
    """Return whether the run reports after `steps_done` steps: every `every_steps`, and at the end of each stage."""
    return steps_done % every_steps == 0 or steps_done == clock.span(steps_done - 1).end_step


def update_(
    training: Training[Any],
    moment: Moment,
    batches: Iterator[Batch | Delay],
    stopwatch: Stopwatch,
    *,
    lr: float,
    measured: bool = False,
    gate: Gate = lambda _: True,
) -> Step | None:
    """Make one optimizer step; if loss or gradient is not finite, weights, moments and buffers stay as they are.

    They also stay if the gate abandons the step, which then is None.

    measured  compute the update ratio.
    """
    buffers = list(training.model.buffers())  # of batch norm
    before = [buffer.clone() for buffer in buffers]
    sums = accumulate_gradients_(training, moment, batches, stopwatch, gate)
    if sums is None:
        for buffer, earlier in zip(buffers, before, strict=True):
            buffer.copy_(earlier)
        training.optimizer.zero_grad()
        return None
    loss_share, ids, broken = sums
    for parameter in training.frozen(moment):
        parameter.grad = None
    norm, ratio = apply_gradients_(training, lr=lr, measured=measured)
    training.world.broadcast_(buffers)  # each rank saw its own images
    for buffer, earlier in zip(buffers, before, strict=True):
        buffer.copy_(torch.where(norm.isfinite(), buffer, earlier))
    if training.ema is not None:
        training.ema.update_parameters(training.model)
    return Step(moment, loss_share, norm, ids, broken, ratio)


def accumulate_gradients_(
    training: Training[Any], moment: Moment, batches: Iterator[Batch | Delay], stopwatch: Stopwatch, gate: Gate
) -> tuple[Tensor, list[int], dict[str, str]] | None:
    """Add up the gradients of a step's micro-batches.

    Returns  the rank's share of the loss, ids, broken images; None if the gate abandons the step.
    """
    world = training.world
    total = torch.zeros((), device=world.device)
    ids: list[int] = []
    broken: dict[str, str] = {}
    is_last = False
    while not is_last:
        with stopwatch(f"wait/{moment.stage}"):
            batch = next_batch(batches, gate)
        if batch is None:
            return None
        is_last = batch.is_last
        inputs = training.inputs(batch, moment)
        with nullcontext() if is_last or world.world_size == 1 else training.ddp_model.no_sync():
            with world.autocast(training.config.precision):
                loss = training.ddp_model(*inputs).sum() / moment.batch_images
            # DDP averages gradients over the ranks, but the loss is a sum over them. A loss that is not finite on any
            # rank must make the gradient so on all of them, even where the gradient itself is finite.
            scale = torch.where(loss.detach().isfinite(), float(world.world_size), torch.nan)
            (loss * scale).backward()
        total += loss.detach()
        broken |= batch.broken
        ids += batch.ids.tolist()
    return total, ids, broken


def next_batch(batches: Iterator[Batch | Delay], gate: Gate) -> Batch | None:
    """Wait for the next micro-batch; None if the gate abandons the step."""
    while True:
        item = next(batches)
        if not gate(item):
            return None
        if isinstance(item, Batch):
            return item


def apply_gradients_(training: Training[Any], *, lr: float, measured: bool) -> tuple[Tensor, Tensor | None]:
    """Clip the gradients and make the optimizer's step; returns the norm before clipping, and the update ratio."""
    config, optimizer = training.config, training.optimizer
    parameters = [parameter for parameter in training.model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if config.optim.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, config.optim.clip_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    weights = [parameter.detach().clone() for parameter in parameters] if measured else []
    step_if_finite_(optimizer, norm)
    ratio = update_ratio(weights, parameters) if measured else None
    optimizer.zero_grad()
    return norm, ratio


@torch.no_grad()
def update_ratio(before: list[Tensor], after: list[nn.Parameter]) -> Tensor:
    """Return the norm of the weights' change divided by their norm before."""
    moved = [new - old for new, old in zip(after, before, strict=True)]
    return nn.utils.get_total_norm(moved) / nn.utils.get_total_norm(before)


def step_if_finite_(optimizer: Optimizer, norm: Tensor) -> None:
    """Make the optimizer's step if the gradient's norm is finite; ranks agree, as they hold the same gradient."""
    if isinstance(optimizer, AdamW):  # on the device, without waiting: the interface of torch's GradScaler
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif bool(norm.isfinite()):
        optimizer.step()
