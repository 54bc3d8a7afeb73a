from math import nan

import pytest

from mae_curriculum.config import ConfigError
from mae_curriculum.search.choice import better_half, is_accepted, rank


@pytest.mark.parametrize(
    ("score", "tolerance", "accepted"),
    [
        (0.9, 0.0, True),  # as good as the baseline
        (0.91, 0.0, True),
        (0.89, 0.0, False),
        (0.89, 0.01, True),  # at the limit, though 0.9 - 0.89 is above 0.01 in binary
        (0.889, 0.01, False),
        (nan, 1.0, False),
    ],
)
def test_a_score_may_be_below_the_baseline_by_the_tolerance(score: float, tolerance: float, accepted: bool) -> None:
    assert is_accepted(score, baseline=0.9, tolerance=tolerance) is accepted


def test_the_best_score_comes_first_the_first_of_equal_ones_and_nan_never() -> None:
    assert rank([0.5, 0.7, nan, 0.7, 0.6]) == [1, 3, 4, 0]
    assert rank([nan, 0.1]) == [1]


def test_scores_that_are_all_nan_are_refused() -> None:
    with pytest.raises(ConfigError, match="all candidates of a round diverged"):
        rank([nan, nan])


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.5, 0.7, 0.6, 0.4], [1, 2]),
        ([0.5, 0.7, 0.6], [1, 2]),  # rounded up
        ([0.7, 0.5, 0.7, 0.7], [0, 2]),  # of equal ones the first
        ([nan, 0.1, nan, nan], [1]),  # diverged runs do not fill the places
        ([0.2, 0.1], [0]),
    ],
)
def test_the_better_half_goes_on_in_its_order(scores: list[float], kept: list[int]) -> None:
    assert better_half(scores) == kept
