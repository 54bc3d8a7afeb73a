"""What the heads of a probe see: the features of a frozen encoder, computed from images or kept on disk."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from finetune.config import LinprobeConfig
from finetune.heads import View
from mae_curriculum.curriculum.clock import Moment
from mae_curriculum.data.loader import Batch
from mae_curriculum.data.preprocess import preprocess
from mae_curriculum.data.requests import Request
from mae_curriculum.data.sources import Images
from mae_curriculum.data.subsets import Subset
from mae_curriculum.distributed import World
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder


@dataclass(frozen=True)
class FeatureRows(Dataset[tuple[Tensor, int, dict[str, str]]]):
    """Features kept on disk, instead of images."""

    features: Sequence[NDArray[np.float32]]
    """(n, p, d) of each block."""
    ids: NDArray[np.int64]
    """Which of the n rows there are."""

    def __getitem__(self, request: Request) -> tuple[Tensor, int, dict[str, str]]:
        """Return an image's features (k, p, d) and its index."""
        return self.rows(request.image), request.image, {}

    def rows(self, places: int | slice) -> Tensor:
        """Return the features (k, p, d) of one image, or (b, k, p, d) of several."""
        ids = self.ids[places]
        return torch.from_numpy(np.stack([features[ids] for features in self.features], axis=-3))


def open_features(
    encoder: MaskedAutoencoder, blocks: Sequence[int], images: Images, inference: Inference
) -> tuple[FeatureRows, NDArray[np.int64]]:
    """Return the features of images, and which of the images have any: broken ones have none.

    Those of a part of a data set are taken from the whole's, which other parts and commands need too.
    """
    whole, ids = images, np.arange(len(images))
    if isinstance(images, Subset):
        whole, ids = images.images, np.asarray(images.ids)
    features = inference.cached(encoder, whole, blocks)
    intact = np.flatnonzero(np.isfinite(features[0][:, 0, 0])[ids])
    return FeatureRows(features, ids[intact]), intact


@dataclass(frozen=True)
class Probe:
    """What heads of one kind see of an image, given a frozen encoder."""

    encoder: MaskedAutoencoder
    config: LinprobeConfig
    blocks: tuple[int, ...]
    """Numbers of the blocks, counted from 0."""

    @property
    def views(self) -> list[View]:
        """What the heads see: each pool of each block, or the patches of the last block."""
        pools = {"linear": self.config.pools, "attentive": ("attention",), "ep": ("ep",)}[self.config.head]
        return [(block, pool) for block in self.blocks for pool in pools]

    def select(self, features: Tensor) -> Tensor:
        """Return of features of all blocks and pools (b, k, p, d) the views that the heads use (b, v, d)."""
        return features[:, :, [self.encoder.pools.index(pool) for pool in self.config.pools]].flatten(1, 2)

    def __call__(self, images: Tensor) -> Tensor:
        """Return for images (b, c, h, w) the features of each view (b, v, d), or each patch's (b, n, d), float32."""
        if self.config.head == "linear":
            return self.select(self.encoder.features_by_block(images, self.blocks).float())
        return self.encoder.tokens(images)[:, self.encoder.encoder.num_prefix_tokens :].float()


@dataclass(frozen=True)
class FeatureInputs:
    """Turn batches into features of a frozen encoder, and labels."""

    world: World
    probe: Probe
    labels: Tensor
    """(n,) classes of all images, int64."""

    def __call__(self, batch: Batch, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return features, as `Probe` does, and labels (b,)."""
        config, encoder = self.probe.config, self.probe.encoder
        values, labels = self.world.to_device(batch.images), self.world.to_device(self.labels[batch.ids])
        if not config.augment:  # the batch holds features already
            return self.probe.select(values), labels
        mean, std = config.data.statistics(encoder.channels)
        images = preprocess(values, moment.size, mean=mean, std=std, resize=moment.view.resize)
        with torch.no_grad(), self.world.autocast(config.precision):
            return self.probe(images), labels
