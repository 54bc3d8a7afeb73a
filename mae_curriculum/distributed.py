"""Rank, world size and device; the process group; means and agreement over ranks.

Started by torchrun or SLURM, or alone: the environment is read here and nowhere else.
"""

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mae_curriculum.precision import Precision

T = TypeVar("T")


MAX_WAIT = timedelta(hours=1)
"""For other ranks: one may download, or try to save on a full disk. One that has died is noticed at once."""


@dataclass(frozen=True)
class World:
    """This process's place among all, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Add a tensor up over the ranks."""
        if self.world_size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value

    def gather(self, thing: Any) -> list[Any]:
        """Collect a small picklable thing from every rank, in order of rank, on every rank."""
        if self.world_size == 1:
            return [thing]
        things: list[Any] = [None] * self.world_size
        dist.all_gather_object(things, thing)
        return things

    def any(self, flag: bool) -> bool:
        """Agree on whether a flag is up on any rank."""
        return flag if self.world_size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def on_main(self, action: Callable[[], T]) -> T:
        """Do something on rank 0 while the others wait; every rank gets what it returns, or raises what it raises."""
        result: Any = None
        failure: Exception | None = None
        if self.is_main:
            try:
                result = action()
            except Exception as error:
                failure = error
        result, failure = self.gather((result, failure))[0]
        if failure:
            raise failure
        value: T = result
        return value

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Join the rows (n_rank, ...) of all ranks, whose numbers may differ, in order of rank, on every rank."""
        if self.world_size == 1:
            return rows
        counts = self.gather(len(rows))
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Give every rank the values that rank 0 holds."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def to_device(self, tensor: Tensor) -> Tensor:
        """Copy a tensor from the CPU to the device without waiting for what the device is doing."""
        if self.device.type == "cuda" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def autocast(self, precision: Precision) -> torch.autocast:
        """Give the context in which a model computes."""
        wanted = self.dtype(precision) == torch.bfloat16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=wanted)

    def dtype(self, precision: Precision) -> torch.dtype:
        """Tell in what a model computes; auto is bfloat16 on GPUs that have it, else float32."""
        has_bfloat16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        wanted = precision == "bfloat16" or (precision == "auto" and has_bfloat16)
        return torch.bfloat16 if wanted else torch.float32

    def say(self, text: str) -> None:
        """Print once, from rank 0."""
        if self.is_main:
            print(text, flush=True)

    def synchronize(self) -> None:
        """Wait until the device has done all it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Agreement:
    """Tells all ranks at the same step that a flag is up on one of them, one step late, so that nobody waits."""

    def __init__(self, world: World) -> None:
        """Make a channel of its own, on the CPU, that does not wait for what devices are doing."""
        self._group: Any = dist.new_group(backend="gloo") if world.world_size > 1 else None
        self._pending: tuple[Tensor, Any] | None = None

    def __call__(self, flag: bool) -> bool:
        """Hand in this rank's flag, at every step; returns whether any rank's was up at the step before."""
        if self._group is None:
            return flag
        raised = self.finish()
        votes = torch.tensor(float(flag))
        self._pending = votes, dist.all_reduce(votes, group=self._group, async_op=True)
        return raised

    def finish(self) -> bool:
        """Wait for the last vote, and tell what came of it."""
        if self._pending is None:
            return False
        (votes, work), self._pending = self._pending, None
        work.wait()
        return bool(votes > 0)


@contextmanager
def connect(longest_wait: timedelta = MAX_WAIT) -> Iterator[World]:
    """Join the processes that were started together, for as long as the context lasts.

    NCCL joins GPUs, gloo CPUs. A process started alone joins nobody.

    longest_wait  for the other processes, when they meet and whenever they exchange something.
    """
    rank, size, local_rank = _environment()
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if size == 1:
        yield World(rank, size, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=longest_wait)
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()


def job_end() -> float | None:
    """Tell when the scheduler will end this job, in seconds since 1970; None where nobody says so."""
    end = os.environ.get("SLURM_JOB_END_TIME")
    return float(end) if end else None


def job_facts() -> dict[str, Any]:
    """Tell what runs where: command, host, process, the scheduler's job and its nodes, the file of its output.

    None stands for what is not known.
    """
    array, output = os.environ.get("SLURM_ARRAY_JOB_ID"), Path("/proc/self/fd/2")
    log = str(output.readlink()) if output.is_symlink() else ""
    return {
        "command": shlex.join(sys.argv),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "array_task": array and f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}",
        "nodes": os.environ.get("SLURM_JOB_NODELIST"),
        "log": log if Path(log).is_file() else None,
    }


def _environment() -> tuple[int, int, int]:
    """Read rank, world size and local rank, as torchrun sets them or srun; a process started alone is the only one."""
    read = os.environ.get
    if "RANK" not in os.environ and int(read("SLURM_STEP_NUM_TASKS", 1)) > 1:
        # torch's own way to meet: at the first node, on a port that other jobs there do not use
        os.environ.setdefault("MASTER_ADDR", _first_host(os.environ["SLURM_STEP_NODELIST"]))
        os.environ.setdefault("MASTER_PORT", str(20_000 + int(os.environ["SLURM_JOB_ID"]) % 20_000))
        return (
            int(os.environ["SLURM_PROCID"]),
            int(os.environ["SLURM_STEP_NUM_TASKS"]),
            int(os.environ["SLURM_LOCALID"]),
        )
    return int(read("RANK", 0)), int(read("WORLD_SIZE", 1)), int(read("LOCAL_RANK", 0))


def _first_host(nodes: str) -> str:
    """Give the first of nodes written as SLURM does, such as gpu[03-07,12]."""
    told = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    return told.stdout.split()[0]
