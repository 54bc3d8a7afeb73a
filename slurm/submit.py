"""`submit`: any command of this project as a SLURM job, with settings checked and frozen on the login node."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from mae_curriculum.config import ConfigError, dump, load
from mae_curriculum.search.config import SearchOptions
from mae_curriculum.terminal import format_duration
from mae_curriculum.training.config import TrainingConfig
from slurm.cluster import (
    ClusterConfig,
    after,
    copy_code,
    job_script,
    make_executor,
    new_job_folder,
    parse_time_limit,
    record_submission,
    refuse_without_slurm,
    submit_jobs,
    submitted_jobs,
)
from slurm.job import Job
from slurm.status import read_queue

PACKAGES = ("mae_curriculum", "finetune")
"""Packages whose commands can be submitted."""


@dataclass(frozen=True)
class SubmitConfig(ClusterConfig):
    """Submit a command: `python -m slurm submit [settings] -- mae_curriculum pretrain ...`."""

    command: tuple[str, ...] = ()
    """Package, command and settings: everything after `--`."""
    name: str | None = None
    """Name of the job; null for the name of its run folder."""
    segments: int = 1
    """Number of jobs for one run, each of which waits for the end of the one before and resumes the run: for clusters
    that do not requeue. Only the last is requeued."""
    jobs: int = 1
    """Number of jobs, an array, that work on one search side by side: its training runs are shared among them."""
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
        if self.segments < 1:
            raise ConfigError(f"segments must be at least 1, got {self.segments}")
        if self.segments > 1 and "array" in self.sbatch:
            raise ConfigError("segments: a chain of arrays is not possible; leave `array` out of sbatch")
        if self.jobs < 1:
            raise ConfigError(f"jobs must be at least 1, got {self.jobs}")
        if self.jobs > 1 and self.segments > 1:
            raise ConfigError("jobs: they are requeued, not followed by segments; leave out --segments")
        if self.jobs > 1 and "array" in self.sbatch:
            raise ConfigError("jobs: they are an array already; leave `array` out of sbatch")
        if self.local and (self.dry_run or self.segments > 1 or self.jobs > 1):
            raise ConfigError("local: the command runs here, at once; leave out --dry_run, --segments and --jobs")


def submit(config: SubmitConfig) -> int:
    """Check the command, freeze its settings and submit it; returns the exit code."""
    package, subcommand, *arguments = config.command
    settings = resolve_settings(package, subcommand, arguments)
    if config.local:
        return run_in_process(package, subcommand, arguments)
    if config.segments > 1 and not isinstance(settings, TrainingConfig | SearchOptions):
        raise ConfigError(f"segments: {subcommand} cannot be resumed; submit it as a single job")
    if config.jobs > 1 and not isinstance(settings, SearchOptions):
        raise ConfigError(f"jobs: only a search is shared among jobs, not {subcommand}; see `pipeline` for many runs")
    run = getattr(settings, "run", None)
    name = config.name or (run.name if run else subcommand)
    folder = new_job_folder(config, name)
    executor = make_executor(config, name, folder)  # which checks the request
    if config.dry_run:
        print(job_script(executor, count=config.jobs))
        print(describe_resources(config))
        if config.jobs > 1:
            print(f"# {config.jobs} such jobs, which share the search")
        if config.segments > 1:
            print(f"# {config.segments} such jobs, each later one with --dependency=afterany:ID-OF-PREVIOUS")
        print(describe_cost(settings, config) if subcommand == "pretrain" else f"# no cost estimate for {subcommand}")
        return 0
    refuse_without_slurm()
    if run is not None and isinstance(settings, TrainingConfig):
        refuse_queued(run)
    copy_code(folder)
    frozen = folder / "settings.yaml"
    frozen.write_text(dump(settings))
    job = Job(package, (subcommand, "--config", str(frozen)), config.requeues)
    ids = submit_segments(config, name, folder, job, run)
    job_ids = " ".join(ids) if config.jobs > 1 else ids[0]
    print(f"job {job_ids}: {package} {subcommand}, run folder {run}; time limit {config.time}; logs in {folder}")
    if config.segments > 1:
        print(f"{config.segments} segments, each after the one before; to cancel all: scancel {' '.join(ids)}")
    return 0


def refuse_queued(run: Path) -> None:
    """Raise ConfigError if a job of a run is in the queue."""
    queue = read_queue()
    for job in submitted_jobs(run):
        if queue.get(job, "").startswith(("pending", "running")):
            raise ConfigError(f"run: job {job} of {run} is in the queue already ({queue[job]}); cancel it first")


def submit_segments(config: SubmitConfig, name: str, folder: Path, job: Job, run: Path | None) -> list[str]:
    """Submit a job, or several that share a run, or of which each resumes it after the one before; returns the ids.

    run  the run folder, if there is one.
    """
    # the first runs the command whatever is there, which refuses the folder of another run
    result = run and run / ("summary.json" if job.arguments[0] == "pretrain" else "results.json")
    submitted: list[Any] = []
    for segment in range(config.segments):
        request = after(config, f"afterany:{submitted[-1].job_id}") if submitted else config
        part = replace(job, continued=segment + 1 < config.segments, result=result if submitted else None)
        try:
            submitted += submit_jobs(make_executor(request, name, folder), [part] * config.jobs)
        except ConfigError as error:
            if not submitted:
                shutil.rmtree(folder)
            queued = f"; already in the queue: {' '.join(each.job_id for each in submitted)}" if submitted else ""
            raise ConfigError(f"{error}{queued}") from error
        if run is not None:
            record_submission(run, submitted)
    return [str(job.job_id) for job in submitted]


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
    """Format what `plan` computes for a pretraining: hours, starts at this time limit, bytes of its checkpoints."""
    from mae_curriculum.commands.plan import compute_plan

    processes = config.nodes * config.processes_per_node
    facts = compute_plan(settings, devices=processes, rate=config.rate)
    seconds, baseline_seconds = 3600 * facts["hours"], 3600 * facts["baseline_hours"]
    unit = "GPUs" if config.gpus_per_node else "processes"
    starts = max(1, math.ceil(seconds / parse_time_limit(config.time)))
    saving = settings.saving
    kept = saving.keep
    if saving.keep_every_epochs:
        kept += facts["equivalent_epochs"] // saving.keep_every_epochs
    return (
        f"# {facts['steps']:,} steps, {format_duration(seconds)} at {config.rate:g} images/s at full size; all {unit} "
        f"together {format_duration(processes * seconds)}, without a curriculum "
        f"{format_duration(processes * baseline_seconds)}\n"
        f"# at least {starts} starts at {config.time} each; a checkpoint takes "
        f"{facts['checkpoint_bytes'] / 1e9:.3g} GB, and up to {kept} are kept"
    )


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
