"""Accuracy by block of an encoder: a curve for each evaluation, drawn from what was recorded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mae_curriculum.report.runs import RunData
from mae_curriculum.report.tables import Table, name_accuracies
from mae_curriculum.terminal import UNKNOWN, format_share
from mae_curriculum.tracking.history import Row

WIDTH, HEIGHT, MARGIN = 640, 200, 48  # of a chart, in pixels


@dataclass(frozen=True)
class DepthChart:
    """The accuracies of one evaluation, of all runs that have it."""

    title: str
    curves: dict[int, list[float]]
    """Shares by block, by the index of the run."""

    @property
    def blocks(self) -> int:
        """The largest number of blocks."""
        return max(map(len, self.curves.values()))

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest accuracy."""
        values = [value for curve in self.curves.values() for value in curve]
        return min(values), max(values)

    def points(self, run: int) -> list[tuple[float, float]]:
        """Return a run's curve as x and y of each block, in pixels."""
        low, high = self.range
        across, down = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
        points = []
        for block, value in enumerate(self.curves[run]):
            x = MARGIN + across * block / max(1, self.blocks - 1)
            y = MARGIN + down * (high - value) / ((high - low) or 1)
            points.append((round(x, 1), round(y, 1)))
        return points

    def table(self, runs: Sequence[RunData]) -> Table:
        """Tabulate the curves, a column per run."""
        rows = []
        for block in range(self.blocks):
            values = [curve[block] if block < len(curve) else None for curve in self.curves.values()]
            rows.append([str(block), *(UNKNOWN if value is None else format_share(value) for value in values)])
        return Table("", ["block", *(runs[index].name for index in self.curves)], rows)


def depth_charts(runs: Sequence[RunData]) -> list[DepthChart]:
    """Return a chart for each evaluation by block that any run has, the newest of each."""
    curves: dict[str, dict[int, list[float]]] = {}
    for index, run in enumerate(runs):
        for row in run.history.results:
            for title, shares in _curves_of(row):
                curves.setdefault(title, {})[index] = shares
    return [DepthChart(title, by_run) for title, by_run in curves.items()]


def _curves_of(row: Row) -> Iterator[tuple[str, list[float]]]:
    """Yield the name of each accuracy of an evaluation with its shares by block; none without blocks."""
    named = [name_accuracies({**row, "block": -1}, accuracy) for accuracy in row.get("by_block", [])]
    for title in named[0] if named else ():
        yield f"{title}, by block", [accuracies[title]["mean"] for accuracies in named]
