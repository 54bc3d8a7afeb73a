"""The images of a training run, and the part of them that a masked autoencoder is given at each step."""

from dataclasses import dataclass
from math import prod

from torch import Tensor

from mae_curriculum.curriculum.clock import Moment
from mae_curriculum.curriculum.low_frequency import RESIZE
from mae_curriculum.data.loader import Batch, TrainingImages
from mae_curriculum.data.preprocess import normalize
from mae_curriculum.data.sources import Images
from mae_curriculum.distributed import World
from mae_curriculum.model.masking import mask_noise
from mae_curriculum.model.shape import ModelShape
from mae_curriculum.training.config import TrainingConfig


def training_images(
    config: TrainingConfig, images: Images, size: tuple[int, int], channels: int, *, whole: bool = False
) -> TrainingImages:
    """Return the images of a run as its settings augment them; see `TrainingImages`."""
    data, augmentation = config.data, config.curriculum.augmentation
    return TrainingImages(images, size, channels, augmentation, config.seed, data.oversample, whole=whole)


@dataclass(frozen=True)
class MaskedInputs:
    """Turn batches into what the encoder sees at a moment of the run, and into the noise that decides its masks."""

    world: World
    shape: ModelShape
    seed: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, batch: Batch, moment: Moment) -> tuple[Tensor, Tensor, float, Tensor]:
        """Return the arguments of `MaskedAutoencoder.forward`: images, noise, the mask ratio, images at full size."""
        view = moment.view
        full = normalize(self.world.to_device(batch.images), self.mean, self.std)
        images = RESIZE[view.resize](full, view.size)
        count = prod(self.shape.mask_grid(view.size))
        noise = mask_noise(seed=self.seed, step=moment.step, places=batch.places, count=count)
        return images, self.world.to_device(noise), view.mask_ratio, full
