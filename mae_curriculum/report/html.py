"""One page about runs: a single HTML file that needs no server and no network."""

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
from mae_curriculum.report import comparison
from mae_curriculum.report import tables as findings
from mae_curriculum.report.charts import axes_of, draw_charts, script
from mae_curriculum.report.curves import MEASURES
from mae_curriculum.report.runs import RunData, readable
from mae_curriculum.report.tables import Table

PARTS = {
    "glance": "At a glance",
    "what": "What was run",
    "stages": "Stages",
    "curves": "Curves",
    "time": "Time and cost",
    "restarts": "Sessions and trouble",
    "pictures": "Pictures",
    "results": "What the encoder is worth",
}
"""Of the page, in order."""


PICTURE_BYTES, PICTURE_COUNT, PICTURE_PIXELS = 1_200_000, 6, 1_400
"""Of all pictures together; how many of a run, evenly chosen; their greatest width."""


TABLE_ROWS = 20
"""Of the table that holds a run's curves as numbers."""


@dataclass(frozen=True)
class Picture:
    """A picture of a run, as the page holds it."""

    name: str
    alt: str
    width: int
    height: int
    url: str


def render(runs: Sequence[RunData], *, baseline: RunData | None) -> str:
    """Make the page; a baseline is one of the runs."""
    templates = files("mae_curriculum.report") / "page"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {}  # Bokeh's references rely on the order of keys
    environment.filters |= {
        name.removeprefix("format_"): form for name, form in vars(terminal).items() if name.startswith("format_")
    }
    charts = list(draw_charts(runs))
    pictures = [list(pictures_of(run, max_bytes=PICTURE_BYTES // len(runs))) for run in runs]
    results = findings.result_table(runs)
    told = {
        "stages": any(run.stages for run in runs),
        "curves": charts,
        "pictures": any(pictures),
        "results": results.rows,
    }
    return environment.from_string((templates / "page.html").read_text("utf-8")).render(
        parts={name: title for name, title in PARTS.items() if told.get(name, True)},
        now=time.time(),
        runs=runs,
        baseline=baseline,
        others=[run for run in runs if run is not baseline],
        findings=findings,
        comparison=comparison,
        style=(templates / "page.css").read_text("utf-8"),
        behaviour=(templates / "page.js").read_text("utf-8"),
        bokeh=script() if charts else "",
        charts=charts,
        axes=axes_of(runs),
        numbers=[numbers_of(run) for run in runs if len(run.curves)],
        pictures=pictures,
        results=results,
        longest=max(sum(findings.seconds_by_activity(run).values()) for run in runs),
    )


def numbers_of(run: RunData) -> Table:
    """Tell a run's curves as numbers, for those who cannot see charts."""
    known = [measure for measure in MEASURES if run.tells(measure)]
    chosen = np.unique(np.linspace(0, len(run.curves) - 1, TABLE_ROWS).astype(int))
    columns = [run.curves[measure.key][chosen] * measure.scale for measure in known]
    rows = [
        [terminal.format_count(step), *(terminal.format_number(value) for value in row)]
        for step, *row in zip(run.curves["steps_done"][chosen], *columns, strict=True)
    ]
    head = ["step", *(f"{m.title}, {m.unit}" if m.unit else m.title for m in known)]
    return Table(f"Curves of {run.name}", head, rows)


def pictures_of(run: RunData, *, max_bytes: int) -> Iterator[Picture]:
    """Choose pictures of a run, the newest first, and make them small; those that cannot be read are left out."""
    paths = sorted((run.folder.path / "pictures").glob("*.png"), reverse=True)
    for place in np.unique(np.linspace(0, len(paths) - 1, min(PICTURE_COUNT, len(paths))).astype(int)):
        content = io.BytesIO()
        try:
            with Image.open(paths[place]) as image:
                image.thumbnail((PICTURE_PIXELS, 10 * PICTURE_PIXELS))
                image.save(content, "WEBP", quality=80)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # so does Pillow name them
            continue
        max_bytes -= content.tell()
        if max_bytes < 0:
            return
        url = "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode()
        yield Picture(*name_picture(run, paths[place].stem), *image.size, url)


def name_picture(run: RunData, stem: str) -> tuple[str, str]:
    """Name a picture, and say in words what it shows."""
    if match := re.fullmatch(r"step-(\d+)", stem):
        name = f"after {int(match[1]):,} steps"
        shows = "of some images, from top to bottom: the image, what was visible of it, its reconstruction, the error"
        return name, f"{run.name} {name}: {shows}"
    return readable(stem), f"{readable(stem)} of {run.name}"
