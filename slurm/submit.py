"""Submission: any command of this project as a SLURM job, checked and frozen on the login node."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

from mae_curriculum.config import ConfigError, dump, load
from mae_curriculum.run.stop import parse_duration
from slurm.cluster import ClusterConfig, copy_code, make_executor, new_folder, send
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
    """Print the script and, of a pretraining, what it will cost; submit nothing."""
    rate: float = 1000.0
    """For that: images/s that all processes together train at full size, as `bench` or an earlier run tells."""
    local: bool = False
    """Run the command here instead, without SLURM."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_command(self.command)
        if self.rate <= 0:
            raise ConfigError(f"rate must be above 0 images/s, got {self.rate}")


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
        script = executor._make_submission_file_text(executor._submitit_command_str, "job")
        print(script, describe_resources(config), sep="\n")
        print(describe_cost(settings, config) if verb == "pretrain" else f"# no estimate of what {verb} costs")
        return 0
    copy_code(folder)
    frozen.write_text(dump(settings))
    (number,) = send(executor, [job], [run])
    print(f"job {number}: {package} {verb}, run folder {run}; logs in {folder}")
    return 0


def describe_resources(config: ClusterConfig) -> str:
    """Say in a line what a job asks for."""
    processes = config.nodes * config.processes_per_node
    gpus = f", {config.nodes * config.gpus_per_node} GPUs" if config.gpus_per_node else ""
    cores = f" of {config.cpus_per_task} CPU cores" if config.cpus_per_task else ""
    memory = f", {config.memory} of memory a node" if config.memory else ""
    return f"# {config.nodes} nodes, {processes} processes{cores}{gpus}{memory}, {config.time} a start"


def describe_cost(settings: Any, config: SubmitConfig) -> str:
    """Say what plan makes of a pretraining: hours, starts at this time limit, bytes of its checkpoints."""
    from mae_curriculum.commands.config import PlanConfig
    from mae_curriculum.commands.plan import compute_plan

    processes = config.nodes * config.processes_per_node
    own = {f.name: getattr(settings, f.name) for f in fields(settings)}
    facts = compute_plan(PlanConfig(**own, devices=processes, rate=config.rate))
    hours, unit = facts["hours"], "GPU" if config.gpus_per_node else "process"
    requeues = math.ceil(hours * 3600 / limit) - 1 if (limit := time_limit(config.time)) else 0
    saving = settings.saving
    staying = saving.keep + (settings.epochs // saving.keep_every_epochs if saving.keep_every_epochs else 0)
    return (
        f"# {facts['steps']:,} steps, {hours:.3g} h at {config.rate:g} images/s at full size: "
        f"{hours * processes:.3g} {unit}-hours, without curriculum {facts['baseline_hours'] * processes:.3g}\n"
        f"# at least {requeues} requeues at {config.time} a start; a checkpoint takes "
        f"{facts['checkpoint_bytes'] / 1e9:.3g} GB, and up to {staying} of them stay"
    )


def time_limit(text: str) -> float:
    """Read a job's time limit in seconds; 0 for none, as sbatch has it."""
    return 0.0 if text.lower() in ("infinite", "unlimited") else parse_duration(text)


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
