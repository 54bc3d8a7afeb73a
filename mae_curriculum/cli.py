"""The command line of a package: `python -m PACKAGE VERB --config FILE [--a.b value]`."""

import difflib
import json
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from mae_curriculum.config import ConfigError, load
from mae_curriculum.files import is_user_error
from mae_curriculum.terminal import configure_logging
from mae_curriculum.version import describe_version


def run_verb(package: str, verbs: Mapping[str, tuple[str, str]], arguments: list[str]) -> int:
    """Run a verb and return its exit code; 2 means a user error, reported in one line.

    verbs  name -> settings and function, as "module:name"; the function is imported once the settings are
           known to be valid, since torch takes seconds to load.
    """
    open_streams()
    configure_logging()
    match arguments:
        case []:
            print(_usage(package, verbs), file=sys.stderr)
            return 2
        case ["-h" | "--help", *_]:
            print(_usage(package, verbs))
            return 0
        case ["--version", *_]:
            print(describe_version())
            return 0
    verb, *rest = arguments
    if "--" in rest:  # the words after it are a command, passed on unchanged
        place = rest.index("--")
        rest = [*rest[:place], "--command", json.dumps(rest[place + 1 :])]
    try:
        if verb not in verbs:
            near = difflib.get_close_matches(verb, verbs, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"the verbs are {', '.join(verbs)}"
            raise ConfigError(f"{package} has no verb '{verb}'; {hint}")
        config_class, function = verbs[verb]
        config = load(_import(config_class), rest, prog=f"python -m {package} {verb}")
        code: int = _import(function)(config)
    except (ConfigError, OSError) as error:
        if isinstance(error, OSError) and not is_user_error(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return code


def _usage(package: str, verbs: Mapping[str, tuple[str, str]]) -> str:
    """Format what `--help` without a verb prints: the verbs, each with what it does."""
    width = max(map(len, verbs))
    lines = [f"usage: python -m {package} VERB [--config FILE] [--a.b value]", ""]
    for verb, (config_class, _) in verbs.items():
        lines.append(f"  {verb:{width}}  {_import(config_class).__doc__.splitlines()[0]}")
    return "\n".join([*lines, "", f"`python -m {package} VERB --help` lists the settings of a verb."])


def open_streams() -> None:
    """Open stdin, stdout and stderr in a process that was started without them, so that no file takes their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _import(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)
