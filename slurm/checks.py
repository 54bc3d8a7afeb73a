"""What a node is examined for, and the network between nodes; each check finds something ok, or tells what to do."""

import os
import platform
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from http.client import HTTPException
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal
from urllib.error import HTTPError
from urllib.request import urlopen

from slurm.job import meet_on_first_node

if TYPE_CHECKING:
    from mae_curriculum.distributed import World

JOIN_SECONDS = 60
"""Given to torch for the meeting of the tasks, and for each exchange between them."""

ANSWER_SECONDS = 5
"""In which W&B's server must answer."""

BATCHES_AHEAD = 4
"""Batches that each loader worker prepares: `prefetch_factor` in mae_curriculum/data.py."""

BATCH_BYTES = 1024 * 3 * 224 * 224
"""A large micro-batch, uint8 as the workers hand it over."""

ALL_REDUCE_FLOATS = 2**24
"""67 MB, more than the 25 MB that DistributedDataParallel sends at once: latency does not count."""

MAX_SKEW = 1.0
"""Seconds between clocks: a run stops 5 s before the end that SLURM tells, on its own clock (`MIN_MARGIN`)."""

JOIN_ADVICE = (
    "name the interface between the nodes (ip addr lists them): --setup 'export NCCL_SOCKET_IFNAME=ib0 "
    "GLOO_SOCKET_IFNAME=ib0'; or MASTER_ADDR, the first node's address there; or ask for a firewall between nodes"
)


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    check: str
    state: Literal["ok", "note", "mend"]
    text: str
    cure: str = ""
    """What to do."""
    node: str = ""


def examine_node(*, gpus: int, processes: int, workers: int) -> list[Finding]:
    """Examine this machine for a run with so many processes on it, and so many loader workers for each."""
    found = [
        find_software(),
        find_gpus(gpus),
        find_cores(processes, workers=workers),
        find_shared_memory(processes * workers),
        find_wandb(),
    ]
    return [replace(finding, node=node_name()) for finding in found]


def find_software() -> Finding:
    """Name the versions that all nodes must have in common."""
    import torch

    cuda = torch.version.cuda or "not built in"
    return Finding("software", "ok", f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {cuda}")


def find_gpus(asked: int) -> Finding:
    """Count the GPUs that torch can use."""
    import torch

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0  # too old a driver counts them all the same
    if seen < asked:
        cure = "if nvidia-smi lists them there, install a torch for their driver; else see --gpus_as and --partition"
        return Finding("GPUs", "mend", f"{asked} asked for, {seen} seen by torch", cure)
    names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(seen)}))
    return Finding("GPUs", "ok", f"{seen} seen: {names}" if asked else "none asked for")


def find_cores(processes: int, *, workers: int) -> Finding:
    """Compare the CPU cores of each process with its loader workers."""
    usable = len(os.sched_getaffinity(0))  # this process's where SLURM binds it, else the machine's
    granted = int(os.environ.get("SLURM_CPUS_ON_NODE", usable))
    cores, wanted = min(usable, granted // processes), workers + 1
    text = f"{cores} for each process; with its loader workers it wants {wanted}"
    if cores >= wanted:
        return Finding("CPU cores", "ok", text)
    cure = f"ask for --cpus_per_task {wanted}, or let runs have --data.workers {max(0, cores - 1)}"
    return Finding("CPU cores", "mend", text, cure)


def find_shared_memory(workers: int) -> Finding:
    """Compare /dev/shm, where loader workers lay their batches, with what all of this node's may lay there."""
    needed, free = workers * BATCHES_AHEAD * BATCH_BYTES, shutil.disk_usage("/dev/shm").free
    need = f"{needed / 1e9:.1f} GB, {BATCHES_AHEAD} batches of 1024 images at 224 px for each loader worker"
    if free >= needed:
        return Finding("/dev/shm", "ok", f"has room for {need}")
    cure = "enlarge it (containers: --shm-size), or let runs have a smaller --micro_batch or fewer --data.workers"
    return Finding("/dev/shm", "mend", f"{free / 1e9:.1f} GB free, no room for {need}", cure)


def find_wandb() -> Finding:
    """Ask W&B's server for an answer, whatever it be; no key is sent."""
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        urlopen(url, timeout=ANSWER_SECONDS).close()
    except HTTPError as refusal:  # an answer all the same
        refusal.close()
    except (OSError, HTTPException, ValueError) as error:
        cure = "set tracking.wandb to offline, and `wandb sync` later where there is a network"
        return Finding("W&B", "note", f"no answer from {url}: {getattr(error, 'reason', error)}", cure)
    if find_spec("wandb") is None:
        return Finding("W&B", "note", f"{url} answers, but wandb is not installed", "pip install wandb, to use it")
    return Finding("W&B", "ok", f"{url} answers")


def examine_network() -> list[Finding]:
    """Meet the other tasks as the processes of a run do; measure all-reduce and clocks with them."""
    from mae_curriculum.distributed import connect

    meet_on_first_node()
    try:
        with connect(timedelta(seconds=JOIN_SECONDS)) as world:
            if world.world_size == 1:
                return []
            found = [measure_all_reduce(world), compare_clocks(world)]
            return found if world.is_main else []
    except RuntimeError as error:  # whatever hinders gloo and NCCL
        return [Finding("network", "mend", str(error).split("\n")[0], JOIN_ADVICE, node_name())]


def measure_all_reduce(world: "World", repeats: int = 5) -> Finding:
    """Measure the bandwidth of all-reduce: size / time, and 2(n-1)/n of that on the bus, as nccl-tests define them."""
    import torch
    import torch.distributed as dist

    numbers = torch.zeros(ALL_REDUCE_FLOATS, device=world.device)

    def seconds() -> float:
        world.synchronize()
        begun = time.perf_counter()
        for _ in range(repeats):
            dist.all_reduce(numbers)
        world.synchronize()
        return (time.perf_counter() - begun) / repeats

    seconds()  # connects and warms up
    speed, factor = numbers.nbytes / 1e9 / seconds(), 2 * (world.world_size - 1) / world.world_size
    nodes = len(set(world.gather(node_name())))
    text = f"{dist.get_backend()}, tasks: {world.world_size}, nodes: {nodes}; "
    text += f"all-reduce of {numbers.nbytes / 1e6:.0f} MB: "
    return Finding("network", "ok", f"{text}{speed:.2f} GB/s, on the bus {speed * factor:.2f} GB/s")


def compare_clocks(world: "World", repeats: int = 20) -> Finding:
    """Bound how far the clocks of the tasks are apart, from when each came to exchanges between all and left them."""
    marks = []
    for _ in range(repeats):
        arrival = time.time()
        world.any(False)
        marks.append((arrival, time.time()))
    everyone = world.gather((node_name(), marks))
    ahead = [(*clock_ahead(own, everyone[0][1]), node) for node, own in everyone]
    (low, low_error, behind), (high, high_error, before) = min(ahead), max(ahead)
    apart, error = high - low, low_error + high_error
    text = f"farthest apart: {behind} and {before}, {apart:.4f} s, give or take {error:.4f} s"
    if apart <= MAX_SKEW:
        return Finding("clocks", "ok", text)
    cure = "have NTP set them: runs compare the end that SLURM tells, and times of files, with their own clock"
    return Finding("clocks", "mend", text, cure)


def clock_ahead(own: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Tell how far a clock is ahead of another, in seconds, and how far that may be wrong.

    Nobody leaves an exchange before the last has come to it. So the clock is ahead by at least (own arrival - other
    leaving), and by at most (own leaving - other arrival).

    own, other  arrival at each exchange and leaving it, each by the respective clock.
    """
    least = max(arrival - leaving for (arrival, _), (_, leaving) in zip(own, other, strict=True))
    most = min(leaving - arrival for (_, leaving), (arrival, _) in zip(own, other, strict=True))
    return (least + most) / 2, (most - least) / 2


def node_name() -> str:
    """Name this node as SLURM does."""
    return os.environ.get("SLURMD_NODENAME", socket.gethostname())
