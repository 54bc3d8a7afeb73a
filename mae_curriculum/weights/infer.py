"""Infer the model that weights belong to, from their shapes and from what their checkpoint or the user states.

What neither says is assumed to be as in timm's or MAE's model of that size, and logged; or it is refused.
"""

from math import isqrt, nextafter, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_curriculum.config import ConfigError, load_part
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.masked_autoencoder import DECODER_NORM_EPS, build_timm
from mae_curriculum.model.positions import is_sincos
from mae_curriculum.weights.names import Log, count_blocks
from mae_curriculum.weights.stated import ACTIVATIONS, Stated, find_activation

NAMES = {
    (192, 12): "vit_tiny_patch16_224",
    (384, 12): "vit_small_patch16_224",
    (768, 12): "vit_base_patch16_224",
    (1024, 24): "vit_large_patch16_224",
    (1280, 32): "vit_huge_patch14_224",
}
"""timm's plain ViTs by width and depth, for files that name no architecture."""

MAE_DECODER = (512, 8)
"""Width and depth of the decoder of every model that MAE's authors published; it has 16 heads."""

NAMED = ("embed_dim", "depth", "patch_size", "in_chans")
"""The arguments of timm's ViT that `ModelConfig` has settings for; the others are options."""

Size = tuple[int, int]
Tensors = dict[str, Tensor]


def describe(state: Tensors) -> dict[str, Any]:
    """Return the arguments of timm's ViT that the names and shapes of its weights show."""
    width, channels, patch_size, _ = state["patch_embed.proj.weight"].shape
    return {
        "embed_dim": width,
        "depth": count_blocks(state, "blocks"),
        "patch_size": patch_size,
        "in_chans": channels,
        "mlp_ratio": _mlp_ratio(state["blocks.0.mlp.fc1.weight"]),
        "class_token": "cls_token" in state,
        "reg_tokens": state["reg_token"].shape[1] if "reg_token" in state else 0,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "proj_bias": "blocks.0.attn.proj.bias" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "scale_attn_norm": "blocks.0.attn.norm.weight" in state,
        "scale_mlp_norm": "blocks.0.mlp.norm.weight" in state,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in state else None,  # layer scale, whose initial value is lost
        "pre_norm": "norm_pre.weight" in state,
        "final_norm": "norm.weight" in state or "fc_norm.weight" in state,
    }


def infer_model(encoder: Tensors, decoder: Tensors, known: Stated, path: Path, log: Log) -> ModelConfig:
    """Infer the model of an encoder, and of a decoder unless that is empty.

    known    what the checkpoint or the user states.
    log      takes a line about what is assumed.
    Raises   ConfigError for an encoder that is no plain ViT, and for what cannot be assumed.
    """
    _check_shapes(encoder, path)
    found = describe(encoder)
    settings, assumed = _infer_encoder(encoder, found, known, path)
    if decoder:
        more, assumed_too = _infer_decoder(decoder, settings["options"], known)
        settings |= more
        assumed += assumed_too
    elif known.name is None and known.norm_eps is None:
        assumed.append(f"blocks of a plain ViT with GELU, layer norms with an epsilon of {DECODER_NORM_EPS:g}")
    if assumed:
        log(f"{path} leaves open, and this is assumed: {'; '.join(assumed)}")
    try:
        return load_part(ModelConfig, settings)  # which checks the types of what JSON files state
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_shapes(encoder: Tensors, path: Path) -> None:
    patches, tokens = encoder["patch_embed.proj.weight"], encoder.get("cls_token")
    if patches.shape[2] != patches.shape[3]:
        raise ConfigError(f"{path}: a patch embedding of shape {list(patches.shape)}; patches must be square images")
    if "pos_embed" not in encoder:
        raise ConfigError(f"{path}: no positional embedding per patch; rotary and relative positions cannot be read")
    if tokens is not None and tokens.shape[:-1] != (1, 1):
        raise ConfigError(f"{path}: class tokens of shape {list(tokens.shape)}; an encoder here has one")


def _infer_encoder(
    encoder: Tensors, found: dict[str, Any], known: Stated, path: Path
) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of the encoder, and what was assumed."""
    width, depth, patch_size = found["embed_dim"], found["depth"], found["patch_size"]
    name = known.name or NAMES.get((width, depth), "vit_base_patch16_224")
    with torch.device("meta"):
        usual = build_timm(ModelConfig(name))
    block, is_usual = usual.blocks[0], (width, depth) == (usual.embed_dim, len(usual.blocks))
    heads, assumed = known.heads, []
    if found["qk_norm"]:
        heads = width // encoder["blocks.0.attn.q_norm.weight"].shape[0]
    elif heads is None and is_usual:
        heads = block.attn.num_heads
        assumed += [] if known.name else [f"{heads} attention heads, as {name} (--heads)"]
    if heads is None:
        raise ConfigError(
            f"{path} does not say how many attention heads its ViT of width {width} has; set model.heads or --heads"
        )
    if isinstance(heads, int) and (heads < 1 or width % heads):
        raise ConfigError(f"{path}: its width of {width} is no multiple of {heads} attention heads; check --heads")
    size, embedded, is_sure = _infer_size(encoder, patch_size, known.image_size, path)
    assumed += [] if is_sure else [f"square images of {size[0]}x{size[1]} (--image_size)"]
    settings = {
        "name": name,
        "image_size": size[0] if size[0] == size[1] else list(size),
        "patch_size": patch_size,
        "channels": found["in_chans"],
        "width": None if is_usual else width,
        "depth": None if is_usual else depth,
        "heads": None if is_usual and heads == block.attn.num_heads else heads,
        "norm_eps": None if known.norm_eps == block.norm1.eps == DECODER_NORM_EPS else known.norm_eps,
        "options": _options(found, embedded, known, usual),
    }
    return settings, assumed


def _options(found: dict[str, Any], embedded: int, known: Stated, usual: Any) -> dict[str, Any]:
    """Return the arguments of timm's ViT in which an encoder differs from the usual one of its name.

    embedded  number of prefix tokens that have a position.
    """
    implied = describe(usual.state_dict())
    options = {key: value for key, value in found.items() if key not in NAMED and value != implied[key]}
    prefix = found["class_token"] + found["reg_tokens"]
    if prefix and (embedded < prefix) != usual.no_embed_class:
        options["no_embed_class"] = embedded < prefix
    own_activation = ACTIVATIONS.get(find_activation(usual.blocks[0]) or "")
    if known.activation not in (None, own_activation):
        options["act_layer"] = known.activation
    return options


def _infer_size(encoder: Tensors, patch_size: int, known: Size | None, path: Path) -> tuple[Size, int, bool]:
    """Return the image size, the number of prefix tokens that have a position, and whether that is sure.

    MAE's sine-cosine table shows its grid. In DINOv2 the class token has a position, and registers have none.
    """
    positions = encoder["pos_embed"][0]
    class_tokens = int("cls_token" in encoder)
    registers = encoder["reg_token"].shape[1] if "reg_token" in encoder else 0
    counts = {count: len(positions) - count for count in (class_tokens + registers, class_tokens, 0)}
    counts = {embedded: patches for embedded, patches in counts.items() if patches > 0}
    if known is not None:
        patches = prod(side // patch_size for side in known)
        fits = [embedded for embedded in counts if counts[embedded] == patches]
        if not fits:
            raise ConfigError(
                f"{path}: an image of {known[0]}x{known[1]} has {patches} patches of {patch_size} pixels, but the "
                f"checkpoint has {len(positions)} positions, prefix tokens included; it is of another image size"
            )
        return known, fits[0], True
    for embedded, patches in counts.items():
        for rows in range(1, patches + 1):
            grid = (rows, patches // rows)
            if prod(grid) == patches and is_sincos(positions, grid):
                return (grid[0] * patch_size, grid[1] * patch_size), embedded, True
    squares = [embedded for embedded, patches in counts.items() if isqrt(patches) ** 2 == patches]
    if len(squares) != 1:
        raise ConfigError(
            f"{path} has {len(positions)} positions and does not say of which image; add --image_size '[HEIGHT, WIDTH]'"
        )
    side = isqrt(counts[squares[0]]) * patch_size
    return (side, side), squares[0], False


def _infer_decoder(
    decoder: Tensors, encoder_options: dict[str, Any], known: Stated
) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of the decoder, and what was assumed; what stays open is listed by `left_open`."""
    width, depth = decoder["decoder_embed.weight"].shape[0], count_blocks(decoder, "decoder_blocks")
    heads, assumed = known.decoder_heads, []
    if heads is None and (width, depth) == MAE_DECODER:
        heads = 16
        assumed.append("16 heads in the decoder, as MAE (--decoder_heads)")
    if known.mask_ratio is None:
        assumed.append(f"a mask ratio of {ModelConfig.mask_ratio:g}, as MAE")
    options = {key: value for key, value in encoder_options.items() if key == "act_layer"}
    mlp_ratio = _mlp_ratio(decoder["decoder_blocks.0.mlp.fc1.weight"])
    if mlp_ratio != 4:
        options["mlp_ratio"] = mlp_ratio
    if "decoder_blocks.0.attn.qkv.bias" not in decoder:
        options["qkv_bias"] = False
    settings = {
        "decoder_width": width,
        "decoder_depth": depth,
        "decoder_heads": heads or 1,
        "decoder_options": options,
        "mask_ratio": known.mask_ratio or ModelConfig.mask_ratio,
        "target": known.target or ModelConfig.target,
    }
    return settings, assumed


def left_open(model: ModelConfig, known: Stated) -> tuple[str, ...]:
    """Return how to say what is open about a decoder: it cannot be assumed, and features do not need it."""
    is_maes = (model.decoder_width, model.decoder_depth) == MAE_DECODER
    heads = () if known.decoder_heads or is_maes else ("--decoder_heads N",)
    return heads if known.target else (*heads, "--target pixels (or norm_pixels, hog)")


def _mlp_ratio(weight: Tensor) -> float:
    """Return the ratio of an MLP's hidden width to the width, given its first matrix, so that timm rounds it back."""
    hidden, width = weight.shape
    ratio: float = hidden / width
    return ratio if int(width * ratio) == hidden else nextafter(ratio, hidden)
