"""The commands of `python -m slurm`."""

import sys

from mae_curriculum.cli import run_command

COMMANDS = {
    "submit": ("slurm.submit:SubmitConfig", "slurm.submit:submit"),
    "pipeline": ("slurm.pipeline_config:PipelineConfig", "slurm.pipeline:pipeline"),
    "status": ("slurm.status:StatusConfig", "slurm.status:status"),
    "doctor": ("slurm.doctor:DoctorConfig", "slurm.doctor:doctor"),
}


def main(arguments: list[str]) -> int:
    """Run a command and return its exit code; the words after `--` are the command to submit."""
    return run_command("slurm", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
