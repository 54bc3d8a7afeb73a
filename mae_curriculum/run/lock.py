"""Allow one job at a time on a run folder: a lock file with host, process and heartbeat, taken over from dead jobs."""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from mae_curriculum.config import ConfigError
from mae_curriculum.files import write_atomic

BEAT_SECONDS = 5.0
"""Time between two heartbeats."""
SILENCE_SECONDS = 30.0
"""A holder on another machine without a heartbeat for this long is dead. Heartbeats are counted while waiting, not
compared with the time of day, since the machines' clocks differ."""

TURN_SECONDS = 0.2
"""Time between two attempts to hold a lock in turn."""


class InUseError(ConfigError):
    """Another job is at work."""


@contextmanager
def hold(path: Path, *, on_takeover: Callable[[dict[str, Any]], object]) -> Iterator[Callable[[], None]]:
    """Hold a lock file for as long as the context lasts.

    on_takeover  called with the dead holder whose lock was taken over, and the time of its last heartbeat.
    Yields       a function that raises ConfigError once another job has taken the lock.
    Raises       InUseError while another job holds it.
    """
    own = {**_place(), "pid": os.getpid(), "start": _start_of_process(os.getpid()), "id": uuid.uuid4().hex}
    _acquire(path, own, on_takeover)
    over = Event()

    def check() -> None:
        holder = _read(path)  # empty if a file system fails to deliver it for a moment
        if holder.get("id", own["id"]) != own["id"]:
            raise ConfigError(f"{path}: another job has taken over this run, so this one ends without saving")

    def beat() -> None:
        count = 0
        while not over.wait(BEAT_SECONDS):
            count += 1
            with suppress(OSError):  # a full disk, or a folder that is away: retried at the next beat
                if _read(path).get("id") == own["id"] or not path.exists():
                    write_atomic(path, _encode({**own, "beat": count}))

    heart = Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield check
    finally:
        over.set()
        heart.join()
        if _read(path).get("id") == own["id"]:
            path.unlink(missing_ok=True)


@contextmanager
def hold_in_turn(path: Path) -> Iterator[None]:
    """Hold a lock file, for seconds at most, once those who hold it now are done."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(hold(path, on_takeover=lambda _: None))
                break
            except InUseError:
                time.sleep(TURN_SECONDS)
        yield


def is_held(path: Path) -> bool:
    """Return whether a living job holds a lock file; for one on another machine, wait for a heartbeat."""
    return path.exists() and _is_alive(path, _read(path))


def lock_holder(path: Path) -> dict[str, Any] | None:
    """Return the apparent holder of a lock file, or None, without the wait that taking it over needs."""
    try:
        silence = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
    return _read(path) if silence < SILENCE_SECONDS else None


def _acquire(path: Path, own: dict[str, Any], on_takeover: Callable[[dict[str, Any]], object]) -> None:
    while True:
        try:
            with path.open("xb") as stream:  # fails if the file exists
                stream.write(_encode({**own, "beat": 0}))
            return
        except FileExistsError:
            holder = _read(path)  # empty while it is being written
        if _is_alive(path, holder):
            raise InUseError(
                f"{path.parent} is in use by process {holder.get('pid')} on {holder.get('host')}; wait for it, "
                "stop it, or write elsewhere"
            )
        taken = path.with_name(f".{path.name}.{own['id']}")
        try:
            path.rename(taken)
        except FileNotFoundError:  # another job was faster
            continue
        if _read(taken).get("id") != holder.get("id"):  # another job was faster, and this is its lock
            taken.rename(path)
            continue
        on_takeover({**holder, "last_beat": taken.stat().st_mtime})
        taken.unlink()


def _is_alive(path: Path, holder: dict[str, Any]) -> bool:
    """Return whether a lock's holder is alive: by its process on this machine, else by waiting for a heartbeat."""
    is_here = all(holder.get(key) == value for key, value in _place().items())
    if is_here and isinstance(holder.get("pid"), int):
        return bool(_start_of_process(holder["pid"]) == holder.get("start"))
    until = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < until:
        time.sleep(1)
        if not path.exists():
            return False
        if _read(path) != holder:
            return True
    return False


def _place() -> dict[str, Any]:
    """Return the machine and the container, within which a process id names one process."""
    space = Path("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "space": str(space.readlink()) if space.is_symlink() else None}


def _start_of_process(pid: int) -> str | None:
    """Return when a living process started, since its id may be reused after it; None if it has ended."""
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
    return None if facts[0] == "Z" else f"{boot} {facts[19]}"  # a zombie has ended


def _read(path: Path) -> dict[str, Any]:
    """Read a lock file; empty if it cannot be read, or if it is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _encode(content: dict[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode()
