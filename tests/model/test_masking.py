"""Masks in blocks, and several class tokens."""

from dataclasses import replace

import pytest
import timm
import torch

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import View
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.masked_autoencoder import build_model, timm_arguments
from mae_curriculum.model.masking import mask_noise, split_by_noise
from mae_curriculum.model.shape import ModelShape, plain_vit_shape
from mae_curriculum.pretraining_config import PretrainConfig, build_clock
from tests.small import SMALL


def shape_of(**changes: object) -> ModelShape:
    shape = plain_vit_shape(replace(ModelConfig(name="vit_base_patch16_224"), **changes))  # type: ignore[arg-type]
    assert shape is not None
    return shape


def test_blocks_of_two_by_two_keep_as_many_patches_as_published() -> None:
    shape = shape_of(mask_block=2)
    kept = {grid: shape.visible_count(View((16 * grid, 16 * grid), 0.75)) for grid in (6, 10, 12, 14)}
    assert kept == {6: 8, 10: 24, 12: 36, 14: 48}


def test_a_block_is_seen_or_hidden_as_a_whole() -> None:
    noise = torch.tensor([[0.3, 0.1, 0.2, 0.9, 0.8, 0.7]])  # blocks of a grid of 4 x 6 patches, row by row
    ids_keep, ids_mask = split_by_noise(noise, 8, grid=(4, 6), block=2)
    assert ids_keep.tolist() == [[2, 3, 8, 9, 4, 5, 10, 11]]
    assert sorted(torch.cat([ids_keep, ids_mask], dim=1)[0].tolist()) == list(range(24))


def test_blocks_of_one_patch_are_ranked_by_their_noise() -> None:
    noise = mask_noise(seed=0, step=0, places=range(3), count=24)
    ids_keep, ids_mask = split_by_noise(noise, 6, grid=(4, 6))
    assert torch.equal(torch.cat([ids_keep, ids_mask], dim=1), noise.argsort(dim=1, stable=True))


def test_a_stage_that_blocks_do_not_divide_is_refused_with_what_fits() -> None:
    config = PretrainConfig(model=ModelConfig(name="vit_base_patch16_224", mask_block=2), epochs=2, batch_size=8)
    assert len(build_clock(config, shape_of(mask_block=2), images_per_epoch=64).spans) == 3
    fitting = r"112 \(128 px\), 168 \(192 px\), 224 \(256 px\)"
    with pytest.raises(ConfigError, match=rf"size 160 \(176 px here\) has a grid of 11 .* fit: {fitting}$"):
        build_clock(config, shape_of(mask_block=4, image_size=256), images_per_epoch=64)
    with pytest.raises(ConfigError, match="blocks of 4 do not divide the grid of 14x14 .* multiples of 64x64 px"):
        shape_of(mask_block=4)


@pytest.mark.parametrize(("size", "ratio"), [(224, 1.035), (96, 1.18)])
def test_four_class_tokens_cost_as_much_as_published(size: int, ratio: float) -> None:
    view = View((size, size), 0.75)
    found = shape_of(class_tokens=4).training_flops(view) / shape_of().training_flops(view)
    assert found == pytest.approx(ratio, abs=0.005)


def test_a_decoder_of_384x16_costs_as_much_as_published() -> None:
    view, other = View((224, 224), 0.75), {"decoder_width": 384, "decoder_depth": 16, "decoder_heads": 12}
    assert shape_of(**other).training_flops(view) / shape_of().training_flops(view) == pytest.approx(1.08, abs=0.005)


def test_class_tokens_are_counted_averaged_and_registers_of_timm() -> None:
    config = replace(SMALL, class_tokens=4)
    model = build_model(config, seed=0)
    assert model.shape == plain_vit_shape(config)
    images = torch.rand(2, config.channels, *model.image_size, generator=torch.Generator().manual_seed(0))
    tokens = model.tokens(images)
    assert model.pools == ("token", "avg", "class_avg")
    found = model.features(images)
    torch.testing.assert_close(found[:, 2], tokens[:, :4].mean(dim=1))
    torch.testing.assert_close(found[:, 1], tokens[:, 4:].mean(dim=1))
    net = timm.create_model(str(config.name), num_classes=0, global_pool="", **timm_arguments(config))
    net.load_state_dict(model.encoder.state_dict())
    torch.testing.assert_close(net.eval()(images), tokens, atol=1e-5, rtol=1e-5)


def test_class_tokens_and_timms_registers_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="class_tokens: 4 sets timm's reg_tokens; omit it in model.options"):
        ModelConfig(class_tokens=4, options={"reg_tokens": 2})
    with pytest.raises(ConfigError, match="mask_block must be at least 1"):
        ModelConfig(mask_block=0)
