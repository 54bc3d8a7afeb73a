"""Checkpoint files: written with a checksum in their name, verified before use."""

import hashlib
import pickle
import re
from pathlib import Path
from typing import IO, Any

from mae_curriculum.config import ConfigError


def steps_of(checkpoint: Path) -> int:
    """Return the number of steps done, from a checkpoint's name."""
    return int(checkpoint.name.split(".")[0].removeprefix("step-"))


def is_intact(checkpoint: Path) -> bool:
    """Return whether a checkpoint's content has the checksum in its name."""
    with checkpoint.open("rb") as stream:
        return checkpoint.name.split(".")[1] == hashlib.file_digest(stream, "sha256").hexdigest()[:16]


class _Checked:
    """A stream for torch.save that computes a checksum, and stores an OSError, on which torch would abort."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.checksum = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: memoryview) -> int:
        if self.failure is None:
            self.checksum.update(content)
            try:
                self._stream.write(content)
            except OSError as error:
                self.failure = error
        return len(content)

    def flush(self) -> None:
        pass


def write_state(state: dict[str, Any], stream: IO[bytes]) -> str:
    """Write a state and return its checksum; raises OSError if it cannot be written."""
    import torch  # here, since `status` reads run folders without torch, which takes seconds to load

    checked = _Checked(stream)
    torch.save(state, checked)  # type: ignore[arg-type]  # it has all that torch.save uses
    if checked.failure is not None:
        raise checked.failure
    return checked.checksum.hexdigest()[:16]


def load_state(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU; raises ConfigError if it cannot be read."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... for a damaged file
        raise ConfigError(f"{path} cannot be read: {why_unreadable(error)}; remove it to continue") from error
    refuse_oversized(state, path)
    facts = state if isinstance(state, dict) else {}
    if not (isinstance(facts.get("model"), dict) and isinstance(facts.get("steps_done"), int)):
        raise ConfigError(f"{path} is not the state of a run: it has no model and steps_done; remove it to continue")
    return facts


def why_unreadable(error: Exception) -> str:
    """Return in one line why torch or safetensors cannot read a file; torch would advise to run the code in it."""
    text = str(error)
    if isinstance(error, OSError):
        return error.strerror or text
    if code := re.search(r"(?:GLOBAL|class) (\S+) (?:was not|whose module)", text):
        return f"it holds {code[1]}, which is no tensor and could run code"
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than tensors, which could run code, or it is damaged"
    if isinstance(error, RuntimeError) and "PytorchStreamReader" in text:
        return "it is damaged or incomplete"
    if type(error).__module__.startswith("safetensors"):
        return " ".join(text.split())[:200]
    return "it is damaged, or no file of torch.save"


def refuse_oversized(content: Any, path: Path) -> None:
    """Raise ConfigError for a tensor larger than its file: it repeats a few values, and its use would take the memory.

    A tensor without values is refused too.

    content  nested dicts, lists and tuples.
    """
    import torch

    limit = path.stat().st_size
    waiting, seen = [content], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor) and item.is_meta:
            raise ConfigError(f"{path} holds a tensor without values, on torch's device meta; save one with values")
        if isinstance(item, torch.Tensor) and item.numel() * item.element_size() > limit:
            size = f"{list(item.shape)} of {item.element_size()} bytes each, in a file of {limit:,} bytes"
            raise ConfigError(f"{path} holds a tensor that is larger than the file: {size}; save a copy of it (clone)")
        if isinstance(item, dict | list | tuple) and id(item) not in seen:  # it may contain itself
            seen.add(id(item))
            waiting += item.values() if isinstance(item, dict) else item
