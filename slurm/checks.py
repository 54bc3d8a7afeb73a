"""The checks of `doctor`: of one node, and of the network between nodes. Each result is ok or says what to change."""

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

from slurm.job import set_master_address

if TYPE_CHECKING:
    from mae_curriculum.distributed import World

JOIN_SECONDS = 60
"""Timeout for the tasks to connect, and for each exchange between them."""

ANSWER_SECONDS = 5
"""Timeout of the request to W&B's server."""

BATCHES_AHEAD = 4
"""Batches that each loader worker prepares: `prefetch_factor` in mae_curriculum/data/loader.py."""

BATCH_BYTES = 1024 * 3 * 224 * 224
"""Size of a large micro-batch, uint8 as the workers return it."""

ALL_REDUCE_FLOATS = 2**24
"""67 MB, more than the 25 MB that DistributedDataParallel sends at once, so that latency does not count."""

MAX_SKEW = 1.0
"""Largest difference between clocks in seconds: a run stops 5 s (`MIN_MARGIN`) before the end of its job by its own
clock."""

JOIN_ADVICE = (
    "name the interface between the nodes (ip addr lists them): --setup 'export NCCL_SOCKET_IFNAME=ib0 "
    "GLOO_SOCKET_IFNAME=ib0'; or set MASTER_ADDR to the first node's address there; or ask for a firewall rule"
)


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    check: str
    """Name of the check."""
    state: Literal["ok", "note", "fix"]
    """`note` needs no change before a run; `fix` does."""
    text: str
    """What was found."""
    advice: str = ""
    """What to change."""
    node: str = ""
    """Where it was found."""


def check_node(*, gpus: int, processes: int, workers: int) -> list[CheckResult]:
    """Check this machine for a run with so many GPUs and processes on it, and so many loader workers per process."""
    results = [
        check_software(),
        check_gpus(gpus),
        check_cores(processes, workers=workers),
        check_shared_memory(processes * workers),
        check_wandb(),
    ]
    return [replace(result, node=node_name()) for result in results]


def check_software() -> CheckResult:
    """Return the versions that all nodes must have in common."""
    import torch

    cuda = torch.version.cuda or "not built in"
    return CheckResult("software", "ok", f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {cuda}")


def check_gpus(requested: int) -> CheckResult:
    """Count the GPUs that torch can use."""
    import torch

    # is_available: with a driver that is too old, device_count alone counts GPUs that cannot be used
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if usable < requested:
        advice = "if nvidia-smi lists them there, install a torch for their driver; else see --gpus_as and --partition"
        return CheckResult("GPUs", "fix", f"{requested} requested, {usable} usable by torch", advice)
    if not requested:
        return CheckResult("GPUs", "ok", "none requested")
    names = {torch.cuda.get_device_name(index) for index in range(usable)}
    return CheckResult("GPUs", "ok", f"{usable} usable: {', '.join(sorted(names))}")


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use: those to which SLURM binds it, else the machine's."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_cores(processes: int, *, workers: int) -> CheckResult:
    """Compare the CPU cores per process with what it needs for its loader workers and itself."""
    usable = usable_cores()
    granted = int(os.environ.get("SLURM_CPUS_ON_NODE", usable))
    cores = min(usable, granted // processes)
    needed = workers + 1
    text = f"{cores} per process; it needs {needed} with its loader workers"
    if cores >= needed:
        return CheckResult("CPU cores", "ok", text)
    advice = f"request --cpus_per_task {needed}, or use --data.workers {max(0, cores - 1)} in runs"
    return CheckResult("CPU cores", "fix", text, advice)


def check_shared_memory(workers: int) -> CheckResult:
    """Compare /dev/shm with the batches that all loader workers of this node may keep there."""
    needed = workers * BATCHES_AHEAD * BATCH_BYTES
    free = shutil.disk_usage("/dev/shm").free
    text = f"{needed / 1e9:.1f} GB, {BATCHES_AHEAD} batches of 1024 images at 224 px per loader worker"
    if free >= needed:
        return CheckResult("/dev/shm", "ok", f"has room for {text}")
    advice = "enlarge it (containers: --shm-size), or use a smaller --micro_batch or fewer --data.workers in runs"
    return CheckResult("/dev/shm", "fix", f"{free / 1e9:.1f} GB free, no room for {text}", advice)


def check_wandb() -> CheckResult:
    """Check whether W&B's server answers at all; no key is sent."""
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        urlopen(url, timeout=ANSWER_SECONDS).close()
    except HTTPError as refusal:  # an answer all the same
        refusal.close()
    except (OSError, HTTPException, ValueError) as error:
        advice = "set tracking.wandb to offline, and run `wandb sync` later where there is a network"
        return CheckResult("W&B", "note", f"no answer from {url}: {getattr(error, 'reason', error)}", advice)
    if find_spec("wandb") is None:
        return CheckResult("W&B", "note", f"{url} answers, but wandb is not installed", "to use it: pip install wandb")
    return CheckResult("W&B", "ok", f"{url} answers")


def check_network() -> list[CheckResult]:
    """Connect to the other tasks as the processes of a run do; measure all-reduce and clocks with them."""
    from mae_curriculum.distributed import connect

    set_master_address()
    try:
        with connect(timedelta(seconds=JOIN_SECONDS)) as world:
            if world.world_size == 1:
                return []
            results = [measure_all_reduce(world), compare_clocks(world)]
            return results if world.is_main else []
    except RuntimeError as error:  # every failure of gloo and NCCL
        return [CheckResult("network", "fix", str(error).split("\n")[0], JOIN_ADVICE, node_name())]


def measure_all_reduce(world: "World", repeats: int = 5) -> CheckResult:
    """Measure the bandwidth of all-reduce: size / time, and 2(n-1)/n times that on the bus, as nccl-tests define it."""
    import torch
    import torch.distributed as dist

    numbers = torch.zeros(ALL_REDUCE_FLOATS, device=world.device)
    dist.all_reduce(numbers)  # connects and warms up
    world.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        dist.all_reduce(numbers)
    world.synchronize()
    speed = numbers.nbytes / 1e9 * repeats / (time.perf_counter() - start)
    bus_speed = speed * 2 * (world.world_size - 1) / world.world_size
    nodes = len(set(world.gather(node_name())))
    text = f"{dist.get_backend()}, tasks: {world.world_size}, nodes: {nodes}; "
    text += f"all-reduce of {numbers.nbytes / 1e6:.0f} MB: {speed:.2f} GB/s, on the bus {bus_speed:.2f} GB/s"
    return CheckResult("network", "ok", text)


def compare_clocks(world: "World", repeats: int = 20) -> CheckResult:
    """Bound the differences between the clocks of the tasks by when each entered and left exchanges between all."""
    marks = []
    for _ in range(repeats):
        entered = time.time()
        world.any(False)
        marks.append((entered, time.time()))
    everyone = world.gather((node_name(), marks))
    offsets = [(*clock_offset(own, everyone[0][1]), node) for node, own in everyone]
    low, low_error, slow_node = min(offsets)
    high, high_error, fast_node = max(offsets)
    difference = high - low
    text = f"largest difference: {difference:.4f} ± {low_error + high_error:.4f} s, between {slow_node} and {fast_node}"
    if difference <= MAX_SKEW:
        return CheckResult("clocks", "ok", text)
    advice = "synchronize them by NTP: runs compare the end of their job and file times with their own clock"
    return CheckResult("clocks", "fix", text, advice)


def clock_offset(own: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return by how many seconds a clock is ahead of another, and the largest error of that estimate.

    Nobody leaves an exchange before the last has entered it. So the offset is at least (own entry - other exit), and
    at most (own exit - other entry).

    own, other  entry to and exit from each exchange, each by the respective clock.
    """
    least = max(entry - exit_ for (entry, _), (_, exit_) in zip(own, other, strict=True))
    most = min(exit_ - entry for (_, exit_), (entry, _) in zip(own, other, strict=True))
    return (least + most) / 2, (most - least) / 2


def node_name() -> str:
    """Return the name of this node in SLURM."""
    return os.environ.get("SLURMD_NODENAME", socket.gethostname())
