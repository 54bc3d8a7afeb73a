"""The function of the Python API that no command offers as it is; `mae_curriculum/__init__.py` lists the whole API."""

from dataclasses import fields
from typing import Any

from mae_curriculum.commands.config import PlanConfig
from mae_curriculum.commands.plan import compute_plan
from mae_curriculum.pretraining_config import PretrainConfig


def plan(config: PretrainConfig, *, devices: int = 1, rate: float = 1000.0) -> dict[str, Any]:
    """Compute what a pretraining run will do and cost, without training: totals, and one entry per stage.

    devices  processes that share each batch.
    rate     images/s of all devices together at full size, for the hours.
    Returns  "steps", "images", "flops", "speedup", "hours", "stages" and more, as `plan --json` prints them.
    """
    settings = {f.name: getattr(config, f.name) for f in fields(PretrainConfig)}
    return compute_plan(PlanConfig(**settings, devices=devices, rate=rate))
