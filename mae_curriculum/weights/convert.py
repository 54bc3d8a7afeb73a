"""Convert weights to another image size, patch size or number of channels."""

from dataclasses import dataclass, replace
from math import prod

import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.model.positions import is_sincos, resample_positions, sincos_positions
from mae_curriculum.model.shape import fit_decoder
from mae_curriculum.terminal import side
from mae_curriculum.weights.names import format_keys
from mae_curriculum.weights.read import Weights

DEFAULTS = ModelConfig()

ENCODER = ("name", "width", "depth", "heads", "class_tokens", "options")
"""Settings that weights decide: others of the encoder belong to another network."""

DECODER = ("target", "target_from", "decoder_width", "decoder_depth", "decoder_heads", "decoder_options")
"""Settings of the decoder; if one is asked for that the weights do not have, the decoder starts fresh."""


@dataclass(frozen=True)
class Start:
    """Weights to start from, converted to the model that is to be trained."""

    weights: Weights
    """Those of the model; without a decoder if that starts fresh."""
    changes: tuple[str, ...]
    """What was converted, or left out, in words."""


def convert(weights: Weights, wanted: ModelConfig, what: object) -> Start:
    """Convert weights to the model that the settings ask for; what these leave at its default follows from the weights.

    The number of channels, the masks and what is predicted are always those of the settings. Positions are interpolated
    such that the grid covers the same image as before; patch kernels are resampled as in FlexiViT (arXiv:2212.08013);
    kernels of 3 channels become those of 1 by their sum, or of n by repetition.

    what    name of the weights in messages.
    Raises  ConfigError for another network than the weights', and for channels that cannot be converted.
    """
    _refuse_other_network(weights.model, wanted, what)
    width = weights.encoder["patch_embed.proj.weight"].shape[0]
    model = replace(
        weights.model,
        image_size=wanted.image_size or weights.model.image_size,
        patch_size=wanted.patch_size or weights.model.patch_size,
        norm_eps=wanted.norm_eps or weights.model.norm_eps,
        channels=wanted.channels,
        mask_ratio=wanted.mask_ratio,
        mask_block=wanted.mask_block,
        decode_share=wanted.decode_share,
        **{key: getattr(wanted, key) for key in DECODER} | fit_decoder(wanted, width),
    )
    old, new = _on_paper(weights.model), _on_paper(model)
    sizes = {
        "image size": (old.image_size, new.image_size),
        "patch size": (old.patch_size, new.patch_size),
        "grid": (old.full_grid, new.full_grid),
    }
    changes = [f"{name} {side(before)} -> {side(after)}" for name, (before, after) in sizes.items() if before != after]
    if old.channels != new.channels:
        changes.append(f"channels {old.channels} -> {new.channels}")
    decoder, why_fresh = _keep_decoder(weights, wanted, old, new)
    if why_fresh:
        changes.append(why_fresh)
    else:
        model = replace(model, **{key: getattr(weights.model, key) for key in DECODER})
    encoder = _convert_encoder(weights.encoder, old, new, what)
    return Start(replace(weights, model=model, encoder=encoder, decoder=decoder, open=()), tuple(changes))


def _on_paper(model: ModelConfig) -> MaskedAutoencoder:
    with torch.device("meta"):  # without memory
        return MaskedAutoencoder(model)


def _refuse_other_network(own: ModelConfig, wanted: ModelConfig, what: object) -> None:
    """Raise ConfigError if the settings ask for another encoder than the weights'."""
    asked = {key: getattr(wanted, key) for key in ENCODER if getattr(wanted, key) != getattr(DEFAULTS, key)}
    if not asked:
        return
    actual, expected = _on_paper(own), _on_paper(wanted if "name" in asked else replace(own, **asked))
    blocks = [
        f"{shape.depth} blocks of width {shape.width} with {shape.heads} heads"
        for shape in (actual.shape.encoder, expected.shape.encoder)
    ]
    if blocks[0] != blocks[1]:
        raise ConfigError(
            f"init: {what} has {blocks[0]}, the settings ask for {blocks[1]}; choose other weights, or leave out "
            + ", ".join(f"model.{key}" for key in asked)
        )
    differing = ", ".join(f"model.{key}" for key in asked)
    different = actual.encoder.state_dict().keys() ^ expected.encoder.state_dict().keys()
    if different:
        raise ConfigError(f"init: {what} and the settings differ in {format_keys(different)}; leave out {differing}")
    tokens = [
        f"{model.class_tokens} class tokens, {model.shape.encoder.prefix_tokens} with registers"
        for model in (actual, expected)
    ]
    if tokens[0] != tokens[1]:
        raise ConfigError(f"init: {what} has {tokens[0]}, the settings ask for {tokens[1]}; leave out {differing}")


def _keep_decoder(
    weights: Weights, wanted: ModelConfig, old: MaskedAutoencoder, new: MaskedAutoencoder
) -> tuple[dict[str, Tensor], str | None]:
    """Return the decoder's weights for the new grid; if there are none, or they do not fit, none and the reason."""
    own = weights.model
    asked = {key: getattr(wanted, key) for key in DECODER if getattr(wanted, key) != getattr(DEFAULTS, key)}
    other = [
        f"model.{key} {getattr(own, key)} -> {value}" for key, value in asked.items() if getattr(own, key) != value
    ]
    if not weights.decoder:
        return {}, "a fresh decoder: the weights have none"
    if (old.patch_size, old.channels) != (new.patch_size, new.channels):
        return {}, "a fresh decoder, since patches hold other values"
    if other:
        return {}, f"a fresh decoder: {', '.join(other)}"
    if weights.open:
        return {}, f"a fresh decoder: the weights do not say how theirs works ({' and '.join(weights.open)})"
    decoder = dict(weights.decoder)
    if old.full_grid != new.full_grid:
        width = old.shape.decoder.width
        prefix = torch.zeros(1, old.shape.encoder.prefix_tokens, width)
        usual = torch.cat([prefix, _table(old.full_grid, width)], dim=1)
        decoder["decoder_pos_embed"] = _resample(decoder.get("decoder_pos_embed", usual), old.full_grid, new.full_grid)
    return decoder, None


def _convert_encoder(
    encoder: dict[str, Tensor], old: MaskedAutoencoder, new: MaskedAutoencoder, what: object
) -> dict[str, Tensor]:
    """Return the weights of an encoder without its head, for another size, patch size or number of channels."""
    state = {key: value for key, value in encoder.items() if not key.startswith("head.")}
    kernel = state["patch_embed.proj.weight"].float()
    if old.channels != new.channels:
        if old.channels != 3:
            raise ConfigError(
                f"init: {what} takes {old.channels} channels, and only 3 can be converted to others; "
                f"set model.channels to {old.channels}"
            )
        kernel = adapt_input_conv(new.channels, kernel)
    if old.patch_size != new.patch_size:
        kernel = resample_patch_embed(kernel, list(new.patch_size))
    state["patch_embed.proj.weight"] = kernel
    if "pos_embed" in state and old.full_grid != new.full_grid:
        state["pos_embed"] = _resample(state["pos_embed"], old.full_grid, new.full_grid)
    return state


def _table(grid: tuple[int, int], width: int) -> Tensor:
    return sincos_positions(grid, grid, width, torch.device("cpu"))[None]


def _resample(positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Return positions (1, prefix + n, d) for another grid over the same image; MAE's table without any error."""
    prefix, patches = positions[0].float().tensor_split([positions.shape[1] - prod(grid)])
    if is_sincos(patches, grid):
        resampled = sincos_positions(new_grid, grid, patches.shape[1], patches.device)
    else:
        resampled = resample_positions(patches, grid, new_grid)
    return torch.cat([prefix, resampled])[None]
