"""Classify images with a trained classifier, and write the predictions to a CSV file."""

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.config import PredictConfig
from finetune.saved import Description, load_classifier
from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import IMAGE_COUNTS, DataConfig
from mae_curriculum.data.contents import format_part
from mae_curriculum.data.decode import BrokenImageError
from mae_curriculum.data.parts import list_all
from mae_curriculum.data.sources import Images, Opened, open_alike, open_part, open_source
from mae_curriculum.distributed import World, connect
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.files import rename_into_place, temporary_name
from mae_curriculum.run.folder import check_checkpoint
from mae_curriculum.terminal import format_count, printable, side
from mae_curriculum.weights.names import fingerprint
from mae_curriculum.weights.run_settings import resolve_source

COLUMNS = ("file", "class", "probability", "top5", "error")

TOP = 5
"""Number of the most probable classes that are listed."""

Row = list[str]


def predict(config: PredictConfig) -> int:
    """Classify all images of a source, write the predictions and count them; returns the exit code."""
    check_checkpoint(config.checkpoint)
    with connect() as world:
        net, description = load_classifier(config.checkpoint)
        if len(set(world.gather(fingerprint(net.state_dict())))) > 1:
            raise ConfigError(f"{config.checkpoint} changed while it was read; start again")
        source = resolve_source(config.data, config.checkpoint)
        data = replace(source, mean=config.data.mean or description.mean, std=config.data.std or description.std)
        opened = open_alike(data, world, open_to_classify)
        images = opened.train
        size, count = side(description.image_size), len(description.classes)
        world.log(f"{config.checkpoint}: {description.architecture}, {count} classes, images of {size} px")
        parts = opened.parts
        for line in world.on_main(lambda: format_part("to classify", parts[0]) if parts else []):
            world.log(line)
        inference = Inference(world, data, config.precision, config.evaluation_batch, description.crop)
        broken = write_rows(classify(net.to(world.device), description, images, inference), config.out, world)
        if broken == len(images):
            world.on_main(config.out.unlink)
            reason = why_broken(images, 0, description.channels)
            raise ConfigError(f"data.source: none of the images in {data.source} can be read; the first: {reason}")
        world.print(printable(f"{config.out}: {format_count(len(images) - broken)} images classified"))
        if broken:
            world.print(f"{format_count(broken)} images cannot be read: they have no class, but an error")
    return 0


def open_to_classify(config: DataConfig) -> Opened:
    """Open the validation images of a named source, or all images of a folder, whatever the folders in it mean."""
    if config.source in IMAGE_COUNTS:
        val = open_source(config).val
        assert val is not None, "named sources have validation images"
        return Opened(val, None, None)
    part = list_all(Path(config.source), config.cache)
    return Opened(open_part(part), None, (part, None))


def classify(net: Any, description: Description, images: Images, inference: Inference) -> Iterator[list[Row]]:
    """Yield the rows of the file, in the order of the images, the same on all ranks."""

    def probabilities(pixels: Tensor, _: Tensor) -> Tensor:
        scores: Tensor = net(pixels).float().softmax(dim=1)
        return scores

    size, channels, done = description.image_size, description.channels, 0
    for scores, ids in inference.run(probabilities, images, size=size, channels=channels):
        found = dict(zip(ids.tolist(), scores.cpu(), strict=True))
        end = max(found, default=done - 1) + 1
        yield [_row(images, index, found.get(index), description) for index in range(done, end)]
        done = end
    yield [_row(images, index, None, description) for index in range(done, len(images))]


def _row(images: Images, index: int, scores: Tensor | None, description: Description) -> Row:
    """Return the row of an image, given the probabilities of the classes, or None if it is broken."""
    if scores is None:
        return [images.name(index), "", "", "", why_broken(images, index, description.channels)]
    values, numbers = scores.topk(min(TOP, len(scores)))
    names = [description.classes[number] for number in numbers.tolist()]
    top = {name: round(value, 4) for name, value in zip(names, values.tolist(), strict=True)}
    return [images.name(index), names[0], f"{values[0]:.4f}", json.dumps(top, ensure_ascii=False), ""]


def why_broken(images: Images, index: int, channels: int) -> str:
    """Return why an image cannot be read."""
    try:
        images.read(index, channels)
    except BrokenImageError as error:
        return str(error)
    return "it could not be read at first; start again"


def write_rows(blocks: Iterator[list[Row]], path: Path, world: World) -> int:
    """Write a CSV file on the main process as rows come; it appears once it is complete.

    Returns  the number of rows with an error.
    """
    temporary = temporary_name(path) if world.is_main else Path(os.devnull)
    world.on_main(lambda: path.parent.mkdir(parents=True, exist_ok=True))
    broken = 0
    try:
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(COLUMNS)
            for rows in blocks:
                world.on_main(partial(writer.writerows, rows))
                broken += sum(row[-1] != "" for row in rows)
            if world.is_main:
                stream.flush()
                os.fsync(stream.fileno())
        world.on_main(partial(rename_into_place, temporary, path))
    finally:
        if world.is_main:
            temporary.unlink(missing_ok=True)
    return broken
