"""The order of the training data, and the loader.

The clock numbers the images of all epochs in one sequence; an epoch is a permutation of the data set. The sampler turns
positions of that sequence into requests, which carry all that an image depends on; workers keep no state. So the images
of a step are a function of (seed, step) alone, whatever the number of workers or ranks; a run can start at any step.
"""

import atexit
import multiprocessing
import signal
from collections import ChainMap
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from threading import current_thread, main_thread
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from mae_curriculum.curriculum.batches import micro_batches
from mae_curriculum.curriculum.schedule import Augmentation, Clock, Moment
from mae_curriculum.data.augment import augment, resize_and_crop
from mae_curriculum.data.decode import BrokenImageError
from mae_curriculum.data.sources import Images
from mae_curriculum.run.stop import SIGNALS

T = TypeVar("T")

POLL_SECONDS = 1.0
"""How often a loop that waits for data can look whether it should stop."""

NO_IMAGE = -1
"""Index of a broken image, or of none."""

BROKEN_LIMIT = 0.01
"""Largest share of broken images: with more, something is wrong with the data as a whole, and the run stops."""


class Request(NamedTuple):
    """All that a training image depends on."""

    epoch: int
    image: int
    magnitude: float | None
    min_area: float


class BatchRequest(NamedTuple):
    """A micro-batch that is to be loaded."""

    images: list[Request]
    places: range
    """Places of its images in the global batch."""
    is_last: bool
    """Whether it is this rank's last one of its step."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch: what one pass of the model takes."""

    images: Tensor
    """(b, c, h, w) uint8; of a probe, features (b, p, d) float32."""
    ids: Tensor
    """(b,) indices of the images in the data set, int64."""
    places: range
    """Places of the images in the global batch."""
    is_last: bool
    """Whether this is the rank's last micro-batch of its step."""
    broken: dict[str, str]
    """Names of broken images that others replace, with reasons."""

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory; the loader calls this where a GPU is used."""
        return replace(self, images=self.images.pin_memory(), ids=self.ids.pin_memory())


@dataclass(frozen=True)
class Delay:
    """What a loop gets while its next micro-batch has not arrived."""

    in_hand: list[int]
    """Indices of the images that worker processes are loading."""
    failure: str | None = None
    """Why no more micro-batches will arrive; None if they may."""


@dataclass(frozen=True)
class TrainingImages(Dataset[tuple[Tensor, int, dict[str, str]]]):
    """Load and augment images on request, without state."""

    images: Images
    size: tuple[int, int]
    channels: int
    augmentation: Augmentation
    seed: int

    def __getitem__(self, request: Request) -> tuple[Tensor, int, dict[str, str]]:
        """Return an image (c, h, w) uint8, its index, and the broken images that it replaces, with reasons."""
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
class MicroBatches(Dataset[Batch]):
    """Load whole micro-batches on request."""

    items: Dataset[tuple[Tensor, int, dict[str, str]]]
    """Returns what a `Request` asks for: a tensor, the image's index, broken images with reasons."""
    in_hand: Tensor
    """Index of the image that each worker process is loading, shared by all of them."""

    def __getitem__(self, request: BatchRequest) -> Batch:
        """Return the micro-batch of a request."""
        images, ids, broken = zip(*map(self._load, request.images), strict=True)
        batch = torch.stack(images)
        if get_worker_info() is not None:
            batch.share_memory_()  # type: ignore[no-untyped-call]  # torch would do it later, where a lack of shared memory is lost in silence
        return Batch(batch, torch.tensor(ids), request.places, request.is_last, dict(ChainMap(*broken)))

    def _load(self, request: Request) -> tuple[Tensor, int, dict[str, str]]:
        worker = get_worker_info()
        if worker is None:
            return self.items[request]
        self.in_hand[worker.id] = request.image
        item = self.items[request]
        self.in_hand[worker.id] = NO_IMAGE
        return item


@dataclass(frozen=True)
class RequestSampler(Sampler[BatchRequest]):
    """Iterate over a rank's micro-batches, from a step to the end of the clock."""

    clock: Clock
    first_step: int
    seed: int
    rank: int
    world_size: int
    micro_batch: int | None
    pair_size: int = 1

    def __iter__(self) -> Iterator[BatchRequest]:
        for step in range(self.first_step, self.clock.total_steps):
            moment = self.clock.moment(step)
            span = self.clock.span(step)
            parts = micro_batches(span, self.rank, self.world_size, self.micro_batch, self.pair_size)
            for places in parts:
                images = [self._request(moment, place) for place in places]
                yield BatchRequest(images, places, is_last=places == parts[-1])

    def _request(self, moment: Moment, place: int) -> Request:
        count = self.clock.images_per_epoch
        epoch, position = divmod(moment.first_image + place, count)
        image = int(epoch_order(self.seed, epoch, count)[position])
        return Request(epoch, image, moment.magnitude, moment.min_area)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Return the order of one epoch: a permutation of range(count), a function of seed and epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def training_loader(
    dataset: Dataset[Any], sampler: RequestSampler, *, workers: int, device: torch.device
) -> DataLoader[Batch]:
    """Return a loader of the sampler's micro-batches, in order, for `receive`; worker processes load ahead of time.

    dataset  returns what a `Request` asks for.
    """
    if workers:
        kill_workers_at_exit()
    in_hand = torch.full((workers,), NO_IMAGE).share_memory_()  # type: ignore[no-untyped-call]
    return DataLoader(
        MicroBatches(dataset, in_hand),
        batch_size=None,  # the sampler decides about batches
        sampler=sampler,
        num_workers=workers,
        worker_init_fn=ignore_signals,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
        timeout=POLL_SECONDS if workers else 0,
    )


def receive(loader: DataLoader[Batch]) -> Generator[Batch | Delay]:
    """Iterate over the micro-batches of a loader; one that worker processes delay is preceded by a `Delay` a second."""
    others = multiprocessing.active_children()
    batches = start_loading(loader)
    workers = [process for process in multiprocessing.active_children() if process not in others]
    delayed = False
    try:
        while True:
            try:
                item: Batch | Delay = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                item = _explain(error, loader, workers)
            delayed = isinstance(item, Delay)
            yield item
    finally:
        if delayed:  # torch would wait five seconds for each
            for worker in workers:
                worker.kill()


def start_loading(loader: DataLoader[T]) -> Iterator[T]:
    """Start worker processes, without torch's handler for those that die: it raises an error in whatever code runs."""
    batches = iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", "").startswith("torch.") and current_thread() is main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return batches


def _explain(error: Exception, loader: DataLoader[Batch], workers: Sequence[BaseProcess]) -> Delay:
    """Return why a micro-batch is not there, given an error of torch's loader; raises any other error again."""
    text, dataset = str(error), loader.dataset
    late = "timed out" in text
    if wait([worker.sentinel for worker in workers], timeout=0 if late else 1):  # a dying one resets connections first
        return Delay([], "a process that loads images was killed, perhaps for lack of memory")
    if late and isinstance(dataset, MicroBatches):
        return Delay([index for index in dataset.in_hand.tolist() if index != NO_IMAGE])
    if "shared memory" in text:
        return Delay([], "/dev/shm is full: enlarge it, or lower data.workers")
    raise error


@cache
def kill_workers_at_exit() -> None:
    """Kill worker processes when this process exits: Python would wait endlessly for those that ignore SIGTERM."""

    def kill() -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    atexit.register(kill)


def ignore_signals(_worker: int) -> None:
    """Keep a worker alive when a scheduler signals the whole process group: the run must save first."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class EvaluationImages(Dataset[tuple[Tensor, int]]):
    """Center crops of images, each with its index; a broken image is black and has the index `NO_IMAGE`."""

    images: Images
    size: tuple[int, int]
    channels: int
    crop: float = 1.0
    """Share of the image's shorter side that is kept."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image (c, h, w) uint8 and its index."""
        if index != NO_IMAGE:
            try:
                return resize_and_crop(self.images.read(index, self.channels), self.size, crop=self.crop), index
            except BrokenImageError:
                pass
        return torch.zeros(self.channels, *self.size, dtype=torch.uint8), NO_IMAGE
