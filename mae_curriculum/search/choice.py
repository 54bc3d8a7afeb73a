"""What a search concludes from scores, as pure functions. A score that is NaN, of a diverged run, always loses."""

import math
from collections.abc import Sequence

from mae_curriculum.config import ConfigError

ROUNDING = 1e-9
"""Added to the tolerance, as 0.1 - 0.09 is above 0.01 in binary."""


def is_accepted(score: float, *, baseline: float, tolerance: float) -> bool:
    """Return whether a score is at most `tolerance` below the baseline's."""
    return baseline - score <= tolerance + ROUNDING


def rank(scores: Sequence[float]) -> list[int]:
    """Return the places of the scores, the best first; of equal ones, the first. NaN has no place.

    Raises  ConfigError if all are NaN.
    """
    places = [place for place, score in enumerate(scores) if not math.isnan(score)]
    if not places:
        raise ConfigError("search: all candidates of a round diverged; lower the runs' optim.base_lr, in a new --run")
    return sorted(places, key=lambda place: -scores[place])


def better_half(scores: Sequence[float]) -> list[int]:
    """Return the places of the better half, rounded up, in the order of the scores given."""
    return sorted(rank(scores)[: math.ceil(len(scores) / 2)])
