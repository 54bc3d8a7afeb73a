"""What a pretraining run starts from: random weights, or those of a checkpoint."""

from dataclasses import replace
from typing import TypeVar

from torch import nn

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import Clock, Moment
from mae_curriculum.distributed import World
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder, build_model
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.run.folder import check_checkpoint
from mae_curriculum.weights.build import build_autoencoder, load_encoder_, read_together
from mae_curriculum.weights.convert import convert
from mae_curriculum.weights.normalization import with_normalization
from mae_curriculum.weights.read import Weights

P = TypeVar("P", bound=PretrainConfig)


def resolve_init(config: P, world: World) -> tuple[P, Weights | None]:
    """Read the weights that a run starts from; return the settings with what follows from them, and the weights.

    What was converted, and what of the model is fresh, is logged. Resolved settings resolve to themselves.

    Raises  ConfigError for weights that cannot be read, or that the settings do not fit.
    """
    path = config.init
    if path is None:
        return config, None
    check_checkpoint(path, key="init")
    weights = read_together(path, world, heads=config.model.heads)
    start = convert(weights, config.model, path)
    changes = "; ".join(start.changes) or "nothing converted"
    world.log(f"starting from {path} ({weights.origin}, {weights.model.name}): {changes}")
    data = with_normalization(config.data, weights, path, world.log)
    config = replace(config, model=start.weights.model, data=data)
    assert config.epochs is not None, "choices come first"
    if not start.weights.decoder and config.init_decoder_epochs >= config.epochs:
        raise ConfigError(
            f"init_decoder_epochs is {config.init_decoder_epochs} of {config.epochs} epochs, so the encoder would "
            "never train; make it smaller"
        )
    return config, start.weights


def build_start(config: PretrainConfig, weights: Weights | None) -> MaskedAutoencoder:
    """Build the model with the weights that a run starts from; what they lack depends on the seed alone."""
    if weights is not None and weights.decoder:
        return build_autoencoder(weights, config.init).train()
    model = build_model(config.model, seed=config.seed)
    if weights is not None:
        load_encoder_(model, weights, config.init)
    return model


def frozen_parameters(
    model: MaskedAutoencoder, clock: Clock, weights: Weights | None, moment: Moment, *, decoder_epochs: int
) -> list[nn.Parameter]:
    """Return the parameters that keep their values in a step: the encoder's, while a fresh decoder trains alone."""
    if weights is None or weights.decoder or clock.equivalent_epochs(moment.step) >= decoder_epochs:
        return []
    return list(model.encoder.parameters())
