"""Which runs a report is about, and what they are called."""

import json
import logging
from pathlib import Path

import pytest

from mae_curriculum.__main__ import main
from mae_curriculum.config import ConfigError
from mae_curriculum.report.runs import read_runs
from tests.report.test_html import write_run


def test_the_folder_of_a_pipeline_stands_for_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    for name in ("seed=0/pretrain", "seed=1/pretrain", "seed=1/finetune"):
        write_run(study / name)
    (study / "seed=1" / "knn").mkdir()  # an evaluation without a journal
    (study / "jobs").mkdir()
    assert [run.name for run in read_runs([study])] == ["seed=0/pretrain", "finetune", "seed=1/pretrain"]
    assert main(["report", str(study)]) == 0
    assert capsys.readouterr().out.endswith("runs: 3\n")
    assert "seed=1/pretrain" in (study / "report.html").read_text()


def test_one_odd_folder_is_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = write_run(tmp_path / "good")
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "journal.jsonl").write_text("[]\n")
    with caplog.at_level(logging.WARNING):
        assert [run.name for run in read_runs([odd, good, tmp_path / "none"])] == ["good"]
    assert caplog.messages == [
        f"left out: {odd}: this run was never started; its journal has no start",
        f"left out: no run in {tmp_path}/none, which does not exist",
    ]
    with pytest.raises(ConfigError, match="odd: this run was never started"):
        read_runs([odd])


def test_a_baseline_that_cannot_be_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(write_run(tmp_path / "run"))
    assert main(["report", run, "--baseline", str(tmp_path / "none")]) == 2
    assert f"baseline: {tmp_path}/none is not a run that can be read" in capsys.readouterr().err


def test_lone_surrogates_and_codes_do_not_end_report_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "a\x1b[31m\udcff", flops=3)
    rows = (run / "journal.jsonl").read_text().splitlines()
    start = json.loads(rows[0]) | {"device": "\ud800\x1b", "host": "\ud800"}
    (run / "journal.jsonl").write_text("\n".join([json.dumps(start), *rows[1:], ""]))
    (run / "config.yaml").write_text('seed: "\\ud800"\n')
    assert main(["report", str(run), "--out", str(tmp_path / "a.html")]) == 0
    assert main(["plot", str(run), "--out", str(tmp_path / "a.png")]) == 0
    assert main(["plot", str(run), "--out", str(run / "loss.png")]) == 0
    output = capsys.readouterr().out
    assert output.endswith("/a\\x1b[31m\\udcff/loss.png\n")
    assert "\x1b" not in output
    assert "a\\x1b[31m\\udcff" in (tmp_path / "a.html").read_text()


def test_a_run_without_losses_is_left_out_of_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, empty = write_run(tmp_path / "good", flops=3), write_run(tmp_path / "empty", loss=None, flops=3)
    assert main(["plot", str(empty), str(good), "--out", str(tmp_path / "a.png")]) == 0
    assert capsys.readouterr().err == f"warning: left out: {empty} has logged no loss yet\n"


def test_the_chart_of_the_loss_says_where_it_jumps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert "It jumps where the image size changes" in (run / "report.html").read_text()
