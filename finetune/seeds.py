"""The same run for several seeds."""

from dataclasses import replace
from typing import Any, TypeVar

from mae_curriculum.checkpoint import RunFolder
from mae_curriculum.distributed import World

C = TypeVar("C", bound=Any)


def one_for_each_seed(config: C, world: World) -> list[C]:
    """Give the settings of each seed's run: the only one lives in `config.run`, several in folders in there.

    Raises  ConfigError if the folder belongs to other settings.
    """
    if config.seeds == 1:
        return [config]
    world.on_main(lambda: RunFolder(config.run).claim(config))
    seeds = range(config.seed, config.seed + config.seeds)
    return [replace(config, seed=seed, seeds=1, run=config.run / f"seed-{seed}") for seed in seeds]
