"""The command line of a package: `python -m PACKAGE VERB --config FILE [--a.b value]`."""

import json
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from mae_curriculum.config import ConfigError, load


def run_verb(package: str, verbs: Mapping[str, tuple[str, str]], arguments: list[str]) -> int:
    """Run a verb; returns the exit code: 2 for what the user can mend.

    verbs  name -> settings and function, as "module:name"; the function is imported once the settings are
           known to be valid, since torch takes seconds to load.
    """
    open_streams()
    usage = f"usage: python -m {package} {{{','.join(verbs)}}} --config FILE [--a.b value]; VERB --help says more"
    match arguments:
        case [verb, *rest] if verb in verbs:
            config_class, function = verbs[verb]
        case ["-h" | "--help"]:
            print(usage)
            return 0
        case _:
            print(usage, file=sys.stderr)
            return 2
    if "--" in rest:  # what stands behind it is a command, kept as it is
        place = rest.index("--")
        rest = [*rest[:place], "--command", json.dumps(rest[place + 1 :])]
    try:
        config = load(_named(config_class), rest, prog=f"python -m {package} {verb}")
        code: int = _named(function)(config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a quota, missing rights: the system's words name what and where
        print(f"error: {error}; what was saved before is unharmed", file=sys.stderr)
        return 2
    return code


def open_streams() -> None:
    """Open stdin, stdout and stderr where a process was started without, lest another file takes their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _named(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)
