"""Examination of a cluster, or of this machine: does it have what a run needs? Each line is ok, or says what to do.

The login node submits one small job, whose tasks make the checks of slurm/checks.py and write what they find into the
job's folder: `node-RANK.json`, then `network-RANK.json`. The login node waits for these files and prints them.
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
from pathlib import Path

from mae_curriculum.config import ConfigError
from slurm.checks import JOIN_ADVICE, Finding, examine_network, examine_node, node_name
from slurm.cluster import ClusterConfig, copy_code, make_executor, new_folder

LIMITS = {"RUNNING": 300, "COMPLETING": 15, "gone": 15, "SLURM does not answer": 300}
"""Seconds that a job may spend in a state before its reports are given up: torch may load slowly from a shared file
system, and files of other nodes may show late. In the queue it may wait as long as the user does."""


@dataclass(frozen=True)
class DoctorConfig(ClusterConfig):
    """Examination of the nodes that a run would get: `python -m slurm doctor [settings]`."""

    time: str = "10"
    """Time limit of the job, as sbatch takes it: it needs a minute, and short jobs start sooner."""
    local: bool = False
    """Examine this machine instead, without SLURM."""
    workers: int = 2
    """Loader workers of each process: the `data.workers` of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 0:
            raise ConfigError(f"workers must be at least 0, got {self.workers}")


def doctor(config: DoctorConfig) -> int:
    """Examine, and print what was found; returns the exit code: 1 if something is to mend."""
    found = [find_folder(config.folder)] if config.local else [find_folder(config.folder), find_slurm()]
    show(found)
    if all(finding.state == "ok" for finding in found):
        found = examine_here(config) if config.local else examine_cluster(config)
        show(found)
    return int(any(finding.state == "mend" for finding in found))


def show(findings: Sequence[Finding]) -> None:
    """Print findings, each once; the nodes are named where they differ."""
    nodes: dict[Finding, dict[str, None]] = {}
    for finding in findings:
        nodes.setdefault(replace(finding, node=""), {})[finding.node] = None
    for check in dict.fromkeys(finding.check for finding in nodes):
        same = [finding for finding in nodes if finding.check == check]
        for finding in same:
            names = ", ".join(filter(None, nodes[finding]))
            where = f"{names}: " if names and len(same) > 1 else ""
            print(f"{finding.state:<5}{check:<15}{where}{finding.text}")
        for cure in dict.fromkeys(finding.cure for finding in same if finding.cure):
            print(f"{'':<20}{cure}")


def find_folder(folder: Path) -> Finding:
    """Write into the folder for jobs."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"written")
    except OSError as error:
        return Finding("folder", "mend", f"cannot be written: {error}", "choose one that all nodes see: --folder")
    return Finding("folder", "ok", f"{folder} can be written here")


def find_slurm() -> Finding:
    """Look for SLURM's commands."""
    if shutil.which("sbatch") is None:
        return Finding("SLURM", "mend", "no sbatch here", "run it on a login node; --local examines this machine")
    told = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, check=False)
    return Finding("SLURM", "ok", told.stdout.strip() or told.stderr.strip())


def examine_here(config: DoctorConfig) -> list[Finding]:
    """Examine this machine as if it were one of the nodes."""
    return examine_node(gpus=config.gpus_per_node, processes=config.processes_per_node, workers=config.workers)


def examine_cluster(config: DoctorConfig) -> list[Finding]:
    """Have the tasks of a job examine its nodes and the network between them."""
    from submitit.core.utils import FailedJobError  # only now: --local does without

    folder = new_folder(config, "doctor")
    executor = make_executor(config, "doctor", folder)
    copy_code(folder)
    try:
        job = executor.submit(examine_task, folder, config)
    except FailedJobError as error:
        return [Finding("job", "mend", str(error).split("\n")[-1], "python -m slurm doctor --help lists the options")]
    tasks = config.nodes * config.processes_per_node
    print(f"job {job.job_id}, tasks: {tasks}, logs: {config.folder / folder.name}; Ctrl-C gives it up", flush=True)
    state = wait_for_reports(job.job_id, folder, tasks)
    nodes, network = read_reports(folder, "node"), read_reports(folder, "network")
    if len(network) < tasks:
        job.cancel(check=False)
        if state.startswith("PENDING"):
            return [Finding("job", "mend", f"given up while {state}", "ask for less, or for another --partition")]

    def silence(check: str, missing: set[int], cure: str) -> list[Finding]:
        if not missing:
            return []
        log = last_line(job.task(min(missing)).paths.stdout)
        text = f"no answer from {len(missing)} of {tasks} tasks (job: {state}); task {min(missing)}: {log}"
        return [Finding(check, "mend", text, cure)]

    unseen = f"if no log says why, the nodes do not see {config.folder}; choose another --folder"
    return [
        *silence("shared folder", set(range(tasks)) - nodes.keys(), unseen),
        *compare_software([finding for report in nodes.values() for finding in report]),
        *silence("network", nodes.keys() - network.keys(), JOIN_ADVICE),
        *(finding for report in network.values() for finding in report),
    ]


def wait_for_reports(job: str, folder: Path, tasks: int) -> str:
    """Wait until all tasks of a job have reported, or no longer can; says in which state the job is, and returns it."""
    told, since, pause = "", time.monotonic(), 1.0
    with suppress(KeyboardInterrupt):
        while len(list(folder.glob("network-*.json"))) < tasks:
            if (state := job_state(job)) != told:
                print(f"job {job}: {state}", flush=True)
                told, since, pause = state, time.monotonic(), 1.0
            if time.monotonic() - since > LIMITS.get(told, float("inf")):
                break
            time.sleep(pause)
            pause = min(30, pause * 1.1)  # SLURM's controller is not to be asked often
    return told


def job_state(job: str) -> str:
    """Ask SLURM for the state of a job, with the reason if it waits."""
    told = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T (%r)"], capture_output=True, text=True, check=False)
    if told.returncode and "Invalid job id" not in told.stderr:
        return "SLURM does not answer"
    return told.stdout.strip().removesuffix(" (None)") or "gone"


def read_reports(folder: Path, part: str) -> dict[int, list[Finding]]:
    """Read what the tasks wrote, in order of rank."""
    found = {int(path.stem.removeprefix(f"{part}-")): path for path in folder.glob(f"{part}-*.json")}
    return {rank: [Finding(**entry) for entry in json.loads(path.read_text())] for rank, path in sorted(found.items())}


def last_line(log: Path) -> str:
    """Give the last line of a log, where errors stand, with its path."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    written = [line.strip() for line in lines if line.strip()]
    return f"{written[-1]} ({log})" if written else f"no log {log}"


def compare_software(findings: list[Finding]) -> list[Finding]:
    """Have the software mended where nodes differ in it."""
    if len({finding.text for finding in findings if finding.check == "software"}) < 2:
        return findings
    cure = "let all nodes use the same environment, on the shared folder"
    return [replace(f, state="mend", cure=cure) if f.check == "software" else f for f in findings]


def examine_task(folder: Path, config: DoctorConfig) -> None:
    """Write what this task of a job finds into the job's folder."""

    def report(part: str, findings: list[Finding]) -> None:
        path = folder / f"{part}-{os.environ['SLURM_PROCID']}.json"
        path.with_suffix(".part").write_text(json.dumps([asdict(finding) for finding in findings]))
        path.with_suffix(".part").rename(path)

    # this call was read from a folder that the login node made; that it sees this report shows the other direction
    shared = Finding("shared folder", "ok", "what one side writes the other reads", node=node_name())
    report("node", [shared, *examine_here(config)])
    report("network", examine_network())
