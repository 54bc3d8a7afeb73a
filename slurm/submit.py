"""`submit`: any command of this project as a SLURM job, with settings checked and frozen on the login node."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

from mae_curriculum.config import ConfigError, dump, load
from mae_curriculum.run.stop import parse_duration
from mae_curriculum.terminal import format_duration
from slurm.cluster import ClusterConfig, copy_code, make_executor, new_job_folder, submit_jobs
from slurm.job import Job

PACKAGES = ("mae_curriculum", "finetune")
"""Packages whose commands can be submitted."""


@dataclass(frozen=True)
class SubmitConfig(ClusterConfig):
    """Submit a command: `python -m slurm submit [settings] -- mae_curriculum pretrain ...`."""

    command: tuple[str, ...] = ()
    """Package, command and settings: everything after `--`."""
    name: str | None = None
    """Name of the job; null for the name of its run folder."""
    dry_run: bool = False
    """Print the script and, for pretraining, its estimated cost; submit nothing."""
    rate: float = 1000.0
    """Throughput for the estimate: images/s of all processes together at full size, from `bench` or an earlier run."""
    local: bool = False
    """Run the command here instead, without SLURM."""

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_command(self.command)
        if self.rate <= 0:
            raise ConfigError(f"rate must be above 0 images/s, got {self.rate}")


def submit(config: SubmitConfig) -> int:
    """Check the command, freeze its settings and submit it; returns the exit code."""
    package, subcommand, *arguments = config.command
    settings = resolve_settings(package, subcommand, arguments)
    if config.local:
        return run_in_process(package, subcommand, arguments)
    run = getattr(settings, "run", None)
    name = config.name or (run.name if run else subcommand)
    folder = new_job_folder(config, name)
    executor = make_executor(config, name, folder)
    if config.dry_run:
        print(executor._make_submission_file_text(executor._submitit_command_str, "job"))
        print(describe_resources(config))
        print(describe_cost(settings, config) if subcommand == "pretrain" else f"# no cost estimate for {subcommand}")
        return 0
    copy_code(folder)
    frozen = folder / "settings.yaml"
    frozen.write_text(dump(settings))
    (job,) = submit_jobs(executor, [Job(package, (subcommand, "--config", str(frozen)), config.requeues)], [run])
    print(f"job {job}: {package} {subcommand}, run folder {run}; logs in {folder}")
    return 0


def run_in_process(package: str, subcommand: str, arguments: Sequence[str]) -> int:
    """Run a command in this process; returns its exit code."""
    code: int = import_module(f"{package}.__main__").main([subcommand, *arguments])
    return code


def describe_resources(config: ClusterConfig) -> str:
    """Format what a job requests as a comment line."""
    processes = config.nodes * config.processes_per_node
    cores = f" with {config.cpus_per_task} CPU cores each" if config.cpus_per_task else ""
    gpus = f", {config.nodes * config.gpus_per_node} GPUs" if config.gpus_per_node else ""
    memory = f", {config.memory} of memory per node" if config.memory else ""
    return f"# {config.nodes} nodes, {processes} processes{cores}{gpus}{memory}, {config.time} per start"


def describe_cost(settings: Any, config: SubmitConfig) -> str:
    """Format what `plan` computes for a pretraining: hours, requeues at this time limit, bytes of its checkpoints."""
    from mae_curriculum.commands.config import PlanConfig
    from mae_curriculum.commands.plan import compute_plan

    processes = config.nodes * config.processes_per_node
    own = {field.name: getattr(settings, field.name) for field in fields(settings)}
    facts = compute_plan(PlanConfig(**own, devices=processes, rate=config.rate))
    seconds, baseline_seconds = 3600 * facts["hours"], 3600 * facts["baseline_hours"]
    unit = "GPUs" if config.gpus_per_node else "processes"
    requeues = max(0, math.ceil(seconds / parse_time_limit(config.time)) - 1)
    saving = settings.saving
    kept = saving.keep
    if saving.keep_every_epochs:
        kept += facts["equivalent_epochs"] // saving.keep_every_epochs
    return (
        f"# {facts['steps']:,} steps, {format_duration(seconds)} at {config.rate:g} images/s at full size; all {unit} "
        f"together {format_duration(processes * seconds)}, without a curriculum "
        f"{format_duration(processes * baseline_seconds)}\n"
        f"# at least {requeues} requeues at {config.time} per start; a checkpoint takes "
        f"{facts['checkpoint_bytes'] / 1e9:.3g} GB, and up to {kept} are kept"
    )


def parse_time_limit(text: str) -> float:
    """Return a job's time limit in seconds; infinity if it has none, which sbatch also writes as 0."""
    if text.lower() in ("infinite", "unlimited"):
        return math.inf
    return parse_duration(text) or math.inf


def validate_command(command: Sequence[str]) -> None:
    """Raise ConfigError if this is not a command of this project."""
    if len(command) < 2 or command[0] not in PACKAGES:
        raise ConfigError(
            f"after `--`, name a package ({', '.join(PACKAGES)}), its command and settings, as in "
            f"`-- mae_curriculum pretrain --config digits`; got '{' '.join(command)}'"
        )


def resolve_settings(package: str, subcommand: str, arguments: Sequence[str]) -> Any:
    """Load a command's settings as the command itself would; raises ConfigError for what it would refuse."""
    commands = import_module(f"{package}.__main__").COMMANDS
    if subcommand not in commands:
        raise ConfigError(f"{package} has no command '{subcommand}'; it has {', '.join(commands)}")
    module, name = commands[subcommand][0].split(":")
    return load(getattr(import_module(module), name), arguments, prog=f"python -m {package} {subcommand}")
