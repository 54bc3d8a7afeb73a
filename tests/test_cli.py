"""What the command line answers before any work starts, in-process."""

import errno
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import finetune.__main__
import mae_curriculum.__main__
import slurm.__main__
from mae_curriculum.cli import run_command
from mae_curriculum.config import ConfigError
from mae_curriculum.terminal import LOGGERS, TerminalHandler, configure_logging
from mae_curriculum.version import __version__
from tests.processes import ROOT

PACKAGES = {
    "mae_curriculum": mae_curriculum.__main__,
    "finetune": finetune.__main__,
    "slurm": slurm.__main__,
}


@dataclass(frozen=True)
class Config:
    """Raise an error.

    Not the first line.
    """

    errno: int = 0
    """Its number; 0 for none."""


def fail(config: Config) -> int:
    if config.errno == 0:
        raise ConfigError("epochs must be at least 1, got 0")
    raise OSError(config.errno, "the system's words", "a/file")


def shout(config: Config) -> int:
    print("a" * 100_000, flush=True)
    return config.errno


COMMANDS = {"fail": ("tests.test_cli:Config", "tests.test_cli:fail"), "plot": ("tests.test_cli:Config", "none:none")}


def test_a_user_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("tests", COMMANDS, ["fail"]) == 2
    assert capsys.readouterr().err == "error: epochs must be at least 1, got 0\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_system_error_that_the_user_can_fix_is_one_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("tests", COMMANDS, ["fail", "--errno", str(number)]) == 2
    assert capsys.readouterr().err == f"error: [Errno {number}] the system's words: 'a/file'\n"


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ECONNRESET, errno.EMFILE])
def test_any_other_system_error_keeps_its_traceback(number: int) -> None:
    with pytest.raises(OSError, match="the system's words"):
        run_command("tests", COMMANDS, ["fail", "--errno", str(number)])


def test_an_unknown_command_is_one_line_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("tests", COMMANDS, ["fial"]) == 2
    assert capsys.readouterr().err == "error: tests has no command 'fial'; did you mean 'fail'?\n"
    assert run_command("tests", COMMANDS, ["xyz"]) == 2
    assert capsys.readouterr().err == "error: tests has no command 'xyz'; the commands are fail, plot\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("mae_curriculum finetune", "it is one of finetune: python -m finetune finetune"),
        ("mae_curriculum import", "it is one of finetune: python -m finetune import"),
        ("finetune knn", "it is one of mae_curriculum: python -m mae_curriculum knn"),
        ("mae_curriculum status", "it is one of slurm: python -m slurm status"),
        (
            "slurm pretrain",
            "it is one of mae_curriculum: python -m mae_curriculum pretrain, or python -m slurm submit -- "
            "mae_curriculum pretrain",
        ),
    ],
)
def test_a_command_of_another_package_names_that(words: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    package, command = words.split()
    assert PACKAGES[package].main([command, "--checkpoint", "runs/a"]) == 2
    assert capsys.readouterr().err == f"error: {package} has no command '{command}'; {hint}\n"


@pytest.mark.parametrize("words", [["--help"], ["fail", "--help"], ["shout"]])
def test_a_broken_pipe_ends_a_command_without_a_word(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run_command("tests", COMMANDS | {"shout": (COMMANDS["fail"][0], "tests.test_cli:shout")}, words) == 141
        print("dropped", flush=True)


def test_another_broken_pipe_is_not_hidden() -> None:
    with pytest.raises(BrokenPipeError):
        run_command("tests", COMMANDS, ["fail", "--errno", str(errno.EPIPE)])


def test_escape_codes_in_an_error_are_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("tests", COMMANDS, ["\x1b[2J\n"]) == 2
    assert "no command '\\x1b[2J\\n'" in capsys.readouterr().err


def test_help_lists_each_command_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("tests", COMMANDS, ["--help"]) == 0
    output = capsys.readouterr()
    assert "\n  fail  Raise an error.\n" in output.out
    assert "Not the first line" not in output.out
    assert run_command("tests", COMMANDS, []) == 2
    assert capsys.readouterr().err == output.out


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_lists_its_commands_and_its_version(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    main, commands = PACKAGES[package].main, PACKAGES[package].COMMANDS
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: python -m {package} COMMAND" in out
    assert all(f"\n  {command} " in out for command in commands)
    assert max(map(len, out.splitlines())) <= 100
    for other, module in PACKAGES.items():
        assert (f"\n  python -m {other} " in out) == (other != package)
        assert all(re.search(rf"\b{command}\b", out) for command in module.COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"mae-curriculum {__version__}")


def test_a_misspelled_command_of_the_project_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert mae_curriculum.__main__.main(["pretrian"]) == 2
    assert capsys.readouterr().err == "error: mae_curriculum has no command 'pretrian'; did you mean 'pretrain'?\n"


def test_settings_of_every_command_load_without_torch() -> None:
    modules = {entry[0].split(":")[0] for package in PACKAGES.values() for entry in package.COMMANDS.values()}
    code = f"import sys, {', '.join(sorted(modules))}; print({{'torch', 'timm', 'torchvision'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_words_after_two_dashes_are_passed_on_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--", "mae_curriculum", "pretrain", "--epoch", "3"]
    assert slurm.__main__.main(["submit", "--local", *command]) == 2
    assert "unrecognized arguments: --epoch 3; did you mean 'epochs'?" in capsys.readouterr().err


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the loggers as they were."""
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])


@pytest.mark.usefixtures("handlers")
def test_log_messages_go_to_stderr_once_with_their_level_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging()
    for name in LOGGERS:
        logger = logging.getLogger(f"{name}.module")
        logger.debug("a detail")
        logger.info("saved")
        logger.warning("the loss is high")
    assert capsys.readouterr() == ("", 3 * "saved\nwarning: the loss is high\n")
    assert [type(handler) for handler in logging.getLogger("slurm").handlers] == [TerminalHandler]


def test_a_recipe_is_found_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mae_curriculum.__main__.main(["pretrain", "--config", "imagenette128", "--print_config"])
    assert capsys.readouterr().out.startswith("run: runs/imagenette128\n")
    assert mae_curriculum.__main__.main(["pretrain", "--config", "imagenet128"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --config: cannot read 'imagenet128': ")
    assert error.endswith(
        "; recipes: cifar10, continue_vit_b16, digits, imagenette128, vit_b16_in1k, vit_b16_in1k_blocks, "
        "vit_b16_in1k_efficienttrain, vit_b16_in1k_efficienttrain_pp, vit_l16_in1k_efficienttrain\n"
    )
