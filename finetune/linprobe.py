"""Linear and attentive probes of a frozen encoder: a grid of heads, trained side by side at the cost of one."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim.lars import Lars
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import Dataset

from finetune.choices import settle
from finetune.config import LinprobeConfig
from finetune.evaluation import save_classifier
from finetune.heads import Heads
from finetune.joining import describe_probe, join
from finetune.labeled import LabeledImages, open_labeled
from finetune.probe import FeatureInputs, Probe, open_features
from finetune.repeat import run_seeds
from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.batches import micro_batches
from mae_curriculum.data.sources import Images, names_fingerprint
from mae_curriculum.data.subsets import Subset
from mae_curriculum.distributed import World, connect
from mae_curriculum.evaluation.blocks import find_blocks
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.evaluation.results import format_percent, record, spread
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.run.folder import check_checkpoint
from mae_curriculum.run.stop import Stop, StoppedError
from mae_curriculum.terminal import format_table
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.config import build_training_clock, check_channels
from mae_curriculum.training.inputs import training_images
from mae_curriculum.training.loop import Check, Hooks, raise_if_stopped, watch_for_stop
from mae_curriculum.training.optimizer import build_adamw
from mae_curriculum.training.run import run_training
from mae_curriculum.training.session import RunSession
from mae_curriculum.training.step import Training
from mae_curriculum.weights.build import build_encoder, read_together
from mae_curriculum.weights.names import fingerprint
from mae_curriculum.weights.normalization import with_normalization
from mae_curriculum.weights.run_settings import resolve_source


def linprobe(config: LinprobeConfig) -> int:
    """Probe once per seed, or resume; print and record the results; returns the exit code."""
    check_checkpoint(config.checkpoint)
    config = replace(config, data=resolve_source(config.data, config.checkpoint))
    with connect() as world, watch_for_stop(config, exits=True) as stop:
        weights = read_together(config.checkpoint, world, **config.hints)
        config = replace(config, data=with_normalization(config.data, weights, config.checkpoint, world.log))
        encoder = build_encoder(weights, config.checkpoint).to(world.device).requires_grad_(False)
        for pool in config.pools if config.head == "linear" else ():
            if pool not in encoder.pools:
                raise ConfigError(f"pools: this encoder has no {pool}, only {', '.join(encoder.pools)}")
        blocks = find_blocks(config.block, len(encoder.encoder.blocks))
        train, val = open_labeled(config.data, world)
        probe_one = partial(probe_once, encoder=encoder, blocks=blocks, model=weights.model, train=train, val=val)
        once = partial(probe_one, world=world, stop=stop)
        return run_seeds(config, world, once, conclude)


def probe_once(
    config: LinprobeConfig,
    encoder: MaskedAutoencoder,
    blocks: tuple[int, ...],
    model: ModelConfig,
    train: LabeledImages,
    val: LabeledImages,
    world: World,
    stop: Stop,
) -> dict[str, Any] | None:
    """Train heads with one seed and choose one, or resume; returns the summary, None if the run was asked to stop."""
    check = partial(raise_if_stopped, stop, world)
    inference = Inference(world, config.data, config.precision, config.evaluation_batch, config.crop, check)
    learning, held_out = hold_out_labeled(train, config.held_out, seed=config.seed)
    config = settle(config, len(learning.images), world)
    probe = Probe(encoder, config, blocks)
    try:
        training = set_up(config, probe, learning, world, inference)
    except StoppedError:
        world.log("stopped while features were computed; run the same command to start again")
        return None

    def conclude(session: RunSession, stopwatch: Stopwatch, check: Check) -> dict[str, Any]:
        checked = replace(inference, check=check)
        sides = [side for side in (held_out, val) if side is not None]
        accuracies = [measure(training.model, probe, side, checked) for side in sides]
        costs = {
            "train_seconds": stopwatch.total("train"),
            "wait_seconds": stopwatch.total("wait"),
            "images": training.clock.total_images,
        }
        held_out_accuracies = accuracies[0] if held_out else None
        chosen = choose_head(training.model, config, held_out_accuracies, accuracies[-1])
        world.on_main(lambda: keep_chosen(session, training, probe, model, train.classes, chosen))
        return costs | chosen

    def build_hooks(session: RunSession) -> Hooks:
        return Hooks(partial(conclude, session))

    return run_training(training, command="linprobe", stop=stop, build_hooks=build_hooks)


def keep_chosen(
    session: RunSession,
    training: Training[Heads],
    probe: Probe,
    model: ModelConfig,
    classes: Sequence[str],
    chosen: dict[str, Any],
) -> None:
    """Save the encoder, whose configuration is `model`, with the chosen head, so that one file classifies images.

    Blocks after the chosen one are left out.
    """
    encoder, config, block = deepcopy(probe.encoder), probe.config, chosen["chosen"]["block"]
    encoder.encoder.blocks = encoder.encoder.blocks[: block + 1]
    mean, std = config.data.statistics(encoder.channels)
    description = describe_probe(
        encoder,
        replace(model, depth=block + 1),
        classes=tuple(classes),
        pool=chosen["chosen"]["pool"],
        mean=mean,
        std=std,
        crop=config.crop,
    )
    number = list_heads(training.model, config).index(chosen["chosen"])
    net = join(encoder, training.model, number, description)
    save_classifier(session, net, description, accuracy=chosen["accuracy"], step=training.clock.total_steps)


def list_heads(model: Heads, config: LinprobeConfig) -> list[dict[str, Any]]:
    """Return the block, the pooling and the learning rate of each head."""
    return [
        {"block": block, "pool": pool, "lr": factor * config.optim.base_lr} for (block, pool), factor in model.names
    ]


def choose_head(
    model: Heads, config: LinprobeConfig, held_out: list[float] | None, accuracies: list[float]
) -> dict[str, Any]:
    """Return the head with the best accuracy on the images held out (of one head, that one), and all of them."""
    names = list_heads(model, config)
    chosen_by = held_out or accuracies
    best = max(range(len(names)), key=lambda number: chosen_by[number])
    heads = [
        {**name, "held_out_accuracy": held_out and held_out[number], "accuracy": accuracies[number]}
        for number, name in enumerate(names)
    ]
    return {"accuracy": accuracies[best], "chosen": names[best], "heads": heads}


def hold_out_labeled(train: LabeledImages, share: float, *, seed: int) -> tuple[LabeledImages, LabeledImages | None]:
    """Split images at random into those to learn from and those to choose by; None if the share is 0."""
    order = np.random.default_rng((seed, 0)).permutation(len(train.images))
    count = round(share * len(order))
    if share and not 0 < count < len(order):
        raise ConfigError(f"held_out: a share of {share} of {len(order)} images leaves none on one side")

    def subset(ids: NDArray[np.int64]) -> LabeledImages:
        ids = np.sort(ids)
        return LabeledImages(Subset(train.images, ids.tolist()), train.labels[ids], train.classes)

    return subset(order[count:]), subset(order[:count]) if count else None


def build_heads(config: LinprobeConfig, probe: Probe, class_count: int) -> Heads:
    """Build the heads; the global random state is left as it was."""
    encoder = probe.encoder.encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Heads(
            config.head,
            probe.views,
            config.grid,
            width=encoder.embed_dim,
            attention_heads=encoder.blocks[0].attn.num_heads,
            class_count=class_count,
        )


def open_dataset(probe: Probe, learning: LabeledImages, inference: Inference) -> tuple[Dataset[Any], Images, Tensor]:
    """Return the data set of augmented images or of features, with the images in it and their labels."""
    config, encoder, images, labels = probe.config, probe.encoder, learning.images, learning.labels
    if config.augment:
        return training_images(config, images, encoder.image_size, encoder.channels), images, labels
    features, intact = open_features(encoder, probe.blocks, images, inference)
    return features, Subset(images, intact.tolist()), labels[intact]


def set_up(
    config: LinprobeConfig, probe: Probe, learning: LabeledImages, world: World, inference: Inference
) -> Training[Heads]:
    """Build the heads and all that trains them."""
    encoder = probe.encoder
    model = build_heads(config, probe, len(learning.classes)).to(world.device)
    check_channels(config, encoder.channels)
    dataset, images, labels = open_dataset(probe, learning, inference)
    clock = build_training_clock(
        config,
        image_size=encoder.image_size,
        patch_size=encoder.patch_size,
        images_per_epoch=len(images),
        processes=world.world_size,
    )
    for span in clock.spans:
        if min(map(len, micro_batches(span, world.rank, world.world_size, config.micro_batch))) < 2:
            raise ConfigError("batch_size, micro_batch: batch normalization needs two images or more on a device")
    groups = model.groups(config.optim.weight_decay)
    optimizer: Optimizer = build_adamw(groups, config.optim)
    if config.head == "linear":
        optimizer = Lars(groups, momentum=config.optim.betas[0])
    return Training(
        name=f"{config.head} heads",
        config=config,
        world=world,
        images=images,
        data_fingerprint=f"{names_fingerprint(images)}, encoder {fingerprint(encoder.encoder.state_dict())}",
        dataset=dataset,
        inputs=FeatureInputs(world, probe, labels),
        model=model,
        optimizer=optimizer,
        clock=clock,
    )


def measure(model: Heads, probe: Probe, side: LabeledImages, inference: Inference) -> list[float]:
    """Return the accuracy of each head on images without augmentation."""
    model.eval()
    right, count = torch.zeros(len(model.names)), 0
    for predicted, ids in classify(model, probe, side.images, inference):
        right += (predicted == side.labels[ids][:, None]).sum(dim=0)
        count += len(ids)
    model.train()
    return [float(share) for share in right / count]


def classify(
    model: Heads, probe: Probe, images: Images, inference: Inference
) -> Iterator[tuple[Tensor, Tensor | NDArray[np.int64]]]:
    """Yield the classes that each head predicts, (m, heads), and the indices of their images (m,)."""
    encoder = probe.encoder

    def predict(pixels: Tensor, _: Tensor) -> Tensor:
        return model.logits(probe(pixels)).argmax(dim=2)

    if probe.config.augment:
        size, channels = encoder.image_size, encoder.channels
        for predicted, ids in inference.run(predict, images, size=size, channels=channels):
            yield predicted.cpu(), ids.cpu()
        return
    features, intact = open_features(encoder, probe.blocks, images, inference)
    for start in range(0, len(intact), inference.batch_images):
        inference.check()
        batch = slice(start, start + inference.batch_images)
        with torch.inference_mode():
            views = probe.select(inference.world.to_device(features.rows(batch)))
            yield model.logits(views).argmax(dim=2).cpu(), intact[batch]


def conclude(config: LinprobeConfig, summaries: list[dict[str, Any]]) -> None:
    """Print and record the results of all seeds."""
    bests = [best_by_block(summary["heads"]) for summary in summaries]
    rows = [["seed", "block", "pool", "lr", "held out", "val", ""]]
    for number, summary in enumerate(summaries):
        shown = bests[number] if config.block == "all" else summary["heads"]
        rows += [format_head(head, summary["chosen"], seed=config.seed + number) for head in shown]
    accuracy = spread([summary["accuracy"] for summary in summaries])
    print(format_table(rows))
    print(f"{config.head} probe: accuracy {format_percent(accuracy)}, with the head that is best on held-out images")
    result = {
        "source": config.data.source,
        "seeds": [config.seed + number for number in range(len(summaries))],
        "head": config.head,
        "block": config.block,
        "accuracy": accuracy,
        "chosen": [summary["chosen"] for summary in summaries],
        "train_seconds": spread([summary["train_seconds"] for summary in summaries]),
    }
    if config.block == "all":
        result["by_block"] = [spread([head["accuracy"] for head in heads]) for heads in zip(*bests, strict=True)]
    record("linprobe", result, config, run=config.run, checkpoint=config.checkpoint)


def best_by_block(heads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the head of each block that did best on the images held out; without any, there is one head."""
    best: dict[int, dict[str, Any]] = {}
    for head in heads:
        block = head["block"]
        if block not in best or head["held_out_accuracy"] > best[block]["held_out_accuracy"]:
            best[block] = head
    return list(best.values())


def format_head(head: dict[str, Any], chosen: dict[str, Any], *, seed: int) -> list[str]:
    """Format a head as a row of the table."""
    held_out = head["held_out_accuracy"]
    return [
        str(seed),
        str(head["block"]),
        head["pool"],
        f"{head['lr']:g}",
        "" if held_out is None else f"{held_out:.4f}",
        f"{head['accuracy']:.4f}",
        "chosen" if chosen.items() <= head.items() else "",
    ]
