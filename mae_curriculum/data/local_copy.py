"""A copy of packed images on a disk of each node, made before training and checked against their manifest."""

import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import DataConfig
from mae_curriculum.distributed import World, picklable
from mae_curriculum.files import read_json, temporary_name, write_json

BLOCK = 2**22
"""Bytes that are copied at once."""


def copy_to_node(config: DataConfig, world: World, prepare: Callable[[DataConfig], None]) -> DataConfig:
    """Copy the images to `local_copy` once on each node, if that is set; returns the settings with the copy as source.

    What is there with the right size is kept, as it was checked when it was copied, unless the manifest has changed.

    prepare  makes the index of the copy if it lacks one that fits, on one rank of each node.
    Raises  ConfigError on all ranks for a source without a manifest, for tars that differ from it, and for a full disk.
    """
    if config.local_copy is None:
        return config
    source = Path(config.source)
    name = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
    target = config.local_copy / f"{source.name}-{name}"
    copied, failure = replace(config, source=str(target)), None
    hosts = world.gather(socket.gethostname())
    if hosts.index(socket.gethostname()) == world.rank:  # the first rank of its node
        try:
            copy_packed(source, target)
            prepare(copied)
        except Exception as error:  # or the other ranks would wait for this one
            failure = picklable(error)
    if failures := [each for each in world.gather(failure) if each is not None]:
        raise failures[0]
    world.log(f"copy of {source} on each node: {target}")
    return copied


def copy_packed(source: Path, target: Path) -> None:
    """Copy packed images to a folder, or what of them is missing; jobs on one node wait for each other.

    Raises  ConfigError for a source without a manifest, for tars that differ from it, and for a full disk.
    """
    try:
        manifest = read_json(source / "manifest.json")
        tars = [tar for part in ("train", "val") if part in manifest for tar in manifest[part]["tars"]]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"data.local_copy: {source} has no manifest.json of `pack`: pack the images first, or set it to null"
        ) from error
    try:
        with _alone(target.with_name(f".{target.name}.lock")):
            if target.exists() and _manifest_of(target) != manifest:
                shutil.rmtree(target)
            target.mkdir(exist_ok=True)
            write_json(target / "manifest.json", manifest)  # first: what follows belongs to it, also after a kill
            for tar in tars:
                _copy_tar(source / tar["name"], target / tar["name"], tar)
            for index in source.glob("*.index"):
                _copy_index(index, target / index.name)
    except OSError as error:
        size = sum(tar["bytes"] for tar in tars) / 1e9
        raise ConfigError(
            f"data.local_copy: {source}, {size:.3g} GB, cannot be copied to {target} on {socket.gethostname()} "
            f"({error.strerror})"
        ) from error


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other job on this node copies the same images."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _manifest_of(folder: Path) -> Any:
    """Return the manifest of a copy; None if it is missing or damaged."""
    try:
        return read_json(folder / "manifest.json")
    except (OSError, ValueError):
        return None


def _copy_tar(source: Path, target: Path, facts: dict[str, Any]) -> None:
    """Copy a tar, which appears once it is complete and as the manifest says, with its time: that of the index."""
    if target.is_file() and target.stat().st_size == facts["bytes"]:
        if source.is_file() and target.stat().st_mtime_ns != source.stat().st_mtime_ns:
            _copy_times(source, target)
        return
    temporary, state = temporary_name(target), hashlib.sha256()
    try:
        with source.open("rb") as reader, temporary.open("wb") as writer:
            while block := reader.read(BLOCK):
                state.update(block)
                writer.write(block)
        if state.hexdigest() != facts["sha256"]:
            raise ConfigError(f"data.local_copy: {source} is not as its manifest says; pack the images again")
        _copy_times(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_times(source: Path, target: Path) -> None:
    times = source.stat()
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))


def _copy_index(source: Path, target: Path) -> None:
    """Copy the index of tars, which appears once it is complete, unless it is there."""
    if target.is_dir():
        return
    temporary = temporary_name(target)
    shutil.rmtree(temporary, ignore_errors=True)  # of a job that was killed
    shutil.copytree(source, temporary)
    temporary.rename(target)
