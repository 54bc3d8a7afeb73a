"""Training, whatever is trained: the loop, one step of it, what it reports and what it saves.

A run is a model that maps its inputs to each image's loss, and a clock that says what it sees when. Pretraining,
fine-tuning and probing differ in their model and in their inputs; they share this loop.
"""

import math
import time
from collections import ChainMap
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset

from mae_curriculum.checkpoint import RunFolder, SavingConfig
from mae_curriculum.config import ConfigError, exempt
from mae_curriculum.curriculum import REFERENCE_SIZE, Clock, Curriculum, Moment, Stage
from mae_curriculum.data import BROKEN_LIMIT, Batch, RequestSampler, micro_batches, training_loader
from mae_curriculum.distributed import Precision, World
from mae_curriculum.optim import OptimConfig, scaled_lr
from mae_curriculum.schedule import learning_rate
from mae_curriculum.sources import DataConfig, Images
from mae_curriculum.table import side
from mae_curriculum.tracking import Journal, Progress, Stopwatch, TrackingConfig

STOPPED = 75
"""Exit code of a run that was asked to stop and can be continued (EX_TEMPFAIL of sysexits.h)."""


@dataclass(frozen=True)
class TrainingConfig:
    """What every training run is told."""

    run: Path = exempt(Path("runs/training"))
    """Folder of the run. Starting again with the same folder and settings continues the run."""
    data: DataConfig = DataConfig()
    """The images."""
    curriculum: Curriculum = Curriculum()
    """Image size and augmentation over the run: inline, or a path to its own file, laid over what stands here."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    saving: SavingConfig = SavingConfig()
    """When the run is saved."""
    tracking: TrackingConfig = TrackingConfig()
    """How often the run reports."""
    batch_size: int = 4096
    """Images per optimizer step, over all devices."""
    micro_batch: int | None = exempt(None)
    """Most images that a device takes at once at full size, more at smaller ones; null for no limit. A step's images
    beyond it are accumulated."""
    epochs: int = 800
    """Equivalent epochs: passes over the data that the run without curriculum would make."""
    seed: int = 0
    """Of weights, order, augmentation and every other random choice."""
    precision: Precision = "auto"
    """Arithmetic of the model. auto is bfloat16 on GPUs that have it, else float32: on a CPU bfloat16 pays only where
    it has units for it, and then only for large models."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch", "epochs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be in 0..2**63-1, got {self.seed}")


C = TypeVar("C", bound=TrainingConfig)
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Training(Generic[M]):
    """What a run is made of."""

    config: TrainingConfig
    world: World
    images: Images
    images_id: str
    """Number and names of the images, as `identify` tells them."""
    dataset: Dataset[Any]
    """Makes what a `Request` of the sampler asks for."""
    inputs: Callable[[Batch, Moment, range], tuple[Tensor, ...]]
    """Brings a micro-batch, of these places in the global batch, to the device as the model's arguments."""
    model: M
    """Maps its inputs to (b,) losses; its state is what is saved."""
    parallel: Any
    """The model, wrapped for several processes if there are."""
    optimizer: Optimizer
    """A group's `lr_scale`, where it has one, multiplies its learning rate."""
    clock: Clock
    unit: int = 1
    """Neighbours in the global batch that stay together in a micro-batch."""
    average: AveragedModel | None = None
    """Moving average of the model's weights."""


def wrap(model: nn.Module, world: World) -> Any:
    """Wrap a model so that several processes average their gradients."""
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def lay_out_clock(
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


def without_curriculum(config: C) -> C:
    """Give the settings of the baseline: the same run at full size from the beginning."""
    full = replace(config.curriculum, pace="images", stages=(Stage(share=1.0, size=REFERENCE_SIZE),))
    return replace(config, curriculum=full)


def train_(
    training: Training[Any],
    folder: RunFolder,
    journal: Journal,
    stopwatch: Stopwatch,
    *,
    first_step: int,
    stop_asked: Callable[[], bool],
    evaluate: Callable[[int], object],
    evaluate_every_epochs: int | None,
) -> bool:
    """Train from a step to the end, reporting and saving on the way; tells whether the end was reached.

    evaluate  measures the model after so many steps, every `evaluate_every_epochs` equivalent epochs and at the end;
              None for never. It is done before the step is saved, so a killed run does it again.
    """
    config, world, clock = training.config, training.world, training.clock
    progress = Progress(total_images=clock.total_images, done_images=clock.images(first_step), shown=world.is_main)
    losses: list[Tensor] = []
    broken: dict[str, str] = {}
    known_broken: dict[str, str] = {}
    facts, last_save = "", time.monotonic()
    for moment, loss_share, broken_now in run_steps_(training, clock, stopwatch, first_step=first_step):
        done = moment.step + 1
        losses.append(loss_share)
        broken.update(broken_now)
        if moment.step in (first_step, clock.spans[moment.stage].first_step):
            progress.say(describe_stage(training, moment))
            journal.write("stage", step=moment.step, stage=moment.stage, size=moment.size)
        evaluating = is_due(clock, done, evaluate_every_epochs)
        stopping = world.size == 1 and stop_asked()  # several processes agree at the next report
        # counted from the end, so that the last report covers as many steps as any
        if (clock.total_steps - done) % config.tracking.every_steps and not stopping and not evaluating:
            progress.update(clock.images(done), describe_moment(clock, moment) + facts)
            continue
        with stopwatch(f"train/{moment.stage}"):
            loss = float(world.sum(torch.stack(losses).mean()))  # here the device is waited for
        name_broken_(training, journal, broken, known_broken, step=moment.step)
        check_loss(loss, step=moment.step)
        facts = report(training, journal, stopwatch, moment, loss=loss)
        progress.update(clock.images(done), describe_moment(clock, moment) + facts)
        losses.clear()
        if evaluating:
            with stopwatch("evaluate"):
                evaluate(done)
        stopping = world.any(stop_asked())
        save_due = world.any(time.monotonic() - last_save > 60 * config.saving.every_minutes)
        if stopping or save_due or done == clock.total_steps:
            save(training, folder, journal, stopwatch, step=done)
            last_save = time.monotonic()
        if stopping and done < clock.total_steps:
            progress.close()
            progress.say(f"stopped and saved at step {done} of {clock.total_steps}; the same command continues")
            return False
    progress.close()
    return True


def is_due(clock: Clock, done: int, every_epochs: int | None) -> bool:
    """Tell whether a multiple of so many equivalent epochs, or the end, is reached by the last of `done` steps."""
    if every_epochs is None:
        return False
    now, before = (clock.equivalent_epochs(step) // every_epochs for step in (done, done - 1))
    return now > before or done == clock.total_steps


def run_steps_(
    training: Training[Any], clock: Clock, stopwatch: Stopwatch, *, first_step: int, still: bool = False
) -> Generator[tuple[Moment, Tensor, dict[str, str]]]:
    """Train step by step along a clock: yields the moment, this rank's share of the loss, and its broken images.

    still  keep the learning rate at 0: all the work of training, without its effect.
    """
    config, world = training.config, training.world
    sampler = RequestSampler(clock, first_step, config.seed, world.rank, world.size, config.micro_batch, training.unit)
    batches = iter(training_loader(training.dataset, sampler, workers=config.data.workers, device=world.device))
    for step in range(first_step, clock.total_steps):
        moment = clock.moment(step)
        peak, floor = (scaled_lr(lr, moment.batch_images) for lr in (config.optim.base_lr, config.optim.min_lr))
        lr = learning_rate(moment.progress, peak=peak, warmup=config.optim.warmup, floor=floor)
        with stopwatch(f"train/{moment.stage}"):
            loss, broken = update_(training, clock, moment, batches, stopwatch, lr=0.0 if still else lr)
        yield moment, loss, broken


def update_(
    training: Training[Any], clock: Clock, moment: Moment, batches: Iterator[Batch], stopwatch: Stopwatch, *, lr: float
) -> tuple[Tensor, dict[str, str]]:
    """Make one optimizer step; returns this rank's share of the batch's mean loss, and the broken images met."""
    config, world = training.config, training.world
    parts = micro_batches(clock.span(moment.step), world.rank, world.size, config.micro_batch, training.unit)
    total = torch.zeros((), device=world.device)
    broken: dict[str, str] = {}
    for part, places in enumerate(parts, start=1):
        with stopwatch("wait"):
            batch = next(batches)
        inputs = training.inputs(batch, moment, places)
        with nullcontext() if part == len(parts) or world.size == 1 else training.parallel.no_sync():
            with world.autocast(config.precision):
                loss = training.parallel(*inputs).sum() / moment.batch_images
            (loss * world.size).backward()  # gradients are averaged over the ranks; the loss is a sum over them
        total += loss.detach()
        broken |= batch.broken
    if config.optim.clip_norm is not None:
        nn.utils.clip_grad_norm_(training.model.parameters(), config.optim.clip_norm)
    for group in training.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    training.optimizer.step()
    training.optimizer.zero_grad()
    if training.average is not None:
        training.average.update_parameters(training.model)
    return total, broken


def measure_seconds(training: Training[Any], clock: Clock) -> float:
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


def save(training: Training[Any], folder: RunFolder, journal: Journal, stopwatch: Stopwatch, *, step: int) -> None:
    """Save the state of the run, from the main process."""
    with stopwatch("save"):
        state = {
            "step": step,
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "seconds": dict(stopwatch.seconds),
            "images": training.images_id,
        }
        if training.average is not None:
            state["average"] = training.average.state_dict()
        training.world.on_main(lambda: folder.save(state, keep=training.config.saving.keep))
    journal.write("save", step=step)


def restore_(training: Training[Any], state: dict[str, Any] | None) -> tuple[Stopwatch, int]:
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
    if training.average is not None:
        training.average.load_state_dict(state["average"])
    return Stopwatch(state["seconds"]), state["step"]


def name_broken_(
    training: Training[Any], journal: Journal, broken: dict[str, str], known: dict[str, str], *, step: int
) -> None:
    """Name this report's broken images in the journal, and stop a run that has too many; moves `broken` to `known`."""
    everybodys = dict(ChainMap(*training.world.gather(broken)))
    for name in sorted(everybodys.keys() - known.keys()):
        journal.write("broken_image", step=step, image=name, reason=everybodys[name])
    known |= everybodys
    broken.clear()
    if len(known) > BROKEN_LIMIT * len(training.images):
        name = min(known)
        raise ConfigError(
            f"{len(known)} of {len(training.images)} images are broken, more than {BROKEN_LIMIT:.0%}, such as {name} "
            f"({known[name]}); mend or remove those that journal.jsonl names"
        )


def check_loss(loss: float, *, step: int) -> None:
    """Stop a run whose loss is no number, before its state is saved."""
    if not math.isfinite(loss):
        raise ConfigError(
            f"the loss is {loss} at step {step}; lower optim.base_lr, or set optim.clip_norm or precision "
            "float32, in another --run; the newest checkpoint is from before"
        )


def report(training: Training[Any], journal: Journal, stopwatch: Stopwatch, moment: Moment, *, loss: float) -> str:
    """Write a row of the journal; returns the facts that the progress bar shows."""
    lr = max(group["lr"] for group in training.optimizer.param_groups)
    journal.write(
        "step",
        step=moment.step,
        images=moment.first_image + moment.batch_images,
        progress=round(moment.progress, 6),
        stage=moment.stage,
        size=moment.size,
        magnitude=moment.magnitude,
        loss=loss,
        lr=lr,
        train_seconds=round(stopwatch.total("train"), 3),
        wait_seconds=round(stopwatch.total("wait"), 3),
    )
    return f" | loss {loss:.4f} lr {lr:.2e}"


def describe_moment(clock: Clock, moment: Moment) -> str:
    """Say in a few words what the encoder sees."""
    strength = "" if moment.magnitude is None else f" magnitude {moment.magnitude:.1f}"
    return f"stage {moment.stage + 1}/{len(clock.spans)} {side(moment.size)} px{strength}"


def describe_stage(training: Training[Any], moment: Moment) -> str:
    """Say in a line how large a stage's images are, and how its steps are made."""
    span, world = training.clock.spans[moment.stage], training.world
    parts = micro_batches(span, world.rank, world.size, training.config.micro_batch, training.unit)
    return (
        f"stage {span.index + 1} of {len(training.clock.spans)}: {side(span.size)} px, {span.steps} steps of "
        f"{span.batch_images} images ({world.size} processes x {len(parts)} micro-batches x {max(map(len, parts))} "
        "images)"
    )
