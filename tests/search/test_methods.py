"""The courses of the methods over tables of scores, worked out by hand."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from math import nan

import pytest

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.curriculum.config import Augmentation, Curriculum, Stage
from mae_curriculum.search.methods import Candidate, Found, Method, follow, greedy, halving, sequential, with_sizes
from tests.search.scores import each

BASE = Curriculum(augmentation=Augmentation(flip=False), resize="lanczos")
SIZES = (224, 96, 160)


def course(method: Method, table: Mapping[str, float]) -> tuple[list[str], Found]:
    """Return the names of the candidates, in order, and what was found; a score that is not in the table is 0.5."""
    candidates, found = follow(method, each(lambda candidate: table.get(candidate.name, 0.5)))
    return [candidate.name for candidate in candidates], found


def stages(curriculum: Curriculum) -> list[tuple[float, int]]:
    return [(stage.share, stage.size) for stage in curriculum.stages]


def of_greedy(table: Mapping[str, float], tolerance: float = 0.0) -> tuple[list[str], Found]:
    return course(greedy(SIZES, BASE, stages=5, tolerance=tolerance, epochs=10), table)


def test_greedy_takes_the_smallest_size_that_is_as_good_as_the_baseline_in_each_stage() -> None:
    names, found = of_greedy({"0-224": 0.9, "1-96": 0.9, "2-96": 0.89, "2-160": 0.95, "3-160": 0.9, "4-160": 0.8})
    assert names == ["0-224", "1-96", "2-96", "2-160", "3-160", "4-160"]  # 96 failed, so that it is not tried again
    assert stages(found.curriculum) == [(0.2, 96), (0.4, 160), (0.4, 224)]
    assert found.path == ((0, "224"), (1, "96"), (2, "160"), (3, "160"), (4, "224"), (5, "224"))


def test_greedy_tolerates_what_it_is_told_and_leaves_the_last_stage_at_full_size() -> None:
    names, found = of_greedy({"0-224": 0.51}, tolerance=0.01)
    assert names == ["0-224", "1-96", "2-96", "3-96", "4-96"]
    assert stages(found.curriculum) == [(0.8, 96), (0.2, 224)]


def test_greedy_finds_the_baseline_where_every_size_fails_or_diverges() -> None:
    names, found = of_greedy({"1-96": nan, "1-160": 0.4})
    assert names == ["0-224", "1-96", "1-160"]
    assert found.curriculum == replace(BASE, stages=(Stage(1.0, 224),))


def test_greedy_has_whole_pretrainings_at_full_size_after_the_stage() -> None:
    candidates, _ = follow(greedy(SIZES, BASE, stages=5, tolerance=0, epochs=10), each(lambda _: 0.5))
    assert stages(candidates[1].curriculum) == [(0.2, 96), (0.8, 224)]
    assert stages(candidates[2].curriculum) == [(0.4, 96), (0.6, 224)]
    assert {(each.epochs, each.previous, each.kept_epochs) for each in candidates} == {(10, None, None)}
    assert {(each.curriculum.augmentation, each.curriculum.resize) for each in candidates} == {
        (BASE.augmentation, "lanczos")
    }


def test_greedy_refuses_a_baseline_that_diverged() -> None:
    with pytest.raises(ConfigError, match="diverged"):
        of_greedy({"0-224": nan})


def test_sequential_takes_the_best_size_of_each_stage_and_forks_its_run() -> None:
    method = sequential(SIZES, BASE, stages=3, epochs=9, finish_epochs=1)
    table = {"1-96": 0.5, "1-160": 0.7, "1-224": 0.6, "2-96": nan, "2-160": 0.4, "2-224": 0.4, "3-96": 0.9}
    candidates, found = follow(method, each(lambda candidate: table.get(candidate.name, 0.0)))
    assert [each.name for each in candidates] == [f"{stage}-{size}" for stage in (1, 2, 3) for size in (96, 160, 224)]
    assert [each.previous.name if each.previous else None for each in candidates] == [
        *[None] * 3,
        *["1-160"] * 3,
        *["2-160"] * 3,  # the first of equal ones
    ]
    assert [each.kept_epochs for each in candidates] == [3, 3, 3, 6, 6, 6, 9, 9, 9]
    assert {(each.epochs, each.trained_epochs) for each in candidates} == {(10, 4)}  # a stage and the finish
    assert found.path == ((1, "160"), (2, "160"), (3, "96"))
    assert found.curriculum == candidates[6].curriculum
    assert stages(found.curriculum) == [(0.3, 160), (0.3, 160), (0.3, 96), (0.1, 224)]
    assert {stage.images_factor for stage in found.curriculum.stages} == {1.0}
    assert found.curriculum.pace == "compute"


def clock_of(candidate: Candidate) -> Clock:
    """Return the clock of a candidate for digits."""
    return Clock(
        candidate.curriculum,
        image_size=(28, 28),
        patch_size=(4, 4),
        images_per_epoch=1438,
        epochs=candidate.epochs,
        batch_images=128,
    )


def test_sequential_goes_through_the_rest_of_the_schedules_in_the_finish() -> None:
    candidates, _ = follow(sequential((160, 224), BASE, stages=2, epochs=6, finish_epochs=1), each(lambda _: 0.5))
    first, _, second, _ = candidates
    assert stages(first.curriculum) == [(0.428572, 160), (0.571428, 224)]  # 3 of 7 epochs, and the rest
    assert [stage.images_factor for stage in first.curriculum.stages] == [1.0, 0.25]  # a fourth of 4 epochs
    assert stages(second.curriculum) == [(0.428572, 160), (0.428571, 160), (0.142857, 224)]
    assert [stage.size for stage in second.trained_stages] == [160, 224]
    finish = clock_of(first).spans[1]
    assert finish.steps == 11  # 1438 images are 11.2 batches
    assert (finish.start, finish.end) == (Fraction("0.428572"), Fraction(1))


def test_a_fork_has_the_course_of_its_parent_up_to_there() -> None:
    candidates, _ = follow(sequential(SIZES, BASE, stages=3, epochs=6, finish_epochs=1), each(lambda _: 0.5))
    for candidate in candidates[3:]:
        assert candidate.previous is not None
        clock, before = clock_of(candidate), clock_of(candidate.previous)
        steps = before.spans[-2].end_step
        assert clock.spans[candidate.inherited].first_step == steps
        assert [clock.moment(step) for step in range(steps)] == [before.moment(step) for step in range(steps)]


def test_halving_keeps_the_better_half_and_doubles_the_epochs() -> None:
    curricula = {
        name: replace(BASE, stages=(Stage(1.0, size),)) for name, size in zip("abcd", range(96, 224, 32), strict=True)
    }
    curricula["e"] = BASE
    table = {"1-a": 0.1, "1-b": 0.4, "1-c": nan, "1-d": 0.3, "1-e": 0.2, "2-b": 0.1, "2-d": 0.1, "2-e": 0.2}
    names, found = course(halving(curricula, epochs=12), table)
    assert names == [*(f"1-{name}" for name in "abcde"), "2-b", "2-d", "2-e", "3-b", "3-e"]
    assert found == Found(curricula["b"], ((1, "b"), (2, "b"), (3, "b")))
    candidates, _ = follow(halving(curricula, epochs=12), each(lambda candidate: table.get(candidate.name, 0.5)))
    assert {(each.round, each.epochs) for each in candidates} == {(1, 3), (2, 6), (3, 12)}


def test_a_stage_ends_at_the_step_whose_checkpoint_is_kept() -> None:
    for epochs, finish in [(6, 1), (1, 5), (11, 2), (13, 4)]:
        clock = clock_of(Candidate(1, "96", with_sizes(BASE, [(96, epochs), (224, finish)]), epochs + finish))
        end = clock.spans[0].end_step
        assert clock.equivalent_epochs(end - 1) < epochs <= clock.equivalent_epochs(end)


def test_names_are_those_of_folders() -> None:
    assert Candidate(2, "96", BASE, 3).name == "2-96"
