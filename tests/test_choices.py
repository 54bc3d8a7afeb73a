"""What a pretraining chooses for its images, from the command line to a resumed run."""

import json
from pathlib import Path

import pytest

from mae_curriculum.__main__ import main
from mae_curriculum.config import load, load_file
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.contents import look_at
from mae_curriculum.pretraining_config import PretrainConfig, list_choices, with_choices
from mae_curriculum.training.choices import format_choices
from tests.runs import options, picture_folder, rows

QUICK = ["--model.depth", "1", "--tracking.pictures", "0", "--data.workers", "0", "--epochs", "1"]


def open_settings(run: Path, source: Path) -> list[str]:
    return ["--run", str(run), "--data.source", str(source), *QUICK]


def test_a_folder_is_enough_and_the_choice_is_said_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, run = picture_folder(tmp_path / "pictures", classes=2, count=100), tmp_path / "run"
    assert main(["pretrain", *open_settings(run, source)]) == 2
    assert "would have 20 images, fewer than one step of 64; raise epochs (1)" in capsys.readouterr().err
    command = ["pretrain", *open_settings(run, source), "--epochs", "4"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "chosen for these images, where not set: model.name vit_tiny_patch16_224, model.image_size" in printed.err
    assert f"all of it is in {run}: config.yaml, journal.jsonl, summary.json, checkpoints/\n" in printed.out
    saved = load_file(PretrainConfig, run / "config.yaml")
    assert (saved.model.name, saved.model.image_size, saved.model.decoder_width) == ("vit_tiny_patch16_224", 32, 96)
    assert (saved.batch_size, saved.epochs) == (64, 4)
    assert main(command) == 0
    assert f"{run} is finished already" in capsys.readouterr().err
    for number in range(100, 130):  # 130 images would still have batches of 64; 30 pixels more would not fit
        (source / "class0" / f"{number}.png").write_bytes((source / "class0" / "0000.png").read_bytes())
    assert main(command) == 2
    assert "was started with 100 images" in capsys.readouterr().err
    assert len(rows(run, "start")) == 1


def test_choices_are_those_of_the_run_even_if_its_images_would_lead_to_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, run = picture_folder(tmp_path / "pictures", classes=2, count=60), tmp_path / "run"
    command = ["pretrain", *open_settings(run, source), "--epochs", "8"]
    assert main(command) == 0
    assert load_file(PretrainConfig, run / "config.yaml").batch_size == 32  # a power of two, at most 60
    (source / "class0" / "more.png").write_bytes((source / "class0" / "0000.png").read_bytes())
    for number in range(100, 110):
        (source / "class0" / f"{number}.png").write_bytes((source / "class0" / "0000.png").read_bytes())
    assert main(command) == 2  # 71 images would have batches of 64
    assert "was started with 60 images" in capsys.readouterr().err
    assert main([*command, "--batch_size", "16"]) == 2
    assert "batch_size: 32 -> 16" in capsys.readouterr().err


def test_complete_settings_choose_nothing() -> None:
    config = load(PretrainConfig, options())
    chosen = with_choices(config, look_at(config.data))
    assert chosen == config
    assert format_choices(list_choices(config, chosen)) == []


def test_settings_that_are_null_are_listed() -> None:
    config = PretrainConfig(data=DataConfig("digits"), batch_size=32)
    assert list_choices(config, with_choices(config, look_at(config.data))) == {
        "model.name": "vit_tiny_patch16_224",
        "model.image_size": 32,
        "model.patch_size": 4,
        "model.decoder_width": 96,
        "model.decoder_depth": 2,
        "model.decoder_heads": 3,
        "epochs": 450,  # 32 * 20,000 / 1438 = 445.1
    }


def test_plan_says_what_would_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(picture_folder(tmp_path / "pictures", classes=2, count=100))
    assert main(["plan", "--data.source", source, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["source"]["train"]["images"] == 100
    assert (facts["chosen"]["batch_size"], facts["equivalent_epochs"]) == (64, 800)
    assert facts["stages"][-1]["batch_images"] == 64
