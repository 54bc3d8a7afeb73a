"""`doctor`: check whether a cluster, or this machine, has what a run needs. Each line is ok or says what to change.

The login node submits one small job. Its tasks run the checks of slurm/checks.py and write the results to the job's
folder, as `node-RANK.json` and then `network-RANK.json`. The login node waits for these files and prints them.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from mae_curriculum.config import ConfigError
from slurm.checks import JOIN_ADVICE, CheckResult, check_network, check_node, node_name
from slurm.cluster import ClusterConfig, copy_code, last_message, make_executor, new_job_folder

NO_ANSWER = "SLURM does not answer"

MAX_SECONDS = {"RUNNING": 300, "COMPLETING": 15, "gone": 15, NO_ANSWER: 300}
"""How long to wait for reports while the job is in a state, in seconds: torch may load slowly from a shared file
system, and files of other nodes may show up late. In the queue the job may wait as long as the user does."""


@dataclass(frozen=True)
class DoctorConfig(ClusterConfig):
    """Check the nodes that a run would get: `python -m slurm doctor [settings]`."""

    time: str = "10"
    """Time limit of the job, in any format of sbatch. The job takes about a minute, and short jobs start sooner."""
    local: bool = False
    """Check this machine instead, without SLURM."""
    workers: int = 2
    """Loader workers per process: the `data.workers` of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 0:
            raise ConfigError(f"workers must be at least 0, got {self.workers}")


def doctor(config: DoctorConfig) -> int:
    """Run the checks and print their results; returns the exit code: 1 if there is something to fix."""
    results = [check_folder(config.folder)]
    if not config.local:
        results.append(check_slurm())
    print_results(results)
    if all(result.state == "ok" for result in results):
        results = check_here(config) if config.local else check_cluster(config)
        print_results(results)
    return int(any(result.state == "fix" for result in results))


def print_results(results: Sequence[CheckResult]) -> None:
    """Print each result once, naming the nodes where they differ."""
    nodes: dict[CheckResult, dict[str, None]] = {}
    for result in results:
        nodes.setdefault(replace(result, node=""), {})[result.node] = None
    for check in dict.fromkeys(result.check for result in nodes):
        same = [result for result in nodes if result.check == check]
        for result in same:
            names = ", ".join(filter(None, nodes[result]))
            where = f"{names}: " if names and len(same) > 1 else ""
            print(f"{result.state:<5}{check:<15}{where}{result.text}")
        for advice in dict.fromkeys(result.advice for result in same if result.advice):
            print(f"{'':<20}{advice}")


def check_folder(folder: Path) -> CheckResult:
    """Check that the folder for jobs can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"written")
    except OSError as error:
        return CheckResult("folder", "fix", f"cannot be written: {error}", "choose one that all nodes see: --folder")
    return CheckResult("folder", "ok", f"{folder} can be written here")


def check_slurm() -> CheckResult:
    """Check that SLURM's commands are installed."""
    if shutil.which("sbatch") is None:
        return CheckResult("SLURM", "fix", "no sbatch here", "use a login node, or --local to check this machine")
    version = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, check=False)
    return CheckResult("SLURM", "ok", version.stdout.strip() or version.stderr.strip())


def check_here(config: DoctorConfig) -> list[CheckResult]:
    """Check this machine as one of the nodes."""
    return check_node(gpus=config.gpus_per_node, processes=config.processes_per_node, workers=config.workers)


def check_cluster(config: DoctorConfig) -> list[CheckResult]:
    """Check the nodes and the network between them by the tasks of a job."""
    from submitit.core.utils import FailedJobError  # only now: --local does without

    folder = new_job_folder(config, "doctor")
    executor = make_executor(config, "doctor", folder)
    copy_code(folder)
    try:
        job = executor.submit(run_task, folder, config)
    except FailedJobError as error:
        return [CheckResult("job", "fix", last_message(str(error)), "see python -m slurm doctor --help")]
    tasks = config.nodes * config.processes_per_node
    print(f"job {job.job_id}, tasks: {tasks}, logs: {config.folder / folder.name}; Ctrl-C cancels it", flush=True)
    state = wait_for_reports(job.job_id, folder, tasks)
    nodes = read_reports(folder, "node")
    network = read_reports(folder, "network")
    if len(network) < tasks:
        job.cancel(check=False)
        if state.startswith("PENDING"):
            return [CheckResult("job", "fix", f"canceled while {state}", "request less, or another --partition")]
    folder_advice = f"if no log gives a reason, the nodes do not see {config.folder}; choose another --folder"
    return [
        *missing_reports("shared folder", set(range(tasks)) - nodes.keys(), job, state, folder_advice),
        *compare_software([*chain.from_iterable(nodes.values())]),
        *missing_reports("network", nodes.keys() - network.keys(), job, state, JOIN_ADVICE),
        *chain.from_iterable(network.values()),
    ]


def wait_for_reports(job: str, folder: Path, tasks: int) -> str:
    """Wait until all tasks of a job have reported or no longer can; prints each state of the job, returns the last."""
    state = ""
    since = time.monotonic()
    pause = 1.0
    with suppress(KeyboardInterrupt):
        while len(list(folder.glob("network-*.json"))) < tasks:
            before, state = state, query_state(job)
            if state != before:
                print(f"job {job}: {state}", flush=True)
                since = time.monotonic()
                pause = 1.0
            if time.monotonic() - since > MAX_SECONDS.get(state, float("inf")):
                break
            time.sleep(pause)
            pause = min(30, pause * 1.1)  # SLURM's controller should not be asked often
    return state


def query_state(job: str) -> str:
    """Ask SLURM for the state of a job, with the reason if it waits."""
    answer = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T (%r)"], capture_output=True, text=True, check=False)
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return NO_ANSWER
    return answer.stdout.strip().removesuffix(" (None)") or "gone"


def read_reports(folder: Path, part: str) -> dict[int, list[CheckResult]]:
    """Read the results that the tasks wrote, by rank, in order."""
    paths = {int(path.stem.removeprefix(f"{part}-")): path for path in folder.glob(f"{part}-*.json")}
    return {rank: [CheckResult(**entry) for entry in json.loads(paths[rank].read_text())] for rank in sorted(paths)}


def missing_reports(check: str, missing: set[int], job: Any, state: str, advice: str) -> list[CheckResult]:
    """Return what to do about tasks that did not report, with the log of the first; nothing if all did."""
    if not missing:
        return []
    first = min(missing)
    log = last_line(job.task(first).paths.stdout)
    tasks = f"{len(missing)} of {job.num_tasks} tasks"
    return [CheckResult(check, "fix", f"no report from {tasks} (job: {state}); task {first}: {log}", advice)]


def last_line(log: Path) -> str:
    """Return the last line of a log, where errors are, with its path."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    written = [line.strip() for line in lines if line.strip()]
    return f"{written[-1]} ({log})" if written else f"no log {log}"


def compare_software(results: list[CheckResult]) -> list[CheckResult]:
    """Turn the results about software into something to fix if the nodes differ in it."""
    if len({result.text for result in results if result.check == "software"}) < 2:
        return results
    advice = "use the same environment on all nodes, from the shared folder"
    return [replace(each, state="fix", advice=advice) if each.check == "software" else each for each in results]


def run_task(folder: Path, config: DoctorConfig) -> None:
    """Run the checks of one task of the job and write the results to the job's folder."""

    def report(part: str, results: list[CheckResult]) -> None:
        path = folder / f"{part}-{os.environ['SLURM_PROCID']}.json"
        path.with_suffix(".part").write_text(json.dumps([asdict(result) for result in results]))
        path.with_suffix(".part").rename(path)

    # this call was read from a folder of the login node; that the login node reads the report shows the other direction
    shared = CheckResult("shared folder", "ok", "login node and nodes read each other's files", node=node_name())
    report("node", [shared, *check_here(config)])
    report("network", check_network())
