"""Parts of data sets."""

from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.sources import open_images
from mae_curriculum.data.stored import choose_spread
from mae_curriculum.data.subsets import limit


def test_choose_spread_returns_evenly_spaced_indices() -> None:
    assert choose_spread(16, 4) == [0, 4, 8, 12]
    assert choose_spread(3, 8) == [0, 1, 2]
    assert choose_spread(100, 1) == [0]


def test_a_limited_data_set_has_images_of_its_whole_range() -> None:
    digits, _ = open_images(DataConfig("digits"))
    assert digits.labels is not None
    few = limit(digits, 4)
    assert [few.name(index) for index in range(4)] == [digits.name(index) for index in (0, 359, 719, 1078)]
    assert few.labels == [digits.labels[index] for index in (0, 359, 719, 1078)]
    assert limit(digits, len(digits)) is digits
    assert limit(digits, None) is digits
