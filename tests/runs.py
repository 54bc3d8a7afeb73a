"""Real runs of seconds, for several test files: their settings, how they are started and stopped, what they left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mae_curriculum.run.checkpoint import load_state
from mae_curriculum.run.folder import RunFolder
from tests.processes import ROOT, Process, Ranks

Finished = subprocess.CompletedProcess[str]

TINY = {
    "data.workers": 0,
    "data.source": "digits",
    "data.mean": "[0.305]",
    "data.std": "[0.376]",
    "model.name": "vit_tiny_patch16_224",
    "model.image_size": 32,
    "model.patch_size": 8,
    "model.channels": 1,
    "model.width": 48,
    "model.depth": 2,
    "model.heads": 3,
    "model.decoder_width": 32,
    "model.decoder_depth": 1,
    "model.decoder_heads": 2,
    "model.target": "pixels",
    "curriculum": "configs/curriculum/efficienttrain.yaml",
    "curriculum.augmentation.randaug": "null",
    "optim.base_lr": 4e-3,
    "batch_size": 64,
    "epochs": 3,
    "tracking.every_steps": 5,
    "tracking.pictures": 0,
    "knn.images": 300,
}


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def as_flags(settings: dict[str, Any], **changes: Any) -> list[str]:
    """Spell settings as flags; `a__b` in `changes` stands for `a.b`."""
    settings = settings | {key.replace("__", "."): value for key, value in changes.items()}
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def options(run: Path | None = None, **changes: Any) -> list[str]:
    """Spell the settings of a pretraining of seconds on digits; `a__b` in `changes` stands for `a.b`."""
    return as_flags(TINY if run is None else TINY | {"run": run}, **changes)


def command(*arguments: object, package: str = "mae_curriculum", **environment: str) -> Finished:
    """Run `python -m mae_curriculum ...` to its end, as a user would."""
    return finish(Process(package, *arguments, **environment))


def two_processes(*arguments: object, package: str = "mae_curriculum") -> Finished:
    """Run a command as two processes to their end."""
    return finish(Ranks(package, *arguments))


def finish(process: Process | Ranks) -> Finished:
    """Wait for a process, or for several."""
    stdout, stderr = process.communicate()
    return Finished([], process.returncode or 0, stdout, stderr)


def torchrun(*arguments: object, restarts: int = 0) -> subprocess.Popen[str]:
    """Start `mae_curriculum` by torchrun as two processes; the launcher leads a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *TORCHRUN, f"--max-restarts={restarts}", "-m", "mae_curriculum", "--", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stop_midway(run: Path, *arguments: object, package: str = "mae_curriculum", **environment: str) -> str:
    """Start a command, stop it by SIGTERM once `run` has reported a step, as a scheduler does; returns its stderr."""
    process = Process(package, *arguments, **environment)
    while not (run / "journal.jsonl").exists() or not rows(run, "step"):
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)  # to the loader's workers too
    output = process.communicate()[1]
    assert process.returncode == 75
    return output


def rows(run: Path, event: str) -> list[dict[str, Any]]:
    """Read the journal's rows of an event."""
    lines = map(json.loads, (run / "journal.jsonl").read_text().splitlines())
    return [row for row in lines if row["event"] == event]


def newest_state(run: Path) -> dict[str, Any]:
    """Read the newest checkpoint."""
    path = RunFolder(run).newest()
    assert path is not None
    return load_state(path)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Read the newest checkpoint's weights."""
    model: dict[str, torch.Tensor] = newest_state(run)["model"]
    return model


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first | second)


def picture_folder(folder: Path, classes: int, count: int) -> Path:
    for index in range(count):
        place = folder / f"class{index % classes}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 30), (index % 256, 40 * (index % classes), 99)).save(place / f"{index:04}.png")
    return folder


def noise_folder(folder: Path) -> Path:
    """Write 60 pictures of two classes that differ by chance only, so that the accuracy depends on every weight."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    for index, pixels in enumerate(noise):
        place = folder / f"class{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index:02}.png")
    return folder


def pictures(folder: Path, **changes: Any) -> dict[str, Any]:
    """Spell the settings for a folder of colour pictures."""
    return {
        "data__source": folder,
        "model__channels": 3,
        "data__mean": "null",
        "data__std": "null",
        "epochs": 6,
        **changes,
    }
