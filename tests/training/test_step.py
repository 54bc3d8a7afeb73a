import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mae_curriculum.curriculum.clock import View
from mae_curriculum.curriculum.config import Augmentation
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.loader import Batch, TrainingImages
from mae_curriculum.data.preprocess import normalize, preprocess
from mae_curriculum.data.sources import open_images
from mae_curriculum.distributed import World
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.masking import mask_noise
from mae_curriculum.model.shape import plain_vit_shape
from mae_curriculum.tracking.stopwatch import Stopwatch
from mae_curriculum.training.config import OptimConfig, TrainingConfig
from mae_curriculum.training.inputs import MaskedInputs
from mae_curriculum.training.step import Training, update_, update_ratio
from tests.small import CLOCK

WORLD = World(0, 1, torch.device("cpu"))


class Line(nn.Module):
    """Loss of an image: the weight times its first value."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, 1.0]))

    def forward(self, values: Tensor) -> Tensor:
        return self.weight[0] * values


def training_of(inputs: Callable[[Batch, Any], tuple[Any, ...]], *, clip_norm: float | None = None) -> Training[Line]:
    model, images = Line(), open_images(DataConfig("digits"))[0]
    return Training(
        config=TrainingConfig(optim=OptimConfig(clip_norm=clip_norm), precision="float32"),
        world=WORLD,
        images=images,
        data_fingerprint="",
        dataset=TrainingImages(images, (16, 16), 1, Augmentation(), 0),
        inputs=inputs,
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        clock=CLOCK,
    )


def batch(count: int, *, start: int = 0, last: bool = True) -> Batch:
    ids = torch.arange(start, start + count)
    return Batch(torch.zeros(count, 1, 16, 16, dtype=torch.uint8), ids, range(start, start + count), last, {})


def step(training: Training[Line], *batches: Batch, **settings: Any) -> Any:
    return update_(training, CLOCK.moment(0), iter(batches), Stopwatch(), **{"lr": 0.5, **settings})


def test_micro_batches_add_up_to_the_mean_over_the_global_batch() -> None:
    values = {0: torch.tensor([1.0, 2.0, 3.0]), 3: torch.tensor([6.0])}
    training = training_of(lambda batch, _: (values[batch.places.start],))
    done = step(training, batch(3, last=False), batch(1, start=3))
    # the loss is 2 * x, its gradient x: (1 + 2 + 3 + 6) / 4 = 3
    assert float(done.loss_share) == 6.0
    assert float(done.gradient_norm) == 3.0
    assert training.model.weight.tolist() == [2.0 - 0.5 * 3.0, 1.0]
    assert done.ids == [0, 1, 2, 3]


def test_no_batch_after_the_last_one_is_taken() -> None:
    training = training_of(lambda batch, _: (torch.ones(4),))
    rest = iter([batch(4), batch(4)])
    update_(training, CLOCK.moment(0), rest, Stopwatch(), lr=0.5)
    assert len(list(rest)) == 1


def test_a_gradient_is_clipped_after_its_norm_is_taken() -> None:
    training = training_of(lambda batch, _: (torch.full((4,), 8.0),), clip_norm=2.0)
    assert float(step(training, batch(4)).gradient_norm) == 8.0
    assert training.model.weight[0].item() == pytest.approx(2.0 - 0.5 * 2.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_without_finite_loss_changes_nothing(value: float) -> None:
    training = training_of(lambda batch, _: (torch.tensor([1.0, value, 1.0, 1.0]),))
    done = step(training, batch(4))
    assert not done.gradient_norm.isfinite()
    assert training.model.weight.tolist() == [2.0, 1.0]


def test_the_update_ratio_is_the_length_of_the_change_by_that_of_the_weights() -> None:
    before, after = [torch.tensor([3.0, 4.0])], [nn.Parameter(torch.tensor([3.0, 4.5]))]
    assert float(update_ratio(before, after)) == pytest.approx(0.1)
    training = training_of(lambda batch, _: (torch.ones(4),))
    assert step(training, batch(4)).update_ratio is None
    assert float(step(training, batch(4), measured=True).update_ratio) > 0


def test_masked_inputs_are_the_images_at_the_moments_size_and_the_noise_of_their_places() -> None:
    shape = plain_vit_shape(ModelConfig(name="vit_tiny_patch16_224", image_size=16, patch_size=4))
    assert shape is not None
    inputs = MaskedInputs(WORLD, shape, seed=7, mean=(0.5,), std=(0.25,))
    pixels = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    moment = CLOCK.moment(3)
    assert moment.view == View((8, 8), 0.75)
    images, noise, mask_ratio, full = inputs(Batch(pixels, torch.tensor([5, 6]), range(1, 3), True, {}), moment)
    expected = preprocess(pixels, (8, 8), mean=(0.5,), std=(0.25,), resize="fourier")
    assert torch.equal(images, expected)
    assert torch.equal(full, normalize(pixels, (0.5,), (0.25,)))
    assert torch.equal(noise, mask_noise(seed=7, step=3, places=range(0, 4), count=4)[1:3])
    assert mask_ratio == 0.75
