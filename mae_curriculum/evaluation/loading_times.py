"""How fast images are loaded, part by part, and whether that is enough for the model."""

import io
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import ceil
from statistics import median
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision import transforms

from mae_curriculum.curriculum.clock import Span
from mae_curriculum.data.augment import augment, rand_augment
from mae_curriculum.data.decode import BrokenImageError
from mae_curriculum.data.loader import Batch, TrainingImages, join, receive, training_loader
from mae_curriculum.data.replay_buffer import ReplayedStage
from mae_curriculum.data.requests import Request, RequestSampler
from mae_curriculum.data.sources import EncodedImages, Images
from mae_curriculum.data.stored import choose_spread
from mae_curriculum.evaluation.step_times import time_in_turn
from mae_curriculum.training.step import Training

SAMPLE = 64
"""Images that are measured, evenly spread over the data set."""

WORKER_SECONDS = 3.0
"""Duration of the measurement with worker processes, after a warm-up."""

PARTS = ("read", "decode", "crop", "augment", "batch", "copy")
"""Parts of loading: bytes, pixels, crop with resizing and flip, RandAugment, joining to batches, copy to the device."""


def measure_loading(training: Training[Any], images: Images, original: Images, *, rounds: int) -> list[dict[str, Any]]:
    """Return for each stage the seconds per crop of each of `PARTS`, of the whole, and of MAE's own transform.

    The transform is that of the original images, which may be others than those that are loaded. Also the images/s of
    the run's worker processes, None without any, and the share of a batch that is loaded.
    """
    rows = []
    for span in training.clock.spans:
        seconds = measure_parts(training, images, original, span, rounds=rounds)
        buffer = training.clock.curriculum.stages[span.index].replay_buffer
        new = span.batch_images if buffer is None else ReplayedStage(span, buffer).new_in_step
        workers, loaded_share = training.config.data.workers, new / span.batch_images
        rows.append(
            {
                "stage": span.index + 1,
                "size": list(span.size),
                "loaded_share": loaded_share,
                "seconds": seconds,
                "workers": workers,
                "worker_images_per_second": loaded_share * measure_workers(training, images, span) if workers else None,
            }
        )
    return rows


def measure_parts(
    training: Training[Any], images: Images, original: Images, span: Span, *, rounds: int
) -> dict[str, float | None]:
    """Return the seconds per crop of one stage, measured in turn; None for parts that there are not.

    With `data.repeats`, several crops share what it takes to read and decode an image.
    """
    dataset, moment = dataset_of(training, images), training.clock.moment(span.first_step)
    channels = dataset.channels
    decoded = read_intact(images, choose_spread(len(images), SAMPLE), channels)
    ids, repeats = list(decoded), training.config.data.repeats
    files = ids if original is images else list(read_intact(original, choose_spread(len(original), SAMPLE), channels))
    request = partial(Request, 0, view=moment.view, magnitude=moment.magnitude, min_area=moment.min_area)
    requests = [request(index, crop=number) for index in ids for number in range(repeats)]
    crops = [dataset[request(index)][0] for index in ids]
    batch = join(crops)

    def crop(magnitude: float | None) -> list[Tensor]:
        size = dataset.loaded_size(span.view)
        lanczos = span.view.resize == "lanczos" and size != dataset.size
        change = partial(augment, size=size, min_area=moment.min_area, flip=True, magnitude=magnitude, lanczos=lanczos)
        return [change(image, position=(0, index)) for index, image in decoded.items()]

    actions: dict[str, Callable[[], object]] = {
        "decoded": lambda: [images.read(index, channels) for index in ids],
        "crop": partial(crop, None),
        "batch": lambda: join(crops),
        "copy": lambda: training.world.to_device(batch),
        "whole": lambda: join([dataset[request][0] for request in requests]),
    }
    if isinstance(images, EncodedImages):
        actions["read"] = lambda: [images.content(index) for index in ids]
    if isinstance(original, EncodedImages) and channels == 3:
        transform = mae_transform(span.size, moment.min_area, moment.magnitude)
        actions["pil"] = lambda: [transform_file(original.content(index), transform) for index in files]
    if moment.magnitude is not None:
        actions["augmented"] = partial(crop, moment.magnitude)
    measured = time_in_turn(list(actions.values()), training.world, rounds=rounds)
    counts = dict.fromkeys(actions, len(ids)) | dict.fromkeys(("decoded", "read", "whole"), len(requests))
    counts["pil"] = len(files)
    seconds = {name: median(each) / counts[name] for name, each in zip(actions, measured, strict=True)}
    read = seconds.get("read")
    return {
        "read": read,
        "decode": max(0.0, seconds["decoded"] - (read or 0.0)),
        "crop": seconds["crop"],
        "augment": max(0.0, seconds["augmented"] - seconds["crop"]) if "augmented" in seconds else None,
        "batch": seconds["batch"],
        "copy": seconds["copy"],
        "whole": seconds["whole"],
        "pil": seconds.get("pil"),
    }


def read_intact(images: Images, ids: Sequence[int], channels: int) -> dict[int, Tensor]:
    """Read images, (c, h, w) uint8 by their indices; broken ones are left out."""
    pixels = {}
    for index in ids:
        with suppress(BrokenImageError):
            pixels[index] = images.read(index, channels)
    return pixels


def dataset_of(training: Training[Any], images: Images) -> TrainingImages:
    """Return the data set of a pretraining with these images."""
    assert isinstance(training.dataset, TrainingImages)
    return replace(training.dataset, images=images)


def mae_transform(size: tuple[int, int], min_area: float, magnitude: float | None) -> Callable[[Image.Image], Tensor]:
    """Return the training transform of facebookresearch/mae for a size (height, width), maybe with RandAugment."""
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [
        transforms.RandomResizedCrop(size, scale=(min_area, 1.0), interpolation=bicubic),
        transforms.RandomHorizontalFlip(),
        *([] if magnitude is None else [rand_augment(magnitude)]),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    composed: Callable[[Image.Image], Tensor] = transforms.Compose(steps)
    return composed


def transform_file(content: bytes, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    """Decode an image file with Pillow and transform it."""
    return transform(Image.open(io.BytesIO(content)).convert("RGB"))


def measure_workers(training: Training[Any], images: Images, span: Span) -> float:
    """Return the images/s that the run gets in a stage, with what its worker processes load and its replay buffer."""
    config, clock = training.config, training.clock
    data, dataset = config.data, dataset_of(training, images)
    sampler = RequestSampler(
        clock, span.first_step, config.seed, 0, 1, SAMPLE, repeats=data.repeats, window=data.shuffle_window
    )
    workers = data.workers
    loader = training_loader(dataset, sampler, workers=workers, device=training.world.device)
    loaded, start = 0, float("inf")
    for number, batch in enumerate(item for item in receive(loader) if isinstance(item, Batch)):
        if number >= 4 * workers + 1:  # what they had prepared while the first one was waited for does not count
            loaded += len(batch.ids)
            if time.monotonic() - start > WORKER_SECONDS:
                break
        else:
            start = time.monotonic()
    return loaded / (time.monotonic() - start)


def describe_limits(rows: Sequence[dict[str, Any]], model_rates: Sequence[float]) -> list[str]:
    """Return for each stage in words whether loading is fast enough for the model, and what would make it so.

    rows         of `measure_loading`.
    model_rates  images/s that the model trains on, by stage.
    """
    return [_describe_limit(row, rate) for row, rate in zip(rows, model_rates, strict=True)]


def _describe_limit(row: dict[str, Any], model_rate: float) -> str:
    needed, core_rate = model_rate * row["loaded_share"], 1 / row["seconds"]["whole"]
    loaded = row["worker_images_per_second"] or core_rate
    who = f"{row['workers']} workers load" if row["workers"] else "the training process loads"
    text = f"stage {row['stage']}: {who} {loaded:,.0f} images/s, the model needs {needed:,.0f}/s: "
    if row["workers"] and loaded >= needed:
        return text + "enough"
    workers = ceil(needed / core_rate)
    slowest = max(PARTS, key=lambda part: row["seconds"][part] or 0.0)
    return text + f"data.workers {workers} would do, with as many free cores; most of the time goes to {HINTS[slowest]}"


HINTS = {
    "read": "reading files: `pack` them, or copy them to a local disk",
    "decode": "decoding: `pack` makes large images smaller, and with --format npy decodes them beforehand; "
    "data.repeats or a replay_buffer decode fewer",
    "crop": "cropping and resizing: data.oversample, or resize bicubic, make smaller crops",
    "augment": "RandAugment: MAE works better without it",
    "batch": "joining images to batches",
    "copy": "the transfer to the device",
}
"""Where loading can be slow, and what to do."""
