"""Submission: any command of this project as a SLURM job, checked and frozen on the login node."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from mae_curriculum.config import ConfigError, dump, load
from slurm.cluster import ClusterConfig, copy_code, make_executor, new_folder
from slurm.job import Job

PACKAGES = ("mae_curriculum", "finetune")
"""What can be submitted."""


@dataclass(frozen=True)
class SubmitConfig(ClusterConfig):
    """Submission of a command: `python -m slurm submit [settings] -- mae_curriculum pretrain ...`."""

    command: tuple[str, ...] = ()
    """Package, verb and their settings: what stands behind `--`."""
    name: str | None = None
    """Name of the job; null for the name of its run folder."""
    dry_run: bool = False
    """Print the script and submit nothing."""
    local: bool = False
    """Run the command here instead, without SLURM."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_command(self.command)


def submit(config: SubmitConfig) -> int:
    """Check the command, freeze it, and submit it; returns the exit code."""
    package, verb, *arguments = config.command
    settings = check(package, verb, arguments)
    run = getattr(settings, "run", None)
    name = config.name or (run.name if run else verb)
    if config.local:
        code: int = import_module(f"{package}.__main__").main([verb, *arguments])
        return code
    folder = new_folder(config, name)
    frozen = folder / "settings.yaml"
    job = Job(package, (verb, "--config", str(frozen)), config.requeues)
    executor = make_executor(config, name, folder)
    if config.dry_run:
        print(executor._make_submission_file_text("srun ...", "job"), end="")
        return 0
    copy_code(folder)
    frozen.write_text(dump(settings))
    submitted = executor.submit(job)
    print(f"job {submitted.job_id}: {package} {verb}, run folder {run}; logs in {folder}")
    return 0


def check_command(command: Sequence[str]) -> None:
    """Raise ConfigError for what is no command of this project."""
    if len(command) < 2 or command[0] not in PACKAGES:
        raise ConfigError(
            f"the command stands behind `--`: one of {', '.join(PACKAGES)}, a verb, its settings; "
            f"got '{' '.join(command)}'"
        )


def check(package: str, verb: str, arguments: Sequence[str]) -> Any:
    """Resolve a command's settings as the command itself would; raises ConfigError for what it would refuse."""
    verbs = import_module(f"{package}.__main__").VERBS
    if verb not in verbs:
        raise ConfigError(f"{package} has no verb '{verb}'; it has {', '.join(verbs)}")
    module, name = verbs[verb][0].split(":")
    return load(getattr(import_module(module), name), arguments, prog=f"python -m {package} {verb}")
