import json

import pytest

from mae_curriculum.__main__ import main
from tests.processes import ROOT

DIGITS = str(ROOT / "configs" / "pretrain" / "digits.yaml")


def test_stages_are_measured_relative_to_full_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--config", DIGITS, "--batch_size", "16", "--rounds", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [(row["stage"], row["size"]) for row in facts["stages"]] == [
        ("full size", [28, 28]),
        ("1", [20, 20]),
        ("2", [24, 24]),
        ("3", [28, 28]),
    ]
    assert [row["share_of_full_flops"] for row in facts["stages"]] == pytest.approx([1, 0.525, 0.756, 1], abs=0.001)
    assert all(row["seconds_per_image"] > 0 for row in facts["stages"])
    assert facts["stages"][0]["share_of_full_seconds"] == 1
    assert [row["size"] for row in facts["resize"]] == [[20, 20], [24, 24]]
    assert all(row[method] > 0 for row in facts["resize"] for method in ("fourier", "lanczos", "bicubic"))


def test_text_output_has_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--config", DIGITS, "--batch_size", "16", "--rounds", "1"]) == 0
    captured = capsys.readouterr()
    assert "training: 1,438 images" in captured.err
    text = captured.out
    assert "full size" in text
    assert "fourier/bicubic" in text


def test_rounds_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--config", DIGITS, "--rounds", "0"]) == 2
    assert "rounds must be at least 1, got 0" in capsys.readouterr().err
