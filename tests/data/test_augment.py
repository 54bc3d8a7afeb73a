import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from mae_curriculum.data.augment import augment, crop_and_resize, random_box, resize_and_crop

IMAGE = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make(position: tuple[int, ...] = (0, 1, 2), image: torch.Tensor = IMAGE, **changes: Any) -> torch.Tensor:
    choices = {"min_area": 0.2, "flip": True, "magnitude": None}
    return augment(image, changes.pop("size", (32, 32)), **{**choices, **changes}, position=position)


@pytest.mark.parametrize("magnitude", [None, 5.0])
def test_augmentation_depends_only_on_the_position(magnitude: float | None) -> None:
    first = make(magnitude=magnitude)
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    assert torch.equal(first, make(magnitude=magnitude))
    assert not torch.equal(first, make((0, 2, 2), magnitude=magnitude))
    assert not torch.equal(first, make((1, 1, 2), magnitude=magnitude))


def test_global_random_states_do_not_change() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    make(magnitude=9.0)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_the_whole_area_without_flip_is_only_resized() -> None:
    square = IMAGE[:, :, :40]
    whole = [make((0, 0, i), square, min_area=1.0, flip=False, size=(40, 40)) for i in range(30)]
    # RandomResizedCrop draws a shape up to 4:3, and takes the whole image if that does not fit
    assert any(torch.equal(image, square) for image in whole)


def test_half_of_the_images_are_flipped() -> None:
    ramp = torch.arange(0, 64, dtype=torch.uint8).expand(1, 64, 64)
    falling = sum(bool(image[0, 0, 0] > image[0, 0, -1]) for image in (make((i,), ramp) for i in range(200)))
    assert 70 < falling < 130
    assert not any(image[0, 0, 0] > image[0, 0, -1] for image in (make((i,), ramp, flip=False) for i in range(50)))


def test_crops_are_at_least_as_large_as_the_smallest_area() -> None:
    ramp = torch.arange(0, 200, dtype=torch.uint8).expand(1, 200, 200)
    widths = [int(i.max()) - int(i.min()) for i in (make((i,), ramp, min_area=0.5, size=(64, 64)) for i in range(100))]
    assert min(widths) > 200 * (0.5 * 3 / 4) ** 0.5 - 8
    assert min(widths) < 150


@pytest.mark.parametrize(("size", "aspect"), [((50, 50), 1.0), ((40, 90), 1.0), ((8, 200), 2.0)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int], aspect: float) -> None:
    generator, image, ratio = np.random.default_rng(0), torch.zeros(1, *size), [3 / 4 * aspect, 4 / 3 * aspect]
    ours = np.array([random_box(generator, size, min_area=0.2, aspect=aspect) for _ in range(3000)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], ratio) for _ in range(3000)])
    for side in range(4):
        assert ks_2samp(ours[:, side], theirs[:, side]).pvalue > 0.001


def test_crops_have_the_aspect_ratio_of_the_result() -> None:
    assert make(size=(16, 48)).shape == (3, 16, 48)
    ramp = torch.arange(0, 240, dtype=torch.uint8).expand(1, 80, 240)
    widths = [int(i.max()) - int(i.min()) for i in (make((i,), ramp, min_area=0.9, size=(16, 48)) for i in range(50))]
    assert min(widths) > 180  # a square crop could not be wider than 80


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_grows_with_its_magnitude(channels: int) -> None:
    image = IMAGE[:channels]

    def change(magnitude: float) -> float:
        pairs = [(make((i,), image), make((i,), image, magnitude=magnitude)) for i in range(60)]
        assert all(plain.shape == augmented.shape for plain, augmented in pairs)
        return float(np.mean([(plain.float() - augmented.float()).abs().mean() for plain, augmented in pairs]))

    assert change(9.0) > 1.2 * change(0.5) > 0


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(7, 9), (16, 16), (41, 70)])
def test_parts_are_resized_as_torchvision_does(size: tuple[int, int], channels_last: bool) -> None:
    image = IMAGE.permute(1, 2, 0).contiguous().permute(2, 0, 1) if channels_last else IMAGE
    for part in (image, image[:1]):
        for box in ((0, 0, 40, 60), (3, 5, 16, 16), (39, 0, 1, 50)):
            how = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}
            expected = F.resized_crop(part, *box, size=list(size), **how)
            assert torch.equal(crop_and_resize(part, box, size), expected)


@pytest.mark.parametrize(
    ("box", "size"), [((0, 0, 180, 240), (96, 96)), ((5, 9, 150, 90), (96, 64)), ((9, 9, 60, 60), (112, 112))]
)
def test_bicubic_is_close_to_pillows(box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, 200, 260), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    top, left, height, width = box
    picture = Image.fromarray(image[:, top : top + height, left : left + width].permute(1, 2, 0).numpy())
    rows = picture.resize((size[1], height), Image.Resampling.BICUBIC)  # Pillow 13 begins with the columns of some
    expected = F.pil_to_tensor(rows.resize(size[::-1], Image.Resampling.BICUBIC)).int()
    difference = (crop_and_resize(image, box, size).int() - expected).abs()
    assert int(difference.max()) <= 2
    assert float(difference.float().mean()) < 0.05


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_lanczos_is_pillows(channels: int) -> None:
    image = IMAGE[[0, 1, 2, 0, 1][:channels]]
    part = crop_and_resize(image, (4, 10, 30, 40), (12, 16), lanczos=True)
    for channel, resized in zip(image[:, 4:34, 10:50], part, strict=True):
        expected = Image.fromarray(channel.numpy()).resize((16, 12), Image.Resampling.LANCZOS)
        assert torch.equal(resized, F.pil_to_tensor(expected)[0])


def test_evaluation_resizes_and_crops_the_center() -> None:
    ramp = torch.arange(0, 120, dtype=torch.uint8).expand(1, 60, 120)
    image = resize_and_crop(ramp, (30, 30))
    assert image.shape == (1, 30, 30)
    assert abs(float(image.float().mean()) - 59.5) < 1
    assert int(image.max()) - int(image.min()) < 62  # the middle half of the width
    assert torch.equal(resize_and_crop(ramp, (60, 120)), ramp)


def test_randaugment_works_at_the_highest_magnitude() -> None:
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    for place in range(300):  # enough for posterize to occur with every number of bits
        augment(image, (16, 16), min_area=1.0, flip=False, magnitude=10.0, position=(0, place))


def test_erasing_overwrites_a_rectangle_with_the_given_probability() -> None:
    image = torch.full((3, 64, 64), 255, dtype=torch.uint8)

    def shares(erasing: float) -> list[float]:
        options = {"min_area": 1.0, "flip": False, "magnitude": None, "erasing": erasing}
        made = [augment(image, (64, 64), position=(0, place), **options) for place in range(200)]  # type: ignore[arg-type]
        return [float((one != 255).any(dim=0).float().mean()) for one in made]

    assert not any(shares(0.0))
    always = shares(1.0)
    assert all(0.01 < share < 0.35 for share in always)
    assert sum(share > 0 for share in shares(0.25)) / 200 == pytest.approx(0.25, abs=0.08)
