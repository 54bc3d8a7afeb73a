"""Every format at unusual shapes: features, and losses of autoencoders, equal those of the library that wrote it."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor

from mae_curriculum.config import ConfigError
from mae_curriculum.evaluation.encoder import load_encoder
from mae_curriculum.weights.build import build_autoencoder
from mae_curriculum.weights.names import MODEL_KEY, NORMALIZATION_KEY
from mae_curriculum.weights.read import read_weights
from tests.plain_mae import sincos
from tests.vits import (
    HUGGING_FACE,
    NOISE,
    TINY,
    VARIANTS,
    check_tokens,
    encoder_of,
    hugging_face,
    loss_of,
    pictures,
    randomize,
    saved_encoder,
    timm_model,
    vit_mae,
)

transformers = pytest.importorskip("transformers")


def as_facebooks(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a saved ViTMAE under the names of facebookresearch/mae."""
    weights = read_weights(folder)
    table = weights.decoder.get("decoder_pos_embed", torch.cat([torch.zeros(1, 64), sincos(4, 64)])[None])
    return {**weights.encoder, **weights.decoder, "decoder_pos_embed": table}


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_folder_of_timm_gives_timms_features(name: str, tmp_path: Path) -> None:
    theirs = timm_model(**VARIANTS[name])
    save_for_hf(theirs, str(tmp_path), model_args=TINY | VARIANTS[name])
    images = pictures(*theirs.patch_embed.img_size, channels=theirs.patch_embed.proj.in_channels)
    assert check_tokens(tmp_path, theirs.forward_features(images), images) == []
    weights = read_weights(tmp_path)
    assert weights.mean == weights.std == (0.5,) * weights.model.channels


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("wide", "relu")])
def test_a_bare_file_gives_timms_features_and_says_what_is_assumed(name: str, tmp_path: Path) -> None:
    theirs = timm_model(**VARIANTS[name])
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    images = pictures(*theirs.patch_embed.img_size, channels=theirs.patch_embed.proj.in_channels)
    said = check_tokens(tmp_path / "vit.pth", theirs.forward_features(images), images, heads=6)
    assert len(said) == 1
    assert said[0].endswith(
        "leaves open, and this is assumed: square images of 32x32 (--image_size); "
        "blocks of a plain ViT with GELU, layer norms with an epsilon of 1e-06"
    )


def test_heads_that_only_the_width_suggests_are_said(tmp_path: Path) -> None:
    theirs = timm_model(embed_dim=192, depth=12, num_heads=3)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    said = check_tokens(tmp_path / "vit.pth", theirs.forward_features(pictures(32, 32)), pictures(32, 32))
    assert "assumed: 3 attention heads, as vit_tiny_patch16_224 (--heads); square images" in said[0]


def test_the_shape_of_a_grid_that_is_no_square_must_be_given(tmp_path: Path) -> None:
    theirs, path = timm_model(img_size=(16, 64)), tmp_path / "vit.pth"
    torch.save(theirs.state_dict(), path)
    images = pictures(16, 64)
    check_tokens(path, theirs.forward_features(images), images, heads=6, image_size=(16, 64))
    _, said = encoder_of(path, heads=6)
    assert "square images of 32x32 (--image_size)" in said[0]
    with pytest.raises(ConfigError, match="an image of 16x32 has 8 patches of 8 pixels, but the checkpoint has 17 pos"):
        encoder_of(path, heads=6, image_size=(16, 32))
    oblong = timm_model(img_size=(16, 48))
    torch.save(oblong.state_dict(), path)
    with pytest.raises(ConfigError, match=r"13 positions and does not say of which image; add --image_size '\[HEIGHT"):
        encoder_of(path, heads=6)


def test_the_size_of_an_oblong_sine_cosine_table_is_read_from_it(tmp_path: Path) -> None:
    theirs = timm_model(img_size=(16, 64))
    table = torch.zeros(17, 48)
    columns, rows = sincos(8, 48)[:8, :24], sincos(8, 48)[::8, 24:]
    table[1:] = torch.stack([torch.cat([columns[x], rows[y]]) for y in range(2) for x in range(8)])
    theirs.pos_embed.data = table[None]
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    images = pictures(16, 64)
    said = check_tokens(tmp_path / "vit.pth", theirs.forward_features(images), images, heads=6)
    assert "square" not in said[0]
    assert not encoder_of(tmp_path / "vit.pth", heads=6)[0].learned_positions


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("ViTModel", {}),
        ("ViTModel", {"image_size": [16, 64], "hidden_act": "quick_gelu"}),
        ("ViTModel", {"qkv_bias": False, "hidden_act": "gelu_new"}),
        ("ViTForImageClassification", {"num_labels": 5, "image_size": [64, 64]}),
        ("ViTMSNModel", {}),
        ("ViTMSNForImageClassification", {}),
        ("IJepaModel", {"hidden_act": "relu"}),
        ("Dinov2Model", {}),
        ("Dinov2WithRegistersModel", {"image_size": [64, 64]}),
    ],
)
def test_a_folder_of_transformers_gives_its_features(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = hugging_face(kind, **changes)
    theirs.save_pretrained(tmp_path)
    size = changes.get("image_size", [32, 32])
    with torch.no_grad():
        network = theirs.vit if hasattr(theirs, "vit") else theirs
        tokens = network(pictures(*size)).last_hidden_state
    said = check_tokens(tmp_path, tokens, pictures(*size))
    assert not any("assumed" in line for line in said)
    if kind == "ViTForImageClassification":
        torch.testing.assert_close(read_weights(tmp_path).encoder["head.weight"], theirs.classifier.weight.data)
    elif kind == "ViTModel":
        assert said == [f"{tmp_path}: left out, as features do not need it: pooler.dense.bias, pooler.dense.weight"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_other_files_of_a_folder_are_read_too(name: str, tmp_path: Path) -> None:
    theirs = hugging_face("ViTModel")
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        tokens = theirs(pictures(32, 32)).last_hidden_state
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    if name == "pytorch_model.bin":
        torch.save(state, tmp_path / name)
    else:
        save = torch.save if "bin" in name else save_file
        parts = {"one": dict(list(state.items())[:9]), "two": dict(list(state.items())[9:])}
        for part, tensors in parts.items():
            save(tensors, tmp_path / f"{part}{'.bin' if 'bin' in name else '.safetensors'}")
        suffix = ".bin" if "bin" in name else ".safetensors"
        places = {key: part + suffix for part, tensors in parts.items() for key in tensors}
        (tmp_path / name).write_text(json.dumps({"weight_map": places}))
    check_tokens(tmp_path, tokens, pictures(32, 32))
    check_tokens(tmp_path / name, tokens, pictures(32, 32))
    if name != "pytorch_model.bin":
        (tmp_path / f"two{suffix}").unlink()
        with pytest.raises(ConfigError, match=f"names 'two{suffix}', which is not in its folder; get all of its files"):
            read_weights(tmp_path)


def test_settings_that_cannot_be_kept_are_refused_by_name(tmp_path: Path) -> None:
    hugging_face("ViTModel").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in {
        "hidden_act": "hidden_act is 'odd', which timm lacks",
        "model_type": "models of type 'odd' cannot be read, only vit, vit_mae",
        "image_size": "its image size is 'odd'; it must be a side or",
        "layer_norm_eps": "norm_eps",
        "num_attention_heads": "heads: Expected one of int, NoneType. Got value: odd",
    }.items():
        (tmp_path / "config.json").write_text(json.dumps(config | {change: "odd"}))
        with pytest.raises(ConfigError, match=message):
            read_weights(tmp_path)
    for content in ("[1]", "{"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ConfigError, match=r"config.json"):
            read_weights(tmp_path)


@pytest.mark.parametrize("changes", [{}, {"norm_pix_loss": True, "mask_ratio": 0.5}, {"qkv_bias": False}])
def test_a_vit_mae_of_transformers_gives_its_loss(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = vit_mae(tmp_path, **changes)
    with torch.no_grad():
        expected = theirs(pictures(32, 32), noise=NOISE).loss.item()
    assert loss_of(tmp_path) == pytest.approx(expected, rel=1e-5)
    assert theirs.decoder.decoder_pos_embed.abs().max() == 0  # transformers initializes it so
    assert "decoder_pos_embed" in read_weights(tmp_path).decoder


def test_a_table_of_the_decoder_that_is_maes_is_not_kept(tmp_path: Path) -> None:
    theirs = vit_mae(tmp_path)
    theirs.decoder.decoder_pos_embed.data[0, 1:] = sincos(4, 64)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        assert loss_of(tmp_path) == pytest.approx(theirs(pictures(32, 32), noise=NOISE).loss.item(), rel=1e-5)
    assert "decoder_pos_embed" not in read_weights(tmp_path).decoder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", ["half", "float"])
def test_positions_rounded_to_half_precision_are_made_exact(dtype: torch.dtype, stored: str, tmp_path: Path) -> None:
    theirs = vit_mae(tmp_path)
    theirs.decoder.decoder_pos_embed.data[0, 1:] = sincos(4, 64)
    theirs.vit.embeddings.position_embeddings.data[0, 1:] = sincos(4, 48)
    theirs = theirs.to(dtype)
    (theirs if stored == "half" else theirs.float()).save_pretrained(tmp_path)
    weights = read_weights(tmp_path)
    model = build_autoencoder(weights, tmp_path)
    assert not model.learned_positions
    assert model.decoder.pos_embed is None
    torch.testing.assert_close(weights.encoder["pos_embed"][0, 1:], sincos(4, 48), atol=1e-6, rtol=0)


def test_learned_positions_in_half_precision_stay_learned(tmp_path: Path) -> None:
    theirs = hugging_face("ViTModel").half()
    theirs.save_pretrained(tmp_path)
    model, _ = encoder_of(tmp_path)
    assert model.learned_positions
    with torch.no_grad():
        tokens = theirs.float()(pictures(32, 32)).last_hidden_state
    torch.testing.assert_close(model.tokens(pictures(32, 32)), tokens, atol=2e-5, rtol=1e-4)


def test_what_a_file_leaves_open_of_its_decoder_must_be_said(tmp_path: Path) -> None:
    theirs = vit_mae(tmp_path / "theirs", layer_norm_eps=1e-6, hidden_act="gelu")
    path = tmp_path / "mae.pth"
    torch.save({"model": as_facebooks(tmp_path / "theirs")}, path)
    with torch.no_grad():
        expected = theirs(pictures(32, 32), noise=NOISE).loss.item()
    assert loss_of(path, heads=6, decoder_heads=8, target="pixels") == pytest.approx(expected, rel=1e-5)
    with pytest.raises(
        ConfigError, match="its decoder works; add --decoder_heads N and --target pixels \\(or norm_pixels, hog\\)"
    ):
        loss_of(path, heads=6)
    with pytest.raises(ConfigError, match="its decoder works; add --target pixels \\(or norm_pixels, hog\\)"):
        loss_of(path, heads=6, decoder_heads=8)
    encoder_of(path, heads=6)  # features do not need a decoder
    arguments = argparse.Namespace(model="mae_vit_base_patch16", norm_pix_loss=False, mask_ratio=0.5)
    torch.save({"model": as_facebooks(tmp_path / "theirs"), "args": arguments}, path)
    assert read_weights(path, heads=6, decoder_heads=8).model.mask_ratio == 0.5
    with pytest.raises(ConfigError, match=r"target=norm_pixels conflicts with .*, which has pixels; omit --target"):
        read_weights(path, heads=6, decoder_heads=8, target="norm_pixels")


@pytest.mark.parametrize("keys", [("mask_token",), ("mask_token", "decoder_embed.weight")])
def test_an_incomplete_decoder_is_left_out_and_named(keys: tuple[str, ...], tmp_path: Path) -> None:
    theirs = timm_model()
    more = {key: torch.zeros(1, 1, 48) for key in keys}
    torch.save(theirs.state_dict() | more, tmp_path / "vit.pth")
    said = check_tokens(tmp_path / "vit.pth", theirs.forward_features(pictures(32, 32)), pictures(32, 32), heads=6)
    assert said[0].endswith(f"left out, as features do not need it: {', '.join(sorted(keys))}")
    with pytest.raises(ConfigError, match="has no decoder"):
        build_autoencoder(read_weights(tmp_path / "vit.pth", heads=6), "vit.pth")


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.",
        "backbone.",
        "model.backbone.",
        "net.vit.",
    ],
)
def test_prefixes_are_removed(prefix: str, tmp_path: Path) -> None:
    theirs, path = timm_model(), tmp_path / "vit.pth"
    torch.save({"state_dict": prefixed(theirs.state_dict(), prefix)}, path)
    check_tokens(path, theirs.forward_features(pictures(32, 32)), pictures(32, 32), heads=6)


def test_compiled_blocks_and_what_lies_beside_a_backbone(tmp_path: Path) -> None:
    theirs, path = timm_model(), tmp_path / "vit.safetensors"
    state = {key.replace("blocks.1.", "blocks.1._orig_mod."): value for key, value in theirs.state_dict().items()}
    save_file(prefixed(state, "backbone.") | {"projector.0.weight": torch.zeros(3)}, path)
    said = check_tokens(path, theirs.forward_features(pictures(32, 32)), pictures(32, 32), heads=6)
    assert said[0].endswith("left out, as features do not need it: projector.0.weight")


def test_of_several_networks_the_trained_one_is_used_and_said(tmp_path: Path) -> None:
    trained, average, path = timm_model(), timm_model(num_heads=6), tmp_path / "vit.pth"
    average.cls_token.data += 1
    images = pictures(32, 32)
    for first, second in (("model", "model_ema"), ("state_dict", "state_dict_ema"), ("model", "ema")):
        torch.save({first: trained.state_dict(), second: average.state_dict(), "epoch": 3}, path)
        said = check_tokens(path, trained.forward_features(images), images, heads=6)
        assert said[0] == f"{path}: using the weights '{first}', not {second}; --weights NAME chooses others"
        said = check_tokens(path, average.forward_features(images), images, heads=6, weights=second)
        assert "using" not in said[0]
    torch.save({"model_ema": average.state_dict()}, path)
    said = check_tokens(path, average.forward_features(images), images, heads=6)
    assert said[0] == f"{path} holds only a moving average of the weights, 'model_ema'; using it"
    averaged = torch.optim.swa_utils.AveragedModel(average)
    torch.save(averaged.state_dict(), path)
    said = check_tokens(path, average.forward_features(images), images, heads=6)
    assert "holds only a moving average of the weights, 'averaged'" in said[0]


@pytest.mark.parametrize("nested", [True, False])
def test_student_and_teacher_must_be_chosen(nested: bool, tmp_path: Path) -> None:
    student, teacher, path = timm_model(), timm_model(), tmp_path / "dino.pth"
    teacher.cls_token.data += 1
    networks = {"student": student, "teacher": teacher}
    heads = {"head.mlp.0.weight": torch.zeros(3, 48)}
    content: dict[str, Any] = {}
    for name, network in networks.items():
        state = prefixed(network.state_dict(), "backbone.") | heads
        content |= {name: prefixed(state, "module.")} if nested else prefixed(state, f"{name}.")
    torch.save(content, path)
    images = pictures(32, 32)
    with pytest.raises(ConfigError, match="several networks: student.backbone, teacher.backbone; choose one with --we"):
        encoder_of(path, heads=6)
    with pytest.raises(ConfigError, match=r"has no single network 'ema': student.backbone, teacher.backbone; choose"):
        encoder_of(path, heads=6, weights="ema")
    for name, network in networks.items():
        said = check_tokens(path, network.forward_features(images), images, heads=6, weights=name)
        assert "left out, as features do not need it: head.mlp.0.weight" in said[0]


def test_names_of_dinov2_are_understood(tmp_path: Path) -> None:
    theirs = timm_model(init_values=0.1, reg_tokens=2, no_embed_class=True)
    state = {}
    for key, value in theirs.state_dict().items():
        state[key.replace("blocks.", "blocks.0.").replace("reg_token", "register_tokens")] = value
    position = torch.full((1, 1, 48), 0.3)
    state["cls_token"] = state["cls_token"] - position
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    torch.save(state | {"mask_token": torch.zeros(1, 48)}, tmp_path / "dinov2.pth")
    check_tokens(tmp_path / "dinov2.pth", theirs.forward_features(pictures(32, 32)), pictures(32, 32), heads=6)


def test_a_training_of_timm_says_its_architecture_and_normalization(tmp_path: Path) -> None:
    theirs = timm_model(embed_dim=192, depth=12, num_heads=6)
    arguments: dict[str, Any] = {"model": "vit_tiny_patch16_224", "mean": None, "std": None, "img_size": 32}
    arguments["model_kwargs"] = {"num_heads": 6, "patch_size": 8}
    content = {
        "arch": "vit_tiny_patch16_224",
        "state_dict": theirs.state_dict(),
        "args": argparse.Namespace(**arguments),
    }
    torch.save(content, tmp_path / "last.pth.tar")
    images = pictures(32, 32)
    assert check_tokens(tmp_path / "last.pth.tar", theirs.forward_features(images), images) == []
    weights = read_weights(tmp_path / "last.pth.tar")
    assert (weights.model.heads, weights.mean) == (6, (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}, ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))),
        ({"do_normalize": False, "image_mean": [0.5, 0.5, 0.5]}, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        (
            {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0], "do_rescale": False},
            ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
        ),
    ],
)
def test_the_preprocessing_of_transformers_sets_mean_and_std(content: Any, message: Any, tmp_path: Path) -> None:
    hugging_face("ViTModel").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    weights = read_weights(tmp_path)
    assert weights.mean == pytest.approx(message[0])
    assert weights.std == pytest.approx(message[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_embed": None}, "no positional embedding per patch; rotary and relative positions cannot be read"),
        ({"cls_token": torch.zeros(1, 8, 48)}, r"class tokens of shape \[1, 8, 48\]; an encoder here has one"),
        ({"patch_embed.proj.weight": torch.zeros(48, 3, 8, 16)}, "patches must be square"),
        ({"patch_embed.proj.weight": torch.zeros(48, 3, 2, 8, 8)}, r"the shape \[48, 3, 2, 8, 8\], not 4 dimensions"),
        ({"blocks.0.mlp.fc1.weight": torch.zeros(4)}, r"fc1.weight has the shape \[4\], not 2 dimensions"),
        ({"dist_token": torch.zeros(1, 1, 48)}, "these keys are unknown: dist_token"),
        ({"blocks.0.mlp.w12.weight": torch.zeros(3)}, "these keys are unknown: blocks.0.mlp.w12.weight"),
        ({"module.cls_token": torch.zeros(1, 1, 48)}, "some keys differ only in a prefix such as 'module.'"),
    ],
)
def test_what_is_no_plain_vit_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = {**timm_model().state_dict(), **changes}
    torch.save({key: value for key, value in state.items() if value is not None}, tmp_path / "vit.pth")
    with pytest.raises(ConfigError, match=message):
        read_weights(tmp_path / "vit.pth", heads=6)


def test_an_incomplete_triple_of_query_key_and_value_is_refused(tmp_path: Path) -> None:
    theirs = hugging_face("ViTModel")
    state = {key: value for key, value in theirs.state_dict().items() if key != "layers.1.attention.k_proj.bias"}
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(ConfigError, match=r"these keys are unknown: blocks.1.attn.q.bias, blocks.1.attn.v.bias"):
        read_weights(tmp_path / "vit.safetensors", heads=6)


def test_the_normalization_of_a_checkpoint_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = timm_model()
    save_for_hf(theirs, str(tmp_path), model_args=TINY)
    images = pictures(32, 32)
    expected = theirs.forward_features((images - 0.5) / 0.5)[:, 1:].mean(dim=1)
    torch.testing.assert_close(load_encoder(tmp_path).features(images), expected, atol=2e-5, rtol=1e-4)
    assert "its library prepares images by a center crop of 0.9; here by bicubic resizing" in caplog.text
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    expected = theirs.forward_features((images - shift) / scale)[:, 1:].mean(dim=1)
    given = load_encoder(tmp_path, mean=mean, std=std)
    torch.testing.assert_close(given.features(images), expected, atol=2e-5, rtol=1e-4)
    assert "was trained with the mean [0.5, 0.5, 0.5]; using [0.1, 0.2, 0.3] as the settings say" in caplog.text
    load_encoder(saved_encoder(tmp_path), heads=6)
    assert (
        "does not say how images are normalized; assumed: ImageNet's mean [0.485, 0.456, 0.406] and std" in caplog.text
    )


def test_transformers_weights_without_their_config_are_read_and_what_is_assumed_is_said(tmp_path: Path) -> None:
    theirs = hugging_face("ViTModel", layer_norm_eps=1e-12, intermediate_size=192)
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    with torch.no_grad():
        tokens = theirs(pictures(32, 32)).last_hidden_state
    said = check_tokens(tmp_path / "vit.safetensors", tokens, pictures(32, 32), heads=6)
    assert "no config.json beside it; assumed: GELU, layer norms with an epsilon of 1e-12" in said[1]


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_a_plain_vit_of_another_family_of_timm_is_read(name: str, tmp_path: Path) -> None:
    theirs = randomize(timm.create_model(name, num_classes=0, **TINY))
    save_for_hf(theirs, str(tmp_path), model_args=TINY)
    assert check_tokens(tmp_path, theirs.forward_features(pictures(32, 32)), pictures(32, 32)) == []
    assert read_weights(tmp_path).mean == theirs.pretrained_cfg["mean"]


@pytest.mark.parametrize("name", ["resnet18", "deit_tiny_distilled_patch16_224", "no_such_model"])
def test_other_architectures_of_timm_are_refused_by_name(name: str, tmp_path: Path) -> None:
    save_for_hf(timm_model(), str(tmp_path), model_args=TINY)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": name, "model_args": {}}))
    with pytest.raises(ConfigError, match=name):
        read_weights(tmp_path)


def test_the_weights_of_a_masked_autoencoder_of_this_project_are_read(tmp_path: Path) -> None:
    vit_mae(tmp_path / "theirs", layer_norm_eps=1e-6, hidden_act="gelu")
    model = build_autoencoder(read_weights(tmp_path / "theirs"), "theirs")
    torch.save(model.state_dict(), tmp_path / "own.pth")
    loss = loss_of(tmp_path / "own.pth", heads=6, decoder_heads=8, target="pixels")
    assert loss == pytest.approx(loss_of(tmp_path / "theirs"), rel=1e-6)


@pytest.mark.parametrize("key", [MODEL_KEY, NORMALIZATION_KEY])
def test_spoiled_metadata_is_refused(key: str, tmp_path: Path) -> None:
    save_file(timm_model().state_dict(), tmp_path / "vit.safetensors", {key: "{"})
    with pytest.raises(ConfigError, match=f"its metadata {key} cannot be read"):
        read_weights(tmp_path / "vit.safetensors", heads=6)


def test_a_table_of_the_decoder_of_another_size_is_refused(tmp_path: Path) -> None:
    vit_mae(tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs/model.safetensors")
    tensors["decoder.decoder_pos_embed"] = torch.zeros(1, 10, 64)
    save_file(tensors, tmp_path / "theirs/model.safetensors")
    with pytest.raises(ConfigError, match=r"decoder.pos_embed \[1, 10, 64\], expected \[1, 17, 64\]"):
        loss_of(tmp_path / "theirs")


def test_hints_about_a_decoder_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"target=pixels: .* has no decoder; omit --target"):
        read_weights(saved_encoder(tmp_path), heads=6, target="pixels")


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its width of 48 is no multiple of 5 attention heads; check --heads"):
        read_weights(saved_encoder(tmp_path), heads=5)


@pytest.mark.parametrize("kind", ["PixioModel", "BeitModel", "DeiTModel", "SiglipVisionModel", "DINOv3ViTModel"])
def test_other_models_of_transformers_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    model = getattr(transformers, kind)
    model(model.config_class(**HUGGING_FACE)).save_pretrained(tmp_path)
    message = r"models of type '|not the weights of a ViT|these keys are unknown"
    with pytest.raises(ConfigError, match=message) as caught:
        read_weights(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_of_the_timm_wrapper_of_transformers_is_read(tmp_path: Path) -> None:
    config = transformers.TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=TINY, num_labels=0)
    theirs = randomize(transformers.TimmWrapperModel(config))
    theirs.save_pretrained(tmp_path)
    images = pictures(32, 32)
    assert check_tokens(tmp_path, theirs.timm_model.forward_features(images), images) == []
