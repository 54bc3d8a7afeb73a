"""Time the steps of a run's stages and of its baseline in turn, so that both meet the same machine and load."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mae_curriculum.curriculum.batches import micro_batches
from mae_curriculum.curriculum.clock import Clock, Span
from mae_curriculum.data.loader import Batch, TrainingImages
from mae_curriculum.distributed import World
from mae_curriculum.run.background_save import to_host
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.step import Training, update_

ROUNDS = 5
"""Measurements of each stage."""

MEASURED_SECONDS = 0.05
"""Least duration of a round: steps of milliseconds are repeated, up to `MAX_REPEATS` times."""

MAX_REPEATS = 20


def measure_speedups(
    training: Training[Any], baseline: Clock, *, check: Callable[[], object] = lambda: None
) -> list[float]:
    """Return in each of several rounds how many times faster the steps of a run are than those of its baseline.

    Both train on the same noise, ready in memory, at learning rate 0: waiting for data is not counted on either side.
    Weights, moments and random state are left as they were.

    check  called before each round on all ranks; may raise an exception to stop.
    """
    clock = training.clock
    if clock.spans == baseline.spans:
        return [1.0]
    cases = [(baseline, baseline.spans[0]), *((clock, span) for span in clock.spans)]
    with unchanged_(training):
        steps = make_steps(training, cases)
        seconds = time_in_turn(steps, training.world, rounds=ROUNDS, repeated=True, check=check)
    speedups = []
    for full, *own in zip(*seconds, strict=True):
        run_seconds = sum(span.steps * each for span, each in zip(clock.spans, own, strict=True))
        speedups.append(baseline.total_steps * full / run_seconds)
    return speedups


@contextmanager
def unchanged_(training: Training[Any]) -> Iterator[None]:
    """Restore weights, moments and random state at the end of the block."""
    parts = [part for part in (training.model, training.optimizer, training.ema) if part is not None]
    states = [to_host(part.state_dict()) for part in parts]
    devices = [training.world.device] if training.world.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)


def make_steps(training: Training[Any], cases: Sequence[tuple[Clock, Span]]) -> list[Callable[[], object]]:
    """Return for each stage a function that trains one of its steps, at learning rate 0, on noise."""
    world, micro_batch = training.world, training.config.micro_batch
    split = [micro_batches(span, world.rank, world.world_size, micro_batch, training.pair_size) for _, span in cases]
    pixels = random_pixels(training, max(len(part) for parts in split for part in parts))
    return [make_step(training, clock, span, parts, pixels) for (clock, span), parts in zip(cases, split, strict=True)]


def make_step(
    training: Training[Any], clock: Clock, span: Span, parts: Sequence[range], pixels: Tensor
) -> Callable[[], object]:
    """Return a function that trains the first step of a stage on the micro-batches `parts` of these pixels."""
    moment = clock.moment(span.first_step)
    if isinstance(training.dataset, TrainingImages):
        height, width = training.dataset.loaded_size(span.view)
        pixels = pixels[:, :, :height, :width].contiguous()
    batches = []
    for part in parts:
        ids = torch.zeros(len(part), dtype=torch.int64)
        batches.append(Batch(pixels[: len(part)], ids, part, is_last=part == parts[-1], broken={}))
    return lambda: update_(training, moment, iter(batches), Stopwatch(), lr=0.0)


def random_pixels(training: Training[Any], count: int) -> Tensor:
    """Return images of noise at full size, (count, c, h, w) uint8, where the loader has its own."""
    model = training.model
    pixels = torch.randint(0, 256, (count, model.channels, *model.image_size), dtype=torch.uint8)
    return pixels.pin_memory() if training.world.device.type == "cuda" else pixels


def time_in_turn(
    actions: Sequence[Callable[[], object]],
    world: World,
    *,
    rounds: int,
    repeated: bool = False,
    check: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """Run actions in turn, in a warm-up round and `rounds` measured ones; return the seconds of each in each round.

    repeated  run each several times in a row where all of them together take less than `MEASURED_SECONDS`.
    check     called before each round on all ranks; may raise an exception to stop.
    """
    seconds: list[list[float]] = [[] for _ in actions]
    repeats = 1
    for number in range(rounds + 1):
        check()
        for action, measured in zip(actions, seconds, strict=True):
            world.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                action()
            world.synchronize()
            measured.append((time.perf_counter() - start) / repeats)
        if number == 0 and repeated:
            shortest = min(world.gather(sum(each[0] for each in seconds)))
            repeats = min(MAX_REPEATS, 1 + int(MEASURED_SECONDS / shortest))
    return [measured[1:] for measured in seconds]
