"""The commands of `python -m mae_curriculum`."""

import sys

from mae_curriculum.cli import run_command

FOLDER = "mae_curriculum.commands"

COMMANDS = {
    "pretrain": ("mae_curriculum.pretraining_config:PretrainConfig", "mae_curriculum.pretraining:pretrain"),
    "plan": (f"{FOLDER}.config:PlanConfig", f"{FOLDER}.plan:plan"),
    "bench": (f"{FOLDER}.config:BenchConfig", f"{FOLDER}.bench:bench"),
    "knn": (f"{FOLDER}.config:EvaluateConfig", f"{FOLDER}.knn:evaluate"),
    "embed": (f"{FOLDER}.config:EmbedConfig", f"{FOLDER}.embed:embed"),
    "pack": (f"{FOLDER}.config:PackConfig", f"{FOLDER}.pack:pack"),
    "reconstruct": (f"{FOLDER}.config:ReconstructConfig", f"{FOLDER}.reconstruct:reconstruct"),
    "export": (f"{FOLDER}.config:ExportConfig", f"{FOLDER}.export:export"),
    "search": (f"{FOLDER}.config:SearchConfig", f"{FOLDER}.search:search"),
    "report": (f"{FOLDER}.config:ReportConfig", f"{FOLDER}.report:report"),
    "plot": (f"{FOLDER}.config:PlotConfig", f"{FOLDER}.plot:plot"),
    "replay": (f"{FOLDER}.config:ReplayConfig", f"{FOLDER}.replay:replay"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; without arguments, those of the command line."""
    return run_command("mae_curriculum", COMMANDS, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
