"""Classifiers of timm that see images of several sizes, with the right positions at each; from scratch or pretrained.

Some models hold parameters that belong to one grid of patches: the positional embedding of a ViT, the bias tables of
Swin's windows. The classifier keeps them for the full size alone. At another size timm's own model of that size runs,
with the full size's parameters resampled on the way: gradients reach the one set there is, and the optimizer's moments
stay what they are.
"""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed, resample_patch_embed
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.func import functional_call

from finetune.config import ClassifierConfig
from mae_curriculum.config import ConfigError
from mae_curriculum.model.config import TIMM_NAMES, ModelConfig
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.model.positions import resample_bias, resample_positions
from mae_curriculum.terminal import side
from mae_curriculum.weights.build import load_into_
from mae_curriculum.weights.read import Weights

Size = tuple[int, int]


_BIAS = "relative_position_bias_table"


_CANNOT = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError)
"""What timm's models raise for shapes and arguments that cannot be."""


class Classifier(nn.Module):
    """A network of timm, at every size of a curriculum."""

    def __init__(self, make: Callable[..., Any], image_size: Size | None, channels: int) -> None:
        """Make the network for the full size.

        make        makes timm's model for an image size, None for the one of its name, with further arguments.
        image_size  the full one; None for the one of timm's name.
        """
        super().__init__()
        self.net: Any = make(image_size)
        height, width = image_size or self.net.pretrained_cfg["input_size"][1:]
        self.image_size: Size = (height, width)
        self.channels = channels
        self._make = make
        self._resized: dict[Size, Any] = {}  # torch does not look into a dict: these are no part of the state

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Measure the cross-entropy of each image, (b, c, h, w), to its target distribution (b, classes): (b,)."""
        return nn.functional.cross_entropy(self.logits(images).float(), targets, reduction="none")

    def logits(self, images: Tensor) -> Tensor:
        """Classify images (b, c, h, w) of the full size, or of one that was made ready: (b, classes)."""
        size = (images.shape[-2], images.shape[-1])
        logits: Tensor
        if size in self._resized:
            logits = functional_call(self._resized[size].train(self.training), self.parameters_at(size), (images,))
        else:
            logits = self.net(images)
        return logits

    def parameters_at(self, size: Size) -> dict[str, Tensor]:
        """Give the network's parameters and buffers as the network of another size takes them."""
        other = self._resized[size]
        kept = self.net.state_dict().keys()
        shapes = {name: buffer.shape for name, buffer in other.named_buffers()}
        buffers = {  # of batch norm: they are the full network's, too
            name: buffer
            for name, buffer in self.net.named_buffers()
            if name in kept and shapes.get(name) == buffer.shape
        }
        parameters = dict(self.net.named_parameters())
        for name, value in parameters.items():
            if name == "pos_embed":
                grids = self.net.patch_embed.grid_size, other.patch_embed.grid_size
                parameters[name] = _positions(value, *grids)
            if name.endswith(_BIAS):
                block = name.removesuffix(f".{_BIAS}")
                windows = [net.get_submodule(block).window_size for net in (self.net, other)]
                scale = (self.image_size[0] / size[0], self.image_size[1] / size[1])
                parameters[name] = resample_bias(value, windows[0], windows[1], scale)
        return parameters | buffers

    def make_ready_(self, sizes: Iterable[Size], device: torch.device) -> None:
        """Prepare for images of other sizes, and try each; raises ConfigError for one that the network cannot take."""
        bound = any(name == "pos_embed" or name.endswith(_BIAS) for name, _ in self.net.named_parameters())
        training = self.training
        self.eval()
        for size in {*sizes} - {self.image_size}:
            try:
                if bound:
                    with torch.random.fork_rng(devices=[]):
                        other = self._make(size, **self._windows_at(size)).to(device)
                    wanted = {name: value.shape for name, value in other.named_parameters()}
                    for value in other.parameters():
                        value.data = torch.empty(0, device=device)  # never used, so it need not take memory
                    self._resized[size] = other
                    given = {name: value.shape for name, value in self.parameters_at(size).items()}
                    if differing := [name for name in wanted if wanted[name] != given.get(name)]:
                        raise ValueError(f"these parameters belong to one size: {', '.join(differing[:5])}")
                with torch.no_grad():
                    self.logits(torch.zeros(1, self.channels, *size, device=device))
            except _CANNOT as error:
                raise ConfigError(
                    f"model.name: this model does not take the curriculum's {side(size)} px: {_one_line(error)}; "
                    "choose another curriculum, image_size or model"
                ) from error
        self.train(training)

    def _windows_at(self, size: Size) -> dict[str, Any]:
        """Give Swin the windows that cover the same part of an image of another size."""
        if not isinstance(self.net, SwinTransformer):
            return {}
        windows: list[Any] = [module.window_size for module in self.net.modules() if hasattr(module, _BIAS)]
        sides = zip(max(windows), size, self.image_size, strict=True)
        return {"window_size": tuple(max(1, round(window * small / full)) for window, small, full in sides)}

    @property
    def cell(self) -> Size:
        """The (height, width) in pixels that image sizes should be multiples of.

        A patch for a ViT; for Swin the pixels under one cell of its coarsest grid, so that windows tile every grid; for
        convolutions the stride of the first features.
        """
        if any(name.endswith(_BIAS) for name, _ in self.net.named_parameters()):
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
    """Build a classifier with weights that depend on its arguments alone; the global random state is left as it was.

    weights  a pretrained ViT, or None to begin from scratch.
    Returns  the classifier, and what of the weights is new or was left out, in words.
    Raises   ConfigError for a name or a shape that cannot be, and for weights that do not fit.
    """
    name, arguments, image_size = _shape(config, weights)
    channels = arguments["in_chans"]

    def make(size: Size | None, **more: Any) -> Any:
        everything = {"num_classes": class_count, "drop_path_rate": config.drop_path or None, **arguments, **more}
        if size is not None:
            try:
                return timm.create_model(name, img_size=size, **everything)
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
        return timm.create_model(name, **everything)  # a network whose shape no image size decides

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier = Classifier(make, image_size, channels)
            told = "" if weights is None else _load_pretrained_(classifier.net, weights)
    except _CANNOT as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"model: {name} with {arguments} and drop_path {config.drop_path} cannot be: {_one_line(error)}"
        ) from error
    if any(pixels % cell for pixels, cell in zip(classifier.image_size, classifier.cell, strict=True)):
        raise ConfigError(
            f"model.image_size: {side(classifier.image_size)} px must be a multiple of {side(classifier.cell)} for "
            f"{name}"
        )
    return classifier, told


def vit_config(name: str, net: Any) -> ModelConfig | None:
    """Tell the shape of a plain ViT of timm, so that its weights can say what they are; None for other networks."""
    if not timm.models.is_model_in_modules(name, ["vision_transformer"]):
        return None
    height, width = net.patch_embed.img_size
    return ModelConfig(
        name=name,
        image_size=height if height == width else (height, width),
        patch_size=net.patch_embed.patch_size[0],
        channels=net.patch_embed.proj.in_channels,
        width=net.embed_dim,
        depth=len(net.blocks),
        heads=net.blocks[0].attn.num_heads,
    )


def _shape(config: ClassifierConfig, weights: Weights | None) -> tuple[str, dict[str, Any], Size | None]:
    """Work out timm's name, its arguments, and the full image size if any is said."""
    arguments: dict[str, Any] = {"in_chans": config.channels or 3}
    if weights is None:
        if config.name is None:
            raise ConfigError("model.name: say which of timm's models to train, or give a --checkpoint")
        if not timm.is_model(config.name):
            near = difflib.get_close_matches(config.name, timm.list_models(), n=3)
            raise ConfigError(f"model.name: timm has no '{config.name}'; near are {', '.join(near) or 'none'}")
        name, size = config.name, config.image_size
    else:
        if config.name is not None or config.options:
            raise ConfigError(
                "model.name and model.options: the checkpoint says which ViT it is; leave them out, or the checkpoint"
            )
        model = weights.model
        name, size = model.name, config.image_size or model.image_size  # null in both: that of the name
        arguments |= {
            timms: getattr(model, ours) for ours, timms in TIMM_NAMES.items() if getattr(model, ours) is not None
        }
        arguments.pop("img_size", None)
        arguments["in_chans"] = config.channels or model.channels
        arguments["global_pool"] = config.pool or "avg"
    if config.pool is not None:
        arguments["global_pool"] = config.pool
    if config.patch_size is not None:
        arguments["patch_size"] = config.patch_size
    arguments |= config.options
    return name, arguments, (size, size) if isinstance(size, int) else size


def _load_pretrained_(net: Any, weights: Weights) -> str:
    """Load a pretrained encoder into a ViT: positions and patches resampled, the head kept where the classes agree."""
    encoder, own = dict(weights.encoder), net.state_dict()
    patch = encoder["patch_embed.proj.weight"]
    if patch.shape[-2:] != own["patch_embed.proj.weight"].shape[-2:]:
        encoder["patch_embed.proj.weight"] = resample_patch_embed(patch, list(net.patch_embed.patch_size))
    if "pos_embed" in own and "pos_embed" in encoder:
        with torch.device("meta"):
            grid = MaskedAutoencoder(weights.model).full_grid
        encoder["pos_embed"] = _positions(encoder["pos_embed"], grid, net.patch_embed.grid_size)
    pooled = not isinstance(net.fc_norm, nn.Identity)
    replaceable = ("fc_norm.", "head.") if pooled else ("head.",)
    fits = {key for key in encoder if key in own and encoder[key].shape == own[key].shape}
    left_out = {key for key in encoder.keys() - fits if key.startswith(("norm.", "head.") if pooled else ("head.",))}
    new = {key for key in own.keys() - fits if key.startswith(replaceable)}
    if "head.weight" in new:
        nn.init.trunc_normal_(net.head.weight, std=2e-5)  # as MAE: the first steps do not disturb what was learned
    own = net.state_dict()
    kept = {key: value for key, value in encoder.items() if key not in left_out}
    load_into_(net, {**{key: own[key] for key in new}, **kept}, "the pretrained encoder")
    told = [("new", new), ("left out of the checkpoint", left_out)]
    return "; ".join(f"{what}: {', '.join(sorted(keys))}" for what, keys in told if keys)


def _positions(table: Tensor, grid: Size, new_grid: Size) -> Tensor:
    """Resample a ViT's positions (1, prefix + n, d): the patches', behind those of class and register tokens."""
    prefix, patches = table[0].tensor_split([table.shape[1] - grid[0] * grid[1]])
    return torch.cat([prefix, resample_positions(patches, grid, new_grid)])[None]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
