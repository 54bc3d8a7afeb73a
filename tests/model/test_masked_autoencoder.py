from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import View
from mae_curriculum.evaluation.reconstruction import unpatchify
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder, build_model
from mae_curriculum.model.masking import mask_noise, patchify, split_by_noise
from mae_curriculum.model.positions import sincos_positions
from mae_curriculum.model.shape import PLAIN_VITS, plain_vit_shape, visible_count
from mae_curriculum.model.targets import make_target
from mae_curriculum.weights.names import decoder_to_mae
from tests.plain_mae import plain_mae_loss, sincos
from tests.small import SMALL

DEEPER = replace(SMALL, decoder_depth=2, decoder_heads=4)
CPU = torch.device("cpu")


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("target", ["pixels", "norm_pixels"])
@pytest.mark.parametrize("mask_ratio", [0.75, 0.5])
def test_the_loss_is_that_of_an_independent_plain_mae(target: Any, mask_ratio: float) -> None:
    model = build_model(replace(DEEPER, target=target), seed=0)
    state = model.state_dict()
    images, order = noise(3, 3, 32, 32), noise(3, 16)
    expected = plain_mae_loss(
        images,
        order,
        state | decoder_to_mae(state),
        patch=8,
        depth=2,
        heads=3,
        decoder_depth=2,
        decoder_heads=4,
        mask_ratio=mask_ratio,
        norm_pix=target == "norm_pixels",
    )
    assert model(images, order, mask_ratio).mean().item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_encoder_sees_nothing_of_masked_patches() -> None:
    model = build_model(replace(DEEPER, target="pixels"), seed=0)
    images, order = noise(1, 3, 32, 32), noise(1, 16)
    ids_keep, ids_mask = split_by_noise(order, 4, grid=(4, 4))
    patches = patchify(images, (8, 8))
    changed = patches.clone()
    changed[0, ids_mask[0]] += 1
    encoded = [
        model.encode(p.gather(1, ids_keep[..., None].expand(-1, -1, 192)), (4, 4), ids_keep) for p in (patches, changed)
    ]
    assert encoded[0].shape == (1, 1 + 4, 48)
    assert torch.equal(*encoded)


def test_every_trained_weight_has_a_gradient() -> None:
    model = build_model(DEEPER, seed=0)
    model(noise(2, 3, 32, 32), noise(2, 16), 0.75).mean().backward()
    still = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not still


@pytest.mark.parametrize("size", [(8, 16), (16, 16), (24, 24), (40, 40)])
def test_images_smaller_or_larger_than_the_full_size_run(size: tuple[int, int]) -> None:
    model = build_model(DEEPER, seed=0)
    loss = model(noise(2, 3, *size), noise(2, size[0] * size[1] // 64), 0.75)
    assert loss.shape == (2,)
    assert loss.isfinite().all()


@pytest.mark.parametrize("channels", [1, 4, 16])
def test_rectangles_and_other_channel_counts_run(channels: int) -> None:
    model = build_model(replace(DEEPER, image_size=(16, 48), channels=channels), seed=0)
    assert model.full_grid == (2, 6)
    assert model(noise(2, channels, 16, 48), noise(2, 12), 0.75).isfinite().all()


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_base_patch16_clip_224",
        "vit_base_patch16_reg4_gap_256",
        "vit_base_patch16_siglip_224",
    ],
)
def test_plain_vits_of_timm_run_whatever_their_prefix_tokens(name: str) -> None:
    model = build_model(replace(DEEPER, name=name), seed=0)
    assert model(noise(1, 3, 32, 32), noise(1, 16), 0.75).isfinite().all()
    assert model.features(noise(1, 3, 32, 32)).shape == (1, len(model.pools), 48)


def test_the_encoder_alone_is_timms_model_of_that_name() -> None:
    model = build_model(DEEPER, seed=0).eval()
    shape: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    timms: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="", **shape).eval()
    timms.load_state_dict(model.encoder.state_dict(), strict=True)
    images = noise(2, 3, 32, 32)
    torch.testing.assert_close(
        model.encode(patchify(images, (8, 8)), (4, 4)), timms.forward_features(images), atol=1e-5, rtol=0
    )


def test_inside_autocast_tokens_stay_float32_between_blocks() -> None:
    model = build_model(DEEPER, seed=0)
    seen: list[torch.dtype] = []
    for block in (model.encoder.blocks[-1], model.decoder.blocks[-1]):
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    images, order = noise(2, 3, 32, 32), noise(2, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images, order, 0.75)
    assert seen == [torch.float32, torch.float32]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, model(images, order, 0.75), rtol=0.02, atol=0)


def test_weights_depend_on_the_seed_alone_and_leave_the_random_state() -> None:
    before = torch.get_rng_state()
    first, second, other = (build_model(DEEPER, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["mask_token"], other["mask_token"])


def test_initialisation_is_that_of_mae() -> None:
    model = build_model(replace(DEEPER, width=384, heads=6), seed=0)
    qkv = model.encoder.blocks[0].attn.qkv.weight  # Xavier-uniform over the fused matrix: sqrt(6 / (384 + 1152))
    assert qkv.abs().max().item() == pytest.approx(0.0625, rel=0.01)
    projection = model.encoder.patch_embed.proj.weight  # over the flattened patch: sqrt(6 / (192 + 384))
    assert projection.abs().max().item() == pytest.approx(0.1021, rel=0.01)
    assert model.encoder.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert not model.encoder.blocks[0].attn.qkv.bias.any()


def test_positions_on_the_full_grid_are_the_papers() -> None:
    torch.testing.assert_close(sincos_positions((5, 5), (5, 5), 16, CPU), sincos(5, 16))


def test_positions_on_a_smaller_grid_lie_at_its_patches_centres() -> None:
    # of 4 patches, two by two: centres at 0.5 and 2.5; of a 6-patch row, three by three: 1 and 4
    table = sincos_positions((2, 2), (4, 6), 4, CPU)  # columns: sin x, cos x, sin y, cos y
    x, y = torch.tensor([1.0, 4.0, 1.0, 4.0]), torch.tensor([0.5, 0.5, 2.5, 2.5])
    torch.testing.assert_close(table, torch.stack([x.sin(), x.cos(), y.sin(), y.cos()], 1))


def test_visible_patches_are_a_quarter_but_never_none_or_all() -> None:
    assert [visible_count(patches, 0.75) for patches in (196, 36, 2)] == [49, 9, 1]
    assert visible_count(4, 0.01) == 3


def test_masks_depend_on_seed_step_and_place_alone() -> None:
    whole = mask_noise(seed=3, step=5, places=range(0, 16), count=49)
    parts = [mask_noise(seed=3, step=5, places=part, count=49) for part in (range(0, 5), range(5, 6), range(6, 16))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, mask_noise(seed=3, step=6, places=range(0, 16), count=49))
    assert not torch.equal(whole, mask_noise(seed=4, step=5, places=range(0, 16), count=49))


def test_masks_hide_every_patch_equally_often() -> None:
    ids_keep, _ = split_by_noise(mask_noise(seed=0, step=0, places=range(4000), count=16), 4, grid=(4, 4))
    counts = torch.bincount(ids_keep.flatten(), minlength=16) / 4000
    assert (counts - 0.25).abs().max() < 0.03  # four standard deviations


def test_normalised_target_has_mean_zero_and_variance_one() -> None:
    ids = torch.tensor([[0, 2, 3], [1, 2, 0]])
    target = make_target(noise(2, 3, 8, 8), ids, grid=(2, 2), patch_size=(4, 4), kind="norm_pixels")
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(target.var(-1), torch.ones(2, 3), atol=1e-3, rtol=0)


def test_a_share_of_the_masked_patches_is_predicted_at_random_and_the_others_are_left_out() -> None:
    whole = build_model(replace(DEEPER, target="pixels"), seed=0)
    half = build_model(replace(DEEPER, target="pixels", decode_share=0.5), seed=0)
    images, order = noise(1, 3, 32, 32), noise(1, 16)
    ids_keep, ids_mask = split_by_noise(order, 4, grid=(4, 4))
    predicted = ids_mask[:, :6]  # of 12
    tokens = whole.encode(patchify(images, (8, 8)).gather(1, ids_keep[..., None].expand(-1, -1, 192)), (4, 4), ids_keep)
    decoded = whole.decoder(tokens, whole.mask_token, (4, 4), ids_keep, predicted)
    expected = (decoded - whole.make_target(images, predicted)).square().mean()
    torch.testing.assert_close(half(images, order, 0.75).mean(), expected)
    images.view(-1)[:] = patchless(images, ids_mask[0, 6:])
    torch.testing.assert_close(half(images, order, 0.75).mean(), expected)
    assert half.shape.predicted_count(View((8, 16), 0.75)) == 1


def patchless(images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the values of images (1, 3, 32, 32) whose patches `ids` are black."""
    patches = patchify(images, (8, 8)).clone()
    patches[0, ids] = 0
    return unpatchify(patches, (4, 4), (8, 8)).flatten()


@pytest.mark.parametrize("size", [96, 160, 224])
@pytest.mark.parametrize("decode_share", [1.0, 0.3])
def test_flops_agree_with_torchs_counter(size: int, decode_share: float) -> None:
    model = build_model(ModelConfig(name="vit_tiny_patch16_224", decoder_depth=2, decode_share=decode_share), seed=0)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = model(noise(1, 3, size, size), noise(1, (size // 16) ** 2), 0.75).mean()
        forward = counter.get_total_flops()
        loss.backward()
    view = View((size, size), 0.75)
    assert model.shape.forward_flops(view) == pytest.approx(forward, rel=0.01)
    assert model.shape.training_flops(view) == pytest.approx(counter.get_total_flops(), rel=0.01)


SHAPES = [
    *(ModelConfig(name=name) for name in PLAIN_VITS),
    ModelConfig(name="vit_tiny_patch16_224", image_size=(32, 48), patch_size=8, channels=1, width=48, depth=2, heads=3),
]


@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"{config.name}-{config.width}")
def test_the_shape_of_a_plain_vit_is_known_without_building_it(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    assert plain_vit_shape(config) == model.shape
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert model.shape.encoder.parameters + model.shape.decoder.parameters == trained
    assert model.shape.checkpoint_bytes == 4 * (2 * trained + sum(p.numel() for p in model.parameters()))


def test_other_vits_are_measured() -> None:
    assert plain_vit_shape(ModelConfig(name="vit_small_patch16_dinov3")) is None


MISTAKES: dict[str, dict[str, Any]] = {
    "decode_share must be above 0 and at most 1, got 0": {"decode_share": 0.0},
    "has no plain ViT named 'vit_bse_patch16_224'; similar: vit_base_patch16_224": {"name": "vit_bse_patch16_224"},
    "has no plain ViT named 'resnet50'": {"name": "resnet50"},
    "image_size 30x30 must be a multiple of the patch size, 8": {"image_size": 30},
    "hold more than one patch": {"image_size": 8},
    "should be divisible by num_heads": {"width": 50},
    "width must be a multiple of 4 and of its 3 heads, got 54": {"width": 54},
    "decoder_width must be a multiple of 4 and of its 4 heads, got 30": {"decoder_width": 30},
    "mask_ratio must be above 0 and below 1, got 0": {"mask_ratio": 0.0},
    "mask_ratio must be above 0 and below 1, got 1": {"mask_ratio": 1.0},
    "channels must be in 1..16, got 17": {"channels": 17},
    "depth must be at least 1, got 0": {"depth": 0},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_what_cannot_be_is_refused_in_one_line(message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")) as caught:
        build_model(replace(DEEPER, **MISTAKES[message]), seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["vit_b16", "vit_b_16", "ViT-B/16", "ViT-B-16", "vit_base_patch16", "mae_vit_base_patch16"]
)
def test_short_names_of_a_vit_lead_to_timms(name: str) -> None:
    with pytest.raises(ConfigError, match="similar: vit_base_patch16_224,"):
        build_model(ModelConfig(name=name), seed=0)


def test_a_name_without_a_patch_size_leads_to_the_sizes() -> None:
    with pytest.raises(ConfigError, match="similar: vit_huge_patch14_224,"):
        build_model(ModelConfig(name="vit_huge"), seed=0)
    with pytest.raises(ConfigError, match="no plain ViT named 'mobilevit_s'; (?!similar: vit_small)"):
        build_model(ModelConfig(name="mobilevit_s"), seed=0)
