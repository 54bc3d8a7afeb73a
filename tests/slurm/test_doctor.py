"""`doctor` on a real SLURM cluster of two nodes and on this machine: what passes, and what has to be fixed."""

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
from slurm.checks import BATCHES_AHEAD, check_wandb, clock_offset
from slurm.doctor import DoctorConfig
from tests.processes import ROOT
from tests.slurm_cluster import Cluster

FITTING = ("--nodes", 2, "--cpus_per_task", 2, "--workers", 1)
"""A job for which the nodes of the test cluster have enough cores."""

# runs a program with a private file system of a size at a folder, which others do not see; mounting needs root
PRIVATE_DISK = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size="$0" tmpfs "$1" && shift && exec "$@"')


@pytest.fixture(autouse=True)
def no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace W&B's server by a port where nothing listens."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A web server without any page."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as listening:
        Thread(target=listening.serve_forever).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def start_doctor(
    *arguments: object, folder: Path, behind: Sequence[object] = (), variables: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `doctor`, by another program if there is one."""
    words = [*behind, sys.executable, "-m", "slurm", "doctor", "--folder", folder, *arguments]
    environment = {**os.environ, **(variables or {})}
    return subprocess.Popen(
        list(map(str, words)), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, str]]:
    """Wait for `doctor`; returns its exit code, and the text of each result by state and check."""
    out, err = process.communicate()
    print(out, err)
    lines = [line for line in out.splitlines() if line[:5] in ("ok   ", "note ", "fix  ")]
    return process.returncode, {" ".join(line[:20].split()): line[20:] for line in lines}


@pytest.fixture(scope="module")
def doctors(
    cluster: Cluster, server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Start `doctor` in several situations at once, since each mostly waits; SLURM runs their jobs one by one."""
    place = tmp_path_factory.mktemp("doctor")
    variables = {**cluster.environment, "WANDB_BASE_URL": server}
    situations: dict[str, tuple[object, ...]] = {
        "two nodes": FITTING,
        "few cores": ("--cpus_per_task", 2, "--workers", 4),
        "no network": (*FITTING, "--setup", "export GLOO_SOCKET_IFNAME=none0"),
        "no partition": ("--partition", "none"),
    }
    started = {name: start_doctor(*words, folder=place, variables=variables) for name, words in situations.items()}
    private = place / "private"
    private.mkdir()
    behind = (*PRIVATE_DISK, "10m", private)
    started["private folder"] = start_doctor(*FITTING, folder=private / "jobs", behind=behind, variables=variables)
    yield started
    for process in started.values():  # those of tests that were not selected
        process.kill()
        process.communicate()


def test_all_checks_pass_on_two_nodes(doctors: dict[str, subprocess.Popen[str]], server: str) -> None:
    code, found = finish(doctors["two nodes"])
    assert code == 0
    checks = ["folder", "SLURM", "shared folder", "software", "GPUs", "CPU cores", "/dev/shm", "network", "clocks"]
    assert {f"ok {check}" for check in checks} < found.keys()
    assert found["ok network"].startswith("gloo, tasks: 2, nodes: 2; all-reduce of 67 MB: ")
    speeds = re.findall(r"([\d.]+) GB/s", found["ok network"])
    assert speeds[0] == speeds[1] != "0.00"  # 2(n-1)/n is 1 for two
    assert re.match(r"largest difference: 0\.0.* s, between (node1 and node2|node2 and node1)$", found["ok clocks"])
    assert next(text for check, text in found.items() if "W&B" in check).startswith(f"{server} answers")


def test_a_node_with_too_few_cores_for_its_loaders_is_reported(doctors: dict[str, subprocess.Popen[str]]) -> None:
    code, found = finish(doctors["few cores"])
    assert code == 1
    assert found["fix CPU cores"] == "2 per process; it needs 5 with its loader workers"
    assert not any("network" in check for check in found)  # a single process


def test_a_folder_that_only_the_login_node_sees_is_reported(doctors: dict[str, subprocess.Popen[str]]) -> None:
    code, found = finish(doctors["private folder"])
    assert code == 1
    assert found["fix shared folder"].startswith("no report from 2 of 2 tasks (job: gone); task 0: no log ")
    assert "ok software" not in found


def test_nodes_that_cannot_connect_are_reported(doctors: dict[str, subprocess.Popen[str]]) -> None:
    code, found = finish(doctors["no network"])
    assert code == 1
    assert "none0" in found["fix network"]
    assert "ok shared folder" in found


def test_a_job_that_slurm_refuses_is_reported(doctors: dict[str, subprocess.Popen[str]]) -> None:
    code, found = finish(doctors["no partition"])
    assert code == 1
    assert "Invalid partition name" in found["fix job"]


def test_a_small_shared_memory_is_reported(cluster: Cluster, tmp_path: Path) -> None:
    code, found = finish(start_doctor("--local", folder=tmp_path, behind=(*PRIVATE_DISK, "100m", "/dev/shm")))
    assert code == 1
    assert found["fix /dev/shm"].startswith("0.1 GB free, no room for 1.2 GB, 4 batches")


def test_this_machine_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--local", "--workers", "0", "--folder", str(tmp_path / "jobs")]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    assert "fix " not in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--workers", "4096"), r"fix  CPU cores +\d+ per process; it needs 4097 with its loader workers"),
        (("--gpus_per_node", "99"), r"fix  GPUs +99 requested, \d+ usable by torch"),
        (("--folder", "/proc/jobs"), r"fix  folder +cannot be written: .*'/proc/jobs'"),
    ],
)
def test_problems_of_this_machine_are_reported(
    arguments: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--local", "--folder", str(tmp_path), *arguments]) == 1
    assert re.search(line, capsys.readouterr().out)


def test_an_unreachable_wandb_server_is_only_a_note() -> None:
    result = check_wandb()
    assert (result.state, "Connection refused" in result.text) == ("note", True)
    assert "tracking.wandb" in result.advice


def test_the_clock_offset_is_bounded_by_the_shortest_exchanges() -> None:
    # the own clock is 5 s ahead: by the other it entered at 2 and at 20, and left at 10.5 and at 21
    offset, error = clock_offset([(7, 15.5), (25, 26)], [(0, 10), (20.5, 21)])
    assert (offset, error) == (4.75, 0.75)  # at least 25 - 21, at most 26 - 20.5


def test_the_checks_assume_the_loader_of_runs() -> None:
    data: Any = [0]
    loader = training_loader(data, data, workers=1, device=torch.device("cpu"))
    assert loader.prefetch_factor == BATCHES_AHEAD
    assert DoctorConfig().workers == DataConfig().workers


def test_help_needs_no_torch() -> None:
    code = "import sys; from slurm.__main__ import main; import slurm.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
