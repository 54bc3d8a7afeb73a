"""A pretraining and its evaluations: here, and as dependent jobs of a real cluster."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mae_curriculum.files import read_json, write_json
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.tracking.journal import Journal
from slurm.__main__ import main
from slurm.result_table import stand
from tests.runs import ROOT, command, equal, options, rows, weights
from tests.slurm_cluster import Cluster


def write(place: Path, **changes: Any) -> Path:
    """Write a pipeline of seconds."""
    content = {
        "folder": str(place / "study"),
        "cluster": {"time": "5"},
        "pretrain": {
            "command": ["mae_curriculum", "pretrain", *options(epochs=6, saving__keep=1)],
            "vary": {"seed": [0, 1]},
        },
        "evaluate": [
            {"command": ["mae_curriculum", "knn"], "at": [2, 4]},
            {"command": ["finetune", "fewshot", "--shots", "[1, 5]", "--seeds", "2"], "cluster": {"nodes": 1}},
        ],
        **changes,
    }
    path = place / "pipeline.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def cells(table: str) -> dict[str, str]:
    """Read the table's first row of results by its header; columns are two spaces apart at least."""
    header, row = ([cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()[-2:])
    return dict(zip(header, row, strict=True))


def test_a_pipeline_runs_here_and_does_only_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write(tmp_path))
    assert main(["pipeline", file, "--local"]) == 0
    table = cells(capsys.readouterr().out)
    assert list(table) == ["variant", "pretrain", "knn@2", "knn@4", "knn", "fewshot"]
    assert all("±" in table[name] for name in ("knn@2", "knn@4", "knn", "fewshot"))
    study = tmp_path / "study"
    accuracies = [read_json(study / f"seed={seed}" / "knn" / "results.json")["accuracy"]["mean"] for seed in (0, 1)]
    assert table["knn"].startswith(f"{100 * sum(accuracies) / 2:.1f} ± ")
    measured = [row["checkpoint"] for row in rows(study / "seed=0" / "pretrain", "knn")]
    assert measured == [str(study / "seed=0" / "pretrain") + point for point in ("@2", "@4", "")]
    origins = [read_json(study / "seed=0" / name / "results.json")["origin"] for name in ("knn@2", "knn@4", "knn")]
    assert len({*origins}) == 3

    (study / "seed=1" / "knn@4" / "results.json").unlink()
    assert main(["pipeline", file, "--local"]) == 0
    told = capsys.readouterr().out
    assert told.count(": mae_curriculum knn") == 1
    assert ": mae_curriculum pretrain" not in told
    assert cells(told) == table


def test_a_pipeline_ends_where_a_command_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = {"command": ["finetune", "fewshot", "--shots", "[1000]"]}
    file = write(tmp_path, evaluate=[late, {"command": ["mae_curriculum", "knn"]}])
    assert main(["pipeline", str(file), "--local"]) == 2
    told = capsys.readouterr()
    assert "only" in told.err
    assert cells(told.out)["knn"] == "2 to do"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate": [{"command": ["mae_curriculum", "cook"]}]}, "has no verb 'cook'"),
        ({"evaluate": [{"command": ["mae_curriculum", "knn", "--knn.neighbuors", "3"]}]}, "neighbors"),
        ({"evaluate": [{"command": ["mae_curriculum", "knn"]}] * 2}, "two tasks are called 'knn'"),
        ({"evaluate": [{"command": ["mae_curriculum", "knn"], "at": [0]}]}, "at least 1, got 0"),
        ({"pretrain": {"command": ["mae_curriculum", "pretrain"], "vary": {"seed": []}}}, "at least one value"),
        ({"pretrain": {"command": ["mae_curriculum", "pretrain"], "vary": {"sead": [1]}}}, "did you mean 'seed'"),
        ({"pretrain": {"command": ["mae_curriculum", "pretrain"], "vary": {"seed": [1, 1]}}}, "share the folder"),
        ({"at_once": 0}, "at_once must be at least 1"),
        ({"evaluate": [{"command": ["mae_curriculum", "knn"], "at": [7]}]}, "7 is beyond the 6 epochs"),
        ({"evaluate": [{"command": ["mae_curriculum", "knn"], "cluster": {"nodse": 1}}]}, "nodse"),
        ({"evaluate": [{"command": ["mae_curriculum", "knn"], "name": "a/b"}]}, "got 'a/b'"),
        ({"cluster": {"nodse": 2}}, "nodse"),
    ],
)
def test_a_mistake_is_told_before_anything_begins(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pipeline", str(write(tmp_path, **changes)), "--local"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "study").exists()


def test_arrays_wait_for_the_pretrainings_they_evaluate_and_go_on_alone(cluster: Cluster, tmp_path: Path) -> None:
    task = {"command": ["mae_curriculum", "pretrain", *options(epochs=20)], "vary": {"seed": [0, 1]}}
    knn = {"command": ["mae_curriculum", "knn"], "at": [10]}
    file, study = write(tmp_path, pretrain=task, evaluate=[knn]), tmp_path / "study"

    def submit(*flags: str) -> str:
        words = [sys.executable, "-m", "slurm", "pipeline", str(file), *flags]
        environment = {**cluster.environment, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "would submit knn@10: seed=0, seed=1" in submit("--dry_run")
    assert not study.exists()
    assert "pending" in cells(submit())["knn"]
    numbers = {str(path.parent): read_json(path)["job"] for path in study.rglob("submission.json")}
    assert len(numbers) == 2 * 3
    array = numbers[f"{study}/seed=0/pretrain"].partition("_")[0]
    dependency = cluster.ask("squeue", "-h", "-r", "-j", numbers[f"{study}/seed=1/knn"], "-o", "%E")
    assert dependency.startswith((f"aftercorr:{array}", f"afterok:{array}_1"))

    journal = study / "seed=0" / "pretrain" / "journal.jsonl"
    wait_for(lambda: journal.exists() and rows(journal.parent, "step") != [])
    cluster.ask("scancel", "--signal=USR1", f"{array}_0")
    wait_for(lambda: all((run / "results.json").exists() for run in map(Path, numbers) if run.name != "pretrain"))
    starts = [len(rows(study / f"seed={seed}" / "pretrain", "start")) for seed in (0, 1)]
    assert starts == [2, 1]
    assert rows(journal.parent, "stop")[0]["reason"] == "SIGUSR1"
    begun = rows(journal.parent, "start")[0]
    assert (begun["array_task"], begun["nodes"][:4]) == (f"{array}_0", "node")
    assert all("±" in cell for name, cell in cells(submit()).items() if name not in ("variant", "pretrain"))
    assert all(read_json(Path(run) / "submission.json")["job"] == job for run, job in numbers.items())

    assert command("pretrain", *options(tmp_path / "whole", epochs=20)).returncode == 0
    assert equal(weights(journal.parent), weights(tmp_path / "whole"))


def wait_for(fact: Callable[[], bool], seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < until
        time.sleep(0.3)


def test_a_run_of_several_seeds_stands_as_the_newest_that_is_not_done(tmp_path: Path) -> None:
    assert stand(tmp_path, {}) == "to do"
    for seed, ending in ((0, "end"), (1, "stop")):
        folder = RunFolder(tmp_path / f"seed-{seed}")
        folder.path.mkdir()
        journal = Journal(folder.journal)
        journal.write("start", steps_done=0, total_steps=9)
        journal.write(ending, steps_done=9, reason="SIGTERM")
    assert stand(tmp_path, {}) == "stopped"
    write_json(tmp_path / "seed-0" / "summary.json", {})
    os.utime(tmp_path / "seed-1" / "journal.jsonl", (0, 0))
    assert stand(tmp_path, {}) == "stopped"
