"""Messages about wrong settings: what was meant, and what leads on."""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mae_curriculum.recipes import list_recipes

_REWORDINGS = (
    (r"<class '(?:\w+\.)*(\w+)'>", r"\1"),
    (r"typing\.Literal", "Literal"),
    (r"\s*Problem with given class_path '(?:\w+\.)*(\w+)':", ""),
    (r'Parser key "([^"]*)":', r"\1:"),
    (
        r"Does not validate against any of the Union subtypes\s+Subtypes: \[(.*)\]\s+Errors:.*Given value: ",
        r"Expected one of \1. Got value: ",
    ),
)
"""Patterns in the parser's messages, and what a reader needs of them."""

MAIN_SETTINGS = ("name", "source")
"""The setting of a part that most commands need, if it has one of these."""

_DEVICES = "a GPU is used if there is one; CUDA_VISIBLE_DEVICES chooses it, and torchrun starts a process for each"

NO_SETTINGS = {
    **dict.fromkeys(("device", "devices", "gpu", "gpus", "local_rank", "world_size", "distributed"), _DEVICES),
    "resume": "the same command resumes its run",
}
"""Flags of other programs that need no setting here, and what to do instead."""

OTHER_NAMES = {
    "accum_iter": "micro_batch",
    "amp": "precision",
    "arch": "name",
    "bf16": "precision",
    "data_dir": "source",
    "data_path": "source",
    "dataset": "source",
    "fp16": "precision",
    "img_size": "image_size",
    "input_size": "image_size",
    "learning_rate": "base_lr",
    "log_dir": "run",
    "norm_pix_loss": "target",
    "output_dir": "run",
    "preset": "curriculum",
    "schedule": "curriculum",
}
"""Settings of facebookresearch/mae, timm and others, and their names here."""


def one_line(text: str, keys: Sequence[str]) -> str:
    """Format a parser's message as one line, with the nearest of the dotted keys if one was misspelled."""
    for pattern, replacement in _REWORDINGS:
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    lines = [line.strip().removeprefix("- ") for line in text.splitlines() if line.strip()]
    message = " ".join(line if line.endswith(":") else f"{line};" for line in lines).rstrip(";")
    misspelled = re.search(r"(?:arguments: --|option ')([\w.-]+)", message, re.IGNORECASE)
    if misspelled is None:
        return message
    word = misspelled[1].rpartition(".")[2].replace("-", "_")
    if word in NO_SETTINGS and "run" in keys:
        return f"{message}; {NO_SETTINGS[word]}"
    near = _nearest_keys(OTHER_NAMES.get(word, word), keys)
    return message + (f"; did you mean {' or '.join(map(repr, near))}?" if near else "; --help all lists the keys")


def other_flag(name: str, path: Path, config_class: Any, key: str) -> str:
    """Return what leads on from a word that is no settings file: the flag that takes it, else the recipes."""
    settings = {f.name: f.type for f in fields(config_class)}
    if re.match(r"-[a-z]", name):
        return f"flags begin with two dashes: -{name}"
    if key != "--config":  # a part: what people give instead is its main setting
        named = [part for part in MAIN_SETTINGS if part in settings]
        hints = [f"did you mean --{key}.{named[0]} {name}?"] if named else []
    elif "command" in settings:
        hints = ["the command to submit comes after `--`"]
    elif path.exists():
        taking = [flag for flag in ("checkpoint", "run") if flag in settings and (path.is_dir() or flag != "run")]
        hints = [f"did you mean --{taking[0]} {name}?"] if taking else []
    else:
        parts = [part for part, kind in settings.items() if isinstance(kind, type) and name in list_recipes(kind)]
        hints = [f"did you mean --{part} {name}?" for part in parts]
    if recipes := ", ".join(list_recipes(config_class)):
        hints.append(f"recipes: {recipes}")
    return "; ".join(hints)


def _nearest_keys(word: str, keys: Sequence[str]) -> list[str]:
    """Return the dotted keys that end in a word, or have it as a part, or are spelled most like it; at most three."""
    names = {key: key.rpartition(".")[2] for key in keys}
    close = difflib.get_close_matches(word, names.values(), n=1)
    matches: list[Callable[[str], bool]] = [
        lambda name: name in (word, f"{word}s"),
        lambda name: word in name.split("_"),
        lambda name: name in close,
    ]
    for fits in matches:
        if found := [key for key, name in names.items() if fits(name)]:
            return found[:3]
    return []
