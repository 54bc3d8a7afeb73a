"""Tables of runs: settings, stages, time, cost, sessions and results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_curriculum.evaluation.results import format_percent
from mae_curriculum.report.runs import RunData
from mae_curriculum.run.folder import run_and_epochs
from mae_curriculum.terminal import (
    UNKNOWN,
    format_count,
    format_date,
    format_duration,
    format_flops,
    format_or_dash,
    format_setting,
    format_share,
    format_size,
)
from mae_curriculum.tracking.history import Row
from mae_curriculum.tracking.stopwatch import ACTIVITIES

SETTINGS = [
    "checkpoint",
    "data.source",
    "model.name",
    "model.image_size",
    "model.patch_size",
    "model.mask_ratio",
    "model.target",
    "curriculum.stages",
    "curriculum.pace",
    "epochs",
    "batch_size",
    "optim.base_lr",
    "seed",
]
"""Settings that are always shown; others are shown only where runs differ."""

START_FIELDS = ["device", "world_size", "host", "job", "commit", "software", "command"]
"""Fields of a run's newest start that are shown."""

ACTIVITY_NAMES = {
    "train": "training",
    "wait": "waiting for data",
    "save": "saving checkpoints",
    "evaluate": "evaluating",
    "pictures": "drawing pictures",
    "report": "logging",
    "rest": "setup and other",
    "lost": "lost: work redone after a kill",
    "away": "away: time between jobs",
}
"""Activities that share a run's time, in the order of the page's bars."""

RESULT_NAMES = {"knn": "kNN", "linprobe": "linear probe", "finetune": "fine-tuned", "fewshot": "few-shot"}
"""Names of the commands that evaluate a checkpoint."""

MAX_NAMED_IMAGES = 5  # broken images that are listed; the journal lists all

JOULES_PER_KWH = 3.6e6

GRAMS_PER_KWH = 480  # CO2 equivalent of electricity: world average of 2023 (Ember, Global Electricity Review 2024)


@dataclass(frozen=True)
class Table:
    """A table of text; the first cell of each row is its heading."""

    caption: str
    head: list[str]
    rows: list[list[str]]


def settings_table(runs: Sequence[RunData]) -> Table:
    """Tabulate the main settings, all other settings in which runs differ, and the newest start of each run."""
    keys = dict.fromkeys([*SETTINGS, *(key for run in runs for key in run.settings if key != "run")])
    rows = [_setting_row(key, [run.settings.get(key) for run in runs]) for key in keys]
    rows = [row for row in rows if row[0] in SETTINGS or row[0].endswith(" *")]
    rows += [_setting_row(field, [run.history.last.start.get(field) for run in runs]) for field in START_FIELDS]
    rows.append(["started", *(format_date(run.start_time) for run in runs)])
    return _table_by_run("* marks values that differ" if len(runs) > 1 else "", runs, rows)


def _setting_row(name: str, values: list[Any]) -> list[str]:
    cells = [format_setting(value) for value in values]
    return [name if len(set(cells)) == 1 else f"{name} *", *cells]


def stage_table(run: RunData) -> Table:
    """Tabulate the length and cost of each stage of a run."""
    total = sum(stage.flops for stage in run.stages)
    rows = [
        [
            str(stage.number),
            format_size(stage.size),
            format_count(stage.steps),
            format_count(stage.images),
            format_flops(stage.flops),
            format_share(stage.flops / total if total else None),
            format_duration(stage.train_seconds),
            format_or_dash(1000 * stage.train_seconds / stage.images if stage.images else None, "{:.3g}"),
        ]
        for stage in run.stages
    ]
    head = ["stage", "size", "steps", "images", "FLOPs", "share of FLOPs", "training time", "ms/image"]
    return Table("", head, rows)


def seconds_by_activity(run: RunData) -> dict[str, float]:
    """Split the time from a run's first start to its last sign of life into the `ACTIVITY_NAMES`."""
    seconds = {name: float(run.newest.get(f"{name}_seconds", 0)) for name in ACTIVITIES}
    lost, away = run.history.lost_seconds, run.history.away_seconds
    rest = run.history.last.last_sign - run.start_time - sum(seconds.values()) - lost - away
    return {**seconds, "rest": max(0.0, rest), "lost": lost, "away": away}


def time_table(runs: Sequence[RunData]) -> Table:
    """Tabulate the time that each run spent on each activity."""
    seconds = [seconds_by_activity(run) for run in runs]
    totals = [sum(each.values()) for each in seconds]
    rows = []
    for activity, name in ACTIVITY_NAMES.items():
        row = [name]
        for spent, total in zip(seconds, totals, strict=True):
            share = spent[activity] / total if total else None
            row.append(f"{format_duration(spent[activity])} · {format_share(share)}")
        rows.append(row)
    rows.append(["total", *map(format_duration, totals)])
    return _table_by_run("From the first start to the last activity", runs, rows)


def cost_table(runs: Sequence[RunData]) -> Table:
    """Tabulate the cost of the runs: FLOPs, device hours, throughput, and energy where it was measured."""
    joules = [run.newest.get("energy_joules") for run in runs]
    grams_per_joule = GRAMS_PER_KWH / JOULES_PER_KWH
    rows = [
        ["FLOPs", *(format_flops(run.newest.get("flops")) for run in runs)],
        ["FLOPs without a curriculum", *(format_flops(run.newest.get("baseline_flops")) for run in runs)],
        ["device time (processes × time)", *(format_duration(_device_seconds(run)) for run in runs)],
        ["images/s, waiting included", *(format_or_dash(_images_per_second(run), "{:,.0f}") for run in runs)],
        ["GPU energy, kWh", *(format_or_dash(energy, "{:.3g}", scale=1 / JOULES_PER_KWH) for energy in joules)],
        [
            f"CO2eq at {GRAMS_PER_KWH} g/kWh, kg",
            *(format_or_dash(energy, "{:.3g}", scale=grams_per_joule / 1000) for energy in joules),
        ],
    ]
    return _table_by_run("Cost", runs, rows)


def _device_seconds(run: RunData) -> float:
    seconds = 0.0
    for session in run.history.sessions:
        seconds += (session.last_sign - float(session.start["time"])) * int(session.start.get("world_size", 1))
    return seconds


def _images_per_second(run: RunData) -> float | None:
    seconds = run.newest.get("train_seconds", 0) + run.newest.get("wait_seconds", 0)
    return run.newest.get("images", 0) / seconds if seconds else None


def session_table(run: RunData) -> Table:
    """Tabulate a run's sessions: start, outcome, and the time lost between them."""
    rows = []
    restarts = [None, *run.history.restarts]
    for number, (session, restart) in enumerate(zip(run.history.sessions, restarts, strict=True), 1):
        running = session is run.history.last and run.state == "running"
        rows.append(
            [
                str(number),
                format_date(session.start["time"]),
                format_count(session.start.get("steps_done")),
                "still running" if running else session.ending,
                format_duration(restart.lost_seconds if restart else None),
                format_duration(restart.away_seconds if restart else None),
            ]
        )
    head = ["session", "started", "from step", "outcome", "time lost before", "time away before"]
    return Table(f"Sessions of {run.name}", head, rows)


def problems(run: RunData) -> list[str]:
    """List what went wrong in a run, one line per kind of problem."""
    lines = []
    if skipped := [row["steps_done"] for row in run.history.rows("skipped")]:
        lines.append(f"skipped steps: {len(skipped)}, first at step {skipped[0]:,} (loss or gradient not finite)")
    if broken := {str(row["image"]): row["reason"] for row in run.history.rows("broken_image")}:
        named = [f"{name} ({reason})" for name, reason in broken.items()][:MAX_NAMED_IMAGES]
        if len(broken) > MAX_NAMED_IMAGES:
            named.append(f"and {len(broken) - MAX_NAMED_IMAGES} more")
        lines.append(f"broken images: {len(broken)}, replaced by others: {'; '.join(named)}")
    if failed := list(run.history.rows("save_failed")):
        lines.append(f"failed saves: {len(failed)}, last reason: {failed[-1]['reason']}")
    if spikes := list(run.history.rows("spike")):
        lines.append(f"loss spikes: {len(spikes)}, last at step {spikes[-1]['steps_done']:,}")
    waits = {row["stage"]: row["share"] for row in run.history.rows("waiting")}
    lines += [f"stage {stage + 1} waited for data for {share:.0%} of its time" for stage, share in waits.items()]
    stalls = run.history.rows("stall")
    lines += [f"rank {row['rank']} on {row['host']} had no images for {row['seconds']} s" for row in stalls]
    lines += [f"damaged checkpoint, not used: {row['name']}" for row in run.history.rows("damaged_checkpoint")]
    return lines


def result_table(runs: Sequence[RunData]) -> Table:
    """Tabulate the newest result of each evaluation of the runs' encoders."""
    columns = [results_of(run) for run in runs]
    kinds = dict.fromkeys(kind for column in columns for kind in column)
    rows = [[kind, *(column.get(kind, UNKNOWN) for column in columns)] for kind in kinds]
    return _table_by_run("Accuracy, mean ± standard deviation over seeds", runs, rows)


def results_of(run: RunData) -> dict[str, str]:
    """Return the newest result of each evaluation: its name and the formatted accuracy."""
    results = {}
    for key, name in (
        ("knn_untrained", "kNN, untrained encoder"),
        ("knn_start", "kNN, before the first step"),
        ("knn", "kNN, during the run"),
        ("accuracy", "accuracy of the run's own classifier"),
    ):
        if isinstance(share := run.newest.get(key), float):
            results[name] = format_share(share)
    for row in run.history.results:
        if isinstance(accuracy := row.get("accuracy"), dict):
            by_name = {_result_name(row): accuracy} if "mean" in accuracy else _by_shots(_result_name(row), accuracy)
            source = row.get("source", UNKNOWN)
            results |= {f"{name} on {source}": format_percent(figures) for name, figures in by_name.items()}
    return results


def _result_name(row: Row) -> str:
    name = RESULT_NAMES.get(row["event"], str(row["event"]))
    if row.get("head") == "attentive":
        name = "attentive probe"
    _, epochs = run_and_epochs(Path(str(row["checkpoint"])))
    return f"{name} after {epochs} epochs" if epochs else name


def _by_shots(name: str, accuracy: Row) -> Row:
    """Name the few-shot results: 1 shot or more is a number of labels per class, less is a share of all labels."""
    return {
        f"{name}, {shots} per class" if float(shots) >= 1 else f"{name}, {float(shots):.3g} of all labels": figures
        for shots, figures in accuracy.items()
    }


def _table_by_run(caption: str, runs: Sequence[RunData], rows: list[list[str]]) -> Table:
    """Build a table with a column per run, without the rows that have no known value."""
    known = [row for row in rows if set(row[1:]) != {UNKNOWN}]
    return Table(caption, ["", *(run.name for run in runs)], known)
