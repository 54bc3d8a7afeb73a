"""One job at a time on a run folder: a lock file with host, process and heartbeat, which a dead holder loses."""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from mae_curriculum.config import ConfigError
from mae_curriculum.files import write_atomic

BEAT_SECONDS = 5.0
"""Between two heartbeats."""
SILENCE_SECONDS = 30.0
"""A holder on another machine that shows no heartbeat for so long is dead: heartbeats are watched, not compared with a
clock, since machines' clocks differ."""


@contextmanager
def hold(path: Path, *, tell: Callable[[dict[str, Any]], object]) -> Iterator[Callable[[], None]]:
    """Hold a lock file for as long as the context lasts.

    tell    is told of a dead holder whose lock was taken over, and of its last heartbeat.
    Yields  a function that raises ConfigError once another job has taken the lock.
    Raises  ConfigError while another job holds it.
    """
    mine = {**_place(), "pid": os.getpid(), "began": _began(os.getpid()), "id": uuid.uuid4().hex}
    _acquire(path, mine, tell)
    over = Event()

    def check() -> None:
        if _read(path).get("id") != mine["id"]:
            raise ConfigError(f"{path}: another job has taken this run over, so this one ends without saving")

    def beat() -> None:
        count = 0
        while not over.wait(BEAT_SECONDS):
            count += 1
            if _read(path).get("id") == mine["id"]:
                try:
                    write_atomic(path, _encode({**mine, "beat": count}))
                except OSError:  # a full disk: tried again at the next beat
                    continue

    heart = Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield check
    finally:
        over.set()
        heart.join()
        if _read(path).get("id") == mine["id"]:
            path.unlink()


def lock_holder(path: Path) -> dict[str, Any] | None:
    """Tell at once who seems to hold a lock file, None for nobody; whether it may be taken over needs a longer look."""
    try:
        silence = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
    return _read(path) if silence < SILENCE_SECONDS else None


def _acquire(path: Path, mine: dict[str, Any], tell: Callable[[dict[str, Any]], object]) -> None:
    while True:
        try:
            with path.open("xb") as stream:  # fails if there is one
                stream.write(_encode({**mine, "beat": 0}))
            return
        except FileExistsError:
            holder = _read(path)  # empty if it is being written just now
        if _is_alive(path, holder):
            raise ConfigError(
                f"{path.parent} is in use by process {holder.get('pid')} on {holder.get('host')}; wait for it, "
                "stop it, or choose another --run"
            )
        taken = path.with_name(f".{path.name}.{mine['id']}")
        try:
            path.rename(taken)
        except FileNotFoundError:  # another job was quicker
            continue
        if _read(taken).get("id") != holder.get("id"):  # another job was quicker, and this is its lock
            taken.rename(path)
            continue
        tell({**holder, "last_beat": taken.stat().st_mtime})
        taken.unlink()


def _is_alive(path: Path, holder: dict[str, Any]) -> bool:
    """Tell whether a lock's holder lives: on this machine by its process, else by watching its heartbeat."""
    if _place().items() <= holder.items() and "pid" in holder:
        return bool(_began(holder["pid"]) == holder["began"])
    until = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < until:
        time.sleep(1)
        if _read(path) != holder:
            return True
    return False


def _place() -> dict[str, Any]:
    """Tell where a process number means the same process: the machine, and in it the container."""
    space = Path("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "space": str(space.readlink()) if space.is_symlink() else None}


def _began(pid: int) -> str | None:
    """Tell when a living process began, by the machine's own count: its number may be used again."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        return "unknown"
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None if facts[0] == "Z" else f"{boot} {facts[19]}"  # a zombie has ended; nobody has asked how


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content


def _encode(content: dict[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode()
