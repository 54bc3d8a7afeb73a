"""The verbs of `python -m finetune`."""

import sys

from mae_curriculum.cli import run_verb

VERBS = {
    "finetune": ("finetune.train:FinetuneConfig", "finetune.train:finetune"),
    "linprobe": ("finetune.linprobe:LinprobeConfig", "finetune.linprobe:linprobe"),
    "fewshot": ("finetune.fewshot:FewshotConfig", "finetune.fewshot:fewshot"),
    "import": ("finetune.importing:ImportConfig", "finetune.importing:import_"),
}


def main(arguments: list[str]) -> int:
    """Run a verb; returns the exit code."""
    return run_verb("finetune", VERBS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
