"""What a search found: the facts of all candidates, a table, a curriculum file."""

import math
from collections.abc import Mapping, Sequence
from statistics import median, stdev
from typing import Any

from mae_curriculum.config import config_fingerprint, dump, plain
from mae_curriculum.curriculum.config import Curriculum
from mae_curriculum.evaluation.results import format_percent, spread
from mae_curriculum.search.config import Score, SearchOptions
from mae_curriculum.search.methods import Candidate, Found
from mae_curriculum.terminal import UNKNOWN, format_table
from mae_curriculum.version import __version__, code_version

SCORES: dict[Score, str] = {"knn": "kNN accuracy", "linear": "linear accuracy", "accuracy": "validation accuracy"}
"""What the scores are called."""

PROGRAMS = {"pretrain": "mae_curriculum", "finetune": "finetune"}
"""Where the command that trains is: python -m PROGRAM COMMAND."""


def describe_search(
    config: SearchOptions,
    candidates: Sequence[Candidate],
    found: Found,
    *,
    scored_by: Score,
    scores: Mapping[str, Sequence[float]],
    relative_flops: Mapping[str, float],
) -> dict[str, Any]:
    """Return the result of a search as it is written to results.json.

    scores          by the name of the candidate, one for each seed.
    relative_flops  training FLOPs of what each trains itself, relative to a full training run at full size.
    """
    return {
        "command": "search",
        "config_fingerprint": config_fingerprint(config),
        "method": config.method,
        "score": scored_by,
        "seeds": list(range(config.seeds)),
        "tolerance": config.tolerance if config.method == "greedy" else None,
        "commit": code_version(),
        "candidates": [
            {
                "round": candidate.round,
                "label": candidate.label,
                "stages": plain(candidate.trained_stages),
                "pace": candidate.curriculum.pace,
                "epochs": candidate.trained_epochs,
                "relative_flops": relative_flops[candidate.name],
                "accuracy": describe_scores(scores[candidate.name]),
                "chosen": (candidate.round, candidate.label) in found.path,
            }
            for candidate in candidates
        ],
        "path": [list(choice) for choice in found.path],
        "curriculum": plain(found.curriculum),
    }


def describe_scores(scores: Sequence[float]) -> dict[str, Any] | None:
    """Return the mean and the spread of a candidate's scores; None if one of its runs diverged."""
    return None if any(map(math.isnan, scores)) else spread(list(scores))


def format_search(facts: Mapping[str, Any]) -> str:
    """Format the result of a search as a table of candidates, and what was found."""
    header = ["round", "candidate", "stages", "epochs", "compute", score_name(facts), "chosen"]
    table = format_table([header, *map(format_row, facts["candidates"])])
    curriculum = facts["curriculum"]
    found = f"found: {format_stages(curriculum['stages'])}, paced by {curriculum['pace']}"
    return "\n".join([describe_choice(facts), table, describe_noise(facts), found])


def format_row(row: Mapping[str, Any]) -> list[str]:
    """Format a candidate as a row of the table."""
    return [
        str(row["round"]),
        row["label"],
        format_stages(row["stages"]),
        str(row["epochs"]),
        f"{row['relative_flops']:.2f}",
        format_accuracy(row["accuracy"]),
        "yes" if row["chosen"] else "",
    ]


def describe_choice(facts: Mapping[str, Any]) -> str:
    """Return how a search chose, in one line."""
    tolerance = f", tolerance {facts['tolerance']:g}" if facts["method"] == "greedy" else ""
    return f"{facts['method']} search by {score_name(facts)}{tolerance}; mean over the seeds {facts['seeds']}"


def score_name(facts: Mapping[str, Any]) -> str:
    """Return what texts and pictures call the score; files of old, without one, are of kNN."""
    return SCORES[facts.get("score", "knn")]


def format_accuracy(accuracy: dict[str, Any] | None) -> str:
    """Format the spread of a candidate's scores; a dash if it diverged."""
    return UNKNOWN if accuracy is None else format_percent(accuracy)


def describe_noise(facts: Mapping[str, Any]) -> str:
    """Return how much scores, and what decides, their differences, depend on the seed, in one line."""
    if len(facts["seeds"]) < 2:
        return "one seed: how much of a difference is chance is not known"
    scored = [row for row in facts["candidates"] if row["accuracy"]]
    single = median(row["accuracy"]["std"] for row in scored)
    text = f"standard deviation over the seeds (medians): {100 * single:.1f} points of a score"
    chosen = {row["round"]: row for row in scored if row["chosen"]}
    references = [scored[0] if facts["method"] == "greedy" else chosen[row["round"]] for row in scored]
    differences = [differ(*pair) for pair in zip(scored, references, strict=True) if pair[0] is not pair[1]]
    if not differences:
        return text
    reference = "the baseline" if facts["method"] == "greedy" else "the chosen one"
    return f"{text}, {100 * median(differences):.1f} of its difference from {reference}"


def differ(row: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return the standard deviation over the seeds of the difference between two candidates' scores."""
    values, others = (each["accuracy"]["values"] for each in (row, other))
    deviation: float = stdev(value - reference for value, reference in zip(values, others, strict=True))
    return deviation


def format_stages(stages: Sequence[Mapping[str, Any]]) -> str:
    """Format stages by sizes and shares of what they train together: 60% 160, 40% 224."""
    lengths = [stage["share"] * stage["images_factor"] for stage in stages]
    shares = [100 * length / sum(lengths) for length in lengths]
    return ", ".join(f"{share:.3g}% {stage['size']}" for share, stage in zip(shares, stages, strict=True))


def curriculum_file(config: SearchOptions, facts: Mapping[str, Any], curriculum: Curriculum) -> str:
    """Return the content of a curriculum file, with its provenance in comments."""
    program = f"python -m {PROGRAMS[config.part]}"
    lines = [
        f"found by {program} search --config {config.run / 'config.yaml'}",
        f"mae-curriculum {__version__}, commit {facts['commit'] or 'unknown'}",
        *format_search(facts).splitlines(),
        "use it:",
        f"  {program} {config.part} --curriculum {config.run / 'curriculum.yaml'}",
    ]
    return "".join(f"# {line}\n" for line in lines) + dump(curriculum)
