"""What is written into a job script, and what SLURM's commands say."""

from pathlib import Path

import pytest

from mae_curriculum.config import ConfigError
from slurm.__main__ import main
from slurm.cluster import last_message, read_submission
from slurm.status import find_runs

COMMAND = ("--dry_run", "--", "mae_curriculum", "pretrain")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--name", "a\n#SBATCH --wrap=x"], "name, or the run folder's"),
        (["--partition", "a\nb"], "partition"),
        (["--account", "a\rb"], "account"),
        (["--memory", "1G\x1b[2J"], "mem"),
        (["--folder", "jobs\n#SBATCH"], "folder"),
        (["--sbatch", '{"comment": "a\\nb"}'], "additional_parameters.comment"),
        (["--sbatch", '{"a\\nb": "c"}'], "additional_parameters.a\\nb"),
    ],
)
def test_a_line_break_never_reaches_the_job_script(
    flags: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *flags, *COMMAND]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {name}: ")
    assert error.endswith("has a line break or another control character; remove it\n")
    assert error.count("\n") == 1


def test_a_search_is_one_job_or_several_segments(capsys: pytest.CaptureFixture[str]) -> None:
    search = ["--", "mae_curriculum", "search", "--config", "digits_greedy"]
    assert main(["submit", "--dry_run", "--segments", "2", *search]) == 0
    output = capsys.readouterr().out
    assert "#SBATCH --job-name=search_digits_greedy" in output
    assert "# 2 such jobs" in output


def test_a_line_break_in_the_name_of_the_run_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", *COMMAND, "--run", "runs/a\nb"]) == 2
    assert "error: name, or the run folder's: 'a\\nb' has a line break" in capsys.readouterr().err


def test_hours_follow_from_the_given_rate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--rate", "2000", *COMMAND, "--config", "vit_b16_in1k"]) == 0
    # 1600 * 1,281,167 images at 2000 a second are 284.7 hours
    assert "# 500,456 steps, 285 h at 2000 images/s at full size; all processes" in capsys.readouterr().out


def test_the_last_line_of_slurms_errors_sums_them_up() -> None:
    answer = (
        "squeue: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\n"
        "squeue: error: fetch_config: DNS SRV lookup failed\n"
        "squeue: error: _establish_config_source: failed to fetch config\n"
        "squeue: fatal: Could not establish a configuration source\n\n"
    )
    assert last_message(answer) == "fatal: Could not establish a configuration source"
    assert last_message("sbatch: error: invalid partition specified: x") == "invalid partition specified: x"
    assert last_message(" \n") == "no reason given"


def test_a_damaged_submission_is_named(tmp_path: Path) -> None:
    (tmp_path / "submission.json").write_text("[]")
    with pytest.raises(ConfigError, match="submission.json holds no facts"):
        read_submission(tmp_path)


def test_a_checkpoint_given_as_a_run_leads_to_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ConfigError, match=rf"no run in \S+weights.pt; did you mean {tmp_path}\?"):
        find_runs((tmp_path / "weights.pt",))


def test_one_odd_folder_does_not_end_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("good", "odd\x1b[31m\n"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "journal.jsonl").write_text('{"event": "start", "time": 1, "steps_done": 0}\n')
    (tmp_path / "odd\x1b[31m\n" / "submission.json").write_text("{")
    assert main(["status", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert lines[1].split()[1] == "died"
    assert lines[2].split()[:2] == [f"{tmp_path}/odd\\x1b[31m\\n", "unreadable"]
    assert f"{tmp_path}/odd\\x1b[31m\\n: ConfigError: " in output
    assert "\x1b" not in output


@pytest.mark.parametrize("reason", ["\\u001b[2J", "\\ud800"])
def test_codes_and_lone_surrogates_in_a_journal_are_spelled_out(
    reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, error = (
        f'{{"event": "{event}", "time": 1, "steps_done": 0, "reason": "{reason}"}}\n' for event in ("start", "error")
    )
    (tmp_path / "journal.jsonl").write_text(start + error)
    assert main(["status", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "failed" in output
    assert reason.replace("u001b", "x1b") in output
