"""The verbs of `python -m mae_curriculum`."""

import sys

from mae_curriculum.cli import run_verb

VERBS = {
    "pretrain": ("mae_curriculum.pretraining_config:PretrainConfig", "mae_curriculum.pretrain:pretrain"),
    "bench": ("mae_curriculum.command_config:BenchConfig", "mae_curriculum.bench:bench"),
    "export": ("mae_curriculum.command_config:ExportConfig", "mae_curriculum.export:export"),
    "knn": ("mae_curriculum.command_config:EvaluateConfig", "mae_curriculum.evaluate:evaluate"),
    "replay": ("mae_curriculum.command_config:ReplayConfig", "mae_curriculum.replay:replay"),
    "reconstruct": ("mae_curriculum.command_config:ReconstructConfig", "mae_curriculum.reconstruct:reconstruct"),
    "plot": ("mae_curriculum.command_config:PlotConfig", "mae_curriculum.plot:plot"),
    "plan": ("mae_curriculum.command_config:PlanConfig", "mae_curriculum.plan:plan"),
    "report": ("mae_curriculum.command_config:ReportConfig", "mae_curriculum.report:report"),
}


def main(arguments: list[str]) -> int:
    """Run a verb; returns the exit code."""
    return run_verb("mae_curriculum", VERBS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
