import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mae_curriculum.config import ConfigError, exempt
from mae_curriculum.files import write_json
from mae_curriculum.run.checkpoint import load_state, steps_of
from mae_curriculum.run.folder import FORMAT, RunFolder
from mae_curriculum.version import __version__


@dataclass(frozen=True)
class Config:
    """Settings of a run."""

    epochs: int = 3
    """Number of epochs."""
    workers: int = exempt(2)
    """Number of workers."""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.claim(Config(), command="pretrain")
    return run


def test_a_claimed_folder_can_be_claimed_again_and_exempt_settings_may_change(folder: RunFolder) -> None:
    folder.claim(Config(workers=5), command="pretrain")
    assert "workers: 5" in folder.config.read_text()


def test_a_folder_of_another_config_is_refused_with_the_keys_that_differ(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"belongs to a run with other settings \(epochs: 3 -> 4\)"):
        folder.claim(Config(epochs=4), command="pretrain")
    assert "epochs: 3" in folder.config.read_text()


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is no run folder"):
        RunFolder(tmp_path).claim(Config(), command="pretrain")


def test_a_folder_left_by_a_kill_before_its_config_was_written_can_be_claimed(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.tmp").write_text("epo")
    RunFolder(tmp_path).claim(Config(), command="pretrain")
    RunFolder(tmp_path).claim(Config(), command="pretrain")


def test_a_run_folder_says_which_command_and_version_created_it(folder: RunFolder) -> None:
    assert folder.info == {"command": "pretrain", "version": __version__, "format": FORMAT}
    RunFolder(folder.path.with_name("tuned")).claim(Config(), command="finetune")
    assert RunFolder(folder.path.with_name("tuned")).info["command"] == "finetune"


def test_a_folder_of_an_older_or_newer_format_is_refused_in_one_line(folder: RunFolder) -> None:
    info = folder.path / "run.json"
    write_json(info, {"command": "pretrain", "version": "9.0", "format": FORMAT + 1})
    with pytest.raises(ConfigError, match=r"was written by version 9\.0 of mae-curriculum and .* or use that version"):
        folder.claim(Config(), command="pretrain")
    info.unlink()
    with pytest.raises(ConfigError, match=r"was written by an older version \(0\.1\.0 or earlier\)") as caught:
        folder.refuse_others(Config(), command="test")
    assert "\n" not in str(caught.value)
    assert not info.exists()


def steps(folder: RunFolder) -> list[int]:
    return [steps_of(path) for path in folder.checkpoints]


def test_the_newest_checkpoint_is_found_and_only_the_newest_are_kept(folder: RunFolder) -> None:
    assert folder.newest() is None
    for step in (9, 10, 100):
        folder.save({"steps_done": step, "model": {"w": torch.full((3,), step)}}, keep=2)
    path = folder.newest()
    assert path is not None
    state = load_state(path)
    assert (state["steps_done"], state["model"]["w"].tolist()) == (100, [100, 100, 100])
    assert steps(folder) == [10, 100]


def test_checkpoints_to_keep_forever_are_kept(folder: RunFolder) -> None:
    for step in range(7):
        folder.save({"steps_done": step, "model": {}}, keep=1, keep_forever=lambda step: step % 3 == 0)
    assert steps(folder) == [0, 3, 6]


def test_a_checkpoints_name_holds_the_checksum_of_its_content(folder: RunFolder) -> None:
    path = folder.save({"steps_done": 1}, keep=2)
    assert path.name == f"step-00000001.{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.pt"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    damage: Callable[[Path], None], folder: RunFolder
) -> None:
    first, second = (folder.save({"steps_done": step, "weights": torch.zeros(100)}, keep=2) for step in (1, 2))
    damage(second)
    damaged: list[Path] = []
    assert folder.newest(on_damaged=damaged.append) == first
    assert damaged == [second]
    damage(first)
    with pytest.raises(ConfigError, match="no checkpoint in .* is intact; remove them to restart the run"):
        folder.newest()


def test_a_checkpoint_that_carries_code_is_refused(folder: RunFolder) -> None:
    path = folder.path / "checkpoints" / "step-00000001.pt"
    torch.save({"steps_done": 1, "callback": os.getcwd}, path)
    with pytest.raises(ConfigError, match="cannot be read: .*; remove it to continue") as caught:
        load_state(path)
    assert "\n" not in str(caught.value)


def test_json_is_replaced_and_no_temporary_file_remains(folder: RunFolder) -> None:
    write_json(folder.summary, {"knn": 0.5})
    write_json(folder.summary, {"knn": 0.75})
    assert json.loads(folder.summary.read_text()) == {"knn": 0.75}
    assert not list(folder.path.glob(".*"))


def test_a_full_disk_raises_and_leaves_earlier_checkpoints_intact(small_disk: Callable[[str], Path]) -> None:
    run = RunFolder(small_disk("5m") / "run")
    run.claim(Config(), command="pretrain")
    weights = torch.arange(500_000, dtype=torch.float32)  # 2 MB
    run.save({"steps_done": 1, "model": {"w": weights}}, keep=2)
    run.save({"steps_done": 2, "model": {"w": weights}}, keep=2)
    with pytest.raises(OSError, match="No space left on device"):
        run.save({"steps_done": 3, "model": {"w": weights}}, keep=2)
    path = run.newest()
    assert path is not None
    assert torch.equal(load_state(path)["model"]["w"], weights)
    assert steps(run) == [1, 2]
    assert len(list((run.path / "checkpoints").iterdir())) == 2


class Code:
    """An object that runs a program where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


UNREADABLE = {
    "code": ({"model": Code()}, "it holds posix.system, which is no tensor and could run code"),
    "a module": (
        torch.nn.Linear(2, 2),
        "it holds torch.nn.modules.linear.Linear, which is no tensor and could run code",
    ),
    "a list": ([1], "it has no model and steps_done"),
    "a tensor without values": (
        {"steps_done": 1, "model": {"w": torch.zeros(3, device="meta")}},
        "holds a tensor without values, on torch's device meta",
    ),
    "an expanded tensor": (
        {"model": {"w": torch.zeros(1).expand(2**40)}},
        "a tensor that is larger than the file: [1099511627776] of 4 bytes each",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_is_no_state_is_refused_in_our_words(name: str, tmp_path: Path) -> None:
    content, reason = UNREADABLE[name]
    torch.save(content, tmp_path / "step.pt")
    with pytest.raises(ConfigError) as caught:
        load_state(tmp_path / "step.pt")
    assert reason in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [b"", b"hello", b"{}", bytes(1000), b"PK\x03\x04 cut"])
def test_damaged_bytes_are_refused_in_our_words(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "step.pt").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read: it .*damaged") as caught:
        load_state(tmp_path / "step.pt")
    assert "weights_only" not in str(caught.value)


def test_a_state_that_contains_itself_is_read(tmp_path: Path) -> None:
    state: dict[str, object] = {"steps_done": 1, "model": {"w": torch.ones(2)}}
    state["itself"] = state
    torch.save(state, tmp_path / "step.pt")
    assert load_state(tmp_path / "step.pt")["steps_done"] == 1
