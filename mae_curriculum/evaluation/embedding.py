"""Embed all images of a source: their vectors, and what is known of each."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.sources import open_together
from mae_curriculum.data.subsets import Joined
from mae_curriculum.distributed import World
from mae_curriculum.evaluation.config import Pool
from mae_curriculum.evaluation.encoder import Encoder
from mae_curriculum.evaluation.features import Inference

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Embeddings:
    """The vectors of the images of a source, training images first; images that cannot be read are left out."""

    names: list[str]
    """Paths relative to the folder of the source."""
    labels: list[str] | None
    """Names of the classes; None without classes."""
    splits: list[str] | None
    """`train` or `val`; None if the source has no validation images."""
    vectors: Tensor
    """(n, d), or of tokens (n, patches, d), float32, on the CPU."""
    broken: list[str]
    """Names of the images that cannot be read."""


@dataclass(frozen=True)
class Source:
    """All images of a source, and what is known of each."""

    images: Joined
    folder: Path | None

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return names of images, relative to the folder; bytes that are no text are spelled out."""
        names = [self.images.name(index) for index in ids]
        if self.folder is not None:
            names = [os.path.relpath(name, self.folder) for name in names]
        return [name.encode(errors="backslashreplace").decode() for name in names]

    def columns(self, ids: Sequence[int]) -> dict[str, list[str]]:
        """Return for some images the name, the label if there are classes, and the split if there are two."""
        columns = {"name": self.names(ids)}
        labels, classes = self.images.labels, self.images.classes
        if labels is not None:
            columns["label"] = [classes[labels[index]] for index in ids]
        if len(self.images.parts) > 1:
            columns["split"] = [SPLITS[self.images.find(index)[0]] for index in ids]
        return columns

    def others(self, ids: Sequence[int]) -> list[str]:
        """Return the names of all images but these."""
        return self.names(sorted({*range(len(self.images))} - {*ids}))


def open_source(data: DataConfig, world: World) -> Source:
    """Open all images of a source, as `open_together` does."""
    train, val, _ = open_together(data, world)
    return Source(Joined([train] if val is None else [train, val]), data.folder)


def embed(
    encoder: Encoder, source: str | Path, *, pool: Pool = "avg", batch_images: int = 64, workers: int = 0
) -> Embeddings:
    """Compute the features of all images of a source, each resized and cropped to the encoder's image size.

    source        a folder of images, with or without train/ and val/, or the name of a data set.
    pool          that of `Encoder.features`.
    batch_images  images encoded at once.
    workers       processes that decode images; 0 decodes in this one.
    Raises        ConfigError if there are no images that can be read, or if the encoder lacks the pool.
    """
    world = World(0, 1, next(encoder.parameters()).device)
    data = replace(encoder.data, source=str(source), image_count=None, workers=workers)
    check_pool(encoder, pool)
    opened = open_source(data, world)
    inference = Inference(world, data, "float32", batch_images)
    size, channels = encoder.model.image_size, encoder.model.channels
    vectors = torch.empty(len(opened.images), *vector_shape(encoder, pool))
    found: list[int] = []
    rows_and_ids = inference.run(
        lambda pixels, _: encoder.describe(pixels, pool=pool), opened.images, size=size, channels=channels
    )
    for rows, ids in rows_and_ids:
        vectors[len(found) : len(found) + len(ids)] = rows
        found += ids.tolist()
    broken = opened.others(found)
    check_broken(broken, found)
    columns = opened.columns(found)
    return Embeddings(columns["name"], columns.get("label"), columns.get("split"), vectors[: len(found)], broken)


def vector_shape(encoder: Encoder, pool: Pool) -> tuple[int, ...]:
    """Return the shape of what an encoder says of an image: (d,), or of tokens (patches, d)."""
    width = encoder.model.encoder.embed_dim
    return (math.prod(encoder.model.full_grid), width) if pool == "tokens" else (width,)


def check_pool(encoder: Encoder, pool: Pool) -> None:
    """Raise ConfigError if an encoder lacks a pool."""
    if pool not in encoder.pools:
        raise ConfigError(f"pool: this encoder has no {pool}, only {', '.join(encoder.pools)}")


def check_broken(broken: Sequence[str], found: Sequence[int]) -> None:
    """Raise ConfigError if no image can be read."""
    if not found:
        raise ConfigError(f"data.source: none of the {len(broken)} images can be read, such as {broken[0]}")
