"""Checkpoint files: written with a checksum in their name, verified before use."""

import hashlib
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
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... for a damaged file
        raise ConfigError(
            f"{path} cannot be read: {' '.join(str(error).split())[:200]}; remove it to continue"
        ) from error
    return state
