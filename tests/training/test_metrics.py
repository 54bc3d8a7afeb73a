import pytest
import torch

from mae_curriculum.config import load
from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.curriculum.config import Augmentation, Curriculum, Stage
from mae_curriculum.data.sources import open_images
from mae_curriculum.distributed import World
from mae_curriculum.pretraining import set_up
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.training.metrics import area, area_left, describe_moment, describe_stage, images_by_stage
from tests.runs import options
from tests.small import CLOCK


def test_images_are_counted_by_stage() -> None:
    assert [images_by_stage(CLOCK, step) for step in (0, 3, 4, 6, 8)] == [[0, 0], [12, 0], [16, 0], [16, 8], [16, 16]]


def test_a_small_image_counts_by_its_area() -> None:
    assert [area(CLOCK, CLOCK.moment(step)) for step in (0, 4)] == [1.0, 4.0]


@pytest.mark.parametrize(("steps_done", "left"), [(0, 20.0), (4, 16.0), (6, 8.0), (8, 0.0)])
def test_the_area_that_is_left_shrinks_to_nothing(steps_done: int, left: float) -> None:
    assert area_left(CLOCK, steps_done) == left


def test_a_moment_is_described_by_epochs_stage_and_size() -> None:
    assert describe_moment(CLOCK, CLOCK.moment(5)) == "epoch 3.0/4 stage 2/2 16 px"


def test_a_batch_that_does_not_fit_is_said_to_be_accumulated() -> None:
    large = '[{"share": 1.0, "size": 224, "batch_factor": 4}]'  # 3 * 1438 images in steps of 256
    config = load(PretrainConfig, options(curriculum__stages=large, micro_batch=100))
    training = set_up(config, World(0, 1, torch.device("cpu")), open_images(config.data)[0])
    expected = (
        "stage 1 of 1: 32 px, 17 steps of 256 images (1 process, each with 3 micro-batches of at most 86 images, "
    )
    assert describe_stage(training, training.clock.moment(0)) == f"{expected}gradients accumulated)"


def test_real_epochs_are_shown_where_they_are_not_the_equivalent_ones() -> None:
    stages = (Stage(0.5, 112), Stage(0.5, 224))  # 2 equivalent epochs of 8 images at a quarter of the area: 8 real ones
    clock = Clock(
        Curriculum(pace="compute", stages=stages, augmentation=Augmentation(randaug=(0, 8))),
        image_size=(16, 16),
        patch_size=(4, 4),
        images_per_epoch=8,
        epochs=4,
        batch_images=4,
    )
    assert describe_moment(clock, clock.moment(7)) == "epoch 1.0/4 (real 4.0) stage 1/2 8 px magnitude 1.8"
    assert describe_moment(clock, clock.moment(19)) == "epoch 4.0/4 (real 10.0) stage 2/2 16 px magnitude 7.0"
