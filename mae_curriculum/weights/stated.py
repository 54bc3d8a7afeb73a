"""What a checkpoint states about its model beside the tensors: in a folder's JSON files, or a training's arguments."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from PIL.Image import Resampling
from timm.layers.create_act import get_act_layer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import IMAGENET_MEAN, IMAGENET_STD
from mae_curriculum.model.config import Target
from mae_curriculum.weights.names import NORMALIZATION_KEY, Log

Values = tuple[float, ...]

NORM_EPS = {
    "vit": 1e-12,
    "vit_mae": 1e-12,
    "vit_msn": 1e-6,
    "ijepa": 1e-12,
    "dinov2": 1e-6,
    "dinov2_with_registers": 1e-6,
}
"""The `model_type`s of transformers that are plain ViTs, and the layer_norm_eps of a config.json that leaves it out."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "selu": "selu",
    "tanh": "tanh",
    "mish": "mish",
}
"""The activations that timm has too: transformers' names and timm's."""

PLAIN_NAMES = {
    "tiny": "vit_tiny_patch16_224",
    "small": "vit_small_patch16_224",
    "base": "vit_base_patch16_224",
    "large": "vit_large_patch16_224",
    "huge": "vit_huge_patch14_224",
}
"""timm's names of the sizes of ViT, as the code of MAE and DINO calls them: mae_vit_base_patch16, vit_small."""

RESAMPLING = {mode.value: mode.name.lower() for mode in Resampling}
"""Pillow's codes of interpolation, which transformers states."""


@dataclass(frozen=True)
class Stated:
    """What a checkpoint states; None where it leaves something open."""

    name: str | None = None
    """timm's name of the architecture, whose width and depth may be others."""
    heads: int | None = None
    image_size: tuple[int, int] | None = None
    norm_eps: float | None = None
    activation: str | None = None
    """timm's name."""
    decoder_heads: int | None = None
    target: Target | None = None
    mask_ratio: float | None = None
    mean: Values | None = None
    std: Values | None = None
    preparation: str | None = None
    """How images are prepared before they are normalized, if otherwise than here."""


def read_stated(
    settings: Mapping[str, Any], shape: tuple[int, int], path: Path, *, is_hugging_face: bool, log: Log
) -> Stated:
    """Read what the settings of `read_network` state about a model.

    shape            width and depth of the encoder.
    is_hugging_face  whether its tensors have the names of transformers, which timm's own models never have.
    log              takes a line about what transformers' config.json would have said, if that is missing.
    Raises           ConfigError for a model that is no plain ViT.
    """
    config = settings.get("config", {})
    if "architecture" in config:
        stated = _of_timm(config, shape, path)
    elif config and (is_hugging_face or "model_type" in config):
        stated = _of_hugging_face(config, path)
    elif is_hugging_face:
        eps = NORM_EPS["vit"]
        stated = Stated(norm_eps=eps)
        log(f"{path}: no config.json beside it; assumed: GELU, layer norms with an epsilon of {eps:g}")
    else:
        stated = _of_training(settings, shape, path)
    if "preprocessor" in settings:
        stated = replace(stated, **_normalization(settings["preprocessor"], path))
    if NORMALIZATION_KEY in settings:
        mean, std = map(as_values, parse_metadata(settings, NORMALIZATION_KEY, path))
        stated = replace(stated, mean=mean, std=std)
    return stated


def parse_metadata(settings: Mapping[str, Any], key: str, path: Path) -> Any:
    """Parse JSON that this project wrote; raises ConfigError if somebody changed it."""
    try:
        return json.loads(settings[key])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: its metadata {key} cannot be read: {error}") from error


def _of_hugging_face(config: Mapping[str, Any], path: Path) -> Stated:
    kind, activation = config.get("model_type"), config.get("hidden_act", "gelu")
    if kind not in NORM_EPS:
        raise ConfigError(f"{path}: models of type '{kind}' cannot be read, only {', '.join(NORM_EPS)}")
    if activation not in ACTIVATIONS:
        raise ConfigError(f"{path}: hidden_act is '{activation}', which timm lacks; possible: {', '.join(ACTIVATIONS)}")
    size = _size(config.get("image_size", 224), path)
    if kind.startswith("dinov2") and size[0] != size[1]:
        raise ConfigError(f"{path}: image_size is {list(size)}, but transformers' {kind} takes positions as a square")
    return Stated(
        heads=config.get("num_attention_heads", 12),
        image_size=size,
        norm_eps=config.get("layer_norm_eps", NORM_EPS[kind]),
        activation=ACTIVATIONS[activation],
        decoder_heads=config.get("decoder_num_attention_heads", 16),
        target="norm_pixels" if config.get("norm_pix_loss", False) else "pixels",
        mask_ratio=config.get("mask_ratio", 0.75),
    )


def _of_timm(config: Mapping[str, Any], shape: tuple[int, int], path: Path) -> Stated:
    """Return what a config.json of timm states."""
    arguments = config.get("model_args") or {}
    pretrained = config.get("pretrained_cfg") or config  # older files hold these settings themselves
    size = arguments.get("img_size") or pretrained.get("input_size")
    return replace(
        _of_architecture(str(config["architecture"]).partition(".")[0], arguments, shape, path),
        image_size=None if size is None else _size(size, path),
        mean=as_values(pretrained.get("mean")),
        std=as_values(pretrained.get("std")),
        preparation=_preparation(pretrained.get("interpolation"), pretrained.get("crop_pct")),
    )


def _of_architecture(name: str, arguments: Mapping[str, Any], shape: tuple[int, int], path: Path) -> Stated:
    """Return what the name of an architecture of timm states, and the arguments that it was built with.

    shape   width and depth of the checkpoint: a name states nothing of a network that has others.
    Raises  ConfigError if timm lacks it, or if it is no plain ViT.
    """
    try:
        with torch.device("meta"):
            net: Any = timm.create_model(name, **arguments)
    except (AssertionError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{path}: timm cannot build {name} with {dict(arguments)}: {error}") from error
    activation = find_activation(net.blocks[0]) if type(net) is VisionTransformer else None
    if activation is None:
        raise ConfigError(f"{path}: its architecture, {name}, is no plain ViT of timm")
    block = net.blocks[0]
    if (net.embed_dim, len(net.blocks)) != shape:
        return Stated()
    return Stated(
        name=name if is_plain(name) else None,
        heads=block.attn.num_heads,
        norm_eps=block.norm1.eps if isinstance(block.norm1, nn.LayerNorm) else None,
        activation=ACTIVATIONS[activation],
    )


def _of_training(settings: Mapping[str, Any], shape: tuple[int, int], path: Path) -> Stated:
    """Return what the arguments of a training by timm, MAE, DeiT or DINO state."""
    arguments, more = settings.get("args"), {}
    if not isinstance(arguments, Mapping):
        arguments = {}
    if isinstance(arguments.get("model_kwargs"), Mapping):
        more = arguments["model_kwargs"]
    name = str(settings.get("arch") or arguments.get("model") or arguments.get("arch") or "").partition(".")[0]
    kind = re.fullmatch(r"(?:mae_)?vit_(tiny|small|base|large|huge)(?:_patch\d+)?(?:_dec512d8b)?", name)
    timms = PLAIN_NAMES[kind[1]] if kind else name
    stated = _of_architecture(timms, more, shape, path) if timm.is_model(timms) else Stated()
    size = more.get("img_size") or arguments.get("img_size") or arguments.get("input_size")
    mean, std = as_values(arguments.get("mean")), as_values(arguments.get("std"))
    target: Target | None = None
    if "norm_pix_loss" in arguments:  # of MAE, whose code knows no other mean and standard deviation
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        target = "norm_pixels" if arguments["norm_pix_loss"] else "pixels"
    elif "mean" in arguments and timm.is_model(name):  # timm's script, which leaves them to the model's own settings
        own: Any = timm.get_pretrained_cfg(name)
        mean, std = mean or own.mean, std or own.std
    return replace(
        stated,
        image_size=None if size is None else _size(size, path),
        target=target,
        mask_ratio=arguments.get("mask_ratio"),
        mean=mean,
        std=std,
    )


def find_activation(block: Any) -> str | None:
    """Return transformers' name for the activation of a block of timm, None if it has none."""
    name = type(block.mlp.act).__name__  # timm has classes of its own for some of torch's
    return next((theirs for theirs, timms in ACTIVATIONS.items() if get_act_layer(timms).__name__ == name), None)


def is_plain(name: str) -> bool:
    """Return whether timm has a ViT of this name in its module of plain ViTs."""
    return bool(timm.models.is_model_in_modules(name, ["vision_transformer"]))


def _normalization(preprocessor: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what transformers' preprocessing states; mean and standard deviation on our scale of 0 to 1."""
    mean, std = as_values(preprocessor.get("image_mean")), as_values(preprocessor.get("image_std"))
    if not preprocessor.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if mean is None or std is None:
        return {}
    factor = preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1.0
    if not isinstance(factor, int | float) or factor <= 0:
        raise ConfigError(f"{path}: rescale_factor must be a number above 0, got {factor!r}")
    scale = round(255 * factor, 9)  # 1, but for the rounding of 1/255
    return {
        "mean": tuple(value / scale for value in mean),
        "std": tuple(value / scale for value in std),
        "preparation": _preparation(RESAMPLING.get(preprocessor.get("resample", -1)), None),
    }


def _preparation(interpolation: str | None, crop: float | None) -> str | None:
    """Return how images are resized and cropped, if otherwise than bicubic and whole."""
    parts = [] if interpolation in (None, "bicubic") else [f"{interpolation} resizing"]
    parts += [] if crop in (None, 1) else [f"a center crop of {crop:g}"]
    return " and ".join(parts) or None


def as_values(values: Any) -> Values | None:
    """Return a list of numbers as a tuple, None for anything else."""
    if not isinstance(values, Sequence) or not values or not all(isinstance(value, int | float) for value in values):
        return None
    return tuple(map(float, values))


def _size(size: Any, path: Path) -> tuple[int, int]:
    """Return an image size (height, width), given a side, (height, width), or (channels, height, width)."""
    sides = [size, size] if isinstance(size, int) else list(size)[-2:] if isinstance(size, Sequence) else []
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ConfigError(f"{path}: its image size is {size!r}; it must be a side or [height, width]")
    return sides[0], sides[1]
