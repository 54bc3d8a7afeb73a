"""Pretraining: its settings, what is set up for it, and the summary at its end; the loop stands in `loop.py`."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mae_curriculum.config import ConfigError, config_fingerprint
from mae_curriculum.curriculum.schedule import Clock, Moment
from mae_curriculum.data.loader import NO_IMAGE, Batch, EvaluationImages, TrainingImages
from mae_curriculum.data.preprocess import show
from mae_curriculum.data.sources import Images, count_images, download, names_fingerprint, open_images
from mae_curriculum.distributed import World, connect
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.evaluation.knn import knn_of_encoder, why_no_knn
from mae_curriculum.evaluation.reconstruction import choose_spread, reconstruct_images, why_no_reconstruction
from mae_curriculum.evaluation.speedup import describe, summarize
from mae_curriculum.files import read_json, write_json
from mae_curriculum.model.flops import training_flops
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder, build_model
from mae_curriculum.model.masking import mask_noise
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.report.figures import draw_reconstructions
from mae_curriculum.terminal import side
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.config import without_curriculum
from mae_curriculum.training.loop import EXIT_RESUMABLE, StoppedError, raise_if_stopped, train_, watch_for_stop
from mae_curriculum.training.optimizer import build_optimizer
from mae_curriculum.training.session import Run, begin, open_session, resume_, try_drawing
from mae_curriculum.training.step import ImageCost, Training, build_clock_of, seconds_per_step, wrap


def pretrain(config: PretrainConfig) -> int:
    """Pretrain, or continue where the run folder stands; returns the exit code.

    Order: settings, images and model are checked; the run folder is claimed; its newest checkpoint is loaded; the steps
    that are left are trained; the summary is written.
    """
    with connect() as world, watch_for_stop(config) as stop:
        world.on_main(lambda: download(config.data))
        images, val = open_images(config.data)
        training = set_up(config, world, images)
        with open_session(config, world) as run:
            stopwatch, step = resume_(training, run)
            if step == training.clock.total_steps and run.folder.summary.exists():
                world.say(f"this run is over:\n{describe(read_json(run.folder.summary))}")
                return 0
            if why := why_no_knn(images, val, config.knn):
                world.say(f"no kNN accuracy: {why}")
            begin(run, training, step=step)
            inference = Inference(world, config.data, config.precision, config.knn.batch_images)
            measure = partial(knn_of_encoder, train=images, val=val, config=config.knn, inference=inference)
            reached_end = train_(
                training,
                run,
                stopwatch,
                first_step=step,
                stop=stop,
                evaluate=lambda step: run.journal.write("evaluation", steps_done=step, knn=measure(training.model)),
                evaluate_every_epochs=None if why else config.knn.every_epochs,
                draw=picture_keeper(training, images if val is None else val, config, run),
            )
            if not reached_end:
                return EXIT_RESUMABLE
            check = partial(raise_if_stopped, run, world, stop, step=training.clock.total_steps)
            try:
                finish(training, config, run, stopwatch, partial(measure, inference=replace(inference, check=check)))
            except StoppedError:
                return EXIT_RESUMABLE
    return 0


def set_up(config: PretrainConfig, world: World, images: Images) -> Training[MaskedAutoencoder]:
    """Build the model and all that trains it; raises ConfigError for what does not go together."""
    model = build_model(config.model, seed=config.seed).to(world.device)
    clock = build_clock(config, model, images_per_epoch=len(images), processes=world.world_size)
    dataset = TrainingImages(images, model.image_size, model.channels, config.curriculum.augmentation, config.seed)
    mean, std = config.data.statistics(model.channels)

    def inputs(batch: Batch, moment: Moment, places: range) -> tuple[Tensor, Tensor]:
        seen = show(world.to_device(batch.images), moment.size, mean=mean, std=std, resize=config.curriculum.resize)
        patch_count = math.prod(model.grid(moment.size))
        noise = mask_noise(seed=config.seed, step=moment.step, places=places, patch_count=patch_count)
        return seen, world.to_device(noise)

    return Training(
        config,
        world,
        images,
        names_fingerprint(images),
        dataset,
        inputs,
        model,
        wrap(model, world),
        build_optimizer(model, config.optim),
        clock,
        cost_of=partial(image_cost, model),
    )


def image_cost(model: MaskedAutoencoder, size: tuple[int, int]) -> ImageCost:
    """Tell what training on one image of a size (height, width) takes."""
    grid = model.grid(size)
    visible = model.visible_count(grid)
    tokens = visible + model.encoder.num_prefix_tokens
    return ImageCost(training_flops(model, size), tokens, 1 - visible / math.prod(grid))


def build_clock(
    config: PretrainConfig, model: MaskedAutoencoder, *, images_per_epoch: int, processes: int = 1
) -> Clock:
    """Lay the curriculum over the run; raises ConfigError for stages that cannot be trained."""
    clock = build_clock_of(
        config,
        image_size=model.image_size,
        patch_size=model.patch_size,
        images_per_epoch=images_per_epoch,
        processes=processes,
    )
    for span, stage in zip(clock.spans, config.curriculum.stages, strict=True):
        if span.size == model.patch_size:
            raise ConfigError(
                f"curriculum.stages: size {stage.size} is a single patch here ({side(span.size)} px), of which nothing "
                "could be masked; make it larger, or model.patch_size smaller"
            )
    return clock


def build_shapes(config: PretrainConfig, *, processes: int = 1) -> tuple[MaskedAutoencoder, Clock]:
    """Make the run's model, of shapes alone, and its clock."""
    with torch.device("meta"):  # a plan of the largest model takes no memory
        model = MaskedAutoencoder(config.model)
    clock = build_clock(config, model, images_per_epoch=count_images(config.data), processes=processes)
    return model, clock


def picture_keeper(
    training: Training[MaskedAutoencoder], images: Images, config: PretrainConfig, run: Run
) -> Callable[[int], None]:
    """Make the function that draws what the model makes of a few images, always the same, after so many steps.

    It goes into the run's `pictures/`.
    """
    world, model, clock = training.world, training.model, training.clock
    count = config.tracking.pictures
    if count and (why := why_no_reconstruction(model.target)):
        world.say(f"no pictures: {why}")
        count = 0

    def draw(step: int) -> None:
        span = clock.span(step - 1)
        shown = EvaluationImages(images, model.image_size, model.channels)
        read = [shown[index] for index in choose_spread(len(images), count)]
        pixels = torch.stack([image for image, index in read if index != NO_IMAGE])
        names = [Path(images.name(index)).name for _, index in read if index != NO_IMAGE]
        mean, std = config.data.statistics(model.channels)
        with world.autocast(config.precision):
            found = reconstruct_images(
                model, pixels, span.size, seed=config.seed, mean=mean, std=std, resize=config.curriculum.resize
            )
        title = f"{run.folder.path.name}: step {step} of {clock.total_steps}, "
        title += f"end of stage {span.index + 1} of {len(clock.spans)}"
        draw_reconstructions(path := run.folder.picture(step), found, names, title=title)
        run.journal.write("pictures", steps_done=step, files=[str(path)])

    if not count:
        return lambda _: None
    return lambda step: world.on_main(partial(try_drawing, run, partial(draw, step), step=step))


def finish(
    training: Training[MaskedAutoencoder],
    config: PretrainConfig,
    run: Run,
    stopwatch: Stopwatch,
    measure: Callable[[MaskedAutoencoder], float | None],
) -> None:
    """Measure what the run is worth and what it saved; write and say it."""
    world, model = training.world, training.model
    untrained = build_model(config.model, seed=config.seed).to(world.device)
    with stopwatch("evaluate"):
        accuracy, accuracy_untrained = measure(model), measure(untrained)
    baseline = build_clock(without_curriculum(config), model, images_per_epoch=len(training.images))
    summary = summarize(
        training.clock,
        baseline,
        partial(training_flops, model),
        stopwatch,
        baseline_seconds=seconds_per_step(training, baseline, stopwatch),
    )
    if world.is_main:
        summary |= {
            "knn": accuracy,
            "knn_untrained": accuracy_untrained,
            "loss": run.journal.newest.get("step", {}).get("loss"),
            "config_fingerprint": config_fingerprint(config),
        }
        if accuracy is not None:
            run.journal.write("evaluation", steps_done=training.clock.total_steps, knn=accuracy)
        write_json(run.folder.summary, summary)
        run.journal.write("end", **summary)
        world.say(describe(summary))
