"""Start here: pretraining, from the images to the summary. The loop itself is in `training/loop.py`."""

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from mae_curriculum.config import ConfigError, config_fingerprint
from mae_curriculum.curriculum.clock import View
from mae_curriculum.data.contents import Contents
from mae_curriculum.data.loader import NO_IMAGE, EvaluationImages
from mae_curriculum.data.sources import Images, names_fingerprint, open_together, refuse_channels
from mae_curriculum.data.stored import choose_spread
from mae_curriculum.distributed import World, connect
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.evaluation.knn import find_pool, knn_of_encoder, why_no_knn
from mae_curriculum.evaluation.reconstruction import reconstruct_images
from mae_curriculum.evaluation.speedup import describe_costs, summarize_costs
from mae_curriculum.evaluation.start import describe_evaluation, read_start, refuse_decline
from mae_curriculum.evaluation.step_times import measure_speedups
from mae_curriculum.evaluation.unlabeled import measure_unlabeled
from mae_curriculum.initialization import build_start, frozen_parameters, resolve_init
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder, build_model
from mae_curriculum.pretraining_config import (
    PretrainConfig,
    build_clock,
    list_choices,
    with_choices,
    with_choices_of_run,
)
from mae_curriculum.reference import find_watch
from mae_curriculum.report.figures import draw_reconstructions
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.run.stop import EXIT_RESUMABLE, Stop
from mae_curriculum.terminal import format_epochs
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.choices import format_choices
from mae_curriculum.training.config import without_curriculum
from mae_curriculum.training.inputs import MaskedInputs, training_images
from mae_curriculum.training.learning_rate import warmup_share
from mae_curriculum.training.loop import Check, Hooks, watch_for_stop
from mae_curriculum.training.optimizer import build_optimizer
from mae_curriculum.training.run import run_training
from mae_curriculum.training.session import RunSession, try_drawing
from mae_curriculum.training.step import ImageCost, Training
from mae_curriculum.weights.names import fingerprint
from mae_curriculum.weights.read import Weights

Measure = Callable[[MaskedAutoencoder], dict[str, float]]
"""Returns some of `METRICS` of an encoder: its kNN accuracy, or what can be measured without labels, if at all."""


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining run came to."""

    folder: Path
    """Run folder."""
    finished: bool
    """False if the run was asked to stop: the same call resumes it."""
    accuracy: float | None
    """kNN accuracy of the encoder, 0 to 1; None if unfinished, or without labels."""
    loss: float | None
    """Training loss of the last report; None if unfinished."""
    summary: dict[str, Any]
    """The content of summary.json; empty if unfinished."""


def pretrain(config: PretrainConfig) -> int:
    """Pretrain and print the result; returns the exit code: 75 if the run was asked to stop and can be resumed."""
    with connect() as world:
        result = pretrain_in(world, config, exits=True)
        if not result.finished:
            return EXIT_RESUMABLE
        world.print(describe(config, result))
    return 0


def run_pretraining(config: PretrainConfig) -> PretrainResult:
    """Pretrain a masked autoencoder, or resume its run; returns what it came to.

    Signal handlers and process groups are left as they were.

    Raises  ConfigError if the settings do not fit together, the run folder is another run's, or training diverges.
    """
    with connect() as world:
        return pretrain_in(world, config)


def pretrain_in(world: World, config: PretrainConfig, *, exits: bool = False) -> PretrainResult:
    """Pretrain in the processes that are connected already; `exits` is that of `catch_signals`."""
    with watch_for_stop(config, exits=exits) as stop:
        return pretrain_until(stop, world, config)


def pretrain_until(stop: Stop, world: World, config: PretrainConfig) -> PretrainResult:
    """Pretrain in the processes that are connected already, until the end or a request to stop that is watched for."""
    images, val, contents = open_together(config.data, world)
    config, weights = resolve_init(settle(config, world, contents), world)
    refuse_channels(images, config.model.channels)
    training = set_up(config, world, images, weights)
    hooks = partial(build_hooks, training, config, val)
    summary = run_training(training, command="pretrain", stop=stop, build_hooks=hooks)
    facts = summary or {}
    return PretrainResult(config.run, summary is not None, facts.get("knn"), facts.get("loss"), facts)


def settle(config: PretrainConfig, world: World, contents: Contents) -> PretrainConfig:
    """Return settings that are complete: what they leave open is the run's choice, or is chosen now, and logged."""
    settled = with_choices(world.on_main(lambda: with_choices_of_run(config)), contents)
    for line in format_choices(list_choices(config, settled)):
        world.log(line)
    augmentation = settled.curriculum.augmentation
    if augmentation.erasing and not world.on_main(RunFolder(config.run).config.exists):  # earlier runs go on
        raise ConfigError(
            "curriculum.augmentation.erasing is for classifiers: MAE would have to reconstruct what is erased; set it "
            f"to 0, got {augmentation.erasing}"
        )
    if augmentation.randaug is not None:
        world.log(
            "RandAugment is on, which MAE's authors do without: --curriculum.augmentation.randaug null turns it off",
            logging.WARNING,
        )
    return settled


def set_up(
    config: PretrainConfig, world: World, images: Images, weights: Weights | None = None
) -> Training[MaskedAutoencoder]:
    """Build the model and all that trains it; raises ConfigError for what does not fit together.

    config, weights  as `resolve_init` returns them.
    """
    model = build_start(config, weights).to(world.device)
    find_pool(model, config.knn)  # refuses one that the model lacks, before training
    mean, std = config.data.statistics(model.channels)
    clock = build_clock(config, model.shape, images_per_epoch=len(images), processes=world.world_size)
    start = "" if weights is None else f", weights {fingerprint(weights.encoder | weights.decoder)}"
    return Training(
        name=str(config.model.name),
        config=config,
        world=world,
        images=images,
        data_fingerprint=names_fingerprint(images) + start,
        dataset=training_images(config, images, model.image_size, model.channels, whole=model.target_from == "full"),
        inputs=MaskedInputs(world, model.shape, config.seed, mean, std),
        model=model,
        optimizer=build_optimizer(model, config.optim),
        clock=clock,
        cost_of=partial(image_cost, model),
        frozen=partial(frozen_parameters, model, clock, weights, decoder_epochs=config.init_decoder_epochs),
    )


def image_cost(model: MaskedAutoencoder, view: View) -> ImageCost:
    """Return what training on one image of a view costs."""
    visible, patches = model.shape.visible_count(view), prod(model.grid(view.size))
    tokens = model.shape.encoder.prefix_tokens + visible
    return ImageCost(model.shape.training_flops(view), tokens, mask_ratio=1 - visible / patches)


def build_hooks(
    training: Training[MaskedAutoencoder], config: PretrainConfig, val: Images | None, session: RunSession
) -> Hooks:
    """Return what pretraining does besides training: evaluations, pictures, the summary."""
    world, images, starts = training.world, training.images, config.init is not None
    no_knn = why_no_knn(images, val, config.knn)
    if no_knn:
        world.log(f"no kNN accuracy: {no_knn}")
    if no_knn and config.stop_below_start:
        raise ConfigError(f"stop_below_start compares kNN accuracies, and there is none: {no_knn}")

    watch = find_watch(config, training.data_fingerprint, session.journal, training.clock.total_steps)
    if watch:
        world.log(watch.title)

    def measure(model: MaskedAutoencoder, check: Check = lambda: None) -> dict[str, float]:
        inference = Inference(world, config.data, config.precision, config.knn.batch_images, check=check)
        knn = knn_of_encoder(model, images, val, config=config.knn, inference=inference)
        if knn is not None:
            return {"knn": knn}
        if starts:
            mask_ratio = config.model.mask_ratio  # not a stage's: evaluations of a run compare
            return measure_unlabeled(model, images if val is None else val, mask_ratio=mask_ratio, inference=inference)
        return {}

    def evaluate(steps_done: int, check: Check) -> None:
        found = measure(training.model, check)
        session.journal.write("evaluation", steps_done=steps_done, **found)
        start = world.on_main(partial(read_start, session.journal)) if steps_done else {}
        known = watch.describe_knn(steps_done, found["knn"]) if watch and "knn" in found else ""
        world.log(f"after step {steps_done}: {describe_evaluation(found, start)}" + (f"; {known}" if known else ""))
        if config.stop_below_start:
            warmup = warmup_share(training.clock, config.optim)
            world.on_main(partial(refuse_decline, session.journal, training.clock, warmup))

    def report(steps_done: int) -> None:
        sentence = watch and watch.describe_loss(steps_done)
        if sentence:
            world.log(sentence)

    def conclude(stopwatch: Stopwatch, check: Check) -> dict[str, Any]:
        facts = summarize(training, config, session, stopwatch, partial(measure, check=check), check)
        known = watch.describe_knn(training.clock.total_steps, facts["knn"]) if watch and facts["knn"] else None
        return facts | {"reference": known or None}

    draw = picture_hook(training, images if val is None else val, config, session)
    return Hooks(
        conclude,
        evaluate,
        evaluate_every_epochs=None if no_knn and not starts else config.knn.every_epochs,
        evaluates_start=starts,
        report=report,
        draw=draw,
    )


def picture_hook(
    training: Training[MaskedAutoencoder], images: Images, config: PretrainConfig, session: RunSession
) -> Callable[[int], None]:
    """Return a function that draws reconstructions of a few images, always the same, into the run's `pictures/`."""
    world, model, clock = training.world, training.model, training.clock
    count = config.tracking.pictures
    if not count:
        return lambda _: None

    def draw(steps_done: int) -> None:
        span = clock.span(steps_done - 1)
        crops = EvaluationImages(images, model.image_size, model.channels)
        items = [crops[index] for index in choose_spread(len(images), count)]
        items = [(image, index) for image, index in items if index != NO_IMAGE]
        names = [Path(images.name(index)).name for _, index in items]
        mean, std = config.data.statistics(model.channels)
        with world.autocast(config.precision):
            found = reconstruct_images(
                model,
                torch.stack([image for image, _ in items]),
                span.view,
                seed=config.seed,
                mean=mean,
                std=std,
            )
        title = f"{session.folder.path.name}: step {steps_done} of {clock.total_steps}, "
        title += f"end of stage {span.index + 1} of {len(clock.spans)}"
        path = session.folder.picture(steps_done)
        draw_reconstructions(path, found, names, title=title)
        session.journal.write("pictures", steps_done=steps_done, files=[str(path)])

    return lambda step: world.on_main(partial(try_drawing, session, partial(draw, step), step=step))


def summarize(
    training: Training[MaskedAutoencoder],
    config: PretrainConfig,
    session: RunSession,
    stopwatch: Stopwatch,
    measure: Measure,
    check: Check,
) -> dict[str, Any]:
    """Return the summary of a finished run: how good the encoder is, and what the curriculum saved."""
    model, journal, total = training.model, session.journal, training.clock.total_steps
    with stopwatch("evaluate"):
        found = measure(model)
        untrained = (
            {} if config.init else measure(build_model(config.model, seed=config.seed).to(training.world.device))
        )
    baseline = build_clock(without_curriculum(config), model.shape, images_per_epoch=len(training.images))
    speedups = measure_speedups(training, baseline, check=check)
    costs = summarize_costs(training.clock, baseline, model.shape.training_flops, stopwatch, speedups=speedups)
    if found:
        journal.write("evaluation", steps_done=total, **found)
    start = training.world.on_main(partial(read_start, journal))
    return costs | {
        "model": config.model.name,
        "knn": found.get("knn"),
        "knn_start": start.get("knn"),
        "knn_untrained": untrained.get("knn"),
        "start": start,
        "end": found,
        "loss": training.world.on_main(lambda: journal.newest.get("step", {}).get("loss")),
        "config_fingerprint": config_fingerprint(config),
    }


def describe(config: PretrainConfig, result: PretrainResult) -> str:
    """Return a result as text for someone who has not read the README."""
    summary, run, source = result.summary, config.run, config.data.source
    lines = [
        f"pretrained {summary['model']} on {source}, {format_epochs(summary['epochs'], summary.get('real_epochs'))}",
        describe_costs(summary),
    ]
    if summary["end"]:
        untrained = "" if summary["start"] else f", untrained {summary['knn_untrained']:.4f}"
        lines.append(describe_evaluation(summary["end"], summary["start"]) + untrained)
        if None not in (result.accuracy, summary["knn_untrained"]) and result.accuracy < summary["knn_untrained"]:
            lines.append("the encoder is worse than an untrained one: train longer, or look at the loss and pictures/")
    if summary.get("reference"):
        lines.append(f"kNN accuracy {summary['reference']} of these settings")
    files = ["config.yaml", "journal.jsonl", "summary.json", "checkpoints/"]
    if config.tracking.pictures:
        files.append("pictures/ (reconstructions)")
    lines.append(f"all of it is in {run}: {', '.join(files)}")
    recipe, quoted = f" --config {source}" if source in ("digits", "cifar10") else "", shlex.quote(str(run))
    lines += [
        "what next:",
        f"  python -m mae_curriculum report {quoted}",
        f"  python -m finetune finetune{recipe} --checkpoint {quoted}"
        if result.accuracy is not None
        else f"  python -m mae_curriculum export --checkpoint {quoted} --out {quoted}/encoder.safetensors",
    ]
    return "\n".join(lines)
