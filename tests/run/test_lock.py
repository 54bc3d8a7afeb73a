import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mae_curriculum.config import ConfigError
from mae_curriculum.run import lock
from mae_curriculum.run.lock import hold

HOLD = (
    "import sys, time; from pathlib import Path; from mae_curriculum.run.lock import hold\n"
    "with hold(Path(sys.argv[1]), on_takeover=print): print('held', flush=True); time.sleep(60)"
)


def holder(path: Path) -> subprocess.Popen[str]:
    """Start another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_second_job_is_refused_while_the_first_lives_and_not_after(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    process = holder(path)
    try:
        with pytest.raises(ConfigError, match=f"is in use by process {process.pid} on "), hold(path, on_takeover=print):
            pass
    finally:
        end(process)
    dead: list[dict[str, Any]] = []
    with hold(path, on_takeover=dead.append):
        assert dead[0]["pid"] == process.pid
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_process_that_reuses_the_id_of_a_dead_one_is_not_taken_for_it(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    process = holder(path)
    end(process)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": os.getpid()}))
    with hold(path, on_takeover=lambda _: None):
        pass


def test_a_holder_on_another_machine_is_dead_without_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE_SECONDS", 2.0)
    path = tmp_path / "lock.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "id": "x", "beat": 7}))
    start = time.monotonic()
    with hold(path, on_takeover=lambda _: None):
        assert time.monotonic() - start >= 2


def test_a_holder_on_another_machine_with_heartbeats_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.2)
    path = tmp_path / "lock.json"
    with hold(path, on_takeover=print):
        monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
        with pytest.raises(ConfigError, match="is in use by process"), hold(path, on_takeover=print):
            pass


def test_a_job_whose_lock_was_taken_over_gets_an_error_and_leaves_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    with hold(path, on_takeover=print) as check:
        check()
        path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "id": "x"}))
        with pytest.raises(ConfigError, match="another job has taken over this run"):
            check()
    assert json.loads(path.read_text())["id"] == "x"


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"id"', "null", '"text"'])
def test_a_lock_that_cannot_be_read_for_a_moment_is_not_taken_for_another_jobs(content: str, tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    with hold(path, on_takeover=print) as check:
        own = path.read_text()
        path.write_text(content)
        check()
        path.unlink()
        check()
        path.write_text(own)
    assert not path.exists()


def test_a_lock_comes_back_after_its_folder_was_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    run = tmp_path / "run"
    run.mkdir()
    with hold(run / "lock.json", on_takeover=print) as check:
        run.rename(tmp_path / "away")
        time.sleep(0.3)
        check()
        (tmp_path / "away" / "lock.json").unlink()
        (tmp_path / "away").rename(run)
        time.sleep(0.3)
        assert json.loads((run / "lock.json").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("pid", ["12", None, [1], 10**30])
def test_a_lock_with_an_odd_process_is_taken_over_once_it_is_silent(
    pid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE_SECONDS", 1.0)
    path = tmp_path / "lock.json"
    with hold(path, on_takeover=print):
        content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"pid": pid}))
    with hold(path, on_takeover=lambda _: None):
        assert json.loads(path.read_text())["pid"] == os.getpid()
