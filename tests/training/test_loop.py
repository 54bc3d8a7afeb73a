import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mae_curriculum.config import load
from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.data.sources import open_images
from mae_curriculum.distributed import World
from mae_curriculum.pretraining import set_up
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.run.stop import Stop
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.config import build_training_clock, without_curriculum
from mae_curriculum.training.loop import Check, Due, Hooks, completes_epochs, due_after, run_missed_hooks, train_
from mae_curriculum.training.session import open_session, resume_
from mae_curriculum.training.step import Training
from tests.runs import options

WORLD = World(0, 1, torch.device("cpu"))


@cache  # it takes a tenth of a second
def config_of(**changes: Any) -> PretrainConfig:
    return load(PretrainConfig, options(**changes))


def clock_of(config: PretrainConfig) -> Clock:
    """Stages end after 40, 54 and 67 steps of 64 images; 1438 images are an epoch."""
    return build_training_clock(config, image_size=(32, 32), patch_size=(8, 8), images_per_epoch=1438)


def due(steps_done: int, *, evaluate_every_epochs: int | None = None, **changes: Any) -> Due:
    config = config_of(**changes)
    return due_after(clock_of(config), steps_done, config, evaluate_every_epochs=evaluate_every_epochs)


def test_reports_fall_on_multiples_counted_from_the_start_and_on_ends_of_stages() -> None:
    assert [step for step in range(1, 68) if due(step, tracking__every_steps=20).report] == [20, 40, 54, 60, 67]


def test_the_baseline_may_have_fewer_real_epochs_than_the_warm_up() -> None:
    config = config_of(
        curriculum="efficienttrain_pp",
        curriculum__augmentation__randaug="null",
        optim__warmup="null",
        optim__warmup_epochs=3,
    )
    assert clock_of(config).real_epochs(clock_of(config).total_steps) > 3
    baseline = clock_of(without_curriculum(config))
    assert baseline.real_epochs(baseline.total_steps) <= 3


def test_pictures_are_due_at_the_end_of_each_stage() -> None:
    assert [step for step in range(1, 68) if due(step).draw] == [40, 54, 67]


def test_an_evaluation_is_due_when_an_epoch_completes_but_not_at_the_end() -> None:
    evaluated = [step for step in range(1, 68) if due(step, evaluate_every_epochs=1).evaluate]
    assert evaluated == [23, 45]  # 1438 and 2876 of 64 images a step
    assert due(45, evaluate_every_epochs=1, tracking__every_steps=1000).report


def test_a_checkpoint_is_kept_when_epochs_complete_and_at_the_end() -> None:
    kept = [step for step in range(1, 68) if due(step, saving__keep_every_epochs=2).keep]
    assert kept == [45, 67]
    assert not due(67).keep


def test_nothing_completes_before_the_first_step() -> None:
    assert not completes_epochs(clock_of(config_of()), 0, every=1)


def training_of(run: Path, **changes: Any) -> Training[Any]:
    config = replace(config_of(**{"epochs": 1, **changes}), run=run)
    return set_up(config, WORLD, open_images(config.data)[0])


def train(training: Training[Any], stop: Stop, hooks: Hooks) -> tuple[bool, int]:
    """Run the loop in a session; returns whether it reached the end, and the steps that are saved."""
    with open_session(training.config, WORLD, command="pretrain") as session:
        stopwatch, step = resume_(training, session)
        session.log_start(training, step=step)
        finished = train_(training, session, stopwatch, hooks, first_step=step, stop=stop)
    with open_session(training.config, WORLD, command="pretrain") as session:
        return finished, resume_(training, session)[1]


def test_a_run_that_goes_on_with_another_decoder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    training = training_of(tmp_path / "run")

    def start() -> str:
        caplog.clear()
        with open_session(training.config, WORLD, command="pretrain") as session:
            session.log_start(training, step=0)
        return caplog.text

    assert "software" not in start() + start()
    monkeypatch.setattr("mae_curriculum.training.session.describe_software", lambda: "torch 2, simplejpeg 3")
    assert "other software, so the last bits may differ: torch 2, simplejpeg 3; before, mae-curriculum" in start()
    assert "software" not in start()


def test_the_loop_trains_to_the_end_evaluates_and_saves(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    hooks = Hooks(
        conclude=lambda *_: {},
        evaluate=lambda step, _: calls.append(("evaluate", step)),
        evaluate_every_epochs=1,
        draw=lambda step: calls.append(("draw", step)),
    )
    training = training_of(tmp_path / "run")
    total = training.clock.total_steps
    assert train(training, Stop(), hooks) == (True, total)
    assert calls == [("draw", span.end_step) for span in training.clock.spans]  # one epoch: the end is not evaluated


def test_a_stop_is_saved_and_the_run_resumes_after_it(tmp_path: Path) -> None:
    training = training_of(tmp_path / "run")
    end = training.clock.spans[0].end_step
    assert train(training, Stop(deadline=time.monotonic() - 1), Hooks(lambda *_: {})) == (False, 0)
    stop = Stop()

    def ask_to_stop(_: int) -> None:
        stop.signal_name = "SIGTERM"

    assert train(training, stop, Hooks(lambda *_: {}, draw=ask_to_stop)) == (False, end)


@pytest.mark.parametrize("reset", [False, True])
def test_moments_are_kept_where_a_stage_ends_or_reset_whether_the_run_stops_there_or_not(
    reset: bool, tmp_path: Path
) -> None:
    settings = {"curriculum__reset_moments": reset}
    whole, stopped, resumed = (training_of(tmp_path / run, **settings) for run in ("whole", "stopped", "stopped"))
    assert train(whole, Stop(), Hooks(lambda *_: {}))[0]
    stop = Stop()

    def ask_to_stop(_: int) -> None:
        stop.signal_name = "SIGTERM"

    assert train(stopped, stop, Hooks(lambda *_: {}, draw=ask_to_stop)) == (False, whole.clock.spans[0].end_step)
    assert train(resumed, Stop(), Hooks(lambda *_: {}))[0]
    ages = {int(state["step"]) for state in whole.optimizer.state.values()}
    assert ages == {whole.clock.spans[-1].steps if reset else whole.clock.total_steps}
    assert all(map(torch.equal, whole.model.parameters(), resumed.model.parameters()))


class StopAfter(Stop):
    """A request to stop that is there after some questions: one before each step, one before each report."""

    questions = 0

    def reason(self, *, needed_seconds: float) -> str | None:
        self.questions -= 1
        return "SIGTERM" if self.questions < 0 else None


def test_what_a_stop_left_out_is_made_up_by_the_job_that_resumes(tmp_path: Path) -> None:
    training = training_of(tmp_path / "run", tracking__every_steps=1000)
    drawn: list[int] = []
    hooks = Hooks(lambda *_: {}, draw=drawn.append)
    stop = StopAfter()
    stop.questions = end = training.clock.spans[0].end_step
    assert train(training, stop, hooks) == (False, end)
    assert drawn == [], "the save was more urgent"
    assert resume_and_stop(training, hooks, end) == end
    assert drawn == [end]


def test_a_stop_during_an_evaluation_saves_at_once_and_repeats_the_evaluation_later(tmp_path: Path) -> None:
    training = training_of(tmp_path / "run", epochs=2, tracking__every_steps=1000)
    stop = Stop()
    evaluated: list[str | int] = []

    def evaluate(step: int, check: Check) -> None:
        if not evaluated:
            evaluated.append("begun")
            stop.signal_name = "SIGTERM"
        check()
        evaluated.append(step)

    hooks = Hooks(lambda *_: {}, evaluate, evaluate_every_epochs=1)
    finished, step = train(training, stop, hooks)
    assert (finished, evaluated) == (False, ["begun"])
    assert completes_epochs(training.clock, step, every=1)
    assert resume_and_stop(training, hooks, step) == step
    assert evaluated == ["begun", step]
    assert resume_and_stop(training, hooks, step, asked=True) is None


class PatientStop(Stop):
    """No request to stop, but a record of how early one would have to come."""

    longest = 0.0

    def reason(self, *, needed_seconds: float) -> None:
        self.longest = max(self.longest, needed_seconds)


def test_an_evaluation_that_asks_often_does_not_end_later_jobs_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, stop, clock = training_of(tmp_path / "run", epochs=2), PatientStop(), SimpleNamespace(seconds=0)
    monkeypatch.setattr("mae_curriculum.training.loop.time", SimpleNamespace(monotonic=lambda: clock.seconds))

    def evaluate(_step: int, check: Check) -> None:
        for _ in range(1000):
            clock.seconds += 1
            check()

    assert train(training, stop, Hooks(lambda *_: {}, evaluate, evaluate_every_epochs=1))[0]
    assert 1 <= stop.longest < 500  # a second from one question to the next, and how long saving took


def resume_and_stop(training: Training[Any], hooks: Hooks, step: int, *, asked: bool = False) -> int | None:
    """Do what was missed after a step; returns the step, None if a stop was asked for meanwhile."""
    stop = Stop(signal_name="SIGTERM" if asked else None)
    with open_session(training.config, WORLD, command="pretrain") as session:
        stopwatch, resumed = resume_(training, session)
        assert resumed == step
        done = run_missed_hooks(training, session, stopwatch, hooks, steps_done=step, stop=stop)
    return step if done else None


@pytest.mark.parametrize("spent", [0.0, 7.0])
def test_a_stopwatch_is_restored_with_the_state(tmp_path: Path, spent: float) -> None:
    training = training_of(tmp_path / "run")
    with open_session(training.config, WORLD, command="pretrain") as session:
        session.save(training, Stopwatch({"train/0": spent}), step=3, keep_forever=lambda _: False)
    with open_session(training.config, WORLD, command="pretrain") as session:
        stopwatch, step = resume_(training, session)
    assert (stopwatch.seconds, step) == ({"train/0": spent}, 3)
