"""The course of a search, whatever it trains: show the budget, train the candidates, write what was found.

    runs/search/
        config.yaml, run.json, lock.json    as in a run folder
        runs/1-96-seed0/                    run folder of a candidate: round, label, seed
        curriculum.yaml                     the curriculum that was found, with its provenance
        tree.png, results.json              all candidates with their scores

The run folders are the state: the same command reads the finished runs, resumes the one that was stopped or killed, and
takes the same course. Started several times, it shares the runs of each round among these jobs.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from statistics import fmean
from typing import Any, Generic

from mae_curriculum.curriculum.config import Curriculum
from mae_curriculum.distributed import World, connect
from mae_curriculum.files import write_atomic, write_json
from mae_curriculum.run.folder import RunFolder, read_facts
from mae_curriculum.run.lock import hold_in_turn
from mae_curriculum.run.stop import EXIT_RESUMABLE, Stop, StoppedError
from mae_curriculum.search.budget import Subject, compute_budget, format_budget, full_size_cost
from mae_curriculum.search.config import C, Score, SearchOptions
from mae_curriculum.search.methods import Candidate, Found, build_method, follow
from mae_curriculum.search.picture import draw_search
from mae_curriculum.search.result import SCORES, curriculum_file, describe_search, format_search
from mae_curriculum.search.runs import finish_run, prepare_run, share, wait_for_others
from mae_curriculum.training.loop import watch_for_stop


@dataclass(frozen=True)
class Contest(Generic[C]):
    """How the candidates of a search are trained and scored, in the processes that are connected already."""

    subject: Subject[C]
    train: Callable[[C], dict[str, Any] | None]
    """Trains a run, or resumes it; returns its summary, None if it was asked to stop."""
    score: Callable[[C, dict[str, Any]], float]
    """Returns the score, 0 to 1, of a finished run with its summary."""
    scored_by: Score


def print_budget(config: SearchOptions, subject: Subject[Any]) -> int:
    """Print what a search costs at most; returns the exit code."""
    budget = compute_budget(config, subject)
    print(json.dumps(budget, indent=2) if config.json else format_budget(budget))
    return 0


def run_search(config: SearchOptions, set_up: Callable[[World, Stop], Contest[C]]) -> int:
    """Search a curriculum, or resume the search; returns the exit code: 75 if it was asked to stop."""
    limited = replace(config.training, time_limit=config.time_limit)
    with connect() as world, watch_for_stop(limited, exits=True) as stop:
        world.on_main(partial(claim, RunFolder(config.run), config))
        try:
            facts = search_in(stop, world, config, set_up)
        except StoppedError:
            world.log("the search has stopped; run the same command to resume")
            return EXIT_RESUMABLE
        world.print(json.dumps(facts, indent=2) if config.json else format_search(facts))
    return 0


def claim(folder: RunFolder, config: SearchOptions) -> None:
    """Create the folder of the search; raises ConfigError if it is another's."""
    folder.refuse_others(config, command=config.command)
    folder.path.mkdir(parents=True, exist_ok=True)
    with hold_in_turn(folder.lock):
        folder.claim(config, command=config.command)


def search_in(
    stop: Stop, world: World, config: SearchOptions, set_up: Callable[[World, Stop], Contest[C]]
) -> dict[str, Any]:
    """Search in the processes that are connected already; returns the content of results.json.

    Raises  StoppedError if the search was asked to stop.
    """
    facts = world.on_main(partial(read_facts, config.run / "results.json"))
    if facts:
        world.log(f"{config.run} is finished already")
        return facts
    contest = set_up(world, stop)
    subject = contest.subject
    budget = compute_budget(config, subject)
    for line in f"{config.method} search: {format_budget(budget)}".splitlines():
        world.log(line)
    candidates, found, scores = run_course(stop, world, config, contest)
    full = full_size_cost(subject).flops
    relative = {each.name: subject.cost(each).flops / full for each in candidates}
    facts = describe_search(
        config, candidates, found, scored_by=contest.scored_by, scores=scores, relative_flops=relative
    )
    facts |= {"budget": budget}
    world.on_main(partial(write_results, config, facts, found.curriculum))
    return facts


def run_course(
    stop: Stop, world: World, config: SearchOptions, contest: Contest[C]
) -> tuple[list[Candidate], Found, dict[str, list[float]]]:
    """Train all candidates, or read what this and other jobs have done.

    Returns  the candidates, what was found, and the scores of each candidate, one for each seed.
    Raises   StoppedError if the search was asked to stop.
    """
    scores: dict[str, list[float]] = {}
    training = contest.subject.training

    def score_run(task: tuple[Candidate, int]) -> float:
        run = prepare_run(world, config.run, training, *task, command=config.part)
        summary = finish_run(stop, world, run, contest.train)
        score = nan if summary is None else contest.score(run, summary)
        world.log(f"{run.run}: {SCORES[contest.scored_by]} {score:.4f}")
        return score

    def score_all(group: Sequence[Candidate]) -> list[float]:
        tasks = [(candidate, seed) for candidate in group for seed in range(config.seeds)]
        done = share(tasks, score_run, wait=partial(wait_for_others, stop, world))
        for candidate in group:
            scores[candidate.name] = [done[candidate, seed] for seed in range(config.seeds)]
        return [fmean(scores[candidate.name]) for candidate in group]

    candidates, found = follow(build_method(config, training), score_all)
    return candidates, found, scores


def write_results(config: SearchOptions, facts: dict[str, Any], curriculum: Curriculum) -> None:
    """Write what was found, unless another job has; results.json comes last: it shows that the search is complete."""
    results = config.run / "results.json"
    with hold_in_turn(RunFolder(config.run).lock):
        if not results.exists():
            write_atomic(config.run / "curriculum.yaml", curriculum_file(config, facts, curriculum).encode())
            draw_search(config.run / "tree.png", facts)
            write_json(results, facts)
