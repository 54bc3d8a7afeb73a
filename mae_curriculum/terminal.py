"""Format numbers, sizes, durations and tables for people, and write log messages above the progress bar."""

import logging
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm


def say(line: str) -> None:
    """Print a line for the user, above the bar where there is one."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


LOGGERS = ("mae_curriculum", "finetune", "slurm")
"""The project's packages: each module's logger is below one of them."""


class TerminalHandler(logging.Handler):
    """Write messages to stderr, above the progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message; warnings and errors start with their level."""
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        say(prefix + self.format(record))


def configure_logging() -> None:
    """Write what the project logs, from INFO on, to stderr; calling it again changes nothing."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, TerminalHandler) for handler in logger.handlers):
            logger.addHandler(TerminalHandler())


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows of equal length out in columns, aligned to the right; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def side(size: Sequence[int]) -> str:
    """Spell an image size (height, width): 224 for a square, else 224x448."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def format_clock(seconds: float) -> str:
    """Spell a duration as H:MM:SS."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


UNKNOWN = "–"
"""Stands for what is not known."""


def format_or_dash(value: float | None, form: str, *, scale: float = 1.0) -> str:
    """Spell a number in a format such as "{:.3g}", if there is one."""
    return UNKNOWN if value is None or not math.isfinite(value) else form.format(value * scale)


def format_size(size: Sequence[int] | None) -> str:
    """Spell an image size with its unit."""
    return f"{side(size)} px" if size else UNKNOWN


def format_share(share: float | None) -> str:
    """Spell a share as percent."""
    return format_or_dash(share, "{:.1f} %", scale=100)


def format_count(count: float | None) -> str:
    """Spell a count."""
    return format_or_dash(count, "{:,.0f}")


def format_flops(flops: float | None) -> str:
    """Spell FLOPs, such as 7.73e19."""
    return format_or_dash(flops, "{:.2e}").replace("e+", "e")


def format_duration(seconds: float | None) -> str:
    """Spell a duration: 12.3 s, or from two minutes on H:MM:SS."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    return f"{seconds:.1f} s" if seconds < 120 else format_clock(seconds)


def format_date(seconds: float) -> str:
    """Spell a time of day, where the report is made."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def format_number(value: float | None) -> str:
    """Spell any number in four digits."""
    return format_or_dash(value, "{:,.4g}")


def format_setting(value: Any) -> str:
    """Spell a setting's value; stages by their shares and sizes."""
    if value is None:
        return UNKNOWN
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return ", ".join(f"{100 * item.get('share', 0):.3g} % at {item.get('size')}" for item in value)
    return str(value)
