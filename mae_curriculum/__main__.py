"""The verbs of `python -m mae_curriculum`."""

import sys

from mae_curriculum.cli import run_verb

VERBS = {
    "pretrain": ("mae_curriculum.pretrain:PretrainConfig", "mae_curriculum.pretrain:pretrain"),
    "bench": ("mae_curriculum.bench:BenchConfig", "mae_curriculum.bench:bench"),
    "export": ("mae_curriculum.export:ExportConfig", "mae_curriculum.export:export"),
    "knn": ("mae_curriculum.evaluate:EvaluateConfig", "mae_curriculum.evaluate:evaluate"),
    "replay": ("mae_curriculum.replay:ReplayConfig", "mae_curriculum.replay:replay"),
    "reconstruct": ("mae_curriculum.reconstruct:ReconstructConfig", "mae_curriculum.reconstruct:reconstruct"),
    "plot": ("mae_curriculum.plot:PlotConfig", "mae_curriculum.plot:plot"),
    "plan": ("mae_curriculum.plan:PlanConfig", "mae_curriculum.plan:plan"),
    "report": ("mae_curriculum.report:ReportConfig", "mae_curriculum.report:report"),
}


def main(arguments: list[str]) -> int:
    """Run a verb; returns the exit code."""
    return run_verb("mae_curriculum", VERBS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
