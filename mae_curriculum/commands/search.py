"""Search a curriculum: show the budget, run the pretrainings, write what was found.

    runs/search/
        config.yaml, run.json, lock.json    as in a run folder
        runs/1-96-seed0/                    run folder of a pretraining: round, candidate, seed
        curriculum.yaml                     the curriculum that was found, with its provenance
        tree.png, results.json              all candidates with their scores

The run folders are the state: the same command reads the finished runs, resumes the one that was stopped or killed, and
takes the same course. Started several times, it shares the pretrainings of each round among these jobs.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import isnan
from statistics import fmean
from typing import Any

from mae_curriculum.commands.search_budget import compute_budget, format_budget, full_size_cost, prepare
from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.config import Curriculum
from mae_curriculum.data.contents import look_at
from mae_curriculum.data.sources import Images, open_together
from mae_curriculum.distributed import World, connect
from mae_curriculum.evaluation.knn import why_no_knn
from mae_curriculum.files import write_atomic, write_json
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.run.folder import RunFolder, read_facts
from mae_curriculum.run.lock import hold_in_turn
from mae_curriculum.run.stop import EXIT_RESUMABLE, Stop
from mae_curriculum.search.config import SearchConfig
from mae_curriculum.search.methods import Candidate, Found, build_method, follow
from mae_curriculum.search.picture import draw_search
from mae_curriculum.search.result import SCORES, curriculum_file, describe_search, format_search
from mae_curriculum.search.runs import SearchStoppedError, finish_run, linear_score, prepare_run, share, wait_for_others
from mae_curriculum.training.loop import watch_for_stop

COMMAND = "search"


def search(config: SearchConfig) -> int:
    """Search a curriculum, or resume the search; returns the exit code: 75 if it was asked to stop."""
    if config.dry_run:
        budget = compute_budget(config, *prepare(config, look_at(config.pretrain.data)))
        print(json.dumps(budget, indent=2) if config.json else format_budget(budget))
        return 0
    limited = replace(config.pretrain, time_limit=config.time_limit)
    with connect() as world, watch_for_stop(limited, exits=True) as stop:
        world.on_main(partial(claim, RunFolder(config.run), config))
        try:
            facts = search_in(stop, world, config)
        except SearchStoppedError:
            world.log("the search has stopped; run the same command to resume")
            return EXIT_RESUMABLE
        world.print(json.dumps(facts, indent=2) if config.json else format_search(facts))
    return 0


def claim(folder: RunFolder, config: SearchConfig) -> None:
    """Create the folder of the search; raises ConfigError if it is another's."""
    folder.refuse_others(config, command=COMMAND)
    folder.path.mkdir(parents=True, exist_ok=True)
    with hold_in_turn(folder.lock):
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
    candidates, found, scores = run_course(stop, world, config, pretrain, images, val)
    full = full_size_cost(pretrain, cost).flops
    relative = {each.name: cost(each).flops / full for each in candidates}
    facts = describe_search(config, candidates, found, scores=scores, relative_flops=relative) | {"budget": budget}
    world.on_main(partial(write_results, config, facts, found.curriculum))
    return facts


def run_course(
    stop: Stop, world: World, config: SearchConfig, pretrain: PretrainConfig, images: Images, val: Images | None
) -> tuple[list[Candidate], Found, dict[str, list[float]]]:
    """Pretrain with all candidates, or read what this and other jobs have done.

    Returns  the candidates, what was found, and the scores of each candidate, one for each seed.
    Raises   SearchStoppedError if the search was asked to stop.
    """
    scores: dict[str, list[float]] = {}

    def score_run(task: tuple[Candidate, int]) -> float:
        run = prepare_run(world, config.run, pretrain, *task)
        accuracy = finish_run(stop, world, run)
        if config.score == "linear" and not isnan(accuracy):
            accuracy = linear_score(stop, world, run, images, val)
        world.log(f"{run.run}: {SCORES[config.score]} {accuracy:.4f}")
        return accuracy

    def score_all(group: Sequence[Candidate]) -> list[float]:
        tasks = [(candidate, seed) for candidate in group for seed in config.seeds]
        done = share(tasks, score_run, wait=partial(wait_for_others, stop, world))
        for candidate in group:
            scores[candidate.name] = [done[candidate, seed] for seed in config.seeds]
        return [fmean(scores[candidate.name]) for candidate in group]

    candidates, found = follow(build_method(config, pretrain), score_all)
    return candidates, found, scores


def write_results(config: SearchConfig, facts: dict[str, Any], curriculum: Curriculum) -> None:
    """Write what was found, unless another job has; results.json comes last: it shows that the search is complete."""
    results = config.run / "results.json"
    with hold_in_turn(RunFolder(config.run).lock):
        if not results.exists():
            write_atomic(config.run / "curriculum.yaml", curriculum_file(facts, curriculum, config.run).encode())
            draw_search(config.run / "tree.png", facts)
            write_json(results, facts)
