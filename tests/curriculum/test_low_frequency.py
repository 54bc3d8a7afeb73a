import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mae_curriculum.curriculum.low_frequency import bicubic, lanczos, low_frequency_crop


def definition(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The low-frequency crop as EfficientTrain defines it: complex, in float64."""
    (h, w), (height, width) = images.shape[-2:], size
    spectrum = torch.fft.fftshift(torch.fft.fft2(images.double()), dim=(-2, -1))
    top, left = h // 2 - height // 2, w // 2 - width // 2
    low = spectrum[..., top : top + height, left : left + width]
    small = torch.fft.ifft2(torch.fft.ifftshift(low, dim=(-2, -1)))
    scaled: Tensor = small.real * (height * width / (h * w))
    return scaled


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(8, 8), (7, 7), (7, 10), (12, 5)])
def test_crop_is_the_definition_at_every_even_and_odd_size(shape: tuple[int, int]) -> None:
    images = noise(2, 3, *shape)
    for height in range(1, shape[0] + 1):
        for width in range(1, shape[1] + 1):
            size = (height, width)
            difference = low_frequency_crop(images, size).double() - definition(images, size)
            assert difference.abs().max() < 1e-5, size


@pytest.mark.parametrize("side", [96, 127, 160, 192, 223])
def test_crop_is_the_definition_at_the_published_sizes(side: int) -> None:
    images = noise(2, 3, 224, 224)
    assert (low_frequency_crop(images, (side, side)).double() - definition(images, (side, side))).abs().max() < 1e-5


def test_crop_keeps_channel_means() -> None:
    images = noise(2, 3, 32, 32) + torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    torch.testing.assert_close(low_frequency_crop(images, (12, 14)).mean((2, 3)), images.mean((2, 3)))


def test_crop_at_full_size_is_the_identity() -> None:
    images = noise(1, 1, 9, 12)
    assert torch.equal(low_frequency_crop(images, (9, 12)), images)


def test_crop_resamples_a_low_wave_exactly() -> None:
    def wave(side: int) -> Tensor:
        return torch.cos(2 * math.pi * 3 * torch.arange(side) / side).expand(1, 1, side, side)

    torch.testing.assert_close(low_frequency_crop(wave(32), (16, 16)), wave(16), atol=1e-5, rtol=0)


def test_crop_removes_a_high_wave() -> None:
    wave = torch.cos(2 * math.pi * 12 * torch.arange(32) / 32).expand(1, 1, 32, 32)
    assert low_frequency_crop(wave, (16, 16)).abs().max() < 1e-5


def test_crop_computes_in_float32_inside_autocast() -> None:
    images = noise(1, 1, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cropped = low_frequency_crop(images.bfloat16(), (8, 8))
        assert lanczos(images, (8, 8)).dtype == torch.float32
    assert cropped.dtype == torch.float32
    assert (cropped.double() - definition(images.bfloat16(), (8, 8))).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(4, 6), (3, 5), (4, 5)])
def test_crop_has_the_gradient_of_its_definition(size: tuple[int, int]) -> None:
    images = noise(1, 1, 8, 7).double().requires_grad_()
    torch.autograd.gradcheck(lambda x: low_frequency_crop(x, size), images)


@pytest.mark.parametrize("size", [(9, 8), (8, 9), (0, 4)])
def test_crop_refuses_sizes_beyond_the_image(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"size must be in 1\.\.8 x 1\.\.8 for images of 8x8"):
        low_frequency_crop(noise(1, 1, 8, 8), size)


def test_lanczos_is_pillows() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48), dtype=np.uint8)
    pillows = np.asarray(Image.fromarray(pixels.astype(np.float32)).resize((20, 28), Image.Resampling.LANCZOS))
    ours = lanczos(torch.tensor(pixels)[None, None].float(), (28, 20))[0, 0]
    assert np.abs(ours.numpy() - pillows).max() < 1e-3


@pytest.mark.parametrize("resize", [lanczos, bicubic])
def test_approximations_keep_a_low_wave_away_from_the_border(
    resize: Callable[[Tensor, tuple[int, int]], Tensor],
) -> None:
    wave = torch.sin(2 * math.pi * 2 * torch.arange(64) / 64 + 1).expand(1, 1, 64, 64)
    exact = low_frequency_crop(wave, (32, 32))
    # a pixel of the small image lies between two of the large one for a filter, and on one for the crop
    shifted = torch.sin(2 * math.pi * 2 * (torch.arange(32) + 0.25) / 32 + 1).expand(1, 1, 32, 32)
    assert (exact[..., 4:-4] - wave[..., ::2, ::2][..., 4:-4]).abs().max() < 1e-5
    assert (resize(wave, (32, 32)) - shifted)[..., 4:-4].abs().max() < 0.02
