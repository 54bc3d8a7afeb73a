"""What a masked autoencoder is given at each step."""

from dataclasses import dataclass
from math import prod

from torch import Tensor

from mae_curriculum.curriculum.schedule import Moment
from mae_curriculum.data.loader import Batch
from mae_curriculum.data.preprocess import preprocess
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

    def __call__(self, batch: Batch, moment: Moment) -> tuple[Tensor, Tensor, float]:
        """Return the arguments of `MaskedAutoencoder.forward`: images (b, c, h, w), noise (b, n), the mask ratio."""
        view = moment.view
        pixels = self.world.to_device(batch.images)
        images = preprocess(pixels, view.size, mean=self.mean, std=self.std, resize=view.resize)
        count = prod(self.shape.mask_grid(view.size))
        noise = mask_noise(seed=self.seed, step=moment.step, places=batch.places, count=count)
        return images, self.world.to_device(noise), view.mask_ratio
