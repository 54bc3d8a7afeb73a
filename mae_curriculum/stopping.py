"""Signals become a wish to stop, which the training loop grants between two steps."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Catch SIGINT and SIGTERM for as long as the context lasts; the function given tells whether one came.

    A second signal has its usual effect at once.
    """
    caught = False
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def catch(_number: int, _frame: FrameType | None) -> None:
        nonlocal caught
        caught = True
        restore()

    for number in usual:
        signal.signal(number, catch)
    try:
        yield lambda: caught
    finally:
        restore()
