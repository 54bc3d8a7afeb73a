"""Models over whole sets of images: each image exactly once, however many processes share them; cached features."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mae_curriculum.curriculum.batches import split
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.loader import NO_IMAGE, EvaluationImages, ignore_signals, kill_workers_at_exit
from mae_curriculum.data.preprocess import normalize
from mae_curriculum.data.sources import Images
from mae_curriculum.distributed import World
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder
from mae_curriculum.precision import Precision
from mae_curriculum.weights.names import fingerprint


@dataclass(frozen=True)
class Inference:
    """How images are brought to a model that only looks at them."""

    world: World
    data: DataConfig
    precision: Precision
    batch_images: int
    """Images at once on each device."""
    crop: float = 1.0
    """Share of an image's shorter side that is kept."""
    check: Callable[[], object] = lambda: None
    """Called for each batch, on all ranks: it may raise what ends it."""

    def run(
        self,
        function: Callable[[Tensor], Tensor],
        images: Images,
        *,
        size: tuple[int, int],
        channels: int,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Apply a function to all images, shared out over the ranks, block by block.

        function  maps normalised images (b, c, h, w) of this size (height, width) to rows (b, ...).
        Yields    rows (m, ...) float32 and their images' indices (m,), equal on all ranks, in order; broken images are
                  left out.
        """
        world = self.world
        mean, std = self.data.statistics(channels)
        block = self.batch_images * world.world_size
        blocks = [range(start, min(start + block, len(images))) for start in range(0, len(images), block)]
        if self.data.workers:
            kill_workers_at_exit()
        loader = DataLoader(
            EvaluationImages(images, size, channels, self.crop),
            batch_sampler=[self._share(each) or [NO_IMAGE] for each in blocks],
            num_workers=self.data.workers,
            worker_init_fn=ignore_signals,
            pin_memory=world.device.type == "cuda",
        )
        for pixels, index in loader:
            self.check()
            with torch.inference_mode(), world.autocast(self.precision):
                rows = function(normalize(world.to_device(pixels), mean, std)).float()
            index = index.to(world.device)
            usable = index != NO_IMAGE
            yield world.gather_rows(rows[usable]), world.gather_rows(index[usable])

    def _share(self, block: range) -> list[int]:
        return [block[place] for place in split(len(block), self.world.world_size, self.world.rank)]

    def encode(self, model: MaskedAutoencoder, images: Images) -> tuple[Tensor, Tensor]:
        """Encode all images: features (n, p, d) of each pooling, and indices (n,) of their images."""
        model.eval()
        parts = list(self.run(model.features, images, size=model.image_size, channels=model.channels))
        model.train()
        rows, indices = zip(*parts, strict=True)
        return torch.cat(rows), torch.cat(indices)

    def cached(self, model: MaskedAutoencoder, images: Images) -> NDArray[np.float32]:
        """Give the features of all images, memory-mapped: (n, p, d) float32; NaN where an image is broken.

        They are computed once for the same weights, images and settings, and kept under `data.cache`/features. The main
        process writes; all read, so the folder must be one that all see.
        """
        world = self.world
        path = self.data.cache / "features" / f"{self._digest(model, images)}.npy"
        if not world.on_main(path.exists):
            aside = path.with_name(f".{path.stem}.{os.getpid()}.aside")  # of this process alone: two jobs may be at it
            stores: list[NDArray[np.float32]] = []
            shape = (len(images), len(model.pools), model.encoder.embed_dim)
            world.on_main(lambda: stores.append(_allocate(aside, shape)))
            model.eval()
            for rows, indices in self.run(model.features, images, size=model.image_size, channels=model.channels):
                for store in stores:
                    store[indices.cpu().numpy()] = rows.cpu().numpy()
            model.train()
            world.on_main(lambda: aside.replace(path))
            stores.clear()
        features: NDArray[np.float32] = np.load(path, mmap_mode="r")
        return features

    def _digest(self, model: MaskedAutoencoder, images: Images) -> str:
        """Name all that features depend on: weights and network, images, and how these are shown and computed."""
        autocast = self.world.autocast(self.precision)
        arithmetic = str(autocast.fast_dtype) if autocast._enabled else "float32"
        network = [
            str(model.encoder),
            [block.attn.num_heads for block in model.encoder.blocks],
            model.learned_positions,
        ]
        settings = [network, arithmetic, self.crop, model.image_size, self.data.statistics(model.channels)]
        text = json.dumps([fingerprint(model.encoder.state_dict()), *settings, images.fingerprint()])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _allocate(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Make an array on disk, full of NaN; raises OSError where there is no room for it, instead of at its use."""
    path.parent.mkdir(parents=True, exist_ok=True)
    store = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    try:
        with path.open("rb+") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    except OSError:
        path.unlink()
        raise
    store[:] = np.nan
    return store
