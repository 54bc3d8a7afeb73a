import json
import os
import signal
import time
from pathlib import Path

import pytest

from mae_curriculum.stopping import stop_on_signals
from mae_curriculum.tracking import Journal, Progress, Stopwatch


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


def test_a_stopwatch_goes_on_from_what_was_saved() -> None:
    watch = Stopwatch({"train": 5.0})
    with watch("train"):
        time.sleep(0.01)
    assert 5.01 <= watch.total("train") < 6


def test_the_journal_is_appended_to_and_its_last_row_of_a_kind_found(tmp_path: Path) -> None:
    for step in (1, 2):
        Journal(tmp_path / "journal.jsonl").write("step", step=step, name="broken \udcff name")
    Journal(tmp_path / "journal.jsonl").write("save", step=2)
    with (tmp_path / "journal.jsonl").open("a") as stream:
        stream.write('{"event": "step", "step": 3, "lo')  # a line cut by a kill
    rows = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()[:-1]]
    assert [(row["event"], row["step"]) for row in rows] == [("step", 1), ("step", 2), ("save", 2)]
    assert Journal(tmp_path / "journal.jsonl").last("step")["step"] == 2
    with pytest.raises(LookupError):
        Journal(tmp_path / "journal.jsonl").last("end")


def test_where_there_is_no_terminal_progress_is_a_line_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(total_images=100, done_images=20, shown=True)
    for images in (40, 60, 100):
        progress.update(images, "stage 1/1")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("100% stage 1/1 | ")
    assert lines[0].endswith("0:00:00 left")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_wish_to_stop_and_the_usual_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
    assert signal.getsignal(number) == before
