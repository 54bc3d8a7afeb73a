"""Pack the images of any source into tars, with an index and a manifest.

    packed/
        train-000000.tar, ...          members CLASS/NAME.jpg (or .npy) and CLASS/NAME.cls
        train-000000.tar.index/        where each image lies
        val-000000.tar, ...
        pack.json, lock.json           settings; who is packing
        manifest.json                  what is in it, and how it was made

A tar that is there is complete, and what is known of it lies beside it until the manifest has it; so the same command
resumes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mae_curriculum.commands.config import PackConfig
from mae_curriculum.config import ConfigError
from mae_curriculum.data.contents import Side
from mae_curriculum.data.packing import ImageEncoder, name_members, write_tar
from mae_curriculum.data.sources import Images, open_together
from mae_curriculum.data.tar_index import open_tars
from mae_curriculum.distributed import World, job_end, launcher
from mae_curriculum.files import is_user_error, read_json, write_json
from mae_curriculum.run.lock import hold
from mae_curriculum.run.stop import EXIT_RESUMABLE, Stop, StoppedError, catch_signals
from mae_curriculum.terminal import format_count, printable
from mae_curriculum.tracking.progress import Progress
from mae_curriculum.version import describe_version


@dataclass
class Packing:
    """The images of one part, and how they are packed."""

    config: PackConfig
    part: str
    """`train` or `val`."""
    images: Images
    folders: Sequence[Path]
    """Where they lie; none for a source in memory."""

    @property
    def tars(self) -> dict[Path, range]:
        """The tars of the part, and the images of each."""
        count, size = len(self.images), self.config.images_per_tar
        ranges = (range(start, min(start + size, count)) for start in range(0, count, size))
        return {self.config.out / f"{self.part}-{number:06}.tar": each for number, each in enumerate(ranges)}


def pack(config: PackConfig) -> int:
    """Write the tars, or resume; returns the exit code."""
    world = World(0, 1, torch.device("cpu"))
    with catch_signals(job_end(), launcher=launcher(), exits=True) as stop:
        train, val, contents = open_together(config.data, world)
        sides = {"train": (train, contents.train), "val": (val, contents.val)}
        parts = [
            Packing(config, name, images, folders_of(side))
            for name, (images, side) in sides.items()
            if images is not None and side is not None
        ]
        config.out.mkdir(parents=True, exist_ok=True)
        with hold(config.out / "lock.json", on_takeover=lambda _: None):
            claim(config, parts)
            if (config.out / "manifest.json").exists():
                world.log(f"{config.out} is complete, with the same images and settings; it is left as it is")
                return 0
            try:
                facts = pack_parts(parts, stop)
            except StoppedError as stopped:
                world.log(f"{stopped}: stopped; run the same command to resume")
                return EXIT_RESUMABLE
            except OSError as error:
                if not is_user_error(error):
                    raise
                what = f"out: {config.out} cannot be written ({error.strerror})"
                raise ConfigError(f"{what}; once it can, run the same command to resume") from error
            finish(config, facts)
    return 0


def folders_of(side: Side) -> list[Path]:
    """Return the folders of some images; that of the list, if they are listed; none for a source in memory."""
    paths = [] if side.folder is None else [Path(folder) for folder in side.folder.split(",")]
    return [path.parent if path.is_file() else path for path in paths]


def claim(config: PackConfig, parts: Sequence[Packing]) -> None:
    """Note in the folder what is packed; raises ConfigError if it holds something else."""
    path = config.out / "pack.json"
    settings = {
        "short_side": config.short_side,
        "quality": config.quality if config.format == "jpeg" else None,
        "format": config.format,
        "images_per_tar": config.images_per_tar,
        "images": {part.part: part.images.fingerprint() for part in parts},
    }
    if path.exists():
        if {"format": "jpeg"} | read_json(path) != settings:  # earlier versions had one format
            raise ConfigError(f"out: {config.out} holds other images, or these packed otherwise; choose another folder")
    elif {file.name for file in config.out.iterdir()} - {"lock.json"}:
        raise ConfigError(f"out: {config.out} is not empty; choose another folder")
    else:
        write_json(path, settings)


def pack_parts(parts: Sequence[Packing], stop: Stop) -> dict[str, Any]:
    """Pack the tars that are missing; returns what is known of each part. Raises StoppedError if asked to stop."""
    total = sum(len(part.images) for part in parts)
    progress = Progress(total_images=total, done_images=0, shown=True)
    done, found = 0, {}
    try:
        for part in parts:
            names, tars = name_members(part.images, part.folders), []
            for tar, indices in part.tars.items():
                facts = tar.with_name(f"{tar.name}.json")
                if not facts.exists():
                    write_json(facts, pack_tar(part, tar, indices, names, stop))
                tars.append(read_json(facts))
                done += len(indices)
                progress.update(done, f"{done:,} of {total:,} images packed")
            found[part.part] = describe(part, tars)
    finally:
        progress.close()
    return found


def pack_tar(part: Packing, tar: Path, indices: range, names: Sequence[str], stop: Stop) -> dict[str, Any]:
    """Write a tar; returns what is known of it. Raises StoppedError if asked to stop."""
    images, config, broken = part.images, part.config, {}
    encoder = ImageEncoder(images, config.short_side, config.quality, decoded=config.format == "npy")

    def members() -> Iterator[tuple[str, bytes, int | None]]:
        for encoded in encoder.encode(indices, config.data.workers):
            if why := stop.reason(needed_seconds=0):
                raise StoppedError(why)
            if encoded.broken is None:
                label = None if images.labels is None else images.labels[encoded.index]
                yield names[encoded.index] + encoded.suffix, encoded.content, label
            else:
                broken[images.name(encoded.index)] = encoded.broken

    facts = write_tar(tar, members())
    return facts | {"images": len(indices) - len(broken), "broken": broken}


def describe(part: Packing, tars: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what is known of a part, and make its index. Raises ConfigError if none of its images can be read."""
    broken = {name: reason for tar in tars for name, reason in tar["broken"].items()}
    if len(broken) == len(part.images):
        name, reason = next(iter(broken.items()))
        raise ConfigError(f"data.source: none of the {part.part} images can be read, such as {name}: {reason}")
    stored = open_tars(list(part.tars), part.config.data.cache)
    if len(stored) != (packed := sum(tar["images"] for tar in tars)):
        raise RuntimeError(f"{packed} {part.part} images were packed, but {len(stored)} can be read")
    counts = Counter(stored.members["label"].tolist())
    return {
        "images": len(stored),
        "classes": {name: counts[number] for number, name in enumerate(stored.classes)},
        "broken": broken,
        "tars": [{key: tar[key] for key in ("name", "images", "bytes", "sha256")} for tar in tars],
    }


def finish(config: PackConfig, parts: dict[str, Any]) -> None:
    """Write the manifest, and say what is there."""
    manifest = {
        "version": describe_version(),
        "source": config.data.source,
        "settings": read_json(config.out / "pack.json"),
        **parts,
    }
    write_json(config.out / "manifest.json", manifest)
    for part, facts in parts.items():
        for tar in facts["tars"]:
            (config.out / f"{tar['name']}.json").unlink()
        size = sum(tar["bytes"] for tar in facts["tars"]) / 1e6
        names = " to ".join(dict.fromkeys((facts["tars"][0]["name"], facts["tars"][-1]["name"])))
        print(printable(f"{part}: {format_count(facts['images'])} images, {size:,.1f} MB, {names}"))
        for name, reason in facts["broken"].items():
            print(printable(f"  left out: {name}: {reason}"))
    print(printable(f"{config.out}/manifest.json; train from it with --data.source {config.out}"))
