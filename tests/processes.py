"""Real processes of this project's programs, started as a user starts them, but in no time.

They are forked from a server that has imported the packages, for which a new interpreter takes many seconds.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from runpy import run_module, run_path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent

os.environ["OMP_NUM_THREADS"] = "1"  # tests and their processes run side by side

SERVER = multiprocessing.get_context("forkserver")
PRELOADED = ["mae_curriculum.pretraining", "finetune.finetune", "finetune.linprobe", "tests.preloaded"]
SERVER.set_forkserver_preload(PRELOADED)


class Process:
    """A process in a session of its own, with what the tests use of subprocess.Popen."""

    def __init__(self, program: str, *arguments: object, **environment: str) -> None:
        """Start a package ("mae_curriculum") or script ("tests/spoiled.py") with changes to the environment."""
        self._folder = TemporaryDirectory()
        out, err = (Path(self._folder.name, name) for name in ("out", "err"))
        out.touch()
        err.touch()
        words = [program, *map(str, arguments)]
        self._process = SERVER.Process(target=_become, args=(words, {**os.environ, **environment}, out, err))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.stderr = err.open()
        self._stdout = out

    @property
    def returncode(self) -> int | None:
        """Exit code; minus the number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Wait for the end; returns the exit code."""
        self._process.join(timeout)
        assert self.returncode is not None, f"process {self.pid} still runs after {timeout} s"
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for the end; returns stdout, and what was not read of stderr. To be called once."""
        self.wait(timeout)
        with self._folder, self.stderr:
            return self._stdout.read_text(), self.stderr.read()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children, those of them that are left."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def is_gone(self) -> bool:
        """Return whether neither the process nor any of its children is left."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        return False


class Ranks:
    """Two processes of one run, with the environment that torchrun gives to its processes."""

    def __init__(self, program: str, *arguments: object) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        shared["TORCHELASTIC_RUN_ID"] = "test"  # so that they watch their launcher
        self.ranks = [Process(program, *arguments, **shared, RANK=rank, LOCAL_RANK=rank) for rank in "01"]

    @property
    def returncode(self) -> int | None:
        """Exit code of the first rank that did not end with 0, else 0; None while one runs."""
        codes = [rank.returncode for rank in self.ranks]
        return None if None in codes else next(filter(None, codes), 0)

    def poll(self) -> int | None:
        """Return the exit code, or None while one runs."""
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Wait for the end; returns the ranks' stdout, and what was not read of their stderr."""
        stdout, stderr = zip(*(rank.communicate() for rank in self.ranks), strict=True)
        return "".join(stdout), "".join(stderr)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all processes and their children."""
        for rank in self.ranks:
            rank.send(number)

    def is_gone(self) -> bool:
        """Return whether no process is left."""
        return all(rank.is_gone() for rank in self.ranks)


def _become(words: list[str], environment: dict[str, str], out: Path, err: Path) -> None:
    """Run a program in this process, as if the process had started with it."""
    multiprocessing.set_start_method(None, force=True)  # the default, as in a new interpreter
    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.argv = words
    if words[0].endswith(".py"):
        run_path(words[0], run_name="__main__")
    else:
        run_module(words[0], run_name="__main__", alter_sys=True)


def run_python(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a new interpreter to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
