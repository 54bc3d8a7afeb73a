"""The file of an embedding, and its parts while the work lasts.

    photos.npz            names, labels, splits and vectors; it is complete as soon as it is there
    photos.npz.json       the card: weights, size, normalization and settings; the images that cannot be read
    photos.npz.png        contact sheet of nearest neighbors, if they were asked for
    photos.npz.parts/     the card's settings, and one file for each batch that is done; removed at the end

The card is a file of its own, so that all formats have the same, and any program and reader can open it.
"""

import json
import math
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mae_curriculum.config import ConfigError, leaves
from mae_curriculum.files import rename_into_place, temporary_name, write_atomic, write_json, write_temporary
from mae_curriculum.run.folder import read_facts

Columns = dict[str, list[str] | NDArray[Any]]
"""What is known of each image: texts, or numbers (n, ...)."""


@dataclass(frozen=True)
class Table:
    """What a file holds: a row per image."""

    columns: Columns
    shape: tuple[int, ...]
    """Of all vectors: (n, d), or of tokens (n, patches, d)."""
    vectors: Callable[[], Iterator[Tensor]]
    """Yields them in order, some at a time, so that they are never in memory all at once."""


@dataclass(frozen=True)
class EmbeddingFile:
    """The file of an embedding, with its card, its contact sheet and its parts."""

    path: Path

    @property
    def card(self) -> Path:
        """The file that says what the vectors are."""
        return self._beside(".json")

    @property
    def sheet(self) -> Path:
        """The contact sheet."""
        return self._beside(".png")

    @property
    def parts(self) -> Path:
        """The folder of the parts."""
        return self._beside(".parts")

    @property
    def lock(self) -> Path:
        """The file that names the job working on the parts."""
        return self.parts / "lock.json"

    def is_finished(self, settings: dict[str, Any]) -> bool:
        """Return whether the file is there; raises ConfigError if it has other settings, or no card."""
        if self.path.exists():
            _refuse_others(self.path, self.card, settings)
        return self.path.exists()

    def claim(self, settings: dict[str, Any]) -> None:
        """Write the settings beside the parts; raises ConfigError if there are parts with other ones."""
        if self.done():
            _refuse_others(self.parts, self._parts_card, settings)
        write_json(self._parts_card, {"settings": settings})

    def settings(self) -> dict[str, Any]:
        """Return the settings that the parts were made with."""
        settings: dict[str, Any] = read_facts(self._parts_card)["settings"]
        return settings

    def done(self) -> set[int]:
        """Return the numbers of the parts that are there."""
        return {int(path.stem) for path in self.parts.glob("*.safetensors")}

    def save(self, number: int, vectors: Tensor, ids: Tensor) -> None:
        """Write a part: vectors (m, ...), and the numbers (m,) of their images."""
        write_atomic(self._part(number), save({"vectors": vectors.cpu().contiguous(), "ids": ids}))

    def ids(self) -> list[int]:
        """Return the numbers of the images of all parts, in order."""
        return [index for number in sorted(self.done()) for index in self._read(number, "ids").tolist()]

    def vectors(self) -> Iterator[Tensor]:
        """Yield the vectors (m, ...) of each part that has some, in order."""
        for number in sorted(self.done()):
            vectors = self._read(number, "vectors")
            if len(vectors):
                yield vectors

    def load_normalized(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return all vectors (n, d), one per image, scaled to norm 1."""
        loaded, start = torch.empty(shape, device=device), 0
        for part in self.vectors():
            loaded[start : start + len(part)] = torch.nn.functional.normalize(part, dim=1)
            start += len(part)
        return loaded

    def write(self, columns: Columns, shape: tuple[int, ...]) -> None:
        """Write the file from what is known of each image and from the parts; `shape` is that of all vectors."""
        write, table = WRITERS[self.path.suffix], Table(columns, shape, self.vectors)
        temporary = temporary_name(self.path)
        try:
            write_temporary(temporary, lambda stream: write(stream, table))
            rename_into_place(temporary, self.path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def remove_parts(self) -> None:
        """Remove the parts, if there are some."""
        shutil.rmtree(self.parts, ignore_errors=True)

    @property
    def _parts_card(self) -> Path:
        return self.parts / "card.json"

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _part(self, number: int) -> Path:
        return self.parts / f"{number:08d}.safetensors"

    def _read(self, number: int, key: str) -> Tensor:
        with safe_open(self._part(number), "pt") as part:
            tensor: Tensor = part.get_tensor(key)
        return tensor


def _refuse_others(path: Path, card: Path, settings: dict[str, Any]) -> None:
    """Raise ConfigError if the card of what is in `path` is missing, or says other settings."""
    if not card.exists():
        raise ConfigError(f"out: {path} exists, and is no embedding ({card} is missing); choose another --out")
    theirs = dict(leaves(read_facts(card).get("settings", {})))
    changed = [f"{key}: {theirs.get(key)} -> {own}" for key, own in leaves(settings) if theirs.get(key) != own]
    if changed:
        raise ConfigError(
            f"out: {path} belongs to an embedding with other settings ({'; '.join(changed)}); "
            "choose another --out, or remove it"
        )


def _write_npz(stream: IO[bytes], table: Table) -> None:
    """Write NumPy's archive of arrays."""
    with zipfile.ZipFile(stream, "w") as archive:
        for name, values in table.columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(values), allow_pickle=False)
        with archive.open("vector.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": table.shape}
            np.lib.format.write_array_header_1_0(member, header)
            for part in table.vectors():
                member.write(part.numpy().tobytes())


SAFETENSORS = {"int64": "I64", "float32": "F32", "uint8": "U8"}
"""The format's names of types."""


def _write_safetensors(stream: IO[bytes], table: Table) -> None:
    """Write a safetensors file; the library would need all vectors in memory.

    Texts, which the format lacks, become their bytes in UTF-8, with a zero byte between two.
    """
    arrays = {name: _as_numbers(values) for name, values in table.columns.items()}
    kinds = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    kinds["vector"] = (np.dtype(np.float32), table.shape)
    # large items first, so that every array starts at a multiple of the size of its items
    ordered = sorted(kinds.items(), key=lambda kind: kind[1][0].itemsize, reverse=True)
    header, start = {}, 0
    for name, (dtype, shape) in ordered:
        stop = start + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": SAFETENSORS[dtype.name], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
    for name, _ in ordered:
        for part in table.vectors() if name == "vector" else (arrays[name],):
            stream.write(np.asarray(part).tobytes())


def _as_numbers(values: list[str] | NDArray[Any]) -> NDArray[Any]:
    """Return texts as their bytes, numbers as they are."""
    return np.frombuffer("\0".join(values).encode(), np.uint8) if isinstance(values, list) else values


def _write_parquet(stream: IO[bytes], table: Table) -> None:
    """Write a Parquet file, one group of rows for each part; vectors are lists of a fixed size."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups = _row_groups(table)
    first = next(groups)
    with pq.ParquetWriter(stream, pa.table(first).schema) as writer:
        for group in chain([first], groups):
            writer.write_table(pa.table(group))


def _row_groups(table: Table) -> Iterator[dict[str, Any]]:
    """Yield the columns of a table, as arrays of Arrow, for the rows of each part."""
    start = 0
    for part in table.vectors():
        rows = slice(start, start + len(part))
        columns = {name: _as_arrow(values[rows]) for name, values in table.columns.items()}
        yield columns | {"vector": _as_arrow(part.numpy())}
        start += len(part)


def _as_arrow(values: list[str] | NDArray[Any]) -> Any:
    """Return texts, or numbers (n, ...) as lists of a fixed size, as an array of Arrow."""
    import pyarrow as pa

    if isinstance(values, list):
        return pa.array(values)
    array = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


WRITERS: dict[str, Callable[[IO[bytes], Table], None]] = {
    ".npz": _write_npz,
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
}
"""By the suffix of a file: how to write it."""
