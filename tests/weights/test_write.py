"""Exports, imports and classifiers of other libraries' ViTs: the same features, and every setting that they need."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

from finetune.__main__ import main as finetune_main
from finetune.classifier import build_classifier, vit_config
from finetune.config import ClassifierConfig
from mae_curriculum.__main__ import main
from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import DataConfig
from mae_curriculum.model.masked_autoencoder import build_model
from mae_curriculum.weights.build import build_autoencoder
from mae_curriculum.weights.names import decoder_to_mae
from mae_curriculum.weights.normalization import with_normalization
from mae_curriculum.weights.read import Weights, read_weights
from mae_curriculum.weights.write import describe_weights, mae_layout, save_weights
from mae_curriculum.weights.write import hugging_face as hugging_face_model
from tests.small import SMALL
from tests.vits import (
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


def export(checkpoint: Path, out: Path, kind: str, **hints: Any) -> int:
    flags = [word for key, value in hints.items() for word in (f"--{key}", str(value))]
    return main(["export", "--checkpoint", str(checkpoint), "--out", str(out), "--format", kind, *flags])


@pytest.mark.parametrize("name", VARIANTS)
def test_an_export_for_timm_keeps_every_setting(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = timm_model(**VARIANTS[name])
    save_for_hf(theirs, str(tmp_path / "theirs"), model_args=TINY | VARIANTS[name])
    assert export(tmp_path / "theirs", tmp_path / "a.safetensors", "timm") == 0
    images = pictures(*theirs.patch_embed.img_size, channels=theirs.patch_embed.proj.in_channels)
    assert check_tokens(tmp_path / "a.safetensors", theirs.forward_features(images), images) == []
    assert read_weights(tmp_path / "a.safetensors").mean == (0.5,) * images.shape[1]
    line = next(line for line in (tmp_path / "a.md").read_text().splitlines() if "create_model" in line)
    monkeypatch.chdir(tmp_path)
    again = eval(line, {"timm": timm}).eval()
    torch.testing.assert_close(again.forward_features(images), theirs.forward_features(images))


def test_an_export_for_transformers_keeps_heads_epsilon_activation_and_normalization(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = hugging_face("ViTModel", hidden_act="relu", qkv_bias=False)
    theirs.save_pretrained(tmp_path / "theirs")
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "theirs/preprocessor_config.json").write_text(json.dumps(statistics))
    with torch.no_grad():
        tokens = theirs(pictures(32, 32)).last_hidden_state
    assert export(tmp_path / "theirs", tmp_path / "ours", "hf") == 0
    assert export(tmp_path / "ours", tmp_path / "a.safetensors", "timm") == 0
    for path in (tmp_path / "ours", tmp_path / "a.safetensors"):
        check_tokens(path, tokens, pictures(32, 32))
        weights = read_weights(path)
        assert (weights.mean, weights.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    again = transformers.ViTModel.from_pretrained(tmp_path / "ours", add_pooling_layer=False).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(pictures(32, 32)).last_hidden_state, tokens)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    line = next(line for line in (tmp_path / "a.md").read_text().splitlines() if "create_model" in line)
    assert "norm_layer=lambda width, **more: timm.layers.LayerNorm(width, eps=0.1, **more)" in line
    monkeypatch.chdir(tmp_path)
    torch.testing.assert_close(
        eval(line, {"timm": timm}).eval().forward_features(pictures(32, 32)), tokens, atol=2e-5, rtol=1e-4
    )


def test_an_export_of_an_autoencoder_keeps_its_loss(tmp_path: Path) -> None:
    theirs = vit_mae(tmp_path / "theirs", norm_pix_loss=True)
    with torch.no_grad():
        expected = pytest.approx(theirs(pictures(32, 32), noise=NOISE).loss.item(), rel=1e-5)
    assert export(tmp_path / "theirs", tmp_path / "ours", "hf_mae") == 0
    assert loss_of(tmp_path / "ours") == expected
    again = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        assert again(pictures(32, 32), noise=NOISE).loss.item() == expected


def test_an_export_in_maes_layout_keeps_what_its_tensors_do_not_say(tmp_path: Path) -> None:
    vit_mae(tmp_path / "theirs", layer_norm_eps=1e-6, hidden_act="gelu")
    assert export(tmp_path / "theirs", tmp_path / "a.pth", "mae", mean="[0.1,0.2,0.3]", std="[0.4,0.5,0.6]") == 0
    assert loss_of(tmp_path / "a.pth") == pytest.approx(loss_of(tmp_path / "theirs"), rel=1e-6)
    weights = read_weights(tmp_path / "a.pth")
    assert (weights.model.heads, weights.model.decoder_heads, weights.model.target) == (6, 8, "pixels")
    assert (weights.mean, weights.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("layer_scale", "hf", "transformers lacks layer scale; choose another --format"),
        ("registers_without_positions", "hf", "with registers, class tokens without a position; choose"),
        ("wide", "hf", "transformers lacks images that are not square"),
        ("no_final_norm", "hf", "encoders that do not end in a norm of all tokens"),
    ],
)
def test_an_export_that_would_change_features_is_refused(
    name: str, kind: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_for_hf(timm_model(**VARIANTS[name]), str(tmp_path / "theirs"), model_args=TINY | VARIANTS[name])
    assert export(tmp_path / "theirs", tmp_path / "ours", kind) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


@pytest.fixture
def hog_weights() -> Weights:
    config = replace(SMALL, target="hog", target_from="full")
    state = build_model(config, seed=0).state_dict()
    encoder = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    return Weights(config, encoder, decoder_to_mae(state), "a test")


def test_a_hog_target_is_refused_by_libraries_that_lack_it(hog_weights: Weights) -> None:
    model = build_autoencoder(hog_weights, "ours")
    with pytest.raises(ConfigError, match="transformers lacks a target of HOG; choose another --format"):
        hugging_face_model(model, hog_weights, decoder=True)
    with pytest.raises(ConfigError, match="facebookresearch/mae lacks a target of HOG; choose another --format"):
        mae_layout(model, hog_weights)
    assert hugging_face_model(model, hog_weights, decoder=False).config.hidden_size == 48


def test_a_hog_target_is_kept_by_our_own_files(hog_weights: Weights, tmp_path: Path) -> None:
    config, tensors = hog_weights.model, hog_weights.encoder | hog_weights.decoder
    save_weights(tmp_path / "a.safetensors", tensors, describe_weights(config, None, None))
    words = ["--checkpoint", str(tmp_path / "a.safetensors"), "--run", str(tmp_path / "run")]
    assert finetune_main(["import", *words]) == 0
    for path in (tmp_path / "a.safetensors", tmp_path / "run"):
        assert read_weights(path).model == config
        build_autoencoder(read_weights(path), path)


def test_the_hint_hog_says_what_a_decoder_predicts(hog_weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": hog_weights.encoder | hog_weights.decoder}, path)
    weights = read_weights(path, heads=3, decoder_heads=2)
    with pytest.raises(ConfigError, match=r"leaves open .* add --target pixels \(or norm_pixels, hog\)"):
        build_autoencoder(weights, path)
    assert build_autoencoder(read_weights(path, heads=3, decoder_heads=2, target="hog"), path).target == "hog"


def test_an_autoencoder_that_maes_code_cannot_build_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vit_mae(tmp_path / "theirs")
    assert export(tmp_path / "theirs", tmp_path / "a.pth", "mae") == 2
    assert "facebookresearch/mae lacks activations but GELU, an epsilon but 1e-6" in capsys.readouterr().err


def test_a_classifier_is_exported_with_its_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = read_weights(saved_encoder(tmp_path), heads=6)
    classifier, _ = build_classifier(ClassifierConfig(), weights, class_count=5, seed=0)
    net = randomize(classifier.net)
    config = vit_config(net.pretrained_cfg["architecture"], net)
    metadata = describe_weights(config, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_weights(tmp_path / "best.safetensors", net.state_dict(), metadata)
    assert export(tmp_path / "best.safetensors", tmp_path / "a.safetensors", "timm") == 0
    line = next(line for line in (tmp_path / "a.md").read_text().splitlines() if "create_model" in line)
    monkeypatch.chdir(tmp_path)
    again = eval(line, {"timm": timm}).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(pictures(32, 32)), net(pictures(32, 32)))
        for path in (tmp_path / "a.safetensors", tmp_path / "best.safetensors"):
            features = encoder_of(path)[0].features(pictures(32, 32))[:, 1]
            torch.testing.assert_close(net.head(features), net(pictures(32, 32)), atol=1e-5, rtol=1e-5)
    assert export(tmp_path / "best.safetensors", tmp_path / "hf", "hf") == 2


@pytest.mark.parametrize("name", ["layer_scale", "registers_without_positions", "qk_norm", "mlp_of_100", "relu"])
def test_a_classifier_is_built_on_every_encoder(name: str, tmp_path: Path) -> None:
    theirs = timm_model(**VARIANTS[name])
    save_for_hf(theirs, str(tmp_path), model_args=TINY | VARIANTS[name])
    classifier, _ = build_classifier(ClassifierConfig(pool="token"), read_weights(tmp_path), class_count=5, seed=0)
    images = pictures(32, 32)
    torch.testing.assert_close(classifier.eval().net.forward_features(images), theirs.forward_features(images))
    config = vit_config("vit_tiny_patch16_224", classifier.net)
    assert config == read_weights(tmp_path).model


def test_an_import_keeps_settings_and_normalization(tmp_path: Path) -> None:
    theirs = vit_mae(tmp_path / "theirs")
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "theirs/preprocessor_config.json").write_text(json.dumps(statistics))
    flags = ["--checkpoint", str(tmp_path / "theirs"), "--run", str(tmp_path / "run")]
    assert finetune_main(["import", *flags]) == 0
    with torch.no_grad():
        expected = theirs(pictures(32, 32), noise=NOISE).loss.item()
    assert loss_of(tmp_path / "run") == pytest.approx(expected, rel=1e-5)
    weights = read_weights(tmp_path / "run")
    assert (weights.mean, weights.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    data = with_normalization(DataConfig(), weights, tmp_path, pytest.fail)
    assert data.statistics(3) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_checkpoint_of_a_run_leads_to_the_run(tmp_path: Path) -> None:
    vit_mae(tmp_path / "theirs")
    assert finetune_main(["import", "--checkpoint", str(tmp_path / "theirs"), "--run", str(tmp_path / "run")]) == 0
    (file,) = (tmp_path / "run/checkpoints").iterdir()
    with pytest.raises(
        ConfigError, match=rf"belongs to the run {tmp_path}/run; give that folder, or {tmp_path}/run@EPO"
    ):
        read_weights(file)
