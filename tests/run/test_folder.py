"""What a path that is given as a checkpoint or as a run is, if it is none."""

from pathlib import Path

import pytest

from mae_curriculum import load_encoder
from mae_curriculum.__main__ import main
from mae_curriculum.config import ConfigError
from mae_curriculum.run.folder import RunFolder, check_checkpoint, no_run
from tests.run.test_checkpoint import Config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.claim(Config(), command="pretrain")
    folder.journal.touch()
    (folder.path / "checkpoints" / "step-00000001.0123456789abcdef.pt").touch()
    (folder.path / "best.safetensors").touch()
    return folder.path


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints", "checkpoints/step-00000001.0123456789abcdef.pt"])
def test_a_part_of_a_run_leads_to_the_run(name: str, run: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is only a part of a run; did you mean {run}\?"):
        check_checkpoint(run / name)
    assert no_run(run / name) == f"no run in {run / name}; did you mean {run}?"


def test_a_run_its_epochs_and_weights_in_it_pass(run: Path) -> None:
    for path in (run, run.with_name("a@3"), run / "best.safetensors"):
        check_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.pth", "none.pth does not exist"),
        ("settings.yaml", "settings.yaml is a file of settings, not of weights; settings are given by --config"),
        ("runs", r"runs is no run folder, but holds 1, such as \S+runs/a; name one"),
    ],
)
def test_what_is_no_checkpoint_leads_on(name: str, message: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").touch()
    with pytest.raises(ConfigError, match=rf"^checkpoint: \S+{message}$"):
        load_encoder(tmp_path / name)


@pytest.mark.parametrize("verb", ["knn", "export --out a.safetensors", "reconstruct --images a.png"])
def test_each_command_names_a_missing_checkpoint(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--checkpoint", "none.pth"]) == 2
    assert capsys.readouterr().err == "error: checkpoint: none.pth does not exist\n"


def test_a_file_is_no_run_folder(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.yaml is a file, no run folder; choose another --run"):
        RunFolder(run / "config.yaml").refuse_others(Config(), command="test")


@pytest.mark.parametrize("text", ["[1]", "{", '"\\ud800"', "{}"])
def test_a_damaged_run_json_is_one_line(text: str, run: Path) -> None:
    (run / "run.json").write_text(text)
    with pytest.raises(ConfigError):
        _ = RunFolder(run).info
