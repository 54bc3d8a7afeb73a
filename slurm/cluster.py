"""What a job asks of a cluster, and submitit's executor for it; nothing about any site."""

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mae_curriculum.config import ConfigError
from mae_curriculum.files import read_json, write_json
from mae_curriculum.version import ROOT, VERSION, code_version

SUBMISSION = "submission.json"
"""In a run folder: the number of the job last submitted for it, and its log."""


@dataclass(frozen=True)
class ClusterConfig:
    """What a job asks for."""

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

    def __post_init__(self) -> None:
        for name in ("nodes", "tasks_per_node", "cpus_per_task"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.gpus_per_node < 0 or self.requeues < 0:
            raise ConfigError(
                f"gpus_per_node and requeues must be at least 0, got {self.gpus_per_node}, {self.requeues}"
            )

    @property
    def processes_per_node(self) -> int:
        """Processes on each node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)


def new_folder(config: ClusterConfig, name: str) -> Path:
    """Name a folder for a job's files that no other job has."""
    return (config.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{time.time_ns() % 10**6:06}").resolve()


def copy_code(folder: Path) -> None:
    """Take a snapshot of the code and its version, so that later edits change no queued job."""
    for package in ("mae_curriculum", "finetune", "slurm"):
        shutil.copytree(ROOT / package, folder / "code" / package, ignore=shutil.ignore_patterns("__pycache__"))
    if version := code_version():
        (folder / "code" / VERSION).write_text(version)


def make_executor(config: ClusterConfig, name: str, folder: Path, **parameters: Any) -> Any:
    """Make submitit's executor for jobs whose files, and code, lie in a folder.

    parameters  further ones of submitit's.
    Raises      ConfigError where there is no SLURM.
    """
    import submitit  # only now: the other verbs do without

    # -P: without it the folder from which the job was submitted, and the code in it, would come before the snapshot
    python, code = f"{shlex.quote(sys.executable)} -P", shlex.quote(str(folder / "code"))
    try:
        executor = submitit.SlurmExecutor(folder, python=python)
    except RuntimeError as error:
        raise ConfigError(f"{error}; run it here with --local, or on a login node of a cluster") from error
    further: dict[str, Any] = {"requeue": True, "open-mode": "append", **config.sbatch}
    # since SLURM 22.05 srun does not take this over from sbatch
    cores = [] if config.cpus_per_task is None else [f"export SRUN_CPUS_PER_TASK={config.cpus_per_task}"]
    gpus = config.gpus_per_node if config.gpus_as == "gpus_per_node" else f"gpu:{config.gpus_per_node}"
    asked: dict[str, Any] = {
        "job_name": name,
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "constraint": config.constraint,
        "nodes": config.nodes,
        "ntasks_per_node": config.processes_per_node,
        config.gpus_as: gpus if config.gpus_per_node else None,
        "cpus_per_task": config.cpus_per_task,
        "mem": config.memory,
        "exclusive": config.exclusive or None,
        "mail_user": config.mail_user,
        "mail_type": config.mail_type,
        "time": config.time,
        "additional_parameters": {key: value for key, value in further.items() if value not in (None, False)},
        "setup": [*config.setup, *cores, f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}"],
        "stderr_to_stdout": True,
        "signal_delay_s": config.signal_seconds,
        **parameters,
    }
    executor.update_parameters(**{key: value for key, value in asked.items() if value is not None})
    return executor


def send(executor: Any, jobs: Sequence[Callable[[], Any]], runs: Sequence[Path | None]) -> list[str]:
    """Submit jobs, as an array where there are several, and note them in their run folders; returns their numbers.

    Raises  ConfigError with sbatch's own words if it refuses.
    """
    from submitit.core.utils import FailedJobError

    submitted = []
    try:
        with executor.batch():
            submitted += [executor.submit(job) for job in jobs]
    except FailedJobError as error:
        raise ConfigError(f"SLURM refuses the job: {str(error).strip().splitlines()[-1]}") from error
    for job, run in zip(submitted, runs, strict=True):
        if run is not None:
            run.mkdir(parents=True, exist_ok=True)
            write_json(run / SUBMISSION, {"job": str(job.job_id), "log": str(job.paths.stdout)})
    return [str(job.job_id) for job in submitted]


def read_submission(run: Path) -> dict[str, str] | None:
    """Read what `send` noted in a run folder; None if nothing was submitted for it."""
    path = run / SUBMISSION
    submission: dict[str, str] | None = read_json(path) if path.exists() else None
    return submission
