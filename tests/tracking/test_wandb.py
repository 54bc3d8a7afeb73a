"""W&B's own client: what it keeps offline is read back, and what it tells a server."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mae_curriculum.__main__ import main
from mae_curriculum.files import read_json
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.tracking.config import TrackingConfig
from mae_curriculum.tracking.journal import Journal
from mae_curriculum.tracking.stopwatch import ACTIVITIES
from mae_curriculum.tracking.wandb.datastore import records
from mae_curriculum.tracking.wandb.launch import WandbLog, children, without_home
from mae_curriculum.tracking.wandb.rows import AXES
from mae_curriculum.tracking.wandb.upload import known_offline
from tests.runs import command, equal, options, rows, run_python, start, stop_midway, weights
from tests.wandb_server import serve

pytest.importorskip("wandb")
KEY = "k" * 40


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


def kill_with_wandb(run: Path, *flags: str, **environment: str) -> None:
    """Start a run that was stopped, and kill it by SIGKILL, W&B's own process too, once W&B was told of a step."""
    told = read_json(run / "wandb.json")["step"]
    process = start([sys.executable, "-m", "mae_curriculum"], "pretrain", *flags, **environment)
    while read_json(run / "wandb.json")["step"] < told + 15:
        time.sleep(0.01)
        assert process.poll() is None
    bringers = children(process.pid)
    for pid in (process.pid, *bringers, *(core for each in bringers for core in children(each))):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def test_a_run_with_two_restarts_is_one_run_and_one_curve(tmp_path: Path) -> None:
    run = tmp_path / "run"
    home = tmp_path / "home"
    home.symlink_to(tmp_path, target_is_directory=True)
    environment = {"WANDB_API_KEY": KEY, "SECRET": "hush-hush", "HOME": str(home)}
    changes = {"saving__every_minutes": 0.01, "knn__every_epochs": 4, "tracking__pictures": 1}
    flags = options(home / "run", epochs=16, tracking__wandb="offline", data__cache=tmp_path / "cache", **changes)
    stop_midway(run, "pretrain", *flags, **environment)
    kill_with_wandb(run, *flags, **environment)
    done = command("pretrain", *flags, **environment)
    assert done.returncode == 0
    assert "W&B" not in done.stderr

    ids, logged, axes, text = read_back(run)
    with serve() as server:
        for folder in sorted((run / "wandb").glob("offline-run-*")):
            program = [sys.executable, "-m", "wandb", "sync", str(folder)]
            there = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
            subprocess.run(program, cwd=tmp_path, env=there, check=True, capture_output=True)
    (bucket,) = server.buckets.values()
    assert [row["_step"] for row in bucket.history] == [row["_step"] for row in logged]
    assert [row.get("loss") for row in bucket.history] == [row.get("loss") for row in logged]
    assert bucket.exit_codes[-1] == 0
    steps = [row for row in logged if "loss" in row]
    evaluated = {row["steps_done"]: row["knn"] for row in rows(run, "evaluation")}
    assert {row["_step"]: row["knn"] for row in logged if "knn" in row} == evaluated
    assert len(evaluated) == 4
    drawn = [row["_step"] for row in bucket.history if "pictures" in row]
    assert drawn == [row["steps_done"] for row in rows(run, "pictures")]
    assert len(drawn) == 3
    told = rows(run, "step")
    assert ids == {read_json(run / "wandb.json")["id"]}
    assert [row["_step"] for row in steps] == [row["steps_done"] for row in told]
    for name in ("loss", "lr", "gradient_norm", "images_per_second", "mask_ratio", "mfu", *AXES):
        assert [row[name] for row in steps] == [row[name] for row in told]
    for row in steps:
        assert sum(row[f"broadcast_{name}"] for name in ACTIVITIES) == pytest.approx(1)
    assert {axes[f"loss_by_{axis}"] for axis in AXES} == set(AXES)
    assert axes["*"] == "images"
    assert "~/run" in text
    assert "~/cache" in text
    for secret in (KEY, "hush-hush", str(home), str(tmp_path)):
        assert secret not in text


def test_online_a_run_is_one_curve_whatever_the_server_had_not_taken(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = options(run, epochs=16, tracking__wandb="online", saving__every_minutes=0.01)
    with serve() as server:
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        stop_midway(run, "pretrain", *flags, **environment)
        (bucket,) = server.buckets.values()
        assert (bucket.exit_codes, bucket.preempting) == ([75], True)
        assert str(run).endswith(f"/{bucket.name}")
        bucket.name = "what a user calls it"
        kill_with_wandb(run, *flags, **environment)
        done = command("pretrain", *flags, **environment)
        assert done.returncode == 0
        assert f"W&B: {server.url}/" in done.stderr
    assert (bucket.exit_codes, bucket.name) == ([75, 0], "what a user calls it")
    assert [row["_step"] for row in bucket.history if "loss" in row] == [row["steps_done"] for row in rows(run, "step")]
    assert [*server.buckets] == [read_json(run / "wandb.json")["id"]]


def test_a_server_that_is_gone_halfway_ends_nothing(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with serve() as server:
        flags = options(run, tracking__wandb="online", tracking__pictures=1)
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        process = start([sys.executable, "-m", "mae_curriculum"], "pretrain", *flags, **environment)
        while not server.buckets:
            time.sleep(0.01)
            assert process.poll() is None
    told = process.communicate()[1]
    assert process.returncode == 0
    assert time.time() - rows(run, "end")[0]["time"] < 20
    assert "warning: W&B has not taken all of this run in 10 s; the same command brings the rest" in told
    assert equal(weights(run), weights(finished))

    with serve() as server:  # once it is there, the same command brings the rest
        environment["WANDB_BASE_URL"] = server.url
        for _ in range(2):
            assert "this run is over" in command("pretrain", *flags, **environment).stdout
    (bucket,) = server.buckets.values()
    assert [row["_step"] for row in bucket.history if "loss" in row] == [row["steps_done"] for row in rows(run, "step")]
    assert bucket.exit_codes == [0]
    assert bucket.summary["knn"] == rows(run, "end")[0]["knn"]


def test_what_was_offline_is_not_sent_twice_once_a_job_was_online(tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = {"epochs": 16, "saving__every_minutes": 0.01}
    with serve() as server:
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        stop_midway(run, "pretrain", *options(run, tracking__wandb="offline", **changes))
        assert command("pretrain", *options(run, tracking__wandb="online", **changes), **environment).returncode == 0
        (bucket,) = server.buckets.values()
        before = bucket.history
        assert [row["_step"] for row in before if "loss" in row] == [row["steps_done"] for row in rows(run, "step")]
        for folder in sorted((run / "wandb").glob("*run-*")):
            program = [sys.executable, "-m", "wandb", "sync", str(folder)]
            subprocess.run(program, cwd=tmp_path, env={**os.environ, **environment}, check=True, capture_output=True)
    assert bucket.history == before


def test_what_offline_files_hold_is_read_off_them_unless_they_are_gone(tmp_path: Path) -> None:
    state = {"step": 30, "base": 20, "file": "killed.wandb"}
    assert known_offline(RunFolder(tmp_path), state) == 30
    (tmp_path / "killed.wandb").write_bytes(b":W&B\xbe\x1f\x00")  # at once
    assert known_offline(RunFolder(tmp_path), state) == 20


def test_the_users_home_is_spelled_as_such_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {"a": ["/home/josé", "/home/josé/x=/home/josé/y"], "b": ("/home/joséphine", 1, None)}
    monkeypatch.setenv("HOME", "/home/josé")
    assert without_home(paths) == {"a": ["~", "~/x=~/y"], "b": ["/home/joséphine", 1, None]}
    monkeypatch.setenv("HOME", "/")
    assert without_home("/x /y") == "/x /y"


def test_a_run_that_fails_is_shown_as_failed(tmp_path: Path) -> None:
    with serve() as server:
        flags = options(tmp_path / "run", tracking__wandb="online", tracking__every_steps=1)
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        assert run_python(["tests/spoiled.py", "weight", "3", "pretrain", *flags], environment).returncode == 2
    (bucket,) = server.buckets.values()
    assert bucket.exit_codes == [2]
    assert bucket.summary["ending"].startswith("loss or gradient was not finite in 5 steps in a row")


@pytest.mark.parametrize(("environment", "words"), [({}, "no W&B key"), ({"WANDB_API_KEY": "short"}, "must have 40+")])
def test_without_a_key_nothing_ends_and_no_bit_changes(
    finished: Path, tmp_path: Path, environment: dict[str, str], words: str
) -> None:
    run = tmp_path / "run"
    done = command("pretrain", *options(run, tracking__wandb="online"), HOME=str(tmp_path), **environment)
    assert done.returncode == 0
    assert words in done.stderr
    assert equal(weights(run), weights(finished))


def test_a_run_whose_server_never_answers_lies_offline_whole(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes calls
        environment = {"WANDB_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "WANDB_API_KEY": KEY}
        done = command("pretrain", *options(run, tracking__wandb="online"), **environment)
    assert done.returncode == 0
    assert time.time() - rows(run, "end")[0]["time"] < 20
    assert equal(weights(run), weights(finished))
    assert "warning: W&B does not take this run now" in done.stderr
    assert "it is logged offline" in done.stderr
    assert re.findall("given up|not taken", done.stderr) == []
    assert [row["_step"] for row in read_back(run)[1]] == [row["steps_done"] for row in rows(run, "step")]
    assert [path.parent.name[:4] for path in (run / "wandb").glob("*run-*/*.synced")] == ["run-"]


def test_what_a_killed_or_failed_job_began_to_tell_of_a_step_the_next_one_ends(tmp_path: Path) -> None:
    journal, told = Journal(tmp_path / "journal.jsonl"), {"size": [8, 8], "train_seconds": 1.0}

    def bring() -> str:
        facts = {"folder": str(tmp_path), "tracking": {"wandb": "offline"}, "config": {}}
        program = [sys.executable, "-m", "mae_curriculum.tracking.wandb.upload"]
        words = f"{json.dumps(facts)}\nover\n"
        return subprocess.run(program, input=words, capture_output=True, text=True, check=True).stderr

    def steps(key: str) -> list[int]:
        return [row["_step"] for row in read_back(tmp_path)[1] if key in row]

    journal.write("start", step=0)
    for step in (4, 9):
        journal.write("step", step=step, loss=1.0, **told)
    with ThreadPoolExecutor() as pool, (tmp_path / "wandb.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the process of a job that was killed, still at it
        brought = pool.submit(bring)
        with pytest.raises(TimeoutError):
            brought.result(4)
        assert steps("loss") == []
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert brought.result() == ""
    assert steps("loss") == [5]
    journal.write("start", step=5)
    journal.write("evaluation", step=10, knn=0.5)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "torn.png").write_bytes(b"not a picture")
    journal.write("pictures", step=10, files=["elsewhere/pictures/gone.png", "elsewhere/pictures/torn.png"])
    journal.write("error", reason="no memory")
    assert "W&B is not told of the pictures of step 10: UnidentifiedImageError" in bring()
    assert steps("loss") == [5]
    journal.write("start", step=10)
    journal.write("end", knn=0.5)
    for _ in range(2):
        bring()
    assert (steps("loss"), steps("knn")) == ([5, 10], [10])
    assert len([*(tmp_path / "wandb").glob("offline-run-*")]) == 3


def test_a_process_that_died_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {*children(os.getpid())}
    log = WandbLog(RunFolder(tmp_path), TrackingConfig(wandb="offline"), {})
    (pid,) = {*children(os.getpid())} - before
    os.kill(pid, signal.SIGKILL)
    log.close()
    log.close()
    assert capsys.readouterr().err == "warning: W&B's process ended with code -9; the same command brings the rest\n"


def test_a_user_without_a_home_has_no_home_to_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    assert without_home({"run": Path("/data/run")}) == {"run": "/data/run"}


def test_without_wandb_a_run_that_wants_it_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mae_curriculum.tracking.wandb.launch.find_spec", lambda _: None)
    assert main(["pretrain", *options(tmp_path / "run", tracking__wandb="offline")]) == 2
    assert "pip install wandb" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_project_that_wandb_would_refuse_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--tracking.project", "a/b"]) == 2
    assert "tracking.project: 1 to 128 characters" in capsys.readouterr().err
