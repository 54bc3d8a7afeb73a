"""What a masked autoencoder is given at each step."""

from dataclasses import dataclass
from math import prod

from torch import Tensor

from mae_curriculum.curriculum.low_frequency import RESIZE
from mae_curriculum.curriculum.schedule import Moment
from mae_curriculum.data.loader import Batch
from mae_curriculum.data.preprocess import normalize
from mae_curriculum.distributed import World
from mae_curriculum.model.masking import mask_noise
from mae_curriculum.model.shape import ModelShape


@dataclass(frozen=True)
class MaskedInputs:
    """Turn batches into what the encoder sees at a moment of the run, and into the noise that decides its masks."""

    world: World
    shape: ModelShape
    seed: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str

    def __call__(self, batch: Batch, moment: Moment) -> tuple[Tensor, Tensor, float, Tensor]:
        """Return the arguments of `MaskedAutoencoder.forward`: images, noise, the mask ratio, images at full size."""
        size, mask_ratio = moment.view.size, moment.view.mask_ratio
        full = normalize(self.world.to_device(batch.images), self.mean, self.std)
        images = RESIZE[self.resize](full, size)
        count = prod(self.shape.mask_grid(size))
        noise = mask_noise(seed=self.seed, step=moment.step, places=batch.places, count=count)
        return images, self.world.to_device(noise), mask_ratio, full
