"""`pipeline`: a pretraining and its evaluations as dependent jobs, for each of several seeds, rates or curricula.

The folder of the pipeline is its state: the same command again submits what has neither finished nor is in the queue,
and prints the table of results.

    FOLDER/VARIANT/pretrain           run folders; without variants FOLDER/pretrain
    FOLDER/VARIANT/finetune@200       evaluation of the checkpoint of 200 equivalent epochs
                     .../submission.json   id and log of its job
    FOLDER/VARIANT/pretrain.yaml      settings with which it was started
    FOLDER/jobs/                      logs, settings and code of the jobs
    FOLDER/side-by-side               some runs have shared this machine, so that their seconds do not compare
"""

import itertools
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from mae_curriculum.config import ConfigError, dump, load_part, plain
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.run.lock import hold
from mae_curriculum.tracking.history import read_history
from slurm.cluster import (
    ClusterConfig,
    after,
    copy_code,
    job_script,
    make_executor,
    new_job_folder,
    read_submission,
    record_submission,
    refuse_without_slurm,
    submit_jobs,
    submitted_jobs,
)
from slurm.job import Job
from slurm.local import SHARED, run_here
from slurm.pipeline_config import PipelineConfig, PipelineRun, TaskSpec, expand_runs, variant_name
from slurm.result_table import format_result_table
from slurm.status import read_queue, state_and_error
from slurm.study import write_results

logger = logging.getLogger(__name__)


def pipeline(config: PipelineConfig) -> int:
    """Run or submit what has not finished, then print the table of results; returns the exit code."""
    groups = expand_runs(config)
    for task in (config.pretrain, *config.evaluate):
        cluster_of(config, task)
    if config.dry_run:
        queue = queue_if_known()
        submit_unfinished(config, groups, queue)
        print(format_result_table(groups, queue))
        return 0
    config.folder.mkdir(parents=True, exist_ok=True)
    with hold(config.folder / "lock.json", on_takeover=lambda _: None):  # two at once would submit everything twice
        if config.local:
            code = run_here(groups, config.at_once, config.folder / SHARED)
        else:
            code = submit_unfinished(config, groups, read_queue())
    queue = {} if config.local else read_queue()
    complete = keep_complete(groups)
    if config.results is not None and complete[0]:
        missing = len(groups[0]) - len(complete[0])
        shared = (config.folder / SHARED).exists()
        write_results(config.folder.name, complete, config.baseline, config.results, missing=missing, shared=shared)
        print(f"results: {config.results / config.folder.name}.json, .md, .png")
    print(format_result_table(groups, queue))
    return code


def queue_if_known() -> Mapping[str, str]:
    """Return SLURM's queue; empty, with a warning, if SLURM does not answer."""
    try:
        return read_queue()
    except ConfigError as no_answer:
        logger.warning(f"{no_answer}; what is in the queue is not known")
        return {}


def keep_complete(groups: Sequence[Sequence[PipelineRun]]) -> list[list[PipelineRun]]:
    """Return the groups with those pretrainings alone that have finished together with all their evaluations."""
    finished = [all(run.result.exists() for run in runs) for runs in zip(*groups, strict=True)]
    return [list(itertools.compress(group, finished)) for group in groups]


def submit_unfinished(config: PipelineConfig, groups: Sequence[Sequence[PipelineRun]], queue: Mapping[str, str]) -> int:
    """Submit what has neither finished nor is in the queue, or print it; returns the exit code."""
    jobs = {run.folder: submitted_jobs(run.folder) for group in groups for run in group}
    for group in groups:
        todo = [run for run in group if not run.result.exists() and queue.keys().isdisjoint(jobs[run.folder])]
        for run in todo:
            warn_of_failure(run.folder, queue)
        for runs, dependency in group_by_dependency(todo, jobs):
            ids = submit_array(config, runs, dependency)
            jobs |= {run.folder: [job] for run, job in zip(runs, ids, strict=True)}
    return 0


def warn_of_failure(folder: Path, queue: Mapping[str, str]) -> None:
    """Say why the job of a run failed that is submitted again."""
    run = RunFolder(folder)
    if read_submission(folder):
        _, error = state_and_error(run, read_history(run.journal), queue)
        if error:
            logger.warning(f"{folder} has failed, and is submitted again: {error}")


def group_by_dependency(
    runs: Sequence[PipelineRun], jobs: Mapping[Path, Sequence[str]]
) -> list[tuple[list[PipelineRun], str | None]]:
    """Return which runs are submitted together, and what they wait for.

    Evaluations of all tasks of an array, in its order, wait task by task; others each for its own pretraining, or for
    nothing if that has finished.

    jobs  ids of the jobs of each run folder; the last one ends its run.
    """
    ready = []
    waiting = []
    awaited = []
    for run in runs:
        if run.pretraining is None or (run.pretraining / "summary.json").exists():
            ready.append(run)
        else:
            waiting.append(run)
            awaited.append(jobs[run.pretraining][-1])
    array = awaited[0].rpartition("_")[0] if awaited else ""
    grouped: list[tuple[list[PipelineRun], str | None]] = [(ready, None)] if ready else []
    if len(awaited) > 1 and awaited == [f"{array}_{index}" for index in range(len(awaited))]:
        return [*grouped, (waiting, f"aftercorr:{array}")]
    return [*grouped, *(([run], f"afterok:{job}") for run, job in zip(waiting, awaited, strict=True))]


def submit_array(config: PipelineConfig, runs: Sequence[PipelineRun], dependency: str | None) -> list[str]:
    """Submit runs of one task, several as an array; returns the job ids, which a dry run makes up."""
    cluster = cluster_of(config, runs[0].task)
    if dependency:
        cluster = after(cluster, dependency, **{"kill-on-invalid-dep": "yes"})
    label = runs[0].folder.name
    folder = new_job_folder(cluster, label)
    array_parallelism = config.at_once or len(runs)
    executor = make_executor(cluster, f"{config.folder.name}-{label}", folder, array_parallelism=array_parallelism)
    if config.dry_run:
        print_array(runs, job_script(executor, count=len(runs)))
        return [f"ID-OF-{label}" + f"_{index}" * (len(runs) > 1) for index in range(len(runs))]
    refuse_without_slurm()
    copy_code(folder)
    jobs = []
    for index, run in enumerate(runs):
        frozen = folder / f"settings-{index}.yaml"
        frozen.write_text(dump(run.settings))
        package, subcommand = run.task.command[:2]
        jobs.append(Job(package, (subcommand, "--config", str(frozen)), cluster.requeues))
    submitted = submit_jobs(executor, jobs)
    for run, job in zip(runs, submitted, strict=True):
        run.keep_settings()
        record_submission(run.folder, [job])
    return [str(job.job_id) for job in submitted]


def print_array(runs: Sequence[PipelineRun], script: str) -> None:
    """Print the commands of an array's jobs, and their script."""
    names = ", ".join(variant_name(run.variant) or "once" for run in runs)
    print(f"would submit {runs[0].folder.name}: {names}")
    for run in runs:
        print(f"  python -m {shlex.join([*run.task.command, *run.flags])}")
    print(f"\n{script}")


def cluster_of(config: PipelineConfig, task: TaskSpec) -> ClusterConfig:
    """Return what a task's jobs request; raises ConfigError if that is invalid."""
    return load_part(ClusterConfig, {**plain(config.cluster), **task.cluster, "folder": str(config.folder / "jobs")})
