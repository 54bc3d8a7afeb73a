"""Encode the images of any source, and write them into tars that WebDataset, and this package, read."""

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import simplejpeg
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mae_curriculum.config import ConfigError
from mae_curriculum.data.decode import BrokenImageError, decode_image
from mae_curriculum.data.loader import ignore_signals, kill_workers_at_exit, start_loading
from mae_curriculum.data.sources import ArrayImages, Images
from mae_curriculum.data.stored import EXTENSIONS, NPY_SIGNATURE, is_visible, read_array_head
from mae_curriculum.data.tar_index import LABEL
from mae_curriculum.files import rename_into_place, temporary_name, write_temporary

SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}
"""Suffixes of image files by their first bytes."""


@dataclass(frozen=True)
class Encoded:
    """An image as it is stored, or why it is not."""

    index: int
    content: bytes = b""
    suffix: str = ""
    broken: str | None = None
    """Why it cannot be read; None if it can."""


@dataclass(frozen=True)
class ImageEncoder(Dataset[Encoded]):
    """Encode images on request; each is decoded, so that broken ones are found."""

    images: Images
    short_side: int | None
    """Shorter side in pixels to which larger images are reduced, and stored as JPEG; None for no reduction."""
    quality: int
    """Of JPEG, 1 to 100."""
    decoded: bool = False
    """Store every image as its pixels, .npy, instead of JPEG or the file as it is."""

    def __getitem__(self, index: int) -> Encoded:
        """Return an image as it is to be stored."""
        try:
            content, suffix = self._encode(index)
        except (BrokenImageError, OSError) as error:
            return Encoded(index, broken=str(error))
        return Encoded(index, content, suffix)

    def _encode(self, index: int) -> tuple[bytes, str]:
        if isinstance(self.images, ArrayImages):
            image = self.images.read(index, len(self.images.pixels[index]))
            return (encode_npy(image), ".npy") if self.decoded else (encode_png(image), ".png")
        content, suffix = self.images.content(index), PurePosixPath(self.images.name(index)).suffix.lower()
        if content.startswith(NPY_SIGNATURE):
            decode_image(lambda: content, _array_channels(content))
            return content, ".npy"
        image = decode_image(lambda: content, 3)
        side = min(image.shape[1:])
        kept = side if self.short_side is None else min(side, self.short_side)
        if kept < side:
            image = reduce(image, kept)
        if self.decoded:
            return encode_npy(image), ".npy"
        if kept < side:
            return encode_jpeg(image, self.quality), ".jpg"
        if suffix not in EXTENSIONS:  # a row of a table, or a file that a list names
            suffix = next((each for start, each in SUFFIXES.items() if content.startswith(start)), "")
        return (content, suffix) if suffix else (encode_png(image), ".png")

    def encode(self, indices: Sequence[int], workers: int) -> Iterator[Encoded]:
        """Yield images in the order of their indices, encoded by worker processes, or here for 0 of them."""
        if workers:
            kill_workers_at_exit()
        loader: DataLoader[Any] = DataLoader(
            self, batch_size=None, sampler=indices, num_workers=workers, worker_init_fn=ignore_signals
        )
        yield from start_loading(loader)


def _array_channels(content: bytes) -> int:
    """Return the number of channels of a .npy file; 1 for one without a head, which cannot be decoded either."""
    try:
        shape, _ = read_array_head(io.BytesIO(content))
    except ValueError:
        return 1
    return shape[2] if len(shape) == 3 else 1


def reduce(image: Tensor, short_side: int) -> Tensor:
    """Return an image (c, h, w) uint8 with this shorter side, its aspect ratio kept."""
    reduced: Tensor = F.resize(image, [short_side], InterpolationMode.BICUBIC, antialias=True)
    return reduced


def encode_jpeg(image: Tensor, quality: int) -> bytes:
    """Encode an RGB image (3, h, w) uint8 as JPEG, with colors at half the resolution."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    content: bytes = simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")
    return content


def encode_npy(image: Tensor) -> bytes:
    """Store an image (1 or 3, h, w) uint8 as a .npy array (h, w, 3), or (h, w) if it is gray."""
    is_gray = len(image) == 1 or bool((image == image[:1]).all())
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(image[0] if is_gray else image.permute(1, 2, 0)))
    return stream.getvalue()


def encode_png(image: Tensor) -> bytes:
    """Encode an image (1 or 3, h, w) uint8 as PNG."""
    stream = io.BytesIO()
    F.to_pil_image(image).save(stream, "PNG")
    return stream.getvalue()


def name_members(images: Images, folders: Sequence[Path]) -> list[str]:
    """Return a name without suffix for each image, unique, in a folder of its class if there are classes.

    folders  where the images lie; an image that is in none of them is named by its number.
    Raises   ConfigError for a class whose name cannot be that of a folder.
    """
    if odd := next((name for name in images.classes if "/" in name or not (name and is_visible(name))), None):
        raise ConfigError(f"data.source: the class {odd!r} cannot be a folder; rename it, without / or a leading dot")
    names, seen, labels = [], set[str](), images.labels
    for index in range(len(images)):
        path = _path_in(PurePosixPath(images.name(index)), folders) or PurePosixPath(f"{index:07}")
        stem = path.with_suffix("").as_posix()
        if labels is not None and path.parts[:1] != (images.classes[labels[index]],):
            stem = f"{images.classes[labels[index]]}/{stem}"
        if stem in seen:
            stem = f"{stem}-{path.suffix.removeprefix('.')}"
        while stem in seen:
            stem = f"{stem}-{index}"
        seen.add(stem)
        names.append(stem)
    return names


def _path_in(path: PurePosixPath, folders: Sequence[Path]) -> PurePosixPath | None:
    """Return a path relative to the folder that it is in, and without the tar, if it is in one; None if it is in none,
    or in a hidden one."""
    inside = next((_inside_tar(path.relative_to(folder)) for folder in folders if path.is_relative_to(folder)), None)
    return inside if inside is not None and all(map(is_visible, inside.parts)) else None


def _inside_tar(path: PurePosixPath) -> PurePosixPath:
    """Return the name of a member without its tar; other paths as they are."""
    tars = [place for place, part in enumerate(path.parts) if part.lower().endswith(".tar")]
    return PurePosixPath(*path.parts[tars[-1] + 1 :]) if tars else path


class _Hashing:
    """A stream that hashes what is written to it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.state = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes) -> int:
        """Write bytes; returns their number."""
        self.state.update(content)
        self.size += len(content)
        written: int = self._stream.write(content)
        return written


def write_tar(path: Path, images: Iterator[tuple[str, bytes, int | None]]) -> dict[str, Any]:
    """Write a tar, which appears once it is complete; the same images give the same bytes.

    images   name with suffix, content and class number, if there is one.
    Returns  name, size in bytes and SHA-256 of the tar.
    """

    def write(stream: Any) -> dict[str, Any]:
        hashing = _Hashing(stream)
        with tarfile.open(fileobj=hashing, mode="w|") as tar:  # type: ignore[call-overload]
            for name, content, label in images:
                _add(tar, name, content)
                if label is not None:
                    _add(tar, PurePosixPath(name).with_suffix(LABEL).as_posix(), str(label).encode())
        return {"name": path.name, "bytes": hashing.size, "sha256": hashing.state.hexdigest()}

    temporary = temporary_name(path)
    facts = write_temporary(temporary, write)
    rename_into_place(temporary, path)
    return facts


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
