"""Searches of seconds, and what is refused before anything runs."""

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mae_curriculum.__main__ import main
from mae_curriculum.config import load_file
from mae_curriculum.curriculum.config import Curriculum
from mae_curriculum.run.lock import hold
from tests.processes import Process
from tests.runs import TINY, as_flags, equal, picture_folder, rows, weights

BASE = {f"pretrain.{key}": value for key, value in TINY.items() if not key.startswith("curriculum")}


def options(**changes: Any) -> list[str]:
    """Spell the settings of a search of seconds; `a__b` in `changes` stands for `a.b`."""
    return as_flags(BASE, **changes)


def budget(capsys: pytest.CaptureFixture[str], **changes: Any) -> dict[str, Any]:
    assert main(["search", *options(**changes), "--dry_run", "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def test_the_budget_of_greedy_is_that_of_its_longest_course(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    facts = budget(capsys, sizes="[112, 168, 224]", stages=3, seeds=2, epochs=3)
    # the baseline; 112 fails in stage 1; 168 succeeds in stages 1 and 2
    assert (facts["candidates"], facts["runs"]) == (4, 8)
    assert facts["images"] == 8 * 67 * 64  # 3 * 1438 images are 67.4 batches
    assert 6 < facts["full_runs"] < 8
    assert not [*tmp_path.iterdir()]  # nothing else happened


def test_the_budget_of_sequential_has_every_size_in_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    facts = budget(capsys, method="sequential", sizes="[112, 224]", stages=3, epochs=6, finish_epochs=1)
    assert facts["candidates"] == 6
    assert facts["chosen"] == {}  # epochs are the search's
    # in each stage, 2 + 1 epochs at full size are 67 steps; at half size, 2 have four times the images: 180 + 22
    assert facts["images"] == 64 * 3 * (67 + 180 + 22)


def test_the_budget_of_halving_is_that_of_the_dearest_curricula(capsys: pytest.CaptureFixture[str]) -> None:
    facts = budget(capsys, method="halving", curricula="[efficienttrain, none, efficienttrain_pp_convnext]", epochs=4)
    assert facts["candidates"] == 5  # 3 and 2
    assert 2.5 < facts["full_runs"] < 3.7  # at most 3/2 + 2, but for what whole patches change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sizes": "[100, 224]"},
            "sizes: 100 of 224 are no whole patches of 8 px in images of 32 px; choose from 56, 112",
        ),
        ({"sizes": "[56, 224]"}, "size 56 is a single patch here"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        (
            {"method": "sequential", "epochs": 7, "stages": 2, "sizes": "[112, 224]"},
            "epochs: 7 do not divide into 2 stages",
        ),
        (
            {"method": "halving", "curricula": "[none, efficienttrain, efficienttrain_pp]", "epochs": 1},
            "epochs: the first",
        ),
        ({"method": "halving", "curricula": "[none, absent]"}, "absent"),
        ({"sizes": "[112, 224]", "stages": 40, "epochs": 1}, "fewer than one step of 64"),
        ({"sizes": "[112, 224]", "pretrain__init": "absent"}, "init: absent does not exist"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line_before_anything_runs(
    changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", *options(**changes), "--dry_run"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def small_pretraining(images: Path) -> dict[str, Any]:
    """Spell the settings of a pretraining on few pictures."""
    return {
        "data__source": images,
        "model__channels": 3,
        "data__mean": "null",
        "data__std": "null",
        "batch_size": 20,
        "tracking__every_steps": 1,
        "knn__neighbors": 5,
    }


def small_search(run: Path, images: Path) -> list[str]:
    """Spell a sequential search on few pictures."""
    pretrain = {f"pretrain__{key}": value for key, value in small_pretraining(images).items()}
    return options(run=run, method="sequential", sizes="[112, 224]", stages=2, epochs=2, **pretrain)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A sequential search from beginning to end, in one go."""
    run = tmp_path_factory.mktemp("searches") / "whole"
    assert main(["search", *small_search(run, images)]) == 0
    return run


def stop_once_training(run: Path) -> threading.Thread:
    """Send SIGTERM to this process once a pretraining has reported a step."""

    def wait() -> None:
        wait_until(lambda: (run / "journal.jsonl").exists() and bool(rows(run, "step")))
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_search_that_was_stopped_resumes_to_the_same_result(
    searched: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = tmp_path / "stopped"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    thread = stop_once_training(stopped / "runs" / "1-224-seed0")
    try:
        assert main(["search", *small_search(stopped, images)]) == 75
    finally:
        thread.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert not (stopped / "results.json").exists()
    assert not (stopped / "runs" / "2-112-seed0").exists()
    (stopped / "runs" / ".2-112-seed0.tmp" / "checkpoints").mkdir(parents=True)  # a fork that a kill left
    capsys.readouterr()
    assert main(["search", *small_search(stopped, images), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads((searched / "results.json").read_text())
    assert [row["round"] for row in facts["candidates"]] == [1, 1, 2, 2]
    assert {row["accuracy"]["std"] for row in facts["candidates"]} == {None}
    found = load_file(Curriculum, stopped / "curriculum.yaml")
    assert found == load_file(Curriculum, searched / "curriculum.yaml")
    assert found.pace == "compute"
    assert "# found by python -m mae_curriculum search" in (stopped / "curriculum.yaml").read_text()


def test_a_search_that_is_killed_again_and_again_finds_the_same(searched: Path, images: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    moments = random.Random(0)
    starts = kills = 0
    while not (killed / "results.json").exists():
        starts += 1
        search = Process("mae_curriculum", "search", *small_search(killed, images))
        time.sleep(moments.uniform(0.2, starts / 2))  # later and later, so that it comes to its end
        search.send(signal.SIGKILL)
        _, errors = search.communicate()
        assert search.returncode in (0, -signal.SIGKILL), errors
        kills += search.returncode != 0 and (killed / "runs").exists()
    assert kills > 0
    assert (killed / "results.json").read_bytes() == (searched / "results.json").read_bytes()
    forks = [*(searched / "runs").glob("2-*")]
    assert len(forks) == 2
    for fork in forks:
        assert equal(weights(killed / "runs" / fork.name), weights(fork))


def test_a_search_leaves_a_pretraining_to_the_job_that_is_at_work_on_it(
    searched: Path, images: Path, tmp_path: Path
) -> None:
    run = tmp_path / "shared"
    first = run / "runs" / "1-112-seed0"
    first.mkdir(parents=True)
    for name in ("run.json", "config.yaml"):  # with a pretraining, but without these, it is no search's folder
        shutil.copy(searched / name, run)
    with hold(first / "lock.json", on_takeover=print):
        search = Process("mae_curriculum", "search", *small_search(run, images))
        wait_until((run / "runs" / "1-224-seed0" / "summary.json").exists)
        assert not (first / "journal.jsonl").exists()
    _, errors = search.communicate()
    assert search.returncode == 0, errors
    assert (run / "results.json").read_bytes() == (searched / "results.json").read_bytes()


def test_of_two_jobs_one_takes_over_what_the_other_leaves_when_it_is_killed(
    searched: Path, images: Path, tmp_path: Path
) -> None:
    run = tmp_path / "shared"
    killed = Process("mae_curriculum", "search", *small_search(run, images))
    wait_until((run / "runs" / "1-112-seed0" / "lock.json").exists)
    killed.send(signal.SIGSTOP)
    other = Process("mae_curriculum", "search", *small_search(run, images))
    time.sleep(2)
    killed.send(signal.SIGKILL)
    killed.communicate()
    _, errors = other.communicate()
    assert other.returncode == 0, errors
    assert (run / "results.json").read_bytes() == (searched / "results.json").read_bytes()


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_a_search_by_linear_accuracy_scores_each_encoder_once(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = [*small_search(run, images), "--method", "halving", "--curricula", "[none, efficienttrain]"]
    flags += ["--score", "linear"]
    assert main(["search", *flags]) == 0
    assert "halving search by linear accuracy" in capsys.readouterr().out
    (run / "results.json").unlink()
    kept = [*run.glob("runs/*/linear.json")]
    assert len(kept) == 2
    for path in kept:
        path.write_text('{"accuracy": 0.125}')
    assert main(["search", *flags]) == 0
    scores = [
        row["accuracy"]["values"] for row in json.loads((tmp_path / "run/results.json").read_text())["candidates"]
    ]
    assert scores == [[0.125], [0.125]]


def test_a_finished_search_prints_its_result_again(
    searched: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", *small_search(searched, images)]) == 0
    printed = capsys.readouterr().out
    assert "sequential search by kNN accuracy" in printed
    assert "found: " in printed


def test_other_settings_in_the_folder_of_a_search_are_refused(
    searched: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", *small_search(searched, images), "--epochs", "4"]) == 2
    assert "(epochs: 2 -> 4)" in capsys.readouterr().err


def test_the_journal_of_a_fork_has_its_own_stages(searched: Path) -> None:
    first = json.loads((searched / "results.json").read_text())["path"][0][1]
    for size, pixels in (("112", 16), ("224", 32)):
        fork = searched / "runs" / f"2-{size}-seed0"
        assert rows(fork, "stop")[0]["reason"] == f"forked from {searched / 'runs' / f'1-{first}-seed0'}"
        assert [row["size"][0] for row in rows(fork, "stage")] == [int(first) // 7, pixels, 32]


def test_what_sequential_finds_was_scored_by_the_very_pretraining_with_it(
    searched: Path, images: Path, tmp_path: Path
) -> None:
    facts = json.loads((searched / "results.json").read_text())
    fork = searched / "runs" / f"2-{facts['path'][1][1]}-seed0"
    changes = small_pretraining(images) | {"curriculum": searched / "curriculum.yaml", "epochs": 3}
    plain = tmp_path / "plain"
    assert main(["pretrain", *as_flags(TINY, run=plain, **changes)]) == 0
    assert equal(weights(fork), weights(plain))
    assert [row["loss"] for row in rows(fork, "step")] == [row["loss"] for row in rows(plain, "step")]


def test_a_run_that_diverges_has_no_score_and_loses(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = small_search(tmp_path / "run", images)
    high_rate = ["--pretrain.optim.base_lr", "1e12", "--pretrain.optim.warmup", "0", "--epochs", "8"]
    assert main(["search", *flags, "--sizes", "112", "224", *high_rate]) == 2
    error = capsys.readouterr().err
    assert "1-112-seed0 has no score and loses: loss or gradient was not finite in 5 steps in a row" in error
    again = "error: search: all candidates of a round diverged; lower the runs' optim.base_lr, in a new --run\n"
    assert error.endswith(again)
    journal = (tmp_path / "run/runs/1-112-seed0/journal.jsonl").read_bytes()
    assert main(["search", *flags, "--sizes", "112", "224", *high_rate]) == 2
    assert capsys.readouterr().err.endswith(again)
    assert (tmp_path / "run/runs/1-112-seed0/journal.jsonl").read_bytes() == journal  # it is not tried again


def test_images_without_labels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = picture_folder(tmp_path / "images", 1, 10)
    assert main(["search", *small_search(tmp_path / "run", images / "class0")]) == 2
    assert "a search compares accuracies, and there is none: " in capsys.readouterr().err
    assert not (tmp_path / "run" / "runs").exists()
