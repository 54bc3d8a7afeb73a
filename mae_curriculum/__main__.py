"""The command line: `python -m mae_curriculum VERB --config FILE [--a.b value]`."""

import sys
from importlib import import_module
from typing import Any

from mae_curriculum.config import ConfigError, load

VERBS = {
    "pretrain": ("mae_curriculum.pretrain:PretrainConfig", "mae_curriculum.pretrain:pretrain"),
    "bench": ("mae_curriculum.bench:BenchConfig", "mae_curriculum.bench:bench"),
    "export": ("mae_curriculum.export:ExportConfig", "mae_curriculum.export:export"),
    "knn": ("mae_curriculum.evaluate:EvaluateConfig", "mae_curriculum.evaluate:evaluate"),
    "plan": ("mae_curriculum.plan:PlanConfig", "mae_curriculum.plan:plan"),
}
"""Name -> settings and function; imported when asked for, since torch takes seconds to load."""

USAGE = f"usage: python -m mae_curriculum {{{','.join(VERBS)}}} --config FILE [--a.b value]; VERB --help says more"


def main(arguments: list[str]) -> int:
    """Run a verb; returns the exit code: 2 for what the user can mend."""
    match arguments:
        case [verb, *rest] if verb in VERBS:
            config_class, function = map(_named, VERBS[verb])
        case ["-h" | "--help"]:
            print(USAGE)
            return 0
        case _:
            print(USAGE, file=sys.stderr)
            return 2
    try:
        code: int = function(load(config_class, rest, prog=f"python -m mae_curriculum {verb}"))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a quota, missing rights: the system's words name what and where
        print(f"error: {error}; what was saved before is unharmed", file=sys.stderr)
        return 2
    return code


def _named(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
