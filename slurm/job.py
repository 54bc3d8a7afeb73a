"""What runs on the nodes: one process of a command, which asks to be started again if it was stopped before its end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module

CONTINUE = 75
"""Exit code of a command that was stopped and can be continued."""

REQUEUE_SECONDS, REFUSED_SECONDS = 120, 30
"""In which SLURM ends a job that it puts back into the queue: as it was asked to, or of itself where it refuses, since
the job was there already. Else the job fails, lest those that depend on it take it for done."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""They wait until the command itself looks after them: until then they would end the process, or submitit's handlers
would."""


@dataclass(frozen=True)
class Job:
    """A command, as each task of a job runs it."""

    package: str
    """mae_curriculum or finetune."""
    arguments: Sequence[str]
    """Verb and settings."""
    most_requeues: int
    """How often the job may start again."""

    def __call__(self) -> int:
        """Run the command; a stopped one puts its job back into the queue, under the same number."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        meet_on_first_node()
        os.environ.setdefault("SLURM_JOB_END_TIME", str(job_end(this_job())))
        main = import_module(f"{self.package}.__main__").main
        code: int = main(list(self.arguments))
        signal.pthread_sigmask(
            signal.SIG_BLOCK, SIGNALS
        )  # one that comes now must not make a finished job a failed one
        sys.stdout.flush()
        if code == CONTINUE:
            self.requeue()
        elif code:
            raise RuntimeError(
                f"{self.package} {self.arguments[0]} ended with exit code {code}; its error stands above"
            )
        return code

    def requeue(self) -> None:
        """Put this job back into the queue, from the first of its tasks; the others wait to be ended with it."""
        count = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if count >= self.most_requeues:
            raise RuntimeError(
                f"stopped, and not started again: this was start {count + 1} of {self.most_requeues + 1}"
            )
        told = ""
        if os.environ.get("SLURM_PROCID", "0") == "0":
            job = this_job()
            print(
                f"stopped; job {job} goes back into the queue ({count + 1} of at most {self.most_requeues})", flush=True
            )
            told = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False).stderr
        time.sleep(REFUSED_SECONDS if told else REQUEUE_SECONDS)
        raise RuntimeError(
            f"SLURM did not put job {this_job()} back into the queue: {told.strip() or 'it does not say why'}"
        )


def this_job() -> str:
    """Give the number of this job; one task of an array, not all of it, whose first task goes by the same number."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def meet_on_first_node() -> None:
    """Let the processes of a job meet where srun started, on the first node: its address needs no name service."""
    os.environ.setdefault("MASTER_ADDR", os.environ["SLURM_LAUNCH_NODE_IPADDR"])


def job_end(job: str) -> int:
    """Ask SLURM when a job's time is over, in seconds since 1970; far away where there is no limit."""
    told = subprocess.run(["squeue", "-h", "-j", job, "-o", "%e"], capture_output=True, text=True, check=False)
    text = told.stdout.strip()
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except ValueError:  # N/A, or no answer
        return 2**62
