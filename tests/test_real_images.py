"""Shortened recipes on real photographs; skipped if there is no `shared/data` beside the checkout."""

import json
import subprocess
import tarfile
from collections import defaultdict
from pathlib import Path

import pytest

from mae_curriculum.data.decode import read_image
from tests.processes import ROOT
from tests.runs import command

ARCHIVES = ROOT.parent / "shared" / "data"


def unpack(archive: str, folder: Path, *, train: int, val: int) -> Path:
    """Unpack the first images of each class from an archive of NAME/{train,val}/CLASS/*.jpg; skips without it."""
    if not (ARCHIVES / archive).exists():
        pytest.skip(f"needs {archive} in {ARCHIVES}")
    counts: dict[Path, int] = defaultdict(int)
    with tarfile.open(ARCHIVES / archive) as tar:
        for member in tar:
            class_folder = Path(member.name).parent
            limit = {"train": train, "val": val}.get(class_folder.parent.name, 0)
            if member.isfile() and counts[class_folder] < limit:
                counts[class_folder] += 1
                tar.extract(member, folder, filter="data")
    return next(folder.iterdir())


def check_run(done: subprocess.CompletedProcess[str], run: Path, sizes: list[int]) -> None:
    assert done.returncode == 0, done.stderr
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in journal if row["event"] == "step"]
    assert losses[-1] < 0.9 * losses[0]
    assert [row["size"] for row in journal if row["event"] == "stage"] == [[size, size] for size in sizes]
    summary = json.loads((run / "summary.json").read_text())
    assert 0 < summary["knn"] < 1
    assert [row for row in journal if row["event"] == "broken_image"] == []
    assert summary["speedup_flops"] > 1.3


def test_the_cifar10_recipe_learns_from_a_folder(tmp_path: Path) -> None:
    source = unpack("cifar10.tar.xz", tmp_path / "data", train=40, val=10)
    recipe = ("--config", "configs/pretrain/cifar10.yaml", "--data.source", source, "--run", tmp_path / "run")
    done = command(
        "pretrain", *recipe, "--epochs", 5, "--batch_size", 32, "--optim.base_lr", 8e-3, "--tracking.every_steps", 5
    )
    check_run(done, tmp_path / "run", [24, 28, 32])


def test_the_imagenette_recipe_learns_from_a_folder(tmp_path: Path) -> None:
    source = unpack("imagenette-128.tar.xz", tmp_path / "data", train=10, val=3)
    recipe = ("--config", "configs/pretrain/imagenette128.yaml", "--data.source", source, "--run", tmp_path / "run")
    shorter = (
        "--epochs",
        2,
        "--batch_size",
        8,
        "--optim.base_lr",
        8e-3,
        "--tracking.every_steps",
        3,
        "--model.depth",
        3,
    )
    check_run(command("pretrain", *recipe, *shorter), tmp_path / "run", [88, 112, 128])


def test_every_original_imagenet_photograph_is_decoded(tmp_path: Path) -> None:
    source = unpack("imagenet-photos-200.tar", tmp_path / "data", train=1, val=0)
    photographs = sorted(source.rglob("*.JPEG"))
    assert len(photographs) == 200
    for path in photographs:
        assert read_image(path, 3).shape[0] == 3
        assert read_image(path, 1).shape[0] == 1
