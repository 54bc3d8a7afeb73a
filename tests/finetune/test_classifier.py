import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.func import functional_call

from finetune.classifier import Classifier, build_classifier
from finetune.config import ClassifierConfig
from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import stage_size
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.masked_autoencoder import build_model
from mae_curriculum.model.positions import resample_bias, resample_positions, sincos_positions
from mae_curriculum.weights.read import Weights

CPU = torch.device("cpu")
DEIT = ClassifierConfig(
    "deit_tiny_patch16_224", image_size=32, patch_size=4, options={"embed_dim": 48, "depth": 2, "num_heads": 3}
)
SWIN = ClassifierConfig(
    "swin_tiny_patch4_window7_224",
    image_size=64,
    options={"window_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]},
)
MODELS = {
    "deit": DEIT,
    "resnet": ClassifierConfig("resnet10t", image_size=32),
    "convnext": ClassifierConfig(
        "convnext_atto", image_size=64, options={"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
    ),
    "swin": SWIN,
    "pvt_v2": ClassifierConfig("pvt_v2_b0", image_size=64, options={"depths": [1, 1, 1, 1]}),
    "caformer": ClassifierConfig("caformer_s18", image_size=64),
    "cswin": ClassifierConfig(
        "cswin_tiny", image_size=64, options={"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2]}
    ),
    "pvt": ClassifierConfig("pvt_tiny", image_size=64, options={"embed_dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1]}),
}
VIT = ModelConfig("vit_tiny_patch16_224", image_size=32, patch_size=8, width=48, depth=2, heads=3, decoder_depth=1)


def build(config: ClassifierConfig, sizes: tuple[int, ...] = (160, 192)) -> Classifier:
    """Build a classifier of four classes, ready for these sizes of a curriculum."""
    classifier, _ = build_classifier(config, None, class_count=4, seed=0)
    classifier.make_ready_({stage_size(size, classifier.image_size, classifier.cell) for size in sizes}, CPU)
    return classifier


def pictures(*size: int) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_every_family_trains_one_set_of_parameters_at_every_size(name: str) -> None:
    classifier = build(MODELS[name]).train()
    names = set(dict(classifier.named_parameters()))
    sizes = {stage_size(size, classifier.image_size, classifier.cell) for size in (160, 192, 224)}
    assert len(sizes) > 1
    for size in sizes:
        classifier.zero_grad()
        classifier(pictures(*size), torch.eye(4)[:2]).sum().backward()
        missing = {name for name, value in classifier.named_parameters() if value.grad is None}
        assert not missing
    assert set(dict(classifier.named_parameters())) == names


@pytest.mark.parametrize("name", MODELS)
def test_at_full_size_a_classifier_equals_timms_model(name: str) -> None:
    classifier = build(MODELS[name]).eval()
    config = MODELS[name]
    sized: dict[str, Any] = {"img_size": config.image_size} if name in ("deit", "swin", "pvt") else {}
    patched: dict[str, Any] = {"patch_size": config.patch_size} if config.patch_size else {}
    alone: Any = timm.create_model(str(config.name), num_classes=4, **config.options, **sized, **patched)
    alone.load_state_dict(classifier.net.state_dict())
    images = pictures(*classifier.image_size)
    assert torch.equal(classifier.logits(images), alone.eval()(images))


def test_a_vit_at_a_smaller_size_equals_timms_model_with_resampled_positions() -> None:
    classifier = build(DEIT).eval()
    small: Any = timm.create_model(
        "deit_tiny_patch16_224", img_size=24, patch_size=4, num_classes=4, embed_dim=48, depth=2, num_heads=3
    ).eval()
    state = classifier.net.state_dict()
    token, patches = state["pos_embed"][0].tensor_split([1])
    grid = patches.view(1, 8, 8, 48).permute(0, 3, 1, 2)
    resampled = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic").permute(0, 2, 3, 1).view(36, 48)
    small.load_state_dict({**state, "pos_embed": torch.cat([token, resampled])[None]})
    images = pictures(24, 24)
    torch.testing.assert_close(classifier.logits(images), small(images), atol=1e-6, rtol=0)


def test_swin_at_a_smaller_size_equals_timms_model_with_smaller_windows_and_resampled_biases() -> None:
    classifier = build(SWIN).eval()
    assert classifier.cell == (8, 8)
    arguments = {**SWIN.options, "window_size": 3, "img_size": 48, "num_classes": 4}
    small: Any = timm.create_model("swin_tiny_patch4_window7_224", **arguments).eval()
    adapted = classifier.parameters_at((48, 48))
    small.load_state_dict(adapted)
    images = pictures(48, 48)
    torch.testing.assert_close(classifier.logits(images), small(images), atol=1e-6, rtol=0)
    key = "layers.0.blocks.0.attn.relative_position_bias_table"
    full = dict(classifier.net.named_parameters())[key]
    assert (full.shape, adapted[key].shape) == ((49, 2), (25, 2))


@pytest.mark.parametrize("name", ["deit", "swin", "pvt"])
def test_adams_moments_stay_those_of_the_full_parameters_when_the_size_changes(name: str) -> None:
    classifier = build(MODELS[name]).train()
    optimizer = torch.optim.AdamW(classifier.parameters(), betas=(0.9, 0.99))
    parameters = dict(classifier.named_parameters())
    tables = [key for key in parameters if "pos_embed" in key or "bias_table" in key]
    sizes = sorted({stage_size(size, classifier.image_size, classifier.cell) for size in (160, 224)})
    expected = {key: (torch.zeros_like(parameters[key]), torch.zeros_like(parameters[key])) for key in tables}
    for size in [sizes[0], sizes[1], sizes[0]]:
        optimizer.zero_grad()
        classifier(pictures(*size), torch.eye(4)[:2]).sum().backward()
        optimizer.step()
        for key, (mean, square) in expected.items():
            gradient = parameters[key].grad
            assert gradient is not None
            expected[key] = torch.lerp(mean, gradient, 0.1), torch.lerp(square, gradient.square(), 0.01)
            state = optimizer.state[parameters[key]]
            torch.testing.assert_close((state["exp_avg"], state["exp_avg_sq"]), expected[key])
    assert tables


def test_a_gradient_through_a_smaller_grid_is_the_one_of_the_full_grid_which_interpolated_moments_are_not() -> None:
    wanted = sincos_positions((14, 14), (14, 14), 64, CPU)  # any smooth table
    table = torch.zeros(196, 64, requires_grad=True)
    gradients = {}
    for side in (10, 14):
        positions = resample_positions(table, (14, 14), (side, side))
        loss = (positions * sincos_positions((side, side), (14, 14), 64, CPU)).sum(dim=1).mean()
        (gradients[side],) = torch.autograd.grad(loss, table)
    through_smaller = gradients[10]
    torch.testing.assert_close(gradients[14], wanted / 196)
    on_smaller = sincos_positions((10, 10), (14, 14), 64, CPU).T.reshape(1, 64, 10, 10) / 100
    theirs = torch.nn.functional.interpolate(on_smaller, size=(14, 14), mode="bilinear").flatten(2)[0].T
    scale = wanted.square().mean().sqrt() / 196
    errors = [float((each - gradients[14]).square().mean().sqrt() / scale) for each in (through_smaller, theirs)]
    assert errors[0] < 0.5 < 0.9 < errors[1]
    assert (theirs * 100 / 196 - gradients[14]).square().mean().sqrt() / scale < 0.1


def test_images_of_every_size_update_batch_norm_buffers() -> None:
    classifier = build(MODELS["resnet"]).train()
    before = classifier.net.bn1.running_mean.clone()
    classifier.logits(pictures(22, 22))
    assert not torch.equal(classifier.net.bn1.running_mean, before)


def test_window_biases_are_resampled_at_the_same_displacement_in_the_image() -> None:
    table = torch.arange(13.0)[:, None, None] * 100 + torch.arange(13.0)[:, None]  # 100 down + across, window of 7
    half = resample_bias(table.reshape(169, 1), (7, 7), (4, 4), (2.0, 2.0)).view(7, 7)
    torch.testing.assert_close(half, table[::2, ::2, 0], atol=1e-3, rtol=0)  # every second displacement


def test_positions_resampled_from_maes_table_are_close_to_its_formula() -> None:
    table = sincos_positions((14, 14), (14, 14), 768, CPU)
    for grid, max_error in (((10, 10), 0.007), ((6, 6), 0.008), ((7, 14), 0.009)):
        expected = sincos_positions(grid, (14, 14), 768, CPU)
        error = (resample_positions(table, (14, 14), grid) - expected).square().mean().sqrt()
        assert error < max_error
    assert resample_positions(table, (14, 14), (14, 14)) is table


def pretrained(**changes: Any) -> Weights:
    model = build_model(replace(VIT, **changes), seed=3)
    return Weights(replace(VIT, **changes), dict(model.encoder.state_dict()), {}, "a test")


def test_a_pretrained_encoder_computes_the_same_tokens_in_a_classifier() -> None:
    classifier, note = build_classifier(ClassifierConfig(pool="token"), pretrained(), class_count=4, seed=0)
    assert note == "new: head.bias, head.weight"
    images = pictures(32, 32)
    expected = build_model(VIT, seed=3).eval().tokens(images)
    torch.testing.assert_close(classifier.eval().net.forward_features(images), expected, atol=1e-5, rtol=0)


def test_average_pooling_replaces_the_norm_and_says_so() -> None:
    classifier, note = build_classifier(ClassifierConfig(), pretrained(), class_count=4, seed=0)
    assert note == (
        "new: fc_norm.bias, fc_norm.weight, head.bias, head.weight; in the checkpoint, not used: norm.bias, norm.weight"
    )
    assert classifier.net.head.weight.abs().max() < 2e-4  # MAE's 2e-5


def test_a_head_for_the_same_classes_is_kept() -> None:
    first, _ = build_classifier(ClassifierConfig(), pretrained(), class_count=4, seed=1)
    weights = replace(pretrained(), encoder=first.net.state_dict())
    same, note = build_classifier(ClassifierConfig(), weights, class_count=4, seed=2)
    assert not note
    assert torch.equal(same.net.head.weight, first.net.head.weight)
    _, note = build_classifier(ClassifierConfig(), weights, class_count=5, seed=2)
    assert note == "new: head.bias, head.weight; in the checkpoint, not used: head.bias, head.weight"


@pytest.mark.parametrize(
    ("changes", "grid"),
    [({"image_size": 64}, (8, 8)), ({"image_size": (32, 64)}, (4, 8)), ({"patch_size": 4}, (8, 8))],
)
def test_positions_and_patches_are_resampled_for_another_size(changes: dict[str, Any], grid: tuple[int, int]) -> None:
    classifier, _ = build_classifier(ClassifierConfig(**changes), pretrained(), class_count=4, seed=0)
    assert classifier.net.patch_embed.grid_size == grid
    expected = sincos_positions(grid, (4, 4), 48, CPU)
    positions = classifier.net.pos_embed[0, 1:]
    assert (positions - expected).square().mean().sqrt() < 0.06  # bicubic near the border, with so coarse a table
    assert classifier.logits(pictures(*classifier.image_size)).isfinite().all()


def test_a_classifier_depends_only_on_its_seed_and_keeps_the_global_random_state() -> None:
    torch.manual_seed(5)
    first = build(SWIN)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    torch.manual_seed(6)
    second = build(SWIN)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("config", "weights", "message"),
    [
        (ClassifierConfig(), None, "model.name: choose a timm model"),
        (ClassifierConfig("resnet_18"), None, "timm has no 'resnet_18'; similar: resnet18"),
        (ClassifierConfig("resnet18"), pretrained(), "the checkpoint defines the ViT"),
        (ClassifierConfig("resnet18", options={"color": 3}), None, "model: timm cannot build resnet18 with"),
        (ClassifierConfig(image_size=30), pretrained(), "image_size: 30 px must be a multiple of 8 for vit_tiny"),
        (ClassifierConfig(channels=1), pretrained(), "patch_embed.proj.weight .*48, 3, 8, 8.*expected .*48, 1, 8, 8"),
        (
            ClassifierConfig(),
            replace(pretrained(), model=replace(VIT, depth=3)),
            "the pretrained encoder does not fit: missing: blocks.2",
        ),
    ],
)
def test_invalid_classifiers_are_refused_in_one_line(
    config: ClassifierConfig, weights: Weights | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_classifier(config, weights, class_count=4, seed=0)
    assert "\n" not in str(caught.value)


def test_a_size_that_a_network_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match="this model does not take the curriculum's 28 px"):
        build(MODELS["convnext"], sizes=(96,))


def test_gradients_reach_the_full_positions_through_a_smaller_grid() -> None:
    classifier = build(DEIT)
    positions = classifier.net.pos_embed
    loss = functional_call(classifier, {}, (pictures(24, 24), torch.eye(4)[:2])).sum()
    (gradient,) = torch.autograd.grad(loss, positions)
    assert gradient.shape == positions.shape == (1, 65, 48)
    assert (gradient[0] != 0).float().mean() > 0.9
    assert math.isfinite(float(gradient.sum()))


def test_timm_loads_the_state_of_a_classifier(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    classifier, _ = build_classifier(ClassifierConfig(), pretrained(), class_count=4, seed=0)
    save_file(classifier.net.state_dict(), tmp_path / "model.safetensors")
    again: Any = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=4,
        global_pool="avg",
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
        checkpoint_path=str(tmp_path / "model.safetensors"),
    )
    images = pictures(32, 32)
    assert torch.equal(again.eval()(images), classifier.eval().logits(images))


@pytest.mark.parametrize(
    "name", ["beit_base_patch16_224", "coatnet_0_rw_224", "volo_d1_224", "gcvit_xxtiny", "maxvit_tiny_rw_224"]
)
def test_other_networks_work_at_a_smaller_size_or_are_refused_in_one_line(name: str) -> None:
    message = ""
    try:
        classifier = build(ClassifierConfig(name), sizes=(160,)).eval()
        assert classifier.logits(pictures(160, 160)).isfinite().all()
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message


def test_a_network_without_drop_path_is_built() -> None:
    assert build(ClassifierConfig("vgg11", image_size=64, drop_path=0.0)).cell


def test_flops_include_attention_on_every_device() -> None:
    from finetune.finetune import training_flops
    from mae_curriculum.curriculum.clock import View

    classifier = build(DEIT)
    tokens, width, blocks = 65, 48, 2
    by_hand = 2 * 64 * (4 * 4 * 3) * width  # patches
    by_hand += blocks * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)  # linear layers, attention
    by_hand += 2 * width * 4  # head
    assert training_flops(classifier, View((32, 32))) == 3 * by_hand


def test_a_skipped_step_does_not_change_batch_norm() -> None:
    from mae_curriculum.curriculum.clock import Clock
    from mae_curriculum.curriculum.config import Augmentation, Curriculum
    from mae_curriculum.data.config import DataConfig
    from mae_curriculum.data.loader import Batch, TrainingImages
    from mae_curriculum.data.sources import open_images
    from mae_curriculum.distributed import World
    from mae_curriculum.tracking.stopwatch import Stopwatch
    from mae_curriculum.training.config import TrainingConfig
    from mae_curriculum.training.optimizer import build_optimizer
    from mae_curriculum.training.step import Training, update_

    model = build(MODELS["resnet"]).train()
    images, _ = open_images(DataConfig("digits"))
    clock = Clock(Curriculum(), image_size=(32, 32), patch_size=(2, 2), images_per_epoch=8, epochs=1, batch_images=8)
    config = TrainingConfig(batch_size=8, precision="float32")
    dataset = TrainingImages(images, (32, 32), 3, Augmentation(), 0)
    wrong = torch.full((8, 3, 32, 32), math.inf)
    training = Training(
        config=config,
        world=World(0, 1, CPU),
        images=images,
        data_fingerprint="",
        dataset=dataset,
        inputs=lambda *_: (wrong, torch.eye(4)[:1].expand(8, -1)),
        model=model,
        optimizer=build_optimizer(model, config.optim),
        clock=clock,
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = Batch(torch.zeros(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64), range(8), is_last=True, broken={})
    step = update_(training, clock.moment(0), iter([batch]), Stopwatch(), lr=0.1)
    assert step is not None
    assert not step.gradient_norm.isfinite()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
