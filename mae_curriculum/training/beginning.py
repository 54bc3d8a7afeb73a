"""The first lines of a run: what is trained, where, in which stages, and how long that takes at least."""

import logging
from itertools import pairwise
from typing import Any

from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.terminal import format_duration, format_epochs, side
from mae_curriculum.tracking.hardware import peak_flops
from mae_curriculum.training.step import Training

LONG_ON_CPU = 24 * 3600.0
"""Seconds at the CPU's peak speed above which a run is warned of: it hardly ends."""


def log_beginning(training: Training[Any], command: str, *, first_step: int) -> None:
    """Log what a run trains from a step on, where, and in which stages; warn of what its user may not have meant."""
    world, clock, run = training.world, training.clock, training.config.run
    parameters = sum(parameter.numel() for parameter in training.model.parameters() if parameter.requires_grad)
    processes = "1 process" if world.world_size == 1 else f"{world.world_size} processes"
    world.log(f"{command} of {training.name}: {parameters:,} trained parameters, {processes} on {world.device_name}")
    world.log(f"  run folder: {run}")
    world.log(f"  length: {format_epochs(clock.epochs, float(clock.real_epochs(clock.total_steps)))}")
    world.log(f"  stages: {describe_stages(clock)}")
    for text in repeated_sizes(clock):
        world.log(text, logging.WARNING)
    if training.cost_of is not None:
        _log_duration(training, first_step)


def describe_stages(clock: Clock) -> str:
    """Return the image size and the number of steps of each stage."""
    return ", ".join(f"{side(span.size)} px for {span.steps:,} steps" for span in clock.spans)


def repeated_sizes(clock: Clock) -> list[str]:
    """Return a warning for each two neighboring stages whose different sizes are the same in whole patches."""
    given = [stage.size for stage in clock.curriculum.stages]
    return [
        f"stages {before.index + 1} and {after.index + 1} both have {side(after.size)} px, in whole patches: a smaller "
        "model.patch_size or a larger model.image_size keeps them apart"
        for before, after in pairwise(clock.spans)
        if before.size == after.size and given[before.index] != given[after.index]
    ]


def _log_duration(training: Training[Any], first_step: int) -> None:
    """Log how long the rest of the run takes at the peak speed of the devices, which no run reaches."""
    world, clock, cost_of = training.world, training.clock, training.cost_of
    assert cost_of is not None, "called where costs are counted"
    images = [
        (clock.images(span.end_step) - clock.images(max(span.first_step, min(first_step, span.end_step))), span.view)
        for span in clock.spans
    ]
    flops = sum(count * cost_of(view).flops for count, view in images)
    peak = world.on_main(lambda: peak_flops(world.device, world.dtype(training.config.precision)))
    seconds = flops / (peak * world.world_size)
    world.log(f"  at least {format_duration(seconds)} of training, if the devices ran at their peak")
    if world.device.type == "cpu" and seconds > LONG_ON_CPU:
        world.log("that is long for CPUs: a GPU, fewer epochs or a smaller model.name would help", logging.WARNING)
