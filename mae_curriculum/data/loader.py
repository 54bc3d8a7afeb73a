"""Load and augment the images that are requested, in worker processes, which keep no state."""

import atexit
import multiprocessing
import signal
from collections import ChainMap
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import ceil
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from threading import current_thread, main_thread
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from mae_curriculum.curriculum.clock import View
from mae_curriculum.curriculum.config import Augmentation
from mae_curriculum.data.augment import augment, resize_and_crop
from mae_curriculum.data.decode import BrokenImageError
from mae_curriculum.data.replay_buffer import Origin, Replayed, take_missing_
from mae_curriculum.data.requests import BatchRequest, Request, RequestSampler
from mae_curriculum.data.sources import Images
from mae_curriculum.run.stop import SIGNALS

T = TypeVar("T")

POLL_SECONDS = 1.0
"""How often a loop that waits for data can look whether it should stop."""

NO_IMAGE = -1
"""Index of a broken image, or of none."""

BROKEN_LIMIT = 0.01
"""Largest share of broken images: with more, something is wrong with the data as a whole, and the run stops."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch: what one pass of the model takes."""

    images: Tensor
    """(b, c, h, w) uint8, of the `loaded_size` of the view, channels last in memory if there are several; of a
    probe, features (b, k, p, d) float32 of k blocks."""
    ids: Tensor
    """(b,) indices of the images in the data set, int64."""
    places: range
    """Places of the images in the global batch."""
    is_last: bool
    """Whether this is the rank's last micro-batch of its step."""
    broken: dict[str, str]
    """Names of broken images that others replace, with reasons."""
    replayed: Replayed | None = None
    """What the micro-batch consists of if `images` and `ids` are only what the replay buffer lacked; None once they
    are complete."""

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


def loaded_size(view: View, size: tuple[int, int], oversample: float | None) -> tuple[int, int]:
    """Return the size (height, width) at which images are loaded for a view, pixels; the device does the rest.

    size        the full size.
    oversample  `data.oversample`: with it, what the Fourier crop is given is smaller than the full size.
    """
    if view.resize != "fourier":
        return view.size
    if oversample is None:
        return size
    height, width = (min(side, ceil(oversample * small)) for side, small in zip(size, view.size, strict=True))
    return height, width


@dataclass(frozen=True)
class TrainingImages(Dataset[tuple[Tensor, int, dict[str, str]]]):
    """Load and augment images on request."""

    images: Images
    size: tuple[int, int]
    """The full size."""
    channels: int
    augmentation: Augmentation
    seed: int
    oversample: float | None = None
    """`data.oversample`."""
    whole: bool = False
    """Load images at the full size, whatever the view."""
    _last: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __getitem__(self, request: Request) -> tuple[Tensor, int, dict[str, str]]:
        """Return an image (c, h, w) uint8, its index, and the broken images that it replaces, with reasons.

        Where so many in a row are broken that the run will stop, the image is black.
        """
        size = self.loaded_size(request.view)
        broken: dict[str, str] = {}
        for attempt in range(int(len(self.images) * BROKEN_LIMIT) + 2):  # one more would be over the limit
            index = (request.image + attempt) % len(self.images)
            try:
                image = self._read(index)
            except BrokenImageError as error:
                broken[self.images.name(index)] = str(error)
                continue
            image = augment(
                image,
                size,
                min_area=request.min_area,
                lanczos=request.view.resize == "lanczos" and size != self.size,
                flip=self.augmentation.flip,
                erasing=self.augmentation.erasing,
                magnitude=request.magnitude,
                position=(self.seed, request.epoch, request.image, request.crop),
            )
            return image, index, broken
        return torch.zeros(self.channels, *size, dtype=torch.uint8), request.image, broken

    def loaded_size(self, view: View) -> tuple[int, int]:
        """Return the size (height, width) of the images of a view, pixels."""
        return self.size if self.whole else loaded_size(view, self.size, self.oversample)

    def _read(self, index: int) -> Tensor:
        """Decode an image; the last one is kept, as its next crop may follow."""
        if index not in self._last:
            self._last.clear()
            self._last[index] = self.images.read(index, self.channels)
        return self._last[index]


def join(images: Sequence[Tensor]) -> Tensor:
    """Return tensors of one shape as a batch; images (c, h, w) uint8 of several channels stay channels last in memory,
    as resizing leaves them: copying them is then several times as fast.

    A worker joins them in shared memory: if torch moved them there later, a lack of it would be lost in silence.
    """
    if images[0].dtype != torch.uint8 or len(images[0]) == 1:
        rows: Tensor = default_collate(list(images))
        return rows
    pixels: Tensor = default_collate([image.permute(1, 2, 0) for image in images])
    return pixels.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class MicroBatches(Dataset[Batch]):
    """Load whole micro-batches on request."""

    items: Dataset[tuple[Tensor, int, dict[str, str]]]
    """Returns what a `Request` asks for: a tensor, the image's index, broken images with reasons."""
    in_hand: Tensor
    """Index of the image that each worker process is loading, shared by all of them."""

    def __getitem__(self, request: BatchRequest) -> Batch:
        """Return the micro-batch of a request."""
        items = list(map(self._load, request.images))
        images, ids, broken = zip(*items, strict=True) if items else ((torch.empty(0),), (), ())
        _, places, is_last, replayed = request
        return Batch(join(images), torch.tensor(ids), places, is_last, dict(ChainMap(*broken)), replayed)

    def _load(self, request: Request) -> tuple[Tensor, int, dict[str, str]]:
        worker = get_worker_info()
        if worker is None:
            return self.items[request]
        self.in_hand[worker.id] = request.image
        item = self.items[request]
        self.in_hand[worker.id] = NO_IMAGE
        return item


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
    """Iterate over the micro-batches of a loader; one that worker processes delay is preceded by a `Delay` a second.

    Those of a stage with a replay buffer are completed from it.
    """
    others = multiprocessing.active_children()
    batches = start_loading(loader)
    workers = [process for process in multiprocessing.active_children() if process not in others]
    delayed = False
    buffer: dict[Origin, tuple[Tensor, Tensor]] = {}
    try:
        while True:
            try:
                item: Batch | Delay = complete_(next(batches), buffer)
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


def complete_(batch: Batch, buffer: dict[Origin, tuple[Tensor, Tensor]]) -> Batch:
    """Return a micro-batch with all its crops, some of them from the replay buffer, to which the loaded ones are added.

    buffer  crops (c, h, w) and ids.
    """
    if batch.replayed is None:
        buffer.clear()
        return batch
    own_memory = batch.images.clone()  # /dev/shm is small
    loaded = zip(own_memory[: len(batch.ids)], batch.ids, strict=True)
    buffer |= zip(take_missing_(buffer, batch.replayed), loaded, strict=True)
    images, ids = zip(*(buffer[origin] for origin in batch.replayed.origins), strict=True)
    whole = replace(batch, images=join(images), ids=torch.stack(ids), replayed=None)
    return whole.pin_memory() if batch.images.is_pinned() else whole


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
