"""The verbs of `python -m finetune`."""

import sys

from mae_curriculum.cli import run_verb

VERBS = {
    "finetune": ("finetune.config:FinetuneConfig", "finetune.finetune:finetune"),
    "linprobe": ("finetune.config:LinprobeConfig", "finetune.linprobe:linprobe"),
    "fewshot": ("finetune.config:FewshotConfig", "finetune.fewshot:fewshot"),
    "import": ("finetune.config:ImportConfig", "finetune.import_checkpoint:import_"),
}


def main(arguments: list[str]) -> int:
    """Run a verb and return its exit code."""
    return run_verb("finetune", VERBS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
