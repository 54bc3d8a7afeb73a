"""Repeat a run for several seeds."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from mae_curriculum.distributed import World
from mae_curriculum.run.stop import EXIT_RESUMABLE

C = TypeVar("C", bound=Any)


def config_per_seed(config: C) -> list[C]:
    """Return the settings of each seed's run; several seeds have folders of their own in `config.run`."""
    if config.seeds == 1:
        return [config]
    seeds = range(config.seed, config.seed + config.seeds)
    return [replace(config, seed=seed, seeds=1, run=config.run / f"seed-{seed}") for seed in seeds]


def run_seeds(
    config: C,
    world: World,
    once: Callable[[C], dict[str, Any] | None],
    conclude: Callable[[C, list[dict[str, Any]]], None],
) -> int:
    """Run each seed, then conclude from their summaries; returns the exit code.

    once  runs one seed; returns its summary, None if it was asked to stop.
    """
    summaries = []
    for one in config_per_seed(config):
        summary = once(one)
        if summary is None:
            return EXIT_RESUMABLE
        summaries.append(summary)
    world.on_main(lambda: conclude(config, summaries))
    return 0
