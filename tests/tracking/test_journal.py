import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mae_curriculum.tracking.journal import Journal
from mae_curriculum.tracking.progress import Progress
from mae_curriculum.tracking.stopwatch import Stopwatch

STEPPED = ("step", "evaluation", "save")


def test_inner_activities_stop_the_outer_clock() -> None:
    watch = Stopwatch()
    with watch("train/0"):
        time.sleep(0.02)
        with watch("wait"):
            time.sleep(0.2)
        time.sleep(0.02)
    assert 0.04 <= watch.seconds["train/0"] < 0.15
    assert watch.seconds["wait"] >= 0.2


def test_a_total_sums_the_parts_of_an_activity() -> None:
    watch = Stopwatch({"train/0": 1.0, "train/1": 2.0, "train/10": 4.0, "training": 8.0, "wait": 16.0})
    assert [watch.total(name) for name in ("train", "train/1", "wait", "save")] == [7, 2, 16, 0]


def test_a_stopwatch_continues_from_its_saved_seconds() -> None:
    watch = Stopwatch({"train": 5.0})
    with watch("train"):
        time.sleep(0.01)
    assert 5.01 <= watch.total("train") < 6


def test_rows_are_appended_and_read_back(tmp_path: Path) -> None:
    for step in (1, 2):
        Journal(tmp_path / "journal.jsonl").write("stage", steps_done=step, stage=0, name="broken \udcff name")
    Journal(tmp_path / "journal.jsonl").write("save", steps_done=2)
    with (tmp_path / "journal.jsonl").open("a") as stream:
        stream.write('{"event": "step", "steps_done": 3, "lo')  # a line cut by a kill
    rows = Journal(tmp_path / "journal.jsonl").rows()
    assert [(row["event"], row["steps_done"]) for row in rows] == [("stage", 1), ("stage", 2), ("save", 2)]


def test_steps_repeated_after_a_kill_are_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"

    def session(fingerprint: str, *steps: int) -> None:
        journal = Journal(path)
        journal.resume(fingerprint)
        journal.write("start", steps_done=steps[0], data_fingerprint=fingerprint)
        for step in steps:
            journal.write("step", steps_done=step)
            journal.write("evaluation", steps_done=10 * step)
            journal.write("save", steps_done=step)

    for fingerprint, *done in (("a", 0, 1, 2), ("a", 1, 2, 3), ("b", 0, 1)):
        session(fingerprint, *done)
    steps = {event: [row["steps_done"] for row in Journal(path).rows() if row["event"] == event] for event in STEPPED}
    assert steps == {"step": [0, 1, 2, 3, 0, 1], "evaluation": [0, 10, 20, 30, 0, 10], "save": [0, 1, 2, 1, 2, 3, 0, 1]}


def test_without_a_terminal_progress_is_a_line_at_the_start_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress(total_images=100, done_images=20, shown=True)
    for images in (40, 60, 100):  # the last one twice: the step, then its metrics
        progress.update(images, "stage 1/1")
    progress.update(100, "stage 1/1 | loss 0.5")
    assert caplog.messages == [" 40% stage 1/1", "100% stage 1/1 | loss 0.5"]


def test_a_line_left_unfinished_by_a_kill_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "step", "step": 1}\n{"event": "st')
    Journal(path).write("start", steps_done=2)
    lines = path.read_text().splitlines()
    assert lines[1] == '{"event": "st'
    assert json.loads(lines[2])["event"] == "start"


def test_lines_that_do_not_fit_on_a_full_disk_are_written_later(
    small_disk: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk("64k")
    journal = Journal(disk / "journal.jsonl")
    journal.write("start")
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        stream.write(bytes(10**6))  # as much as there is room for
    journal.write("step", steps_done=1, text="x" * 8000)
    journal.write("step", steps_done=2, text="y")
    assert "2 lines of the journal are kept for later" in caplog.text
    assert len((disk / "journal.jsonl").read_text().splitlines()) == 1
    filler.unlink()
    journal.write("end")
    assert [json.loads(line)["event"] for line in (disk / "journal.jsonl").read_text().splitlines()] == [
        "start",
        "step",
        "step",
        "end",
    ]


DAMAGED = [
    "[1]",
    "{}",
    "null",
    '{"event": ["step"], "time": 1, "steps_done": 1}',
    '{"event": "step", "time": 1}',
    '{"event": "step", "time": 1, "steps_done": "9"}',
    '{"event": "step", "time": 1, "steps_done": 9, "loss": "low"}',
    '{"event": "step", "time": 1, "steps_done": 9, "loss": NaN}',
    '{"event": "step", "time": 1, "steps_done": 9, "size": 24}',
    '{"event": "start", "time": {}, "steps_done": 0}',
    '{"event": "start", "time": 1, "steps_done": 0, "total_steps": []}',
    '{"event": "stage", "time": 1, "steps_done": 0, "stage": "first"}',
    '{"event": "stage", "time": 1, "steps_done": 0}',
    '{"event": "step", "time": null, "steps_done": 9}',
    '{"event": "step", "time": 1, "steps_done": 9, "loss": 1' + "0" * 400 + "}",
    '{"event": "step", "time": 1, "steps_done": 9, "size": ["a"]}',
    '{"event": "error", "time": 1, "steps_done": 9}',
    '{"event": "knn", "time": 1, "steps_done": 9, "checkpoint": "a", "accuracy": {"mean": "high", "std": null}}',
    '{"event": "fewshot", "time": 1, "steps_done": 9, "checkpoint": "a", "accuracy": {"1": 0.5}}',
    "[" * 100_000,
]


@pytest.mark.parametrize("line", DAMAGED, ids=lambda line: line[:40])
def test_lines_with_facts_of_a_wrong_type_are_left_out(line: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(f'{line}\n{{"event": "step", "time": 1, "steps_done": 9, "loss": null}}\n')
    assert [row["steps_done"] for row in Journal(path).rows()] == [9]
