"""The doctor on a real SLURM cluster of two nodes and on this machine: what is in order, and what is to mend."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.loader import training_loader
from slurm.__main__ import main
from slurm.checks import BATCHES_AHEAD, clock_ahead, find_wandb
from slurm.doctor import DoctorConfig
from tests.runs import ROOT
from tests.slurm_cluster import Cluster

FITTING = ("--nodes", 2, "--cpus_per_task", 2, "--workers", 1)
"""What the nodes of the tests' cluster have cores for."""

# the program behind it has a file system of its own at a folder, which others do not see; mounting needs root
PRIVATE_DISK = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size="$0" tmpfs "$1" && shift && exec "$@"')


@pytest.fixture(autouse=True)
def no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Point W&B's client at a port where nobody listens."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


@pytest.fixture
def server() -> Iterator[str]:
    """A web server that knows no page."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as listening:
        Thread(target=listening.serve_forever).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def ask(
    *arguments: object, folder: Path, behind: Sequence[object] = (), variables: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str]]:
    """Run the doctor; returns its exit code, and what stands behind each state and check that it printed."""
    words = [*behind, sys.executable, "-m", "slurm", "doctor", "--folder", folder, *arguments]
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(list(map(str, words)), cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    print(done.stdout, done.stderr)
    lines = [line for line in done.stdout.splitlines() if line[:5] in ("ok   ", "note ", "mend ")]
    return done.returncode, {" ".join(line[:20].split()): line[20:] for line in lines}


def test_two_nodes_in_order(cluster: Cluster, tmp_path: Path, server: str) -> None:
    variables = {**cluster.environment, "WANDB_BASE_URL": server}
    code, found = ask(*FITTING, folder=tmp_path / "jobs", variables=variables)
    assert code == 0
    checks = ["folder", "SLURM", "shared folder", "software", "GPUs", "CPU cores", "/dev/shm", "network", "clocks"]
    assert {f"ok {check}" for check in checks} < found.keys()
    assert found["ok network"].startswith("gloo, tasks: 2, nodes: 2; all-reduce of 67 MB: ")
    speeds = re.findall(r"([\d.]+) GB/s", found["ok network"])
    assert speeds[0] == speeds[1] != "0.00"  # 2(n-1)/n is 1 for two
    assert re.match(r"farthest apart: (node1 and node2|node2 and node1), 0\.0", found["ok clocks"])
    assert next(text for check, text in found.items() if "W&B" in check).startswith(f"{server} answers")


def test_a_node_with_too_few_cores_for_its_loaders(cluster: Cluster, tmp_path: Path) -> None:
    asked = ("--cpus_per_task", 2, "--workers", 4)
    code, found = ask(*asked, folder=tmp_path / "jobs", variables=cluster.environment)
    assert code == 1
    assert found["mend CPU cores"] == "2 for each process; with its loader workers it wants 5"
    assert not any("network" in check for check in found)  # one process alone


def test_a_folder_that_only_the_login_node_sees(cluster: Cluster, tmp_path: Path) -> None:
    own = (*PRIVATE_DISK, "10m", tmp_path)
    code, found = ask(*FITTING, folder=tmp_path / "jobs", behind=own, variables=cluster.environment)
    assert code == 1
    assert found["mend shared folder"].startswith("no answer from 2 of 2 tasks (job: gone); task 0: no log ")
    assert "ok software" not in found


def test_nodes_that_cannot_meet(cluster: Cluster, tmp_path: Path) -> None:
    setup = ("--setup", "export GLOO_SOCKET_IFNAME=none0")
    code, found = ask(*FITTING, *setup, folder=tmp_path / "jobs", variables=cluster.environment)
    assert code == 1
    assert "none0" in found["mend network"]
    assert "ok shared folder" in found


def test_a_job_that_slurm_refuses(cluster: Cluster, tmp_path: Path) -> None:
    code, found = ask("--partition", "none", folder=tmp_path / "jobs", variables=cluster.environment)
    assert code == 1
    assert "Invalid partition name" in found["mend job"]


def test_a_small_shared_memory(cluster: Cluster, tmp_path: Path) -> None:
    code, found = ask("--local", folder=tmp_path, behind=(*PRIVATE_DISK, "100m", "/dev/shm"))
    assert code == 1
    assert found["mend /dev/shm"].startswith("0.1 GB free, no room for 1.2 GB, 4 batches")


def test_this_machine_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--local", "--workers", "0", "--folder", str(tmp_path / "jobs")]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    assert "mend" not in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--workers", "4096"), r"mend CPU cores +\d+ for each process; with its loader workers it wants 4097"),
        (("--gpus_per_node", "99"), r"mend GPUs +99 asked for, \d+ seen by torch"),
        (("--folder", "/proc/jobs"), r"mend folder +cannot be written: .*'/proc/jobs'"),
    ],
)
def test_what_is_to_mend_here(
    arguments: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--local", "--folder", str(tmp_path), *arguments]) == 1
    assert re.search(line, capsys.readouterr().out)


def test_wandb_without_network_is_nothing_to_mend() -> None:
    finding = find_wandb()
    assert (finding.state, "Connection refused" in finding.text) == ("note", True)
    assert "tracking.wandb" in finding.cure


def test_a_clock_is_known_as_well_as_the_shortest_exchanges_tell() -> None:
    # the own clock is 5 s ahead: by the other it came at 2 and at 20, and left at 10.5 and at 21
    ahead, error = clock_ahead([(7, 15.5), (25, 26)], [(0, 10), (20.5, 21)])
    assert (ahead, error) == (4.75, 0.75)  # at least 25 - 21, at most 26 - 20.5


def test_the_loader_is_the_one_that_runs_have() -> None:
    data: Any = [0]
    loader = training_loader(data, data, workers=1, device=torch.device("cpu"))
    assert loader.prefetch_factor == BATCHES_AHEAD
    assert DoctorConfig().workers == DataConfig().workers


def test_help_needs_no_torch() -> None:
    code = "import sys; from slurm.__main__ import main; import slurm.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
