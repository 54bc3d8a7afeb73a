"""The learning rate as a pure function of progress."""

import math


def learning_rate(progress: float, *, peak: float, warmup: float, floor: float = 0.0) -> float:
    """Return the learning rate: linear warm-up from 0 to `peak`, then half a cosine down to `floor` at progress 1.

    progress  share of the run that is done, 0 to 1.
    warmup    share of the run with warm-up, at least 0 and below 1.
    """
    if progress < warmup:
        return peak * progress / warmup
    fall = (progress - warmup) / (1 - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * fall))
