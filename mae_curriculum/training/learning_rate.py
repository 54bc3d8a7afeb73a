"""The learning rate as a pure function of progress."""

import math


def learning_rate(progress: float, *, peak: float, warmup: float, floor: float = 0.0) -> float:
    """Linear warm-up from 0 to `peak`, then half a cosine down to `floor` at progress 1.

    progress  share of the run that is over, 0 to 1.
    warmup    share of the run spent warming up, 0 to below 1.
    """
    if progress < warmup:
        return peak * progress / warmup
    fall = (progress - warmup) / (1 - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * fall))
