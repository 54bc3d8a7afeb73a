"""Run a model over a dataset, each image exactly once across all processes; cache features on disk."""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mae_curriculum.curriculum.batches import split
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.loader import (
    NO_IMAGE,
    EvaluationImages,
    ignore_signals,
    kill_workers_at_exit,
    start_loading,
)
from mae_curriculum.data.preprocess import normalize
from mae_curriculum.data.sources import Images
from mae_curriculum.distributed import World
from mae_curriculum.files import remove_stale
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.precision import Precision
from mae_curriculum.weights.names import fingerprint


@dataclass(frozen=True)
class Inference:
    """How to run a model over images without training it."""

    world: World
    data: DataConfig
    precision: Precision
    batch_images: int
    """Images per batch on each device."""
    crop: float = 1.0
    """Share of the shorter side that the center crop keeps."""
    check: Callable[[], object] = lambda: None
    """Called for each batch on all ranks; may raise an exception to stop."""

    def run(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        images: Images,
        *,
        size: tuple[int, int],
        channels: int,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Apply a function to all images, each rank to its share of every block.

        function  maps normalized images (b, c, h, w) of this size (height, width), and their indices (b,), to rows
                  (b, ...); the index of a broken image is `NO_IMAGE`.
        Yields    rows (m, ...) float32 and the indices of their images (m,), in order, the same on all ranks; broken
                  images are left out.
        """
        world = self.world
        mean, std = self.data.statistics(channels)
        block = self.batch_images * world.world_size
        batches = []
        for start in range(0, len(images), block):
            count = min(block, len(images) - start)
            own = [start + place for place in split(count, world.world_size, world.rank)]
            batches.append(own or [NO_IMAGE])  # all ranks need as many batches
        if self.data.workers:
            kill_workers_at_exit()
        loader: DataLoader[Any] = DataLoader(
            EvaluationImages(images, size, channels, self.crop),
            batch_sampler=batches,
            num_workers=self.data.workers,
            worker_init_fn=ignore_signals,
            pin_memory=world.device.type == "cuda",
        )
        for pixels, index in start_loading(loader):
            self.check()
            with torch.inference_mode(), world.autocast(self.precision):
                rows = function(normalize(world.to_device(pixels), mean, std), index).float()
            index = index.to(world.device)
            usable = index != NO_IMAGE
            yield world.gather_rows(rows[usable]), world.gather_rows(index[usable])

    def encode(self, model: MaskedAutoencoder, images: Images) -> tuple[Tensor, Tensor]:
        """Return the features (n, p, d) of all images, one per pooling, and the indices (n,) of their images."""
        model.eval()
        size, channels = model.image_size, model.channels
        parts = list(self.run(lambda pixels, _: model.features(pixels), images, size=size, channels=channels))
        model.train()
        rows, indices = zip(*parts, strict=True)
        return torch.cat(rows), torch.cat(indices)

    def cached(self, model: MaskedAutoencoder, images: Images, blocks: Sequence[int]) -> list[NDArray[np.float32]]:
        """Return the features of all images after each of some blocks, memory-mapped: (n, p, d) float32 of each.

        Those of broken images are NaN. They are computed once per weights, images and settings, all blocks that are
        missing in one pass, and kept in `data.cache`/.features, which all processes must share: the main process
        writes, all read.
        """
        stem = self.world.on_main(partial(self._fingerprint, model, images))  # local copies differ in their times
        paths = {block: self.data.cache / ".features" / f"{stem}-block-{block}.npy" for block in sorted(blocks)}
        missing = self.world.on_main(lambda: [block for block, path in paths.items() if not path.exists()])
        if missing:
            self._fill(model, images, {block: paths[block] for block in missing})
        return [np.load(paths[block], mmap_mode="r") for block in blocks]

    def _fill(self, model: MaskedAutoencoder, images: Images, paths: dict[int, Path]) -> None:
        """Write the features after each of some blocks; the files appear once they are complete."""
        world = self.world
        # another job may write the same
        temporary = [path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp") for path in paths.values()]
        shape = (len(images), len(model.pools), model.encoder.embed_dim)
        world.on_main(lambda: _allocate(temporary, shape))
        stores = [np.load(path, mmap_mode="r+") for path in temporary if world.is_main]
        model.eval()

        def features(pixels: Tensor, _: Tensor) -> Tensor:
            return model.features_by_block(pixels, blocks=list(paths))

        try:
            for rows, indices in self.run(features, images, size=model.image_size, channels=model.channels):
                for number, store in enumerate(stores):
                    store[indices.cpu().numpy()] = rows[:, number].cpu().numpy()
        except BaseException:
            for path in temporary:
                path.unlink(missing_ok=True)
            raise
        model.train()
        for store in stores:
            store.flush()
        for path, final in zip(temporary, paths.values(), strict=True):
            world.on_main(partial(path.replace, final))

    def _fingerprint(self, model: MaskedAutoencoder, images: Images) -> str:
        """Return a fingerprint of everything that features depend on: weights, network, images, settings."""
        facts = [
            fingerprint(model.encoder.state_dict()),
            str(model.encoder),
            [block.attn.num_heads for block in model.encoder.blocks],
            model.learned_positions,
            model.class_tokens,
            str(self.world.dtype(self.precision)),
            self.crop,
            model.image_size,
            self.data.statistics(model.channels),
            images.fingerprint(),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _allocate(paths: Sequence[Path], shape: tuple[int, ...]) -> None:
    """Create arrays full of NaN on disk; raises OSError now, not at their use, if there is not enough space."""
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    remove_stale(paths[0].parent)
    try:
        for path in paths:
            store = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            with path.open("rb+") as stream:
                os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
            store[:] = np.nan
    except OSError:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
