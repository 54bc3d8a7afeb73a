"""Linear and attentive probes of a frozen encoder: a grid of heads side by side, for the price of one."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim.lars import Lars
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import Dataset

from finetune.config import LinprobeConfig
from finetune.heads import Heads
from finetune.labeled import LabeledImages, open_labeled
from finetune.repeat import run_seeds
from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.schedule import Moment
from mae_curriculum.data.loader import Batch, Request, TrainingImages, micro_batches
from mae_curriculum.data.preprocess import show
from mae_curriculum.data.sources import Subset, names_fingerprint
from mae_curriculum.distributed import World, connect
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.evaluation.results import format_percent, record, spread
from mae_curriculum.files import read_json, write_json
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.run.stop import Stop
from mae_curriculum.terminal import format_table
from mae_curriculum.training.config import check_channels
from mae_curriculum.training.loop import StoppedError, raise_if_stopped, train_, watch_for_stop
from mae_curriculum.training.optimizer import build_adamw
from mae_curriculum.training.session import begin, open_session, resume_
from mae_curriculum.training.step import Training, build_clock_of, wrap
from mae_curriculum.weights.build import build_encoder, read_together
from mae_curriculum.weights.names import fingerprint
from mae_curriculum.weights.run_settings import resolve_source


@dataclass(frozen=True)
class FeatureRows(Dataset[tuple[Tensor, int, dict[str, str]]]):
    """Features kept on disk, in place of images."""

    features: NDArray[np.float32]
    ids: NDArray[np.int64]

    def __getitem__(self, request: Request) -> tuple[Tensor, int, dict[str, str]]:
        """Give an image's features (p, d)."""
        return torch.from_numpy(self.features[self.ids[request.image]].copy()), request.image, {}


def linprobe(config: LinprobeConfig) -> int:
    """Probe once for each seed, or continue; print and record the results; returns the exit code."""
    config = replace(config, data=resolve_source(config.data, config.checkpoint))
    with connect() as world, watch_for_stop(config) as stop:
        weights = read_together(config.checkpoint, world, heads=config.heads)
        encoder = build_encoder(weights, config.checkpoint).to(world.device).requires_grad_(False)
        if lacking := [pool for pool in config.pools if config.head == "linear" and pool not in encoder.pools]:
            raise ConfigError(f"pools: this encoder has no {lacking[0]}, only {', '.join(encoder.pools)}")
        train, val = open_labeled(config.data, world)
        once = partial(probe_once, encoder=encoder, train=train, val=val, world=world, stop=stop)
        return run_seeds(config, world, once, conclude)


def probe_once(
    config: LinprobeConfig,
    encoder: MaskedAutoencoder,
    train: LabeledImages,
    val: LabeledImages,
    world: World,
    stop: Stop,
) -> dict[str, Any] | None:
    """Train and choose heads, or continue where the run folder stands; returns the summary, None if stopped."""
    inference = Inference(world, config.data, config.precision, config.evaluation_batch, config.crop)
    learning, held_out = hold_out_labeled(train, config.held_out, seed=config.seed)
    training = set_up(config, encoder, learning, world, inference)
    with open_session(config, world) as run:
        stopwatch, step = resume_(training, run)
        if step == training.clock.total_steps and run.folder.summary.exists():
            summary: dict[str, Any] = read_json(run.folder.summary)
            return summary
        begin(run, training, step=step)
        reached_end = train_(
            training,
            run,
            stopwatch,
            first_step=step,
            stop=stop,
            evaluate=lambda _: None,
            evaluate_every_epochs=None,
        )
        if not reached_end:
            return None
        check = partial(raise_if_stopped, run, world, stop, step=training.clock.total_steps)
        look = replace(inference, check=check)
        try:
            accuracies = [measure(training.model, encoder, side, look, config) for side in (held_out, val) if side]
        except StoppedError:
            return None
        names = [{"pool": pool, "lr": factor * config.optim.base_lr} for pool, factor in training.model.names]
        best = max(range(len(names)), key=lambda number: accuracies[0][number])
        summary = {
            "accuracy": accuracies[-1][best],
            "chosen": names[best],
            "heads": [
                {**name, "held_out_accuracy": chosen_by if held_out else None, "accuracy": accuracy}
                for name, chosen_by, accuracy in zip(names, accuracies[0], accuracies[-1], strict=True)
            ],
            "train_seconds": stopwatch.total("train"),
            "wait_seconds": stopwatch.total("wait"),
            "images": training.clock.total_images,
        }
        world.on_main(lambda: write_json(run.folder.summary, summary))
        run.journal.write("end", **summary)
        return summary


def hold_out_labeled(train: LabeledImages, share: float, *, seed: int) -> tuple[LabeledImages, LabeledImages | None]:
    """Split images to learn from into those and others to choose by, at random; None for no others."""
    order = np.random.default_rng((seed, 0)).permutation(len(train.images))
    count = round(share * len(order))
    if share and not 0 < count < len(order):
        raise ConfigError(f"held_out: a share of {share} of {len(order)} images leaves none on one side")
    sides = [np.sort(ids) for ids in (order[count:], order[:count])]
    first, second = (
        LabeledImages(Subset(train.images, ids.tolist()), train.labels[ids], train.classes) for ids in sides
    )
    return first, second if count else None


def set_up(
    config: LinprobeConfig, encoder: MaskedAutoencoder, learning: LabeledImages, world: World, inference: Inference
) -> Training[Heads]:
    """Build the heads and all that trains them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        heads = encoder.encoder.blocks[0].attn.num_heads
        model = Heads(
            config.head,
            config.pools if config.head == "linear" else ("attention",),
            config.grid,
            width=encoder.encoder.embed_dim,
            attention_heads=heads,
            class_count=len(learning.classes),
        ).to(world.device)
    images, labels = learning.images, learning.labels
    mean, std = config.data.statistics(encoder.channels)
    dataset: Dataset[Any]
    if config.augment:
        augmentation = config.curriculum.augmentation
        dataset = TrainingImages(images, encoder.image_size, encoder.channels, augmentation, config.seed)
    else:
        features = inference.cached(encoder, images)
        whole = np.flatnonzero(np.isfinite(features[:, 0, 0]))
        images, labels = Subset(images, whole.tolist()), labels[whole]
        dataset = FeatureRows(features, whole)
    wanted = [encoder.pools.index(pool) for pool in config.pools if pool in encoder.pools]

    def inputs(batch: Batch, moment: Moment, _places: range) -> tuple[Tensor, Tensor]:
        seen = world.to_device(batch.images)
        if config.augment:
            seen = show(seen, moment.size, mean=mean, std=std, resize=config.curriculum.resize)
            with torch.no_grad(), world.autocast(config.precision):
                seen = describe(encoder, seen, config.head)
        return seen[:, wanted] if config.head == "linear" else seen, world.to_device(labels[batch.ids])

    clock = build_clock_of(
        config,
        image_size=encoder.image_size,
        patch_size=encoder.patch_size,
        images_per_epoch=len(images),
        processes=world.world_size,
    )
    check_channels(config, encoder.channels)
    for span in clock.spans:
        if min(map(len, micro_batches(span, world.rank, world.world_size, config.micro_batch))) < 2:
            raise ConfigError("batch_size, micro_batch: batch normalisation needs two images or more on a device")
    origin = f"{names_fingerprint(images)}, encoder {fingerprint(encoder.encoder.state_dict())}"
    groups = model.groups(config.optim.weight_decay)
    optimizer: Optimizer = build_adamw(groups, config.optim)
    if config.head == "linear":
        optimizer = Lars(groups, momentum=config.optim.betas[0])
    return Training(config, world, images, origin, dataset, inputs, model, wrap(model, world), optimizer, clock)


def describe(encoder: MaskedAutoencoder, images: Tensor, head: str) -> Tensor:
    """Describe images for a kind of head: (b, p, d) of each pool, or (b, n, d) of each patch."""
    if head == "linear":
        return encoder.features(images).float()
    return encoder.tokens(images)[:, encoder.encoder.num_prefix_tokens :].float()


def measure(
    model: Heads, encoder: MaskedAutoencoder, side: LabeledImages, inference: Inference, config: LinprobeConfig
) -> list[float]:
    """Tell the accuracy of each head on images as they are."""
    wanted = [encoder.pools.index(pool) for pool in config.pools if pool in encoder.pools]

    def predict(images: Tensor) -> Tensor:
        described = describe(encoder, images, config.head)
        return model.logits(described[:, wanted] if config.head == "linear" else described).argmax(dim=2)

    model.eval()
    right, count = torch.zeros(len(model.names)), 0
    for predicted, ids in inference.run(predict, side.images, size=encoder.image_size, channels=encoder.channels):
        right += (predicted.cpu() == side.labels[ids.cpu()][:, None]).sum(dim=0)
        count += len(ids)
    model.train()
    return [float(share) for share in right / count]


def conclude(config: LinprobeConfig, summaries: list[dict[str, Any]]) -> None:
    """Print and record what came of all seeds."""
    rows = [["seed", "pool", "lr", "held out", "val", ""]]
    for number, summary in enumerate(summaries):
        for head in summary["heads"]:
            chosen = all(head[key] == value for key, value in summary["chosen"].items())
            chosen_by = "" if head["held_out_accuracy"] is None else f"{head['held_out_accuracy']:.4f}"
            rows.append(
                [
                    str(config.seed + number),
                    head["pool"],
                    f"{head['lr']:g}",
                    chosen_by,
                    f"{head['accuracy']:.4f}",
                    "chosen" if chosen else "",
                ]
            )
    accuracy = spread([summary["accuracy"] for summary in summaries])
    print(format_table(rows))
    print(f"{config.head} probe: accuracy {format_percent(accuracy)} of the head that did best on the images held out")
    result = {
        "source": config.data.source,
        "seeds": [config.seed + number for number in range(len(summaries))],
        "head": config.head,
        "accuracy": accuracy,
        "chosen": [summary["chosen"] for summary in summaries],
        "train_seconds": spread([summary["train_seconds"] for summary in summaries]),
    }
    record("linprobe", result, config, run=config.run, checkpoint=config.checkpoint)
