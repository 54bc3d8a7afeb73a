"""Benchmark the stages of a run on this machine, alternating between them in one process."""

import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from mae_curriculum.commands.config import BenchConfig
from mae_curriculum.curriculum.batches import micro_batches
from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.curriculum.low_frequency import RESIZE
from mae_curriculum.data.contents import format_contents, look_at
from mae_curriculum.data.preprocess import normalize
from mae_curriculum.data.sources import ArrayImages, open_source
from mae_curriculum.distributed import connect
from mae_curriculum.evaluation.loading_times import PARTS, describe_limits, measure_loading
from mae_curriculum.evaluation.speedup import format_factor
from mae_curriculum.evaluation.step_times import make_steps, random_pixels, time_in_turn
from mae_curriculum.initialization import resolve_init
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.pretraining import set_up
from mae_curriculum.pretraining_config import build_clock, list_choices, with_choices
from mae_curriculum.terminal import format_table, side
from mae_curriculum.training.choices import format_choices
from mae_curriculum.training.config import without_curriculum
from mae_curriculum.training.step import Training


def bench(config: BenchConfig) -> int:
    """Run the benchmark and print its results; returns the exit code."""
    with connect() as world:
        contents = look_at(config.data)
        placeholders = ArrayImages(np.empty((contents.train.images, 0), np.uint8), labels=[], classes=())
        settled = with_choices(config, contents)
        for line in [*format_contents(contents), *format_choices(list_choices(config, settled))]:
            world.log(line)
        resolved, weights = resolve_init(settled, world)
        training = set_up(resolved, world, placeholders, weights)
        baseline = build_clock(without_curriculum(resolved), training.model.shape, images_per_epoch=len(placeholders))
        is_gpu = world.device.type == "cuda"
        stages = measure_stages(training, baseline, rounds=config.rounds)
        results = {
            "device": torch.cuda.get_device_name(world.device) if is_gpu else f"CPU ({platform.machine()})",
            "threads": torch.get_num_threads(),
            "stages": stages,
            "speedup": whole_speedup(stages, training.clock, baseline),
            "resize": measure_resizing(training, rounds=config.rounds),
        }
        if config.loading:
            images = open_source(resolved.data).train
            original = open_source(replace(resolved.data, source=config.original)).train if config.original else images
            results["loading"] = measure_loading(training, images, original, rounds=config.rounds)
            results["original"] = config.original
        world.print(json.dumps(results, indent=2) if config.json else format_results(results))
    return 0


def measure_stages(training: Training[MaskedAutoencoder], baseline: Clock, *, rounds: int) -> list[dict[str, Any]]:
    """Time a training step of the baseline and of each stage, alternating between them, after a warm-up round."""
    shape = training.model.shape
    cases = [(baseline, baseline.spans[0]), *((training.clock, span) for span in training.clock.spans)]
    seconds = time_in_turn(make_steps(training, cases), training.world, rounds=rounds)
    medians = map(median, seconds)
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


def whole_speedup(stages: Sequence[dict[str, Any]], clock: Clock, baseline: Clock) -> float:
    """Return how many times faster a run's steps are, all of them, than those of its baseline."""
    full, *own = [row["seconds_per_image"] for row in stages]
    seconds: float = sum(span.images * each for span, each in zip(clock.spans, own, strict=True))
    return baseline.total_images * float(full) / seconds


def measure_resizing(training: Training[MaskedAutoencoder], *, rounds: int) -> list[dict[str, Any]]:
    """Time each resizing method on a micro-batch of normalized images, for each size of the run."""
    mean, std = training.config.data.statistics(training.model.channels)
    span = training.clock.spans[-1]
    count = len(micro_batches(span, 0, training.world.world_size, training.config.micro_batch)[0])
    images = normalize(random_pixels(training, count).to(training.world.device), mean, std)
    rows = []
    for size in dict.fromkeys(span.size for span in training.clock.spans if span.size != training.model.image_size):
        actions = [partial(resize, images, size) for resize in RESIZE.values()]
        measured = time_in_turn(actions, training.world, rounds=3 * rounds)
        per_image = [median(seconds) / count for seconds in measured]
        rows.append({"size": list(size), **dict(zip(RESIZE, per_image, strict=True))})
    return rows


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
    head = f"{results['device']}, {results['threads']} threads; training steps on random images:"
    resize_head = "resizing full-size images to the size of a stage:"
    whole = f"the steps of the whole run: {format_factor(results['speedup'], 'faster', 'slower')} than at full size"
    lines = [head, format_table(stages), whole, "", resize_head, format_table(resizing)]
    return "\n".join([*lines, *(format_loading(results) if "loading" in results else [])])


def format_loading(results: dict[str, Any]) -> list[str]:
    """Format how fast images are loaded, and what limits the run."""
    table = [
        ["stage", "px", *(f"{part} ms" for part in PARTS), "ms/image", "images/s/core", "MAE's transform", "ratio"]
    ]
    for row in results["loading"]:
        seconds = row["seconds"]
        whole, pil = seconds["whole"], seconds["pil"]
        parts = ["" if seconds[part] is None else f"{1000 * seconds[part]:.3f}" for part in PARTS]
        compared = ["", ""] if pil is None else [f"{1 / pil:,.0f}", f"{pil / whole:.2f}"]
        table.append(
            [str(row["stage"]), side(row["size"]), *parts, f"{1000 * whole:.3f}", f"{1 / whole:,.0f}", *compared]
        )
    rates = [1 / row["seconds_per_image"] for row in results["stages"][1:]]
    limits = describe_limits(results["loading"], rates)
    compared_with = results["original"] or "the same images"
    return [
        "",
        f"loading images, one process; MAE's own transform of {compared_with} in images/s:",
        format_table(table),
        *limits,
    ]
