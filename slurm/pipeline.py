"""A pretraining and its evaluations as dependent jobs, for each of several seeds, learning rates or curricula.

The pipeline's folder is its state: the same command again submits what is neither done nor in the queue, and prints
the table of the outcome.

    FOLDER/VARIANT/pretrain           run folders; without variants FOLDER/pretrain
    FOLDER/VARIANT/finetune@200       evaluation of the checkpoint of 200 equivalent epochs
                     .../submission.json   the number of its job, and its log
    FOLDER/jobs/                      logs, settings and code of the jobs
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from mae_curriculum.config import ConfigError, dump, load_part, plain
from mae_curriculum.run.lock import hold
from slurm.cluster import ClusterConfig, copy_code, make_executor, new_folder, read_submission, send
from slurm.job import Job
from slurm.result_table import Entry, as_outcome
from slurm.status import ask_queue
from slurm.submit import check, check_command


@dataclass(frozen=True)
class Task:
    """A command of the pipeline."""

    command: tuple[str, ...]
    """Package, verb and settings; the pipeline adds `--run`, `--checkpoint` and what is varied."""
    vary: dict[str, list[Any]] = field(default_factory=dict)
    """Settings with the values to try: each combination is a run of its own."""
    cluster: dict[str, Any] = field(default_factory=dict)
    """What its jobs ask for otherwise than the pipeline's `cluster`; their folder is the pipeline's."""
    name: str | None = None
    """Name of its run folders; null for the verb."""

    def __post_init__(self) -> None:
        check_command(self.command)
        if self.name is not None and not re.fullmatch(r"[\w.-]+", self.name):
            raise ConfigError(f"name: letters, digits, '.', '_' and '-', got '{self.name}'")
        if empty := [key for key, values in self.vary.items() if not values]:
            raise ConfigError(f"vary.{empty[0]}: needs at least one value")

    @property
    def label(self) -> str:
        """Name of its run folders."""
        return self.name or self.command[1]

    @property
    def variants(self) -> list[dict[str, Any]]:
        """Every combination of the values to try."""
        return [dict(zip(self.vary, values, strict=True)) for values in itertools.product(*self.vary.values())]


@dataclass(frozen=True)
class Evaluation(Task):
    """A command that evaluates the pretraining's checkpoints."""

    at: tuple[int, ...] = ()
    """Equivalent epochs after which to evaluate, besides the end."""


@dataclass(frozen=True)
class PipelineConfig:
    """A pretraining and its evaluations: `python -m slurm pipeline FILE`."""

    folder: Path
    """Folder of the pipeline, which every node must see."""
    pretrain: Task
    """The pretraining."""
    evaluate: tuple[Evaluation, ...] = ()
    """What follows it."""
    cluster: ClusterConfig = ClusterConfig()
    """What the jobs ask for: inline, or a path to a file."""
    at_once: int | None = None
    """Most tasks of an array that run at the same time; null for all."""
    dry_run: bool = False
    """Tell what would be submitted, and submit nothing."""
    local: bool = False
    """Run everything here, one after the other, without SLURM."""

    def __post_init__(self) -> None:
        labels = [task.label for task in (self.pretrain, *self.evaluate)]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise ConfigError(f"evaluate: two tasks are called '{min(twice)}'; give one a `name`")
        if self.at_once is not None and self.at_once < 1:
            raise ConfigError(f"at_once must be at least 1, got {self.at_once}")
        if wrong := [epochs for task in self.evaluate for epochs in task.at if epochs < 1]:
            raise ConfigError(f"evaluate.at: equivalent epochs are at least 1, got {wrong[0]}")


@dataclass(frozen=True)
class Part:
    """One run of the pipeline."""

    task: Task
    variant: dict[str, Any]
    """The pretraining's combination of values."""
    run: Path
    flags: tuple[str, ...]
    """What the pipeline adds to the task's command."""
    after: Path | None = None
    """Run folder of the pretraining that it evaluates."""

    @cached_property
    def settings(self) -> Any:
        """Its command's settings, checked; raises ConfigError."""
        package, verb, *arguments = self.task.command
        return check(package, verb, [*arguments, *self.flags])

    @property
    def result(self) -> Path:
        """What is there once it is done."""
        return self.run / ("results.json" if self.after else "summary.json")


def pipeline(config: PipelineConfig) -> int:
    """Do or submit what is left to do, then print the outcome; returns the exit code."""
    groups = lay_out(config)
    for part in itertools.chain(*groups):
        _ = part.settings  # every mistake is told before anything begins
    for task in (config.pretrain, *config.evaluate):
        cluster_of(config, task)
    with ExitStack() as stack:
        if not config.dry_run:  # two at once would submit everything twice
            config.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(config.folder / "lock.json", tell=lambda _: None))
        code = run_here(groups) if config.local else submit(config, groups)
    queue = {} if config.local else ask_queue()
    print(as_outcome([[entry_of(part) for part in group] for group in groups], queue))
    return code


def lay_out(config: PipelineConfig) -> list[list[Part]]:
    """Lay out the runs, in groups: the pretrainings, then for each evaluation and point one for each pretraining."""
    points = {epochs for task in config.evaluate for epochs in task.at}
    if points and any("keep_every_epochs" in word for word in config.pretrain.command):
        raise ConfigError("pretrain.command: saving.keep_every_epochs follows from evaluate.at; leave it out")
    kept = ("--saving.keep_every_epochs", str(math.gcd(*points))) if points else ()
    pretrainings = []
    for variant in config.pretrain.variants:
        run = config.folder / name_variant(variant) / config.pretrain.label
        part = Part(config.pretrain, variant, run, ("--run", str(run), *as_flags(variant), *kept))
        if points and max(points) > part.settings.epochs:
            raise ConfigError(f"evaluate.at: {max(points)} is beyond the {part.settings.epochs} epochs of {run}")
        pretrainings.append(part)
    groups = [pretrainings]
    for task in config.evaluate:
        for variant, epochs in itertools.product(task.variants, [*sorted(set(task.at)), None]):
            point = "" if epochs is None else f"@{epochs}"
            name = "-".join(filter(None, [task.label, name_variant(variant)])) + point
            groups.append([])
            for before in pretrainings:
                run = before.run.with_name(name)
                flags = ("--run", str(run), "--checkpoint", f"{before.run}{point}", *as_flags(variant))
                groups[-1].append(Part(task, before.variant, run, flags, before.run))
    runs = [part.run for part in itertools.chain(*groups)]
    if twice := {run for run in runs if runs.count(run) > 1}:
        raise ConfigError(f"vary: two combinations would share the folder {min(twice)}; give the values other names")
    return groups


def name_variant(variant: Mapping[str, Any]) -> str:
    """Name a combination by its values, `seed=0,curriculum=none`; empty for the only one."""
    short = {
        key.rpartition(".")[2]: Path(str(value)).stem if "/" in str(value) else value for key, value in variant.items()
    }
    return ",".join(f"{key}={value}" for key, value in short.items())


def as_flags(variant: Mapping[str, Any]) -> list[str]:
    """Spell a combination as flags."""
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in variant.items()}
    return [f"--{key}={value}" for key, value in words.items()]


def entry_of(part: Part) -> Entry:
    """Say where a part stands in the table of the outcome: seeds of the same values share a row."""
    values = {key: value for key, value in part.variant.items() if key != "seed"}
    return Entry(name_variant(values) or "-", part.run, part.result)


def run_here(groups: Sequence[Sequence[Part]]) -> int:
    """Run what is not done, one after the other; returns the exit code of the first that fails or is stopped."""
    for part in itertools.chain(*groups):
        if not part.result.exists():
            package, verb, *arguments = part.task.command
            print(f"{part.run}: {package} {verb}", flush=True)
            code: int = import_module(f"{package}.__main__").main([verb, *arguments, *part.flags])
            if code:
                return code
    return 0


def submit(config: PipelineConfig, groups: Sequence[Sequence[Part]]) -> int:
    """Submit what is neither done nor in the queue; returns the exit code."""
    queue = ask_queue()
    for group in groups:
        left = [part for part in group if not part.result.exists() and job_of(part.run) not in queue]
        for parts, dependency in depend(left):
            if not config.dry_run:
                submit_array(config, parts, dependency)
        if left and config.dry_run:
            names = ", ".join(name_variant(part.variant) or "once" for part in left)
            print(f"would submit {left[0].run.name}: {names}")
    return 0


def job_of(run: Path) -> str | None:
    """Tell which job was last submitted for a run folder."""
    submission = read_submission(run)
    return submission["job"] if submission else None


def depend(parts: Sequence[Part]) -> list[tuple[list[Part], str | None]]:
    """Say what parts wait for.

    Those that evaluate all tasks of an array, in its order, wait task by task; others each for its own pretraining;
    where that is done, for nothing.
    """
    ready = [part for part in parts if part.after is None or (part.after / "summary.json").exists()]
    waiting = [(part, job_of(part.after) or "") for part in parts if part.after is not None and part not in ready]
    array = waiting[0][1].partition("_")[0] if waiting else ""
    if len(waiting) > 1 and [job for _, job in waiting] == [f"{array}_{index}" for index in range(len(waiting))]:
        later: list[tuple[list[Part], str | None]] = [([part for part, _ in waiting], f"aftercorr:{array}")]
    else:
        later = [([part], f"afterok:{job}") for part, job in waiting]
    return [*([(ready, None)] if ready else []), *later]


def submit_array(config: PipelineConfig, parts: Sequence[Part], dependency: str | None) -> None:
    """Submit parts of one task, as an array where there are several."""
    task = parts[0].task
    cluster = cluster_of(config, task)
    waits = {"dependency": dependency, "kill-on-invalid-dep": "yes"} if dependency else {}
    cluster = replace(cluster, sbatch=cluster.sbatch | waits)
    folder = new_folder(cluster, parts[0].run.name)
    name = f"{config.folder.name}-{parts[0].run.name}"
    executor = make_executor(cluster, name, folder, array_parallelism=config.at_once or len(parts))
    copy_code(folder)
    jobs = []
    for index, part in enumerate(parts):
        frozen = folder / f"settings-{index}.yaml"
        frozen.write_text(dump(part.settings))
        package, verb = task.command[:2]
        jobs.append(Job(package, (verb, "--config", str(frozen)), cluster.requeues))
    send(executor, jobs, [part.run for part in parts])


def cluster_of(config: PipelineConfig, task: Task) -> ClusterConfig:
    """Say what a task's jobs ask for; raises ConfigError."""
    return load_part(ClusterConfig, {**plain(config.cluster), **task.cluster, "folder": str(config.folder / "jobs")})
