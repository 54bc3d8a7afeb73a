"""Submission: any command of this project as a SLURM job, checked and frozen on the login node."""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from mae_curriculum.config import ConfigError, dump, load
from slurm.job import Job

PACKAGES = ("mae_curriculum", "finetune")
"""What can be submitted."""

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class SubmitConfig:
    """Submission of a command: `python -m slurm submit [settings] -- mae_curriculum pretrain ...`."""

    command: tuple[str, ...] = ()
    """Package, verb and their settings: what stands behind `--`."""
    name: str | None = None
    """Name of the job; null for the name of its run folder."""
    folder: Path = Path("jobs")
    """Folder for logs, frozen settings and snapshots of the code; every node must see it."""
    partition: str | None = None
    """Partition, or several with commas."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    nodes: int = 1
    """Nodes."""
    tasks_per_node: int | None = None
    """Processes per node; null for one per GPU, or one."""
    gpus_per_node: int = 0
    """GPUs per node."""
    gpus_as: Literal["gpus_per_node", "gres"] = "gpus_per_node"
    """How the cluster wants GPUs to be asked for."""
    cpus_per_task: int | None = None
    """CPU cores for each process, its loader's among them."""
    memory: str | None = None
    """Memory per node, such as 64G."""
    exclusive: bool = False
    """Whole nodes."""
    time: str = "1-0"
    """Time limit of each start, as sbatch takes it: minutes, HH:MM:SS, D-HH, ...; the run goes on in another start."""
    signal_seconds: int = 30
    """So long before its time is over SLURM sends the job a signal. Runs look at the clock themselves, and know how
    long they take to save; this is for when they were told another time."""
    requeues: int = 100
    """How often the job may start again before its end."""
    mail_user: str | None = None
    """Address for mails."""
    mail_type: str | None = None
    """When to send them: END, FAIL, ..."""
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Further options of sbatch, by their long names."""
    setup: tuple[str, ...] = ()
    """Lines of shell to run on each node first: modules, conda, variables."""
    dry_run: bool = False
    """Print the script and submit nothing."""
    local: bool = False
    """Run the command here instead, without SLURM."""

    def __post_init__(self) -> None:
        for name in ("nodes", "tasks_per_node", "cpus_per_task"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.gpus_per_node < 0 or self.requeues < 0:
            raise ConfigError(
                f"gpus_per_node and requeues must be at least 0, got {self.gpus_per_node}, {self.requeues}"
            )
        if len(self.command) < 2 or self.command[0] not in PACKAGES:
            raise ConfigError(
                f"the command stands behind `--`: one of {', '.join(PACKAGES)}, a verb, its settings; "
                f"got '{' '.join(self.command)}'"
            )


def submit(config: SubmitConfig) -> int:
    """Check the command, freeze it, and submit it; returns the exit code."""
    package, verb, *arguments = config.command
    settings = check(package, verb, arguments)
    run = getattr(settings, "run", None)
    name = config.name or (run.name if run else verb)
    if config.local:
        code: int = import_module(f"{package}.__main__").main([verb, *arguments])
        return code
    folder = (config.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{os.getpid()}").resolve()
    frozen = folder / "settings.yaml"
    job = Job(package, (verb, "--config", str(frozen)), config.requeues)
    executor = make_executor(config, name, folder)
    if config.dry_run:
        print(executor._make_submission_file_text("srun ...", "job"), end="")
        return 0
    freeze(settings, frozen)
    submitted = executor.submit(job)
    print(f"job {submitted.job_id}: {package} {verb}, run folder {run}; logs in {folder}")
    return 0


def check(package: str, verb: str, arguments: Sequence[str]) -> Any:
    """Resolve a command's settings as the command itself would; raises ConfigError for what it would refuse."""
    verbs = import_module(f"{package}.__main__").VERBS
    if verb not in verbs:
        raise ConfigError(f"{package} has no verb '{verb}'; it has {', '.join(verbs)}")
    module, name = verbs[verb][0].split(":")
    return load(getattr(import_module(module), name), arguments, prog=f"python -m {package} {verb}")


def freeze(settings: Any, frozen: Path) -> None:
    """Write resolved settings, and a snapshot of the code beside them, so that later edits change no queued job."""
    code = frozen.parent / "code"
    for package in ("mae_curriculum", "finetune", "slurm"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    frozen.write_text(dump(settings))


def make_executor(config: SubmitConfig, name: str, folder: Path) -> Any:
    """Make submitit's executor for a job whose files lie in a folder."""
    import submitit  # only now: the other verbs do without

    # -P: without it the folder from which the job was submitted, and the code in it, would come before the snapshot
    python = f"{shlex.quote(sys.executable)} -P"
    try:
        executor = submitit.SlurmExecutor(folder, python=python)
    except RuntimeError as error:
        raise ConfigError(f"{error}; run it here with --local, or on a login node of a cluster") from error
    further: dict[str, Any] = {"requeue": True, "open-mode": "append", **config.sbatch}
    parameters: dict[str, Any] = {
        "job_name": name,
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "constraint": config.constraint,
        "nodes": config.nodes,
        "ntasks_per_node": config.tasks_per_node or max(1, config.gpus_per_node),
        "cpus_per_task": config.cpus_per_task,
        "mem": config.memory,
        "exclusive": config.exclusive or None,
        "mail_user": config.mail_user,
        "mail_type": config.mail_type,
        "time": config.time,
        "additional_parameters": {key: value for key, value in further.items() if value is not None},
        "setup": [*config.setup, f"export PYTHONPATH={shlex.quote(str(folder / 'code'))}"],
        "stderr_to_stdout": True,
        "signal_delay_s": config.signal_seconds,
    }
    if config.gpus_per_node:
        parameters[config.gpus_as] = (
            config.gpus_per_node if config.gpus_as == "gpus_per_node" else f"gpu:{config.gpus_per_node}"
        )
    executor.update_parameters(**{key: value for key, value in parameters.items() if value is not None})
    return executor
