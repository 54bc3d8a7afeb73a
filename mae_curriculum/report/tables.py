"""What runs tell, as tables in words: settings, stages, seconds, restarts, results; and against a baseline."""

from collections.abc import Callable, Iterable, Sequence
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

SETTINGS = {
    "checkpoint": "begun from",
    "data.source": "images",
    "model.name": "model",
    "model.image_size": "image size",
    "model.patch_size": "patch size",
    "model.mask_ratio": "mask ratio",
    "model.target": "target",
    "curriculum.stages": "curriculum",
    "curriculum.pace": "pace of the stages",
    "epochs": "epochs",
    "batch_size": "batch size",
    "optim.base_lr": "base learning rate",
    "seed": "seed",
}
"""Settings shown of every run; others only where runs differ."""


STARTS = {
    "device": "device",
    "world_size": "processes",
    "host": "host",
    "job": "job of the scheduler",
    "commit": "version of the code",
    "command": "command",
}
"""Fields shown of each run's newest start."""


ACTIVITY_NAMES = {
    "train": "training",
    "wait": "waiting for data",
    "save": "saving",
    "evaluate": "evaluating",
    "pictures": "drawing",
    "report": "reporting",
    "rest": "set-up and the rest",
    "lost": "lost: work done again after a kill",
    "away": "away: between one job and the next",
}
"""What a run's time goes to, from its first start to its last sign of life."""


MAX_NAMED = 5
"""Broken images that are named; the journal names all."""


GRAMS_PER_KWH = 480
"""CO2 equivalent of electricity: the world's mean of 2023 (Ember, Global Electricity Review 2024)."""


@dataclass(frozen=True)
class Table:
    """A table in words; the first cell of each row names the row."""

    caption: str
    head: list[str]
    rows: list[list[str]]


def what_was_run(runs: Sequence[RunData]) -> Table:
    """Tell what each run was, and all settings in which they differ, marked by a star."""

    def row(name: str, values: Iterable[Any]) -> list[str]:
        cells = [*map(format_setting, values)]
        return [name + " *" * (len(set(cells)) > 1), *cells]

    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in ("run", *SETTINGS))
    rows = [row(name, (run.settings.get(key) for run in runs)) for key, name in SETTINGS.items()]
    others = [row(key, (run.settings.get(key) for run in runs)) for key in keys]
    rows += [cells for cells in others if cells[0].endswith(" *")]
    rows += [row(name, (run.history.last.start.get(key) for run in runs)) for key, name in STARTS.items()]
    rows.append(["began", *(format_date(run.began) for run in runs)])
    told = [cells for cells in rows if {*cells[1:]} != {UNKNOWN}]
    return Table("A star marks where runs differ." if len(runs) > 1 else "", ["", *(run.name for run in runs)], told)


def stage_table(run: RunData) -> Table:
    """Tell what each stage of a run took."""
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
    head = ["stage", "size", "steps", "images", "FLOPs", "of FLOPs", "training", "ms/image"]
    return Table("", head, rows)


def seconds_by_activity(run: RunData) -> dict[str, float]:
    """Split the time from a run's first start to its last sign of life."""
    seconds = {name: float(run.newest.get(f"{name}_seconds", 0)) for name in ACTIVITIES}
    after = {"lost": run.history.lost_seconds, "away": run.history.away_seconds}
    rest = run.history.last.last_sign - run.began - sum(seconds.values()) - sum(after.values())
    return {**seconds, "rest": max(0.0, rest), **after}


def time_table(runs: Sequence[RunData]) -> Table:
    """Tell where the runs' time went."""
    spent = [seconds_by_activity(run) for run in runs]
    totals = [sum(each.values()) for each in spent]
    rows = [
        [
            name,
            *(
                f"{format_duration(each[key])} · {format_share(each[key] / total if total else None)}"
                for each, total in zip(spent, totals, strict=True)
            ),
        ]
        for key, name in ACTIVITY_NAMES.items()
    ]
    rows.append(["in all", *map(format_duration, totals)])
    return Table("From the first start to the last sign of life", ["", *(run.name for run in runs)], rows)


def cost_table(runs: Sequence[RunData]) -> Table:
    """Tell what the runs cost: FLOPs, device hours, and energy where it was measured."""

    def device_hours(run: RunData) -> float:
        sessions = run.history.sessions
        return sum((s.last_sign - float(s.start["time"])) * int(s.start.get("world_size", 1)) for s in sessions) / 3600

    facts: dict[str, Callable[[RunData], str]] = {
        "FLOPs": lambda run: format_flops(run.newest.get("flops")),
        "FLOPs without curriculum": lambda run: format_flops(run.newest.get("baseline_flops")),
        "device hours (processes × hours)": lambda run: f"{device_hours(run):,.3g}",
        "images/s, training and waiting": lambda run: format_or_dash(_rate(run), "{:,.0f}"),
        "energy of the GPUs, kWh": lambda run: format_or_dash(
            run.newest.get("energy_joules"), "{:.3g}", scale=1 / 3.6e6
        ),
        f"CO2eq at {GRAMS_PER_KWH} g/kWh, kg": lambda run: format_or_dash(
            run.newest.get("energy_joules"), "{:.3g}", scale=GRAMS_PER_KWH / 1000 / 3.6e6
        ),
    }
    rows = [[name, *map(tell, runs)] for name, tell in facts.items()]
    known = [row for row in rows if {*row[1:]} != {UNKNOWN}]
    return Table("What it cost", ["", *(run.name for run in runs)], known)


def restart_table(run: RunData) -> Table:
    """Tell when a run was started, how each session ended, and what a restart cost."""
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
                UNKNOWN if restart is None else format_duration(restart.lost_seconds),
                UNKNOWN if restart is None else format_duration(restart.away_seconds),
            ]
        )
    head = ["session", "began", "from step", "how it ended", "lost before it", "away before it"]
    return Table(f"Sessions of {run.name}", head, rows)


def troubles(run: RunData) -> list[str]:
    """Tell what went wrong in a run, kind by kind."""
    told = []
    if skipped := [row["steps_done"] for row in run.history.rows("skipped")]:
        told.append(f"{len(skipped)} steps skipped, the first at {skipped[0]:,}: their loss or gradient was not finite")
    if broken := {str(row["image"]): row["reason"] for row in run.history.rows("broken_image")}:
        named = "; ".join(f"{name} ({reason})" for name, reason in [*broken.items()][:MAX_NAMED])
        more = f"; and {len(broken) - MAX_NAMED} more" if len(broken) > MAX_NAMED else ""
        told.append(f"{len(broken)} broken images were replaced: {named}{more}")
    if failed := [*run.history.rows("save_failed")]:
        told.append(f"{len(failed)} saves failed, the last one so: {failed[-1]['reason']}")
    if spikes := [*run.history.rows("spike")]:
        told.append(f"{len(spikes)} spikes of the loss, the last one at step {spikes[-1]['steps_done']:,}")
    waits = {row["stage"]: row for row in run.history.rows("waiting")}.values()
    told += [f"stage {row['stage'] + 1} waited for data {row['share']:.0%} of its time" for row in waits]
    told += [f"damaged checkpoint put aside: {row['name']}" for row in run.history.rows("damaged_checkpoint")]
    return told


def result_table(runs: Sequence[RunData]) -> Table:
    """Tell what the runs' encoders are worth: the newest result of each kind."""
    columns = [results_of(run) for run in runs]
    kinds = dict.fromkeys(kind for column in columns for kind in column)
    rows = [[kind, *(column.get(kind, UNKNOWN) for column in columns)] for kind in kinds]
    return Table("Accuracy, mean ± standard deviation over seeds", ["", *(run.name for run in runs)], rows)


def results_of(run: RunData) -> dict[str, str]:
    """Name and spell the newest result of each kind."""
    found = {}
    for key, name in {
        "knn_untrained": "kNN, untrained encoder",
        "knn": "kNN, during the run",
        "accuracy": "accuracy, of the run's own classifier",
    }.items():
        if isinstance(share := run.newest.get(key), float):
            found[name] = format_share(share)
    for row in run.history.results:
        name = _RESULTS.get(row["event"], str(row["event"]))
        if row.get("head") == "attentive":
            name = "attentive probe"
        _, epochs = run_and_epochs(Path(str(row["checkpoint"])))
        name += f" after {epochs} epochs" if epochs else ""
        if isinstance(accuracy := row.get("accuracy"), dict):
            parts = {name: accuracy} if "mean" in accuracy else _by_shots(name, accuracy)
            found |= {f"{part} on {row.get('source', UNKNOWN)}": format_percent(each) for part, each in parts.items()}
    return found


_RESULTS = {"knn": "kNN", "linprobe": "linear probe", "finetune": "fine-tuned", "fewshot": "few-shot"}


def _by_shots(name: str, accuracy: Row) -> Row:
    return {
        f"{name}, {shots} a class" if float(shots) >= 1 else f"{name}, {float(shots):.3g} of all labels": each
        for shots, each in accuracy.items()
    }


def _rate(run: RunData) -> float | None:
    seconds = run.newest.get("train_seconds", 0) + run.newest.get("wait_seconds", 0)
    return run.newest.get("images", 0) / seconds if seconds else None
