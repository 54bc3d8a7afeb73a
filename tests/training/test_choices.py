"""What a run chooses for its images, with numbers worked out by hand."""

import pytest

from mae_curriculum.config import ConfigError
from mae_curriculum.data.contents import Contents, Side, Sizes
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.shape import plain_vit_shape
from mae_curriculum.training.choices import choose_batch_size, choose_epochs, choose_model


def contents(images: int = 1000, shorter_side: int | None = 100) -> Contents:
    square = (shorter_side or 0,) * 2
    sizes = None if shorter_side is None else Sizes(images, 0, square, square, shorter_side)
    return Contents("photos", Side("photos", images, {}, {}), None, sizes)


@pytest.mark.parametrize(
    ("shorter_side", "image_size", "patch_size", "patches"),
    [
        (8, 32, 4, 64),
        (63, 32, 4, 64),
        (64, 64, 8, 64),
        (96, 96, 8, 144),
        (128, 128, 8, 256),
        (223, 128, 8, 256),
        (224, 224, 16, 196),
        (3000, 224, 16, 196),
    ],
)
def test_the_image_size_is_the_largest_that_images_have(
    shorter_side: int, image_size: int, patch_size: int, patches: int
) -> None:
    chosen = choose_model(ModelConfig(), contents(shorter_side=shorter_side))
    assert (chosen.image_size, chosen.patch_size) == (image_size, patch_size)
    assert (image_size // patch_size) ** 2 == patches
    assert plain_vit_shape(chosen) is not None


@pytest.mark.parametrize(
    ("images", "name", "decoder"),
    [
        (1, "vit_tiny_patch16_224", (96, 2, 3)),
        (19_999, "vit_tiny_patch16_224", (96, 2, 3)),
        (20_000, "vit_small_patch16_224", (192, 4, 6)),
        (299_999, "vit_small_patch16_224", (192, 4, 6)),
        (300_000, "vit_base_patch16_224", (512, 8, 16)),
    ],
)
def test_more_images_get_a_larger_model(images: int, name: str, decoder: tuple[int, int, int]) -> None:
    chosen = choose_model(ModelConfig(), contents(images))
    assert (chosen.name, chosen.decoder_width, chosen.decoder_depth, chosen.decoder_heads) == (name, *decoder)


def test_what_is_set_stays_and_the_rest_follows_from_it() -> None:
    chosen = choose_model(ModelConfig(image_size=48, decoder_width=512, mask_ratio=0.6), contents(shorter_side=300))
    assert (chosen.image_size, chosen.patch_size, chosen.mask_ratio) == (48, 4, 0.6)
    assert (chosen.decoder_width, chosen.decoder_depth, chosen.decoder_heads) == (512, 2, 16)
    tall = choose_model(ModelConfig(image_size=(96, 192)), contents(shorter_side=None))
    assert (tall.image_size, tall.patch_size) == ((96, 192), 8)


def test_a_named_model_is_itself_with_maes_decoder() -> None:
    chosen = choose_model(ModelConfig(name="vit_small_patch16_224", decoder_depth=2), contents(shorter_side=None))
    decoder = (chosen.decoder_width, chosen.decoder_depth, chosen.decoder_heads)
    assert (chosen.image_size, chosen.patch_size, decoder) == (None, None, (512, 2, 16))


def test_images_of_unknown_size_need_a_model() -> None:
    with pytest.raises(
        ConfigError, match="sizes of the images, and those of photos are not known here; set model.name"
    ):
        choose_model(ModelConfig(), contents(shorter_side=None))


@pytest.mark.parametrize(
    ("images", "batch_size", "epochs"),
    [
        (1, 1, 800),
        (50, 32, 800),
        (64, 64, 800),
        (1438, 64, 800),  # 22 steps an epoch: 20,000 would take 890
        (4095, 64, 320),  # 127 images in a 32nd; 64 * 20,000 / 4,095 = 312.6
        (4096, 128, 630),  # 128 * 20,000 / 4,096 = 625
        (9469, 256, 550),  # 295 in a 32nd; 540.7 epochs
        (50_000, 1024, 410),  # 409.6
        (1_281_167, 4096, 200),  # 63.9, so the fewest
    ],
)
def test_batches_leave_enough_steps_an_epoch_and_epochs_enough_steps(images: int, batch_size: int, epochs: int) -> None:
    assert choose_batch_size(images) == batch_size
    assert choose_epochs(images, batch_size) == epochs
