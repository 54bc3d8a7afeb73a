"""Ranks, devices and the process group; sums, gathers and votes over ranks.

Processes are started by torchrun or SLURM, or alone. The environment is read here and nowhere else.
"""

import logging
import math
import os
import pickle
import platform
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from mae_curriculum.precision import Precision

logger = logging.getLogger(__name__)

T = TypeVar("T")

SILENT_WAIT = 8.0
"""Seconds after which a process that waits for the others at the start says so."""

MAX_WAIT = timedelta(hours=1)
"""How long ranks wait for one another: one may download, or retry on a full disk. Dead ones are noticed at once."""


@dataclass(frozen=True)
class World:
    """This process among all that were started together, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """The device, for people."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        threads = torch.get_num_threads()
        return f"CPU ({platform.machine()}, {threads} thread{'s' * (threads > 1)})"

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks."""
        if self.world_size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Return a small picklable value of every rank, in order of rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Return on every rank whether a flag is set on any of them."""
        return flag if self.world_size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def on_main(self, action: Callable[[], T]) -> T:
        """Call a function on rank 0 while the others wait; every rank returns its result, or raises its exception."""
        if self.world_size == 1:
            return action()
        result: Any = None
        failure: Exception | None = None
        if self.is_main:
            try:
                result = action()
            except Exception as error:
                failure = picklable(error)
        result, failure = self.gather((result, failure))[0]
        if failure:
            raise failure
        value: T = result
        return value

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows (n_rank, ...) of all ranks, joined in order of rank; their numbers may differ."""
        if self.world_size == 1:
            return rows
        counts = self.gather(len(rows))
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors on every rank by those of rank 0."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def to_device(self, tensor: Tensor) -> Tensor:
        """Copy a tensor from the CPU to the device, without waiting for the device."""
        if self.device.type == "cuda" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def autocast(self, precision: Precision) -> torch.autocast:
        """Return the context in which a model runs."""
        wanted = self.dtype(precision) == torch.bfloat16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=wanted)

    def dtype(self, precision: Precision) -> torch.dtype:
        """Return the data type of a model's arithmetic; "auto" is bfloat16 on GPUs that have it, else float32."""
        has_bfloat16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        wanted = precision == "bfloat16" or (precision == "auto" and has_bfloat16)
        return torch.bfloat16 if wanted else torch.float32

    def log(self, text: str, level: int = logging.INFO) -> None:
        """Log a message, from rank 0 alone."""
        if self.is_main:
            logger.log(level, text)

    def print(self, text: str) -> None:
        """Print a command's result, from rank 0 alone."""
        if self.is_main:
            print(text, flush=True)

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Agreement:
    """Exchanges a few numbers between the ranks at every step, through the CPU: it does not wait for devices."""

    def __init__(self, world: World) -> None:
        """Open a process group of its own."""
        self._group: Any = dist.new_group(backend="gloo", timeout=MAX_WAIT) if world.world_size > 1 else None

    def __call__(self, *values: float) -> list[float]:
        """Return the largest of each value over the ranks, once all have called this."""
        largest = torch.tensor(values, dtype=torch.float64)
        if self._group is not None:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._group)
        return largest.tolist()


def picklable(error: Exception) -> Exception:
    """Return an exception that other processes can receive: the error itself, or else one with its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def connect(longest_wait: timedelta = MAX_WAIT) -> Iterator[World]:
    """Connect the processes that were started together, for as long as the context lasts.

    GPUs are connected by NCCL, CPUs by gloo; a process group that exists already is used, and left as it is.

    longest_wait  for the other processes, whenever they exchange something.
    """
    rank, size, local_rank = _environment()
    initialized = dist.is_available() and dist.is_initialized()
    if initialized:
        rank, size = dist.get_rank(), dist.get_world_size()
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if size == 1 or initialized:
        yield World(rank, size, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    with announce_wait(rank, size):
        store, *_ = next(rendezvous("env://", rank, size, timeout=longest_wait))
        # torchrun keeps its store when it starts processes again: they must not meet those of the attempt before
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=longest_wait)
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()


def job_end() -> float | None:
    """Return when the scheduler will end this job, in seconds since 1970; None if it does not say."""
    end = os.environ.get("SLURM_JOB_END_TIME")
    return float(end) if end else None


@contextmanager
def announce_wait(rank: int, size: int) -> Iterator[None]:
    """Say so if the processes do not meet soon. Ctrl-C and the launcher's death end the wait, which Python cannot."""
    text = f"rank {rank} waits for all {size} processes to start, at most {MAX_WAIT}"
    if "SLURM_PTY_PORT" in os.environ:
        text += "; a shell of `srun --pty` has only one: start the command itself with srun, or with `srun -n 1`"
    parent, met = launcher(), threading.Event()

    def watch() -> None:
        said_at = time.monotonic() + SILENT_WAIT
        while not met.wait(1):
            if launcher() != parent:
                logger.error("the launcher has died while this process waited for the others")
                os._exit(1)
            if time.monotonic() > said_at:
                logger.warning(text)
                said_at = math.inf

    threading.Thread(target=watch, daemon=True).start()
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL) if main else None
    try:
        yield
    finally:
        met.set()
        if main:
            signal.signal(signal.SIGINT, handler)


def launcher() -> int | None:
    """Return the process of torchrun that started this one; None for one started by anything else."""
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


def job_facts() -> dict[str, Any]:
    """Return command, host, process, the scheduler's job and nodes, and the log file; None for what is not known."""
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
    """Return rank, world size and local rank, as torchrun or srun sets them, or those of a process started alone."""
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
    """Return the first host of a SLURM node list, such as gpu[03-07,12]."""
    listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    return listed.stdout.split()[0]
