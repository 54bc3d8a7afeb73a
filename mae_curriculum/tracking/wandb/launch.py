"""W&B beside a run: a process of its own reads the journal and brings it there, so that training never waits for it.

Neither an import, nor a server that does not answer, nor a key that is missing holds up a step; at the end the run
waits some seconds, and no longer. What the process does stands in `wandb_bring.py`.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mae_curriculum.config import ConfigError, plain
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.terminal import say
from mae_curriculum.tracking.config import TrackingConfig

REST = "the same command brings the rest"
"""A run that goes on does so anyway; of one that is over nothing else is done."""

CLOSE_SECONDS, FINAL_SECONDS = 15.0, 60.0
"""For the end in all: a job that was asked to stop has about 30; once the run is over, nothing else is to be done."""


class WandbLog:
    """The process that brings a run's journal to W&B."""

    def __init__(self, folder: RunFolder, tracking: TrackingConfig, config: Any) -> None:
        """Start it.

        config  the run's settings, as W&B shows them.
        """
        told = {"folder": str(folder.path), "tracking": plain(tracking), "config": without_home(plain(config))}
        self._summary = folder.summary
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
            "WANDB_ERROR_REPORTING": "false",  # to its makers; where they do not answer, it waits
        }
        environment.pop("WANDB_SERVICE", None)  # of another process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mae_curriculum.tracking.wandb.upload"],
            env=environment,
            stdin=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # signals that stop the run are not for it
        )
        self._tell(json.dumps(told))

    def close(self) -> None:
        """Let it bring what is left, for a while; once only."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        self._tell("over")
        seconds = FINAL_SECONDS if self._summary.exists() else CLOSE_SECONDS
        try:
            if code := self._process.wait(seconds):
                say(f"warning: W&B's process ended with code {code}; {REST}")
        except subprocess.TimeoutExpired:
            for pid in (*children(self._process.pid), self._process.pid):  # W&B's own process would wait on
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            say(f"warning: W&B has not taken all of this run in {seconds:.0f} s; {REST}")
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has given up, and said why
            self._process.stdin.write(f"{line}\n".encode())


def log_to_wandb(folder: RunFolder, tracking: TrackingConfig, config: Any) -> Callable[[], None]:
    """Have a run's journal brought to W&B, if that is wished; returns what ends it."""
    if tracking.wandb == "disabled":
        return lambda: None
    try:
        return WandbLog(folder, tracking, config).close
    except Exception as error:  # W&B is no reason to end a run
        say(f"warning: W&B is given up: {type(error).__name__} {error}; {REST}")
        return lambda: None


def require_wandb() -> None:
    """Raise ConfigError if wandb is not installed."""
    if getattr(find_spec("wandb"), "origin", None) is None:  # a folder of that name is a package, too
        raise ConfigError("tracking.wandb needs the package wandb: pip install wandb, or --tracking.wandb disabled")


def children(pid: int) -> list[int]:
    """List the processes that a process has started, where the system tells."""
    found: list[int] = []
    with suppress(OSError):  # a thread may end meanwhile
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, path.read_text().split())
    return found


def without_home(tree: Any) -> Any:
    """Spell the user's home folder ~ wherever it stands."""
    homes = homes_of_user()

    def spell(value: Any) -> Any:
        match value:
            case dict():
                return {key: spell(each) for key, each in value.items()}
            case list() | tuple():
                return [spell(each) for each in value]
            case None | bool() | int() | float():
                return value
        words = str(value)
        for home in homes:
            words = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", words)
        return words

    return spell(tree)


def homes_of_user() -> list[str]:
    """Spell the user's home folder, as it is called and where it lies, the longer first; empty where there is none."""
    try:
        home = Path.home()
    except RuntimeError:  # a user whom the system does not know, as in containers
        return []
    return sorted({str(home), str(home.resolve())} - {"/"}, key=len, reverse=True)
