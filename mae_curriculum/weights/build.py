"""Build models from weights that were read."""

from pathlib import Path

import torch
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.distributed import World
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder, build_model
from mae_curriculum.model.positions import sincos_positions
from mae_curriculum.weights.names import decoder_from_mae, fingerprint, some
from mae_curriculum.weights.read import Weights, read_weights


def load_into_(module: torch.nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Load weights, all of them and nothing else; raises ConfigError that lists what does not fit."""
    own = module.state_dict()
    missing, unexpected = own.keys() - weights.keys(), weights.keys() - own.keys()
    shapes = [
        f"{key} {list(weights[key].shape)}, here {list(own[key].shape)}"
        for key in own.keys() & weights.keys()
        if own[key].shape != weights[key].shape
    ]
    complaints = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    if any(keys for _, keys in complaints):
        told = "; ".join(f"{name}: {some(keys)}" for name, keys in complaints if keys)
        raise ConfigError(f"{what} does not fit: {told}")
    module.load_state_dict(weights)


def build_encoder(weights: Weights, what: object) -> MaskedAutoencoder:
    """Make the model whose encoder describes images as these weights do; a classifier's head is left out.

    what    names the checkpoint in messages.
    Raises  ConfigError that lists what does not fit.
    """
    if wrong := [key for key, value in weights.encoder.items() if not value.isfinite().all()]:
        raise ConfigError(f"{what}: these weights are not finite numbers: {some(wrong)}")
    model = build_model(weights.model, seed=0)
    encoder = {key: value for key, value in weights.encoder.items() if not key.startswith("head.")}
    if "fc_norm.weight" in encoder:  # a classifier that averages the patches first and normalises then
        model.encoder.norm, model.encoder.fc_norm = torch.nn.Identity(), model.encoder.norm
    table = model.encoder.pos_embed
    load_into_(model.encoder, encoder, f"the encoder of {what}")
    if table is not None:  # the parameter itself, so it now holds the checkpoint's
        fixed = sincos_positions(model.full_grid, model.full_grid, table.shape[-1], table.device)
        prefix, patches = table.detach()[0].tensor_split([table.shape[1] - len(fixed)])
        model.learned_positions = bool(prefix.any()) or not torch.allclose(patches, fixed, atol=1e-4)
    return model.eval()


def build_autoencoder(weights: Weights, what: object) -> MaskedAutoencoder:
    """Make the model of these weights with its decoder, as `build_encoder`; raises ConfigError if there is none."""
    if not weights.decoder:
        raise ConfigError(
            f"reconstructions need a decoder, and {what} ({weights.origin}) has none; give the run folder, or an "
            "export with --format mae or hf_mae"
        )
    model = build_encoder(weights, what)
    own = {key: value for key, value in model.state_dict().items() if key.startswith("encoder.")}
    load_into_(model, own | decoder_from_mae(weights.decoder), f"the decoder of {what}")
    return model


def read_together(path: Path, world: World, *, heads: int | None = None) -> Weights:
    """Read weights on every rank, and make sure that all read the same, though a run may be going on."""
    weights = read_weights(path, heads=heads)
    if len(set(world.gather(fingerprint(weights.encoder)))) > 1:
        raise ConfigError(f"{path} changed while it was read; start again, or give a file of its checkpoints' weights")
    return weights
