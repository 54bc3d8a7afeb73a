"""Format numbers, sizes, durations and tables for people, and write log messages above the progress bar."""

import logging
import math
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

LOGGERS = ("mae_curriculum", "finetune", "slurm")
"""The packages whose messages the command line shows."""


class TerminalHandler(logging.Handler):
    """Writes messages to stderr, above the progress bar if there is one."""

    below_bar = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message; warnings and errors start with "warning: "."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        try:
            first = "\n" if self.below_bar and sys.stderr.isatty() else ""
            tqdm.write(f"{first}{prefix}{printable(self.format(record))}", file=sys.stderr)
            sys.stderr.flush()
        except Exception:  # a closed stderr
            self.handleError(record)


_handler = TerminalHandler()


def configure_logging(*, below_bar: bool = False) -> None:
    """Show messages of this project on stderr, from level INFO; repeated calls change nothing.

    below_bar  start each message on a new line, as another process draws a progress bar on the terminal.
    """
    _handler.below_bar = below_bar
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(_handler)  # which logging ignores if it has it


@contextmanager
def shown(text: str) -> Iterator[None]:
    """Show a text on the terminal, if stderr is one, for as long as the context lasts."""
    if not sys.stderr.isatty():
        yield
        return
    print(text, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)  # erases the line


def printable(text: object) -> str:
    """Return text from outside as part of one line: escape codes, newlines and bytes that are no text are spelled out.

    Names in a run folder that somebody sent, and messages of libraries, could otherwise rewrite the terminal.
    """
    return "".join(
        letter if letter.isprintable() or unicodedata.category(letter) == "Zs" else ascii(letter)[1:-1]
        for letter in str(text)
    )


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of equal length as right-aligned columns of printable text; the first row is the header."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def side(size: Sequence[int]) -> str:
    """Format an image size (height, width) in pixels: 224 for a square, else 224x448."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def format_clock(seconds: float) -> str:
    """Format a duration in seconds as H:MM:SS."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


LONG_UNITS = (("h", 3600), ("min", 60))
"""Units of durations above two of them, and their seconds."""

UNKNOWN = "–"
"""Shown for unknown values."""


def format_or_dash(value: float | None, form: str, *, scale: float = 1.0) -> str:
    """Format a number, times `scale`, with a format such as "{:.3g}"; a dash for None, NaN and infinity."""
    return UNKNOWN if value is None or not math.isfinite(value) else form.format(value * scale)


def format_size(size: Sequence[int] | None) -> str:
    """Format an image size (height, width) with its unit."""
    return f"{side(size)} px" if size else UNKNOWN


def format_share(share: float | None) -> str:
    """Format a share in [0, 1] as a percentage."""
    return format_or_dash(share, "{:.1f}%", scale=100)


def format_count(count: float | None) -> str:
    """Format a count with thousands separators."""
    return format_or_dash(count, "{:,.0f}")


def format_epochs(equivalent: float, real: float | None) -> str:
    """Format a length in equivalent epochs and in passes over the data: 400 equivalent epochs (909.2 real)."""
    return f"{equivalent:g} equivalent epochs ({format_or_dash(real, '{:.1f}')} real)"


def format_flops(flops: float | None) -> str:
    """Format FLOPs, such as 7.73e19."""
    return format_or_dash(flops, "{:.2e}").replace("e+", "e")


def format_duration(seconds: float | None) -> str:
    """Format a duration in the unit that fits, with three digits: 0.73 s, 12.3 min, 103 h."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    unit, length = next(((unit, length) for unit, length in LONG_UNITS if seconds >= 2 * length), ("s", 1))
    value = seconds / length
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{decimals}f} {unit}"


def format_date(seconds: float) -> str:
    """Format a time in seconds since 1970 as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def format_number(value: float | None) -> str:
    """Format a number with four significant digits."""
    return format_or_dash(value, "{:,.4g}")


def format_setting(value: Any) -> str:
    """Format the value of a setting; a list of stages by their shares and sizes, and what else they set."""
    if value is None:
        return UNKNOWN
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return ", ".join(map(_format_stage, value))
    return str(value)


def _format_stage(stage: dict[str, Any]) -> str:
    others = [f"{key} {value}" for key, value in own_settings(stage).items()]
    return f"{100 * stage.get('share', 0):.3g} % at {stage.get('size')}" + (f" ({', '.join(others)})" if others else "")


def own_settings(stage: dict[str, Any]) -> dict[str, Any]:
    """Return what a stage sets besides its share and size."""
    settings = {key: value for key, value in stage.items() if key not in ("share", "size") and value is not None}
    return {key: value for key, value in settings.items() if not (key.endswith("_factor") and value == 1)}
