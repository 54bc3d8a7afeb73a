"""The main job, as a user runs it: real commands on real images, real kills, real processes."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mae_curriculum.__main__ import main
from mae_curriculum.config import load
from mae_curriculum.curriculum.clock import View
from mae_curriculum.curriculum.config import Augmentation
from mae_curriculum.data.loader import TrainingImages
from mae_curriculum.data.requests import Request
from mae_curriculum.data.sources import open_images
from mae_curriculum.distributed import World
from mae_curriculum.model.masked_autoencoder import build_model
from mae_curriculum.model.masking import mask_noise
from mae_curriculum.pretraining import set_up
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.step import run_steps_
from mae_curriculum.weights.names import decoder_to_mae
from tests.plain_mae import plain_mae_loss
from tests.runs import equal, options, picture_folder, pictures, rows, stop_midway, two_processes, weights


def test_knn_is_evaluated_during_a_run_only_if_asked_for(finished: Path, tmp_path: Path) -> None:
    assert [row["steps_done"] for row in rows(finished, "evaluation")] == [67]
    run = tmp_path / "run"
    assert main(["pretrain", *options(run, knn__every_epochs=2)]) == 0
    assert [row["steps_done"] for row in rows(run, "evaluation")] == [45, 67]  # two epochs of 1438 images, and the end
    assert rows(run, "evaluation")[-1]["knn"] == json.loads((run / "summary.json").read_text())["knn"]
    assert equal(weights(run), weights(finished))  # looking changes nothing


def test_a_run_has_the_same_bits_from_a_folder_from_tars_and_from_parquet(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "folder", classes=2, count=48)
    for name in ("jpeg", "npy"):
        packing = ["--data.source", folder, "--out", tmp_path / name, "--format", name, "--data.workers", "0"]
        assert main(["pack", "--short_side", "null", *map(str, packing)]) == 0
    paths = sorted(folder.rglob("*.png"))
    columns = {"image": [path.read_bytes() for path in paths], "label": [path.parent.name for path in paths]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    sources = (folder, tmp_path / "jpeg", tmp_path / "npy", tmp_path / "train.parquet")
    runs = [tmp_path / f"run {number}" for number in range(len(sources))]
    for source, run in zip(sources, runs, strict=True):
        assert main(["pretrain", *options(run, **pictures(source, batch_size=16))]) == 0
    first, *others = map(weights, runs)
    assert all(equal(first, other) for other in others)
    assert len({json.loads((run / "summary.json").read_text())["knn"] for run in runs}) == 1


def test_a_run_ends_with_a_summary_of_its_accuracy_and_costs(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert {
        "knn",
        "knn_untrained",
        "loss",
        "images",
        "flops",
        "train_seconds",
        "wait_seconds",
        "speedup_flops",
        "speedup_seconds",
        "config_fingerprint",
    } <= set(summary)
    assert summary["images"] == 67 * 64  # 3 * 1438 images are 67.4 batches
    assert (summary["epochs"], summary["real_epochs"]) == (3, 67 * 64 / 1438)
    assert summary["speedup_flops"] == pytest.approx(summary["baseline_flops"] / summary["flops"])
    assert summary["speedup_flops"] > 1.2
    assert 0 < summary["knn_untrained"] < 1
    assert sum(stage["images"] for stage in summary["stages"]) == summary["images"]
    assert sum(stage["train_seconds"] for stage in summary["stages"]) == pytest.approx(summary["train_seconds"])


def test_a_run_needs_no_streams(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mae_curriculum", "pretrain", *options(tmp_path / "run", epochs=1)]
    assert subprocess.run(["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", *words], check=False).returncode == 0
    assert all(json.loads(line)["event"] for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines())


def test_a_run_without_curriculum_saves_nothing(tmp_path: Path) -> None:
    flags = options(tmp_path / "run", curriculum="configs/curriculum/none.yaml", epochs=1)
    assert main(["pretrain", *flags]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["speedup_flops"], summary["speedup_seconds"]) == (1, pytest.approx(1))


def test_a_run_logs_its_stages_and_prints_its_result(finished: Path) -> None:
    text = (finished.parent / "finished.txt").read_text()
    assert "stage 1 of 3: 24 px, 40 steps of 64 images" in text
    assert "stage 3 of 3: 32 px" in text
    assert "pretrained vit_tiny_patch16_224 on digits, 3 equivalent epochs (3.0 real)" in text
    assert "kNN accuracy" in text
    assert "9.44e+09 FLOPs instead of 1.42e+10 (1.51x fewer); " in text
    assert "by steps with and without it, timed in turn)" in text


def test_the_loss_falls_and_the_stages_change_as_planned(finished: Path) -> None:
    steps = rows(finished, "step")
    assert steps[-1]["loss"] < 0.9 * steps[0]["loss"]
    assert [(row["steps_done"], row["size"]) for row in rows(finished, "stage")] == [
        (0, [24, 24]),
        (40, [24, 24]),
        (54, [32, 32]),
    ]
    at_ends = [40, 54, 67]
    assert [row["steps_done"] for row in steps] == sorted({*range(5, 67, 5), *at_ends})
    assert steps[-1]["images"] == 67 * 64
    assert (steps[-1]["epochs"], steps[-1]["real_epochs"]) == (3, 67 * 64 / 1438)


def test_a_finished_run_prints_its_summary_again_and_changes_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert main(["pretrain", *options(finished)]) == 0
    output = capsys.readouterr()
    assert f"{finished} is finished already" in output.err
    assert (finished.parent / "finished.txt").read_text().startswith(output.out)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_knn_measures_a_runs_encoder_again(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    summary = json.loads((run / "summary.json").read_text())
    cache = ["--data.cache", str(tmp_path / "cache"), "--knn.images", "300"]
    assert main(["knn", "--checkpoint", str(run), *cache]) == 0
    assert f"kNN accuracy {summary['knn']:.4f} of {run} (run at step 67) on digits" in capsys.readouterr().out
    assert rows(run, "knn")[0]["accuracy"]["mean"] == summary["knn"]
    assert json.loads((run / "results.json").read_text())["accuracy"]["values"] == [summary["knn"]]
    assert main(["export", "--checkpoint", str(run), "--out", str(tmp_path / "encoder.safetensors")]) == 0
    assert main(["knn", "--checkpoint", str(run), "--data.mean", "[0.5]"]) == 2
    assert "uses the run's settings, not mean: None -> [0.5]" in capsys.readouterr().err
    alone = ["knn", "--checkpoint", str(tmp_path / "encoder.safetensors")]
    assert main(alone) == 2
    assert "is not a run with its own images" in capsys.readouterr().err
    data = ["--data.source", "digits", "--data.mean", "[0.305]", "--data.std", "[0.376]", *cache]
    assert main([*alone, *data]) == 0
    assert f"kNN accuracy {summary['knn']:.4f} of" in capsys.readouterr().out


def test_a_run_killed_before_its_summary_writes_it_after_a_restart(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "summary.json").unlink()
    assert main(["pretrain", *options(run)]) == 0
    both = [json.loads((path / "summary.json").read_text()) for path in (run, finished)]
    assert [summary["loss"] for summary in both] == [both[0]["loss"]] * 2
    assert [summary["knn"] for summary in both] == [both[0]["knn"]] * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_resumes_to_the_same_weights(
    workers: int, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert "run the same command to resume" in stop_midway(run, "pretrain", *options(run, data__workers=workers))
    stopped_at = rows(run, "save")[-1]["steps_done"]
    assert 2 <= stopped_at < 67
    assert main(["pretrain", *options(run)]) == 0
    assert rows(run, "start")[-1]["steps_done"] == stopped_at
    assert f"{run} continues from step {stopped_at} of 67\n" in capsys.readouterr().err
    assert equal(weights(run), weights(finished))


def test_two_processes_see_the_same_images_and_masks_and_end_with_the_same_loss(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = two_processes("pretrain", *options(run, micro_batch=20))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kNN accuracy") == 1
    assert "Warning" not in done.stderr
    both = [[row["loss"] for row in rows(path, "step")] for path in (finished, run)]
    assert both[0] == pytest.approx(both[1], abs=1e-4)
    knn = [json.loads((path / "summary.json").read_text())["knn"] for path in (finished, run)]
    assert knn[0] == pytest.approx(knn[1], abs=0.02)


def steps_of(**changes: Any) -> list[torch.Tensor]:
    """Train the last few steps of a run from its first weights; returns the losses."""
    config = load(PretrainConfig, options(**changes))
    training = set_up(config, World(0, 1, torch.device("cpu")), open_images(config.data)[0])
    return [step.loss_share for step in run_steps_(training, training.clock, Stopwatch(), first_step=62)]


def test_accumulation_does_not_change_the_losses() -> None:
    whole, parts = steps_of(), steps_of(micro_batch=7)
    assert len(whole) == 5
    torch.testing.assert_close(torch.stack(whole), torch.stack(parts), atol=1e-5, rtol=0)


def test_plain_mae_is_the_curriculum_of_one_stage() -> None:
    """Train an independent plain MAE by hand on the same images and masks."""
    config = load(PretrainConfig, options(curriculum="configs/curriculum/none.yaml", optim__warmup=0.1))
    training = set_up(config, World(0, 1, torch.device("cpu")), open_images(config.data)[0])
    ours = [
        float(step.loss_share) for step in islice(run_steps_(training, training.clock, Stopwatch(), first_step=0), 8)
    ]
    names = dict(build_model(config.model, seed=config.seed).named_parameters())
    learned = {name: p.detach().clone().requires_grad_() for name, p in names.items() if p.requires_grad}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in learned.items()}
    theirs = []
    for step in range(8):
        order = np.random.default_rng((0, 0)).permutation(1438)[step * 64 : step * 64 + 64]
        dataset = TrainingImages(training.images, (32, 32), 1, Augmentation(), 0)
        pixels = torch.stack([dataset[Request(0, int(image), View((32, 32)), None, 0.2)][0] for image in order])
        noise = mask_noise(seed=0, step=step, places=range(64), count=16)
        shape = {"patch": 8, "depth": 2, "heads": 3, "decoder_depth": 1, "decoder_heads": 2}
        images = (pixels / 255 - 0.305) / 0.376
        loss = plain_mae_loss(
            images, noise, learned | decoder_to_mae(learned), **shape, mask_ratio=0.75, norm_pix=False
        )
        theirs.append(loss.item())
        rate = 4e-3 * 64 / 256 * (step / 67) / 0.1  # warming up until step 6.7; the last step's rate shows in no loss
        gradients = torch.autograd.grad(loss, list(learned.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(learned.items(), gradients, strict=True):
                first, second = moments[name]
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.95).add_(0.05 * gradient**2)
                decayed = weight.ndim > 1 and "token" not in name
                weight -= rate * (0.05 * weight if decayed else 0)
                corrected = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.95 ** (step + 1))
                weight -= rate * corrected[0] / (corrected[1].sqrt() + 1e-8)
    assert ours == pytest.approx(theirs, abs=2e-4)
    assert ours[-1] < 0.9 * ours[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"curriculum__resize": "lanczos"},
        {"curriculum__resize": "bicubic"},
        {"curriculum__augmentation__randaug": "[9, 9]"},
        {"curriculum__augmentation__flip": "false"},
        {"optim__clip_norm": 1e-9},
        {"precision": "bfloat16"},
        {"model__mask_ratio": 0.5},
        {"curriculum__stages": '[{"share": 1.0, "size": 112, "batch_factor": 0.5}]'},
        {"curriculum__stages": '[{"share": 1.0, "size": 112, "mask_ratio": 0.5}]'},
        {"curriculum__stages": '[{"share": 1.0, "size": 112, "min_area": 1.0}]'},
        {"curriculum__stages": '[{"share": 1.0, "size": 112, "resize": "bicubic"}]'},
    ],
    ids=lambda changes: "-".join(map(str, next(iter(changes.items())))),
)
def test_every_setting_reaches_the_training(changes: dict[str, Any]) -> None:
    half_size = {"curriculum__stages": '[{"share": 1.0, "size": 112}]'}
    plain, changed = (torch.stack(steps_of(**settings)) for settings in (half_size, half_size | changes))
    assert changed.isfinite().all()
    assert (plain - changed[: len(plain)]).abs().max() > 1e-4


def test_a_hog_target_may_be_that_of_the_full_image() -> None:
    half, whole = ({"curriculum__stages": f'[{{"share": 1.0, "size": {size}}}]'} for size in (112, 224))
    ways = [{"model__target": "hog", "model__target_from": of} for of in ("crop", "full")]
    crop, full = (torch.stack(steps_of(**half, **way)) for way in ways)
    assert (crop - full).abs().max() > 1e-4
    crop, full = (torch.stack(steps_of(**whole, **way)) for way in ways)
    assert torch.equal(crop, full)


def test_a_run_with_a_hog_target_is_pictured_as_hog(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, photo = tmp_path / "run", str(picture_folder(tmp_path, classes=1, count=1) / "class0/0000.png")
    changes = {"model__target": "hog", "curriculum": "none", "epochs": 1, "tracking__pictures": 1}
    assert main(["pretrain", *options(run, **changes)]) == 0
    assert len(RunFolder(run).pictures) == 1
    losses = [row["loss"] for row in rows(run, "step")]
    assert losses[-1] < 0.5 * losses[0]
    assert main(["reconstruct", "--checkpoint", str(run), "--target", "hog", "--images", photo]) == 0
    assert main(["reconstruct", "--checkpoint", str(run), "--target", "pixels", "--images", photo]) == 2
    assert f"target=pixels conflicts with {run}, which has hog; omit --target" in capsys.readouterr().err


def test_broken_images_are_logged_and_replaced(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "pictures", classes=2, count=300)
    (folder / "class0" / "0010.png").write_text("a text file")
    (folder / "class1" / "0011.png").write_bytes((folder / "class1" / "0013.png").read_bytes()[:50])
    Image.new("RGB", (1, 1)).save(folder / "class0" / "0012.png")
    run = tmp_path / "run"
    assert main(["pretrain", *options(run, **pictures(folder))]) == 0
    named = {Path(row["image"]).name: row["reason"] for row in rows(run, "broken_image")}
    assert sorted(named) == ["0010.png", "0011.png", "0012.png"]
    assert (named["0010.png"], named["0012.png"]) == ("not an image", "1x1 pixels is too small")
    assert json.loads((run / "summary.json").read_text())["knn"] > 0.4


def test_too_many_broken_images_stop_the_run_and_keep_what_was_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = picture_folder(tmp_path / "pictures", classes=2, count=100)
    for index in (10, 12):
        (folder / "class0" / f"00{index}.png").write_text("a text file")
    assert main(["pretrain", *options(tmp_path / "run", **pictures(folder, epochs=20))]) == 2
    assert "2 of 100 images are broken, more than 1%, such as " in capsys.readouterr().err
    assert len(rows(tmp_path / "run", "broken_image")) == 2


def test_images_of_one_class_train_without_a_knn_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = picture_folder(tmp_path / "pictures", classes=1, count=100)
    assert main(["pretrain", *options(tmp_path / "run", **pictures(folder, epochs=7))]) == 0
    assert "no kNN accuracy: the images are not sorted into two or more classes" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["knn"] is None


MISTAKES: dict[str, dict[str, Any]] = {
    "data.source: no images in": {"data__source": "slurm"},
    "data.source: 'nowhere' is neither a folder nor a .tar, .npy or .parquet file": {"data__source": "nowhere"},
    "model.image_size 30x30 must be a multiple of the patch size, 8": {"model__image_size": 30},
    "curriculum.stages: shares must be positive and sum to 1; got [0.5]": {
        "curriculum__stages": '[{"share": 0.5, "size": 224}]'
    },
    "curriculum.stages: size 448 is larger than the image": {"curriculum__stages": '[{"share": 1.0, "size": 448}]'},
    "model.mask_ratio must be above 0 and below 1, got 0": {"model__mask_ratio": 0},
    "model.mask_ratio must be above 0 and below 1, got 1": {"model__mask_ratio": 1},
    "batch_size must be at least 1, got 0": {"batch_size": 0},
    "would have 4314 images, fewer than one step": {"batch_size": 100000, "curriculum": "configs/curriculum/none.yaml"},
    "curriculum.stages.share: must be finite, got nan": {
        "curriculum__stages": "[{share: .nan, size: 112}, {share: 1.0, size: 224}]"
    },
    "did you mean 'curriculum.stages[].mask_ratio' or 'model.mask_ratio'": {"model__mask_ration": 0.5},
    "epochs: Expected one of int, NoneType. Got value: 1.5": {"epochs": 1.5},
    "data.std has 1 values, model.channels is 3": {"model__channels": 3, "data__mean": "null"},
    "curriculum.augmentation.erasing is for classifiers": {"curriculum__augmentation__erasing": 0.25},
    "curriculum.augmentation.randaug needs 1 or 3 channels, not 4": {
        "model__channels": 4,
        "curriculum__augmentation__randaug": "[0, 9]",
    },
    "size 32 is a single patch here (8 px)": {"curriculum__stages": '[{"share": 1.0, "size": 32}]'},
    "model.image_size must be at least 1, got -32": {"model__image_size": -32},
    "the blocks of 'vit_base_patch16_xp_224' are not those of a plain ViT": {"model__name": "vit_base_patch16_xp_224"},
    "vit_tiny_patch16_224.nonexistent": {"model__name": "vit_tiny_patch16_224.nonexistent"},
    "data.std must be above 0, got []": {"data__std": "[]"},
    "data.image_count is 9, but digits has 1438": {"data__image_count": 9},
    "optim.warmup is a share of the run": {"optim__warmup": 5},
    "knn.pool: this encoder has no class_avg, only token, avg": {"knn__pool": "class_avg"},
    "got warmup 0.05 and warmup_epochs 1.0; set one of them to null": {"optim__warmup_epochs": 1},
    "mask_ratio must be above 0 and below 1, or null, got 1.5": {
        "curriculum__stages": '[{"share": 1.0, "size": 224, "mask_ratio": 1.5}]'
    },
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_user_error_is_one_line_and_exit_code_2(
    message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *options(tmp_path / "run", **MISTAKES[message])]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert error.count("error: ") == 1
    assert not (tmp_path / "run").exists()


def test_images_that_changed_since_the_run_started_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = picture_folder(tmp_path / "pictures", classes=2, count=100), tmp_path / "run"
    assert main(["pretrain", *options(run, **pictures(folder, epochs=7))]) == 0
    (folder / "class0" / "0010.png").rename(folder / "class0" / "ten.png")
    assert main(["pretrain", *options(run, **pictures(folder, epochs=7))]) == 2
    assert "was started with 100 images" in capsys.readouterr().err


def test_a_batch_smaller_than_the_world_is_refused() -> None:
    config = replace(load(PretrainConfig, options()), batch_size=1)
    with pytest.raises(ValueError, match="batch_size 1 makes steps of 1 images, fewer than the 2 processes"):
        set_up(config, World(0, 2, torch.device("cpu")), open_images(config.data)[0])


def test_a_run_folder_of_another_config_is_refused_unharmed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert main(["pretrain", *options(finished, epochs=4, seed=1)]) == 2
    assert "(epochs: 3 -> 4; seed: 0 -> 1)" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_too(tmp_path: Path) -> None:
    assert main(["pretrain", *options(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["loss"] < 1
