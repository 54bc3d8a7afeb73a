"""The first lines of a run."""

import logging
from pathlib import Path

import pytest
import torch

from mae_curriculum.config import load
from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.curriculum.config import Curriculum, Stage
from mae_curriculum.data.sources import open_images
from mae_curriculum.distributed import World
from mae_curriculum.pretraining import set_up
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.training import beginning
from mae_curriculum.training.beginning import log_beginning
from tests.runs import options


def begin(**changes: object) -> None:
    config = load(PretrainConfig, options(Path("runs/new"), **changes))
    training = set_up(config, World(0, 1, torch.device("cpu")), open_images(config.data)[0])
    log_beginning(training, "pretrain", first_step=0)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_a_run_begins_with_what_it_trains_and_where(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        begin(model__patch_size=4)
    first, folder, length, stages, duration = caplog.messages
    # patch embedding 48 * 17, class token 48, blocks 2 * (12 * 48**2 + 13 * 48), norm 96; decoder: 32 * 49, mask token
    # 32, a block of 12 * 32**2 + 13 * 32, norm 64, output 16 * 33
    assert first.startswith("pretrain of vit_tiny_patch16_224: 72,400 trained parameters, 1 process on CPU (")
    assert folder == "  run folder: runs/new"
    assert length == "  length: 3 equivalent epochs (3.0 real)"
    assert stages == "  stages: 24 px for 40 steps, 28 px for 14 steps, 32 px for 13 steps"
    assert duration.startswith("  at least ")


def test_stages_of_the_same_size_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    begin()  # 160 and 192 of 224, in 8-pixel patches of a 32-pixel image: 2.9 and 3.4 patches
    (warning,) = warnings(caplog)
    assert warning.startswith("stages 1 and 2 both have 24 px, in whole patches")


def test_stages_that_are_meant_to_have_the_same_size_are_not_warned_of() -> None:
    same = Curriculum(stages=(Stage(0.5, 160), Stage(0.5, 160, mask_ratio=0.5)))
    clock = Clock(same, image_size=(32, 32), patch_size=(8, 8), images_per_epoch=100, epochs=1, batch_images=10)
    assert beginning.repeated_sizes(clock) == []


def test_a_run_that_takes_days_on_cpus_is_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "LONG_ON_CPU", 0.0)
    begin(model__patch_size=4)
    assert warnings(caplog) == ["that is long for CPUs: a GPU, fewer epochs or a smaller model.name would help"]
