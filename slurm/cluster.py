"""What a job requests from a cluster, and how it is sent there through submitit. Knows no particular cluster."""

import math
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mae_curriculum.config import ConfigError, leaves
from mae_curriculum.files import write_json
from mae_curriculum.run.folder import SUBMISSION, read_facts
from mae_curriculum.run.stop import parse_duration
from mae_curriculum.terminal import printable
from mae_curriculum.version import ROOT, VERSION, code_version

COPIED = ("mae_curriculum", "finetune", "slurm", "configs")
"""Folders that a job needs; an installed package has no `configs` beside it but inside."""

SAME_NAME = ("partition", "account", "qos", "constraint", "nodes", "cpus_per_task", "mail_user", "mail_type", "time")
"""Settings that submitit takes under the same name."""

WAIT_SECONDS = 600
"""Time after the end of a job's first process when srun ends the others, which may wait for one that was killed. SLURM
finds a node that was lost before that, and requeues the job."""

EARLY_SECONDS = 60
"""How much before the time that was asked for SLURM may signal a job; see --signal of sbatch."""


@dataclass(frozen=True)
class ClusterConfig:
    """What a job requests."""

    folder: Path = Path("jobs")
    """Folder for logs, frozen settings and copies of the code; must be visible to every node."""
    partition: str | None = None
    """Partition, or several separated by commas."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the nodes must have."""
    nodes: int = 1
    """Number of nodes."""
    tasks_per_node: int | None = None
    """Processes per node; null for one per GPU, or a single one without GPUs."""
    gpus_per_node: int = 0
    """GPUs per node."""
    gpus_as: Literal["gpus_per_node", "gres"] = "gpus_per_node"
    """The sbatch option that requests GPUs on this cluster."""
    cpus_per_task: int | None = None
    """CPU cores per process, including those of its loader workers."""
    memory: str | None = None
    """Memory per node, such as 64G."""
    exclusive: bool = False
    """Request whole nodes."""
    time: str = "1-0"
    """Time limit of each start, in any format of sbatch: minutes, HH:MM:SS, D-HH, ... Longer runs are requeued."""
    signal_seconds: int = 30
    """Seconds before the time limit at which SLURM signals the job. Runs stop in time on their own; the signal is
    for a limit that was changed after the start."""
    requeues: int = 100
    """Maximum number of times that the job is requeued."""
    mail_user: str | None = None
    """Address for e-mails from SLURM."""
    mail_type: str | None = None
    """Events that send an e-mail: END, FAIL, ..."""
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Further sbatch options, by their long names."""
    setup: tuple[str, ...] = ()
    """Shell commands to run on each node first: modules, conda, environment variables."""

    def __post_init__(self) -> None:
        lowest = {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1, "gpus_per_node": 0, "requeues": 0}
        for name, minimum in lowest.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ConfigError(f"{name} must be at least {minimum}, got {value}")
        earliest = self.signal_seconds + EARLY_SECONDS
        if parse_time_limit(self.time) <= earliest:
            raise ConfigError(
                f"time: {self.time} is too short, since SLURM may signal the job {earliest} s before; "
                "raise it, or lower signal_seconds"
            )

    @property
    def processes_per_node(self) -> int:
        """Number of processes per node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)


def parse_time_limit(text: str) -> float:
    """Return a job's time limit in seconds; infinity if it has none, which sbatch also writes as 0."""
    if text.lower() in ("infinite", "unlimited"):
        return math.inf
    return parse_duration(text, "time") or math.inf


def new_job_folder(config: ClusterConfig, name: str) -> Path:
    """Return a path for a job's files that no other job has."""
    return (config.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{time.time_ns() % 10**6:06}").resolve()


def copy_code(folder: Path) -> None:
    """Copy the code, the recipes and the version to a job's folder, so that later edits do not affect queued jobs."""
    for name in COPIED:
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, folder / "code" / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    if version := code_version():
        (folder / "code" / VERSION).write_text(version)


def make_executor(config: ClusterConfig, name: str, folder: Path, **parameters: Any) -> Any:
    """Build submitit's executor for jobs whose files and code are in `folder`; it writes scripts without SLURM too.

    parameters  further parameters of submitit.
    """
    import submitit  # only now: the other commands do without

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1  # submitit's own fails without SLURM

    request = sbatch_parameters(config, folder / "code")
    setup = request.pop("setup")
    refuse_line_breaks({"name, or the run folder's": name, "folder": folder, **request})
    python, start = shlex.quote(sys.executable), shlex.quote(str(folder / "code" / "slurm" / "start.py"))
    # -P: otherwise Python would find the code in the folder of the submission before the copy
    executor = Executor(folder, python=f"{python} -I -S {start} {python} -P")
    wait = [f"--wait={WAIT_SECONDS}"]
    requested = {"job_name": name, **request, "setup": setup, "srun_args": wait, **parameters}
    executor.update_parameters(**{key: value for key, value in requested.items() if value is not None})
    return executor


def refuse_without_slurm() -> None:
    """Raise ConfigError if SLURM is not installed here."""
    if shutil.which("srun") is None:
        raise ConfigError("SLURM is not installed here (no srun); use --local, --dry_run, or a login node of a cluster")


def job_script(executor: Any, *, count: int = 1) -> str:
    """Return the script of an executor's jobs, that of an array if there are several."""
    if count > 1:
        executor.parameters["map_count"] = count  # as submitit does
    script: str = executor._make_submission_file_text(executor._submitit_command_str, "job")
    return script


def after(config: ClusterConfig, dependency: str, **options: str) -> ClusterConfig:
    """Return the request of jobs that wait for others.

    dependency  in sbatch's words, such as afterok:12.
    options     further options of sbatch.
    """
    return replace(config, sbatch={**config.sbatch, "dependency": dependency, **options})


def sbatch_parameters(config: ClusterConfig, code: Path) -> dict[str, Any]:
    """Return what a job requests, as submitit's parameters; None for what it leaves to the cluster.

    code  folder of the code that the job runs.
    """
    gpus = config.gpus_per_node if config.gpus_as == "gpus_per_node" else f"gpu:{config.gpus_per_node}"
    options: dict[str, Any] = {"requeue": True, "open-mode": "append", **config.sbatch}
    setup = [*config.setup, f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"]
    if config.cpus_per_task is not None:  # since SLURM 22.05 srun does not take it from sbatch
        setup.append(f"export SRUN_CPUS_PER_TASK={config.cpus_per_task}")
    return {
        **{name: getattr(config, name) for name in SAME_NAME},
        "ntasks_per_node": config.processes_per_node,
        config.gpus_as: gpus if config.gpus_per_node else None,
        "mem": config.memory,
        "exclusive": config.exclusive or None,
        "additional_parameters": {key: value for key, value in options.items() if value not in (None, False)},
        "setup": setup,
        "stderr_to_stdout": True,
        "signal_delay_s": config.signal_seconds,
    }


def submit_jobs(executor: Any, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Submit jobs, several as an array; returns them as submitit's.

    Raises  ConfigError with sbatch's message if it refuses them.
    """
    from submitit.core.utils import FailedJobError

    submitted = []
    try:
        with executor.batch():
            submitted += [executor.submit(job) for job in jobs]
    except FailedJobError as error:
        raise ConfigError(f"SLURM refuses the job: {last_message(str(error))}") from error
    return submitted


def record_submission(run: Path, jobs: Sequence[Any]) -> None:
    """Write the ids of the jobs of a run to its folder, and the log of the first."""
    run.mkdir(parents=True, exist_ok=True)
    ids = ",".join(str(job.job_id) for job in jobs)
    write_json(run / SUBMISSION, {"job": ids, "log": str(jobs[0].paths.stdout)})


def read_submission(run: Path) -> dict[str, str]:
    """Read the id and the log of the job last submitted for a run; empty if there is none."""
    return {key: value for key, value in read_facts(run / SUBMISSION).items() if isinstance(value, str)}


def submitted_jobs(run: Path) -> list[str]:
    """Read the ids of the jobs last submitted for a run, several if each continues the one before."""
    return read_submission(run).get("job", "").split(",")


def last_message(output: str) -> str:
    """Return the last line that a command of SLURM wrote, where it sums up, without the command's name."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return re.sub(r"^(?:\w+: )?(?:error: )?", "", lines[-1]) if lines else "no reason given"


def refuse_line_breaks(values: dict[str, Any]) -> None:
    """Raise ConfigError for control characters in what is written into the job script, where they would start lines."""
    for key, value in leaves(values):
        if printable(f"{key}{value}") != f"{key}{value}":
            raise ConfigError(f"{key}: {str(value)!r} has a line break or another control character; remove it")
