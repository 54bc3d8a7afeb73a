import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from mae_curriculum.run.background_save import BackgroundSaver
from mae_curriculum.run.checkpoint import load_state, steps_of
from mae_curriculum.run.folder import RunFolder


class SlowFolder(RunFolder):
    """A run folder whose saves wait until they are allowed."""

    allowed = Event()

    def save(self, state: dict[str, Any], *, keep: int, keep_forever: Callable[[int], bool] = lambda _: False) -> Path:
        self.allowed.wait(10)
        return super().save(state, keep=keep, keep_forever=keep_forever)


@pytest.fixture
def folder(tmp_path: Path) -> SlowFolder:
    (tmp_path / "checkpoints").mkdir()
    SlowFolder.allowed.clear()
    return SlowFolder(tmp_path)


def newest_weights(folder: RunFolder) -> torch.Tensor:
    path = folder.newest()
    assert path is not None
    weights: torch.Tensor = load_state(path)["model"]["weights"]
    return weights


def test_what_training_changes_during_a_save_is_not_saved(folder: SlowFolder) -> None:
    saver = BackgroundSaver(folder, keep=2)
    weights = torch.ones(3)
    saver.start({"steps_done": 1, "model": {"weights": weights}}, lambda _: False)
    weights.zero_()
    assert folder.checkpoints == []
    assert saver.failure() is None
    folder.allowed.set()
    saver.wait()
    assert newest_weights(folder).tolist() == [1, 1, 1]
    assert saver.seconds > 0


@pytest.mark.parametrize("shape", [(3,), (4,)])
def test_a_second_save_has_its_own_values_whether_or_not_memory_is_reused(
    folder: SlowFolder, shape: tuple[int, ...]
) -> None:
    folder.allowed.set()
    saver = BackgroundSaver(folder, keep=2)
    saver.start({"steps_done": 1, "model": {"weights": torch.ones(3)}, "groups": [{"step": torch.tensor(1)}]}, bool)
    saver.start({"steps_done": 2, "model": {"weights": torch.zeros(shape)}, "groups": [1, torch.tensor(2)]}, bool)
    saver.wait()
    assert torch.equal(newest_weights(folder), torch.zeros(shape))
    first, second = map(load_state, folder.checkpoints)
    assert first["model"]["weights"].tolist() == [1, 1, 1]
    assert (first["groups"], second["groups"]) == ([{"step": 1}], [1, 2])


def test_a_failure_is_returned_once_and_the_next_save_works(folder: SlowFolder) -> None:
    folder.allowed.set()
    saver = BackgroundSaver(folder, keep=1)
    shutil.rmtree(folder.path)
    saver.start({"steps_done": 1}, lambda _: False)
    saver.wait()
    assert isinstance(saver.failure(), FileNotFoundError)
    assert saver.failure() is None
    folder.path.mkdir()
    saver.start({"steps_done": 2}, lambda _: False)
    saver.wait()
    assert saver.failure() is None


def test_only_the_newest_checkpoints_and_those_to_keep_forever_are_kept(folder: SlowFolder) -> None:
    folder.allowed.set()
    saver = BackgroundSaver(folder, keep=1)
    for steps in range(1, 6):
        saver.start({"steps_done": steps}, lambda steps: steps == 2)
    saver.wait()
    assert [steps_of(path) for path in folder.checkpoints] == [2, 5]
