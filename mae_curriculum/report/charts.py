"""Charts of several runs' curves, by Bokeh; what switches their axes and reads them off is `page/page.js`.

Bokeh is used since its JavaScript (1.3 MB) comes with the package and can stand in the page: nothing is fetched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, CustomJSTickFormatter, Range1d
from bokeh.models.annotations import Span
from bokeh.plotting import figure
from bokeh.resources import Resources

from mae_curriculum.report.curves import AXES, EVALUATIONS, MEASURES, TIMES, Column, Measure, means, thin
from mae_curriculum.report.runs import RunData

POINTS, MAX_POINTS = 40_000, 1_200
"""Of all curves together, 32 bytes each, so that the page stays small; of one curve, about two a pixel."""

FEW_POINTS = 40
"""A curve of at most so many is drawn with its points."""

HEIGHT, FIRST_HEIGHT = 190, 300
"""Of a chart, and of the first, in pixels."""

COLOURS, DASHES = 6, ("solid", "dashed", "dotdash")
"""Of runs, in turn; the page's style has the colours."""

Columns = dict[str, Column]


@dataclass(frozen=True)
class Curve:
    """What one run tells of one measure."""

    run: int
    """The place of its run."""
    columns: Columns
    """The points: where they stand on each axis, their "value"; of a thinned curve the "mean" around them."""

    @property
    def summary(self) -> str:
        """The curve in words."""
        known = self.columns["value"][np.isfinite(self.columns["value"])]
        return f"from {known[0]:.4g} to {known[-1]:.4g}, lowest {known.min():.4g}, highest {known.max():.4g}"


@dataclass(frozen=True)
class Marks:
    """Where a run was started again, or came to another stage."""

    run: int
    kind: str
    columns: Columns


@dataclass(frozen=True)
class Chart:
    """A measure of all runs that tell it."""

    measure: Measure
    curves: list[Curve]
    item: dict[str, Any]
    """What Bokeh's `embed_item` takes."""


def draw_charts(runs: Sequence[RunData]) -> Iterator[Chart]:
    """Draw a chart for each measure that a run tells."""
    seconds, _ = time_unit(runs)
    marks = [mark for place, run in enumerate(runs) for mark in _marks(place, run, seconds)]
    measures = (*MEASURES, *EVALUATIONS)
    told = {each: [place for place, run in enumerate(runs) if run.tells(each)] for each in measures}
    points = min(MAX_POINTS, POINTS // max(1, sum(map(len, told.values()))))
    for number, (measure, places) in enumerate((each, where) for each, where in told.items() if where):
        curves = [_curve(place, runs[place], measure, seconds, points) for place in places]
        yield Chart(measure, curves, _draw(measure, curves, marks, height=HEIGHT if number else FIRST_HEIGHT))


def time_unit(runs: Sequence[RunData]) -> tuple[float, str]:
    """Choose the unit in which time is told, by its seconds and its name."""
    longest = max(run.history.last.last_sign - run.began for run in runs)
    return (3600.0, "hours") if longest > 7200 else (60.0, "minutes")


def axes_of(runs: Sequence[RunData]) -> dict[str, tuple[str, float]]:
    """Name the axes of which a run tells, each with where the last run ended."""
    seconds, unit = time_unit(runs)
    axes = {}
    for axis, title in AXES.items():
        ends = np.concatenate([run.positions(axis) for run in runs])
        end = float(np.nanmax(ends)) if np.isfinite(ends).any() else 0.0
        if end > 0:
            axes[axis] = (f"{title}, {unit}", end / seconds) if axis in TIMES else (title, end)
    return axes


def script() -> str:
    """Give the part of Bokeh's JavaScript that charts need, as elements of a page."""
    return Resources(mode="inline", components=["bokeh"]).render_js()


def _curve(place: int, run: RunData, measure: Measure, seconds: float, points: int) -> Curve:
    """Take at most so many points of a curve, in the page's units."""
    if measure in EVALUATIONS:
        steps, values = run.evaluations(measure.key)
        columns = {axis: run.place(steps, axis) for axis in AXES}
    else:
        known = np.isfinite(run.curves[measure.key])  # not all reports tell of everything
        values = run.curves[measure.key][known]
        columns = {axis: run.positions(axis)[known] for axis in AXES}
    chosen = thin(values, points)
    columns = _in_unit({axis: column[chosen] for axis, column in columns.items()}, seconds)
    columns["value"] = values[chosen] * measure.scale
    if len(values) > points:
        columns["mean"] = means(values, points) * measure.scale
    return Curve(place, columns)


def _marks(place: int, run: RunData, seconds: float) -> Iterator[Marks]:
    starts = [session.start for session in run.history.sessions[1:]]
    steps = np.array([start["steps_done"] for start in starts], dtype=np.float64)
    columns = {axis: run.place(steps, axis) for axis in AXES}
    # its last steps may have been done once before, but not at this time
    columns["elapsed"] = np.array([start["time"] - run.began for start in starts])
    yield Marks(place, "restart", _in_unit(columns, seconds))
    steps = np.array([stage.first_step for stage in run.stages[1:]], dtype=np.float64)
    yield Marks(place, "stage", _in_unit({axis: run.place(steps, axis) for axis in AXES}, seconds))


def _in_unit(columns: Columns, seconds: float) -> Columns:
    return {axis: column / seconds if axis in TIMES else column for axis, column in columns.items()}


def _draw(measure: Measure, curves: Sequence[Curve], marks: Sequence[Marks], *, height: int) -> dict[str, Any]:
    """Draw a chart; its colours, ranges and axis are set on the page."""
    plot: Any = figure(height=height, sizing_mode="stretch_width", toolbar_location=None, tools="")
    plot.x_range, plot.y_range = Range1d(), Range1d()
    plot.axis.formatter = CustomJSTickFormatter(code="return spell(tick)")
    plot.axis.minor_tick_line_color = plot.axis.major_tick_line_color = plot.axis.axis_line_color = None
    plot.axis.major_label_text_font, plot.axis.major_label_text_font_size = "system-ui", "12px"
    plot.yaxis.ticker.desired_num_ticks = 5
    plot.xgrid.visible = False
    plot.outline_line_color = plot.background_fill_color = plot.border_fill_color = None
    for mark in marks:
        if len(mark.columns["steps_done"]):
            dash, width = ([6, 3], 1.5) if mark.kind == "restart" else ([1, 4], 1.5)
            name = f"{mark.kind}-{mark.run}"
            plot.vspan("steps_done", source=_source(mark.columns), name=name, line_dash=dash, line_width=width)
    for curve in curves:
        source = _source(curve.columns)
        look: dict[str, Any] = {"source": source, "line_dash": DASHES[curve.run // COLOURS % len(DASHES)]}
        faint = 0.45 if "mean" in curve.columns else 1.0
        draw = partial(plot.step, mode="before") if measure.stepped else plot.line
        draw("steps_done", "value", name=f"run-{curve.run}", line_width=1.6, line_alpha=faint, **look)
        if "mean" in curve.columns:
            plot.line("steps_done", "mean", name=f"mean-{curve.run}", line_width=1.8, **look)
        if len(curve.columns["value"]) <= FEW_POINTS:
            plot.scatter("steps_done", "value", source=source, name=f"points-{curve.run}", size=5)
    plot.add_layout(Span(dimension="height", name="cursor", line_width=1, visible=False))
    return dict(json_item(plot))


def _source(columns: Columns) -> ColumnDataSource:
    """Hand numbers over in half their size: a screen shows no more than 7 digits."""
    return ColumnDataSource({name: column.astype(np.float32) for name, column in columns.items()})
