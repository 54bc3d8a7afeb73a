"""Checkpoints written while training goes on: training waits for the copy to host memory, not for the disk."""

import time
from collections.abc import Callable
from itertools import zip_longest
from threading import Thread
from typing import Any

import torch

from mae_curriculum.run.folder import RunFolder

RETRY_SECONDS = 15.0
"""A save that failed is tried again after this long: a full disk or a quota is often cleared by hand."""


class BackgroundSaver:
    """Writes one checkpoint after another from a thread of its own."""

    def __init__(self, folder: RunFolder, *, keep: int) -> None:
        """Write into a run folder; `keep` is that of `RunFolder.save`."""
        self._folder, self._keep = folder, keep
        self._thread: Thread | None = None
        self._failure: Exception | None = None
        self._copy: Any = None
        self.seconds = 0.0
        """Seconds that the last save took from the copy to the disk's answer."""

    def begin(self, state: dict[str, Any], spare: Callable[[int], bool]) -> None:
        """Copy a state to host memory and begin to write it; one that is still being written is waited for first.

        spare  that of `RunFolder.save`.
        """
        self.wait()
        self._failure = None
        start = time.monotonic()
        # into the memory of the last copy, which nobody needs any more: fresh memory takes longer than copying does
        self._copy = _to_host(state, self._copy)
        self._thread = Thread(target=self._write, args=(self._copy, spare, start))
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def failure(self) -> Exception | None:
        """Tell, once, why the last save failed; None while it goes on or if it did not."""
        if self._thread is not None and self._thread.is_alive():
            return None
        failure, self._failure = self._failure, None
        return failure

    def _write(self, state: dict[str, Any], spare: Callable[[int], bool], start: float) -> None:
        try:
            self._folder.save(state, keep=self._keep, spare=spare)
        except Exception as error:  # whatever it is, the run must hear of it
            self._failure = error
        self.seconds = time.monotonic() - start


def _to_host(value: Any, earlier: Any) -> Any:
    """Copy all tensors of nested dicts and lists to host memory, so that training may change the originals.

    earlier  a copy of the like, whose memory is used again where it fits.
    """
    if isinstance(value, torch.Tensor):
        fits = isinstance(earlier, torch.Tensor) and (earlier.shape, earlier.dtype) == (value.shape, value.dtype)
        return earlier.copy_(value.detach()) if fits else value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        known = earlier if isinstance(earlier, dict) else {}
        return {key: _to_host(item, known.get(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        before = earlier if isinstance(earlier, list | tuple) else ()
        return type(value)(_to_host(item, each) for item, each in zip_longest(value, before[: len(value)]))
    return value
