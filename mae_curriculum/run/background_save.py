"""Write checkpoints in the background: training waits for the copy to host memory, not for the disk."""

import time
from collections.abc import Callable
from itertools import zip_longest
from threading import Thread
from typing import Any

import torch

from mae_curriculum.run.folder import RunFolder

RETRY_SECONDS = 15.0
"""Wait before a failed save is retried: a full disk or a quota is often cleared by hand."""


class BackgroundSaver:
    """Writes one checkpoint at a time from a thread of its own."""

    def __init__(self, folder: RunFolder, *, keep: int) -> None:
        """Write into a run folder; `keep` is that of `RunFolder.save`."""
        self._folder, self._keep = folder, keep
        self._thread: Thread | None = None
        self._failure: Exception | None = None
        self._copy: Any = None
        self.seconds = 0.0
        """Duration of the last save, from the start of the copy until it was on disk."""

    def start(self, state: dict[str, Any], keep_forever: Callable[[int], bool]) -> None:
        """Copy a state to host memory and start writing it, once the save before is done.

        keep_forever  that of `RunFolder.save`.
        """
        self.wait()
        self._failure = None
        start = time.monotonic()
        self._copy = to_host(state, self._copy)  # reuses the last copy's memory: allocating takes longer than copying
        self._thread = Thread(target=self._write, args=(self._copy, keep_forever, start))
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def failure(self) -> Exception | None:
        """Return the error of the last save, once; None while it is being written, or if it succeeded."""
        if self._thread is not None and self._thread.is_alive():
            return None
        failure, self._failure = self._failure, None
        return failure

    def _write(self, state: dict[str, Any], keep_forever: Callable[[int], bool], start: float) -> None:
        try:
            self._folder.save(state, keep=self._keep, keep_forever=keep_forever)
        except Exception as error:  # returned by `failure`: an exception in a thread would only be printed
            self._failure = error
        self.seconds = time.monotonic() - start


def to_host(value: Any, earlier: Any = None) -> Any:
    """Copy all tensors in nested dicts, lists and tuples to host memory, so that training may change the originals.

    earlier  an earlier copy, whose memory is reused where shape and dtype match.
    """
    if isinstance(value, torch.Tensor):
        if isinstance(earlier, torch.Tensor) and (earlier.shape, earlier.dtype) == (value.shape, value.dtype):
            return earlier.copy_(value.detach())
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        known = earlier if isinstance(earlier, dict) else {}
        return {key: to_host(item, known.get(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        before = earlier if isinstance(earlier, list | tuple) else ()
        pairs = zip_longest(value, before[: len(value)])
        return type(value)(to_host(item, earlier_item) for item, earlier_item in pairs)
    return value
