"""Settings of a pipeline, and the runs that follow from them: a pretraining, in variants, and its evaluations."""

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mae_curriculum.config import ConfigError, differences, dump, load_file
from mae_curriculum.files import write_atomic
from mae_curriculum.training.choices import MIN_EPOCHS
from slurm.cluster import ClusterConfig
from slurm.submit import resolve_settings, validate_command

VARIANT = "variant"
"""Key of a combination that names one of the task's `variants`."""


@dataclass(frozen=True)
class TaskSpec:
    """A command of the pipeline."""

    command: tuple[str, ...]
    """Package, command and settings; the pipeline adds `--run`, `--checkpoint` and the values of `vary`."""
    vary: dict[str, list[Any]] = field(default_factory=dict)
    """Settings and the values to try for each; every combination is a separate run."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Named groups of settings, such as {plain: {curriculum: none, epochs: 6}}, each run with every combination of
    `vary`."""
    cluster: dict[str, Any] = field(default_factory=dict)
    """Settings that override the pipeline's `cluster` for these jobs; `folder` has no effect."""
    name: str | None = None
    """Name of its run folders; null for the command's."""

    def __post_init__(self) -> None:
        validate_command(self.command)
        if self.name is not None and not re.fullmatch(r"[\w.-]+", self.name):
            raise ConfigError(f"name: letters, digits, '.', '_' and '-', got '{self.name}'")
        for key, values in self.vary.items():
            if not values:
                raise ConfigError(f"vary.{key}: needs at least one value")
        for name, settings in self.variants.items():
            if twice := settings.keys() & self.vary.keys():
                raise ConfigError(f"variants.{name}: {min(twice)} is in `vary` too; leave it out of one")

    @property
    def label(self) -> str:
        """Name of its run folders."""
        return self.name or self.command[1]

    @property
    def combinations(self) -> list[dict[str, Any]]:
        """Every combination of the values to try, each with all variants; these have the key `VARIANT`."""
        choices = self.vary | ({VARIANT: list(self.variants)} if self.variants else {})
        return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]

    def as_flags(self, combination: Mapping[str, Any]) -> list[str]:
        """Return the settings of a combination as flags."""
        settings = {**combination, **self.variants.get(combination.get(VARIANT, ""), {})}
        settings.pop(VARIANT, None)
        words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
        return [f"--{key}={value}" for key, value in words.items()]


@dataclass(frozen=True)
class EvaluationSpec(TaskSpec):
    """A command that evaluates the checkpoints of the pretraining."""

    at: tuple[int, ...] = ()
    """Equivalent epochs after which to evaluate, in addition to the end."""


@dataclass(frozen=True)
class PipelineConfig:
    """Run pretraining and its evaluations: `python -m slurm pipeline FILE`."""

    folder: Path
    """Folder of the pipeline; must be visible to every node."""
    pretrain: TaskSpec
    """The pretraining command."""
    evaluate: tuple[EvaluationSpec, ...] = ()
    """Commands that evaluate the pretraining runs."""
    cluster: ClusterConfig = ClusterConfig()
    """What the jobs request, given inline or as a path to a file."""
    results: Path | None = None
    """Folder for the results: NAME.json, .md and .png, with the name of `folder`, of the pretrainings that have
    finished together with all their evaluations. null for the printed table alone."""
    baseline: dict[str, Any] = field(default_factory=dict)
    """Values of `pretrain.vary`, or a variant, such as {variant: plain}, that the results are compared with; each run
    is compared with the one that has these values instead of its own."""
    at_once: int | None = None
    """Maximum number of jobs of an array that run at the same time; null for no limit. With `local`, the number of
    pretrainings, each followed by its evaluations, that run side by side; null for one after another."""
    dry_run: bool = False
    """Print the commands and the scripts that would be submitted, and submit nothing."""
    local: bool = False
    """Run everything here, without SLURM."""

    def __post_init__(self) -> None:
        labels = [task.label for task in (self.pretrain, *self.evaluate)]
        if repeated := {label for label in labels if labels.count(label) > 1}:
            raise ConfigError(f"evaluate: two tasks are called '{min(repeated)}'; give one of them a `name`")
        if self.local and self.dry_run:
            raise ConfigError("local: the commands run here, at once; leave out --dry_run")
        choices = self.pretrain.vary | {VARIANT: list(self.pretrain.variants)}
        for key, value in self.baseline.items():
            if value not in choices.get(key, []):
                raise ConfigError(f"baseline: {key}={value} is not among the values of pretrain.vary or its variants")
        if self.at_once is not None and self.at_once < 1:
            raise ConfigError(f"at_once must be at least 1, got {self.at_once}")
        if min(self.evaluation_epochs, default=1) < 1:
            raise ConfigError(f"evaluate.at: equivalent epochs are at least 1, got {min(self.evaluation_epochs)}")
        if self.evaluation_epochs and any("keep_every_epochs" in word for word in self.pretrain.command):
            raise ConfigError("pretrain.command: saving.keep_every_epochs follows from evaluate.at; leave it out")

    @property
    def evaluation_epochs(self) -> set[int]:
        """Epochs after which any command evaluates."""
        return {epochs for task in self.evaluate for epochs in task.at}


@dataclass(frozen=True)
class PipelineRun:
    """One run of the pipeline."""

    task: TaskSpec
    variant: dict[str, Any]
    """The pretraining's combination of values."""
    folder: Path
    """Run folder."""
    flags: tuple[str, ...]
    """What the pipeline adds to the task's command."""
    pretraining: Path | None = None
    """For an evaluation: the run folder of the pretraining."""

    @cached_property
    def settings(self) -> Any:
        """Settings of its command; raises ConfigError if they are invalid."""
        package, subcommand, *arguments = self.task.command
        return resolve_settings(package, subcommand, [*arguments, *self.flags])

    @property
    def started_with(self) -> Path:
        """File of the settings with which it was started."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    def keep_settings(self) -> None:
        """Write the file of its settings, when it is started."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.started_with, dump(self.settings).encode())

    @property
    def result(self) -> Path:
        """File with the result, which is there once the run has finished."""
        return self.folder / ("results.json" if self.pretraining else "summary.json")


def expand_runs(config: PipelineConfig) -> list[list[PipelineRun]]:
    """List the runs in groups: the pretrainings, then for each evaluation and epoch one run per pretraining.

    Raises  ConfigError for invalid settings of any run.
    """
    pretrainings = expand_pretrainings(config)
    groups = [pretrainings]
    for task in config.evaluate:
        for variant, epochs in itertools.product(task.combinations, [*sorted(set(task.at)), None]):
            suffix = "" if epochs is None else f"@{epochs}"
            name = "-".join(filter(None, [task.label, variant_name(variant)])) + suffix
            group = []
            for before in pretrainings:
                folder = before.folder.with_name(name)
                flags = ("--run", str(folder), "--checkpoint", f"{before.folder}{suffix}", *task.as_flags(variant))
                group.append(PipelineRun(task, before.variant, folder, flags, before.folder))
            groups.append(group)
    folders = [run.folder for group in groups for run in group]
    if repeated := {folder for folder in folders if folders.count(folder) > 1}:
        raise ConfigError(f"vary: two combinations would share the folder {min(repeated)}; name the values differently")
    for group in groups:
        for run in group:
            _ = run.settings  # every invalid setting is reported before anything starts
            refuse_others(run)
    return groups


def refuse_others(run: PipelineRun) -> None:
    """Raise ConfigError for a finished run of other settings, or of a pretraining that is no longer there."""
    if not run.result.exists():
        return
    if run.started_with.exists():
        before = load_file(type(run.settings), run.started_with)
        changed = {*differences(before, run.settings)}
        old, new = (getattr(each, "seeds", None) for each in (before, run.settings))
        if old != new:  # a command alone may add seeds to its run
            changed.add(f"seeds: {old} -> {new}")
        if changed:
            raise ConfigError(
                f"{run.folder} has finished with other settings ({'; '.join(sorted(changed))}); restore them, choose "
                "another `folder`, or remove it"
            )
    if run.pretraining is not None and not (run.pretraining / "summary.json").exists():
        raise ConfigError(f"{run.folder} is of a pretraining that is no longer in {run.pretraining}; remove it too")


def expand_pretrainings(config: PipelineConfig) -> list[PipelineRun]:
    """List the pretrainings, which keep the checkpoints that are evaluated before the end."""
    at = config.evaluation_epochs
    kept = ("--saving.keep_every_epochs", str(math.gcd(*at))) if at else ()
    runs = []
    task = config.pretrain
    for variant in task.combinations:
        folder = config.folder / variant_name(variant) / task.label
        run = PipelineRun(task, variant, folder, ("--run", str(folder), *task.as_flags(variant), *kept))
        epochs = run.settings.epochs or MIN_EPOCHS  # the fewest that a run chooses for its images
        if at and max(at) > epochs:
            raise ConfigError(f"evaluate.at: {max(at)} is beyond the {epochs} epochs of {folder}")
        runs.append(run)
    return runs


def variant_name(variant: Mapping[str, Any]) -> str:
    """Format a combination by its values, `seed=0,curriculum=none`, a variant by its name; empty for the only one."""
    parts = []
    for key, value in variant.items():
        short = Path(str(value)).stem if "/" in str(value) else value
        parts.append(value if key == VARIANT else f"{key.rpartition('.')[2]}={short}")
    return ",".join(parts)
