"""What several test files use: real commands, real images, an independent low-frequency crop."""

import os
import subprocess
import sys
from pathlib import Path

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
