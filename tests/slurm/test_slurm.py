"""Jobs on a real SLURM cluster of two nodes: preempted, out of time, on a node that dies; and what is refused."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mae_curriculum.run.checkpoint import steps_of
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.version import code_version
from slurm.__main__ import main
from tests.runs import ROOT, equal, options, rows, torchrun, weights
from tests.slurm_cluster import Cluster


def submit(cluster: Cluster, folder: Path, *arguments: object) -> str:
    """Submit a job from the command line; returns its number."""
    done = subprocess.run(
        [sys.executable, "-m", "slurm", "submit", "--folder", str(folder), *map(str, arguments)],
        cwd=ROOT,
        env={**cluster.environment, "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[1].rstrip(":")


def wait_for(fact: Callable[[], bool], folder: Path, seconds: float = 150) -> None:
    until = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < until, "".join(path.read_text() for path in folder.rglob("*.out"))[-3000:]
        time.sleep(0.3)


def last_step(run: Path) -> int:
    reported = rows(run, "step") if (run / "journal.jsonl").exists() else []
    return int(reported[-1]["steps_done"]) if reported else 0


def steps_saved(run: Path) -> list[int]:
    return [steps_of(path) for path in RunFolder(run).checkpoints]


def starts(run: Path) -> list[int]:
    return [row["steps_done"] for row in rows(run, "start")] if (run / "journal.jsonl").exists() else []


def tasks(job: str) -> list[int]:
    """List a job's processes: those that train, and their loaders'."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = f"SLURM_JOB_ID={job}\0".encode() in (place / "environ").read_bytes()
            if ours and (place / "comm").read_text().startswith("python"):
                found.append(int(place.name))
    return found


def signal_all(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def test_a_job_that_is_preempted_loses_a_node_and_runs_out_of_time_ends_with_the_bits_of_one_that_did_not(
    cluster: Cluster, tmp_path: Path
) -> None:
    # SLURM takes up to half a minute to notice what this test does: the job is paused meanwhile, lest it come to its
    # end; before each signal of its own, SLURM sends SIGCONT
    whole, run, folder = tmp_path / "whole", tmp_path / "run", tmp_path / "jobs"
    changes = {"epochs": 40, "saving__every_minutes": 0.02}
    command = ["mae_curriculum", "pretrain", *options(run, **changes)]
    begun = submit(cluster, folder, "--nodes", 2, "--time", 10, "--signal_seconds", 90, "--", *command)

    wait_for(lambda: last_step(run) > 60, folder)
    cluster.ask("sbatch", "-p", "high", "-N", 2, "--exclusive", "-o", "/dev/null", "--wrap", "srun sleep 1")
    wait_for(lambda: len(starts(run)) == 2, folder)
    preempted_at = starts(run)[1]
    assert preempted_at > 60
    assert rows(run, "stop")[0]["reason"] == "SIGTERM"

    wait_for(lambda: len(steps_saved(run)) > 1 and steps_saved(run)[-1] > preempted_at, folder)
    cluster.kill_node("node2")
    signal_all(lost := tasks(begun), signal.SIGSTOP)
    wait_for(lambda: "down" in cluster.ask("sinfo", "-h", "-N", "-n", "node2", "-o", "%T"), folder)
    cluster.start_node("node2")
    wait_for(lambda: len(starts(run)) == 3, folder)
    assert starts(run)[2] >= preempted_at
    signal_all([process for process in tasks(begun) if process not in lost], signal.SIGSTOP)
    signal_all(lost, signal.SIGKILL)  # those on the lost node: nobody else could reach them

    cluster.ask("scontrol", "update", f"JobId={begun}", "TimeLimit=1")  # less than the 90 s: the signal is due
    wait_for(lambda: rows(run, "stop")[-1]["reason"] == "SIGUSR2", folder)
    cluster.ask("scontrol", "update", f"JobId={begun}", "TimeLimit=10")
    wait_for((run / "summary.json").exists, folder)
    assert len(starts(run)) == 4

    assert torchrun("pretrain", *options(whole, **changes)).returncode == 0
    assert equal(weights(run), weights(whole))
    states = cluster.ask("sacct", "-n", "-X", "-D", "-j", begun, "-o", "state").split()
    assert states[-1] in ("RUNNING", "COMPLETED")
    assert states[:-1].count("REQUEUED") + states[:-1].count("PREEMPTED") + states[:-1].count("NODE_FAIL") == 3


def test_a_job_runs_the_code_and_the_settings_of_its_submission(cluster: Cluster, tmp_path: Path) -> None:
    folder, run = tmp_path / "jobs", tmp_path / "run"
    submit(cluster, folder, "--time", 5, "--name", "mine", "--", "mae_curriculum", "pretrain", *options(run, epochs=2))
    (job,) = folder.iterdir()
    assert "epochs: 2" in (job / "settings.yaml").read_text()
    assert (job / "code" / "mae_curriculum" / "loop.py").read_bytes() == (
        ROOT / "mae_curriculum" / "loop.py"
    ).read_bytes()
    wait_for((run / "summary.json").exists, folder)
    wait_for(lambda: "COMPLETED" in cluster.ask("sacct", "-n", "-X", "-o", "state", "--name", "mine"), folder)
    assert "kNN accuracy" in "".join(path.read_text() for path in job.glob("*.out"))
    assert rows(run, "start")[0]["commit"] == code_version()


def test_a_job_that_fails_is_not_started_again(cluster: Cluster, tmp_path: Path) -> None:
    folder, run = tmp_path / "jobs", tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("not a run folder")
    number = submit(cluster, folder, "--time", 5, "--", "mae_curriculum", "pretrain", *options(run))
    wait_for(lambda: "FAILED" in cluster.ask("sacct", "-n", "-X", "-D", "-j", number, "-o", "state"), folder)
    assert "is no run folder" in "".join(path.read_text() for path in folder.rglob("*.out"))


def test_the_script_holds_what_was_asked_for(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    asked = [
        "--folder",
        str(folder),
        "--nodes",
        "2",
        "--gpus_per_node",
        "4",
        "--gpus_as",
        "gres",
        "--cpus_per_task",
        "8",
        "--memory",
        "64G",
    ]
    asked += ["--partition", "gpu", "--account", "lab", "--qos", "long", "--constraint", "a100", "--exclusive=true"]
    asked += ["--time", "1-12:00:00", "--mail_user", "me@example.org", "--mail_type", "END"]
    asked += ["--sbatch", "{reservation: tuesday}", "--setup", "[module load cuda, conda activate mae]"]
    saved = {"saving__keep": 1, "saving__keep_every_epochs": 1}
    command = ["--", "mae_curriculum", "pretrain", *options(tmp_path / "run", **saved)]
    done = subprocess.run(
        [sys.executable, "-m", "slurm", "submit", "--dry_run=true", *asked, *command],
        cwd=ROOT,
        env=cluster.environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    expected = "nodes=2 gres=gpu:4 ntasks-per-node=4 cpus-per-task=8 mem=64G partition=gpu account=lab qos=long"
    expected += " constraint=a100 exclusive time=1-12:00:00 mail-user=me@example.org mail-type=END reservation=tuesday"
    assert {f"#SBATCH --{word}" for word in [*expected.split(), "requeue"]} <= set(lines)
    assert lines.index("module load cuda") < lines.index("conda activate mae")
    assert "up to 4 of them stay" in done.stdout
    assert not folder.exists()  # a dry run leaves nothing


MISTAKES = {
    "the command stands behind `--`": ["--nodes", "2"],
    "mae_curriculum has no verb 'pretrian'; it has": ["--", "mae_curriculum", "pretrian"],
    "did you mean 'epochs'?": ["--", "mae_curriculum", "pretrain", "--epohcs", "3"],
    "nodes must be at least 1": ["--nodes", "0", "--", "mae_curriculum", "pretrain"],
    "did you mean 'partition'?": ["--partitoin", "gpu", "--", "mae_curriculum", "pretrain"],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_refused_before_anything_is_queued(message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", *MISTAKES[message]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_same_job_runs_here_without_slurm(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["submit", "--local=true", "--", "mae_curriculum", "pretrain", *options(run, epochs=2)]) == 0
    assert (run / "summary.json").exists()
    assert os.environ.get("SLURM_JOB_ID") is None


def test_a_job_that_slurm_does_not_requeue_fails_lest_others_take_it_for_done(cluster: Cluster, tmp_path: Path) -> None:
    folder, run = tmp_path / "jobs", tmp_path / "run"
    command = ["mae_curriculum", "pretrain", *options(run, epochs=400)]
    job = submit(cluster, folder, "--time", 5, "--", *command)
    wait_for(lambda: last_step(run) > 0, folder)
    cluster.ask("scontrol", "update", f"JobId={job}", "Requeue=0")
    cluster.ask("scancel", "--signal=USR1", job)
    wait_for(lambda: "FAILED" in cluster.ask("sacct", "-n", "-X", "-o", "state", "-j", job), folder)
    log = "".join(path.read_text() for path in folder.glob("*/*.out"))
    assert f"SLURM did not put job {job} back into the queue: Requested operation is presently disabled" in log


def test_a_job_that_sbatch_refuses_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    words = ["submit", "--folder", str(tmp_path / "jobs"), "--partition", "nope", "--", "mae_curriculum", "pretrain"]
    done = subprocess.run(
        [sys.executable, "-m", "slurm", *words, *options(tmp_path / "run")],
        cwd=ROOT,
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()  # sbatch has had its say before
    assert line.startswith("error: SLURM refuses the job: ")
    assert "Invalid partition" in line


def test_status_knows_jobs_that_have_not_begun_and_those_that_never_did(cluster: Cluster, tmp_path: Path) -> None:
    folder, run = tmp_path / "jobs", tmp_path / "runs" / "mine"

    def status() -> str:
        words = [sys.executable, "-m", "slurm", "status", str(tmp_path / "runs")]
        return subprocess.run(
            words, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, check=True
        ).stdout

    settings = ["--time", 5, "--sbatch", '{"hold": true}']
    job = submit(cluster, folder, *settings, "--", "mae_curriculum", "pretrain", *options(run, epochs=2))
    assert "pending (JobHeldUser)" in status()
    cluster.ask("scancel", job)
    wait_for(lambda: "pending" not in status(), folder)
    assert f"{run}: no word of why (log: " in status()
    submit(cluster, folder, "--time", 5, "--", "mae_curriculum", "pretrain", *options(run, epochs=2))
    wait_for(lambda: "finished" in status(), folder)
