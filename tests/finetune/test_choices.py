"""What fine-tuning and probing choose for their images, with numbers worked out by hand."""

from pathlib import Path

import pytest
import torch

from finetune.choices import settle
from finetune.config import FinetuneConfig, LinprobeConfig
from mae_curriculum.distributed import World
from mae_curriculum.run.folder import RunFolder

ALONE = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("images", "finetuned", "probed"),
    [
        (240, (64, 270), (64, 270)),  # 1000 * 64 / 240 = 266.7
        (50_000, (1024, 100), (1024, 90)),
        (1_281_167, (1024, 100), (16384, 90)),  # MAE's
    ],
)
def test_choices_grow_with_the_images_to_those_of_mae(
    images: int, finetuned: tuple[int, int], probed: tuple[int, int], tmp_path: Path
) -> None:
    tuning = settle(FinetuneConfig(run=tmp_path), images, ALONE)
    probing = settle(LinprobeConfig(run=tmp_path, checkpoint=tmp_path), images, ALONE)
    assert (tuning.batch_size, tuning.epochs) == finetuned
    assert (probing.batch_size, probing.epochs) == probed


def test_what_is_set_stays_and_the_rest_follows(tmp_path: Path) -> None:
    chosen = settle(FinetuneConfig(run=tmp_path, batch_size=32), 240, ALONE)
    assert (chosen.batch_size, chosen.epochs) == (32, 140)  # 1000 * 32 / 240 = 133.3
    chosen = settle(FinetuneConfig(run=tmp_path, epochs=3), 240, ALONE)
    assert (chosen.batch_size, chosen.epochs) == (64, 3)


def test_a_resumed_run_keeps_what_it_chose(tmp_path: Path) -> None:
    given = FinetuneConfig(run=tmp_path / "run")
    first = settle(given, 240, ALONE)
    RunFolder(given.run).claim(first, command="finetune")
    assert settle(given, 50_000, ALONE) == first
