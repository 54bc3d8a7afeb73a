"""Build models from weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.distributed import World
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder, build_model
from mae_curriculum.model.positions import is_sincos
from mae_curriculum.weights.names import decoder_from_mae, fingerprint, format_keys
from mae_curriculum.weights.read import Weights, read_weights


def load_into_(module: torch.nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Load weights into a module; raises ConfigError that lists all keys that do not fit."""
    own = module.state_dict()
    wrong_shapes = [
        f"{key} {list(weights[key].shape)}, expected {list(own[key].shape)}"
        for key in own.keys() & weights.keys()
        if own[key].shape != weights[key].shape
    ]
    missing, unexpected = own.keys() - weights.keys(), weights.keys() - own.keys()
    problems = {"missing": missing, "unexpected": unexpected, "of wrong shape": wrong_shapes}
    messages = [f"{problem}: {format_keys(keys)}" for problem, keys in problems.items() if keys]
    if messages:
        raise ConfigError(f"{what} does not fit: {'; '.join(messages)}")
    module.load_state_dict(weights)


def build_encoder(weights: Weights, what: object) -> MaskedAutoencoder:
    """Build the model whose encoder has these weights, for features; its decoder is a random one, as small as can be.

    what    name of the checkpoint in messages.
    Raises  ConfigError that lists all keys that do not fit.
    """
    small = replace(weights.model, decoder_width=4, decoder_depth=1, decoder_heads=1, decoder_options={})
    model = build_model(small, seed=0)
    load_encoder_(model, weights, what)
    return model.eval()


def load_encoder_(model: MaskedAutoencoder, weights: Weights, what: object) -> None:
    """Load weights into a model's encoder, without the head of a classifier; raises ConfigError if they do not fit."""
    _refuse_broken(weights.encoder, what)
    encoder = model.encoder
    state = {key: value for key, value in weights.encoder.items() if not key.startswith("head.")}
    if "fc_norm.weight" in state:  # timm's name for the norm of a classifier that averages the patches before it
        encoder.norm, encoder.fc_norm = torch.nn.Identity(), encoder.norm
    load_into_(encoder, state, f"the encoder of {what}")
    if encoder.pos_embed is not None:
        model.learned_positions = not is_sincos(encoder.pos_embed.detach()[0], model.full_grid)


def _refuse_broken(tensors: dict[str, Tensor], what: object) -> None:
    broken = [key for key, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise ConfigError(f"{what}: these weights are not finite: {format_keys(broken)}")


def build_autoencoder(weights: Weights, what: object) -> MaskedAutoencoder:
    """Build the model with these weights, decoder included; raises ConfigError if keys do not fit or there is none."""
    if not weights.decoder:
        raise ConfigError(f"{what} ({weights.origin}) has no decoder; use the run, or export it with --format mae")
    if weights.open:
        raise ConfigError(
            f"{what} ({weights.origin}) leaves open how its decoder works; add {' and '.join(weights.open)}"
        )
    _refuse_broken(weights.decoder, what)
    model = build_model(weights.model, seed=0)
    load_encoder_(model, weights, what)
    if "decoder_pos_embed" in weights.decoder:  # positions of its own, those of the class token included
        tokens = model.encoder.num_prefix_tokens + model.full_grid[0] * model.full_grid[1]
        model.decoder.pos_embed = torch.empty(1, tokens, model.shape.decoder.width)
    encoder = {key: value for key, value in model.state_dict().items() if key.startswith("encoder.")}
    load_into_(model, encoder | decoder_from_mae(weights.decoder), f"the decoder of {what}")
    return model.eval()


def read_together(path: Path, world: World, **hints: Any) -> Weights:
    """Read weights on every rank, as `read_weights` does with these hints.

    Raises  ConfigError also if the ranks read other weights, as when a run saves in between.
    """
    weights = read_weights(path, log=world.log, **hints)
    if len(set(world.gather(fingerprint(weights.encoder)))) > 1:
        raise ConfigError(f"{path} changed while it was read; start again, or use a file that no run overwrites")
    return weights
