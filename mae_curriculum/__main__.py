"""The verbs of `python -m mae_curriculum`."""

import sys

from mae_curriculum.cli import run_verb

COMMANDS = "mae_curriculum.commands"

VERBS = {
    "pretrain": ("mae_curriculum.pretraining_config:PretrainConfig", "mae_curriculum.pretraining:pretrain"),
    "plan": (f"{COMMANDS}.config:PlanConfig", f"{COMMANDS}.plan:plan"),
    "bench": (f"{COMMANDS}.config:BenchConfig", f"{COMMANDS}.bench:bench"),
    "knn": (f"{COMMANDS}.config:EvaluateConfig", f"{COMMANDS}.knn:evaluate"),
    "reconstruct": (f"{COMMANDS}.config:ReconstructConfig", f"{COMMANDS}.reconstruct:reconstruct"),
    "export": (f"{COMMANDS}.config:ExportConfig", f"{COMMANDS}.export:export"),
    "report": (f"{COMMANDS}.config:ReportConfig", f"{COMMANDS}.report:report"),
    "plot": (f"{COMMANDS}.config:PlotConfig", f"{COMMANDS}.plot:plot"),
    "replay": (f"{COMMANDS}.config:ReplayConfig", f"{COMMANDS}.replay:replay"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a verb and return its exit code; without arguments, those of the command line."""
    return run_verb("mae_curriculum", VERBS, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
