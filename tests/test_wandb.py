"""W&B's own client, offline: its files are read back."""

import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import command, equal, options, rows, start, stop_midway, weights

from mae_curriculum.__main__ import main
from mae_curriculum.checkpoint import read_json
from mae_curriculum.reporting import ACTIVITIES
from mae_curriculum.wandb_log import AXES

internal = pytest.importorskip("wandb.proto.wandb_internal_pb2")

BLOCK = 32 * 1024


def records(path: Path) -> Iterator[Any]:
    """Read a .wandb file: 7 bytes, then a LevelDB log of blocks whose records may be in parts."""
    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:  # no room for another record's head
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack("<4xHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = internal.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read_back(run: Path) -> tuple[set[str], list[dict[str, Any]], dict[str, str], str]:
    """Read all W&B files of a run folder: its ids, what was logged, the axis of each metric, and all as text."""
    ids, logged, axes, text = set(), [], {}, ""
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        text += path.read_bytes().decode("latin-1")
        for record in records(path):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("metric"):
                axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            if record.HasField("history"):
                items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                logged.append({key: json.loads(value) for key, value in items.items()})
    return ids, logged, axes, text


def test_a_run_with_two_restarts_is_one_run_and_one_curve(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = options(run, epochs=12, tracking__wandb="offline", saving__every_minutes=0.01, knn__every_epochs=4)
    stop_midway(run, "pretrain", *flags)
    process = start([sys.executable, "-m", "mae_curriculum"], "pretrain", *flags)
    while len(rows(run, "start")) < 2 or rows(run, "step")[-1]["time"] < rows(run, "start")[1]["time"]:
        time.sleep(0.02)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = command("pretrain", *flags, WANDB_API_KEY="k" * 40, SECRET="hush-hush")
    assert done.returncode == 0
    assert "W&B" not in done.stderr

    ids, logged, axes, text = read_back(run)
    steps = [row for row in logged if "loss" in row]
    evaluated = {row["step"]: row["knn"] for row in rows(run, "evaluation")}
    assert {row["_step"]: row["knn"] for row in logged if "knn" in row} == evaluated
    assert len(evaluated) == 3
    told = rows(run, "step")
    assert ids == {read_json(run / "wandb.json")["id"]}
    assert [row["_step"] for row in steps] == [row["step"] + 1 for row in told]
    for name in ("loss", "lr", "gradient_norm", "images_per_second", "mask_ratio", "mfu", *AXES):
        assert [row[name] for row in steps] == [row[name] for row in told]
    for row in steps:
        assert sum(row[f"share_{name}"] for name in ACTIVITIES) == pytest.approx(1)
    assert {axes[f"loss_by_{axis}"] for axis in AXES} == set(AXES)
    assert axes["*"] == "images"
    for secret in ("k" * 40, "hush-hush", str(Path.home()) + "/"):
        assert secret not in text


def test_wandb_changes_no_bit_and_missing_keys_and_servers_end_nothing(finished: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes calls, and never answers
        nowhere = {"WANDB_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "WANDB_API_KEY": "k" * 40}
        malformed = {"WANDB_API_KEY": "short"}
        cases: list[tuple[str, dict[str, str], str]]
        cases = [("key", {}, "no W&B key here"), ("bad", malformed, "logged offline"), ("net", nowhere, "not answer")]
        for name, environment, words in cases:
            run, begun = tmp_path / name, time.monotonic()
            flags = options(run, tracking__wandb="online")
            done = command("pretrain", *flags, HOME=str(tmp_path), **environment)
            assert done.returncode == 0
            assert words in done.stderr
            assert time.monotonic() - begun < 60
            assert equal(weights(run), weights(finished))


def test_a_project_that_wandb_would_refuse_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--tracking.project", "a/b"]) == 2
    assert "tracking.project: up to 128 characters" in capsys.readouterr().err
