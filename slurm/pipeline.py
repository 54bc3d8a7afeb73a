"""`pipeline`: a pretraining and its evaluations as dependent jobs, for each of several seeds, rates or curricula.

The folder of the pipeline is its state: the same command again submits what has neither finished nor is in the queue,
and prints the table of results.

    FOLDER/VARIANT/pretrain           run folders; without variants FOLDER/pretrain
    FOLDER/VARIANT/finetune@200       evaluation of the checkpoint of 200 equivalent epochs
                     .../submission.json   id and log of its job
    FOLDER/jobs/                      logs, settings and code of the jobs
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from mae_curriculum.config import dump, load_part, plain
from mae_curriculum.run.lock import hold
from slurm.cluster import ClusterConfig, copy_code, make_executor, new_job_folder, read_submission, submit_jobs
from slurm.job import Job
from slurm.pipeline_config import PipelineConfig, PipelineRun, TaskSpec, expand_runs, variant_name
from slurm.result_table import format_result_table
from slurm.status import read_queue
from slurm.submit import run_in_process


def pipeline(config: PipelineConfig) -> int:
    """Run or submit what has not finished, then print the table of results; returns the exit code."""
    groups = expand_runs(config)
    for task in (config.pretrain, *config.evaluate):
        cluster_of(config, task)
    with ExitStack() as stack:
        if not config.dry_run:  # two at once would submit everything twice
            config.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(config.folder / "lock.json", on_takeover=lambda _: None))
        code = run_here(groups) if config.local else submit_unfinished(config, groups)
    queue = {} if config.local else read_queue()
    print(format_result_table(groups, queue))
    return code


def run_here(groups: Sequence[Sequence[PipelineRun]]) -> int:
    """Run what has not finished, one after the other; returns the exit code of the first that fails or is stopped."""
    for run in (run for group in groups for run in group if not run.result.exists()):
        package, subcommand, *arguments = run.task.command
        print(f"{run.folder}: {package} {subcommand}", flush=True)
        code = run_in_process(package, subcommand, [*arguments, *run.flags])
        if code:
            return code
    return 0


def submit_unfinished(config: PipelineConfig, groups: Sequence[Sequence[PipelineRun]]) -> int:
    """Submit what has neither finished nor is in the queue; returns the exit code."""
    queue = read_queue()
    for group in groups:
        todo = [run for run in group if not run.result.exists() and job_of(run) not in queue]
        if config.dry_run and todo:
            names = ", ".join(variant_name(run.variant) or "once" for run in todo)
            print(f"would submit {todo[0].folder.name}: {names}")
        elif todo:
            for runs, dependency in group_by_dependency(todo):
                submit_array(config, runs, dependency)
    return 0


def job_of(run: PipelineRun) -> str | None:
    """Return the id of the job last submitted for a run."""
    return read_submission(run.folder).get("job")


def group_by_dependency(runs: Sequence[PipelineRun]) -> list[tuple[list[PipelineRun], str | None]]:
    """Return which runs are submitted together, and what they wait for.

    Evaluations of all tasks of an array, in its order, wait task by task; others each for its own pretraining, or for
    nothing if that has finished.
    """
    ready = []
    waiting = []
    jobs = []
    for run in runs:
        if run.pretraining is None or (run.pretraining / "summary.json").exists():
            ready.append(run)
        else:
            waiting.append(run)
            jobs.append(read_submission(run.pretraining).get("job", ""))
    array = jobs[0].partition("_")[0] if jobs else ""
    grouped: list[tuple[list[PipelineRun], str | None]] = [(ready, None)] if ready else []
    if len(jobs) > 1 and jobs == [f"{array}_{index}" for index in range(len(jobs))]:
        return [*grouped, (waiting, f"aftercorr:{array}")]
    return [*grouped, *(([run], f"afterok:{job}") for run, job in zip(waiting, jobs, strict=True))]


def submit_array(config: PipelineConfig, runs: Sequence[PipelineRun], dependency: str | None) -> None:
    """Submit runs of one task, several as an array."""
    task = runs[0].task
    cluster = cluster_of(config, task)
    if dependency:
        cluster = replace(cluster, sbatch={**cluster.sbatch, "dependency": dependency, "kill-on-invalid-dep": "yes"})
    label = runs[0].folder.name
    folder = new_job_folder(cluster, label)
    array_parallelism = config.at_once or len(runs)
    executor = make_executor(cluster, f"{config.folder.name}-{label}", folder, array_parallelism=array_parallelism)
    copy_code(folder)
    package, subcommand = task.command[:2]
    jobs = []
    for index, run in enumerate(runs):
        frozen = folder / f"settings-{index}.yaml"
        frozen.write_text(dump(run.settings))
        jobs.append(Job(package, (subcommand, "--config", str(frozen)), cluster.requeues))
    submit_jobs(executor, jobs, [run.folder for run in runs])


def cluster_of(config: PipelineConfig, task: TaskSpec) -> ClusterConfig:
    """Return what a task's jobs request; raises ConfigError if that is invalid."""
    return load_part(ClusterConfig, {**plain(config.cluster), **task.cluster, "folder": str(config.folder / "jobs")})
