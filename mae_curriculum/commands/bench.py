"""The speed of a run's stages on this machine, beside their FLOPs, measured side by side in one process."""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mae_curriculum.commands.config import BenchConfig
from mae_curriculum.commands.shapes import count_images
from mae_curriculum.curriculum.batches import micro_batches
from mae_curriculum.curriculum.low_frequency import RESIZE
from mae_curriculum.curriculum.schedule import Clock, Span
from mae_curriculum.data.loader import Batch
from mae_curriculum.data.preprocess import normalize
from mae_curriculum.distributed import World, connect
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.pretraining import set_up
from mae_curriculum.pretraining_config import build_clock
from mae_curriculum.terminal import format_table, side
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.config import without_curriculum
from mae_curriculum.training.step import Training, update_


@dataclass(frozen=True)
class PlaceholderImages:
    """As many images as the run has, none of which is ever read."""

    count: int
    labels: None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, channels: int) -> Tensor:
        """Refuse: the bench makes its own pixels."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Name an image for messages."""
        return f"image {index}"

    def fingerprint(self) -> str:
        """Tell this set from any other."""
        return f"{self.count} unseen"


def bench(config: BenchConfig) -> int:
    """Measure and print; returns the exit code."""
    with connect() as world:
        training = set_up(config, world, PlaceholderImages(count_images(config.data)))
        baseline = build_clock(without_curriculum(config), training.model.shape, images_per_epoch=len(training.images))
        stages = measure_stages(training, baseline, rounds=config.rounds)
        resizing = measure_resizing(training, rounds=config.rounds)
        facts = {
            "device": describe_device(world),
            "threads": torch.get_num_threads(),
            "stages": stages,
            "resize": resizing,
        }
        world.print(json.dumps(facts, indent=2) if config.json else as_text(facts))
    return 0


def measure_stages(training: Training[MaskedAutoencoder], baseline: Clock, *, rounds: int) -> list[dict[str, Any]]:
    """Time one training step of the baseline and of each stage, in turn, after one round that does not count."""
    model = training.model
    cases = [(baseline, baseline.spans[0]), *((training.clock, span) for span in training.clock.spans)]
    steps = [step_of(training, clock, span) for clock, span in cases]
    seconds = [[elapsed(step, training.world) for step in steps] for _ in range(rounds + 1)][1:]
    per_image = [
        median(times) / span.batch_images for times, (_, span) in zip(zip(*seconds, strict=True), cases, strict=True)
    ]
    full_flops = model.shape.training_flops(baseline.spans[0].view)
    return [
        {
            "stage": "full size" if number == 0 else str(number),
            "size": list(span.size),
            "seconds_per_image": value,
            "share_of_full_seconds": value / per_image[0],
            "share_of_full_flops": model.shape.training_flops(span.view) / full_flops,
        }
        for number, ((_, span), value) in enumerate(zip(cases, per_image, strict=True))
    ]


def step_of(training: Training[MaskedAutoencoder], clock: Clock, span: Span) -> Callable[[], object]:
    """Make a training step of a stage, with learning rate 0, on random pixels that are at hand."""
    world = training.world
    parts = micro_batches(span, world.rank, world.world_size, training.config.micro_batch)
    batches = []
    for part in parts:
        pixels, ids = random_pixels(training, len(part)), torch.zeros(len(part), dtype=torch.int64)
        batches.append(Batch(pixels, ids, part, is_last=part == parts[-1], broken={}))
    moment = clock.moment(span.first_step)
    return lambda: update_(training, moment, iter(batches), Stopwatch(), lr=0.0)


def measure_resizing(training: Training[MaskedAutoencoder], *, rounds: int) -> list[dict[str, Any]]:
    """Time each way to bring a batch of normalised images to each stage's size, in turn."""
    mean, std = training.config.data.statistics(training.model.channels)
    span = training.clock.spans[-1]
    count = len(micro_batches(span, 0, training.world.world_size, training.config.micro_batch)[0])
    images = normalize(random_pixels(training, count).to(training.world.device), mean, std)
    rows = []
    for size in dict.fromkeys(span.size for span in training.clock.spans if span.size != training.model.image_size):
        ways = [lambda resize=resize, size=size: resize(images, size) for resize in RESIZE.values()]
        seconds = [[elapsed(way, training.world) for way in ways] for _ in range(3 * rounds + 1)][1:]
        medians = [median(times) / count for times in zip(*seconds, strict=True)]
        rows.append({"size": list(size), **dict(zip(RESIZE, medians, strict=True))})
    return rows


def random_pixels(training: Training[MaskedAutoencoder], count: int) -> Tensor:
    """Make `count` images of noise, (count, c, h, w) uint8, on the CPU as the loader gives them."""
    return torch.randint(0, 256, (count, training.model.channels, *training.model.image_size), dtype=torch.uint8)


def elapsed(action: Callable[[], object], world: World) -> float:
    """Time an action in seconds, until the device is done."""
    world.synchronize()
    start = time.perf_counter()
    action()
    world.synchronize()
    return time.perf_counter() - start


def describe_device(world: World) -> str:
    """Name the device."""
    return torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else f"CPU ({platform.machine()})"


def as_text(facts: dict[str, Any]) -> str:
    """Lay the measurements out for the terminal."""
    stages = [["stage", "px", "ms/image", "of full size", "of its FLOPs"]]
    for row in facts["stages"]:
        shares = (f"{row['share_of_full_seconds']:.3f}", f"{row['share_of_full_flops']:.3f}")
        stages.append([row["stage"], side(row["size"]), f"{1000 * row['seconds_per_image']:.3g}", *shares])
    resizing = [["px", *(f"{way} ms/image" for way in RESIZE), "fourier/bicubic"]]
    for row in facts["resize"]:
        times = [f"{1000 * row[way]:.3f}" for way in RESIZE]
        resizing.append([side(row["size"]), *times, f"{row['fourier'] / row['bicubic']:.2f}"])
    head = f"{facts['device']}, {facts['threads']} threads; training steps:"
    return "\n".join(
        [head, format_table(stages), "", "bringing full images to a stage's size:", format_table(resizing)]
    )
