"""Search a curriculum: show the budget, run the pretrainings, write what was found.

    runs/search/
        config.yaml, run.json, lock.json    as in a run folder
        runs/1-96-seed0/                    run folder of a pretraining: round, candidate, seed
        curriculum.yaml                     the curriculum that was found, with its provenance
        tree.png, results.json              all candidates with their scores

The run folders are the state: the same command reads the finished runs, resumes the one that was stopped or killed, and
takes the same course.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from math import isnan
from statistics import fmean
from typing import Any

from mae_curriculum.commands.search_budget import compute_budget, format_budget, full_size_cost, prepare
from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.config import Curriculum
from mae_curriculum.data.contents import look_at
from mae_curriculum.data.sources import open_together
from mae_curriculum.distributed import World, connect
from mae_curriculum.evaluation.knn import why_no_knn
from mae_curriculum.files import write_atomic, write_json
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.run.folder import RunFolder, read_facts
from mae_curriculum.run.lock import hold
from mae_curriculum.run.stop import EXIT_RESUMABLE, Stop
from mae_curriculum.search.config import SearchConfig
from mae_curriculum.search.methods import Candidate, build_method, follow
from mae_curriculum.search.picture import draw_search
from mae_curriculum.search.result import SCORES, curriculum_file, describe_search, format_search
from mae_curriculum.search.runs import SearchStoppedError, finish_run, linear_score, prepare_run
from mae_curriculum.training.loop import watch_for_stop

COMMAND = "search"


def search(config: SearchConfig) -> int:
    """Search a curriculum, or resume the search; returns the exit code: 75 if it was asked to stop."""
    if config.dry_run:
        budget = compute_budget(config, *prepare(config, look_at(config.pretrain.data)))
        print(json.dumps(budget, indent=2) if config.json else format_budget(budget))
        return 0
    limited = replace(config.pretrain, time_limit=config.time_limit)
    with connect() as world, watch_for_stop(limited, exits=True) as stop, ExitStack() as resources:
        world.on_main(partial(claim, RunFolder(config.run), config, resources))
        try:
            facts = search_in(stop, world, config)
        except SearchStoppedError:
            world.log("the search has stopped; run the same command to resume")
            return EXIT_RESUMABLE
        world.print(json.dumps(facts, indent=2) if config.json else format_search(facts))
    return 0


def claim(folder: RunFolder, config: SearchConfig, resources: ExitStack) -> None:
    """Hold the folder of the search; raises ConfigError if it is another's, or in use."""
    folder.refuse_others(config, command=COMMAND)
    folder.path.mkdir(parents=True, exist_ok=True)
    resources.enter_context(hold(folder.lock, on_takeover=lambda _: None))
    folder.claim(config, command=COMMAND)


def search_in(stop: Stop, world: World, config: SearchConfig) -> dict[str, Any]:
    """Search in the processes that are connected already; returns the content of results.json.

    Raises  SearchStoppedError if the search was asked to stop.
    """
    facts = world.on_main(partial(read_facts, config.run / "results.json"))
    if facts:
        world.log(f"{config.run} is finished already")
        return facts
    images, val, contents = open_together(config.pretrain.data, world)
    no_knn = why_no_knn(images, val, config.pretrain.knn)
    if no_knn:
        raise ConfigError(f"pretrain.data: a search compares accuracies, and there is none: {no_knn}")
    pretrain, cost = prepare(config, contents, processes=world.world_size)
    budget = compute_budget(config, pretrain, cost)
    for line in f"{config.method} search: {format_budget(budget)}".splitlines():
        world.log(line)
    scores: dict[str, list[float]] = {}

    def score_one(run: PretrainConfig) -> float:
        knn = finish_run(stop, world, run)
        return knn if config.score == "knn" or isnan(knn) else linear_score(world, run, images, val)

    def score(candidate: Candidate) -> float:
        scores[candidate.name] = score_candidate(world, config, pretrain, candidate, score_one)
        return fmean(scores[candidate.name])

    candidates, found = follow(build_method(config, pretrain), score)
    full = full_size_cost(pretrain, cost).flops
    relative = {each.name: cost(each).flops / full for each in candidates}
    facts = describe_search(config, candidates, found, scores=scores, relative_flops=relative) | {"budget": budget}
    world.on_main(partial(write_results, config, facts, found.curriculum))
    return facts


def score_candidate(
    world: World,
    config: SearchConfig,
    pretrain: PretrainConfig,
    candidate: Candidate,
    score_one: Callable[[PretrainConfig], float],
) -> list[float]:
    """Pretrain with each seed, and return the scores."""
    scores = []
    for seed in config.seeds:
        run = prepare_run(world, config.run, pretrain, candidate, seed)
        scores.append(score_one(run))
        world.log(f"{run.run}: {SCORES[config.score]} {scores[-1]:.4f}")
    return scores


def write_results(config: SearchConfig, facts: dict[str, Any], curriculum: Curriculum) -> None:
    """Write what was found; results.json comes last, as it shows that the search is complete."""
    write_atomic(config.run / "curriculum.yaml", curriculum_file(facts, curriculum, config.run).encode())
    draw_search(config.run / "tree.png", facts)
    write_json(config.run / "results.json", facts)
