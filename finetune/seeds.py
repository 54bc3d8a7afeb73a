"""The same run for several seeds."""

from dataclasses import replace
from typing import Any, TypeVar

C = TypeVar("C", bound=Any)


def one_for_each_seed(config: C) -> list[C]:
    """Give the settings of each seed's run: the only one lives in `config.run`, several in folders in there."""
    if config.seeds == 1:
        return [config]
    seeds = range(config.seed, config.seed + config.seeds)
    return [replace(config, seed=seed, seeds=1, run=config.run / f"seed-{seed}") for seed in seeds]
