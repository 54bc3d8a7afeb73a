"""The commands of `python -m finetune`."""

import sys

from mae_curriculum.cli import run_command

COMMANDS = {
    "finetune": ("finetune.config:FinetuneConfig", "finetune.finetune:finetune"),
    "plan": ("finetune.config:PlanConfig", "finetune.plan:plan"),
    "search": ("finetune.search_config:SupervisedSearchConfig", "finetune.search:search"),
    "linprobe": ("finetune.config:LinprobeConfig", "finetune.linprobe:linprobe"),
    "fewshot": ("finetune.config:FewshotConfig", "finetune.fewshot:fewshot"),
    "predict": ("finetune.config:PredictConfig", "finetune.predict:predict"),
    "export": ("finetune.config:ExportConfig", "finetune.export:export"),
    "import": ("finetune.config:ImportConfig", "finetune.import_checkpoint:import_"),
}


def main(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    return run_command("finetune", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
