"""Fine-tuning: an encoder and a head learn to classify, under a curriculum or without; from scratch too."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from finetune.classifier import Classifier, build_classifier
from finetune.config import FinetuneConfig
from finetune.confusion import draw_confusion
from finetune.evaluation import ClassifierEvaluation, best_accuracy, keep_best, measure
from finetune.labeled import LabeledImages, open_labeled
from finetune.mixing import layer_decay_groups, mix, position_seed
from finetune.repeat import run_seeds
from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.schedule import Clock, Moment
from mae_curriculum.data.loader import Batch, TrainingImages
from mae_curriculum.data.preprocess import show
from mae_curriculum.data.sources import names_fingerprint
from mae_curriculum.distributed import World, connect
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.evaluation.results import format_percent, record, spread
from mae_curriculum.evaluation.speedup import describe, summarize
from mae_curriculum.files import read_json, write_json
from mae_curriculum.model.flops import TRAINING_FACTOR
from mae_curriculum.run.stop import Stop
from mae_curriculum.terminal import format_table
from mae_curriculum.tracking.journal import finite_or_none
from mae_curriculum.training.config import check_channels, without_curriculum
from mae_curriculum.training.loop import StoppedError, raise_if_stopped, train_, watch_for_stop
from mae_curriculum.training.optimizer import build_adamw
from mae_curriculum.training.session import Run, begin, open_session, resume_, try_drawing
from mae_curriculum.training.step import ImageCost, Training, build_clock_of, seconds_per_step, wrap
from mae_curriculum.weights.build import read_together
from mae_curriculum.weights.names import fingerprint
from mae_curriculum.weights.read import Weights
from mae_curriculum.weights.run_settings import resolve_source


def finetune(config: FinetuneConfig) -> int:
    """Fine-tune once for each seed, or continue; print and record the results; returns the exit code."""
    config = replace(config, data=resolve_source(config.data, config.checkpoint))
    with connect() as world, watch_for_stop(config) as stop:
        weights = None if config.checkpoint is None else read_together(config.checkpoint, world, heads=config.heads)
        train, val = open_labeled(config.data, world)
        once = partial(finetune_once, weights=weights, train=train, val=val, world=world, stop=stop)
        return run_seeds(config, world, once, conclude)


def finetune_once(
    config: FinetuneConfig,
    weights: Weights | None,
    train: LabeledImages,
    val: LabeledImages,
    world: World,
    stop: Stop,
) -> dict[str, Any] | None:
    """Fine-tune, or continue where the run folder stands; returns the summary, None if it was asked to stop."""
    training, told = set_up(config, weights, train, world)
    with open_session(config, world) as run:
        stopwatch, step = resume_(training, run)
        if step == training.clock.total_steps and run.folder.summary.exists():
            summary: dict[str, Any] = read_json(run.folder.summary)
            return summary
        begin(run, training, step=step, weights=told)
        if told:
            world.say(told)
        inference = Inference(world, config.data, config.precision, config.evaluation_batch, config.crop)

        def evaluate(step: int, inference: Inference = inference) -> ClassifierEvaluation:
            evaluation = measure(training, val, inference)
            accuracy, loss = map(finite_or_none, (evaluation.accuracy, evaluation.loss))
            run.journal.write("evaluation", steps_done=step, accuracy=accuracy, val_loss=loss)
            world.on_main(lambda: keep_best(run, training, evaluation.accuracy, step=step))
            return evaluation

        reached_end = train_(
            training,
            run,
            stopwatch,
            first_step=step,
            stop=stop,
            evaluate=evaluate,
            evaluate_every_epochs=config.evaluate_every_epochs,
        )
        if not reached_end:
            return None
        total = training.clock.total_steps
        check = partial(raise_if_stopped, run, world, stop, step=total)
        try:
            with stopwatch("evaluate"):
                evaluation = evaluate(total, replace(inference, check=check))
            check()
        except StoppedError:
            return None
        baseline = lay_out(without_curriculum(config), training.model, len(train.images), world)
        baseline_seconds = seconds_per_step(training, baseline, stopwatch)
        flops = partial(training_flops, training.model)
        costs = summarize(training.clock, baseline, flops, stopwatch, baseline_seconds=baseline_seconds)
        return world.on_main(lambda: finish(run, world, evaluation, val.classes, costs))


def finish(
    run: Run, world: World, evaluation: ClassifierEvaluation, classes: Sequence[str], costs: dict[str, Any]
) -> dict[str, Any]:
    """Write and say what a fine-tuning came to; returns its summary."""
    right, counts = evaluation.confusion.diagonal(), evaluation.confusion.sum(dim=1)
    summary = costs | {
        "accuracy": evaluation.accuracy,
        "best_accuracy": evaluation.accuracy if (best := best_accuracy(run.folder)) is None else best,
        "images_evaluated": int(counts.sum()),
        "loss": run.journal.newest.get("step", {}).get("loss"),
        "class_accuracy": {
            name: float(share) if count else None
            for name, share, count in zip(classes, right / counts, counts, strict=True)
        },
    }
    path = run.folder.path / "pictures" / "confusion.png"
    draw = partial(draw_confusion, evaluation.confusion, classes, path)
    try_drawing(run, draw, step=run.journal.newest["evaluation"]["steps_done"])
    write_json(run.folder.summary, summary)
    run.journal.write("end", **summary)
    world.say(describe(summary))
    return summary


def set_up(
    config: FinetuneConfig, weights: Weights | None, train: LabeledImages, world: World
) -> tuple[Training[Classifier], str]:
    """Build the classifier and all that trains it; tells too what of the pretrained weights did not fit."""
    model, told = build_classifier(config.model, weights, class_count=len(train.classes), seed=config.seed)
    model = model.to(world.device)
    clock = lay_out(config, model, len(train.images), world)
    model.make_ready_({span.size for span in clock.spans}, world.device)
    augmentation = config.curriculum.augmentation
    mean, std = config.data.statistics(model.channels)
    check_channels(config, model.channels)
    mixing = config.mixup > 0 or config.cutmix > 0
    if mixing and (odd := [span.batch_images for span in clock.spans if span.batch_images % 2]):
        raise ConfigError(f"batch_size: mixup and cutmix mix pairs, so a batch must be even, got {odd[0]}")
    mixer: Any = Mixup(  # type: ignore[no-untyped-call]
        config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=len(train.classes)
    )
    even = torch.full((len(train.classes),), config.smoothing / len(train.classes), device=world.device)

    def inputs(batch: Batch, moment: Moment, places: range) -> tuple[Tensor, Tensor]:
        seen = show(world.to_device(batch.images), moment.size, mean=mean, std=std, resize=config.curriculum.resize)
        labels = world.to_device(train.labels[batch.ids])
        torch.manual_seed(position_seed(config.seed, moment.step, places.start))  # what drop path draws from
        if mixing:
            return mix(mixer, seen, labels, seed=position_seed(config.seed, moment.step))
        return seen, even + (1 - config.smoothing) * nn.functional.one_hot(labels, len(even))

    pretrained_decay = 1.0 if weights is None else 0.65
    groups = layer_decay_groups(model.net, config.optim.weight_decay, config.layer_decay or pretrained_decay)
    ema = None
    if config.average_decay is not None:
        blend = get_ema_multi_avg_fn(config.average_decay)  # type: ignore[no-untyped-call]
        ema = AveragedModel(model, multi_avg_fn=blend, use_buffers=True)
    training = Training(
        config,
        world,
        train.images,
        names_fingerprint(train.images) + ("" if weights is None else f", weights {fingerprint(weights.encoder)}"),
        TrainingImages(train.images, model.image_size, model.channels, augmentation, config.seed),
        inputs,
        model,
        wrap(model, world),
        build_adamw(groups, config.optim),
        clock,
        pair_size=2 if mixing else 1,
        ema=ema,
        cost_of=lambda size: ImageCost(training_flops(model, size)),
    )
    return training, told


def lay_out(config: FinetuneConfig, model: Classifier, images_per_epoch: int, world: World) -> Clock:
    """Lay the curriculum over the run."""
    return build_clock_of(
        config,
        image_size=model.image_size,
        patch_size=model.cell,
        images_per_epoch=images_per_epoch,
        processes=world.world_size * (2 if config.mixup > 0 or config.cutmix > 0 else 1),
    )


def training_flops(model: Classifier, size: tuple[int, int]) -> int:
    """Count the floating-point operations of one image's share of a training step."""
    training = model.training
    image = torch.zeros(1, model.channels, *size, device=next(model.parameters()).device)
    # spelt out as matrix products: the counter does not know every device's attention
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval().logits(image)
    model.train(training)
    flops: int = counter.get_total_flops()
    return TRAINING_FACTOR * flops


def conclude(config: FinetuneConfig, summaries: list[dict[str, Any]]) -> None:
    """Print and record what came of all seeds."""
    accuracy, best = (spread([summary[key] for summary in summaries]) for key in ("accuracy", "best_accuracy"))
    rows = [["seed", "accuracy", "best", "images", "training s", "FLOPs", "saved FLOPs", "saved s"]]
    for number, summary in enumerate(summaries):
        rows.append(
            [
                str(config.seed + number),
                f"{summary['accuracy']:.4f}",
                f"{summary['best_accuracy']:.4f}",
                f"{summary['images']:,}",
                f"{summary['train_seconds']:.1f}",
                f"{summary['flops']:.3g}",
                f"{summary['speedup_flops']:.2f}x",
                f"{summary['speedup_seconds']:.2f}x",
            ]
        )
    print(format_table(rows))
    print(f"fine-tuned accuracy {format_percent(accuracy)}, best {format_percent(best)} (chosen on the same images)")
    result = {
        "source": config.data.source,
        "seeds": [config.seed + number for number in range(len(summaries))],
        "accuracy": accuracy,
        "best_accuracy": best,
        "train_seconds": spread([summary["train_seconds"] for summary in summaries]),
        "speedup_flops": summaries[0]["speedup_flops"],
        "speedup_seconds": spread([summary["speedup_seconds"] for summary in summaries]),
    }
    record("finetune", result, config, run=config.run, checkpoint=config.checkpoint)
