"""Reference curves: made from runs, found by settings and images, compared with a run while it goes on."""

import json
import logging
from pathlib import Path

import pytest

from mae_curriculum import reference
from mae_curriculum.__main__ import main
from mae_curriculum.config import load_part
from mae_curriculum.files import read_json
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.reference import PARTS, band, compare, part_of
from tests.processes import ROOT
from tests.runs import options

CHANGES = {"epochs": 1, "tracking__every_steps": 1, "knn__images": 300, "optim__base_lr": 4e-3}


def pretrain(run: Path, **changes: object) -> None:
    assert main(["pretrain", *options(run, **{**CHANGES, **changes})]) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three seeds of a pretraining of 22 steps."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        pretrain(folder / str(seed), seed=seed)
    return [folder / str(seed) for seed in range(3)]


@pytest.fixture
def shipped(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The curves of these runs, where shipped ones are looked for."""
    path = tmp_path / "reference" / "tiny.json"
    path.parent.mkdir()
    monkeypatch.setattr(reference, "CONFIGS", tmp_path)
    assert main(["report", *map(str, runs), "--reference", str(path)]) == 0
    return path


def test_a_run_of_the_same_settings_is_compared_with_the_curves(
    shipped: Path,
    runs: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = read_json(shipped)
    assert (content["seeds"], [len(losses) for losses in content["losses"]]) == ([0, 1, 2], [PARTS] * 3)
    assert content["knn"]["22"] == [round(read_json(run / "summary.json")["knn"], 5) for run in runs]
    content["losses"] = [[loss + 9 * (part > 9) for part, loss in enumerate(losses)] for losses in content["losses"]]
    shipped.write_text(json.dumps(content))
    with caplog.at_level(logging.INFO):
        pretrain(tmp_path / "run", seed=7)
    lines = [message for message in caplog.messages if "reference" in message]
    assert lines[0].startswith("reference: tiny, runs: 3 on CPU")
    assert "inside the reference band" in lines[1]
    assert lines[1].startswith("after 5%: mean loss of the last 5% ")
    assert lines[2].startswith("after 55%: mean loss of the last 5% ")
    assert "below the reference band" in lines[2]
    assert len(lines) == 3, "only changes are told"
    told = read_json(tmp_path / "run" / "summary.json")["reference"]
    assert "the reference band" in told
    assert f"kNN accuracy {told} of these settings" in capsys.readouterr().out


def test_other_settings_or_images_have_no_reference(
    shipped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        pretrain(tmp_path / "run", model__mask_ratio=0.5)
    assert "reference" not in caplog.text
    content = read_json(shipped)
    shipped.write_text(json.dumps({**content, "data_fingerprint": "1438 images 000000000000"}))
    with caplog.at_level(logging.INFO):
        pretrain(tmp_path / "other")
    assert "reference" not in caplog.text


def test_runs_that_do_not_belong_together_make_no_reference(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--reference", str(tmp_path / "out.json")]
    assert main(["report", *map(str, runs[:2]), *out]) == 2
    assert "needs at least 3 runs, got 2" in capsys.readouterr().err
    pretrain(tmp_path / "run", model__mask_ratio=0.5)
    assert main(["report", *map(str, [*runs, tmp_path / "run"]), *out]) == 2
    assert "model.mask_ratio: 0.75 -> 0.5" in capsys.readouterr().err


def test_the_band_is_that_of_students_t() -> None:
    low, high = band([1.0, 2.0, 3.0])
    assert (low + high) / 2 == pytest.approx(2.0)
    assert high - 2 == pytest.approx(9.92484 * (4 / 3) ** 0.5, rel=1e-5)
    assert compare(0.5, 0.6, 0.7) == "0.5000, below the reference band (0.6000 to 0.7000)"


def test_parts_are_equal_and_whole() -> None:
    parts = [part_of(step, 200) for step in range(1, 201)]
    assert [parts.count(part) for part in range(PARTS)] == [10] * PARTS


@pytest.mark.parametrize("path", sorted((ROOT / "configs/reference").glob("*.json")), ids=lambda path: path.stem)
def test_shipped_curves_fit_the_settings_of_today(path: Path) -> None:
    found = reference.Reference(**read_json(path))
    config = load_part(PretrainConfig, found.settings)
    assert found.fits(config, found.data_fingerprint)
    assert len(found.losses) == len(found.seeds) >= reference.MIN_RUNS
