"""The arithmetic that a model may run in."""

from typing import Literal

Precision = Literal["auto", "float32", "bfloat16"]
