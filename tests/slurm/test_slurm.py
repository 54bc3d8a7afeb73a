"""Jobs on a real SLURM cluster of two nodes: preempted, out of time, on a node that fails; and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from mae_curriculum.run.checkpoint import steps_of
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.run.stop import SIGNALS
from mae_curriculum.version import code_version
from slurm.__main__ import main
from slurm.status import last_error
from tests.processes import ROOT, Ranks
from tests.runs import TINY, as_flags, equal, options, rows, weights
from tests.slurm_cluster import Cluster


def run_slurm(cluster: Cluster, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m slurm ...` on the login node of the cluster."""
    return subprocess.run(
        [sys.executable, "-m", "slurm", *map(str, arguments)],
        cwd=ROOT,
        env={**cluster.environment, "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        check=False,
    )


def submit(cluster: Cluster, folder: Path, *arguments: object) -> str:
    """Submit a job from the command line; returns its id."""
    done = run_slurm(cluster, "submit", "--folder", folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[1].rstrip(":")


def logs(folder: Path) -> str:
    """Read the logs of all jobs in a folder."""
    return "".join(path.read_text() for path in folder.rglob("*.out"))


def wait_for(condition: Callable[[], bool], folder: Path, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, logs(folder)[-3000:]
        time.sleep(0.2)


def last_step(run: Path) -> int:
    reported = rows(run, "step") if (run / "journal.jsonl").exists() else []
    return int(reported[-1]["steps_done"]) if reported else 0


def steps_saved(run: Path) -> list[int]:
    return [steps_of(path) for path in RunFolder(run).checkpoints]


def starts(run: Path) -> list[int]:
    return [row["steps_done"] for row in rows(run, "start")] if (run / "journal.jsonl").exists() else []


def states(cluster: Cluster, job: str) -> list[str]:
    """List the states of each start of a job. The accounts lag behind the queue: wait for what must come."""
    return cluster.ask("sacct", "-n", "-X", "-D", "-j", job, "-o", "state").split()


def tasks(job: str) -> list[int]:
    """List the processes of a job: those that train, and their loaders'."""
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


def test_a_job_that_is_preempted_loses_a_node_and_reaches_its_time_limit_ends_with_the_same_bits(
    cluster: Cluster, tmp_path: Path
) -> None:
    # SLURM takes up to half a minute to apply a new time limit: the job is paused meanwhile so that it does not finish;
    # SLURM sends SIGCONT before each of its own signals
    whole, run, folder = tmp_path / "whole", tmp_path / "run", tmp_path / "jobs"
    changes = {"epochs": 10, "saving__every_minutes": 0.01}
    command = ["mae_curriculum", "pretrain", *options(run, **changes)]
    job = submit(cluster, folder, "--nodes", 2, "--time", 10, "--signal_seconds", 150, "--", *command)

    wait_for(lambda: last_step(run) > 20, folder)
    cluster.ask("sbatch", "-p", "high", "-N", 2, "--exclusive", "-o", "/dev/null", "--wrap", "srun sleep 1")
    wait_for(lambda: len(starts(run)) == 2, folder)
    preempted_at = starts(run)[1]
    assert preempted_at > 20
    assert rows(run, "stop")[0]["reason"] == "SIGTERM"

    wait_for(lambda: len(steps_saved(run)) > 1 and steps_saved(run)[-1] > preempted_at, folder)
    cluster.kill_node("node2")
    signal_all(lost := tasks(job), signal.SIGSTOP)
    cluster.ask("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=killed")  # found by itself in 30 s
    wait_for(lambda: "down" in cluster.ask("sinfo", "-h", "-N", "-n", "node2", "-o", "%T"), folder)
    cluster.start_node("node2")
    wait_for(lambda: len(starts(run)) == 3, folder)
    assert starts(run)[2] >= preempted_at
    signal_all([process for process in tasks(job) if process not in lost], signal.SIGSTOP)
    signal_all(lost, signal.SIGKILL)  # those on the lost node: nothing else could reach them

    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=2")  # less than the 150 s: the signal is due
    undisturbed = Ranks("mae_curriculum", "pretrain", *options(whole, **changes))
    wait_for(lambda: rows(run, "stop")[-1]["reason"] == "SIGUSR2", folder)
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    wait_for((run / "summary.json").exists, folder)
    assert len(starts(run)) == 4

    undisturbed.communicate()
    assert undisturbed.returncode == 0
    assert equal(weights(run), weights(whole))
    wait_for(lambda: states(cluster, job)[-1] == "COMPLETED", folder)
    assert {*states(cluster, job)[:-1]} <= {"REQUEUED", "PREEMPTED", "NODE_FAIL"}
    assert len(states(cluster, job)) == 4


@dataclass(frozen=True)
class Jobs:
    """Jobs that run side by side, since each mostly waits."""

    folder: Path
    """Where the run folders are, and a folder `NAME-jobs` for each job."""
    ids: dict[str, str]
    """Ids of the jobs by name."""
    pending: str
    """What `status` printed while `finishes` was held back in the queue."""
    canceled: str
    """What it printed once that job was canceled, before it was submitted again."""


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Submit a job that finishes, one whose run folder is refused, and one that is stopped and may not be requeued."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "refused").mkdir()
    (folder / "refused" / "thesis.txt").write_text("not a run folder")

    def submit_run(name: str, epochs: int, *settings: object) -> str:
        command = ["mae_curriculum", "pretrain", *options(folder / name, epochs=epochs)]
        return submit(cluster, folder / f"{name}-jobs", "--time", 5, *settings, "--", *command)

    held = submit_run("finishes", 2, "--sbatch", '{"hold": true}')
    again = run_slurm(cluster, "submit", "--", "mae_curriculum", "pretrain", *options(folder / "finishes", epochs=2))
    assert f"job {held} of {folder / 'finishes'} is in the queue already (pending (JobHeldUser))" in again.stderr
    ids = {"refused": submit_run("refused", 2)} | {name: submit_run(name, 400) for name in ("stopped", "canceled")}
    pending = status(cluster, folder)
    cluster.ask("scancel", held)
    wait_for(lambda: "pending" not in status(cluster, folder), folder)
    canceled = status(cluster, folder)
    ids["finishes"] = submit_run("finishes", 2, "--name", "mine")
    wait_for(lambda: last_step(folder / "stopped") > 0, folder)
    cluster.ask("scontrol", "update", f"JobId={ids['stopped']}", "Requeue=0")
    cluster.ask("scancel", "--signal=USR1", ids["stopped"])
    wait_for(lambda: last_step(folder / "canceled") > 0, folder)
    cluster.ask("scancel", ids["canceled"])
    return Jobs(folder, ids, pending, canceled)


def status(cluster: Cluster, folder: Path) -> str:
    """Print the state of the run `finishes`."""
    done = run_slurm(cluster, "status", folder / "finishes")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_job_runs_the_code_and_the_settings_of_its_submission(cluster: Cluster, jobs: Jobs) -> None:
    run, folder = jobs.folder / "finishes", jobs.folder / "finishes-jobs"
    (job,) = (place for place in folder.iterdir() if "-mine-" in place.name)
    assert "epochs: 2" in (job / "settings.yaml").read_text()
    for file in ("mae_curriculum/training/loop.py", "configs/pretrain/digits.yaml"):
        assert (job / "code" / file).read_bytes() == (ROOT / file).read_bytes()
    wait_for((run / "summary.json").exists, folder)
    wait_for(lambda: "COMPLETED" in states(cluster, jobs.ids["finishes"]), folder)
    assert "kNN accuracy" in logs(job)
    assert rows(run, "start")[0]["commit"] == code_version()


def test_a_job_that_fails_is_not_requeued_and_status_says_why(cluster: Cluster, jobs: Jobs) -> None:
    job, folder = jobs.ids["refused"], jobs.folder / "refused-jobs"
    wait_for(lambda: "FAILED" in states(cluster, job), folder)
    assert "is no run folder" in logs(folder)
    (log,) = folder.rglob("*_log.out")
    assert "is no run folder" in (last_error(str(log)) or "")


def test_a_job_that_is_canceled_saves_and_is_not_requeued(cluster: Cluster, jobs: Jobs) -> None:
    run, job, folder = jobs.folder / "canceled", jobs.ids["canceled"], jobs.folder / "canceled-jobs"
    wait_for(lambda: cluster.ask("squeue", "-h", "-j", job) == "", folder)
    assert states(cluster, job) == ["CANCELLED+"]
    assert rows(run, "stop")[0]["reason"] == "SIGTERM"
    assert steps_saved(run)[-1] == rows(run, "stop")[0]["steps_done"]
    assert f"not requeued: job {job} was canceled" in logs(folder)


def test_signals_wait_from_the_start_of_a_process_until_the_run_handles_them() -> None:
    show = "import signal; print(*sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    command = [sys.executable, "-I", "-S", f"{ROOT}/slurm/start.py", sys.executable, "-c", show]
    blocked = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    assert blocked.split() == [str(int(number)) for number in sorted(SIGNALS)]


def test_a_process_that_was_killed_is_a_better_reason_than_what_the_others_report(tmp_path: Path) -> None:
    log, start = tmp_path / "log.out", "submitit INFO - Starting with JobEnvironment()"
    before = f"{start}\nerror: of an earlier start\n{start}\n"
    log.write_text(f"{before}error: Connection closed by peer\nsrun: error: beta: task 1: Killed\n")
    assert last_error(str(log)) == "srun: error: beta: task 1: Killed"
    log.write_text(f"{before}srun: error: alpha: task 0: Exited with exit code 1\n")
    assert last_error(str(log)) is None


def test_status_knows_jobs_that_have_not_started_and_those_that_never_did(cluster: Cluster, jobs: Jobs) -> None:
    assert "pending (JobHeldUser)" in jobs.pending
    assert f"{jobs.folder / 'finishes'}: its job never started" in jobs.canceled
    wait_for(lambda: "finished" in status(cluster, jobs.folder), jobs.folder)


def test_segments_continue_a_run_whatever_the_end_of_the_one_before_and_end_at_once_when_it_has_finished(
    cluster: Cluster, tmp_path: Path
) -> None:
    run, folder = tmp_path / "run", tmp_path / "jobs"
    request = ["submit", "--folder", folder, "--segments", 4, "--time", 5]
    command = ["--", "mae_curriculum", "pretrain", *options(run, epochs=10, saving__every_minutes=0.01)]

    held = run_slurm(cluster, *request, "--sbatch", '{"hold": true}', *command).stdout.splitlines()[1]
    assert {*held.split()[-4:]} <= {*cluster.ask("squeue", "-h", "-o", "%i").split()}
    assert "pending" in run_slurm(cluster, "status", run).stdout
    cluster.ask(*held.partition("to cancel all: ")[2].split())
    wait_for(lambda: cluster.ask("squeue", "-h", "-t", "pending") == "", folder)

    first, second, third, fourth = run_slurm(cluster, *request, *command).stdout.split()[-4:]
    wait_for(lambda: last_step(run) > 0, folder)
    cluster.ask("scontrol", "update", f"JobId={first}", "Requeue=0")
    cluster.ask("scancel", "--signal=USR1", first)
    wait_for(lambda: len(starts(run)) == 2 and last_step(run) > starts(run)[1], folder)
    assert rows(run, "stop")[0]["reason"] == "SIGUSR1"
    cluster.ask("scancel", second)
    wait_for((run / "summary.json").exists, folder)
    assert len(starts(run)) == 3
    assert 0 == starts(run)[0] < starts(run)[1] <= starts(run)[2]
    done = run_slurm(cluster, "status", run).stdout
    assert "finished" in done
    assert done.count("\n") == 3  # no line of an error

    wait_for(lambda: "is finished already" in logs(folder), folder)
    wait_for(lambda: states(cluster, fourth) == ["COMPLETED"], folder)
    assert [states(cluster, job) for job in (first, second, third)] == [["COMPLETED"], ["CANCELLED+"], ["COMPLETED"]]


def test_an_array_of_jobs_shares_a_search(cluster: Cluster, tmp_path: Path) -> None:
    run, folder = tmp_path / "search", tmp_path / "jobs"
    pretrain = {f"pretrain.{key}": value for key, value in TINY.items() if not key.startswith("curriculum")}
    flags = as_flags(pretrain, run=run, method="sequential", sizes="[112, 224]", stages=2, epochs=20)
    ids = submit(cluster, folder, "--jobs", 2, "--time", 5, "--", "mae_curriculum", "search", *flags)
    array = ids.partition("_")[0]
    wait_for(lambda: states(cluster, array) == ["COMPLETED"] * 2, folder)
    candidates = json.loads((run / "results.json").read_text())["candidates"]
    assert len(candidates) == 4
    started = [row["job"] for folder in (run / "runs").iterdir() for row in rows(folder, "start")]
    assert len({*started}) == 2


def test_the_script_contains_what_was_requested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # a machine without SLURM
    folder = tmp_path / "jobs"
    requested = ["--folder", str(folder), "--nodes", "2", "--gpus_per_node", "4", "--gpus_as", "gres"]
    requested += ["--cpus_per_task", "8", "--memory", "64G"]
    requested += ["--partition", "gpu", "--account", "lab", "--qos", "long", "--constraint", "a100", "--exclusive=true"]
    requested += ["--time", "1-12:00:00", "--mail_user", "me@example.org", "--mail_type", "END"]
    requested += ["--sbatch", "{reservation: tuesday}", "--setup", "[module load cuda, conda activate mae]"]
    saved = {"saving__keep": 1, "saving__keep_every_epochs": 1}
    command = ["--", "mae_curriculum", "pretrain", *options(tmp_path / "run", **saved)]
    assert main(["submit", "--dry_run=true", "--segments", "3", *requested, *command]) == 0
    output = capsys.readouterr().out
    lines = output.splitlines()
    expected = "nodes=2 gres=gpu:4 ntasks-per-node=4 cpus-per-task=8 mem=64G partition=gpu account=lab qos=long"
    expected += " constraint=a100 exclusive time=1-12:00:00 mail-user=me@example.org mail-type=END reservation=tuesday"
    assert {f"#SBATCH --{word}" for word in [*expected.split(), "requeue"]} <= set(lines)
    assert lines.index("module load cuda") < lines.index("conda activate mae")
    assert "up to 4 are kept" in output
    assert "# 3 such jobs, each later one with --dependency=afterany:ID-OF-PREVIOUS" in lines
    assert not folder.exists()  # a dry run leaves nothing


def test_the_script_of_several_jobs_is_that_of_an_array(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    folder = str(tmp_path / "jobs")
    command = ["--", "mae_curriculum", "search", "--config", "digits_sequential"]
    assert main(["submit", "--dry_run=true", "--jobs", "3", "--folder", folder, *command]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("#SBATCH --array=0-2") for line in lines)
    assert "# 3 such jobs, which share the search" in lines


PRETRAIN = ["--", "mae_curriculum", "pretrain"]

MISTAKES = {
    "after `--`, name a package (mae_curriculum, finetune)": ["--nodes", "2"],
    "mae_curriculum has no command 'pretrian'; it has": ["--", "mae_curriculum", "pretrian"],
    "did you mean 'epochs'?": ["--", "mae_curriculum", "pretrain", "--epohcs", "3"],
    "nodes must be at least 1": ["--nodes", "0", "--", "mae_curriculum", "pretrain"],
    "time: 1:30 is too short, since SLURM may signal the job 90 s before": ["--time", "1:30", *PRETRAIN],
    "time must be minutes, MM:SS,": ["--time", "soon", *PRETRAIN],
    "segments must be at least 1, got 0": ["--segments", "0", *PRETRAIN],
    "segments: a chain of arrays is not possible": ["--segments", "2", "--sbatch", "{array: 0-3}", *PRETRAIN],
    "segments: knn cannot be resumed": ["--segments", "2", "--", "mae_curriculum", "knn", "--checkpoint", "runs/a"],
    "local: the command runs here, at once": ["--segments", "2", "--local", *PRETRAIN],
    "jobs must be at least 1, got 0": ["--jobs", "0", *PRETRAIN],
    "jobs: only a search is shared among jobs, not pretrain": ["--jobs", "2", *PRETRAIN],
    "jobs: they are requeued, not followed by segments": ["--jobs", "2", "--segments", "2", *PRETRAIN],
    "jobs: they are an array already": ["--jobs", "2", "--sbatch", "{array: 0-3}", *PRETRAIN],
    "leave out --dry_run, --segments and --jobs": ["--dry_run", "--local", *PRETRAIN],
    "did you mean 'nodes'?": ["--node", "2", "--", "mae_curriculum", "pretrain"],
    "did you mean 'partition'?": ["--partitoin", "gpu", "--", "mae_curriculum", "pretrain"],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_refused_before_anything_is_queued(message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", *MISTAKES[message]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_submit_local_runs_the_command_here(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["submit", "--local=true", "--", "mae_curriculum", "pretrain", *options(run, epochs=1)]) == 0
    assert (run / "summary.json").exists()
    assert os.environ.get("SLURM_JOB_ID") is None


def test_a_job_that_sbatch_refuses_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    words = ["submit", "--folder", tmp_path / "jobs", "--partition", "nope", "--", "mae_curriculum", "pretrain"]
    done = run_slurm(cluster, *words, *options(tmp_path / "run"))
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()  # the lines before are sbatch's own
    assert line.startswith("error: SLURM refuses the job: ")
    assert "Invalid partition" in line
    assert not [*(tmp_path / "jobs").iterdir()]


def test_a_stopped_job_that_slurm_does_not_requeue_fails(cluster: Cluster, jobs: Jobs) -> None:
    job, folder = jobs.ids["stopped"], jobs.folder / "stopped-jobs"
    wait_for(lambda: "FAILED" in states(cluster, job), folder)
    assert f"SLURM did not requeue job {job}: Requested operation is presently disabled" in logs(folder)
