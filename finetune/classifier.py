"""timm classifiers that take images of several sizes, from scratch or pretrained.

Some networks have parameters that belong to one grid of patches: the positional embedding of a ViT, the bias tables of
Swin's windows. A classifier holds them for the full size only. For another size it runs timm's network of that size
with these parameters, resampled in each forward pass: gradients reach the one set of parameters, and the optimizer's
moments stay valid. PVT resamples its own positions, and CSWin's parameters do not depend on the size
(`finetune.backbones`).

This is unlike EfficientTrain, on purpose. It trains parameters of each size and, when the size changes, interpolates
them and Adam's two moments bilinearly. Here nothing is replaced at such a moment, and gradients and moments have the
scale of the full size from the first step; interpolated moments keep the scale of the smaller grid, whose patches each
weigh more.
"""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed, resample_patch_embed
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.func import functional_call

from finetune.backbones.cswin import CSwin
from finetune.backbones.pvt import PyramidVisionTransformer
from finetune.config import ClassifierConfig
from mae_curriculum.config import ConfigError
from mae_curriculum.model.config import TIMM_NAMES, ModelConfig
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder, similar_names, timm_arguments
from mae_curriculum.model.positions import resample_bias, resample_table
from mae_curriculum.terminal import side
from mae_curriculum.weights.build import load_into_
from mae_curriculum.weights.infer import infer_model
from mae_curriculum.weights.names import VIT_PARTS
from mae_curriculum.weights.read import Weights
from mae_curriculum.weights.stated import ACTIVATIONS, Stated, find_activation, is_plain

logger = logging.getLogger(__name__)

Size = tuple[int, int]

_BIAS_TABLE = "relative_position_bias_table"

_SHAPE_ERRORS = (AssertionError, RuntimeError, ValueError)
"""What timm and torch raise for tensors of a shape that a network does not take."""

CREATION_ERRORS = (*_SHAPE_ERRORS, IndexError, KeyError, TypeError)
"""What `timm.create_model` raises for arguments that a network does not take."""


class Classifier(nn.Module):
    """A network of timm at every size of a curriculum."""

    def __init__(self, make: Callable[..., Any], image_size: Size | None, channels: int) -> None:
        """Build the network for the full size.

        make        builds timm's network for an image size, or None for its default, and further arguments of timm;
                    returns it and all arguments that it was built with.
        image_size  full (height, width) in pixels; None for the network's default.
        """
        super().__init__()
        net, arguments = make(image_size)
        self.net: Any = net
        self.arguments: dict[str, Any] = arguments
        height, width = image_size or self.net.pretrained_cfg["input_size"][1:]
        self.image_size: Size = (height, width)
        self.channels = channels
        self._make = make
        self._resized: dict[Size, Any] = {}  # torch does not search a dict for modules: these have no part in the state

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy (b,) between images (b, c, h, w) and target distributions (b, classes)."""
        return nn.functional.cross_entropy(self.logits(images).float(), targets, reduction="none")

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (b, classes) of images (b, c, h, w), of the full size or one that `make_ready_` prepared."""
        size = (images.shape[-2], images.shape[-1])
        logits: Tensor
        if size in self._resized:
            logits = functional_call(self._resized[size].train(self.training), self.parameters_at(size), (images,))
        else:
            logits = self.net(images)
        return logits

    def parameters_at(self, size: Size) -> dict[str, Tensor]:
        """Return the network's parameters and buffers, resampled for the network of another size."""
        other = self._resized[size]
        parameters = dict(self.net.named_parameters())
        for name, value in parameters.items():
            if name == "pos_embed":
                grid, new_grid = self.net.patch_embed.grid_size, other.patch_embed.grid_size
                parameters[name] = resample_table(value, grid, new_grid)
            if name.endswith(_BIAS_TABLE):
                block = name.removesuffix(f".{_BIAS_TABLE}")
                window, new_window = (net.get_submodule(block).window_size for net in (self.net, other))
                scale = (self.image_size[0] / size[0], self.image_size[1] / size[1])
                parameters[name] = resample_bias(value, window, new_window, scale)
        saved = self.net.state_dict().keys()
        shapes = {name: buffer.shape for name, buffer in other.named_buffers()}
        buffers = {name: buffer for name, buffer in self.net.named_buffers() if name in saved}  # those of batch norm
        return parameters | {name: buffer for name, buffer in buffers.items() if shapes.get(name) == buffer.shape}

    def make_ready_(self, sizes: Iterable[Size], device: torch.device) -> None:
        """Prepare for images of other sizes and try each; raises ConfigError for one that the network cannot take."""
        training = self.training
        self.eval()
        for size in {*sizes} - {self.image_size}:
            try:
                self._prepare_(size, device)
                with torch.no_grad():
                    self.logits(torch.zeros(1, self.channels, *size, device=device))
            except _SHAPE_ERRORS as error:
                raise ConfigError(
                    f"model.name: this model does not take the curriculum's {side(size)} px: {_one_line(error)}; "
                    "choose another curriculum, image_size or model"
                ) from error
        self.train(training)

    def _prepare_(self, size: Size, device: torch.device) -> None:
        """Build the network of another size if parameters depend on it; raises ValueError if they cannot be adapted."""
        names = [name for name, _ in self.net.named_parameters()]
        if "pos_embed" in names and not hasattr(getattr(self.net, "patch_embed", None), "grid_size"):
            raise ValueError("its positional embedding is of an unknown kind")
        if "pos_embed" not in names and not any(name.endswith(_BIAS_TABLE) for name in names):
            return
        with torch.random.fork_rng(devices=[]):
            other = self._make(size, **self._windows_at(size))[0].to(device)
        shapes = {name: value.shape for name, value in other.named_parameters()}
        for value in other.parameters():
            value.data = torch.empty(0, device=device)  # never used: frees the memory
        self._resized[size] = other
        adapted = {name: value.shape for name, value in self.parameters_at(size).items()}
        fixed = [name for name in shapes if shapes[name] != adapted.get(name)]
        if fixed:
            raise ValueError(f"these parameters belong to one size: {', '.join(fixed[:5])}")

    def _windows_at(self, size: Size) -> dict[str, Any]:
        """Return Swin's argument for windows that cover the same part of an image of another size."""
        if not isinstance(self.net, SwinTransformer):
            return {}
        windows: list[Any] = [module.window_size for module in self.net.modules() if hasattr(module, _BIAS_TABLE)]
        sides = zip(max(windows), size, self.image_size, strict=True)
        return {"window_size": tuple(max(1, round(window * new / full)) for window, new, full in sides)}

    @property
    def cell(self) -> Size:
        """The (height, width) in pixels that image sizes must be multiples of.

        For a ViT its patch; for Swin, CSWin and PVT one cell of the coarsest grid, so that windows tile every grid; for
        convolutional networks the stride of the first features.
        """
        has_windows = any(name.endswith(_BIAS_TABLE) for name, _ in self.net.named_parameters())
        if has_windows or isinstance(self.net, CSwin | PyramidVisionTransformer):
            stride: int = self.net.feature_info[-1]["reduction"]
        elif isinstance(getattr(self.net, "patch_embed", None), PatchEmbed):
            height, width = self.net.patch_embed.patch_size
            return height, width
        else:
            stride = self.net.feature_info[0]["reduction"]
        return stride, stride


def build_classifier(
    config: ClassifierConfig, weights: Weights | None, *, class_count: int, seed: int
) -> tuple[Classifier, str]:
    """Build a classifier whose weights depend on the arguments only; the global random state is not changed.

    weights  a pretrained ViT, or None to train from scratch.
    Returns  the classifier, and a note about weights that are new or were left out.
    Raises   ConfigError if timm cannot build it, or if the weights do not fit.
    """
    name, image_size, arguments = _timm_arguments(config, weights)
    arguments |= {"num_classes": class_count, "drop_path_rate": config.drop_path or None} | config.options

    def make(size: Size | None, **more: Any) -> tuple[Any, dict[str, Any]]:
        given = arguments | more
        sized = given if size is None else {"img_size": size} | given
        try:
            return timm.create_model(name, **sized), sized
        except TypeError as error:
            if size is None or "img_size" not in str(error):
                raise
        return timm.create_model(name, **given), given  # a network that takes images of any size

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            classifier = Classifier(make, image_size, arguments["in_chans"])
        except CREATION_ERRORS as error:
            raise ConfigError(f"model: timm cannot build {name} with {arguments}: {_one_line(error)}") from error
        note = "" if weights is None else _load_pretrained_(classifier.net, weights)
    if any(pixels % cell for pixels, cell in zip(classifier.image_size, classifier.cell, strict=True)):
        full, cell = side(classifier.image_size), side(classifier.cell)
        raise ConfigError(f"model.image_size: {full} px must be a multiple of {cell} for {name}")
    return classifier, note


def vit_config(name: str, net: Any) -> ModelConfig | None:
    """Return the configuration of a plain ViT of timm, to be saved with its weights; None for other networks."""
    state = net.state_dict()
    if not is_plain(name) or not {*VIT_PARTS, "pos_embed"} <= state.keys():
        return None
    block = net.blocks[0]
    activation = find_activation(block)
    if activation is None:
        return None
    known = Stated(
        name=name,
        heads=block.attn.num_heads,
        image_size=net.patch_embed.img_size,
        norm_eps=block.norm1.eps,
        activation=ACTIVATIONS[activation],
    )
    return infer_model(state, {}, known, Path(name), logger.warning)


def _timm_arguments(config: ClassifierConfig, weights: Weights | None) -> tuple[str, Size | None, dict[str, Any]]:
    """Return timm's name, the full image size (None for the name's own), and arguments of `timm.create_model`."""
    arguments: dict[str, Any] = {"in_chans": 3}
    if weights is None:
        if config.name is None:
            raise ConfigError("model.name: choose a timm model to train, or a --checkpoint")
        if not timm.is_model(config.name):
            near = ", ".join(similar_names(config.name, timm.list_models()))
            raise ConfigError(f"model.name: timm has no '{config.name}'; similar: {near or 'none'}")
        name = config.name
    else:
        if config.name is not None or config.options:
            raise ConfigError("model.name and model.options: the checkpoint defines the ViT; omit them or --checkpoint")
        name, arguments = str(weights.model.name), timm_arguments(weights.model) | {"global_pool": "avg"}
    timm_names = TIMM_NAMES | {"pool": "global_pool"}
    given = {key: value for key, value in vars(config).items() if value is not None}
    arguments |= {timm_names[key]: value for key, value in given.items() if key in timm_names}
    size = arguments.pop("img_size", None)
    return name, (size, size) if isinstance(size, int) else size, arguments


def _load_pretrained_(net: Any, weights: Weights) -> str:
    """Load a pretrained encoder into a ViT, patches and positions resampled, the head only if it has the same classes.

    Returns  a note about weights that are new or were left out.
    """
    encoder, own = dict(weights.encoder), net.state_dict()
    patch = encoder["patch_embed.proj.weight"]
    if patch.shape[-2:] != own["patch_embed.proj.weight"].shape[-2:]:
        encoder["patch_embed.proj.weight"] = resample_patch_embed(patch, list(net.patch_embed.patch_size))
    if "pos_embed" in own and "pos_embed" in encoder:
        with torch.device("meta"):
            grid = MaskedAutoencoder(weights.model).full_grid
        encoder["pos_embed"] = resample_table(encoder["pos_embed"], grid, net.patch_embed.grid_size)
    fits = {key for key in encoder if key in own and encoder[key].shape == own[key].shape}
    new = {key for key in own.keys() - fits if key.startswith(("fc_norm.", "head."))}
    left_out = {key for key in encoder.keys() - fits if key.startswith(("norm.", "head."))}
    if "head.weight" in new:
        nn.init.trunc_normal_(net.head.weight, std=2e-5)  # as MAE: the first steps do not disturb what was learned
    kept = {key: value for key, value in encoder.items() if key not in left_out}
    load_into_(net, {key: own[key] for key in new} | kept, "the pretrained encoder")
    notes = {"new": new, "in the checkpoint, not used": left_out}
    return "; ".join(f"{note}: {', '.join(sorted(keys))}" for note, keys in notes.items() if keys)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
