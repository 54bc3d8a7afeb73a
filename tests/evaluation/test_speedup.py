"""The speed-up of a curriculum: measured like with like, without a trace in the training, or said to be unknown."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mae_curriculum.config import load
from mae_curriculum.data.sources import open_images
from mae_curriculum.distributed import connect
from mae_curriculum.evaluation import step_times
from mae_curriculum.evaluation.speedup import describe_costs, format_factor, summarize_costs
from mae_curriculum.evaluation.step_times import measure_speedups, time_in_turn
from mae_curriculum.pretraining import set_up
from mae_curriculum.pretraining_config import PretrainConfig, build_clock
from mae_curriculum.run.background_save import to_host
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.config import without_curriculum
from mae_curriculum.training.step import run_steps_
from tests.runs import options
from tests.small import CLOCK


def summary(speedups: list[float]) -> dict[str, Any]:
    stopwatch = Stopwatch({"train/0": 60.0, "train/1": 40.0})
    costs = summarize_costs(CLOCK, CLOCK, lambda view: view.size[0], stopwatch, speedups=speedups)
    return costs | {"loss": 0.5, "baseline_flops": 2 * costs["flops"]}


def test_measurements_that_agree_give_the_speed_up() -> None:
    costs = summary([1.3, 1.28, 1.31, 1.3, 9.0])  # one hiccup does not count
    assert (costs["speedup_seconds"], costs["speedup_range"]) == (1.3, [1.3, 1.31])
    assert costs["baseline_train_seconds"] == pytest.approx(130)
    text = describe_costs(costs)
    assert text.endswith("; 1.30x faster in seconds (1.30x to 1.31x by steps with and without it, timed in turn)")


def test_a_curriculum_that_is_slower_is_said_to_be() -> None:
    text = describe_costs(summary([0.8] * 4 + [0.9]))
    assert text.endswith("; 1.25x slower in seconds (1.25x to 1.25x by steps with and without it, timed in turn)")


def test_measurements_that_disagree_give_none() -> None:
    costs = summary([0.41, 0.9, 1.3, 1.5, 1.6])
    assert (costs["speedup_seconds"], costs["baseline_train_seconds"]) == (None, None)
    text = describe_costs(costs)
    assert text.endswith("; not measurable in seconds (0.90x to 1.50x by steps with and without it, timed in turn)")


def test_a_summary_of_an_earlier_version_says_nothing_about_seconds() -> None:
    costs = summary([1.0])
    del costs["speedup_range"]
    assert describe_costs(costs).endswith("x fewer)")


def test_measuring_leaves_weights_moments_and_random_state_as_they_were(tmp_path: Path) -> None:
    config = load(PretrainConfig, options(tmp_path / "run"))
    images, _ = open_images(config.data)
    with connect() as world:
        training = set_up(config, world, images)
        steps = run_steps_(training, training.clock, Stopwatch(), first_step=0)
        next(steps), next(steps)
        parts = (training.model, training.optimizer)
        before = to_host([part.state_dict() for part in parts]), torch.get_rng_state()
        baseline = build_clock(without_curriculum(config), training.model.shape, images_per_epoch=len(images))
        speedups = measure_speedups(training, baseline)
        after = [part.state_dict() for part in parts], torch.get_rng_state()
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        assert len(speedups) == step_times.ROUNDS
        assert all(0.2 < speedup < 5 for speedup in speedups)
        assert measure_speedups(training, training.clock) == [1.0]


def test_a_stop_ends_the_measurement_and_restores_the_weights(tmp_path: Path) -> None:
    config = load(PretrainConfig, options(tmp_path / "run"))
    images, _ = open_images(config.data)

    def stop() -> None:
        raise KeyboardInterrupt

    with connect() as world:
        training = set_up(config, world, images)
        before = to_host(training.optimizer.state_dict())
        baseline = build_clock(without_curriculum(config), training.model.shape, images_per_epoch=len(images))
        with pytest.raises(KeyboardInterrupt):
            measure_speedups(training, baseline, check=stop)
        assert training.optimizer.state_dict() == before


def test_actions_take_turns_and_short_ones_are_repeated() -> None:
    calls: list[str] = []
    with connect() as world:
        seconds = time_in_turn([lambda: calls.append("a"), lambda: calls.append("b")], world, rounds=2)
        assert "".join(calls) == "ababab"
        assert [len(each) for each in seconds] == [2, 2]
        calls.clear()
        time_in_turn([lambda: calls.append("a")], world, rounds=1, repeated=True)
    assert len(calls) == 1 + step_times.MAX_REPEATS


def test_a_curriculum_that_costs_more_is_told_so() -> None:
    assert format_factor(1.0, "fewer", "more") == "1.00x fewer"
    assert format_factor(0.8, "fewer", "more") == "1.25x more"
