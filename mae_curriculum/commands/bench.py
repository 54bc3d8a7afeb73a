"""Benchmark the stages of a run on this machine, alternating between them in one process."""

import json
import platform
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae_curriculum.commands.config import BenchConfig
from mae_curriculum.commands.shapes import count_images
from mae_curriculum.curriculum.batches import micro_batches
from mae_curriculum.curriculum.low_frequency import RESIZE
from mae_curriculum.curriculum.schedule import Clock, Span
from mae_curriculum.data.loader import Batch
from mae_curriculum.data.preprocess import normalize
from mae_curriculum.data.sources import ArrayImages
from mae_curriculum.distributed import World, connect
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.pretraining import set_up
from mae_curriculum.pretraining_config import build_clock
from mae_curriculum.terminal import format_table, side
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.config import without_curriculum
from mae_curriculum.training.step import Training, update_


def bench(config: BenchConfig) -> int:
    """Run the benchmark and print its results; returns the exit code."""
    with connect() as world:
        placeholders = ArrayImages(np.empty((count_images(config.data), 0), np.uint8), labels=[], classes=())
        training = set_up(config, world, placeholders)
        baseline = build_clock(without_curriculum(config), training.model.shape, images_per_epoch=len(placeholders))
        is_gpu = world.device.type == "cuda"
        results = {
            "device": torch.cuda.get_device_name(world.device) if is_gpu else f"CPU ({platform.machine()})",
            "threads": torch.get_num_threads(),
            "stages": measure_stages(training, baseline, rounds=config.rounds),
            "resize": measure_resizing(training, rounds=config.rounds),
        }
        world.print(json.dumps(results, indent=2) if config.json else format_results(results))
    return 0


def measure_stages(training: Training[MaskedAutoencoder], baseline: Clock, *, rounds: int) -> list[dict[str, Any]]:
    """Time a training step of the baseline and of each stage, alternating between them, after a warm-up round."""
    shape = training.model.shape
    cases = [(baseline, baseline.spans[0]), *((training.clock, span) for span in training.clock.spans)]
    steps = [make_step(training, clock, span) for clock, span in cases]
    medians = median_seconds(steps, training.world, rounds=rounds)
    per_image = [seconds / span.batch_images for seconds, (_, span) in zip(medians, cases, strict=True)]
    full_flops = shape.training_flops(baseline.spans[0].view)
    return [
        {
            "stage": "full size" if number == 0 else str(number),
            "size": list(span.size),
            "seconds_per_image": value,
            "share_of_full_seconds": value / per_image[0],
            "share_of_full_flops": shape.training_flops(span.view) / full_flops,
        }
        for number, ((_, span), value) in enumerate(zip(cases, per_image, strict=True))
    ]


def make_step(training: Training[MaskedAutoencoder], clock: Clock, span: Span) -> Callable[[], object]:
    """Return a function that trains one step of a stage, at learning rate 0, on random pixels."""
    world = training.world
    parts = micro_batches(span, world.rank, world.world_size, training.config.micro_batch)
    batches = []
    for part in parts:
        pixels, ids = random_pixels(training, len(part)), torch.zeros(len(part), dtype=torch.int64)
        batches.append(Batch(pixels, ids, part, is_last=part == parts[-1], broken={}))
    moment = clock.moment(span.first_step)
    return lambda: update_(training, moment, iter(batches), Stopwatch(), lr=0.0)


def measure_resizing(training: Training[MaskedAutoencoder], *, rounds: int) -> list[dict[str, Any]]:
    """Time each resizing method on a micro-batch of normalized images, for each size of the run."""
    mean, std = training.config.data.statistics(training.model.channels)
    span = training.clock.spans[-1]
    count = len(micro_batches(span, 0, training.world.world_size, training.config.micro_batch)[0])
    images = normalize(random_pixels(training, count).to(training.world.device), mean, std)
    rows = []
    for size in dict.fromkeys(span.size for span in training.clock.spans if span.size != training.model.image_size):
        medians = median_seconds(
            [partial(resize, images, size) for resize in RESIZE.values()], training.world, rounds=3 * rounds
        )
        per_image = [seconds / count for seconds in medians]
        rows.append({"size": list(size), **dict(zip(RESIZE, per_image, strict=True))})
    return rows


def random_pixels(training: Training[MaskedAutoencoder], count: int) -> Tensor:
    """Return images of noise, (count, c, h, w) uint8, on the CPU like those of the loader."""
    return torch.randint(0, 256, (count, training.model.channels, *training.model.image_size), dtype=torch.uint8)


def median_seconds(actions: list[Callable[[], object]], world: World, *, rounds: int) -> list[float]:
    """Run actions in turn, in one warm-up round and `rounds` measured ones; returns each action's median seconds."""
    seconds: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds + 1):
        for action, measured in zip(actions, seconds, strict=True):
            world.synchronize()
            start = time.perf_counter()
            action()
            world.synchronize()
            measured.append(time.perf_counter() - start)
    return [median(measured[1:]) for measured in seconds]


def format_results(results: dict[str, Any]) -> str:
    """Format the results as tables."""
    stages = [["stage", "px", "ms/image", "relative time", "relative FLOPs"]]
    for row in results["stages"]:
        shares = (f"{row['share_of_full_seconds']:.3f}", f"{row['share_of_full_flops']:.3f}")
        stages.append([row["stage"], side(row["size"]), f"{1000 * row['seconds_per_image']:.3g}", *shares])
    resizing = [["px", *(f"{method} ms/image" for method in RESIZE), "fourier/bicubic"]]
    for row in results["resize"]:
        times = [f"{1000 * row[method]:.3f}" for method in RESIZE]
        resizing.append([side(row["size"]), *times, f"{row['fourier'] / row['bicubic']:.2f}"])
    head = f"{results['device']}, {results['threads']} threads; training steps:"
    resize_head = "resizing full-size images to the size of a stage:"
    return "\n".join([head, format_table(stages), "", resize_head, format_table(resizing)])
