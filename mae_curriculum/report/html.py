"""The report: a single HTML file about runs that needs no server and no network."""

import base64
import io
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from mae_curriculum import terminal
from mae_curriculum.report import comparison, tables
from mae_curriculum.report.charts import axes_of, draw_charts, script
from mae_curriculum.report.curves import STEP_METRICS
from mae_curriculum.report.runs import RunData
from mae_curriculum.report.tables import Table

SECTIONS = {
    "summary": "Summary",
    "settings": "Settings",
    "stages": "Stages",
    "curves": "Curves",
    "time": "Time and cost",
    "sessions": "Sessions and problems",
    "pictures": "Pictures",
    "evaluation": "Evaluation",
}
"""Headings of the page's sections by id, in order."""

FILTERS = {
    "count": terminal.format_count,
    "date": terminal.format_date,
    "duration": terminal.format_duration,
    "flops": terminal.format_flops,
    "number": terminal.format_number,
    "share": terminal.format_share,
    "size": terminal.format_size,
}
"""Jinja filters of the template."""

MAX_PICTURE_BYTES = 1_200_000  # size of all pictures together
MAX_PICTURES = 6  # pictures of a run, evenly spaced
MAX_PICTURE_WIDTH = 1_400  # width of a picture in pixels
MAX_TABLE_ROWS = 20  # rows of the table with a run's curves as numbers


@dataclass(frozen=True)
class Picture:
    """A picture of a run, embedded in the page."""

    name: str
    alt: str
    width: int
    height: int
    url: str


def render(runs: Sequence[RunData], *, baseline: RunData | None) -> str:
    """Return the page about runs; a baseline is one of them."""
    folder = files("mae_curriculum.report") / "page"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {}  # Bokeh's references rely on the order of keys
    environment.filters |= FILTERS
    charts = draw_charts(runs)
    pictures = [list(pictures_of(run, max_bytes=MAX_PICTURE_BYTES // len(runs))) for run in runs]
    results = tables.result_table(runs)
    optional = {
        "stages": any(run.stages for run in runs),
        "curves": charts,
        "pictures": any(pictures),
        "evaluation": results.rows,
    }
    return environment.from_string((folder / "page.html").read_text("utf-8")).render(
        sections={name: title for name, title in SECTIONS.items() if optional.get(name, True)},
        now=time.time(),
        runs=runs,
        baseline=baseline,
        others=[run for run in runs if run is not baseline],
        tables=tables,
        comparison=comparison,
        style=(folder / "page.css").read_text("utf-8"),
        behavior=(folder / "page.js").read_text("utf-8"),
        bokeh=script() if charts else "",
        charts=charts,
        axes=axes_of(runs),
        curve_tables=[curve_table(run) for run in runs if len(run.curves)],
        pictures=pictures,
        results=results,
        longest=max(sum(tables.seconds_by_activity(run).values()) for run in runs),
    )


def curve_table(run: RunData) -> Table:
    """Tabulate a run's curves, for readers who cannot see charts."""
    metrics = [metric for metric in STEP_METRICS if run.has(metric)]
    chosen = np.unique(np.linspace(0, len(run.curves) - 1, MAX_TABLE_ROWS).astype(int))
    columns = [run.curves[metric.key][chosen] * metric.scale for metric in metrics]
    rows = [
        [terminal.format_count(step), *map(terminal.format_number, values)]
        for step, *values in zip(run.curves["steps_done"][chosen], *columns, strict=True)
    ]
    head = ["step", *(f"{metric.title}, {metric.unit}" if metric.unit else metric.title for metric in metrics)]
    return Table(f"Curves of {run.name}", head, rows)


def pictures_of(run: RunData, *, max_bytes: int) -> Iterator[Picture]:
    """Choose pictures of a run, newest first, and shrink them; unreadable files are left out."""
    folder = run.folder.path / "pictures"
    own = [path for path in folder.glob("*.png") if not path.is_symlink()]  # a link may lead to somebody's own files
    paths = sorted([] if folder.is_symlink() else own, reverse=True)
    for index in np.unique(np.linspace(0, len(paths) - 1, min(MAX_PICTURES, len(paths))).astype(int)):
        content = io.BytesIO()
        try:
            with Image.open(paths[index], formats=["PNG"]) as image:
                image.thumbnail((MAX_PICTURE_WIDTH, 10 * MAX_PICTURE_WIDTH))
                image.save(content, "WEBP", quality=80)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow raises all of these
            continue
        max_bytes -= content.tell()
        if max_bytes < 0:
            return
        url = "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode()
        yield Picture(*_describe_picture(run, paths[index].stem), *image.size, url)


def _describe_picture(run: RunData, stem: str) -> tuple[str, str]:
    """Return the name and the alternative text of a picture."""
    if match := re.fullmatch(r"step-(\d+)", stem):
        name = f"after {int(match[1]):,} steps"
        predicted = "HOG, predicted HOG" if run.settings.get("model.target") == "hog" else "reconstruction, error"
        return name, f"{run.name} {name}; per image, from top to bottom: input, visible patches, {predicted}"
    return terminal.printable(stem), f"{terminal.printable(stem)} of {run.name}"
