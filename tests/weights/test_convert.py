"""Weights that are converted to other images: what they compute stays the same where it can."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder, build_model
from mae_curriculum.model.positions import sincos_positions
from mae_curriculum.weights.build import build_autoencoder, build_encoder
from mae_curriculum.weights.convert import convert
from mae_curriculum.weights.names import decoder_to_mae
from mae_curriculum.weights.read import Weights
from tests.small import SMALL
from tests.vits import pictures, randomize

UNSAID = ModelConfig()


def weights_of(config: ModelConfig = SMALL, *, decoder: bool = True) -> Weights:
    """Return random weights with MAE's positions."""
    model = build_model(config, seed=0)
    state = randomize(model).state_dict()
    state["encoder.pos_embed"] = build_model(config, seed=0).encoder.pos_embed.detach()
    encoder = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    return Weights(config, encoder, decoder_to_mae(state) if decoder else {}, "a test")


def started(weights: Weights, **wanted: Any) -> tuple[MaskedAutoencoder, tuple[str, ...]]:
    """Return the model that starts from weights, and what was converted."""
    start = convert(weights, replace(UNSAID, **wanted), "theirs")
    build = build_autoencoder if start.weights.decoder else build_encoder
    return build(start.weights, "theirs"), start.changes


def model_of(weights: Weights, **wanted: Any) -> ModelConfig:
    return convert(weights, replace(UNSAID, **wanted), "theirs").weights.model


@torch.no_grad()
def embedded(model: MaskedAutoencoder, images: Tensor) -> Tensor:
    """Return the patch embeddings, without positions."""
    projection = model.encoder.patch_embed.proj
    embeddings: Tensor = projection(images)
    return embeddings.flatten(2).mT


def test_settings_left_at_their_defaults_follow_from_the_weights() -> None:
    weights = weights_of()
    model, changes = started(weights)
    own = build_autoencoder(weights, "theirs")
    assert changes == ()
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in model.state_dict().items())
    assert (model.image_size, model.patch_size) == ((32, 32), (8, 8))


def test_what_was_converted_once_is_not_converted_again() -> None:
    start = convert(weights_of(), replace(UNSAID, image_size=64, mask_ratio=0.6), "theirs")
    again = convert(start.weights, start.weights.model, "theirs")
    assert (again.weights.model, again.changes) == (start.weights.model, ())


@pytest.mark.parametrize("size", [48, (32, 64)])
def test_another_image_size_interpolates_both_tables_of_positions(size: int | tuple[int, int]) -> None:
    model, changes = started(weights_of(), image_size=size)
    grid = model.full_grid
    assert model.encoder.pos_embed is not None
    assert model.decoder.pos_embed is not None
    for table, width in ((model.encoder.pos_embed, 48), (model.decoder.pos_embed, 32)):
        assert torch.equal(table[0, 1:], sincos_positions(grid, (4, 4), width, table.device))
    assert model(pictures(*model.image_size), torch.rand(2, grid[0] * grid[1]), 0.75).shape == (2,)
    assert changes == (
        f"image size 32 -> {'48' if size == 48 else '32x64'}",
        f"grid 4 -> {'6' if size == 48 else '4x8'}",
    )


def test_learned_positions_are_resampled_and_those_of_the_class_token_kept() -> None:
    weights = weights_of(decoder=False)
    learned = torch.randn(1, 17, 48)
    model, _ = started(replace(weights, encoder=weights.encoder | {"pos_embed": learned}), image_size=64)
    assert torch.equal(model.encoder.pos_embed[0, 0], learned[0, 0])
    assert model.encoder.pos_embed.shape == (1, 65, 48)
    assert model.learned_positions


def test_resampled_kernels_see_the_same_in_enlarged_patches() -> None:
    weights = weights_of(decoder=False)
    own = build_encoder(weights, "theirs")
    model, changes = started(weights, image_size=64, patch_size=16)
    images = pictures(32, 32)
    patches = rearrange(images, "b c (y p) (x q) -> (b y x) c p q", p=8, q=8)
    large = torch.nn.functional.interpolate(patches, size=(16, 16), mode="bicubic", antialias=True)
    seen = embedded(model, large).flatten(0, 1)
    torch.testing.assert_close(seen, embedded(own, images).flatten(0, 1), atol=1e-4, rtol=1e-4)
    assert changes[:2] == ("image size 32 -> 64", "patch size 8 -> 16")


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (6, [0, 1, 2])])
def test_kernels_for_other_channels_see_the_same(channels: int, shown: list[int]) -> None:
    weights = weights_of()
    model, changes = started(weights, channels=channels)
    own = build_encoder(weights, "theirs")
    images = pictures(32, 32)
    given = images[:, :1] if channels == 1 else images.repeat(1, 2, 1, 1)
    torch.testing.assert_close(embedded(model, given), embedded(own, images[:, shown]), atol=1e-5, rtol=1e-5)
    assert changes == (f"channels 3 -> {channels}", "a fresh decoder, since patches hold other values")


def test_a_fresh_decoder_fits_the_encoder_where_the_settings_leave_it_open() -> None:
    weights = weights_of(replace(SMALL, width=192), decoder=False)
    model = model_of(weights)
    assert (model.decoder_width, model.decoder_depth, model.decoder_heads) == (96, 2, 3)
    model = model_of(weights, decoder_width=64, decoder_depth=1)
    assert (model.decoder_width, model.decoder_depth, model.decoder_heads) == (64, 1, 2)


def test_a_decoder_is_kept_unless_the_settings_ask_for_another() -> None:
    weights = weights_of(replace(SMALL, target="pixels"))
    assert started(weights)[0].target == "pixels"
    assert started(weights, decoder_depth=2)[1] == ("a fresh decoder: model.decoder_depth 1 -> 2",)
    assert started(weights_of(decoder=False))[1] == ("a fresh decoder: the weights have none",)
    hog = weights_of(replace(SMALL, target="hog", target_from="full"))
    assert (started(hog, target="hog")[1], model_of(hog).target_from) == ((), "full")
    assert started(weights, target="hog")[1] == ("a fresh decoder: model.target pixels -> hog",)
    open_ = replace(weights, open=("--decoder_heads N",))
    assert started(open_)[1] == ("a fresh decoder: the weights do not say how theirs works (--decoder_heads N)",)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"depth": 12}, "theirs has 2 blocks of width 48 with 3 heads, the settings ask for 12 blocks of width 48"),
        ({"name": "vit_small_patch16_224"}, "ask for 12 blocks of width 384 with 6 heads; choose other weights, or"),
        ({"heads": 6}, "ask for 2 blocks of width 48 with 6 heads; .* leave out model.heads"),
        ({"options": {"reg_tokens": 4}}, "differ in reg_token; leave out model.options"),
    ],
)
def test_another_network_is_refused(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        started(weights_of(), **wanted)


def test_only_three_channels_become_others() -> None:
    with pytest.raises(ConfigError, match="theirs takes 1 channels, .*; set model.channels to 1"):
        started(weights_of(replace(SMALL, channels=1)))


def test_weights_that_are_not_finite_are_refused() -> None:
    weights = weights_of()
    weights.encoder["blocks.1.mlp.fc1.weight"][3, 3] = torch.nan
    with pytest.raises(ConfigError, match="not finite: blocks.1.mlp.fc1.weight"):
        started(weights)
