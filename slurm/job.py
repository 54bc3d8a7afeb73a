"""The part that runs on the nodes: one process of a command, which requeues its job if it was stopped early."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from mae_curriculum.run.stop import EXIT_RESUMABLE, SIGNALS
from slurm.cluster import last_message

logger = logging.getLogger(__name__)

REQUEUE_SECONDS = 120
"""Within this time SLURM ends a job that it agreed to requeue."""

REFUSED_SECONDS = 30
"""The same if SLURM refuses the request, which may mean that it is requeuing the job already (preemption)."""

ACCOUNTING_SECONDS = 10
"""Within this time the accounts know that a job has ended."""

ANSWER_SECONDS = 10
"""Timeout of a question to SLURM."""


@dataclass(frozen=True)
class Job:
    """A command as each task of a job runs it."""

    package: str
    """mae_curriculum or finetune."""
    arguments: Sequence[str]
    """Command and settings."""
    max_requeues: int
    """How often the job may be requeued."""
    continued: bool = False
    """Whether a later job resumes the run, so that this one is not requeued."""
    result: Path | None = None
    """A file that shows that the run has finished, so that this job has nothing to do; None to leave that open."""

    def __call__(self) -> None:
        """Run the command; if it was stopped and can be resumed, requeue the job under the same id."""
        if self.result is not None and self.result.exists():
            print(f"{self.result.parent} is finished already", flush=True)
            return
        # until the command has its own handlers, a signal would end the process or reach submitit's handlers
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        set_master_address()
        os.environ.setdefault("SLURM_JOB_END_TIME", str(query_end_time(current_job())))
        main = import_module(f"{self.package}.__main__").main
        code: int = main(list(self.arguments))
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a signal that comes now must not fail a finished job
        sys.stdout.flush()
        if code == EXIT_RESUMABLE and self.continued:
            logger.info("stopped; the next segment resumes the run")
            return
        if code == EXIT_RESUMABLE:
            self.requeue()
        if code:
            raise RuntimeError(f"{self.package} {self.arguments[0]} ended with exit code {code}; see its error above")

    def requeue(self) -> NoReturn:
        """Requeue this job from its first task; all tasks then wait until SLURM ends them.

        Raises  RuntimeError if the job was canceled, has no requeues left or is still alive after the wait. The job
                then fails, so that jobs that depend on it do not start.
        """
        job = current_job()
        starts = int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1
        if starts > self.max_requeues:
            raise RuntimeError(f"stopped and not requeued: this was start {starts} of {self.max_requeues + 1}")
        refusal = ""
        if os.environ.get("SLURM_PROCID", "0") == "0":
            if was_canceled(job):
                raise RuntimeError(f"stopped and not requeued: job {job} was canceled")
            logger.info(f"stopped; requeuing job {job} ({starts} of at most {self.max_requeues} times)")
            refusal = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False).stderr
        time.sleep(REFUSED_SECONDS if refusal else REQUEUE_SECONDS)
        raise RuntimeError(f"SLURM did not requeue job {job}: {last_message(refusal)}")


def current_job() -> str:
    """Return the id of this job. A task of an array is ARRAY_INDEX, since its plain number may mean the whole array."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def was_canceled(job: str) -> bool:
    """Return whether somebody has canceled a job: to its processes, that looks like preemption.

    On a cluster without accounting, any job that SLURM is ending counts as canceled.
    """
    if ask("squeue", "-h", "-j", job, "-o", "%T") != "COMPLETING":
        return False
    state = "RUNNING"
    for _ in range(ACCOUNTING_SECONDS):
        state = ask("sacct", "-n", "-X", "-j", job, "-o", "state")
        if not state.startswith("RUNNING"):
            break
        time.sleep(1)
    return state.startswith("CANCELLED") or not state


def ask(*command: str) -> str:
    """Return what one of SLURM's commands answers; "" if it fails, or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def set_master_address() -> None:
    """Let the processes of a job connect to the first node, where srun started; its address needs no name service."""
    os.environ.setdefault("MASTER_ADDR", os.environ["SLURM_LAUNCH_NODE_IPADDR"])


def query_end_time(job: str) -> int:
    """Ask SLURM when a job reaches its time limit, in seconds since 1970; a date far away if it has none."""
    try:
        return int(datetime.fromisoformat(ask("squeue", "-h", "-j", job, "-o", "%e")).timestamp())
    except ValueError:  # N/A, or no answer
        return 2**62
