"""The pretrainings of a search: their settings, and the score of each."""

import math
from dataclasses import replace
from pathlib import Path

from mae_curriculum.config import ConfigError, load_file
from mae_curriculum.distributed import World
from mae_curriculum.pretraining import pretrain_until
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.run.folder import RunFolder, read_facts
from mae_curriculum.run.stop import Stop
from mae_curriculum.search.methods import Candidate
from mae_curriculum.training.anomalies import DivergedError


class SearchStoppedError(Exception):
    """The search was asked to stop; started again, it resumes."""


def run_folder(search: Path, candidate: Candidate, seed: int) -> Path:
    """Return the run folder of a candidate's pretraining."""
    return search / "runs" / f"{candidate.name}-seed{seed}"


def configure_run(search: Path, pretrain: PretrainConfig, candidate: Candidate, seed: int) -> PretrainConfig:
    """Return the settings of a candidate's pretraining."""
    config = replace(
        pretrain,
        run=run_folder(search, candidate, seed),
        seed=seed,
        curriculum=candidate.curriculum,
        epochs=candidate.epochs,
    )
    if candidate.kept_epochs:
        config = replace(config, saving=replace(config.saving, keep_every_epochs=candidate.kept_epochs))
    if candidate.previous:
        best = run_folder(search, candidate.previous, seed)
        config = replace(config, init=best.with_name(f"{best.name}@{candidate.previous.kept_epochs}"))
    return config


def score_run(stop: Stop, world: World, config: PretrainConfig) -> float:
    """Return the kNN accuracy of a pretraining, which is read if it has finished, else run or resumed.

    A run that diverges has NaN.

    Raises  SearchStoppedError if it was asked to stop.
    """
    accuracy = world.on_main(lambda: read_accuracy(config))
    if accuracy is not None:
        return accuracy
    if world.any(stop.reason(needed_seconds=0) is not None):
        raise SearchStoppedError
    try:
        result = pretrain_until(stop, world, config)
    except DivergedError as error:
        world.log(f"{config.run} has no score and loses: {error}")
        return math.nan
    if not result.finished:
        raise SearchStoppedError
    assert result.accuracy is not None, "images without labels are refused before"
    return result.accuracy


def read_accuracy(config: PretrainConfig) -> float | None:
    """Return the kNN accuracy of a finished pretraining; None if it has not finished.

    Raises  ConfigError if it had another curriculum, whose file has changed since.
    """
    folder = RunFolder(config.run)
    if not folder.summary.exists():
        return None
    if load_file(PretrainConfig, folder.config).curriculum != config.curriculum:
        raise ConfigError(
            f"{config.run} was pretrained with another curriculum than the search has now; restore the curriculum's "
            "file, or choose another --run"
        )
    accuracy: float | None = read_facts(folder.summary).get("knn")
    return accuracy
