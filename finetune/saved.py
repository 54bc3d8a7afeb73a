"""Trained classifiers in files: the weights of a timm network, and all that is needed to use them."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load_file
from torch import nn

from finetune.attention import ClassTokenMean, build_attention
from finetune.classifier import CREATION_ERRORS, Classifier
from mae_curriculum.config import ConfigError, load_part, plain
from mae_curriculum.files import read_json
from mae_curriculum.run.checkpoint import why_unreadable
from mae_curriculum.run.folder import RunFolder, run_and_epochs
from mae_curriculum.weights.build import load_into_
from mae_curriculum.weights.names import read_metadata
from mae_curriculum.weights.stated import parse_metadata

logger = logging.getLogger(__name__)

BEST = "best.safetensors"
"""File in the run folder with the weights of the best evaluation so far, or of the chosen head of a probe."""

CLASSIFIER_KEY = "finetune.saved"
"""Metadata key of a safetensors file that holds the `Description` of its weights as JSON."""

_STATED = ("num_classes", "in_chans", "norm_layer", "drop_path_rate")
"""Arguments of `timm.create_model` that a description states otherwise, or that matter in training only."""


@dataclass(frozen=True)
class Description:
    """What is needed to use the weights of a classifier."""

    architecture: str
    """timm's name of the network."""
    channels: int
    """Number of image channels."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    mean: tuple[float, ...]
    """Mean of each channel that images are normalized with, on a scale of 0 to 1."""
    std: tuple[float, ...]
    """Standard deviation, likewise."""
    crop: float
    """Fraction of an image's shorter side that evaluation keeps."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `timm.create_model`, such as the pooling of a ViT."""
    norm_eps: float | None = None
    """Epsilon of the layer norms; null for that of the architecture."""
    attentive: bool = False
    """Whether the patches of the ViT are pooled by the attention of `Heads`, which has no norm, unlike timm's."""
    ep: bool = False
    """Whether this attention is that of EP."""
    class_tokens: int = 1
    """Number of class tokens whose mean the head sees; 1 for the pooling that `arguments` state."""


def describe(
    model: Classifier, *, classes: tuple[str, ...], mean: tuple[float, ...], std: tuple[float, ...], crop: float
) -> Description:
    """Return the description of a classifier that was trained on images of these statistics."""
    norm_layer = model.arguments.get("norm_layer")
    return Description(
        architecture=model.net.pretrained_cfg["architecture"],
        channels=model.channels,
        image_size=model.image_size,
        classes=classes,
        mean=mean,
        std=std,
        crop=crop,
        arguments=without_stated(model.arguments),
        norm_eps=norm_layer.keywords["eps"] if isinstance(norm_layer, partial) else None,
    )


def without_stated(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `timm.create_model` without those that a description states otherwise or does not need."""
    return {key: value for key, value in arguments.items() if key not in _STATED}


def as_metadata(description: Description) -> dict[str, str]:
    """Return the metadata that say how to use a classifier's weights."""
    return {CLASSIFIER_KEY: json.dumps(plain(description))}


def build(description: Description) -> Any:
    """Build the network of a description, in evaluation mode; raises ConfigError if timm cannot."""
    arguments = description.arguments | {"num_classes": len(description.classes), "in_chans": description.channels}
    if description.norm_eps is not None:
        arguments["norm_layer"] = partial(nn.LayerNorm, eps=description.norm_eps)
    try:
        net: Any = timm.create_model(description.architecture, **arguments)
    except CREATION_ERRORS as error:
        raise ConfigError(f"timm cannot build {description.architecture} with {arguments}: {error}") from error
    if description.attentive:
        net.attn_pool = build_attention(ep=description.ep, width=net.embed_dim, heads=net.blocks[0].attn.num_heads)
    if description.class_tokens > 1:
        net.attn_pool = ClassTokenMean(description.class_tokens)
    return net.eval()


def load_classifier(path: Path) -> tuple[Any, Description]:
    """Load a classifier: a run of fine-tuning or probing, the file in it, or a folder that timm or `export` wrote.

    Returns  the network, in evaluation mode, and its description.
    Raises   ConfigError if there is no classifier, or if it cannot be used.
    """
    folder, epochs = run_and_epochs(path)
    if folder.config.exists():
        path = _find_best(folder, epochs)
    try:
        if path.is_dir():
            description, state = _parse_timm(path), load_file(path / "model.safetensors")
        else:
            description, state = _parse(read_metadata(path), path), load_file(path)
    except ConfigError:
        raise
    except Exception as error:  # safetensors and JSON raise many kinds for a damaged or a foreign file
        raise ConfigError(
            f"{path} cannot be read as safetensors: {why_unreadable(error)}; {_accepted(path)}"
        ) from error
    if not all(value.isfinite().all() for value in state.values()):
        raise ConfigError(f"{path}: its weights are not finite; use the checkpoint of a run that did not diverge")
    net = build(description)
    load_into_(net, state, f"the classifier of {path}")
    return net, description


def _find_best(folder: RunFolder, epochs: int | None) -> Path:
    """Return the file of a run's classifier; raises ConfigError if the run has none."""
    path, command = folder.path / BEST, folder.info["command"]
    if epochs is not None:
        raise ConfigError(f"{folder.path}@{epochs}: a run keeps one classifier, its best; omit @{epochs}")
    if command not in ("finetune", "linprobe"):
        raise ConfigError(f"{folder.path} is a run of {command}, without a head; {_accepted(folder.path)}")
    if not path.exists():
        raise ConfigError(f"{folder.path} has no {BEST} yet; run `python -m finetune {command}` to its end")
    return path


def _accepted(path: Path) -> str:
    """Return how to get a classifier."""
    return (
        f"`python -m finetune linprobe --checkpoint {path}` (or `finetune`) trains one on an encoder; timm's own are "
        "read from the folder that timm.models.save_for_hf(model, FOLDER, safe_serialization=True) writes"
    )


def _parse(metadata: dict[str, str], path: Path) -> Description:
    if CLASSIFIER_KEY not in metadata:
        raise ConfigError(f"{path} does not describe a classifier, its classes and its images; {_accepted(path)}")
    return load_part(Description, parse_metadata(metadata, CLASSIFIER_KEY, path))


def as_timm(description: Description, net: Any) -> dict[str, Any]:
    """Return the `config.json` of timm's model folders, which transformers reads too."""
    return {
        "architecture": description.architecture,
        "num_classes": len(description.classes),
        "label_names": list(description.classes),
        "model_args": description.arguments | {"in_chans": description.channels},
        "pretrained_cfg": {
            "input_size": [description.channels, *description.image_size],
            "num_classes": len(description.classes),
            "mean": list(description.mean),
            "std": list(description.std),
            "crop_pct": description.crop,
            "crop_mode": "center",
            "interpolation": "bicubic",
            "classifier": net.pretrained_cfg.get("classifier"),
        },
    }


def _parse_timm(folder: Path) -> Description:
    """Parse the `config.json` of a model folder; raises ConfigError if it is not timm's."""
    path = folder / "config.json"
    content = read_json(path) if path.exists() else {}
    if "pretrained_cfg" not in content:
        raise ConfigError(f"{folder} is neither a run nor a model folder of timm; {_accepted(folder)}")
    images, arguments = content["pretrained_cfg"], content.get("model_args", {})
    for key, ours in (("interpolation", "bicubic"), ("crop_mode", "center")):
        if images.get(key, ours) != ours:
            logger.warning(f"{folder} states {key} {images[key]}; images are prepared with {ours} here")
    channels, *size = images["input_size"]
    pool = {"global_pool": content["global_pool"]} if "global_pool" in content else {}
    sized = {"img_size": size} if images.get("fixed_input_size") else {}
    count = content["num_classes"]
    given = {
        "architecture": content["architecture"],
        "channels": channels,
        "image_size": size,
        "classes": content.get("label_names") or [str(number) for number in range(count)],
        "mean": images["mean"],
        "std": images["std"],
        "crop": images["crop_pct"],
        "arguments": sized | pool | {key: value for key, value in arguments.items() if key != "in_chans"},
    }
    return load_part(Description, given)
