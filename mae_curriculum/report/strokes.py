"""Histograms of oriented gradients as a picture."""

import math

import torch
from torch import Tensor

from mae_curriculum.model.shape import HOG_BINS

THICKNESS = 1.2
"""Half the width of a stroke in pixels, its blurred edge included."""


def draw_strokes(histograms: Tensor, side: int) -> Tensor:
    """Draw each cell's orientations as strokes along the edges that they stand for, as bright as they are strong.

    histograms  (b, c, o, y, x), as `model.hog` returns them; their mean over the channels is drawn.
    side        of a cell in the picture, pixels.
    Returns     (b, 1, y * side, x * side), 0 (black) to 1 (white); values below 0, of a prediction, are black.
    """
    strength = histograms.float().cpu().mean(dim=1).clamp(0, 1)
    drawn = strength[:, :, :, None, :, None] * strokes(side)[:, None, :, None, :]
    return drawn.amax(dim=1).flatten(1, 2).flatten(2)[:, None]


def strokes(side: int) -> Tensor:
    """Return a stroke per orientation through the middle of a cell, (o, side, side), 0 (black) to 1 (white)."""
    angles = (torch.arange(HOG_BINS).view(-1, 1, 1) + 0.5) * math.pi / HOG_BINS  # of the gradient, from the vertical on
    x = torch.arange(side) - (side - 1) / 2
    y = x[:, None]
    distance = (x * angles.sin() + y * angles.cos()).abs()
    return (THICKNESS - distance).clamp(0, 1) * (torch.hypot(x, y) < side / 2)
