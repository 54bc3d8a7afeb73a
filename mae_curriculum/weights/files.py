"""Read files and folders of weights: their tensors, by the networks that they hold, and the settings beside them.

Code in a file is never run.
"""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file as load_safetensors
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.files import read_json
from mae_curriculum.run.checkpoint import refuse_oversized, why_unreadable
from mae_curriculum.run.folder import RunFolder, cached_model
from mae_curriculum.weights.names import MODEL_KEY, NORMALIZATION_KEY, Log, format_keys, read_metadata

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where Hugging Face and timm keep weights in a folder, in the order in which they look; an index names several."""

SETTINGS_FILES = {"config": "config.json", "preprocessor": "preprocessor_config.json"}
"""Files of such a folder that say how to use its weights."""

MAX_NESTING = 4
"""How deep in nested dictionaries weights are looked for: a file may hold a dictionary that contains itself."""

_WRAPPERS = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What DataParallel, torch.compile, FSDP and activation checkpointing add to keys, in any order and place."""

_PATCH_EMBEDDING = re.compile(r"(|.*\.)(patch_embed\.proj|embeddings\.patch_embeddings\.projection)\.weight")

_AVERAGE = re.compile(r"(?<![^._])(ema|averaged?|swa|shadow)(?![^._])", re.IGNORECASE)
"""Names of a moving average of the weights."""


@dataclass(frozen=True)
class Network:
    """The tensors of one network."""

    own: dict[str, Tensor]
    """By their names in the network."""
    beside: dict[str, Tensor]
    """Those beside the network, such as a decoder or a classifier."""


def read_network(path: Path, wanted: str | None, log: Log) -> tuple[Network, dict[str, Any]]:
    """Read a ViT from a file or a folder of Hugging Face or timm, and the settings stored with it.

    wanted   which of several networks, by name; None for the one that was trained.
    log      takes a line about a choice between several.
    Returns  also settings, as available: `config`, `preprocessor` (JSON of a folder), `args`, `arch` (of a training),
             and those that this project writes.
    Raises   ConfigError if there is none, or if several could be meant.
    """
    file, settings = _locate(path)
    content, more = _read_index(file) if file.name.endswith(".index.json") else _read_file(file)
    networks: dict[str, Network] = {}
    for name, state in _find_states(content).items():
        networks |= _split(name, state, path)
    if not networks:
        config = settings.get("config", {})
        kind = config.get("architecture", config.get("model_type"))
        name = f"{path} ({kind})" if kind else str(path)
        raise ConfigError(f"{name}: not the weights of a ViT; its keys are {format_keys(map(str, content))}")
    return networks[_choose(list(networks), wanted, path, log)], settings | more


def _locate(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file of weights, and the settings of its folder."""
    if not path.exists():
        path = cached_model(str(path)) or path
    if not path.exists():
        raise ConfigError(f"{path} does not exist, and Hugging Face's cache has no model of that name")
    folder = path if path.is_dir() else path.parent
    if folder.name == "checkpoints" and RunFolder(folder.parent).config.exists():
        raise ConfigError(f"{path} belongs to the run {folder.parent}; give that folder, or {folder.parent}@EPOCHS")
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ConfigError(f"{path} is neither a run folder (config.yaml) nor a Hugging Face one (config.json)")
        found = [path / name for name in WEIGHT_FILES if (path / name).exists()]
        if not found:
            raise ConfigError(f"{path} holds no weights: none of {', '.join(WEIGHT_FILES)}")
        path = found[0]
    elif path.name not in WEIGHT_FILES:
        return path, {}
    settings = {}
    for key, name in SETTINGS_FILES.items():
        if (folder / name).exists():
            settings[key] = _read_mapping(folder / name)
    return path, settings


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: settings are a JSON object, got {json.dumps(content)[:80]}")
    return content


def _read_index(index: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of all files that an index names."""
    places = _read_mapping(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ConfigError(f"{index}: no weight_map of keys to file names")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (index.parent / name).exists():
            raise ConfigError(f"{index} names '{name}', which is not in its folder; get all of its files")
        content, _ = _read_file(index.parent / name)
        tensors |= content
    absent = places.keys() - tensors.keys()
    if absent:
        raise ConfigError(f"{index}: these weights are not in the files that it names: {format_keys(absent)}")
    return tensors, {}


def _read_file(path: Path) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Read the content of a file, and the settings in it."""
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path), dict(read_metadata(path))
        # MAE's files hold their command line as a Namespace, which is nothing but names and values
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged or a dangerous file
        reason = why_unreadable(error)
        raise ConfigError(f"{path} cannot be read: {reason}; save only model.state_dict() to it") from error
    refuse_oversized(content, path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: no dictionary of tensors, but a {type(content).__name__}")
    settings = {key: content[key] for key in ("arch", "args", MODEL_KEY, NORMALIZATION_KEY) if key in content}
    if isinstance(settings.get("args"), argparse.Namespace):
        settings["args"] = vars(settings["args"])
    return content, settings


def _find_states(content: dict[Any, Any], name: str = "", depth: int = 0) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each dictionary that holds a ViT, by its dotted place."""
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    found = {name: tensors} if any(map(_PATCH_EMBEDDING.fullmatch, tensors)) else {}
    for key, value in content.items():
        if isinstance(value, dict) and depth < MAX_NESTING:
            found |= _find_states(value, f"{name}.{key}".strip("."), depth + 1)
    return found


def _split(name: str, state: dict[str, Tensor], path: Path) -> dict[str, Network]:
    """Return the networks of a state dict, which may hold several under prefixes, by name."""
    tensors = {_WRAPPERS.sub("", key): value for key, value in state.items()}
    if len(tensors) < len(state):
        raise ConfigError(f"{path}: some keys differ only in a prefix such as 'module.'; save one network alone")
    if tensors.pop("n_averaged", None) is not None:  # torch's AveragedModel
        name = f"{name}.averaged".strip(".")
    prefixes = [match[1] for match in map(_PATCH_EMBEDDING.fullmatch, tensors) if match]
    networks = {}
    for prefix in prefixes:
        others = [other for other in prefixes if other != prefix]
        foreign = tuple(other for other in others if not prefix.startswith(other))
        theirs = tuple(part for part in (*foreign, *map(_parent, foreign)) if not prefix.startswith(part))
        own, beside = {}, {}
        for key, value in tensors.items():
            if key.startswith(prefix) and not key.startswith(foreign):
                own[key.removeprefix(prefix)] = value
            elif not key.startswith(theirs) and "" not in others:
                beside[key.removeprefix(_parent(prefix))] = value
        networks[f"{name}.{prefix}".strip(".")] = Network(own, beside)
    return networks


def _parent(prefix: str) -> str:
    """Return the prefix of what contains a network."""
    return re.sub(r"[^.]*\.$", "", prefix)


def _choose(names: list[str], wanted: str | None, path: Path, log: Log) -> str:
    """Return the name of the network to use: the wanted one, or the only one that is no average; say so if it matters.

    Raises  ConfigError if that leaves none or several.
    """
    if wanted is None:
        trained = [name for name in names if not _AVERAGE.search(name)]
        fits = trained or names
        problem, action = "holds several networks", "choose one with --weights"
    else:
        fits = [name for name in names if wanted in (name, *name.split("."))]
        problem, action = f"has no single network '{wanted}'", "choose another with --weights, or omit it"
    if len(fits) != 1:
        listed = ", ".join(name or "one without a name" for name in names)
        raise ConfigError(f"{path} {problem}: {listed}; {action}")
    chosen = fits[0]
    others = [name for name in names if name != chosen]
    if _AVERAGE.search(chosen) and not wanted:
        log(f"{path} holds only a moving average of the weights, '{chosen}'; using it")
    elif others and not wanted:
        log(f"{path}: using the weights '{chosen}', not {', '.join(others)}; --weights NAME chooses others")
    return chosen
