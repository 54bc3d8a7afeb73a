"""Replay the step that ended a run, image by image, with the same images, masks and weights."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mae_curriculum.commands.config import ReplayConfig
from mae_curriculum.config import ConfigError, load_file
from mae_curriculum.data.loader import complete_, training_loader
from mae_curriculum.data.requests import RequestSampler
from mae_curriculum.data.sources import open_together
from mae_curriculum.distributed import World, connect
from mae_curriculum.initialization import resolve_init
from mae_curriculum.pretraining import set_up
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.run.checkpoint import load_state
from mae_curriculum.run.folder import RunFolder, no_run
from mae_curriculum.terminal import format_table
from mae_curriculum.training.anomalies import CAPTURE


def replay(config: ReplayConfig) -> int:
    """Print loss and gradient norm of each image (if any are not finite, of those alone); returns the exit code."""
    folder = RunFolder(config.run)
    if not folder.journal.exists():
        raise ConfigError(f"run: {no_run(config.run)}")
    capture = config.run / CAPTURE
    if not capture.exists():
        raise ConfigError(f"{capture} does not exist; a pretraining writes it when steps without a finite loss end it")
    if folder.info["command"] != "pretrain":
        raise ConfigError(f"run: {config.run} is not a pretraining; only pretraining can be replayed")
    state = load_state(capture)
    with connect() as world:
        if world.world_size > 1:
            raise ConfigError(f"replay runs in one process, got {world.world_size}; start it without torchrun")
        rows, norm = measure(load_file(PretrainConfig, folder.config), state, world)
    failed = [row for row in rows if not math.isfinite(row[1] + row[2])]
    table = [[name, f"{loss:.4g}", f"{image_norm:.4g}"] for name, loss, image_norm in failed or rows]
    print(format_table([["image", "loss", "gradient norm"], *table]))
    weights = "the weights it had" if state["exact"] else "weights of a few steps later"
    print(
        f"step {state['steps_done']}, with {weights}: gradient norm {norm:.4g}; "
        f"{len(failed)} of {len(rows)} images have no finite loss or gradient"
    )
    return 0


def measure(
    config: PretrainConfig, state: dict[str, Any], world: World
) -> tuple[list[tuple[str, float, float]], float]:
    """Compute the gradient of a step, without changing weights.

    Returns  name, loss and gradient norm of each image, and the norm of the whole gradient.
    """
    config, weights = resolve_init(config, world)
    images, _, _ = open_together(config.data, world)
    training = set_up(config, world, images, weights)
    model, moment = training.model, training.clock.moment(state["steps_done"])
    model.load_state_dict(state["model"])
    data = config.data
    sampler = RequestSampler(
        training.clock, moment.step, config.seed, 0, 1, None, repeats=data.repeats, window=data.shuffle_window
    )
    loader = training_loader(training.dataset, sampler, workers=0, device=world.device)
    batch = complete_(next(iter(loader)), {})
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    rows = []
    for place, index in enumerate(batch.ids.tolist()):
        only = slice(place, place + 1)
        one = replace(batch, images=batch.images[only], ids=batch.ids[only], places=batch.places[only])
        with world.autocast(config.precision):
            loss = model(*training.inputs(one, moment)).sum()
        gradient = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        for total, part in zip(totals, gradient, strict=True):
            total += part / moment.batch_images
        rows.append((images.name(index), float(loss.detach()), float(nn.utils.get_total_norm(gradient))))
    return rows, float(nn.utils.get_total_norm(totals))
