"""Signals and time limits become a wish to stop, which the training loop grants between two steps."""

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from mae_curriculum.config import ConfigError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What schedulers send before they kill, and Ctrl-C."""

EXIT_RESUMABLE = 75
"""Exit code of a run that was asked to stop and can be resumed (EX_TEMPFAIL of sysexits.h)."""

MIN_MARGIN = 5.0
"""Seconds before a time limit that a run stops at the latest, besides what its steps and saves take."""


@dataclass
class Stop:
    """Whether a run is to stop, and why."""

    deadline: float = float("inf")
    """When the time limit is reached, in seconds since 1970."""
    signal_name: str | None = None
    _usual: dict[int, object] = field(default_factory=dict)

    def reason(self, *, needed_seconds: float) -> str | None:
        """Say why to stop now, or None to go on.

        needed_seconds  what may pass until this is asked again, and what stopping takes then.
        """
        if self.signal_name is None and time.time() > self.deadline - MIN_MARGIN - needed_seconds:
            return "time limit"
        return self.signal_name


@contextmanager
def catch_signals(deadline: float | None = None) -> Iterator[Stop]:
    """Catch the signals that ask a run to stop for as long as the context lasts; a second one has its usual effect.

    deadline  when the time limit is reached, in seconds since 1970; None for never.
    """
    stop = Stop() if deadline is None else Stop(deadline)
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python sets handlers in the main thread alone; whoever owns that handles signals
        return
    usual = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def catch(number: int, _frame: FrameType | None) -> None:
        stop.signal_name = signal.Signals(number).name
        restore()

    for number in usual:
        signal.signal(number, catch)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a job's launcher holds back those that come before
    try:
        yield stop
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        restore()


def parse_duration(text: str) -> float:
    """Read a duration as SLURM writes it, in seconds: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS.

    Raises  ConfigError for anything else.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ConfigError(f"time_limit: minutes, MM:SS, HH:MM:SS or D-HH:MM:SS, got '{text}'")
    days, *parts = (None if part is None else int(part) for part in match.groups())
    given = [part for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = (*given, 0, 0)[:3]
    else:
        hours, minutes, seconds = {1: (0, given[0], 0), 2: (0, *given), 3: tuple(given)}[len(given)]
    return float((((days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)
