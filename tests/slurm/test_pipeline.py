"""A pretraining and its evaluations: on this machine, and as dependent jobs of a real cluster."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mae_curriculum.config import ConfigError, load_file
from mae_curriculum.files import read_json, write_json
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.tracking.journal import Journal
from slurm.__main__ import main
from slurm.pipeline import keep_complete
from slurm.pipeline_config import PipelineConfig, PipelineRun, expand_runs
from slurm.result_table import row_name, unfinished_state
from slurm.study import accuracies_of
from tests.processes import ROOT, Process
from tests.runs import equal, options, rows, weights
from tests.slurm_cluster import Cluster

PRETRAIN = {"command": ["mae_curriculum", "pretrain"]}


def write_pipeline(place: Path, **changes: Any) -> Path:
    """Write the file of a pipeline that takes seconds."""
    content = {
        "folder": str(place / "study"),
        "cluster": {"time": "5"},
        "pretrain": {
            "command": ["mae_curriculum", "pretrain", *options(epochs=3, saving__keep=1)],
            "vary": {"seed": [0, 1]},
        },
        "evaluate": [
            {"command": ["mae_curriculum", "knn"], "at": [1, 2]},
            {"command": ["finetune", "fewshot", "--shots", "[1, 5]", "--seeds", "2"], "cluster": {"nodes": 1}},
        ],
        **changes,
    }
    path = place / "pipeline.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def cells(table: str) -> dict[str, str]:
    """Read the first row of the table by its header; columns are at least two spaces apart."""
    header, row = ([cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()[-2:])
    return dict(zip(header, row, strict=True))


def test_a_local_pipeline_runs_only_what_has_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_pipeline(tmp_path, results=str(tmp_path / "results")))
    assert main(["pipeline", file, "--local"]) == 0
    table = cells(capsys.readouterr().out)
    assert list(table) == ["variant", "pretrain", "knn@1", "knn@2", "knn", "fewshot", "FLOPs", "training time"]
    assert table["FLOPs"] == "9.44e09"
    assert re.fullmatch(r"\d+\.\d+ s", table["training time"])
    assert all("±" in table[name] for name in ("knn@1", "knn@2", "knn", "fewshot"))
    study = tmp_path / "study"
    accuracies = [read_json(study / f"seed={seed}" / "knn" / "results.json")["accuracy"]["mean"] for seed in (0, 1)]
    assert table["knn"].startswith(f"{100 * sum(accuracies) / 2:.1f} ± ")
    measured = [row["checkpoint"] for row in rows(study / "seed=0" / "pretrain", "knn")]
    assert measured == [str(study / "seed=0" / "pretrain") + point for point in ("@1", "@2", "")]
    origins = [read_json(study / "seed=0" / name / "results.json")["origin"] for name in ("knn@1", "knn@2", "knn")]
    assert len({*origins}) == 3
    published = read_json(tmp_path / "results" / "study.json")
    assert [run["accuracies"]["knn"] for run in published["runs"]] == accuracies
    assert list(published["runs"][0]["accuracies"]) == ["knn@1", "knn@2", "knn", "fewshot 1", "fewshot 5"]
    assert {file.name for file in (tmp_path / "results").iterdir()} == {"study.json", "study.md", "study.png"}

    (study / "seed=1" / "knn@2" / "results.json").unlink()
    assert main(["pipeline", file, "--local"]) == 0
    output = capsys.readouterr().out
    assert output.count(": mae_curriculum knn") == 1
    assert ": mae_curriculum pretrain" not in output
    assert cells(output) == table

    longer = {"command": ["mae_curriculum", "pretrain", *options(epochs=4, saving__keep=1)], "vary": {"seed": [0, 1]}}
    assert main(["pipeline", str(write_pipeline(tmp_path, pretrain=longer)), "--local"]) == 2
    assert "seed=0/pretrain has finished with other settings (epochs: 3 -> 4); restore" in capsys.readouterr().err
    near = [{"command": ["mae_curriculum", "knn", "--knn.neighbors", "3"], "at": [1, 2]}]
    assert main(["pipeline", str(write_pipeline(tmp_path, evaluate=near)), "--local"]) == 2
    assert "seed=0/knn@1 has finished with other settings (knn.neighbors: 20 -> 3)" in capsys.readouterr().err
    shutil.rmtree(study / "seed=0" / "pretrain")
    assert main(["pipeline", str(write_pipeline(tmp_path)), "--local"]) == 2
    assert "seed=0/knn@1 is of a pretraining that is no longer in" in capsys.readouterr().err


def test_a_local_pipeline_ends_at_the_first_command_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = {"command": ["finetune", "fewshot", "--shots", "[1000]"]}
    pretrain = {"command": ["mae_curriculum", "pretrain", *options(epochs=1)], "vary": {"seed": [0, 1]}}
    file = write_pipeline(tmp_path, pretrain=pretrain, evaluate=[failing, {"command": ["mae_curriculum", "knn"]}])
    assert main(["pipeline", str(file), "--local"]) == 2
    output = capsys.readouterr()
    assert "only" in output.err
    assert cells(output.out)["knn"] == "2 to do"


@pytest.mark.slow
def test_local_pretrainings_side_by_side_are_stopped_together_and_resumed(tmp_path: Path) -> None:
    pretrain = {
        "command": ["mae_curriculum", "pretrain", *options(epochs=1000, tracking__every_steps=1)],
        "vary": {"seed": [0, 1, 2]},
    }
    file = write_pipeline(tmp_path, pretrain=pretrain, evaluate=[], at_once=2)
    process = Process("slurm", "pipeline", file, "--local")
    folders = [tmp_path / "study" / f"seed={seed}" / "pretrain" for seed in range(3)]
    while not all((folder / "journal.jsonl").exists() and rows(folder, "step") for folder in folders[:2]):
        time.sleep(0.05)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 75
    assert [rows(folder, "stop")[-1]["reason"] for folder in folders[:2]] == ["SIGTERM", "SIGTERM"]
    assert not folders[2].exists()
    assert "seed=1/pretrain: mae_curriculum pretrain, output in" in output
    assert "SIGTERM" in (folders[1].parent / "pretrain.log").read_text()


def test_a_local_command_that_fails_beside_others_is_told_with_its_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["mae_curriculum", "pretrain", "--data.source", str(tmp_path / "nothing")]
    file = write_pipeline(tmp_path, pretrain={"command": command}, evaluate=[], at_once=2)
    assert main(["pipeline", str(file), "--local"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/study/pretrain: exit code 2: error: data.source" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate": [{"command": ["mae_curriculum", "cook"]}]}, "has no command 'cook'"),
        ({"evaluate": [{"command": ["mae_curriculum", "knn", "--knn.neighbuors", "3"]}]}, "neighbors"),
        ({"evaluate": [{"command": ["mae_curriculum", "knn"]}] * 2}, "two tasks are called 'knn'"),
        ({"evaluate": [{"command": ["mae_curriculum", "knn"], "at": [0]}]}, "at least 1, got 0"),
        ({"pretrain": {**PRETRAIN, "vary": {"seed": []}}}, "at least one value"),
        ({"pretrain": {**PRETRAIN, "vary": {"sead": [1]}}}, "did you mean 'seed'"),
        ({"pretrain": {**PRETRAIN, "vary": {"seed": [1, 1]}}}, "share the folder"),
        ({"pretrain": {**PRETRAIN, "vary": {"seed": [1]}, "variants": {"a": {"seed": 2}}}}, "variants.a: seed is in"),
        ({"at_once": 0}, "at_once must be at least 1"),
        ({"evaluate": [{"command": ["mae_curriculum", "knn"], "at": [4]}]}, "4 is beyond the 3 epochs"),
        ({"evaluate": [{"command": ["mae_curriculum", "knn"], "cluster": {"nodse": 1}}]}, "nodse"),
        ({"evaluate": [{"command": ["mae_curriculum", "knn"], "name": "a/b"}]}, "got 'a/b'"),
        ({"cluster": {"nodse": 2}}, "nodse"),
    ],
)
def test_a_mistake_is_reported_before_anything_starts(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pipeline", str(write_pipeline(tmp_path, **changes)), "--local"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "study").exists()


def test_variants_are_combined_with_the_values_and_compared_by_name(tmp_path: Path) -> None:
    variants = {"plain": {"curriculum": "none"}, "longer": {"curriculum": "none", "epochs": 8}}
    pretrain = {**PRETRAIN, "vary": {"seed": [0, 1]}, "variants": variants}
    file = write_pipeline(tmp_path, pretrain=pretrain, evaluate=[], baseline={"variant": "plain"})
    (runs,) = expand_runs(load_file(PipelineConfig, file))
    assert [run.folder.parent.name for run in runs] == [
        "seed=0,plain",
        "seed=0,longer",
        "seed=1,plain",
        "seed=1,longer",
    ]
    assert [(run.settings.seed, run.settings.epochs) for run in runs] == [(0, None), (0, 8), (1, None), (1, 8)]
    assert [row_name(run) for run in runs] == ["plain", "longer"] * 2


def test_results_are_of_the_pretrainings_whose_evaluations_have_finished(tmp_path: Path) -> None:
    file = write_pipeline(tmp_path, pretrain={**PRETRAIN, "vary": {"seed": [0, 1]}, "variants": {"plain": {}}})
    groups = expand_runs(load_file(PipelineConfig, file))
    for run in (*(group[1] for group in groups), groups[0][0]):
        run.folder.mkdir(parents=True, exist_ok=True)
        run.result.touch()
    assert keep_complete(groups) == [[group[1]] for group in groups]


def test_a_finished_evaluation_of_other_seeds_is_refused(tmp_path: Path) -> None:
    def first_runs(seeds: int) -> list[PipelineRun]:
        evaluate = [{"command": ["finetune", "finetune", "--seeds", str(seeds)]}]
        file = write_pipeline(tmp_path, pretrain=PRETRAIN, evaluate=evaluate)
        return [group[0] for group in expand_runs(load_file(PipelineConfig, file))]

    for run in first_runs(1):
        run.keep_settings()
        run.folder.mkdir()
        run.result.touch()
    first_runs(1)
    with pytest.raises(ConfigError, match=r"finetune has finished with other settings \(seeds: 1 -> 3\)"):
        first_runs(3)


@pytest.mark.parametrize("blocks", [[], [0.3, 0.6, 0.5]])
def test_an_evaluation_of_all_blocks_has_the_last_and_the_best(blocks: list[float], tmp_path: Path) -> None:
    (run,) = expand_runs(load_file(PipelineConfig, write_pipeline(tmp_path, pretrain=PRETRAIN)))[-1]
    run.folder.mkdir(parents=True)
    figures = {"accuracy": {"5": {"mean": 0.5}}, "by_block": [{"5": {"mean": block}} for block in blocks]}
    write_json(run.result, figures)
    assert accuracies_of(run) == {"fewshot 5": 0.5} | ({"fewshot 5, best block": 0.6} if blocks else {})


@pytest.mark.parametrize("variable", ["PATH", "SLURM_CONF"])
def test_a_dry_run_without_slurm_or_its_answer_prints_commands_and_scripts(
    variable: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "/nonexistent")
    assert main(["pipeline", str(write_pipeline(tmp_path, at_once=1)), "--dry_run"]) == 0
    output = capsys.readouterr().out
    study = tmp_path / "study"
    pretrain, *evaluations = output.split("would submit ")[1:]
    assert pretrain.startswith("pretrain: seed=0, seed=1\n  python -m mae_curriculum pretrain ")
    assert f"--run {study}/seed=1/pretrain --seed=1 --saving.keep_every_epochs 1\n" in pretrain
    assert "#SBATCH --array=0-1%1\n" in pretrain
    assert "dependency" not in pretrain
    assert [text.partition(":")[0] for text in evaluations] == ["knn@1", "knn@2", "knn", "fewshot"]
    assert all("#SBATCH --dependency=aftercorr:ID-OF-pretrain\n" in text for text in evaluations)
    assert f"--run {study}/seed=0/knn@2 --checkpoint {study}/seed=0/pretrain@2\n" in evaluations[1]
    assert cells(output)["fewshot"] == "2 to do"
    assert not study.exists()


def test_a_dry_run_of_single_jobs_names_what_they_wait_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain = {"command": ["mae_curriculum", "pretrain", *options(epochs=3)], "name": "first_try"}
    file = write_pipeline(tmp_path, pretrain=pretrain, evaluate=[{"command": ["mae_curriculum", "knn"]}])
    assert main(["pipeline", str(file), "--dry_run"]) == 0
    output = capsys.readouterr().out
    assert "would submit knn: once\n" in output
    assert "#SBATCH --dependency=afterok:ID-OF-first_try\n" in output
    assert "--array" not in output


def test_a_dry_run_here_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", str(write_pipeline(tmp_path)), "--local", "--dry_run"]) == 2
    assert capsys.readouterr().err == "error: local: the commands run here, at once; leave out --dry_run\n"


def test_arrays_wait_for_the_pretrainings_that_they_evaluate_and_resume_alone(cluster: Cluster, tmp_path: Path) -> None:
    task = {"command": ["mae_curriculum", "pretrain", *options(epochs=6)], "vary": {"seed": [0, 1]}}
    whole = tmp_path / "whole"
    knn = {"command": ["mae_curriculum", "knn"], "at": [3]}
    file, study = write_pipeline(tmp_path, pretrain=task, evaluate=[knn]), tmp_path / "study"

    def submit(*flags: str) -> str:
        words = [sys.executable, "-m", "slurm", "pipeline", str(file), *flags]
        environment = {**cluster.environment, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "would submit knn@3: seed=0, seed=1" in submit("--dry_run")
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
    flags = options(whole, epochs=6)
    undisturbed = Process("mae_curriculum", "pretrain", *flags)  # now: the cluster waits before a requeue
    wait_for(lambda: all((run / "results.json").exists() for run in map(Path, numbers) if run.name != "pretrain"))
    starts = [len(rows(study / f"seed={seed}" / "pretrain", "start")) for seed in (0, 1)]
    assert starts == [2, 1]
    assert rows(journal.parent, "stop")[0]["reason"] == "SIGUSR1"
    first = rows(journal.parent, "start")[0]
    assert (first["array_task"], first["nodes"][:4]) == (f"{array}_0", "node")
    assert all("±" in cell for name, cell in cells(submit()).items() if "knn" in name)
    assert all(read_json(Path(run) / "submission.json")["job"] == job for run, job in numbers.items())

    undisturbed.communicate()
    assert undisturbed.returncode == 0
    assert equal(weights(journal.parent), weights(whole))


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_run_with_several_seeds_has_the_state_of_the_newest_unfinished_one(tmp_path: Path) -> None:
    assert unfinished_state(tmp_path, {}) == "to do"
    for seed, ending in ((0, "end"), (1, "stop")):
        folder = RunFolder(tmp_path / f"seed-{seed}")
        folder.path.mkdir()
        journal = Journal(folder.journal)
        journal.write("start", steps_done=0, total_steps=9)
        journal.write(ending, steps_done=9, reason="SIGTERM")
    assert unfinished_state(tmp_path, {}) == "stopped"
    write_json(tmp_path / "seed-0" / "summary.json", {})
    os.utime(tmp_path / "seed-1" / "journal.jsonl", (0, 0))
    assert unfinished_state(tmp_path, {}) == "stopped"
