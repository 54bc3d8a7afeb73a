"""Embed all images of a source with any checkpoint: one file of names, labels and vectors."""

import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch

from mae_curriculum.commands.config import EmbedConfig
from mae_curriculum.config import ConfigError, plain
from mae_curriculum.data.augment import resize_and_crop
from mae_curriculum.data.stored import choose_spread
from mae_curriculum.data.subsets import Subset
from mae_curriculum.distributed import World, connect, job_end, launcher
from mae_curriculum.evaluation.embedding import (
    Source,
    check_broken,
    check_pool,
    open_source,
    vector_shape,
)
from mae_curriculum.evaluation.embedding_file import Columns, EmbeddingFile
from mae_curriculum.evaluation.encoder import Encoder, encoder_of
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.evaluation.knn import nearest_others
from mae_curriculum.files import is_user_error, write_json
from mae_curriculum.report.contact_sheet import Tile, draw_contact_sheet
from mae_curriculum.run.folder import check_checkpoint
from mae_curriculum.run.lock import hold
from mae_curriculum.run.stop import EXIT_RESUMABLE, Stop, catch_signals
from mae_curriculum.terminal import printable
from mae_curriculum.tracking.progress import Progress
from mae_curriculum.version import describe_version
from mae_curriculum.weights.build import read_together
from mae_curriculum.weights.names import fingerprint
from mae_curriculum.weights.normalization import with_normalization
from mae_curriculum.weights.run_settings import resolve_source

SHEET_ROWS = 12
"""Rows of the contact sheet, spread over the source."""

SHEET_NEIGHBORS = 8
"""Most neighbors in a row of the contact sheet, so that it fits on a screen."""


@dataclass(frozen=True)
class Work:
    """An embedding to be made: the encoder, the images, and the file."""

    config: EmbedConfig
    origin: str
    encoder: Encoder
    source: Source
    file: EmbeddingFile
    world: World

    @property
    def batch_count(self) -> int:
        """The number of batches."""
        return -(-len(self.source.images) // self.config.batch_images)

    def batch(self, number: int) -> range:
        """Return the images of a batch, the same for any number of processes: other batches may give other bits."""
        start = number * self.config.batch_images
        return range(start, min(start + self.config.batch_images, len(self.source.images)))

    def settings(self) -> dict[str, Any]:
        """Return everything that the vectors depend on."""
        config, model = self.config, self.encoder.model
        mean, std = self.encoder.data.statistics(model.channels)
        facts = {
            "weights": fingerprint(model.encoder.state_dict()),
            "heads": model.shape.encoder.heads,
            "image_size": model.image_size,
            "mean": mean,
            "std": std,
            "precision": str(self.world.dtype(config.precision)).removeprefix("torch."),
            "pool": config.pool,
            "block": config.block,
            "neighbors": config.neighbors,
            "batch_images": config.batch_images,
            "images": self.source.images.fingerprint()[:16],
        }
        return {key: plain(value) for key, value in facts.items()}

    def refuse_few(self, count: int) -> None:
        """Raise ConfigError if a number of images is too small for so many neighbors of each."""
        if self.config.neighbors is not None and self.config.neighbors >= count:
            raise ConfigError(f"neighbors is {self.config.neighbors}, but there are only {count} images")


def embed(config: EmbedConfig) -> int:
    """Write the file, or resume; returns the exit code."""
    check_checkpoint(config.checkpoint)
    data = resolve_source(config.data, config.checkpoint)
    with connect() as world, catch_signals(job_end(), launcher=launcher(), exits=True) as stop, ExitStack() as held:
        weights = read_together(config.checkpoint, world, **config.hints)
        data = with_normalization(data, weights, config.checkpoint, world.log)
        encoder = encoder_of(weights, config.checkpoint, data, block=config.block).to(world.device)
        check_pool(encoder, config.pool)
        source = open_source(data, world)
        work = Work(config, weights.origin, encoder, source, EmbeddingFile(config.out), world)
        if world.on_main(partial(start, work, held)):
            if not embed_missing(work, stop):
                return EXIT_RESUMABLE
            with say_how_to_resume():
                world.on_main(partial(finish, work))
            held.close()
        else:
            world.log(f"{config.out} is complete, with the same weights, images and settings; it is left as it is")
        world.on_main(work.file.remove_parts)
    return 0


def start(work: Work, held: ExitStack) -> bool:
    """Take hold of the file's parts; returns False if the file is complete already.

    Raises  ConfigError for a file, or parts, of another embedding, and for too small a disk.
    """
    file, settings, folder = work.file, work.settings(), work.source.folder
    work.refuse_few(len(work.source.images))
    if work.config.neighbors is not None and folder is not None and folder.resolve() in file.path.resolve().parents:
        raise ConfigError(f"out: a contact sheet in {folder} would become one of its images; choose another folder")
    if file.is_finished(settings):
        return False
    file.path.parent.mkdir(parents=True, exist_ok=True)
    refuse_small_disk(work)
    file.parts.mkdir(exist_ok=True)
    held.enter_context(hold(file.lock, on_takeover=lambda _: None))
    file.claim(settings)
    return True


def refuse_small_disk(work: Work) -> None:
    """Raise ConfigError if there is no space for the parts that are missing and for the file."""
    folder, count = work.file.path.parent, len(work.source.images)
    missing = count - sum(len(work.batch(number)) for number in work.file.done())
    needed = 4 * math.prod(vector_shape(work.encoder, work.config.pool)) * (missing + count)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"out: the vectors and their file need {needed / 1e6:,.1f} MB in {folder}, which has {free / 1e6:,.1f} MB "
            "left; free some, or choose another --out"
        )


@contextmanager
def say_how_to_resume() -> Iterator[None]:
    """Turn the error of a full disk, and its kind, into a ConfigError: what is done is kept."""
    try:
        yield
    except OSError as error:
        if not is_user_error(error):
            raise
        what = f"out: {error.filename} cannot be written ({error.strerror})"
        raise ConfigError(f"{what}; once it can, run the same command to resume") from error


def embed_missing(work: Work, stop: Stop) -> bool:
    """Embed the batches that are missing, each rank its share; returns whether all are there.

    Raises  ConfigError on all ranks if one cannot write: the others must not wait for it.
    """
    world = work.world
    missing = world.on_main(lambda: sorted({*range(work.batch_count)} - work.file.done()))
    failure: ConfigError | None = None
    try:
        with say_how_to_resume():
            embed_batches(work, missing[world.rank :: world.world_size], stop)
    except ConfigError as error:
        failure = error
    for first in filter(None, world.gather(failure)):
        raise first
    left = world.on_main(lambda: work.batch_count - len(work.file.done()))
    if left:
        why = next(filter(None, world.gather(stop.reason(needed_seconds=0))), "a signal")
        world.log(f"{why}: stopped before {left} of {work.batch_count} batches; run the same command to resume")
    return not left


def embed_batches(work: Work, numbers: Sequence[int], stop: Stop) -> None:
    """Embed some batches on this process alone, and save each; ends early if asked to stop."""
    config, encoder = work.config, work.encoder
    ids = torch.tensor([index for number in numbers for index in work.batch(number)])
    alone = replace(work.world, rank=0, world_size=1)
    rows = Inference(alone, encoder.data, config.precision, config.batch_images).run(
        lambda pixels, _: encoder.describe(pixels, pool=config.pool),
        Subset(work.source.images, ids.tolist()),
        size=encoder.model.image_size,
        channels=encoder.model.channels,
    )
    progress, done = Progress(total_images=len(ids), done_images=0, shown=work.world.is_main), 0
    for number, (vectors, found) in zip(numbers, rows, strict=True):
        work.file.save(number, vectors, ids[found.cpu()])
        done += len(work.batch(number))
        progress.update(done, f"{done} of {len(ids)} images embedded")
        if stop.reason(needed_seconds=0):
            break
    progress.close()


def finish(work: Work) -> None:
    """Write contact sheet, card and file from the parts."""
    config, file, world = work.config, work.file, work.world
    ids = file.ids()
    broken = work.source.others(ids)
    check_broken(broken, ids)
    work.refuse_few(len(ids))
    if broken:
        names = ", ".join(broken[:5]) + (", ..." if broken[5:] else "")
        world.log(f"{len(broken)} images cannot be read and are left out: {names}", logging.WARNING)
    columns: Columns = {**work.source.columns(ids)}
    shape = (len(ids), *vector_shape(work.encoder, config.pool))
    if config.neighbors is not None:
        similarity, nearest = nearest_others(file.load_normalized(shape, world.device), config.neighbors)
        columns |= {"neighbors": nearest.cpu().numpy(), "similarity": similarity.cpu().numpy()}
        draw_neighbors(work, ids, columns)
    write_json(file.card, card(work, shape, broken))
    file.write(columns, shape)
    beside = [file.card] if config.neighbors is None else [file.card, file.sheet]
    world.print(printable(f"{config.out}: vectors {list(shape)}; beside it: {' '.join(path.name for path in beside)}"))


def card(work: Work, shape: Sequence[int], broken: Sequence[str]) -> dict[str, Any]:
    """Return what a reader of the file wants to know: the weights, how images were prepared, what is missing."""
    return {
        "checkpoint": str(work.config.checkpoint),
        "origin": work.origin,
        "source": work.encoder.data.source,
        "version": describe_version(),
        "shape": list(shape),
        "preparation": "largest center crop, bicubic resizing to image_size, (value / 255 - mean) / std",
        "settings": work.file.settings(),
        "broken": list(broken),
    }


def draw_neighbors(work: Work, ids: Sequence[int], columns: Columns) -> None:
    """Draw images spread over the source, each with those nearest to it."""
    config, model, images = work.config, work.encoder.model, work.source.images
    labels = columns.get("label", [""] * len(ids))

    def tile(place: int, similarity: str) -> Tile:
        pixels = resize_and_crop(images.read(ids[place], model.channels), model.image_size)
        return Tile(pixels, [columns["name"][place], " · ".join(filter(None, [labels[place], similarity]))])

    rows = []
    for query in choose_spread(len(ids), SHEET_ROWS):
        nearest = zip(columns["neighbors"][query], columns["similarity"][query], strict=True)
        tiles = [tile(int(place), f"{similarity:.3f}") for place, similarity in islice(nearest, SHEET_NEIGHBORS)]
        rows.append([tile(query, ""), *tiles])
    title = f"most similar images by {config.pool} of block {config.block}, {config.checkpoint.name} ({work.origin})"
    draw_contact_sheet(work.file.sheet, rows, title=title)
