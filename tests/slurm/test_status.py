"""The table of `status`, and the history of a run that it is read from."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from mae_curriculum import __main__ as pretraining
from mae_curriculum.files import write_json
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.tracking.history import read_history
from mae_curriculum.tracking.journal import Journal
from slurm.__main__ import main
from slurm.status import state_and_error
from tests.processes import Process
from tests.runs import options, picture_folder, pictures, rows, stop_midway


def table(capsys: pytest.CaptureFixture[str], *places: Path) -> tuple[dict[str, list[str]], str]:
    """Run `status`; returns the cells of each run, and the whole output."""
    capsys.readouterr()
    assert main(["status", *map(str, places)]) == 0
    output = capsys.readouterr().out
    return {cells[0].rpartition("/")[2]: cells[1:] for cells in map(str.split, output.splitlines()[1:])}, output


def test_status_distinguishes_finished_stopped_failed_died_and_running(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_midway(tmp_path / "stopped", "pretrain", *options(tmp_path / "stopped", epochs=40))

    shrinking = picture_folder(tmp_path / "images", 2, 99)
    diverged = options(tmp_path / "failed", **pictures(shrinking), optim__base_lr=1e30, optim__warmup=0.0)
    assert pretraining.main(["pretrain", *diverged]) == 2

    died, alive = (
        Process("mae_curriculum", "pretrain", *options(tmp_path / name, epochs=400)) for name in ("died", "alive")
    )
    for name in ("died", "alive"):
        while not (tmp_path / name / "journal.jsonl").exists() or not rows(tmp_path / name, "step"):
            time.sleep(0.05)
    os.killpg(died.pid, signal.SIGKILL)
    died.communicate()
    os.utime(tmp_path / "died" / "lock.json", (0, 0))  # as if half a minute passed without a heartbeat
    cells, output = table(capsys, finished, tmp_path)
    os.killpg(alive.pid, signal.SIGKILL)
    alive.communicate()

    assert {name: cells[name][0] for name in ("finished", "stopped", "failed", "died", "alive")} == {
        "finished": "finished",
        "stopped": "stopped",
        "failed": "failed",
        "died": "died",
        "alive": "running",
    }
    assert cells["finished"][1:4] == ["3/3", "100.0%", "-"]
    assert float(cells["alive"][4]) > 0
    assert "failed: loss or gradient was not finite in 5 steps in a row" in output
    assert "died: no error message (log: " in output


def test_history_counts_lost_work_and_time_between_jobs(tmp_path: Path) -> None:
    events = [
        {"event": "start", "time": 100, "steps_done": 0, "total_steps": 90},
        {"event": "step", "time": 110, "steps_done": 20},
        {"event": "save", "time": 111, "steps_done": 20},
        {"event": "step", "time": 120, "steps_done": 40},
        {"event": "lock_taken_over", "time": 180, "last_beat": 125},
        {"event": "error", "time": 190, "reason": "no images"},
        {"event": "damaged_checkpoint", "time": 199, "name": "step-00000040"},
        {"event": "start", "time": 200, "steps_done": 20, "total_steps": 90},
        {"event": "step", "time": 220, "steps_done": 60},
        {"event": "save", "time": 221, "steps_done": 60},
        {"event": "stop", "time": 222, "steps_done": 60},
        {"event": "error", "time": 240, "reason": "no images"},
        {"event": "knn", "time": 250, "checkpoint": "here"},
        {"event": "start", "time": 300, "steps_done": 60, "total_steps": 90},
    ]
    path = tmp_path / "journal.jsonl"
    lines = [*map(json.dumps, events), '{"event": "st', "17"]
    path.write_text("\n".join(lines))
    history = read_history(path)
    assert history is not None
    assert history.lost_seconds == (125 - 111) + (222 - 222)
    assert history.away_seconds == (200 - 125) + (300 - 222)
    assert [row["event"] for row in history.results] == ["knn"]
    assert len(list(Journal(path).rows())) == len(events)


def test_the_state_of_a_chain_is_that_of_its_next_segment_until_the_run_has_finished(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_json(tmp_path / "submission.json", {"job": "11,12,13", "log": "a.out"})
    journal = Journal(folder.journal)
    journal.write("start", steps_done=0, job="11")
    journal.write("stop", steps_done=5, reason="time limit")
    queue = {"12": "pending (Priority)", "13": "pending (Dependency)"}
    assert state_and_error(folder, read_history(folder.journal), queue) == ("pending (Priority)", None)
    write_json(folder.summary, {})
    assert state_and_error(folder, read_history(folder.journal), queue) == ("finished", None)


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert f"no run in {tmp_path}" in capsys.readouterr().err
