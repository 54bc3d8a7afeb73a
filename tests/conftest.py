"""What several test files use: a finished run, a small disk, a SLURM cluster."""

import fcntl
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.chromium import Page, chromium, why_no_chromium
from tests.runs import command, noise_folder, options
from tests.slurm_cluster import Cluster, slurm_cluster, why_no_cluster

torch.set_num_threads(1)  # the models of the tests are too small for more
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and so would the processes of the tests


SLOW = (
    "test_slurm",
    "test_wandb",
    "test_survival",
    "test_finetune",
    "test_pretraining",
    "test_initialization",
    "test_pipeline",
    "test_formats",
    "test_write",
    "test_html",
    "test_figures",
    "test_saved",
    "test_anomalies",
    "test_doctor",
    "test_embed",
    "test_classifier",
    "test_distributed",
    "test_status",
    "test_backbones",
    "test_search",
    "test_real_images",
)
"""Files whose tests start processes, clusters or browsers, or build many networks; `-m "not slow"` omits them.

The longest are first, so that all workers finish together; those that need a cluster are apart.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow files, and start with them."""
    order = {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.stem, len(SLOW)))
    for item in items:
        if item.path.stem in order:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of few pictures, whose classes nothing tells apart, for searches of seconds."""
    return noise_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining from beginning to end, in one go; nobody may change it."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    done = command("pretrain", *options(run))
    assert done.returncode == 0, done.stderr
    (run.parent / "finished.txt").write_text(done.stdout + done.stderr)
    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a file system of a given size, such as "5m", which only root may; asked again, the disk gets that size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size: str) -> Path:
        how = f"remount,size={size}" if disk.is_mount() else f"size={size}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", disk], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("mounting a small disk needs root")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", disk], check=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two nodes, one at a time."""
    if why := why_no_cluster():
        (pytest.fail if os.environ.get("REQUIRE_SLURM") else pytest.skip)(why)
    with (Path(tempfile.gettempdir()) / "slurm-test.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with slurm_cluster(tmp_path_factory.mktemp("cluster")) as started:
            yield started


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page in a browser."""
    if why := why_no_chromium():
        (pytest.fail if os.environ.get("REQUIRE_CHROMIUM") else pytest.skip)(why)
    with chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened
