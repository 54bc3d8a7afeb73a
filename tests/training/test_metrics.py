import pytest

from mae_curriculum.training.metrics import area, area_left, describe_moment, images_by_stage
from tests.small import CLOCK


def test_images_are_counted_by_stage() -> None:
    assert [images_by_stage(CLOCK, step) for step in (0, 3, 4, 6, 8)] == [[0, 0], [12, 0], [16, 0], [16, 8], [16, 16]]


def test_a_small_image_counts_by_its_area() -> None:
    assert [area(CLOCK, CLOCK.moment(step)) for step in (0, 4)] == [1.0, 4.0]


@pytest.mark.parametrize(("steps_done", "left"), [(0, 20.0), (4, 16.0), (6, 8.0), (8, 0.0)])
def test_the_area_that_is_left_shrinks_to_nothing(steps_done: int, left: float) -> None:
    assert area_left(CLOCK, steps_done) == left


def test_a_moment_is_described_by_stage_and_size() -> None:
    assert describe_moment(CLOCK, CLOCK.moment(5)) == "stage 2/2 16 px"
