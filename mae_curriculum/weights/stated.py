"""What a checkpoint states about its model beside the tensors: in a folder's JSON files, or a training's arguments."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
from timm.layers.create_act import get_act_layer

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import IMAGENET_MEAN, IMAGENET_STD
from mae_curriculum.model.config import Target
from mae_curriculum.weights.names import NORMALIZATION_KEY

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

KEPT_OPTIONS = ("act_layer", "norm_layer")
"""The arguments of timm's ViT that change its function, and that its tensors do not show."""


@dataclass(frozen=True)
class Stated:
    """What a checkpoint states; None where it leaves something open."""

    name: str | None = None
    """timm's name of the architecture, whose width and depth may be others."""
    heads: int | None = None
    image_size: tuple[int, int] | None = None
    norm_eps: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of timm's ViT, of `KEPT_OPTIONS`."""
    decoder_heads: int | None = None
    target: Target | None = None
    mask_ratio: float | None = None
    mean: Values | None = None
    std: Values | None = None


def read_stated(settings: Mapping[str, Any], path: Path, *, is_hugging_face: bool) -> Stated:
    """Read what the settings of `read_network` state about a model; raises ConfigError for one that is not plain.

    is_hugging_face  whether the tensors have the names of transformers, which timm's own models never have.
    """
    config = settings.get("config", {})
    if "architecture" in config:
        stated = _of_timm(config, path)
    elif config and (is_hugging_face or "model_type" in config):
        stated = _of_hugging_face(config, path)
    else:
        stated = _of_training(settings)
    if "preprocessor" in settings:
        stated = replace(stated, **_normalization(settings["preprocessor"], path))
    if NORMALIZATION_KEY in settings:
        mean, std = map(tuple, json.loads(settings[NORMALIZATION_KEY]))
        stated = replace(stated, mean=mean, std=std)
    return stated


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
        options={"act_layer": ACTIVATIONS[activation]},
        decoder_heads=config.get("decoder_num_attention_heads", 16),
        target="norm_pixels" if config.get("norm_pix_loss", False) else "pixels",
        mask_ratio=config.get("mask_ratio", 0.75),
    )


def _of_timm(config: Mapping[str, Any], path: Path) -> Stated:
    name = str(config["architecture"]).partition(".")[0]
    if not is_plain(name):
        raise ConfigError(f"{path}: its architecture, {name}, is no plain ViT of timm")
    arguments = config.get("model_args") or {}
    pretrained = config.get("pretrained_cfg") or config  # older files hold these settings themselves
    size = arguments.get("img_size") or pretrained.get("input_size")
    return Stated(
        name=name,
        heads=arguments.get("num_heads"),
        image_size=None if size is None else _size(size, path),
        options={key: arguments[key] for key in KEPT_OPTIONS if key in arguments},
        mean=as_values(pretrained.get("mean")),
        std=as_values(pretrained.get("std")),
    )


def _of_training(settings: Mapping[str, Any]) -> Stated:
    """Return what the arguments of a training by timm, MAE, DeiT or DINO state."""
    arguments = settings.get("args")
    if not isinstance(arguments, Mapping):
        arguments = {}
    name = str(settings.get("arch") or arguments.get("model") or arguments.get("arch") or "").partition(".")[0]
    kind = re.fullmatch(r"(?:mae_)?vit_(tiny|small|base|large|huge)(?:_patch\d+)?(?:_dec512d8b)?", name)
    more = arguments.get("model_kwargs") or {}
    size = more.get("img_size") or arguments.get("img_size") or arguments.get("input_size")
    is_mae = "norm_pix_loss" in arguments
    mean, std = as_values(arguments.get("mean")), as_values(arguments.get("std"))
    if is_mae:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    elif "mean" in arguments and is_plain(name):  # timm's script, which leaves them to the model's own settings
        own: Any = timm.get_pretrained_cfg(name)
        mean, std = mean or own.mean, std or own.std
    return Stated(
        name=PLAIN_NAMES[kind[1]] if kind else name if is_plain(name) else None,
        heads=more.get("num_heads"),
        image_size=None if size is None else _size(size, Path()),
        options={key: more[key] for key in KEPT_OPTIONS if key in more},
        target=("norm_pixels" if arguments["norm_pix_loss"] else "pixels") if is_mae else None,
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
    """Return the mean and the standard deviation of transformers' preprocessing, on our scale of 0 to 1."""
    mean, std = as_values(preprocessor.get("image_mean")), as_values(preprocessor.get("image_std"))
    if not preprocessor.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if mean is None or std is None:
        return {}
    factor = preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1.0
    if not isinstance(factor, int | float) or factor <= 0:
        raise ConfigError(f"{path}: rescale_factor must be a number above 0, got {factor!r}")
    scale = round(255 * factor, 9)  # 1, but for the rounding of 1/255
    return {"mean": tuple(value / scale for value in mean), "std": tuple(value / scale for value in std)}


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
