"""What several test files use: real commands, real images, an independent low-frequency crop."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

torch.set_num_threads(1)  # the models of the tests are too small for more


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m mae_curriculum ...` as a user would, with one thread so that tests do not fight for cores."""
    return subprocess.run(
        [sys.executable, "-m", "mae_curriculum", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


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
