"""The arithmetic of a model."""

from typing import Literal

Precision = Literal["auto", "float32", "bfloat16"]
