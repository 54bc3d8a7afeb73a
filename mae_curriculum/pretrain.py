"""Pretraining: the loop, what it reports and saves, and the summary at the end."""

import math
import time
from collections import ChainMap
from collections.abc import Callable

import torch
from torch import Tensor

from mae_curriculum.checkpoint import RunFolder, read_json, write_json
from mae_curriculum.config import ConfigError, digest
from mae_curriculum.curriculum import Moment
from mae_curriculum.data import BROKEN_LIMIT, micro_batches
from mae_curriculum.distributed import connect
from mae_curriculum.knn import knn_of_encoder, why_no_knn
from mae_curriculum.model import MaskedAutoencoder, build_model
from mae_curriculum.sources import download, open_images
from mae_curriculum.stopping import stop_on_signals
from mae_curriculum.summary import describe, summarise
from mae_curriculum.table import side
from mae_curriculum.tracking import Journal, Progress, Stopwatch
from mae_curriculum.training import (
    PretrainConfig,
    Training,
    build_clock,
    measure_seconds,
    restore_,
    run_steps_,
    set_up,
    without_curriculum,
)

STOPPED = 75
"""Exit code of a run that was asked to stop and can be continued (EX_TEMPFAIL of sysexits.h)."""


def pretrain(config: PretrainConfig) -> int:
    """Pretrain, or continue where the run folder stands; returns the exit code.

    Order: settings, images and model are checked; the run folder is claimed; its newest checkpoint is loaded; the steps
    that are left are trained; the summary is written.
    """
    with connect() as world, stop_on_signals() as stop_asked:
        world.on_main(lambda: download(config.data))
        training = set_up(config, world, *open_images(config.data))
        folder = RunFolder(config.run)
        world.on_main(lambda: folder.claim(config))
        stopwatch, step = restore_(training, folder.newest())
        if step == training.clock.total_steps and folder.summary.exists():
            world.say(f"this run is over:\n{describe(read_json(folder.summary))}")
            return 0
        if why := why_no_knn(training.images, training.val, config.knn):
            world.say(f"no kNN accuracy: {why}")
        journal = Journal(folder.journal if world.is_main else None)
        journal.write("start", step=step, world_size=world.size, device=str(world.device), digest=digest(config))
        if not train_(training, folder, journal, stopwatch, first_step=step, stop_asked=stop_asked):
            return STOPPED
        finish(training, folder, journal, stopwatch)
    return 0


def train_(
    training: Training,
    folder: RunFolder,
    journal: Journal,
    stopwatch: Stopwatch,
    *,
    first_step: int,
    stop_asked: Callable[[], bool],
) -> bool:
    """Train from a step to the end, reporting and saving on the way; tells whether the end was reached."""
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
        stopping = world.size == 1 and stop_asked()  # several processes agree at the next report
        # counted from the end, so that the last report covers as many steps as any
        if (clock.total_steps - done) % config.tracking.every_steps and not stopping:
            progress.update(clock.images(done), describe_moment(training, moment) + facts)
            continue
        with stopwatch(f"train/{moment.stage}"):
            loss = float(world.sum(torch.stack(losses).mean()))  # here the device is waited for
        name_broken_(training, journal, broken, known_broken, step=moment.step)
        check_loss(loss, step=moment.step)
        facts = report(training, journal, stopwatch, moment, loss=loss)
        progress.update(clock.images(done), describe_moment(training, moment) + facts)
        losses.clear()
        stopping = world.any(stop_asked())
        save_due = world.any(time.monotonic() - last_save > 60 * config.checkpoint.every_minutes)
        if stopping or save_due or done == clock.total_steps:
            save(training, folder, journal, stopwatch, step=done)
            last_save = time.monotonic()
        if stopping and done < clock.total_steps:
            progress.close()
            progress.say(f"stopped and saved at step {done} of {clock.total_steps}; the same command continues")
            return False
    progress.close()
    return True


def name_broken_(
    training: Training, journal: Journal, broken: dict[str, str], known: dict[str, str], *, step: int
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


def report(training: Training, journal: Journal, stopwatch: Stopwatch, moment: Moment, *, loss: float) -> str:
    """Write a row of the journal; returns the facts that the progress bar shows."""
    lr = training.optimizer.param_groups[0]["lr"]
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


def describe_moment(training: Training, moment: Moment) -> str:
    """Say in a few words what the encoder sees."""
    strength = "" if moment.magnitude is None else f" magnitude {moment.magnitude:.1f}"
    return f"stage {moment.stage + 1}/{len(training.clock.spans)} {side(moment.size)} px{strength}"


def describe_stage(training: Training, moment: Moment) -> str:
    """Say in a line what a stage shows the encoder, and how its steps are made."""
    span, world, model = training.clock.spans[moment.stage], training.world, training.model
    parts = micro_batches(span, world.rank, world.size, training.config.micro_batch)
    grid = model.grid(span.size)
    return (
        f"stage {span.index + 1} of {len(training.clock.spans)}: {side(span.size)} px, {model.visible_count(grid)} of "
        f"{math.prod(grid)} patches visible, {span.steps} steps of {span.batch_images} images "
        f"({world.size} processes x {len(parts)} micro-batches x {max(map(len, parts))} images)"
    )


def save(training: Training, folder: RunFolder, journal: Journal, stopwatch: Stopwatch, *, step: int) -> None:
    """Save the state of the run, from the main process."""
    with stopwatch("save"):
        state = {
            "step": step,
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "seconds": dict(stopwatch.seconds),
            "images": training.images_id,
        }
        training.world.on_main(lambda: folder.save(state, keep=training.config.checkpoint.keep))
    journal.write("save", step=step)


def finish(training: Training, folder: RunFolder, journal: Journal, stopwatch: Stopwatch) -> None:
    """Measure what the run is worth and what it saved; write and say it."""
    config, world, model = training.config, training.world, training.model
    untrained = build_model(config.model, seed=config.seed).to(world.device)
    accuracy, accuracy_untrained = (measure_knn(training, encoder) for encoder in (model, untrained))
    baseline = build_clock(without_curriculum(config), model, images_per_epoch=len(training.images))
    summary = summarise(
        training.clock, baseline, model, stopwatch, baseline_seconds=measure_seconds(training, baseline)
    )
    if world.is_main:
        summary |= {"knn": accuracy, "knn_untrained": accuracy_untrained, "loss": journal.last("step")["loss"]}
        summary["digest"] = digest(config)
        write_json(folder.summary, summary)
        journal.write("end", **summary)
        world.say(describe(summary))


def measure_knn(training: Training, model: MaskedAutoencoder) -> float | None:
    """Measure the kNN accuracy of an encoder on the run's images."""
    config = training.config
    mean, std = config.data.statistics(model.channels)
    return knn_of_encoder(
        model,
        training.images,
        training.val,
        config=config.knn,
        mean=mean,
        std=std,
        workers=config.data.workers,
        precision=config.precision,
        world=training.world,
    )
