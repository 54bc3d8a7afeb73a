"""The training data's order, and the loader that brings images to the training loop.

The clock's stream of images is one line of positions over all epochs; an epoch is a permutation of the data set. The
sampler turns positions into requests, which carry all that an image's making depends on; workers keep no state. So the
images of a step are a function of (seed, step) alone, whatever the number of workers or ranks, and a run may start
anywhere.
"""

import atexit
import multiprocessing
import signal
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mae_curriculum.curriculum.schedule import Augmentation, Clock, Span, split
from mae_curriculum.data.augment import augment, resize_and_crop
from mae_curriculum.data.decode import BrokenImageError
from mae_curriculum.data.sources import Images
from mae_curriculum.run.stop import SIGNALS

BROKEN_LIMIT = 0.01
"""A run in which a larger share of the images is broken stops: something is wrong with the data as a whole."""


class Request(NamedTuple):
    """All that the making of one training image depends on."""

    epoch: int
    image: int
    magnitude: float | None
    min_area: float


class Batch(NamedTuple):
    """What one pass of the model takes."""

    images: Tensor
    """(b, c, h, w) uint8."""
    ids: Tensor
    """(b,) the images' indices in the data set, int64."""
    broken: dict[str, str]
    """Names of the broken images that others stand for, with reasons."""


@dataclass(frozen=True)
class TrainingImages(Dataset[tuple[Tensor, int, dict[str, str]]]):
    """Make augmented images on request, without state."""

    images: Images
    size: tuple[int, int]
    channels: int
    augmentation: Augmentation
    seed: int

    def __getitem__(self, request: Request) -> tuple[Tensor, int, dict[str, str]]:
        """Make an image (c, h, w) uint8, and tell its index; a broken one is replaced by the next that is not."""
        broken: dict[str, str] = {}
        for attempt in range(int(len(self.images) * BROKEN_LIMIT) + 2):  # one more would be over the limit
            index = (request.image + attempt) % len(self.images)
            try:
                image = self.images.read(index, self.channels)
            except BrokenImageError as error:
                broken[self.images.name(index)] = str(error)
                continue
            image = augment(
                image,
                self.size,
                min_area=request.min_area,
                flip=self.augmentation.flip,
                erasing=self.augmentation.erasing,
                magnitude=request.magnitude,
                position=(self.seed, request.epoch, request.image),
            )
            return image, index, broken
        return torch.zeros(self.channels, *self.size, dtype=torch.uint8), request.image, broken


@dataclass(frozen=True)
class RequestSampler(Sampler[list[Request]]):
    """Walk the clock from a step to its end; yield the requests of each of this rank's micro-batches."""

    clock: Clock
    first_step: int
    seed: int
    rank: int
    world_size: int
    micro_batch: int | None
    unit: int = 1

    def __iter__(self) -> Iterator[list[Request]]:
        for step in range(self.first_step, self.clock.total_steps):
            moment = self.clock.moment(step)
            span = self.clock.span(step)
            for places in micro_batches(span, self.rank, self.world_size, self.micro_batch, self.unit):
                yield [self._request(moment.first_image + place, moment.magnitude, moment.min_area) for place in places]

    def _request(self, position: int, magnitude: float | None, min_area: float) -> Request:
        epoch, place = divmod(position, self.clock.images_per_epoch)
        return Request(
            epoch, int(epoch_order(self.seed, epoch, self.clock.images_per_epoch)[place]), magnitude, min_area
        )


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Shuffle the data set for one epoch: a permutation of range(count), a function of seed and epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def micro_batches(span: Span, rank: int, world_size: int, micro_batch: int | None, unit: int = 1) -> list[range]:
    """Cut a rank's part of a global batch into what fits its device.

    micro_batch  most images at once at the full size, or None for no limit; smaller images fit in greater numbers.
    unit         neighbours that stay together; the batch is a multiple of it.
    Returns      places in the global batch, in order; the parts differ by one unit at most.
    """
    local = split(span.batch_images // unit, world_size, rank)
    most = len(local) if micro_batch is None else max(1, int(micro_batch / span.area_share) // unit)
    count = -(-len(local) // most)
    parts = [split(len(local), count, index) for index in range(count)]
    return [range((local.start + part.start) * unit, (local.start + part.stop) * unit) for part in parts]


def training_loader(
    dataset: Dataset[Any], sampler: RequestSampler, *, workers: int, device: torch.device
) -> DataLoader[Batch]:
    """Load the sampler's micro-batches in order, ahead of time if there are workers."""
    if workers:
        kill_workers_at_exit()
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=ignore_signals,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )


@cache
def kill_workers_at_exit() -> None:
    """Let no worker outlive an error: Python would ask them to end by SIGTERM, and wait for those that ignore it."""

    def kill() -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    atexit.register(kill)


def ignore_signals(_worker: int) -> None:
    """Keep a worker alive when a signal goes to the whole group, as a scheduler's does: the run must save first."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _collate(items: list[tuple[Tensor, int, dict[str, str]]]) -> Batch:
    images, ids, broken = zip(*items, strict=True)
    return Batch(torch.stack(images), torch.tensor(ids), dict(ChainMap(*broken)))


NO_IMAGE = -1
"""Index that stands for a broken image, or for none."""


@dataclass(frozen=True)
class EvaluationImages(Dataset[tuple[Tensor, int]]):
    """Images cut to shape from their middle, each with its index; a broken one comes black, with `NO_IMAGE`."""

    images: Images
    size: tuple[int, int]
    channels: int
    crop: float = 1.0
    """Share of the image's shorter side that is kept."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Make the image (c, h, w) uint8."""
        if index != NO_IMAGE:
            try:
                return resize_and_crop(self.images.read(index, self.channels), self.size, crop=self.crop), index
            except BrokenImageError:
                pass
        return torch.zeros(self.channels, *self.size, dtype=torch.uint8), NO_IMAGE
