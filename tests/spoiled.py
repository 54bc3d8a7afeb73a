"""A program like `python -m mae_curriculum`, on the last rank of which one training step goes wrong.

`python tests/spoiled.py loss|spike|weight STEP COMMAND ...`: the step's loss is infinite, with a finite gradient, or
nine times too large, or one weight is NaN from that step on. `python tests/spoiled.py stall|pause IMAGES COMMAND ...`:
after so many images, a process that loads them waits for the next one for ever, as for a disk that does not answer, or
for six seconds.
"""

import math
import os
import sys
import time
from itertools import count
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from mae_curriculum.__main__ import main
from mae_curriculum.data.sources import ArrayImages
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder

kind, spoiled_step, *words = sys.argv[1:]
pauses = {"stall": 3600.0, "pause": 6.0}
steps = count()
read = ArrayImages.read


def spoil_weight(model: nn.Module, _: Any) -> None:
    if isinstance(model, MaskedAutoencoder) and next(steps) == int(spoiled_step):
        with torch.no_grad():
            next(model.decoder.embed.parameters()).view(-1)[0] = math.nan


def spoil_loss(model: nn.Module, _: Any, losses: Any) -> Any:
    broken = isinstance(model, MaskedAutoencoder) and next(steps) == int(spoiled_step)
    if not broken:
        return None
    return 9 * losses if kind == "spike" else losses + math.inf


def read_or_wait(images: ArrayImages, index: int, channels: int) -> torch.Tensor:
    if next(steps) == int(spoiled_step):
        time.sleep(pauses[kind])
    return read(images, index, channels)


if __name__ == "__main__":
    if int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1:
        if kind in pauses:
            ArrayImages.read = read_or_wait  # type: ignore[method-assign, assignment]
        elif kind == "weight":
            register_module_forward_pre_hook(spoil_weight)
        else:
            register_module_forward_hook(spoil_loss)
    sys.exit(main(words))
