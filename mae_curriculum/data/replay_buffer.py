"""A stage's replay buffer: which crops of a batch are new, and which are used again.

As in EfficientTrain++, one of `factor` crops in a batch is new; the others are drawn with replacement from those of the
last `steps` steps, this one included. There, what was drawn is lost when a process ends; here it is a function of seed
and step, whatever the number of ranks and workers, and what a resumed run lacks is loaded again.

A batch is divided into lanes, each of which draws from its own crops: ranks that have whole lanes hold all that they
draw, and load nothing twice.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from mae_curriculum.curriculum.clock import Span
from mae_curriculum.curriculum.config import ReplayBuffer

T = TypeVar("T")

MAX_LANES = 32
"""EfficientTrain++ draws as many parts of a batch."""


class Origin(NamedTuple):
    """Where a crop is new."""

    step: int
    place: int
    """Place in the global batch."""


class Replayed(NamedTuple):
    """What a micro-batch consists of where there is a replay buffer."""

    origins: list[Origin]
    """Of the crop at each of its places."""
    oldest: int
    """First step whose crops are kept."""


@dataclass(frozen=True)
class ReplayedStage:
    """A stage with a replay buffer."""

    span: Span
    buffer: ReplayBuffer

    @property
    def lanes(self) -> int:
        """Number of lanes: a power of two such that all are alike, or 1."""
        lanes = MAX_LANES
        while lanes > 1 and self.span.batch_images % (lanes * self.buffer.factor):
            lanes //= 2
        return lanes

    @property
    def lane_width(self) -> int:
        """Places of a lane."""
        return self.span.batch_images // self.lanes

    @property
    def new_in_lane(self) -> int:
        """New crops of a lane in each step."""
        return -(-self.lane_width // self.buffer.factor)

    @property
    def new_in_step(self) -> int:
        """New crops of a step."""
        return self.lanes * self.new_in_lane

    def new_before(self, origin: Origin) -> int:
        """Return how many crops of the stage are new before this one, in the order of steps and places."""
        lane, place = divmod(origin.place, self.lane_width)
        in_step = lane * self.new_in_lane + place // self.buffer.factor
        return (origin.step - self.span.first_step) * self.new_in_step + in_step

    def replayed(self, step: int, places: range, seed: int) -> Replayed:
        """Return what the micro-batch at these places of a step consists of."""
        oldest = max(self.span.first_step, step - self.buffer.steps + 1)
        generator = np.random.default_rng((seed, step, 0, 0, 1))  # another stream than those of orders and crops
        every_place = np.arange(self.span.batch_images)
        in_lane = every_place % self.lane_width
        steps = generator.integers(oldest, step + 1, size=len(every_place))
        drawn = generator.integers(self.new_in_lane, size=len(every_place))
        is_new = in_lane % self.buffer.factor == 0
        steps[is_new] = step
        sources = np.where(is_new, every_place, every_place - in_lane + drawn * self.buffer.factor)
        origins = [Origin(int(steps[place]), int(sources[place])) for place in places]
        return Replayed(origins, oldest)


def take_missing_(held: dict[Origin, T], replayed: Replayed) -> list[Origin]:
    """Drop what a buffer no longer keeps; return what it lacks of a micro-batch, each once, in order."""
    for origin in [origin for origin in held if origin.step < replayed.oldest]:
        del held[origin]
    return [origin for origin in dict.fromkeys(replayed.origins) if origin not in held]
