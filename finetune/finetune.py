"""Fine-tuning: an encoder and a head learn to classify, with or without a curriculum; also from scratch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from finetune.choices import settle
from finetune.classifier import Classifier, build_classifier
from finetune.config import FinetuneConfig
from finetune.confusion import draw_confusion
from finetune.evaluation import ClassifierEvaluation, best_accuracy, keep_best, measure
from finetune.labeled import LabeledImages, open_labeled
from finetune.mixing import layer_decay_groups, mix, position_seed
from finetune.repeat import run_seeds
from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import Clock, Moment, View
from mae_curriculum.data.loader import Batch
from mae_curriculum.data.preprocess import preprocess
from mae_curriculum.data.sources import names_fingerprint
from mae_curriculum.distributed import World, connect
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.evaluation.results import format_percent, record, spread
from mae_curriculum.evaluation.speedup import describe_costs, summarize_costs
from mae_curriculum.evaluation.step_times import measure_speedups
from mae_curriculum.model.shape import TRAINING_FACTOR
from mae_curriculum.run.folder import check_checkpoint
from mae_curriculum.run.stop import Stop
from mae_curriculum.terminal import format_or_dash, format_table
from mae_curriculum.tracking.journal import finite_or_none
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.config import build_training_clock, check_channels, without_curriculum
from mae_curriculum.training.inputs import training_images
from mae_curriculum.training.loop import Check, Hooks, watch_for_stop
from mae_curriculum.training.optimizer import build_adamw
from mae_curriculum.training.run import run_training
from mae_curriculum.training.session import RunSession, try_drawing
from mae_curriculum.training.step import ImageCost, Training
from mae_curriculum.weights.build import read_together
from mae_curriculum.weights.names import fingerprint
from mae_curriculum.weights.normalization import with_normalization
from mae_curriculum.weights.read import Weights
from mae_curriculum.weights.run_settings import resolve_source

DEFAULT_LAYER_DECAY = 0.65
"""Layer decay of a pretrained encoder where the settings leave it open, as in MAE; from scratch there is none."""


def finetune(config: FinetuneConfig) -> int:
    """Fine-tune once per seed, or resume; print and record the results; returns the exit code."""
    if config.checkpoint is not None:
        check_checkpoint(config.checkpoint)
    config = replace(config, data=resolve_source(config.data, config.checkpoint))
    with connect() as world, watch_for_stop(config, exits=True) as stop:
        weights = None
        if config.checkpoint is not None:
            weights = read_together(config.checkpoint, world, **config.hints)
            config = replace(config, data=with_normalization(config.data, weights, config.checkpoint, world.log))
        train, val = open_labeled(config.data, world)

        def once(config: FinetuneConfig) -> dict[str, Any] | None:
            summary = finetune_once(config, weights, train, val, world, stop)
            if summary is not None:
                world.print(describe_costs(summary))
            return summary

        return run_seeds(config, world, once, conclude)


def finetune_once(
    config: FinetuneConfig,
    weights: Weights | None,
    train: LabeledImages,
    val: LabeledImages,
    world: World,
    stop: Stop,
) -> dict[str, Any] | None:
    """Fine-tune with one seed, or resume; returns the summary, None if the run was asked to stop."""
    config = settle(config, len(train.images), world)
    training, notes = set_up(config, weights, train, world)
    hooks = partial(build_hooks, training, config, val, notes)
    return run_training(training, command="finetune", stop=stop, build_hooks=hooks)


def build_hooks(
    training: Training[Classifier], config: FinetuneConfig, val: LabeledImages, notes: str, session: RunSession
) -> Hooks:
    """Return what fine-tuning does besides training: evaluations, the best weights, the summary."""
    world = training.world
    if notes:
        world.log(notes)
    if config.drop_path_epochs is not None:
        given, epochs = config.model.drop_path, f"{config.epochs} / {config.drop_path_epochs} epochs"
        world.log(f"drop path {config.scaled_drop_path:.3g}: {given} x {epochs}")
    inference = Inference(world, config.data, config.precision, config.evaluation_batch, config.crop)

    def evaluate(steps_done: int, check: Check) -> ClassifierEvaluation:
        evaluation = measure(training, val, replace(inference, check=check))
        accuracy, loss = map(finite_or_none, (evaluation.accuracy, evaluation.loss))
        session.journal.write("evaluation", steps_done=steps_done, accuracy=accuracy, val_loss=loss)
        keep = partial(keep_best, session, training, evaluation.accuracy, classes=val.classes, crop=config.crop)
        world.on_main(partial(keep, step=steps_done))
        return evaluation

    def conclude(stopwatch: Stopwatch, check: Check) -> dict[str, Any]:
        with stopwatch("evaluate"):
            evaluation = evaluate(training.clock.total_steps, check)
        check()
        count = len(training.images)
        baseline = build_clock(without_curriculum(config), training.model, count, processes=world.world_size)
        speedups = measure_speedups(training, baseline, check=check)
        flops = partial(training_flops, training.model)
        costs = summarize_costs(training.clock, baseline, flops, stopwatch, speedups=speedups)
        return world.on_main(lambda: costs | summarize(session, evaluation, val.classes))

    return Hooks(conclude, evaluate, config.evaluate_every_epochs, facts={"weights": notes})


def summarize(session: RunSession, evaluation: ClassifierEvaluation, classes: Sequence[str]) -> dict[str, Any]:
    """Draw the confusion matrix; return the accuracies and the loss."""
    path = session.folder.path / "pictures" / "confusion.png"
    step = session.journal.newest["evaluation"]["steps_done"]
    try_drawing(session, partial(draw_confusion, evaluation.confusion, classes, path), step=step)
    right, counts = evaluation.confusion.diagonal(), evaluation.confusion.sum(dim=1)
    best = best_accuracy(session.folder)
    class_accuracy = {}
    for name, share, count in zip(classes, right / counts, counts, strict=True):
        class_accuracy[name] = float(share) if count else None
    return {
        "accuracy": evaluation.accuracy,
        "best_accuracy": evaluation.accuracy if best is None else best,
        "images_evaluated": int(counts.sum()),
        "loss": session.journal.newest.get("step", {}).get("loss"),
        "class_accuracy": class_accuracy,
    }


@dataclass(frozen=True)
class LabeledInputs:
    """Turn batches into what the classifier sees at a moment of the run, and into soft targets."""

    world: World
    labels: Tensor
    """(n,) classes of all images, int64."""
    class_count: int
    config: FinetuneConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mixer: Any
    """timm's Mixup; None for neither mixup nor cutmix."""

    def __call__(self, batch: Batch, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return images (b, c, h, w) and targets (b, classes) that sum to 1."""
        config, to_device = self.config, self.world.to_device
        view = moment.view
        images = preprocess(to_device(batch.images), view.size, mean=self.mean, std=self.std, resize=view.resize)
        labels = to_device(self.labels[batch.ids])
        torch.manual_seed(position_seed(config.seed, moment.step, batch.places.start))  # drop path draws from it
        if self.mixer is not None:
            return mix(self.mixer, images, labels, seed=position_seed(config.seed, moment.step))
        share = config.smoothing / self.class_count
        even = torch.full((self.class_count,), share, device=self.world.device)
        return images, even + (1 - config.smoothing) * nn.functional.one_hot(labels, self.class_count)


def set_up(
    config: FinetuneConfig, weights: Weights | None, train: LabeledImages, world: World
) -> tuple[Training[Classifier], str]:
    """Build the classifier and all that trains it; returns also what of the pretrained weights did not fit."""
    class_count = len(train.classes)
    model_config = replace(config.model, drop_path=config.scaled_drop_path)
    model, notes = build_classifier(model_config, weights, class_count=class_count, seed=config.seed)
    model = model.to(world.device)
    check_channels(config, model.channels)
    clock = build_clock(config, model, len(train.images), processes=world.world_size)
    model.make_ready_({span.size for span in clock.spans}, world.device)
    mixer = build_mixer(config, class_count)
    layer_decay = config.layer_decay or (1.0 if weights is None else DEFAULT_LAYER_DECAY)
    groups = layer_decay_groups(model.net, config.optim.weight_decay, layer_decay)
    ema = None
    if config.average_decay is not None:
        blend = get_ema_multi_avg_fn(config.average_decay)  # type: ignore[no-untyped-call]
        ema = AveragedModel(model, multi_avg_fn=blend, use_buffers=True)
    mean, std = config.data.statistics(model.channels)
    training = Training(
        name=str(config.model.name if weights is None else weights.model.name),
        config=config,
        world=world,
        images=train.images,
        data_fingerprint=names_fingerprint(train.images)
        + ("" if weights is None else f", weights {fingerprint(weights.encoder)}"),
        dataset=training_images(config, train.images, model.image_size, model.channels),
        inputs=LabeledInputs(world, train.labels, class_count, config, mean, std, mixer),
        model=model,
        optimizer=build_adamw(groups, config.optim),
        clock=clock,
        pair_size=1 if mixer is None else 2,
        ema=ema,
        cost_of=lambda view: ImageCost(training_flops(model, view)),
    )
    return training, notes


def build_mixer(config: FinetuneConfig, class_count: int) -> Any:
    """Return timm's Mixup, None for neither mixup nor cutmix; raises ConfigError for odd batches."""
    if config.mixup == 0 and config.cutmix == 0:
        return None
    assert config.batch_size is not None, "settled"
    if config.batch_size % 2:
        raise ConfigError(f"batch_size: mixup and cutmix mix pairs, so a batch must be even, got {config.batch_size}")
    return Mixup(  # type: ignore[no-untyped-call]
        config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=class_count
    )


def build_clock(config: FinetuneConfig, model: Classifier, images_per_epoch: int, *, processes: int) -> Clock:
    """Build the run's clock; raises ConfigError for stages that cannot be trained."""
    return build_training_clock(
        config,
        image_size=model.image_size,
        patch_size=model.cell,
        images_per_epoch=images_per_epoch,
        processes=processes * (2 if config.mixup > 0 or config.cutmix > 0 else 1),
    )


def training_flops(model: Classifier, view: View) -> int:
    """Return the FLOPs of one image's share of a training step."""
    was_training = model.training
    image = torch.zeros(1, model.channels, *view.size, device=next(model.parameters()).device)
    # attention as matrix products: the counter does not know every device's own kernel
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval().logits(image)
    model.train(was_training)
    flops: int = counter.get_total_flops()
    return TRAINING_FACTOR * flops


def conclude(config: FinetuneConfig, summaries: list[dict[str, Any]]) -> None:
    """Print and record the results of all seeds."""
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
                format_or_dash(summary["speedup_seconds"], "{:.2f}x"),
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
        "speedup_seconds": [summary["speedup_seconds"] for summary in summaries],
    }
    record("finetune", result, config, run=config.run, checkpoint=config.checkpoint)
