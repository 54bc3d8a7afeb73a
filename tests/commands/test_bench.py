import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mae_curriculum.__main__ import main
from mae_curriculum.evaluation import loading_times
from mae_curriculum.evaluation.loading_times import PARTS, describe_limits
from tests.processes import ROOT
from tests.runs import TINY, as_flags, picture_folder

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
    shares = [row["share_of_full_seconds"] for row in facts["stages"][1:]]
    assert facts["speedup"] == pytest.approx(1 / (0.6 * shares[0] + 0.2 * shares[1] + 0.2 * shares[2]), rel=0.01)
    assert [row["size"] for row in facts["resize"]] == [[20, 20], [24, 24]]
    assert all(row[method] > 0 for row in facts["resize"] for method in ("fourier", "lanczos", "bicubic"))


def test_text_output_has_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--config", DIGITS, "--batch_size", "16", "--rounds", "1"]) == 0
    captured = capsys.readouterr()
    assert "training: 1,438 images" in captured.err
    text = captured.out
    assert "full size" in text
    assert re.search(r"the steps of the whole run: \d\.\d\dx (faster|slower) than at full size", text)
    assert "fourier/bicubic" in text


def test_loading_is_measured_part_by_part_beside_maes_transform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading_times, "WORKER_SECONDS", 0.1)
    picture_folder(tmp_path / "images", classes=2, count=4)
    (tmp_path / "images" / "class0" / "broken.png").write_text("no image")
    settings = {"data.source": tmp_path / "images", "data.mean": "null", "data.std": "null", "model.channels": 3}
    settings |= {"curriculum.augmentation.randaug": "[0, 9]", "epochs": 100, "batch_size": 8, "data.workers": 1}
    arguments = ["bench", *as_flags(TINY | settings | {"rounds": 1, "loading": "true"})]
    assert main([*arguments, "--json=true"]) == 0
    rows = json.loads(capsys.readouterr().out)["loading"]
    assert [row["size"] for row in rows] == [[24, 24], [24, 24], [32, 32]]
    assert all(set(row["seconds"]) == {*PARTS, "whole", "pil"} for row in rows)
    assert all(value is not None and value >= 0 for row in rows for value in row["seconds"].values())
    assert all(row["worker_images_per_second"] > 0 for row in rows)
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "MAE's transform" in text
    assert re.search(r"stage 3: 1 workers load [\d,]+ images/s, the model needs [\d,]+/s: ", text)


def test_packed_images_are_compared_with_the_originals_and_repeats_share_their_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decoded: list[str] = []

    def transform(content: bytes, _: object) -> torch.Tensor:
        decoded.append(Image.open(io.BytesIO(content)).format or "")
        return torch.zeros(1)

    def take_a_second(actions: Sequence[Callable[[], object]], *_: object, **__: object) -> list[list[float]]:
        for action in actions:
            action()
        return [[1.0]] * len(actions)

    monkeypatch.setattr(loading_times, "transform_file", transform)
    monkeypatch.setattr(loading_times, "time_in_turn", take_a_second)
    original, packed = tmp_path / "original", tmp_path / "packed"
    picture_folder(original, classes=2, count=4)
    for path in original.glob("*/*.png"):
        place = packed / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(place / f"{path.stem}.jpg")
    settings = {"data.source": packed, "data.mean": "null", "data.std": "null", "model.channels": 3, "epochs": 100}
    settings |= {"batch_size": 8, "rounds": 1, "loading": "true"}

    def measure(**changes: Any) -> dict[str, float]:
        assert main(["bench", *as_flags(TINY | settings, **changes), "--json=true"]) == 0
        seconds: dict[str, float] = json.loads(capsys.readouterr().out)["loading"][0]["seconds"]
        return seconds

    once = measure(original=original)
    assert (once["whole"], once["pil"]) == (1 / 4, 1 / 4)
    assert {*decoded} == {"PNG"}
    four = measure(data__repeats=4)
    assert (four["whole"], four["read"], four["crop"], four["pil"]) == (1 / 16, 1 / 16, 1 / 4, 1 / 4)
    assert {*decoded} == {"PNG", "JPEG"}


def test_the_limit_of_loading_is_named_with_what_helps() -> None:
    seconds = {"read": 0.001, "decode": 0.006, "crop": 0.001, "augment": None, "batch": 0.0, "copy": 0.0, "whole": 0.01}
    row = {"stage": 1, "seconds": seconds, "loaded_share": 0.5, "workers": 2, "worker_images_per_second": 190.0}
    assert describe_limits([row], [380.0]) == ["stage 1: 2 workers load 190 images/s, the model needs 190/s: enough"]
    (limited,) = describe_limits([row], [1000.0])
    assert "the model needs 500/s: data.workers 5 would do" in limited
    assert "most of the time goes to decoding: `pack` makes" in limited
    alone = {**row, "workers": 0, "worker_images_per_second": None}
    assert describe_limits([alone], [10.0])[0].startswith("stage 1: the training process loads 100 images/s, the model")


def test_rounds_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--config", DIGITS, "--rounds", "0"]) == 2
    assert "rounds must be at least 1, got 0" in capsys.readouterr().err
