"""The order of the training data: which crops of which images each micro-batch consists of.

The clock numbers the images of all epochs in one sequence; an epoch is a permutation of the data set. The sampler turns
positions of that sequence into requests, which carry all that an image depends on. So the images of a step are a
function of (seed, step) alone, whatever the number of workers or ranks; a run can start at any step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from mae_curriculum.curriculum.batches import micro_batches
from mae_curriculum.curriculum.clock import Clock, Moment, Span, View
from mae_curriculum.data.replay_buffer import Origin, Replayed, ReplayedStage, take_missing_

BLOCKS_IN_WINDOW = 16
"""Blocks of images that are read together where there is a window."""


class Request(NamedTuple):
    """All that a training image depends on."""

    epoch: int
    """Passes over the images before this one, from 0 on."""
    image: int
    """Index in the data set."""
    view: View
    """What the encoder sees of it: image size, resizing, masking."""
    magnitude: float | None
    """Of RandAugment, 0 to 10; None for no RandAugment."""
    min_area: float
    """Area of the smallest crop as a share of the image, above 0 and at most 1."""
    crop: int = 0
    """Number of the crop among those of an image in a row."""


class BatchRequest(NamedTuple):
    """A micro-batch that is to be loaded."""

    images: list[Request]
    """The crops to load: those of all places, or those that the replay buffer lacks."""
    places: range
    """Its places in the global batch."""
    is_last: bool
    """Whether it is this rank's last one of its step."""
    replayed: Replayed | None = None
    """What it consists of if there is a replay buffer."""


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
    repeats: int = 1
    """Crops in a row of each image; an epoch still has as many crops as there are images."""
    window: int | None = None
    """`data.shuffle_window`."""

    def __iter__(self) -> Iterator[BatchRequest]:
        held: dict[Origin, None] = {}
        for step in range(self.first_step, self.clock.total_steps):
            span = self.clock.span(step)
            stage = self._replayed_stage(span)
            parts = micro_batches(span, self.rank, self.world_size, self.micro_batch, self.pair_size)
            for places in parts:
                replayed, missing = None, [Origin(step, place) for place in places]
                if stage is not None:
                    replayed = stage.replayed(step, places, self.seed)
                    missing = take_missing_(held, replayed)
                    held |= dict.fromkeys(missing)
                moments = {origin.step: self.clock.moment(origin.step) for origin in missing}
                images = [self._request(moments[origin.step], origin) for origin in missing]
                yield BatchRequest(images, places, places == parts[-1], replayed)

    def _replayed_stage(self, span: Span) -> ReplayedStage | None:
        buffer = self.clock.curriculum.stages[span.index].replay_buffer
        return None if buffer is None else ReplayedStage(span, buffer)

    def _request(self, moment: Moment, origin: Origin) -> Request:
        span = self.clock.spans[moment.stage]
        stage = self._replayed_stage(span)
        number = moment.first_image + origin.place if stage is None else span.first_image + stage.new_before(origin)
        drawn, crop = divmod(number, self.repeats)
        count = self.clock.images_per_epoch
        epoch, position = divmod(drawn, count)
        image = int(epoch_order(self.seed, epoch, count, self.window)[position])
        return Request(epoch, image, moment.view, moment.magnitude, moment.min_area, crop)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int, window: int | None = None) -> NDArray[np.int64]:
    """Return the order of one epoch: a permutation of range(count), a function of seed and epoch.

    window  None for any permutation; else blocks of images that follow one another are shuffled, `BLOCKS_IN_WINDOW` to
            a window, and then each image moves back by fewer than `window` places.
    """
    generator = np.random.default_rng((seed, epoch))
    if window is None:
        return generator.permutation(count)
    block = max(1, window // BLOCKS_IN_WINDOW)
    starts = block * generator.permutation(-(-count // block))
    in_blocks = (starts[:, None] + np.arange(block)).ravel()
    in_blocks = in_blocks[in_blocks < count]
    return in_blocks[np.argsort(np.arange(count) + generator.uniform(0, window, size=count))]
