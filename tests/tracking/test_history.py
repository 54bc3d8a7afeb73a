import json
from pathlib import Path
from typing import Any

import pytest

from mae_curriculum.files import write_json
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.tracking.history import History, Row, read_history, run_state

START = {"event": "start", "time": 100, "steps_done": 0, "data_fingerprint": "a"}


def history_of(folder: Path, *rows: dict[str, Any], **options: Any) -> History:
    (folder / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    history = read_history(folder / "journal.jsonl", **options)
    assert history is not None
    return history


def steps(*numbers: int) -> list[dict[str, Any]]:
    return [{"event": "step", "time": 100 + number, "steps_done": number} for number in numbers]


def test_a_journal_without_a_start_has_no_history(tmp_path: Path) -> None:
    assert read_history(tmp_path / "journal.jsonl") is None
    (tmp_path / "journal.jsonl").write_text('{"event": "lock_taken_over", "time": 1}\n{"event": "sta')
    assert read_history(tmp_path / "journal.jsonl") is None


def test_of_consecutive_steps_the_newest_is_kept_but_each_is_passed_on(tmp_path: Path) -> None:
    seen: list[Row] = []
    save = {"event": "save", "time": 103, "steps_done": 3}
    history = history_of(tmp_path, START, *steps(1, 2, 3), save, *steps(4, 5), on_step=seen.append)
    assert [row["steps_done"] for row in seen] == [1, 2, 3, 4, 5]
    assert [row["steps_done"] for row in history.rows("step")] == [3, 5]
    newest = history.newest("step")
    assert newest is not None
    assert newest["steps_done"] == 5
    assert history.newest("evaluation") is None


def test_a_killed_session_loses_what_it_did_after_its_last_save(tmp_path: Path) -> None:
    killed = [START, *steps(10), {"event": "save", "time": 111, "steps_done": 10}, *steps(30)]
    takeover = {"event": "lock_taken_over", "time": 190, "last_beat": 135}
    history = history_of(tmp_path, *killed, takeover, {**START, "time": 200, "steps_done": 10}, *steps(120))
    assert [session.ending for session in history.sessions] == ["killed", "killed"]
    assert (history.lost_seconds, history.away_seconds) == (135 - 111, 200 - 135)
    assert history.sessions[0].last_sign == 135
    assert history.last.last_sign == 220


def test_a_session_that_was_stopped_loses_nothing(tmp_path: Path) -> None:
    stop = {"event": "stop", "time": 121, "steps_done": 20, "reason": "SIGTERM"}
    history = history_of(tmp_path, START, *steps(20), stop, {**START, "time": 151, "steps_done": 20})
    assert history.sessions[0].ending == "SIGTERM"
    assert (history.lost_seconds, history.away_seconds) == (0, 30)


def test_the_heartbeat_of_a_job_killed_before_its_start_is_not_that_of_the_session_before(tmp_path: Path) -> None:
    stop = {"event": "stop", "time": 121, "steps_done": 20, "reason": "SIGTERM"}
    takeover = {"event": "lock_taken_over", "time": 190, "last_beat": 180}
    history = history_of(tmp_path, START, stop, takeover, {**START, "time": 200, "steps_done": 20})
    assert history.sessions[0].last_sign == 121


def test_a_restart_with_other_data_is_another_run(tmp_path: Path) -> None:
    resets: list[None] = []
    result = {"event": "knn", "time": 110, "checkpoint": "runs/x"}
    other = {**START, "time": 200, "data_fingerprint": "b"}
    history = history_of(tmp_path, START, *steps(5), result, other, on_reset=lambda: resets.append(None))
    assert [session.start["time"] for session in history.sessions] == [200]
    assert history.results == []
    assert len(resets) == 1


@pytest.mark.parametrize(
    ("event", "state"), [("error", "failed"), ("stop", "stopped"), ("save", "died"), ("summary", "finished")]
)
def test_the_state_of_a_run_follows_from_its_summary_and_its_last_session(
    tmp_path: Path, event: str, state: str
) -> None:
    history = history_of(tmp_path, START, {"event": event, "time": 120, "steps_done": 5, "reason": "why"})
    if event == "summary":
        write_json(tmp_path / "summary.json", {})
    assert run_state(RunFolder(tmp_path), history) == state


def test_a_run_with_a_fresh_lock_is_running(tmp_path: Path) -> None:
    history = history_of(tmp_path, START)
    write_json(tmp_path / "lock.json", {"pid": 1, "host": "here"})
    assert run_state(RunFolder(tmp_path), history) == "running"
