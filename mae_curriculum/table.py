"""Tables for the terminal."""

from collections.abc import Sequence


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows of equal length out in columns, aligned to the right; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def side(size: Sequence[int]) -> str:
    """Spell an image size (height, width): 224 for a square, else 224x448."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def spell_seconds(seconds: float) -> str:
    """Spell a duration as H:MM:SS."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
