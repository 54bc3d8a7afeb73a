"""Upload to W&B with its own client, against a server that runs here."""

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

import pytest

from mae_curriculum.__main__ import main
from mae_curriculum.files import read_json
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.tracking.config import TrackingConfig
from mae_curriculum.tracking.journal import Journal
from mae_curriculum.tracking.stopwatch import ACTIVITIES
from mae_curriculum.tracking.wandb import log_to_wandb, without_home
from tests.processes import Process
from tests.runs import command, equal, finish, options, rows, stop_midway, weights
from tests.wandb_server import EMAIL, Bucket, Server, serve

pytest.importorskip("wandb")
KEY = "k" * 40
AXES = ("images", "epochs", "real_epochs", "flops", "train_seconds")


def sync(run: Path, server: Server, pattern: str = "offline-run-*") -> None:
    """Upload W&B's folders of a run as a user does: by `wandb sync`."""
    environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    folders = sorted((run / "wandb").glob(pattern))
    program = [sys.executable, "-m", "wandb", "sync", *map(str, folders)]
    subprocess.run(program, cwd=run.parent, env=environment, check=True, capture_output=True)


def synced(run: Path) -> Bucket:
    """Return the only W&B run that a server has after `wandb sync` of all offline folders."""
    with serve() as server:
        sync(run, server)
    (bucket,) = server.buckets.values()
    return bucket


def steps_with(key: str, bucket: Bucket) -> list[int]:
    """Return the steps of a W&B run that have a metric."""
    return [row["_step"] for row in bucket.history if key in row]


def child_processes(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    paths = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in paths for child in path.read_text().split()]


def kill_with_wandb(run: Path, *flags: str, **environment: str) -> None:
    """Resume a run, and kill it by SIGKILL, W&B's processes too, once it has written and uploaded some steps."""
    before = len(rows(run, "step"))
    process = Process("mae_curriculum", "pretrain", *flags, **environment)
    while len(rows(run, "step")) < before + 3:
        time.sleep(0.01)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGSTOP)  # so that the run does not end before W&B has its first steps
    until = time.monotonic() + 60
    while not any(map(child_processes, child_processes(process.pid))):
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(2)  # the upload reads the journal every second
    uploads = child_processes(process.pid)
    for pid in (process.pid, *uploads, *(child for upload in uploads for child in child_processes(upload))):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def test_offline_a_run_with_two_restarts_is_one_run_and_one_curve_without_secrets(tmp_path: Path) -> None:
    run = tmp_path / "run"
    home = tmp_path / "home"
    home.symlink_to(tmp_path, target_is_directory=True)
    environment = {"WANDB_API_KEY": KEY, "SECRET": "hush-hush", "HOME": str(home)}
    changes = {"saving__every_minutes": 0.01, "knn__every_epochs": 2, "tracking__pictures": 1}
    flags = options(home / "run", epochs=4, tracking__wandb="offline", data__cache=tmp_path / "cache", **changes)
    stop_midway(run, "pretrain", *flags, **environment)
    kill_with_wandb(run, *flags, **environment)
    finished = command("pretrain", *flags, **environment)
    assert finished.returncode == 0
    assert "W&B" not in finished.stderr

    with serve() as server:
        sync(run, server)
    (bucket,) = server.buckets.values()
    assert [*server.buckets] == [read_json(run / "wandb.json")["id"]]
    assert bucket.exit_codes[-1] == 0
    evaluated = {row["steps_done"]: row["knn"] for row in rows(run, "evaluation")}
    assert {row["_step"]: row["knn"] for row in bucket.history if "knn" in row} == evaluated
    assert len(evaluated) == 2
    assert steps_with("pictures", bucket) == [row["steps_done"] for row in rows(run, "pictures")]
    assert len(steps_with("pictures", bucket)) == 3
    journal = rows(run, "step")
    uploaded = [row for row in bucket.history if "loss" in row]
    assert [row["_step"] for row in uploaded] == [row["steps_done"] for row in journal]
    assert steps_with("_step", bucket) == sorted({*steps_with("loss", bucket), *evaluated})
    for name in ("loss", "lr", "gradient_norm", "images_per_second", "mask_ratio", "mfu", *AXES):
        assert [row[name] for row in uploaded] == [row[name] for row in journal]
    for row in uploaded:
        assert sum(row[f"share_{name}"] for name in ACTIVITIES) == pytest.approx(1)
    assert "~/run" in bucket.text
    assert "~/cache" in bucket.text
    files = [*run.glob("wandb/*run-*/*.wandb"), run / "wandb.json"]
    stored = b"".join([*(path.read_bytes() for path in files), *server.received])
    for secret in (KEY, "hush-hush", EMAIL, str(home), str(tmp_path)):
        assert secret.encode() not in stored


def test_online_a_run_is_one_curve_whatever_the_server_received(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = options(run, epochs=4, tracking__wandb="online", saving__every_minutes=0.01)
    with serve() as server:
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "SECRET": "hush-hush"}
        stop_midway(run, "pretrain", *flags, **environment)
        (bucket,) = server.buckets.values()
        assert (bucket.exit_codes, bucket.preempting) == ([75], True)
        assert str(run).endswith(f"/{bucket.name}")
        bucket.name = "renamed by the user"
        kill_with_wandb(run, *flags, **environment)
        finished = command("pretrain", *flags, **environment)
        assert finished.returncode == 0
        assert f"W&B: {server.url}/" in finished.stderr
    assert (bucket.exit_codes, bucket.name) == ([75, 0], "renamed by the user")
    assert steps_with("loss", bucket) == [row["steps_done"] for row in rows(run, "step")]
    assert [*server.buckets] == [read_json(run / "wandb.json")["id"]]
    for secret in (KEY, "hush-hush", EMAIL):
        assert secret.encode() not in b"".join(server.received)


def test_a_server_that_disappears_does_not_end_a_run_and_gets_the_rest_later(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with serve() as server:
        flags = options(run, tracking__wandb="online", tracking__pictures=1)
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        process = Process("mae_curriculum", "pretrain", *flags, **environment)
        while not server.buckets:
            time.sleep(0.01)
            assert process.poll() is None
    messages = process.communicate()[1]
    assert process.returncode == 0
    assert time.time() - rows(run, "end")[0]["time"] < 20
    assert "warning: W&B did not receive all of this run" in messages
    assert "rerun the same command to upload the rest" in messages
    assert equal(weights(run), weights(finished))

    with serve() as server:
        environment["WANDB_BASE_URL"] = server.url
        for _ in range(2):
            assert command("pretrain", *flags, **environment).returncode == 0
    (bucket,) = server.buckets.values()
    assert steps_with("loss", bucket) == [row["steps_done"] for row in rows(run, "step")]
    assert bucket.exit_codes == [0]
    assert bucket.summary["knn"] == rows(run, "end")[0]["knn"]


def test_offline_folders_are_not_uploaded_twice_once_a_job_was_online(tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = {"saving__every_minutes": 0.01}
    with serve() as server:
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        stop_midway(run, "pretrain", *options(run, tracking__wandb="offline", **changes))
        assert command("pretrain", *options(run, tracking__wandb="online", **changes), **environment).returncode == 0
        (bucket,) = server.buckets.values()
        before = bucket.history
        assert steps_with("loss", bucket) == [row["steps_done"] for row in rows(run, "step")]
        sync(run, server, "*run-*")
    assert bucket.history == before


def test_the_home_folder_is_replaced_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {"a": ["/home/josé", "/home/josé/x=/home/josé/y"], "b": ("/home/joséphine", 1, None)}
    monkeypatch.setenv("HOME", "/home/josé")
    assert without_home(paths) == {"a": ["~", "~/x=~/y"], "b": ["/home/joséphine", 1, None]}
    monkeypatch.setenv("HOME", "/")
    assert without_home("/x /y") == "/x /y"


def test_a_user_without_a_home_folder_has_none_to_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    assert without_home({"run": Path("/data/run")}) == {"run": "/data/run"}


def test_a_run_that_fails_is_shown_as_failed(tmp_path: Path) -> None:
    with serve() as server:
        flags = options(tmp_path / "run", tracking__wandb="online", tracking__every_steps=1)
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        assert finish(Process("tests/spoiled.py", "weight", "3", "pretrain", *flags, **environment)).returncode == 2
    (bucket,) = server.buckets.values()
    assert bucket.exit_codes == [2]
    assert bucket.summary["ending"].startswith("loss or gradient was not finite in 5 steps in a row")


@pytest.mark.parametrize(
    ("environment", "words"), [({}, "No API key configured"), ({"WANDB_API_KEY": "short"}, "must have 40+")]
)
def test_without_a_key_the_run_is_complete_and_equal_bit_for_bit(
    finished: Path, tmp_path: Path, environment: dict[str, str], words: str
) -> None:
    run = tmp_path / "run"
    done = command("pretrain", *options(run, tracking__wandb="online"), HOME=str(tmp_path), **environment)
    assert done.returncode == 0
    assert words in done.stderr
    assert equal(weights(run), weights(finished))


def test_a_run_whose_server_never_answers_is_complete_offline(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts connections
        environment = {"WANDB_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "WANDB_API_KEY": KEY}
        done = command("pretrain", *options(run, tracking__wandb="online"), **environment)
    assert done.returncode == 0
    assert time.time() - rows(run, "end")[0]["time"] < 20
    assert equal(weights(run), weights(finished))
    assert "warning: W&B is not available, so this job is not uploaded now" in done.stderr
    assert re.findall("W&B failed|did not receive", done.stderr) == []
    assert steps_with("_step", synced(run)) == [row["steps_done"] for row in rows(run, "step")]


def test_an_interrupted_step_is_completed_by_the_next_job_and_uploads_wait_for_each_other(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")

    def upload() -> str:
        request = {"folder": str(tmp_path), "tracking": {"wandb": "offline"}, "config": {}}
        program = [sys.executable, "-m", "mae_curriculum.tracking.wandb"]
        lines = f"{json.dumps(request)}\nover\n"
        return subprocess.run(program, input=lines, capture_output=True, text=True, check=True).stderr

    def folder_count() -> int:
        return len([*tmp_path.glob("wandb/offline-run-*")])

    journal.write("start", steps_done=0)
    for steps_done in (5, 10):
        journal.write("step", steps_done=steps_done, loss=1.0, size=[8, 8], train_seconds=1.0)
    with ThreadPoolExecutor() as pool, (tmp_path / "wandb.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as if the upload of a killed job were still running
        waiting = pool.submit(upload)
        with pytest.raises(TimeoutError):
            waiting.result(4)
        assert folder_count() == 0
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert waiting.result() == ""
    assert steps_with("loss", synced(tmp_path)) == [5]
    journal.write("start", steps_done=5)
    journal.write("evaluation", steps_done=10, knn=0.5)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "torn.png").write_bytes(b"not a picture")
    journal.write("pictures", steps_done=10, files=["elsewhere/pictures/gone.png", "elsewhere/pictures/torn.png"])
    journal.write("error", reason="no memory")
    assert "warning: no pictures of step 10 at W&B: UnidentifiedImageError" in upload()
    journal.write("start", steps_done=10)
    journal.write("end", knn=0.5)
    for _ in range(2):
        upload()
    assert folder_count() == 3
    with serve() as server:
        for path in tmp_path.glob("wandb/*/*.synced"):
            path.unlink()  # by the sync above
        sync(tmp_path, server)
    (bucket,) = server.buckets.values()
    assert (steps_with("loss", bucket), steps_with("knn", bucket)) == ([5, 10], [10])


def test_an_upload_process_that_died_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {*child_processes(os.getpid())}
    close = log_to_wandb(RunFolder(tmp_path), TrackingConfig(wandb="offline"), {})
    (pid,) = {*child_processes(os.getpid())} - before
    os.kill(pid, signal.SIGKILL)
    close()
    close()
    message = "W&B did not receive all of this run (exit code -9); rerun the same command to upload the rest"
    assert caplog.messages == [message]


def test_without_wandb_a_run_that_needs_it_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mae_curriculum.tracking.wandb.find_spec", lambda _: None)
    assert main(["pretrain", *options(tmp_path / "run", tracking__wandb="offline")]) == 2
    assert "pip install wandb" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_project_name_that_wandb_would_refuse_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--tracking.project", "a/b"]) == 2
    assert "tracking.project must be 1 to 128 characters" in capsys.readouterr().err
