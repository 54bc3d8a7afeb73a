"""Fine-tuning, probing, few-shot evaluation and import, on a real pretraining run on digits."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from finetune.__main__ import main
from finetune.config import FinetuneConfig
from finetune.confusion import draw_confusion
from finetune.finetune import set_up
from finetune.mixing import mix
from finetune.repeat import config_per_seed
from mae_curriculum.__main__ import main as mae_curriculum
from mae_curriculum.config import load
from tests.runs import as_flags, equal, newest_state, picture_folder, rows, stop_midway, two_processes, weights

DIGITS: dict[str, Any] = {"data.source": "digits", "data.mean": "[0.305]", "data.std": "[0.376]"}

TUNING = {
    "data.workers": 0,
    "curriculum": "configs/curriculum/efficienttrain.yaml",
    "curriculum.augmentation.flip": "false",
    "curriculum.augmentation.min_area": "[0.8, 0.8]",
    "curriculum.augmentation.randaug": "[0, 4]",
    "curriculum.augmentation.erasing": 0.0,
    "model.drop_path": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "optim.base_lr": 3e-2,
    "layer_decay": 0.75,
    "batch_size": 64,
    "epochs": 6,
    "crop": 1.0,
    "tracking.every_steps": 5,
    "evaluate_every_epochs": 1,
}

PROBING = {
    "data.workers": 0,
    "curriculum.augmentation.flip": "false",
    "curriculum.augmentation.min_area": "[0.8, 0.8]",
    "optim.base_lr": 8.0,
    "grid": "[0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]",
    "batch_size": 64,
    "epochs": 3,
    "crop": 1.0,
    "tracking.every_steps": 5,
}


@pytest.fixture(scope="module")
def pretrained(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining run whose journal may grow."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("pretrained") / "run"))


def tuning(checkpoint: Path | None, run: Path, **changes: Any) -> list[str]:
    """Return the flags of a fine-tuning that takes seconds."""
    source = {} if checkpoint is None else {"checkpoint": checkpoint}
    return as_flags(TUNING | source | {"run": run}, **changes)


def probing(checkpoint: Path, run: Path, **changes: Any) -> list[str]:
    """Return the flags of a probe that takes seconds."""
    return as_flags(PROBING | {"checkpoint": checkpoint, "run": run, "data.cache": run.parent / "cache"}, **changes)


def results(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "results.json").read_text())
    return content


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def output_of(arguments: list[str]) -> str:
    """Run a command of this package in this process; returns what it printed."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        assert main(arguments) == 0, output.getvalue()
    return output.getvalue()


@pytest.fixture(scope="module")
def tuned(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning run that was never interrupted."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    (run.parent / "output.txt").write_text(output_of(["finetune", *tuning(pretrained, run)]))
    return run


def test_fine_tuning_writes_results_a_picture_and_a_row_in_the_journal_of_the_pretraining(
    tuned: Path, pretrained: Path
) -> None:
    found = results(tuned)
    assert found["accuracy"]["mean"] > 0.4
    assert found["best_accuracy"]["mean"] >= found["accuracy"]["mean"]
    assert found["seeds"] == [0]
    assert found["speedup_flops"] == pytest.approx(1.55, abs=0.1)
    (row,) = [row for row in rows(pretrained, "finetune") if row["config_fingerprint"] == found["config_fingerprint"]]
    assert row["accuracy"] == found["accuracy"]
    output = (tuned.parent / "output.txt").read_text()
    assert "stage 1 of 3: 24 px, 81 steps of 64 images" in output
    assert "new: fc_norm.bias, fc_norm.weight, head.bias, head.weight; in the checkpoint, not used: norm.bias" in output
    assert summary(tuned)["images_evaluated"] == 359
    assert set(summary(tuned)["class_accuracy"]) == set("0123456789")
    with Image.open(tuned / "pictures" / "confusion.png") as picture:
        assert min(picture.size) > 300


def test_the_plan_of_a_fine_tuning_is_what_it_costs(
    tuned: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *tuning(pretrained, tuned), "--json"]) == 0
    facts, found = json.loads(capsys.readouterr().out), summary(tuned)
    assert [facts[key] for key in ("images", "flops", "baseline_flops")] == [
        found[key] for key in ("images", "flops", "baseline_flops")
    ]
    assert facts["classes"] == 10


def test_any_class_name_can_be_drawn(tmp_path: Path) -> None:
    draw_confusion(torch.eye(2, dtype=torch.int64), ["$x_$", "long " * 20], tmp_path / "new" / "confusion.png")
    with Image.open(tmp_path / "new" / "confusion.png") as picture:
        assert min(picture.size) > 300


def test_magnitude_follows_progress(tuned: Path) -> None:
    steps = rows(tuned, "step")
    expected = [4 * (row["steps_done"] - 1) / 135 for row in steps]
    assert [row["magnitude"] for row in steps] == pytest.approx(expected, abs=1e-4)
    assert steps[-1]["magnitude"] > 3.9


def test_timm_and_this_project_load_the_best_weights(tuned: Path, tmp_path: Path) -> None:
    best = tuned / "best.safetensors"
    evaluations = [row["accuracy"] for row in rows(tuned, "evaluation")]
    assert len(evaluations) == 6
    assert results(tuned)["best_accuracy"]["mean"] == max(evaluations)
    shape: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "in_chans": 1,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 3,
    }
    shape |= {"num_classes": 10, "global_pool": "avg"}
    timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(best), **shape)
    again = tuning(best, tmp_path / "again", **DIGITS, epochs=1, optim__base_lr=1e-9, optim__min_lr=0)
    assert main(["finetune", *again]) == 0
    assert results(tmp_path / "again")["accuracy"]["mean"] == pytest.approx(max(evaluations), abs=1e-6)


def predicted_accuracy(checkpoint: Path, out: Path) -> float:
    """Predict the digits held out for validation; returns the share of the rows that name the right class."""
    main(["predict", *as_flags({"checkpoint": checkpoint, "out": out, "data.workers": 0})])
    with out.open() as stream:
        rows = list(csv.DictReader(stream))
    labels = [str(label) for label in load_digits().target[4::5]]
    assert [row["file"] for row in rows] == [f"image {index}" for index in range(len(labels))]
    return float(np.mean([row["class"] == label for row, label in zip(rows, labels, strict=True)]))


def test_predictions_are_as_accurate_as_the_best_evaluation(tuned: Path, tmp_path: Path) -> None:
    accuracy = predicted_accuracy(tuned, tmp_path / "new" / "out.csv")
    assert accuracy == pytest.approx(results(tuned)["best_accuracy"]["mean"], abs=1e-6)


def test_a_finished_fine_tuning_prints_its_results_again(
    tuned: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = results(tuned)
    assert main(["finetune", *tuning(pretrained, tuned)]) == 0
    assert "fine-tuned accuracy" in capsys.readouterr().out
    assert results(tuned) == before


def test_a_stopped_fine_tuning_resumes_to_the_same_weights(pretrained: Path, tmp_path: Path) -> None:
    changes = {"average_decay": 0.9, "model__drop_path": 0.3, "mixup": 0.8, "cutmix": 1.0, "epochs": 2}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(["finetune", *tuning(pretrained, whole, **changes)]) == 0
    stop_midway(stopped, "finetune", *tuning(pretrained, stopped, **changes, data__workers=2), package="finetune")
    assert newest_state(stopped)["steps_done"] < 45
    assert main(["finetune", *tuning(pretrained, stopped, **changes)]) == 0
    assert equal(weights(whole), weights(stopped))
    assert equal(*(newest_state(run)["ema"] for run in (whole, stopped)))
    assert results(whole)["accuracy"] == results(stopped)["accuracy"]
    assert results(whole)["best_accuracy"] == results(stopped)["best_accuracy"]


def test_two_processes_train_on_the_same_batches_and_evaluate_every_image_once(
    pretrained: Path, tmp_path: Path
) -> None:
    changes = {"mixup": 0.8, "cutmix": 1.0, "epochs": 1, "evaluation_batch": 50}
    single, double = tmp_path / "single", tmp_path / "double"
    assert main(["finetune", *tuning(pretrained, single, **changes)]) == 0
    done = two_processes("finetune", *tuning(pretrained, double, **changes, micro_batch=14), package="finetune")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    summaries = [summary(run) for run in (single, double)]
    assert [each["images_evaluated"] for each in summaries] == [359, 359]
    losses = [[row["loss"] for row in rows(run, "step")] for run in (single, double)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)  # pairs are mixed alike on any number of ranks
    assert summaries[0]["accuracy"] == pytest.approx(summaries[1]["accuracy"], abs=0.02)


def test_several_seeds_get_subfolders_and_a_standard_deviation(pretrained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["finetune", *tuning(pretrained, run, seeds=2, epochs=1)]) == 0
    found = results(run)["accuracy"]
    assert len(found["values"]) == 2
    assert found["std"] == pytest.approx(float(np.std(found["values"], ddof=1)))
    assert (run / "seed-0" / "summary.json").exists()
    assert (run / "seed-1" / "best.safetensors").exists()


def test_a_network_of_timm_trains_from_scratch(tmp_path: Path) -> None:
    changes = {"data__source": labeled(tmp_path / "pictures"), "model__name": "resnet10t", "model__image_size": 32}
    assert main(["finetune", *tuning(None, tmp_path / "run", **changes, layer_decay=1.0, batch_size=8, epochs=2)]) == 0
    assert {tuple(row["size"]) for row in rows(tmp_path / "run", "stage")} == {(22, 22), (28, 28), (32, 32)}
    assert results(tmp_path / "run")["checkpoint"] is None


def test_earlier_layers_get_lower_learning_rates(pretrained: Path, tmp_path: Path) -> None:
    from finetune.labeled import open_labeled
    from mae_curriculum.distributed import World
    from mae_curriculum.weights.read import read_weights
    from mae_curriculum.weights.run_settings import resolve_source

    config = load(FinetuneConfig, tuning(pretrained, tmp_path / "run", layer_decay=0.5))
    world = World(0, 1, torch.device("cpu"))
    train, _ = open_labeled(resolve_source(config.data, config.checkpoint), world)
    training, _ = set_up(config, read_weights(pretrained), train, world)
    scales = {
        name: group["lr_scale"]
        for group in training.optimizer.param_groups
        for name, parameter in training.model.net.named_parameters()
        if any(parameter is other for other in group["params"])
    }
    expected = {"patch_embed.proj.weight": 0.125, "pos_embed": 0.125, "blocks.0.attn.qkv.weight": 0.25}
    expected |= {"blocks.1.mlp.fc1.weight": 0.5, "fc_norm.weight": 1.0, "head.weight": 1.0}  # embedding, 2 blocks, head
    assert {name: scales[name] for name in expected} == expected
    decays = {id(p): group["weight_decay"] for group in training.optimizer.param_groups for p in group["params"]}
    named = dict(training.model.net.named_parameters())
    assert decays[id(named["pos_embed"])] == decays[id(named["head.bias"])] == 0
    assert decays[id(named["head.weight"])] == 0.05


def test_neighbors_and_their_targets_are_mixed() -> None:
    from timm.data.mixup import Mixup

    mixer = Mixup(0.8, 0.0, label_smoothing=0.0, num_classes=6)  # type: ignore[no-untyped-call]
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 2).clone()
    mixed, targets = mix(mixer, images, torch.arange(6), seed=3)
    means = (targets * torch.arange(6.0)).sum(dim=1)
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), means)
    assert torch.equal(targets.sum(dim=0), torch.ones(6))
    pairs = sorted(tuple(int(index) for index in row.nonzero()) for row in targets)
    assert pairs == [(0, 1), (0, 1), (2, 3), (2, 3), (4, 5), (4, 5)]
    again, _ = mix(mixer, images, torch.arange(6), seed=3)
    assert torch.equal(mixed, again)


def test_a_single_seed_uses_the_run_folder_itself(pretrained: Path, tmp_path: Path) -> None:
    config = load(FinetuneConfig, tuning(pretrained, tmp_path / "run"))
    assert config_per_seed(config) == [config]
    three = config_per_seed(replace(config, seed=4, seeds=3))
    assert [(one.seed, one.run.name, one.seeds) for one in three] == [
        (4, "seed-4", 1),
        (5, "seed-5", 1),
        (6, "seed-6", 1),
    ]


@pytest.fixture(scope="module")
def probed(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear probe that was never interrupted."""
    run = tmp_path_factory.mktemp("probed") / "run"
    (run.parent / "output.txt").write_text(output_of(["linprobe", *probing(pretrained, run)]))
    return run


def test_a_probe_chooses_its_head_by_held_out_images(probed: Path, pretrained: Path) -> None:
    heads = summary(probed)["heads"]
    assert len(heads) == 14
    best = max(heads, key=lambda head: head["held_out_accuracy"])
    assert summary(probed)["accuracy"] == best["accuracy"] == results(probed)["accuracy"]["mean"]
    assert best["accuracy"] > 0.3
    assert {"block": 1, "pool": best["pool"], "lr": best["lr"]} == results(probed)["chosen"][0]
    recorded = [row["config_fingerprint"] for row in rows(pretrained, "linprobe")]
    assert results(probed)["config_fingerprint"] in recorded
    assert (probed.parent / "output.txt").read_text().count("chosen") == 1


def test_a_probe_predicts_with_the_chosen_head(probed: Path, tmp_path: Path) -> None:
    accuracy = predicted_accuracy(probed, tmp_path / "out.csv")
    assert accuracy == pytest.approx(summary(probed)["accuracy"], abs=1e-6)


def test_a_run_without_a_head_does_not_predict(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = tmp_path / "encoder.safetensors"
    assert mae_curriculum(["export", *as_flags({"checkpoint": finished, "out": encoder})]) == 0
    for checkpoint in (finished, encoder):
        assert main(["predict", *as_flags({"checkpoint": checkpoint, "out": tmp_path / "out.csv"})]) == 2
        assert f"`python -m finetune linprobe --checkpoint {checkpoint}` (or `finetune`)" in capsys.readouterr().err


def test_a_head_trained_beside_others_equals_one_trained_alone(probed: Path, pretrained: Path, tmp_path: Path) -> None:
    alone = probing(pretrained, tmp_path / "run", grid="[2.0]", pools="[avg]")
    assert main(["linprobe", *alone]) == 0
    (head,) = summary(tmp_path / "run")["heads"]
    (beside,) = [other for other in summary(probed)["heads"] if (other["pool"], other["lr"]) == ("avg", 16.0)]
    assert head["accuracy"] == pytest.approx(beside["accuracy"], abs=0.06)  # only their initial weights differ


def test_a_diverging_head_does_not_affect_others(pretrained: Path, probed: Path, tmp_path: Path) -> None:
    grid = "[0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 1e30]"
    assert main(["linprobe", *probing(pretrained, tmp_path / "run", grid=grid)]) == 0
    heads, expected = summary(tmp_path / "run")["heads"], summary(probed)["heads"]
    pairs = [(a, b) for a, b in zip(heads, expected, strict=True) if a["lr"] < 1e9]
    assert len(pairs) == 12
    assert all(first == second for first, second in pairs)


def test_the_card_of_an_export_lists_the_measured_accuracy(probed: Path, pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "encoder.safetensors"
    assert mae_curriculum(["export", *as_flags({"checkpoint": pretrained, "out": out})]) == 0
    card = out.with_suffix(".md").read_text()
    accuracy = 100 * rows(pretrained, "linprobe")[-1]["accuracy"]["mean"]
    assert f"- linprobe on digits: accuracy {accuracy:.1f}" in card


def test_a_stopped_probe_resumes_to_the_same_weights(probed: Path, pretrained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop_midway(run, "linprobe", *probing(pretrained, run), package="finetune")
    assert main(["linprobe", *probing(pretrained, run)]) == 0
    assert equal(weights(run), weights(probed))
    assert results(run)["accuracy"] == results(probed)["accuracy"]


def test_a_probe_without_augmentation_reads_features_from_disk(pretrained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["linprobe", *probing(pretrained, run, augment="false")]) == 0
    stored = sorted((tmp_path / "cache" / ".features").iterdir())
    assert {np.load(path, mmap_mode="r").shape for path in stored} == {(1438, 2, 48), (359, 2, 48)}  # all, shared
    times = [path.stat().st_mtime_ns for path in stored]
    assert main(["linprobe", *probing(pretrained, tmp_path / "again", augment="false", epochs=4)]) == 0
    assert [path.stat().st_mtime_ns for path in stored] == times
    assert results(run)["accuracy"]["mean"] > 0.3


def test_a_probe_can_be_stopped_while_features_are_computed(pretrained: Path, tmp_path: Path) -> None:
    changes = {"augment": "false", "time_limit": "00:00:04"}  # less than the margin before a limit
    assert main(["linprobe", *probing(pretrained, tmp_path / "run", **changes)]) == 75
    assert list((tmp_path / "cache" / ".features").iterdir()) == []


def test_a_diverging_attentive_head_does_not_affect_others(pretrained: Path, tmp_path: Path) -> None:
    changes = {"head": "attentive", "optim__base_lr": 0.01, "epochs": 1, "grid": "[1.0, 1e25]"}
    assert main(["linprobe", *probing(pretrained, tmp_path / "run", **changes)]) == 0
    assert not rows(tmp_path / "run", "skipped")


@pytest.mark.parametrize("head", ["attentive", "ep"])
def test_a_probe_with_attention_learns(head: str, pretrained: Path, tmp_path: Path) -> None:
    changes = {"head": head, "optim__base_lr": 0.01, "optim__weight_decay": 0.05, "grid": "[1.0, 3.0]"}
    run = tmp_path / "run"
    assert main(["linprobe", *probing(pretrained, run, **changes)]) == 0
    assert results(run)["accuracy"]["mean"] > 0.4
    assert predicted_accuracy(run, tmp_path / "out.csv") == pytest.approx(summary(run)["accuracy"], abs=1e-6)


def test_few_shot_accuracy_grows_with_the_number_of_labels(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", str(pretrained), "--run", str(tmp_path / "run"), "--crop", "1"]
    options += ["--data.cache", str(tmp_path), "--seeds", "3"]
    assert main(["fewshot", *options, "--shots", "[1, 10, 0.5]"]) == 0
    found = results(tmp_path / "run")["accuracy"]
    assert 0.2 < found["1"]["mean"] < found["10"]["mean"] < found["0.5"]["mean"]
    assert "10 per class" in capsys.readouterr().out
    assert len(found["1"]["values"]) == 3
    assert rows(pretrained, "fewshot")[-1]["accuracy"] == found
    assert main(["fewshot", *options, "--shots", "[999]"]) == 2
    assert "999 images per class, but class 0 has only" in capsys.readouterr().err


def test_few_shot_accuracies_by_block_end_with_those_of_the_last(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", str(pretrained), "--data.cache", str(tmp_path), "--shots", "[10]", "--seeds", "1"]
    last = {}
    for block in ("0", "1", "all"):
        assert main(["fewshot", *options, "--block", block, "--run", str(tmp_path / block)]) == 0
        last[block] = results(tmp_path / block)["accuracy"]
    assert results(tmp_path / "all")["by_block"] == [last["0"], last["1"]]
    assert last["all"] == last["1"]
    assert "chosen on the same images" in capsys.readouterr().out
    assert len(list((tmp_path / ".features").iterdir())) == 4  # training and validation images, each block once


def test_a_probe_of_all_blocks_saves_the_encoder_up_to_the_chosen_one(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone"
    changes = {"augment": "false", "grid": "[1.0]"}
    assert main(["linprobe", *probing(pretrained, run, block="all", **changes)]) == 0
    found = summary(run)
    assert [(head["block"], head["pool"]) for head in found["heads"]] == [
        (0, "token"),
        (0, "avg"),
        (1, "token"),
        (1, "avg"),
    ]
    assert len(results(run)["by_block"]) == 2
    assert predicted_accuracy(run, tmp_path / "out.csv") == pytest.approx(found["accuracy"], abs=1e-6)
    assert main(["linprobe", *probing(pretrained, alone, block=0, pools="[avg]", held_out=0.1, **changes)]) == 0
    assert summary(alone)["heads"][0]["block"] == 0
    keys = load_file(alone / "best.safetensors").keys()
    assert "blocks.0.norm1.weight" in keys
    assert "blocks.1.norm1.weight" not in keys
    assert predicted_accuracy(alone, tmp_path / "alone.csv") == pytest.approx(summary(alone)["accuracy"], abs=1e-6)


def test_knn_by_block_prints_the_best_and_records_all(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"checkpoint": pretrained, "data.cache": tmp_path, "run": tmp_path}
    accuracies = []
    for block in (0, -1, "all"):
        assert mae_curriculum(["knn", *as_flags(flags | {"block": block})]) == 0
        accuracies.append(results(tmp_path)["accuracy"])
    assert results(tmp_path)["by_block"] == accuracies[:2]
    assert accuracies[2] == accuracies[1]
    assert "chosen on the same images; the last block has" in capsys.readouterr().out
    assert mae_curriculum(["knn", *as_flags(flags | {"block": 2})]) == 2
    assert "block must be in -2..1 for this encoder, got 2" in capsys.readouterr().err


def test_every_command_accepts_an_import(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported, again, run = (tmp_path / name for name in ("exported.pth", "again.pth", "imported"))
    assert mae_curriculum(["export", *as_flags({"checkpoint": finished, "format": "mae", "out": exported})]) == 0
    assert main(["import", *as_flags({"checkpoint": exported, "heads": 3, "run": run})]) == 0
    assert "encoder and decoder of" in capsys.readouterr().out
    assert rows(run, "import")[0]["origin"] == "facebookresearch/mae"
    assert mae_curriculum(["export", *as_flags({"checkpoint": run, "format": "mae", "out": again})]) == 0
    assert equal(*(torch.load(path, weights_only=True)["model"] for path in (exported, again)))
    capsys.readouterr()
    assert mae_curriculum(["knn", *as_flags(DIGITS, checkpoint=run, data__cache=tmp_path, knn__images=300)]) == 0
    knn = json.loads((finished / "summary.json").read_text())["knn"]
    assert f"kNN accuracy {knn:.4f}" in capsys.readouterr().out
    assert mae_curriculum(["knn", *as_flags({"checkpoint": run})]) == 2
    assert "is not a run with its own images" in capsys.readouterr().err


def test_the_import_of_a_fine_tuned_checkpoint_keeps_its_pooling(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, run = tuned / "best.safetensors", tmp_path / "run"
    assert main(["import", *as_flags({"checkpoint": best, "run": run})]) == 0
    capsys.readouterr()
    outputs = []
    for checkpoint in (run, best):
        assert mae_curriculum(["knn", *as_flags(DIGITS | {"checkpoint": checkpoint, "data.cache": tmp_path})]) == 0
        outputs.append(capsys.readouterr().out.split(" of ")[0])
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("kNN accuracy 0.")


def test_a_probe_of_a_changed_encoder_does_not_resume(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, run = tmp_path / "encoder.safetensors", tmp_path / "run"
    assert mae_curriculum(["export", *as_flags({"checkpoint": finished, "out": encoder})]) == 0
    probe = probing(encoder, run, **DIGITS, epochs=1)
    assert main(["linprobe", *probe]) == 0
    tensors = load_file(encoder)
    tensors["norm.weight"] = tensors["norm.weight"] * 2
    with safe_open(encoder, "pt") as file:
        save_file(tensors, encoder, metadata=file.metadata())
    assert main(["linprobe", *probe]) == 2
    assert "restore the former, or choose another --run" in capsys.readouterr().err


def test_two_processes_train_a_network_with_batch_norm_to_one_state(tmp_path: Path) -> None:
    changes = {"data__source": labeled(tmp_path / "pictures"), "model__name": "resnet10t", "model__image_size": 32}
    run = tmp_path / "run"
    flags = tuning(None, run, **changes, batch_size=8, epochs=1, average_decay=0.5)
    done = two_processes("finetune", *flags, package="finetune")
    assert done.returncode == 0, done.stderr
    state = newest_state(run)
    statistics = [key for key in state["model"] if key.endswith("running_mean")]
    assert statistics
    assert all(state["model"][key].isfinite().all() for key in statistics)


def labeled(folder: Path, *, classes: int = 2, count: int = 40) -> Path:
    """Write color pictures to train/ and val/."""
    for part in ("train", "val"):
        picture_folder(folder / part, classes, count)
    return folder


BAD_FOLDERS: dict[str, Callable[[Path], object]] = {
    "has class7, not among the": lambda folder: shutil.copytree(folder / "val" / "class0", folder / "val" / "class7"),
    "no training images of class empty": lambda folder: shutil.copytree(
        folder / "val", folder / "train" / "empty", ignore=lambda _, names: names
    ),
    "needs one folder per class, at least two": lambda folder: shutil.move(
        folder / "train" / "class1", folder / "away"
    ),
}


@pytest.mark.parametrize("message", BAD_FOLDERS)
def test_folders_without_usable_classes_are_refused(
    message: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = labeled(tmp_path / "pictures")
    BAD_FOLDERS[message](folder)
    changes = {"data__source": folder, "model__name": "resnet10t", "model__image_size": 32}
    assert main(["finetune", *tuning(None, tmp_path / "run", **changes)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


MASKED = {"curriculum__stages": '[{"share": 1.0, "size": 224, "mask_ratio": 0.6}]'}

BAD_SETTINGS: dict[str, dict[str, Any]] = {
    "so a batch must be even, got 33": {"batch_size": 33, "mixup": 0.8},
    "layer_decay must be above 0": {"layer_decay": 0.0},
    "crop must be above 0": {"crop": 1.5},
    "the checkpoint defines the ViT": {"model__name": "vit_base_patch16_224"},
    "smoothing must be at least 0 and below 1": {"smoothing": 1.0},
    "mask_ratio is for pretraining, where patches are hidden, got 0.6; omit it": MASKED,
}


@pytest.mark.parametrize("message", BAD_SETTINGS)
def test_invalid_settings_are_refused(
    message: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", *tuning(finished, tmp_path / "run", **BAD_SETTINGS[message])]) == 2
    *said, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert not any(line.startswith("error: ") for line in said)


BAD_PROBES: dict[str, dict[str, Any]] = {
    "choosing among 14 heads needs held-out images": {"held_out": 0.0},
    "heads with attention use AdamW": {"head": "attentive"},
    "heads with attention see the last block only, got -2": {"head": "ep", "optim__base_lr": 1e-3, "block": -2},
    "block must be in -2..1 for this encoder, got 2": {"block": 2},
    "choosing among the heads of all blocks needs held-out images": {
        "block": "all",
        "grid": "[1.0]",
        "pools": "[avg]",
        "held_out": 0.0,
    },
    "block: Expected one of int": {"block": "each"},
    "leaves none on one side": {"held_out": 1e-9},
    "would clip all heads by one norm": {"optim__clip_norm": 1.0},
    "batch normalization needs two images": {"micro_batch": 1},
    "mask_ratio is for pretraining": MASKED,
    "curriculum needs one stage of 224": {
        "augment": "false",
        "curriculum__stages": '[{"share": 1.0, "size": 112}]',
    },
    "uses unchanged images": {"augment": "false", "curriculum": "configs/curriculum/efficienttrain.yaml"},
}


@pytest.mark.parametrize("message", BAD_PROBES)
def test_invalid_probes_are_refused(
    message: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["linprobe", *probing(finished, tmp_path / "run", **BAD_PROBES[message])]) == 2
    assert message in capsys.readouterr().err


def test_damaged_weights_are_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported = tmp_path / "encoder.safetensors"
    assert mae_curriculum(["export", *as_flags({"checkpoint": finished, "out": exported})]) == 0
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(exported.read_bytes()[:-100])
    options = tuning(truncated, tmp_path / "run", data__source="digits")
    assert main(["finetune", *options]) == 2
    assert "truncated.safetensors cannot be read: " in capsys.readouterr().err


def test_a_diverging_run_logs_its_batches_and_ends(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["finetune", *tuning(finished, run, optim__base_lr=1e30, optim__warmup=0.0)]) == 2
    assert "loss or gradient was not finite in 5 steps in a row, up to step" in capsys.readouterr().err
    skipped = rows(run, "skipped")
    assert len(skipped) >= 5
    assert len(skipped[-1]["images_by_rank"][0]) == 64
    assert skipped[-1]["images_by_rank"][0][0].startswith("image ")
