"""Search a curriculum for classifiers, by validation accuracy; the course is in `mae_curriculum/search/course.py`."""

from dataclasses import replace
from functools import cache, partial

import torch

from finetune.choices import list_choices, with_choices
from finetune.classifier import build_classifier
from finetune.config import FinetuneConfig
from finetune.finetune import build_clock, finetune_once, training_flops
from finetune.labeled import count_classes, count_training, open_labeled
from finetune.search_config import SupervisedSearchConfig
from mae_curriculum.curriculum.clock import View
from mae_curriculum.data.contents import look_at
from mae_curriculum.distributed import World
from mae_curriculum.run.folder import check_checkpoint
from mae_curriculum.run.stop import Stop
from mae_curriculum.search.budget import Cost, Subject, refuse_fractions, trained_cost
from mae_curriculum.search.course import Contest, print_budget, run_search
from mae_curriculum.search.methods import Candidate
from mae_curriculum.weights.build import read_together
from mae_curriculum.weights.normalization import with_normalization
from mae_curriculum.weights.read import Weights, read_weights
from mae_curriculum.weights.run_settings import resolve_source


def search(config: SupervisedSearchConfig) -> int:
    """Search a curriculum, or resume the search; returns the exit code: 75 if it was asked to stop."""
    given = config.finetune
    if given.checkpoint is not None:
        check_checkpoint(given.checkpoint, "finetune.checkpoint")
    data = resolve_source(given.data, given.checkpoint, "finetune.data")
    config = replace(config, finetune=replace(given, data=data))
    if config.dry_run:
        weights = None if given.checkpoint is None else read_weights(given.checkpoint, **given.hints)
        contents = look_at(config.finetune.data)
        images, classes = count_training(contents), count_classes(contents)
        return print_budget(config, prepare(config, weights, images=images, classes=classes))
    return run_search(config, partial(set_up, config))


def prepare(
    config: SupervisedSearchConfig, weights: Weights | None, *, images: int, classes: int, processes: int = 1
) -> Subject[FinetuneConfig]:
    """Return what the search trains.

    images  number of training images.
    Raises  ConfigError for settings that do not fit together, sizes that the network cannot take.
    """
    given = replace(config.finetune, epochs=config.epochs or config.finetune.epochs)
    training = with_choices(given, images)
    model, _ = build_classifier(training.model, weights, class_count=classes, seed=training.seed)
    if config.method != "halving":
        refuse_fractions(config.sizes, model.image_size, model.cell)

    @cache
    def flops(view: View) -> int:
        model.make_ready_({view.size}, torch.device("cpu"))
        return training_flops(model, view)

    def cost(candidate: Candidate) -> Cost:
        run = replace(training, curriculum=candidate.curriculum, epochs=candidate.epochs)
        clock = build_clock(run, model, images, processes=processes)
        return trained_cost(candidate, clock, flops)

    return Subject(training, cost, list_choices(given, training))


def set_up(config: SupervisedSearchConfig, world: World, stop: Stop) -> Contest[FinetuneConfig]:
    """Read the weights, open the images; return how the candidates are trained and scored."""
    given, weights = config.finetune, None
    if given.checkpoint is not None:
        weights = read_together(given.checkpoint, world, **given.hints)
        data = with_normalization(given.data, weights, given.checkpoint, world.log)
        config = replace(config, finetune=replace(given, data=data))
    train, val = open_labeled(config.finetune.data, world)
    subject = prepare(config, weights, images=len(train.images), classes=len(train.classes), processes=world.world_size)
    once = partial(finetune_once, weights=weights, train=train, val=val, world=world, stop=stop)
    return Contest(subject, once, lambda _, summary: summary["accuracy"], "accuracy")  # at the end, not the best
