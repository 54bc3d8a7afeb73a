import pytest

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.config import Curriculum, Stage


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio must be above 0 and below 1, or null, got 0.0"),
        ({"mask_ratio": 1.0}, "mask_ratio must be above 0 and below 1, or null, got 1.0"),
        ({"min_area": 0.0}, "min_area must be above 0 and at most 1, or null, got 0.0"),
        ({"min_area": 1.1}, "min_area must be above 0 and at most 1, or null, got 1.1"),
        ({"images_factor": 0.0}, "images_factor must be above 0, got 0.0"),
    ],
)
def test_impossible_settings_of_a_stage_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=f"curriculum.stages: {message}"):
        Stage(1.0, 224, **settings)  # type: ignore[arg-type]


def test_shares_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sum to 1; got \[0.5, 0.4\], which sum to 0.9"):
        Curriculum(stages=(Stage(0.5, 96), Stage(0.4, 224)))


def test_a_stage_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="size 256 is larger than the image"):
        Stage(1.0, 256)
