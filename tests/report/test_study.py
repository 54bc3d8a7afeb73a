"""What is published of a study."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mae_curriculum.report.study import Study, StudyRun, format_study, paired_difference, read_study, write_study
from mae_curriculum.report.study_figure import draw_study
from tests.processes import ROOT


def study() -> Study:
    accuracies = {("none", 0): 0.5, ("none", 1): 0.6, ("et", 0): 0.52, ("et", 1): 0.64}
    costs = {"images": 1000, "flops": 2e9, "train_seconds": 90.0}
    curve = {axis: [value / 2, value] for axis, value in costs.items()}
    runs = [
        StudyRun(
            variant,
            "none",
            seed,
            costs,
            {"kNN": value},
            0.2 + 0.1 * seed,
            {"loss": [1, 0.5], **curve},
            {"knn": [0.1, value], **curve},
        )
        for (variant, seed), value in accuracies.items()
    ]
    return Study("small", {"command": ["python"], "commit": ["abc", "def"]}, tuple(runs))


def test_the_interval_of_two_paired_differences() -> None:
    found = paired_difference({0: 0.52, 1: 0.64, 2: 9.0}, {1: 0.6, 0: 0.5, 5: 0.0})
    assert found is not None
    mean, half = found
    assert mean == pytest.approx(0.03)
    assert half == pytest.approx(12.7062 * 0.01, rel=1e-4)  # Student's t of one degree of freedom; sd 0.0141 / sqrt 2


def test_equal_differences_have_an_interval_of_no_width_and_a_single_one_has_none() -> None:
    values = {seed: 0.1 * seed for seed in range(4)}
    found = paired_difference({seed: value + 0.25 for seed, value in values.items()}, values)
    assert found is not None
    assert found[0] == pytest.approx(0.25)
    assert math.isclose(found[1], 0, abs_tol=1e-12)
    assert paired_difference({0: 0.5}, {0: 0.4}) is None


def test_the_section_compares_each_variant_with_the_baseline() -> None:
    lines = format_study(study()).splitlines()
    assert lines[:4] == [
        "## small",
        "",
        "| variant | seeds | kNN | images | FLOPs | training time |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    assert lines[4] == "| none | 2 | 55.0 ± 7.1% (baseline) | 1,000 | 2.00e09 | 90.0 s |"
    assert lines[5] == "| et | 2 | 58.0 ± 8.5% (+3.0 [-9.7, +15.7]) | 1,000 | 2.00e09 | 90.0 s |"
    assert lines[7].endswith("kNN accuracy of untrained encoders, measured as during pretraining: 25.0 ± 5.8%.")
    assert "- commit: abc; def" in lines


def test_what_a_variant_is_compared_with_is_told_where_it_is_not_the_baseline_on_all_seeds() -> None:
    first, second, *others = study().runs
    fewer = replace(study(), runs=(first, second, *others, replace(others[0], seed=2)))
    assert "(+3.0 [-9.7, +15.7] of 2 seeds)" in format_study(fewer)
    assert "58.0 ± 8.5% (no baseline yet)" in format_study(replace(study(), runs=tuple(others)))
    alone = format_study(replace(study(), runs=tuple(replace(run, baseline=None) for run in study().runs)))
    assert "| none | 2 | 55.0 ± 7.1% | 1,000 |" in alone
    lacking = format_study(replace(study(), runs=(first, second, *(replace(run, accuracies={}) for run in others))))
    assert "| et | 2 | – | 1,000 |" in lacking


def test_a_study_is_read_as_it_was_written_and_drawn_from_that(tmp_path: Path) -> None:
    write_study(study(), tmp_path / "small.json")
    assert read_study(tmp_path / "small.json") == study()
    draw_study(tmp_path / "small.png", read_study(tmp_path / "small.json"))
    with Image.open(tmp_path / "small.png") as picture:
        assert picture.size == (2160, 900)


def test_seconds_of_runs_that_shared_a_machine_are_not_published(tmp_path: Path) -> None:
    shared = replace(study(), shared=True)
    text = format_study(shared)
    assert "| kNN | images | FLOPs |\n" in text
    assert "90.0 s" not in text
    assert "Runs shared the machine" in text
    draw_study(tmp_path / "small.png", shared)
    with Image.open(tmp_path / "small.png") as picture:
        assert picture.size == (1440, 900)


RESULTS = sorted((ROOT / "configs/experiments/results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_what_is_published_follows_from_the_json_file_alone(path: Path) -> None:
    published = read_study(path)
    assert path.with_suffix(".md").read_text() == format_study(published)
    assert path.with_suffix(".png").exists()
    assert not any("/tmp/" in fact for facts in published.facts.values() for fact in facts)
