"""Charts of the metrics of several runs, drawn by Bokeh; `page/page.js` switches their axes and reads values.

Bokeh is used because its JavaScript (1.3 MB) comes with the package and can be embedded: nothing is fetched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, CustomJSTickFormatter, Range1d
from bokeh.models.annotations import Span
from bokeh.plotting import figure
from bokeh.resources import Resources

from mae_curriculum.report.curves import AXES, EVALUATION_METRICS, STEP_METRICS, TIME_AXES, Column, Metric, means, thin
from mae_curriculum.report.runs import RunData

MAX_POINTS = 40_000  # points of all curves together, 32 bytes each, so that the page stays small
MAX_CURVE_POINTS = 1_200  # points of one curve, about two per pixel
MAX_MARKERS = 40  # curves with at most this many points are drawn with a marker at each
HEIGHT = 190  # height of a chart in pixels
FIRST_HEIGHT = 300  # height of the first chart in pixels
COLOR_COUNT = 6  # colors of runs; page.css defines them
DASHES = ("solid", "dashed", "dotdash")  # line styles of runs, one for each round of colors

Columns = dict[str, Column]


@dataclass(frozen=True)
class Curve:
    """The curve of one run in a chart."""

    run: int
    """Index of the run."""
    columns: Columns
    """Position of each point on each axis and its "value"; in a thinned curve also the "mean" around it."""

    @property
    def summary(self) -> str:
        """Description of the curve for screen readers."""
        known = self.columns["value"][np.isfinite(self.columns["value"])]
        return f"from {known[0]:.4g} to {known[-1]:.4g}, lowest {known.min():.4g}, highest {known.max():.4g}"


@dataclass(frozen=True)
class Chart:
    """A metric of all runs that have it."""

    metric: Metric
    curves: list[Curve]
    item: dict[str, Any]
    """Input of Bokeh's `embed_item`."""


def draw_charts(runs: Sequence[RunData]) -> list[Chart]:
    """Draw a chart for each metric that any run has."""
    runs_of = {}
    for metric in (*STEP_METRICS, *EVALUATION_METRICS):
        if indices := [index for index, run in enumerate(runs) if run.has(metric)]:
            runs_of[metric] = indices
    count = min(MAX_CURVE_POINTS, MAX_POINTS // max(1, sum(map(len, runs_of.values()))))
    marks = _marks(runs)
    seconds, _ = time_unit(runs)
    charts: list[Chart] = []
    for metric, indices in runs_of.items():
        curves = [_curve(index, runs[index], metric, count) for index in indices]
        plot = _draw(metric, curves, marks, seconds, height=HEIGHT if charts else FIRST_HEIGHT)
        charts.append(Chart(metric, curves, plot))
    return charts


def time_unit(runs: Sequence[RunData]) -> tuple[float, str]:
    """Choose the unit of the time axes: its seconds and its name."""
    longest = max(run.history.last.last_sign - run.start_time for run in runs)
    return (3600.0, "hours") if longest > 7200 else (60.0, "minutes")


def axes_of(runs: Sequence[RunData]) -> dict[str, tuple[str, float]]:
    """Return the axes on which any run has positions: the title, and the last position of all runs."""
    seconds, unit = time_unit(runs)
    axes = {}
    for axis, title in AXES.items():
        positions = np.concatenate([run.positions(axis) for run in runs])
        end = float(np.nanmax(positions)) if np.isfinite(positions).any() else 0.0
        if end > 0:
            axes[axis] = (f"{title}, {unit}", end / seconds) if axis in TIME_AXES else (title, end)
    return axes


def script() -> str:
    """Return the part of Bokeh's JavaScript that charts need, as HTML elements."""
    return Resources(mode="inline", components=["bokeh"]).render_js()


def _curve(index: int, run: RunData, metric: Metric, count: int) -> Curve:
    """Thin a curve to at most `count` points."""
    if metric in EVALUATION_METRICS:
        steps, values = run.evaluations(metric.key)
        columns = {axis: run.interpolate(steps, axis) for axis in AXES}
    else:
        known = np.isfinite(run.curves[metric.key])  # not every row has every metric
        values = run.curves[metric.key][known]
        columns = {axis: run.positions(axis)[known] for axis in AXES}
    chosen = thin(values, count)
    columns = {axis: column[chosen] for axis, column in columns.items()}
    columns["value"] = values[chosen] * metric.scale
    if len(values) > count:
        columns["mean"] = means(values, count) * metric.scale
    return Curve(index, columns)


def _marks(runs: Sequence[RunData]) -> dict[str, Columns]:
    """Return the positions of restarts and of new stages, by name: "restart-" or "stage-" and the index of the run."""
    marks = {}
    for index, run in enumerate(runs):
        restarts = [session.start for session in run.history.sessions[1:]]
        steps = np.array([start["steps_done"] for start in restarts], dtype=np.float64)
        # steps that were lost are done twice, so the time of a restart does not follow from its step
        elapsed = np.array([start["time"] - run.start_time for start in restarts])
        marks[f"restart-{index}"] = {**{axis: run.interpolate(steps, axis) for axis in AXES}, "elapsed": elapsed}
        steps = np.array([stage.first_step for stage in run.stages[1:]], dtype=np.float64)
        marks[f"stage-{index}"] = {axis: run.interpolate(steps, axis) for axis in AXES}
    return {name: columns for name, columns in marks.items() if len(columns["steps_done"])}


def _draw(
    metric: Metric, curves: Sequence[Curve], marks: dict[str, Columns], seconds: float, *, height: int
) -> dict[str, Any]:
    """Draw a chart; the page sets its colors, ranges and axis."""
    plot: Any = figure(height=height, sizing_mode="stretch_width", toolbar_location=None, tools="")
    plot.x_range, plot.y_range = Range1d(), Range1d()
    plot.axis.formatter = CustomJSTickFormatter(code="return format(tick)")
    plot.axis.minor_tick_line_color = plot.axis.major_tick_line_color = plot.axis.axis_line_color = None
    plot.axis.major_label_text_font, plot.axis.major_label_text_font_size = "system-ui", "12px"
    plot.yaxis.ticker.desired_num_ticks = 5
    plot.xgrid.visible = False
    plot.outline_line_color = plot.background_fill_color = plot.border_fill_color = None
    for name, columns in marks.items():
        dash = [6, 3] if name.startswith("restart") else [1, 4]
        plot.vspan("steps_done", source=_source(columns, seconds), name=name, line_dash=dash, line_width=1.5)
    for curve in curves:
        source, thinned = _source(curve.columns, seconds), "mean" in curve.columns
        style: dict[str, Any] = {"source": source, "line_dash": DASHES[curve.run // COLOR_COUNT % len(DASHES)]}
        draw = partial(plot.step, mode="before") if metric.stepped else plot.line
        alpha = 0.45 if thinned else 1.0
        draw("steps_done", "value", name=f"run-{curve.run}", line_width=1.6, line_alpha=alpha, **style)
        if thinned:
            plot.line("steps_done", "mean", name=f"mean-{curve.run}", line_width=1.8, **style)
        if len(curve.columns["value"]) <= MAX_MARKERS:
            plot.scatter("steps_done", "value", source=source, name=f"points-{curve.run}", size=5)
    plot.add_layout(Span(dimension="height", name="cursor", line_width=1, visible=False))
    return dict(json_item(plot))


def _source(columns: Columns, seconds: float) -> ColumnDataSource:
    """Return columns as float32, enough for a screen and half as large, with times in the page's unit of `seconds`."""
    scaled = {axis: column / seconds if axis in TIME_AXES else column for axis, column in columns.items()}
    return ColumnDataSource({name: column.astype(np.float32) for name, column in scaled.items()})
