"""The mean and standard deviation that a checkpoint's images are normalized with."""

from dataclasses import replace
from pathlib import Path

from mae_curriculum.data.config import DataConfig
from mae_curriculum.weights.names import Log
from mae_curriculum.weights.read import Weights


def with_normalization(data: DataConfig, weights: Weights, path: Path, log: Log) -> DataConfig:
    """Return settings of data whose mean and standard deviation, where they are null, are those of a checkpoint.

    log  takes a line if the checkpoint does not say them, so that ImageNet's are assumed, if the data's are others, or
         if its library prepares images otherwise.
    """
    usual = dict(zip(("mean", "std"), DataConfig().statistics(weights.model.channels), strict=True))
    changed, assumed = {}, {}
    for name, value in usual.items():
        own, given = getattr(weights, name), getattr(data, name)
        if given is None and own is None:
            assumed[name] = value
        elif given is None and own != value:
            changed[name] = own
        elif given is not None and own not in (None, given):
            log(f"{path} was trained with the {name} {list(own)}; using {list(given)} as the settings say")
    if assumed:
        values = " and ".join(f"{name} {list(value)}" for name, value in assumed.items())
        log(f"{path} does not say how images are normalized; assumed: ImageNet's {values} (mean and std change that)")
    if weights.preparation is not None:
        log(f"{path}: its library prepares images by {weights.preparation}; here by bicubic resizing and --crop")
    return replace(data, **changed)
