"""The help of each command: what comes first, how long it is, and how types and defaults are spelled."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pytest

from finetune.config import FinetuneConfig, LinprobeConfig
from mae_curriculum.cli import PACKAGES
from mae_curriculum.commands.config import PlanConfig
from mae_curriculum.config import load
from mae_curriculum.config_help import format_help, list_settings, name_type, spell
from mae_curriculum.curriculum.config import Stage
from mae_curriculum.pretraining_config import PretrainConfig
from slurm.pipeline_config import PipelineConfig


def classes() -> dict[str, Any]:
    """Return the settings class of every command."""
    found = {}
    for package in PACKAGES:
        for command, (place, _) in import_module(f"{package}.__main__").COMMANDS.items():
            module, name = place.split(":")
            found[f"{package} {command}"] = getattr(import_module(module), name)
    return found


CLASSES = classes()


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")


def keys(config_class: Any, prefix: str = "") -> set[str]:
    """Return the dotted keys of all settings."""
    found = set()
    for setting in list_settings(config_class, prefix):
        found |= {setting.key} | (keys(setting.kind, f"{setting.key}.") if setting.settings else set())
    return found


def flags(text: str) -> list[str]:
    """Return the flags that a help describes, in order."""
    return re.findall(r"^  --([\w.]+)", text, re.MULTILINE)


@pytest.mark.parametrize("command", CLASSES)
def test_help_is_short_and_fits_the_terminal(command: str) -> None:
    short, full = (format_help(CLASSES[command], f"python -m {command}", full=full) for full in (False, True))
    assert short.startswith(f"usage: python -m {command} ")
    assert len(short.splitlines()) <= 80
    assert max(map(len, f"{short}\n{full}".splitlines())) <= 100
    assert not re.search(r"Optional|Union|Literal|typing|class '|None|\[\w+, \.\.\.\]", short + full)


@pytest.mark.parametrize("command", CLASSES)
def test_help_all_describes_every_setting(command: str) -> None:
    full = format_help(CLASSES[command], command, full=True)
    assert set(flags(full)) == {"config", "print_config", *keys(CLASSES[command])}


def test_own_settings_come_first_and_parts_last_with_their_main_settings_before() -> None:
    found = flags(format_help(PlanConfig, "plan", full=False))
    assert found[2:10] == ["picture", "json", "devices", "rate", "nodes", "bandwidth", "run", "micro_batch"]
    assert found.index("data.source") < found.index("epochs") < found.index("model.")
    assert found[-7:] == ["curriculum.", "model.", "knn.", "data.", "optim.", "saving.", "tracking."]


def test_required_settings_of_parts_are_among_the_main_ones() -> None:
    assert "pretrain.command" in flags(format_help(PipelineConfig, "pipeline", full=False))


def test_paragraphs_of_a_description_stay_apart() -> None:
    assert "MAE's recipe.\n\nMAE's but for the crop" in format_help(LinprobeConfig, "linprobe", full=False)


def test_help_all_shows_the_defaults_of_the_command_and_the_items_of_lists() -> None:
    full = " ".join(format_help(FinetuneConfig, "finetune", full=True).split())
    assert "--optim.base_lr Peak learning rate" in full
    assert "(number; default 0.0005) --optim.min_lr" in full
    fields = "share, size, batch_factor, mask_ratio, min_area, resize, replay_buffer, images_factor"
    assert f"(list of {{{fields}}}; default [{{share: 1.0, size: 224, batch_factor: 1.0, mask_ratio: null, " in full
    assert " curriculum.stages[].size Image side" in full


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int | None, "integer"),
        (tuple[Path, ...], "list of paths"),
        (tuple[float, ...] | None, "list of numbers"),
        (tuple[Literal["token", "avg"], ...], "list of token, avg"),
        (int | tuple[int, int] | None, "integer or [integer, integer]"),
        (Literal["a", "b"] | None, "one of a, b"),
        (int | Literal["all"], "integer or all"),
        (dict[str, Any], "mapping"),
        (
            tuple[Stage, ...],
            "list of {share, size, batch_factor, mask_ratio, min_area, resize, replay_buffer, images_factor}",
        ),
        (bool, "true or false"),
    ],
)
def test_types_are_plain_words(kind: Any, words: str) -> None:
    assert name_type(kind) == words


@pytest.mark.parametrize(
    ("value", "text"), [(None, "null"), (True, "true"), ((0.2, 1), "[0.2, 1]"), (Path("a/b"), "a/b"), ({}, "{}")]
)
def test_defaults_are_spelled_as_in_yaml(value: Any, text: str) -> None:
    assert spell(value) == text


@pytest.mark.parametrize(("words", "full"), [(["--help"], False), (["-h"], False), (["--help", "all"], True)])
def test_help_ends_the_command(words: list[str], full: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(PretrainConfig, ["--epochs", "3", *words], prog="python -m mae_curriculum pretrain")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Recipes: cifar10, continue_vit_b16, digits" in text
    assert ("--optim.betas" in text) == full
