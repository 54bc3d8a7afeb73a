"""Export and import: the same weights give the same numbers in timm, transformers and facebookresearch/mae."""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from mae_curriculum.__main__ import main
from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import DataConfig
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder, build_model
from mae_curriculum.model.masking import patchify
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.run.folder import RunFolder
from mae_curriculum.weights.build import build_autoencoder, build_encoder, load_into_
from mae_curriculum.weights.names import decoder_to_mae
from mae_curriculum.weights.read import Weights, read_weights
from tests.small import SMALL

MODEL = replace(SMALL, width=128, heads=2, decoder_width=64)
IMAGES = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
NOISE = torch.rand((2, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with random weights, biases and norms."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    folder.claim(PretrainConfig(model=MODEL, data=DataConfig("digits")), command="pretrain")
    folder.save({"steps_done": 7, "model": random_model().state_dict()}, keep=1)
    return folder.path


def random_model() -> MaskedAutoencoder:
    model = build_model(MODEL, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def encoded(model: MaskedAutoencoder) -> torch.Tensor:
    with torch.no_grad():
        return model.encode(patchify(IMAGES, (8, 8)), (4, 4))


def rebuilt(path: Path, **hints: Any) -> MaskedAutoencoder:
    """Build the model of a checkpoint."""
    weights = read_weights(path, heads=2, **hints)
    return (build_autoencoder if weights.decoder else build_encoder)(weights, path)


def export(run: Path, out: Path, kind: str) -> Path:
    assert main(["export", "--checkpoint", str(run), "--out", str(out), "--format", kind]) == 0
    return out


def test_timm_loads_an_export_strictly_and_computes_the_same_features(run: Path, tmp_path: Path) -> None:
    path = export(run, tmp_path / "encoder.safetensors", "timm")
    shape: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
    theirs: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, checkpoint_path=str(path), **shape)
    torch.testing.assert_close(theirs.eval().forward_features(IMAGES), encoded(random_model()), atol=1e-5, rtol=0)


def test_the_card_shows_a_line_that_loads_the_export(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(run, tmp_path / "encoder.safetensors", "timm")
    card = (tmp_path / "encoder.md").read_text()
    line = next(line for line in card.splitlines() if "create_model" in line)
    monkeypatch.chdir(tmp_path)
    theirs = eval(line, {"timm": timm})
    torch.testing.assert_close(theirs.eval().forward_features(IMAGES), encoded(random_model()), atol=1e-5, rtol=0)
    assert "data: digits" in card


def test_transformers_loads_the_encoder_and_computes_the_same_features(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = export(run, tmp_path / "vit", "hf")
    theirs = transformers.ViTModel.from_pretrained(path, add_pooling_layer=False).eval()
    with torch.no_grad():
        hidden = theirs(IMAGES).last_hidden_state
    torch.testing.assert_close(hidden, encoded(random_model()), atol=1e-5, rtol=0)


def test_transformers_loads_the_autoencoder_and_computes_the_same_loss(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = export(run, tmp_path / "vitmae", "hf_mae")
    theirs = transformers.ViTMAEForPreTraining.from_pretrained(path).eval()
    with torch.no_grad():
        assert theirs(IMAGES, noise=NOISE).loss.item() == pytest.approx(
            random_model()(IMAGES, NOISE, 0.75).mean().item(), abs=1e-5
        )


@pytest.mark.parametrize(("kind", "name"), [("timm", "a.safetensors"), ("mae", "a.pth"), ("hf", "a"), ("hf_mae", "a")])
def test_an_export_is_read_back(kind: str, name: str, run: Path, tmp_path: Path) -> None:
    if kind.startswith("hf"):
        pytest.importorskip("transformers")
    model = rebuilt(export(run, tmp_path / name, kind))
    torch.testing.assert_close(encoded(model), encoded(random_model()), atol=1e-5, rtol=0)
    if "mae" in kind:
        assert model(IMAGES, NOISE, 0.75).tolist() == pytest.approx(
            random_model()(IMAGES, NOISE, 0.75).tolist(), abs=1e-5
        )


def mae_file(path: Path, **extra: Any) -> Path:
    """Write a checkpoint as facebookresearch/mae does, with the command line beside the weights."""
    state = random_model().state_dict()
    encoder = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    names = encoder | decoder_to_mae(state)
    arguments = argparse.Namespace(model="mae_vit_base_patch16", norm_pix_loss=False, mask_ratio=0.6, lr=1e-3)
    content = {"model": {**names, "decoder_pos_embed": torch.zeros(1, 17, 64), **extra}, "args": arguments, "epoch": 3}
    torch.save(content, path)
    return path


def test_a_file_of_facebookresearch_mae_is_read_with_its_arguments(tmp_path: Path) -> None:
    weights = read_weights(mae_file(tmp_path / "checkpoint-3.pth"), heads=2, decoder_heads=2)
    assert weights.origin == "facebookresearch/mae"
    assert weights.model == replace(
        MODEL, name="vit_base_patch16_224", target="pixels", mask_ratio=0.6
    )  # timm has no name for this width and depth, so both are set
    torch.testing.assert_close(
        encoded(rebuilt(tmp_path / "checkpoint-3.pth", decoder_heads=2)), encoded(random_model())
    )
    with pytest.raises(ConfigError, match="does not say how many .* of width 128 has; set model.heads or --heads"):
        read_weights(tmp_path / "checkpoint-3.pth")


def test_heads_that_contradict_the_checkpoint_are_refused(run: Path, tmp_path: Path) -> None:
    for path in (run, export(run, tmp_path / "a.safetensors", "timm")):
        assert read_weights(path, heads=2).model.heads == 2
        with pytest.raises(ConfigError, match=r"heads=4 conflicts with .*, which has 2; omit --heads"):
            read_weights(path, heads=4)


def test_a_run_is_read_with_its_settings(run: Path) -> None:
    weights = read_weights(run)
    assert (weights.model, weights.origin) == (MODEL, "run at step 7")
    torch.testing.assert_close(encoded(rebuilt(run)), encoded(random_model()))


def test_width_and_depth_determine_the_name(tmp_path: Path) -> None:
    small = build_model(ModelConfig(name="vit_small_patch16_224", image_size=64), seed=0)
    save_file(dict(small.encoder.state_dict()), tmp_path / "a.safetensors")
    model = read_weights(tmp_path / "a.safetensors").model
    assert (model.name, model.image_size, model.width, model.heads) == ("vit_small_patch16_224", 64, None, None)


def test_unknown_keys_are_listed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="recognized as facebookresearch/mae, but .* unknown: teacher.weight"):
        read_weights(mae_file(tmp_path / "a.pth", **{"teacher.weight": torch.zeros(3)}))


def test_weights_that_do_not_fit_a_model_are_listed(run: Path) -> None:
    weights = read_weights(run)
    other = build_model(replace(MODEL, depth=3, patch_size=4), seed=0)
    with pytest.raises(
        ConfigError, match=r"missing: blocks\.2\.attn.*of wrong shape: patch_embed\.proj\.weight \[128, 3, 8, 8\]"
    ):
        load_into_(other.encoder, weights.encoder, "the encoder")


class Trojan:
    def __reduce__(self) -> Any:
        return os.system, ("touch trojan-was-here",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "payload": Trojan()}, "a.pth")
    with pytest.raises(ConfigError, match="cannot be read: it .*; save only model.state_dict") as caught:
        read_weights(Path("a.pth"))
    assert "\n" not in str(caught.value)
    assert not Path("trojan-was-here").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be read: it"), (b"not a checkpoint", "cannot be read: it "), (None, "neither a run folder")],
)
def test_damaged_files_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_weights(path)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18", num_classes=3).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ConfigError, match="not the weights of a ViT; its keys are bn1.bias"):
        read_weights(tmp_path / "a.pth")


def test_an_export_does_not_overwrite(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.safetensors").write_text("precious")
    assert main(["export", "--checkpoint", str(run), "--out", str(tmp_path / "a.safetensors")]) == 2
    assert "exists; remove it or choose another" in capsys.readouterr().err
    assert main(["export", "--checkpoint", str(run), "--out", str(tmp_path / "a.bin")]) == 2
    assert "--format timm writes a .safetensors" in capsys.readouterr().err


def test_features_are_computed_with_the_learned_positions_of_a_checkpoint() -> None:
    config = ModelConfig("vit_tiny_patch16_224", image_size=32, patch_size=8, width=48, depth=2, heads=3)
    theirs: Any = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3
    ).eval()
    torch.nn.init.normal_(theirs.pos_embed, std=0.5)
    ours = build_encoder(Weights(config, theirs.state_dict(), {}, "a test"), "a test")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.tokens(images), theirs.forward_features(images), atol=1e-5, rtol=0)
    fixed = Weights(config, build_model(config, seed=0).encoder.state_dict(), {}, "a test")
    assert not build_encoder(fixed, "a test").learned_positions
