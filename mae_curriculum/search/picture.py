"""The tree of a search as a PNG file: rounds from left to right, candidates from top to bottom, the path that won."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_curriculum.report.figures import drawable, empty_figure, save
from mae_curriculum.search.result import describe_choice, format_accuracy, score_name

COLUMN_INCHES = 1.4  # fits "93.5 ± 0.4%" below a point
ROW_INCHES = 0.65

CHOSEN, OTHER = "tab:orange", "0.6"


def draw_search(path: Path, facts: Mapping[str, Any]) -> None:
    """Draw the result of a search, as `describe_search` returns it."""
    candidates = facts["candidates"]
    labels = list(dict.fromkeys(row["label"] for row in candidates))
    if facts["method"] != "halving":
        labels.sort(key=int)
    places = {label: place for place, label in enumerate(labels)}
    winner = [(number, places[label]) for number, label in facts["path"]]
    rounds = [number for number, _ in winner]
    figure = empty_figure(COLUMN_INCHES * len(rounds) + 2, ROW_INCHES * len(labels) + 1.8)
    figure.suptitle(describe_choice(facts).replace("; ", "\n"), fontsize=10)
    axis = figure.subplots()
    for row in candidates:
        _draw_candidate(axis, row, places, dict(winner), own_line=facts["method"] == "halving")
    axis.plot(*zip(*winner, strict=True), color=CHOSEN, linewidth=3, zorder=1, label="chosen")
    scored = {(row["round"], places[row["label"]]) for row in candidates}
    for place in winner:
        if place not in scored:  # full size, which greedy takes without a run where all other sizes failed
            axis.plot(*place, "o", markersize=9, markerfacecolor="white", markeredgecolor=CHOSEN, zorder=3)
    names = {0: "baseline"} | {number: f"{_unit(facts)} {number}" for number in rounds if number}
    axis.set_xticks(rounds, [names[number] for number in rounds])
    axis.set_yticks(range(len(labels)), [drawable(label, max_letters=30) for label in labels], parse_math=False)
    axis.set(xlim=(rounds[0] - 0.5, rounds[-1] + 0.5), ylim=(len(labels) - 0.4, -0.6))
    axis.set(ylabel="curriculum" if facts["method"] == "halving" else "size")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    figure.supxlabel(_caption(facts), fontsize=8)
    save(figure, path)


def _draw_candidate(
    axis: Any, row: Mapping[str, Any], places: Mapping[str, int], winner: Mapping[int, int], *, own_line: bool
) -> None:
    """Draw a candidate, and a line to it from what it builds on: itself in the round before, or the choice there."""
    number, place = row["round"], places[row["label"]]
    before = place if own_line else winner.get(number - 1)
    if before is not None and number > min(winner):
        axis.plot([number - 1, number], [before, place], color=OTHER, linewidth=1, zorder=0)
    axis.plot(number, place, "o", markersize=9, color=CHOSEN if row["chosen"] else OTHER, zorder=2)
    below = {"xytext": (0, -8), "textcoords": "offset points", "ha": "center", "va": "top", "fontsize": 8}
    weight = "bold" if row["chosen"] else "normal"
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    axis.annotate(format_accuracy(row["accuracy"]), (number, place), weight=weight, bbox=box, **below)


def _unit(facts: Mapping[str, Any]) -> str:
    return "round" if facts["method"] == "halving" else "stage"


def _caption(facts: Mapping[str, Any]) -> str:
    score = score_name(facts)
    if facts["method"] == "greedy":
        return f"{score} of full training runs,\nat full size after the stage; hollow: needed no run"
    if facts["method"] == "sequential":
        return f"{score} after the stage and a short finish,\nin forks of the best run of the stage before"
    return f"{score}; each round starts afresh,\nwith twice the epochs of the one before"
