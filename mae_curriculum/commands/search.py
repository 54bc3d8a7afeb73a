"""Search a curriculum for pretraining, by kNN or linear accuracy; the course is in `search/course.py`."""

from dataclasses import replace
from functools import partial
from typing import Any

from mae_curriculum.commands.config import SearchConfig
from mae_curriculum.commands.plan import complete
from mae_curriculum.commands.shapes import find_shape
from mae_curriculum.config import ConfigError
from mae_curriculum.data.contents import Contents, look_at
from mae_curriculum.data.sources import Images, open_together
from mae_curriculum.distributed import World
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.evaluation.knn import why_no_knn
from mae_curriculum.evaluation.linear import linear_of_encoder
from mae_curriculum.pretraining import pretrain_until
from mae_curriculum.pretraining_config import PretrainConfig, build_clock, list_choices, with_choices
from mae_curriculum.run.folder import read_facts
from mae_curriculum.run.stop import Stop
from mae_curriculum.search.budget import Cost, Subject, refuse_fractions, trained_cost
from mae_curriculum.search.course import Contest, print_budget, run_search
from mae_curriculum.search.methods import Candidate, build_method
from mae_curriculum.search.runs import keep_fact
from mae_curriculum.training.loop import raise_if_stopped
from mae_curriculum.weights.build import build_encoder, read_together

LINEAR = "linear.json"
"""File in a run folder with the linear accuracy of its encoder."""


def search(config: SearchConfig) -> int:
    """Search a curriculum, or resume the search; returns the exit code: 75 if it was asked to stop."""
    if config.dry_run:
        return print_budget(config, prepare(config, look_at(config.pretrain.data)))
    return run_search(config, partial(set_up, config))


def prepare(config: SearchConfig, contents: Contents, *, processes: int = 1) -> Subject[PretrainConfig]:
    """Return what the search pretrains, for these images.

    Raises  ConfigError for settings that do not fit together, sizes of broken patches, weights that do not fit.
    """
    given = replace(config.pretrain, epochs=config.epochs or config.pretrain.epochs)
    pretrain = with_choices(given, contents)
    first, *_ = next(build_method(config, pretrain))  # no later one that starts fresh has fewer epochs
    whole = complete(replace(pretrain, epochs=first.epochs), contents)
    shape = find_shape(whole.model)
    if config.method != "halving":
        refuse_fractions(config.sizes, shape.encoder.image_size, shape.encoder.patch_size)

    def cost(candidate: Candidate) -> Cost:
        run = replace(whole, curriculum=candidate.curriculum, epochs=candidate.epochs)
        clock = build_clock(run, shape, images_per_epoch=contents.train.images, processes=processes)
        return trained_cost(candidate, clock, shape.training_flops)

    return Subject(pretrain, cost, list_choices(given, pretrain))


def set_up(config: SearchConfig, world: World, stop: Stop) -> Contest[PretrainConfig]:
    """Open the images; return how the candidates are pretrained and scored."""
    images, val, contents = open_together(config.pretrain.data, world)
    no_knn = why_no_knn(images, val, config.pretrain.knn)
    if no_knn:
        raise ConfigError(f"pretrain.data: a search compares accuracies, and there is none: {no_knn}")

    def train(run: PretrainConfig) -> dict[str, Any] | None:
        return pretrain_until(stop, world, run).summary or None

    def score(run: PretrainConfig, summary: dict[str, Any]) -> float:
        if config.score == "linear":
            return linear_score(stop, world, run, images, val)
        knn: float = summary["knn"]  # there, as images without labels are refused
        return knn

    return Contest(prepare(config, contents, processes=world.world_size), train, score, config.score)


def linear_score(stop: Stop, world: World, run: PretrainConfig, images: Images, val: Images | None) -> float:
    """Return the linear accuracy of a finished run's encoder; the first job's is kept in the run folder.

    Raises  StoppedError if it was asked to stop.
    """
    facts = world.on_main(partial(read_facts, run.run / LINEAR))
    if not facts:
        model = build_encoder(read_together(run.run, world), run.run).to(world.device)
        check = partial(raise_if_stopped, stop, world)
        check()
        inference = Inference(world, run.data, run.precision, run.knn.batch_images, check=check)
        measured = {"accuracy": linear_of_encoder(model, images, val, config=run.knn, inference=inference)}
        facts = world.on_main(partial(keep_fact, run, LINEAR, measured))
    accuracy: float = facts["accuracy"]
    return accuracy
