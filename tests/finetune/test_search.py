"""Searches of a curriculum for classifiers."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.__main__ import main
from mae_curriculum.__main__ import main as mae_curriculum
from mae_curriculum.config import load_file
from mae_curriculum.curriculum.config import Curriculum
from tests.runs import as_flags, equal, stop_midway, weights

CLASSIFIER: dict[str, Any] = {
    "data.workers": 0,
    "model.name": "test_resnet",
    "model.image_size": 64,
    "model.drop_path": 0.0,
    "curriculum.augmentation.randaug": "null",
    "mixup": 0.0,
    "cutmix": 0.0,
    "optim.base_lr": 1e-2,
    "batch_size": 8,
    "tracking.every_steps": 1,
}
SEARCH: dict[str, Any] = {"method": "sequential", "sizes": "[112, 224]", "stages": 2, "epochs": 2}


def options(run: Path, images: Path, **changes: Any) -> list[str]:
    """Spell a search of seconds."""
    training = {f"finetune.{key}": value for key, value in (CLASSIFIER | {"data.source": images}).items()}
    return as_flags(SEARCH | training | {"run": run}, **changes)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A search from beginning to end, in one go."""
    run = tmp_path_factory.mktemp("searches") / "whole"
    assert main(["search", *options(run, images)]) == 0
    return run


def test_what_is_found_was_scored_by_the_very_training_with_it(searched: Path, images: Path, tmp_path: Path) -> None:
    facts = json.loads((searched / "results.json").read_text())
    assert (facts["score"], len(facts["candidates"])) == ("accuracy", 4)
    winner = searched / "runs" / f"2-{facts['path'][1][1]}-seed0"
    accuracy = json.loads((winner / "summary.json").read_text())["accuracy"]
    assert next(row for row in facts["candidates"][2:] if row["chosen"])["accuracy"]["values"] == [accuracy]
    changes = {"data.source": images, "curriculum": searched / "curriculum.yaml", "epochs": 3, "run": tmp_path / "run"}
    assert main(["finetune", *as_flags(CLASSIFIER | changes)]) == 0
    assert equal(weights(winner), weights(tmp_path / "run"))
    found = (searched / "curriculum.yaml").read_text()
    assert "# found by python -m finetune search --config " in found
    assert "#   python -m finetune finetune --curriculum " in found
    assert "# sequential search by validation accuracy" in found


def test_a_search_that_was_stopped_resumes_to_the_same_result(
    searched: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "stopped"
    stop_midway(run / "runs" / "1-224-seed0", "search", *options(run, images), package="finetune")
    assert not (run / "results.json").exists()
    capsys.readouterr()
    assert main(["search", *options(run, images), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((searched / "results.json").read_text())
    assert (run / "results.json").read_bytes() == (searched / "results.json").read_bytes()
    assert load_file(Curriculum, run / "curriculum.yaml") == load_file(Curriculum, searched / "curriculum.yaml")


def test_the_budget_counts_what_is_trained_on(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry = [*options(tmp_path / "run", images, finetune__batch_size="null"), "--dry_run", "--json"]
    assert main(["search", *dry]) == 0
    budget = json.loads(capsys.readouterr().out)
    assert budget["chosen"] == {"batch_size": 32}
    # 48 of 60 images are trained on; in each stage 1 + 1 epochs at full size are 3 steps, at half size 4 + 1 are 8
    assert budget["images"] == 2 * (3 + 8) * 32
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": "[100, 224]"}, "sizes: 100 of 224 are no whole patches of 2 px in images of 64 px; choose from 7"),
        ({"finetune__seeds": 2}, "finetune.seeds: a search has seeds of its own for all its runs, --seeds; leave it 1"),
        ({"finetune__time_limit": "1:00:00"}, "finetune.time_limit: a search has one limit for all its runs"),
        ({"epochs": 3}, "epochs: 3 do not divide into 2 stages"),
        (
            {"finetune__data__source": "run"},
            "finetune.data.source: there is no checkpoint; choose images with --finetune.data.source",
        ),
        ({"finetune__checkpoint": "absent"}, "finetune.checkpoint: absent does not exist"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(
    changes: dict[str, Any], message: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", *options(tmp_path / "run", images, **changes), "--dry_run"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_the_folder_of_another_kind_of_search_is_refused(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mae_curriculum(["search", "--run", str(searched)]) == 2
    assert f"{searched} was created by `finetune search`; choose another --run" in capsys.readouterr().err
