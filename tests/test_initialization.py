"""Runs that start from weights: real commands, killed and resumed."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import finetune.__main__ as finetune
from mae_curriculum.__main__ import main
from mae_curriculum.config import read_yaml
from mae_curriculum.weights.names import read_metadata
from mae_curriculum.weights.read import read_weights
from tests.runs import equal, newest_state, options, picture_folder, pictures, rows, stop_midway, weights

# what the weights decide is left open
OPEN: dict[str, Any] = {
    "model__name": "null",
    "model__image_size": "null",
    "model__patch_size": "null",
    "model__width": "null",
    "model__depth": "null",
    "model__heads": "null",
}


@pytest.fixture(scope="module")
def encoder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder of the finished run in a file of timm."""
    path = tmp_path_factory.mktemp("exports") / "encoder.safetensors"
    assert main(["export", "--checkpoint", str(finished), "--out", str(path)]) == 0
    return path


def test_a_run_starts_as_good_as_its_weights_and_says_so_beside_later_evaluations(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "more"
    assert main(["pretrain", *options(run, **OPEN, init=finished, epochs=1)]) == 0
    start = json.loads((finished / "summary.json").read_text())["knn"]
    assert rows(run, "evaluation")[0] | {"time": 0} == {"event": "evaluation", "time": 0, "steps_done": 0, "knn": start}
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["start"], summary["knn_untrained"]) == ({"knn": start}, None)
    captured = capsys.readouterr()
    assert f"starting from {finished} (run at step 67, vit_tiny_patch16_224): nothing converted" in captured.err
    assert f"kNN accuracy {summary['knn']:.4f} (at the start {start:.4f})" in captured.out


def test_a_run_that_starts_from_another_has_its_images_and_their_channels(
    finished: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pretrain", "--init", f"{finished}@3", "--epochs", "1", "--batch_size", "64", "--model.target", "pixels"]
    command += ["--data.workers", "0", "--tracking.pictures", "0", "--curriculum", "none", "--knn.images", "300"]
    assert main([*command, "--run", str(tmp_path / "fork")]) == 0
    own, other = (read_yaml((run / "config.yaml").read_text())["data"] for run in (tmp_path / "fork", finished))
    assert own == other
    assert rows(tmp_path / "fork", "evaluation")[0]["knn"] == json.loads((finished / "summary.json").read_text())["knn"]
    capsys.readouterr()
    assert main(["pretrain", "--init", str(encoder), "--run", str(tmp_path / "none")]) == 2
    assert f"{encoder} is not a run with its own images; choose images with --data.source" in capsys.readouterr().err
    assert main(["pretrain", "--run", str(tmp_path / "none")]) == 2
    assert "data.source: choose images, such as a folder, with --data.source" in capsys.readouterr().err
    assert main(["pretrain", "--init", f"{finished}@2", "--run", str(tmp_path / "none")]) == 2
    assert "has no checkpoint of 2 epochs, only of: 3; saving.keep_every_epochs" in capsys.readouterr().err


def test_arrays_of_other_channels_are_refused_before_there_is_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((20, 32, 32, 4), np.uint8))
    assert main(["plan", "--data.source", str(tmp_path / "a.npy"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"]["sizes"]["largest"] == [32, 32]
    assert main(["pretrain", "--data.source", str(tmp_path / "a.npy"), "--run", str(tmp_path / "run")]) == 2
    assert "a.npy/00000000: 4 channels, model.channels is 3; it must fit the images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_other_settings_in_the_folder_of_a_run_lead_to_a_fork(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *options(finished, epochs=9)]) == 2
    message = "(epochs: 3 -> 9); choose another --run, or use the settings of that run to resume it; or start from its "
    assert capsys.readouterr().err.endswith(f"{message}weights: --init {finished} --run NEW\n")


def test_a_fresh_decoder_trains_alone_first_and_a_stopped_run_resumes_to_the_same_bits(
    encoder: Path, tmp_path: Path
) -> None:
    flags = {**OPEN, "init": encoder, "epochs": 2, "init_decoder_epochs": 1, "tracking__every_steps": 3}
    words = options(tmp_path / "run", **flags, saving__keep_every_epochs=1)
    output = stop_midway(tmp_path / "run", "pretrain", *words, "--data.workers", "1")
    assert "a fresh decoder: the weights have none" in output
    stopped, given = newest_state(tmp_path / "run"), read_weights(encoder).encoder
    assert stopped["steps_done"] < 22  # of 45, half of which are for the decoder
    alone = {key: stopped["model"][f"encoder.{key}"] for key in given}
    assert equal(alone, given)
    assert main(["pretrain", *words]) == 0
    assert main(["pretrain", *options(tmp_path / "whole", **flags, saving__keep_every_epochs=1)]) == 0
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert not equal({key: weights(tmp_path / "run")[f"encoder.{key}"] for key in given}, given)
    assert equal(read_weights(tmp_path / "whole@1").encoder, given)  # after the last step of the decoder alone


def test_weights_given_again_must_be_the_same(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy.safetensors"
    words = options(run, **OPEN, epochs=9, init_decoder_epochs=0, init=copy)
    shutil.copyfile(encoder, copy)
    stop_midway(run, "pretrain", *words)
    assert main(["pretrain", *words, "--init", str(encoder)]) == 2
    assert f"other settings (init: {copy} -> {encoder})" in capsys.readouterr().err
    save_file({key: value + 1e-3 for key, value in load_file(copy).items()}, copy, read_metadata(copy))
    assert main(["pretrain", *words]) == 2
    assert re.search(r"started with 1438 images \w+, weights (\w+), but .* weights (?!\1)", capsys.readouterr().err)


def test_a_run_that_stays_below_its_start_ends(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = options(
        tmp_path / "run",
        **OPEN,
        init=finished,
        optim__base_lr=2.0,
        optim__clip_norm=1e-3,
        epochs=5,
        knn__every_epochs=1,
        knn__images="null",
    )
    assert main(["pretrain", *flags, "--stop_below_start"]) == 2
    assert "error: the kNN accuracy stays below its start, 0." in capsys.readouterr().err
    assert len(rows(tmp_path / "run", "evaluation")) == 4


def test_images_without_labels_are_judged_by_loss_and_effective_rank(finished: Path, tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "images", classes=1, count=40)
    changes = pictures(source, **OPEN, init=finished, epochs=2, knn__every_epochs=1, model__channels=1)
    changes |= {"data__mean": "[0.305]", "data__std": "[0.376]", "batch_size": 8}
    assert main(["pretrain", *options(tmp_path / "run", **changes)]) == 0
    evaluations = rows(tmp_path / "run", "evaluation")
    assert [row["steps_done"] for row in evaluations] == [0, 5, 10]
    assert all(row["val_loss"] > 0 and 1 <= row["effective_rank"] <= 40 for row in evaluations)


def test_an_import_is_no_pretraining_but_one_can_start_from_it(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "theirs"
    assert finetune.main(["import", "--checkpoint", str(encoder), "--run", str(theirs)]) == 0
    flags: dict[str, Any] = {**OPEN, "epochs": 1, "init_decoder_epochs": 0}
    assert main(["pretrain", *options(theirs, **flags)]) == 2
    expected = f"{theirs} was created by `import`; choose another --run; or start from its weights: --init {theirs}"
    assert expected in capsys.readouterr().err
    assert main(["plan", *options(None, **flags, init=theirs)]) == 0
    assert "vit_tiny_patch16_224: 1 equivalent epochs" in capsys.readouterr().out


def test_a_model_in_the_cache_of_hugging_face_is_found_by_its_name(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = tmp_path / "models--timm--vit_of_ours.mae" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--timm--vit_of_ours.mae" / "refs").mkdir()
    (tmp_path / "models--timm--vit_of_ours.mae" / "refs" / "main").write_text("abc")
    shutil.copyfile(encoder, snapshot / "model.safetensors")
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    flags = options(None, **OPEN, epochs=1, init_decoder_epochs=0)
    assert main(["plan", *flags, "--init", "vit_of_ours.mae"]) == 0
    assert main(["plan", *flags, "--init", "vit_of_theirs.mae"]) == 2
    assert capsys.readouterr().err.endswith("error: init: vit_of_theirs.mae does not exist\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--stop_below_start", "stop_below_start compares with the start: it needs init and knn.every_epochs"),
        ("--init ENCODER --init_decoder_epochs 3", "init_decoder_epochs is 3 of 3 epochs, so the encoder would never"),
        ("--init resnet.pth", "resnet.pth: not the weights of a ViT; its keys are conv1.weight"),
    ],
)
def test_what_cannot_start_a_run_is_refused(
    flags: str,
    message: str,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = options(tmp_path / "run", **OPEN, curriculum=str(Path("configs/curriculum/none.yaml").absolute()))
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": torch.zeros(1)}, "resnet.pth")
    assert main(["pretrain", *words, *flags.replace("ENCODER", str(encoder)).split()]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
