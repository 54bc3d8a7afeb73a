"""Turn signals and time limits into a request to stop, which the training loop honors between two steps."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from mae_curriculum.config import ConfigError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, a closed terminal, and what schedulers send before they kill."""

PATIENCE = 3.0
"""Seconds after which a second Ctrl-C ends a run at once."""

EXIT_RESUMABLE = 75
"""Exit code of a run that was asked to stop and can be resumed (EX_TEMPFAIL of sysexits.h)."""

MIN_MARGIN = 5.0
"""Seconds left before a time limit when a run has stopped, in addition to the time of its last step and save."""


class StoppedError(Exception):
    """The command was asked to stop; started again, it resumes. The message, if there is one, says by what."""


@dataclass
class Stop:
    """Whether a run should stop, and why."""

    deadline: float = float("inf")
    """When the time limit is reached, in seconds of time.monotonic(), which no change of the clock affects."""
    signal_name: str | None = None
    """The signal that was received, such as SIGTERM; None for none."""
    launcher: int | None = None
    """Process that started this one and should outlive it; None if it may end before."""

    def reason(self, *, needed_seconds: float) -> str | None:
        """Return why to stop now, or None to continue.

        needed_seconds  time until the next call of this method, and then to stop.
        """
        if self.signal_name is None and time.monotonic() > self.deadline - MIN_MARGIN - needed_seconds:
            return "time limit"
        if self.signal_name is None and self.launcher not in (None, os.getppid()):
            return "the launcher has died"
        return self.signal_name


@contextmanager
def catch_signals(deadline: float | None = None, *, launcher: int | None = None, exits: bool = False) -> Iterator[Stop]:
    """Catch the signals that ask a run to stop for as long as the context lasts.

    Schedulers and launchers send a signal more than once: repeated ones change nothing, but for a Ctrl-C in a terminal
    a while after the first signal. A SIGHUP that nohup has disabled stays so. Outside the main thread, where Python
    cannot catch signals, only the deadline stops a run.

    deadline  when the time limit is reached, in seconds since 1970; None for no limit.
    launcher  that of `Stop`.
    exits     the process ends after the context: if a signal came, later ones are ignored, as they would end a process
              that has saved with the wrong exit code. Otherwise handlers are left as they were.
    """
    limit = float("inf") if deadline is None else time.monotonic() + deadline - time.time()
    stop = Stop(limit, launcher=launcher)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    if handlers[signal.SIGHUP] == signal.SIG_IGN:
        del handlers[signal.SIGHUP]
    first = float("inf")

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def catch(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        if stop.signal_name is None:
            stop.signal_name, first = signal.Signals(number).name, time.monotonic()
        elif number == signal.SIGINT and os.isatty(0) and time.monotonic() - first > PATIENCE:
            restore()
            signal.raise_signal(number)

    for number in handlers:
        signal.signal(number, catch)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a job's launcher blocks them until then
    try:
        yield stop
    finally:
        if exits and stop.signal_name is not None:
            handlers = dict.fromkeys(handlers, signal.SIG_IGN)
        restore()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def parse_duration(text: str, name: str = "time_limit") -> float:
    """Parse a duration in one of SLURM's formats into seconds: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS.

    name    the setting that it is.
    Raises  ConfigError for anything else.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ConfigError(f"{name} must be minutes, MM:SS, HH:MM:SS or D-HH:MM:SS, got '{text}'")
    days = match[1]
    parts = [int(part) for part in match.groups()[1:] if part is not None]
    if days is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 1:
        hours, minutes, seconds = 0, parts[0], 0
    else:
        hours, minutes, seconds = (0, *parts)[-3:]
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)
