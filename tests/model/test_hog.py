"""HOG, checked against a slow form of its own, in loops over pixels and double precision.

An orientation on the edge of two bins falls into either by rounding, in any implementation: the reference refuses
images with one nearer than 1e-4 degrees. At the left and right border of an image, the reflection makes gx exactly 0 in
any precision; those pixels are in the first bin.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.low_frequency import low_frequency_crop
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.hog import hog
from mae_curriculum.model.masked_autoencoder import build_model
from mae_curriculum.model.shape import hog_cells
from mae_curriculum.model.targets import make_target
from tests.small import SMALL


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_votes(image: Any) -> Any:
    """Return the magnitude of each pixel (c, h, w) in the bin of its orientation, (c, 9, h, w)."""
    channels, height, width = image.shape
    votes = np.zeros((channels, 9, height, width))
    padded = np.pad(image.astype(float), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    for channel, y, x in np.ndindex(channels, height, width):
        window = padded[channel, y : y + 3, x : x + 3]
        gx = window[0, 0] - window[0, 2] + 2 * (window[1, 0] - window[1, 2]) + window[2, 0] - window[2, 2]
        gy = window[0, 0] - window[2, 0] + 2 * (window[0, 1] - window[2, 1]) + window[0, 2] - window[2, 2]
        degrees = math.degrees(math.atan2(gx, gy)) % 180
        assert gx == 0 or 1e-4 < degrees % 20 < 20 - 1e-4
        votes[channel, int(degrees / 20), y, x] = math.sqrt(gx * gx + gy * gy)
    return votes


def plain_target(image: Any, patch: int, cell: int) -> Any:
    """Return the target of an image's patches, (n, d)."""
    channels, height, width = image.shape
    votes, per_side = plain_votes(image), patch // cell
    patches = []
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            values = np.zeros(channels * 9 * per_side**2)
            for channel, row, column in np.ndindex(channels, per_side, per_side):
                y, x = top + row * cell, left + column * cell
                histogram = [votes[channel, number, y : y + cell, x : x + cell].sum() for number in range(9)]
                length = math.sqrt(sum(value * value for value in histogram))
                for number, value in enumerate(histogram):
                    values[((channel * 9 + number) * per_side + row) * per_side + column] = value / length
            patches.append(values)
    return np.stack(patches)


def target_of(images: Tensor, patch: int) -> Tensor:
    """Return the target of all patches of images, (b, n, d)."""
    grid = images.shape[2] // patch, images.shape[3] // patch
    ids = torch.arange(grid[0] * grid[1]).expand(len(images), -1)
    return make_target(images, ids, grid=grid, patch_size=(patch, patch), kind="hog")


@pytest.mark.parametrize(
    ("patch", "cell", "channels", "size"),
    [
        (16, 8, 3, (32, 48)),
        (16, 8, 1, (96, 96)),
        (8, 8, 4, (24, 16)),
        (14, 7, 3, (42, 28)),
        (32, 8, 1, (32, 64)),
        (4, 4, 3, (20, 12)),
        (12, 6, 2, (12, 24)),
    ],
)
def test_the_target_is_that_of_a_slow_reference(patch: int, cell: int, channels: int, size: tuple[int, int]) -> None:
    images = noise(2, channels, *size)
    expected = np.stack([plain_target(image.numpy(), patch, cell) for image in images])
    np.testing.assert_allclose(target_of(images, patch).numpy(), expected, atol=1e-5, rtol=0)


def test_cells_of_a_fractional_number_of_pixels_count_shares_of_pixels() -> None:
    image = noise(1, 2, 16, 20)
    fine = np.repeat(np.repeat(plain_votes(image[0].numpy()), 3, axis=2), 7, axis=3)  # parts of pixels
    votes = fine.reshape(2, 9, 3, 16, 7, 20).sum(axis=(3, 5))
    expected = votes / np.sqrt((votes**2).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(hog(image, (3, 7))[0].numpy(), expected, atol=1e-5, rtol=0)


def test_a_ramp_has_one_orientation_but_for_its_edges() -> None:
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    found = hog((3 * x + 4 * y)[None, None], (3, 3))[0, 0]
    # atan2(-24, -32) is -143.1 degrees: 36.9 without sign, bin 1; where the edge is reflected, one direction is still
    middle = torch.zeros(9)
    middle[1] = 1.0
    torch.testing.assert_close(found[:, 1, 1], middle)
    top = torch.zeros(9)
    top[1], top[4] = 56 * 40, 8 * 24  # 7 rows of length sqrt(24^2 + 32^2), one row of 24 at 90 degrees
    torch.testing.assert_close(found[:, 0, 1], top / math.hypot(2240, 192))


@pytest.mark.parametrize(("axis", "number"), [("across", 4), ("down", 0)])
def test_a_step_has_the_orientation_of_its_gradient(axis: str, number: int) -> None:
    step = torch.cat([torch.zeros(8, 4), torch.ones(8, 4)], dim=1)
    found = hog((step if axis == "across" else step.T)[None, None], (1, 1))
    assert torch.equal(found.flatten(), torch.eye(9)[number])


def test_predicting_zero_has_a_loss_of_one_over_nine() -> None:
    target = target_of(noise(2, 3, 32, 32), 16)
    assert target.shape == (2, 4, 108)
    assert target.square().mean().item() == pytest.approx(12 / 108, abs=1e-6)


def test_brightness_and_contrast_of_a_channel_drop_out() -> None:
    images = noise(2, 3, 32, 32)
    scale, shift = (torch.tensor(values).view(-1, 1, 1) for values in ([0.1, 4.0, -2.0], [0.5, -1.0, 0.1]))
    torch.testing.assert_close(hog(images * scale + shift, (4, 4)), hog(images, (4, 4)), atol=1e-5, rtol=0)


def test_cells_without_gradients_are_zero() -> None:
    images = torch.full((1, 3, 16, 16), 0.37)
    assert torch.equal(hog(images, (2, 2)), torch.zeros(1, 3, 9, 2, 2))


def test_autocast_changes_nothing() -> None:
    images = noise(1, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = hog(images, (4, 4))
    assert torch.equal(found, hog(images, (4, 4)))


def test_cells_divide_a_patch_into_at_most_8_pixels() -> None:
    sides = {patch: hog_cells((patch, patch))[0] for patch in (2, 4, 7, 8, 10, 12, 14, 16, 20, 32)}
    assert sides == {2: 1, 4: 1, 7: 1, 8: 1, 10: 2, 12: 2, 14: 2, 16: 2, 20: 4, 32: 4}


@pytest.mark.parametrize(("patch", "width"), [(8, 27), (16, 108), (32, 432)])
def test_the_decoder_predicts_as_many_values_as_the_target_has(patch: int, width: int) -> None:
    model = build_model(replace(SMALL, image_size=64, patch_size=patch, target="hog"), seed=0)
    assert model.decoder.pred.out_features == target_of(noise(1, 3, 64, 64), patch).shape[2] == width


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("target_from", ["crop", "full"])
def test_a_model_trains_on_hog_at_any_size_and_number_of_channels(channels: int, target_from: Any) -> None:
    config = replace(SMALL, image_size=(32, 48), channels=channels, target="hog", target_from=target_from)
    model = build_model(config, seed=0)
    full = noise(2, channels, 32, 48)
    for size in [(16, 24), (24, 40), (32, 48)]:
        model(low_frequency_crop(full, size), torch.rand(2, size[0] * size[1] // 64), 0.75, full).mean().backward()
    assert model.decoder.pred.weight.grad is not None
    assert model.decoder.pred.weight.grad.isfinite().all()


def test_the_target_from_the_full_image_is_its_votes_on_the_grid_of_the_crop() -> None:
    crop, full = (build_model(replace(SMALL, target="hog", target_from=of), seed=0) for of in ("crop", "full"))
    images, ids = noise(2, 3, 32, 32), torch.tensor([[0, 3], [2, 1]])
    small = low_frequency_crop(images, (16, 16))
    cells = hog(images, (2, 2)).flatten(3)  # a cell for each patch, of 16 pixels of the full image
    expected = torch.stack([cells[0, :, :, [0, 3]], cells[1, :, :, [2, 1]]]).permute(0, 3, 1, 2).flatten(2)
    assert torch.equal(full.make_target(small, ids, images), expected)
    assert torch.equal(crop.make_target(small, ids, images), crop.make_target(small, ids))
    assert torch.equal(full.make_target(images, ids, images), crop.make_target(images, ids))


def test_pixels_of_the_full_image_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"target_from: full is possible with model.target hog only, got norm_pix"):
        ModelConfig(target_from="full")
