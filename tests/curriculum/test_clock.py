from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.batches import micro_batches, split
from mae_curriculum.curriculum.clock import Clock, View, stage_size
from mae_curriculum.curriculum.config import Augmentation, Curriculum, Stage

EFFICIENTTRAIN = Curriculum(stages=(Stage(0.6, 160), Stage(0.2, 192), Stage(0.2, 224)))
EFFICIENTTRAIN_PP = Curriculum(pace="compute", stages=(Stage(0.2, 96), Stage(0.4, 160), Stage(0.4, 224)))


def make_clock(curriculum: Curriculum = EFFICIENTTRAIN, **changes: Any) -> Clock:
    shape = {
        "image_size": (224, 224),
        "patch_size": (16, 16),
        "images_per_epoch": 1000,
        "epochs": 10,
        "batch_images": 32,
    }
    return Clock(curriculum, **{**shape, **changes})


def test_stages_paced_by_images_border_at_the_nearest_whole_step() -> None:
    # 10,000 images / 32 = 312.5 steps in all; borders at 187.5 and 250
    spans = make_clock().spans
    assert [(s.first_step, s.steps, s.first_image) for s in spans] == [(0, 188, 0), (188, 62, 6016), (250, 63, 8000)]
    assert [s.size for s in spans] == [(160, 160), (192, 192), (224, 224)]


def test_a_run_paced_by_images_has_the_steps_of_the_run_without_curriculum() -> None:
    for epochs in range(1, 30):
        assert make_clock(epochs=epochs).total_steps == make_clock(Curriculum(), epochs=epochs).total_steps


def test_a_stage_paced_by_compute_sees_more_images_the_smaller_they_are() -> None:
    # shares of 10,000 images, times (224/96)^2 = 49/9, (224/160)^2 = 1.96, 1
    spans = make_clock(EFFICIENTTRAIN_PP, batch_images=10).spans
    assert [s.images for s in spans] == [10890, 7840, 4000]  # 2000 * 49/9 = 10888.9, in steps of 10
    assert [s.end for s in spans] == [Fraction(1, 5), Fraction(3, 5), Fraction(1)]


def test_equivalent_epochs_move_by_share_while_real_ones_count_images() -> None:
    clock = make_clock(EFFICIENTTRAIN_PP, batch_images=10)
    assert clock.equivalent_epochs(1089) == 2
    assert clock.real_epochs(1089) == Fraction(10890, 1000)


def test_progress_is_exact_at_borders_and_even_within_a_stage() -> None:
    clock = make_clock()
    assert [clock.progress(step) for step in (0, 94, 188, 250, 313)] == [
        0,
        Fraction(3, 10),
        Fraction(3, 5),
        Fraction(4, 5),
        1,
    ]


def test_images_run_on_across_a_border_inside_an_epoch() -> None:
    clock = make_clock()
    assert [clock.images(step) for step in (187, 188, 189)] == [187 * 32, 188 * 32, 189 * 32]
    assert clock.real_epochs(188) == Fraction(752, 125)  # 6.016: inside the seventh epoch


def test_the_batch_factor_changes_steps_but_not_images() -> None:
    large = Curriculum(stages=(Stage(0.5, 112, batch_factor=4.0), Stage(0.5, 224)))
    spans = make_clock(large, batch_images=10).spans
    assert [(s.batch_images, s.steps, s.images) for s in spans] == [(40, 125, 5000), (10, 500, 5000)]


def test_the_images_factor_changes_images_and_steps_but_not_progress() -> None:
    short = Curriculum(stages=(Stage(0.5, 112), Stage(0.5, 224, images_factor=0.2)))
    clock = make_clock(short, batch_images=10)
    assert [(s.steps, s.images, s.start, s.end) for s in clock.spans] == [
        (500, 5000, 0, Fraction(1, 2)),
        (100, 1000, Fraction(1, 2), 1),
    ]
    assert clock.progress(550) == Fraction(3, 4)


def test_a_batch_factor_gives_an_even_batch() -> None:
    spans = make_clock(Curriculum(stages=(Stage(0.5, 96, batch_factor=5.4444), Stage(0.5, 224))), batch_images=9).spans
    assert [s.batch_images for s in spans] == [48, 9]  # 9 * 5.4444 = 48.9996, half of it is 24.4998


def test_pairs_of_large_batches_stay_together_in_every_process_and_micro_batch() -> None:
    large = Curriculum(stages=(Stage(0.5, 112, batch_factor=4.0), Stage(0.5, 224)))
    span = make_clock(large, batch_images=10).spans[0]
    parts = [part for rank in range(3) for part in micro_batches(span, rank, 3, micro_batch=1, pair_size=2)]
    assert [place for part in parts for place in part] == list(range(40))
    assert all(part.start % 2 == len(part) % 2 == 0 for part in parts)
    assert max(map(len, parts)) == 4  # one image at full size is four at half of it


def test_passes_over_the_data_are_turned_into_progress() -> None:
    clock = make_clock(EFFICIENTTRAIN_PP, batch_images=10)  # 10,890 images at 96 px, 7,840 at 160, 4,000 at 224
    passes = [0, 5.445, 10.89, 18.73, 20.73, 22.73, 99]
    expected = [0, Fraction(1, 10), Fraction(1, 5), Fraction(3, 5), Fraction(4, 5), 1, 1]
    assert [clock.progress_after(epochs) for epochs in passes] == expected
    assert clock.progress_after(float(clock.real_epochs(700))) == clock.progress(700)


def test_a_stage_has_its_own_mask_crop_and_resize_or_those_of_the_run() -> None:
    own = Stage(0.5, 112, mask_ratio=0.6, min_area=0.4, resize="lanczos")
    augmentation = Augmentation(min_area=(1.0, 0.2))
    curriculum = Curriculum(stages=(own, Stage(0.5, 224)), augmentation=augmentation, resize="bicubic")
    clock = make_clock(curriculum, epochs=32, mask_ratio=0.75)  # 1000 steps
    assert [span.view for span in clock.spans] == [View((112, 112), 0.6, "lanczos"), View((224, 224), 0.75, "bicubic")]
    moments = [clock.moment(step) for step in (0, 499, 500, 750)]
    assert [moment.min_area for moment in moments] == pytest.approx([0.4, 0.4, 0.6, 0.4])
    assert [moment.view for moment in moments] == [span.view for span in clock.spans for _ in range(2)]


@pytest.mark.parametrize(
    ("image", "patch", "expected"),
    [
        ((224, 224), 16, [96, 160, 192, 224]),
        ((128, 128), 8, [56, 88, 112, 128]),
        ((32, 32), 8, [16, 24, 24, 32]),  # 13.7, 22.9 and 27.4 pixels are 1.7, 2.9 and 3.4 patches
        ((32, 32), 4, [12, 24, 28, 32]),
    ],
)
def test_sizes_scale_with_the_image_in_whole_patches(image: tuple[int, int], patch: int, expected: list[int]) -> None:
    assert [stage_size(size, image, (patch, patch))[0] for size in (96, 160, 192, 224)] == expected


def test_each_side_of_a_rectangle_scales_by_itself() -> None:
    assert stage_size(112, (64, 128), (16, 8)) == (32, 64)
    assert stage_size(1, (64, 128), (16, 8)) == (16, 8)  # at least one patch


def test_strengths_grow_evenly_over_progress() -> None:
    grown = replace(EFFICIENTTRAIN, augmentation=Augmentation(randaug=(0, 9), min_area=(0.6, 0.2)))
    moments = [make_clock(grown).moment(step) for step in (0, 188, 250)]
    assert [m.magnitude for m in moments] == pytest.approx([0, 5.4, 7.2])
    assert [m.min_area for m in moments] == pytest.approx([0.6, 0.36, 0.28])
    assert make_clock().moment(5).magnitude is None


def test_a_moment_knows_its_images() -> None:
    moment = make_clock().moment(188)
    assert (moment.stage, moment.size, moment.first_image, moment.batch_images) == (1, (192, 192), 6016, 32)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_split_covers_everything_once_in_order(parts: int) -> None:
    shared = [split(20, parts, part) for part in range(parts)]
    assert [place for part in shared for place in part] == list(range(20))
    assert max(map(len, shared)) - min(map(len, shared)) <= 1


def test_thirds_that_sum_to_one_but_for_rounding_are_taken() -> None:
    clock = make_clock(Curriculum(stages=(Stage(0.3333333, 96), Stage(0.3333333, 160), Stage(0.3333334, 224))))
    assert clock.progress(clock.total_steps) == 1


def test_a_stage_of_less_than_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="stage 2 of 3 would have 200 images, fewer than one step of 1000"):
        make_clock(epochs=1, batch_images=1000)


def test_positions_outside_the_run_are_refused() -> None:
    with pytest.raises(ValueError, match="step must be in 0..313, got 314"):
        make_clock().span(314)
