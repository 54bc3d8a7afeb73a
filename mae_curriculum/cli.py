"""The command line of a package: `python -m PACKAGE COMMAND --config FILE [--a.b value]`."""

import difflib
import io
import json
import os
import select
import signal
import sys
import textwrap
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from mae_curriculum.config import ConfigError, load, load_each
from mae_curriculum.files import is_user_error
from mae_curriculum.terminal import configure_logging, printable, shown
from mae_curriculum.version import describe_version

PACKAGES = ("mae_curriculum", "finetune", "slurm")
"""The packages that have commands."""


def run_command(package: str, commands: Mapping[str, tuple[str, str]], arguments: list[str]) -> int:
    """Run a command and return its exit code; 2 means a user error, reported in one line.

    commands  name -> settings and function, as "module:name"; the function is imported once the settings are
              known to be valid, since torch takes seconds to load.
    """
    open_streams()
    configure_logging()
    try:
        try:
            return _run(package, commands, arguments)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:  # before or after a run: during it, Ctrl-C stops it, and it saves
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        return 128 + signal.SIGPIPE  # as a shell shows a program that a broken pipe ended


def _run(package: str, commands: Mapping[str, tuple[str, str]], arguments: list[str]) -> int:
    match arguments:
        case []:
            print(_usage(package, commands), file=sys.stderr)
            return 2
        case ["-h" | "--help", *_]:
            print(_usage(package, commands))
            return 0
        case ["--version", *_]:
            print(describe_version())
            return 0
    command, *rest = arguments
    if "--" in rest:  # the words after it are a command, passed on unchanged
        place = rest.index("--")
        rest = [*rest[:place], "--command", json.dumps(rest[place + 1 :])]
    try:
        if command not in commands:
            raise ConfigError(f"{package} has no command '{command}'; {_other_command(package, commands, command)}")
        settings, function = commands[command]
        config_class = _import(settings)
        read = load_each if getattr(config_class, "files_apart", False) else load
        config = read(config_class, rest, prog=f"python -m {package} {command}")
        with shown("loading Python packages ..."):
            run = _import(function)
        code: int = run(config)
    except (ConfigError, OSError) as error:
        if isinstance(error, OSError) and not is_user_error(error):
            raise
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    return code


def _other_command(package: str, commands: Mapping[str, tuple[str, str]], command: str) -> str:
    """Return what leads on from an unknown command: where it is one, else the nearest one, else all."""
    for other in PACKAGES:
        if other != package and command in _commands_of(other):
            submitted = f", or python -m slurm submit -- {other} {command}" if package == "slurm" else ""
            return f"it is one of {other}: python -m {other} {command}{submitted}"
    near = difflib.get_close_matches(command, commands, n=1)
    return f"did you mean '{near[0]}'?" if near else f"the commands are {', '.join(commands)}"


def _reader_has_left() -> bool:
    """Return whether nobody reads stdout any more; what is left to print is then dropped."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    has_left = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if has_left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return has_left


def _usage(package: str, commands: Mapping[str, tuple[str, str]]) -> str:
    """Format what `--help` without a command prints: the commands, each with what it does, and the other packages'."""
    width = max(map(len, commands))
    lines = [f"usage: python -m {package} COMMAND [FILE...] [--SETTING VALUE]", ""]
    for command, (config_class, _) in commands.items():
        lines.append(f"  {command:{width}}  {_import(config_class).__doc__.splitlines()[0]}")
    lines += ["", f"`python -m {package} COMMAND --help` describes a command. Other commands:", ""]
    for other in PACKAGES:
        if other != package:
            start = f"  python -m {other:14}  "
            names = ", ".join(_commands_of(other))
            lines.append(textwrap.fill(names, 100, initial_indent=start, subsequent_indent=" " * len(start)))
    return "\n".join(lines)


def _commands_of(package: str) -> Mapping[str, tuple[str, str]]:
    commands: Mapping[str, tuple[str, str]] = import_module(f"{package}.__main__").COMMANDS
    return commands


def open_streams() -> None:
    """Open stdin, stdout and stderr in a process that was started without them, so that no file takes their numbers.

    File names that are not text can be printed, as stderr does by itself.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _import(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)
