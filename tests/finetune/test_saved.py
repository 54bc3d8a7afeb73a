"""Saved classifiers predict and are exported as they were trained."""

import csv
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from finetune.__main__ import main
from finetune.classifier import Classifier, build_classifier
from finetune.config import ClassifierConfig
from finetune.heads import Heads
from finetune.joining import describe_probe, join
from finetune.saved import Description, as_metadata, describe, load_classifier
from mae_curriculum.data.augment import resize_and_crop
from mae_curriculum.model.config import ModelConfig
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder, build_model
from mae_curriculum.weights.write import save_weights
from tests.runs import as_flags, picture_folder, two_processes

VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3}
TINY = "vit_tiny_patch16_224"
NETWORKS = {
    "class token": ClassifierConfig(TINY, image_size=32, patch_size=8, options=VIT),
    "patch mean": ClassifierConfig(TINY, image_size=32, patch_size=8, pool="avg", options=VIT),
    "gray": ClassifierConfig(TINY, image_size=32, patch_size=8, channels=1, options=VIT),
    "resnet": ClassifierConfig("resnet10t", image_size=32),
    "swin": ClassifierConfig(
        "swin_tiny_patch4_window7_224",
        image_size=(64, 32),
        options={"window_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]},
    ),
}
CLASSES = ("cat", "dog, small", "Ünicorn", "d", "e", "f")


def save(net: Any, description: Description, path: Path) -> Path:
    save_weights(path, net.state_dict(), as_metadata(description))
    return path


def make(config: ClassifierConfig, folder: Path) -> tuple[Path, Classifier]:
    """Save a classifier of random weights."""
    model, _ = build_classifier(config, None, class_count=len(CLASSES), seed=0)
    nn.init.normal_(model.net.get_classifier().weight)
    mean, std = (0.4,) * model.channels, (0.2,) * model.channels
    description = describe(model.eval(), classes=CLASSES, mean=mean, std=std, crop=0.875)
    return save(model.net, description, folder / "best.safetensors"), model


def noise(channels: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(3, channels, *size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(net: Any, images: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = net(images)
    return result


def export(checkpoint: Path, out: Path, **changes: Any) -> int:
    return main(["export", *as_flags({"checkpoint": checkpoint, "out": out}, **changes)])


def predict(checkpoint: Path, source: Path, out: Path, **changes: Any) -> list[dict[str, str]]:
    flags = as_flags({"checkpoint": checkpoint, "data.source": source, "out": out, "data.workers": 0}, **changes)
    assert main(["predict", *flags]) == 0
    with out.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_classifier_and_its_export_to_timm_and_transformers_give_the_same_logits(
    name: str, tmp_path: Path
) -> None:
    import transformers

    checkpoint, model = make(NETWORKS[name], tmp_path)
    images = noise(model.channels, model.image_size)
    expected = logits(model.logits, images)
    folder = tmp_path / "exported"
    assert export(checkpoint, folder) == 0
    theirs: Any = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    in_timm: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    again = [load_classifier(path)[0] for path in (checkpoint, folder, folder / "model.safetensors")]
    for net in (*again, in_timm, lambda images: theirs(images).logits):
        torch.testing.assert_close(logits(net, images), expected, atol=1e-5, rtol=0)
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    card = (folder / "README.md").read_text()
    assert "mean\n  [0.4" in card
    assert "0.875 of each side" in card


@pytest.mark.parametrize("name", ["resnet", "swin"])
def test_timm_and_transformers_prepare_images_as_evaluation_does(name: str, tmp_path: Path) -> None:
    import transformers
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    checkpoint, model = make(NETWORKS[name], tmp_path)
    folder = tmp_path / "exported"
    assert export(checkpoint, folder) == 0
    down, across = np.linspace(0, 255, 90)[:, None], np.linspace(0, 255, 128)[None]
    photo = np.stack([down + 0 * across, across + 0 * down, (down + across) / 2], axis=2).astype(np.uint8)
    image = torch.from_numpy(photo).permute(2, 0, 1)
    expected = (resize_and_crop(image, model.image_size, crop=0.875) / 255 - 0.4) / 0.2
    net: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    settings = resolve_model_data_config(net)  # type: ignore[no-untyped-call]
    in_timm: Any = create_transform(**settings)(Image.fromarray(photo))
    processor: Any = transformers.AutoImageProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    in_transformers = processor(Image.fromarray(photo))["pixel_values"][0]
    for found in (in_timm, in_transformers):
        assert found.shape == expected.shape
        assert (found - expected).abs().mean() < 0.05  # of a range of 5


@pytest.mark.skipif(not find_spec("onnxruntime"), reason="needs onnx, onnxscript and onnxruntime")
@pytest.mark.parametrize("name", ["patch mean", "resnet", "gray"])
def test_onnx_gives_the_same_logits_for_any_number_of_images(name: str, tmp_path: Path) -> None:
    import onnxruntime

    checkpoint, model = make(NETWORKS[name], tmp_path)
    out = tmp_path / "classifier.onnx"
    assert export(checkpoint, out, format="onnx") == 0
    assert [path.name for path in tmp_path.glob("classifier.onnx*")] == ["classifier.onnx"]  # all in one file
    session = onnxruntime.InferenceSession(out)
    images = noise(model.channels, model.image_size)
    for part in (images, images[:1]):
        (found,) = session.run(["logits"], {"images": part.numpy()})
        np.testing.assert_allclose(found, logits(model.logits, part).numpy(), atol=1e-4)


@pytest.mark.skipif(not find_spec("onnxruntime"), reason="needs onnx, onnxscript and onnxruntime")
@pytest.mark.parametrize("pool", ["attention", "ep"])
def test_onnx_gives_the_same_logits_of_a_head_with_attention(pool: str, tmp_path: Path) -> None:
    import onnxruntime

    encoder, heads, description = probe(pool)
    net = join(encoder, heads, 1, description)
    checkpoint, out = save(net, description, tmp_path / "a.safetensors"), tmp_path / "classifier.onnx"
    assert export(checkpoint, out, format="onnx") == 0
    images = noise(3, (32, 32))
    (found,) = onnxruntime.InferenceSession(out).run(["logits"], {"images": images.numpy()})
    np.testing.assert_allclose(found, logits(net, images).numpy(), atol=1e-4)


@pytest.mark.skipif(bool(find_spec("onnxscript")), reason="onnxscript is installed")
def test_onnx_without_its_packages_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, _ = make(NETWORKS["resnet"], tmp_path)
    assert export(checkpoint, tmp_path / "classifier.onnx", format="onnx") == 2
    assert "pip install 'mae-curriculum[onnx]'" in capsys.readouterr().err


def probe(pool: str, *, pooled_norm: bool = False, norm_eps: float | None = None) -> tuple[MaskedAutoencoder, Any, Any]:
    """Return an encoder, heads whose batch normalization has seen features, and the description of the second head."""
    shape: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 48, "depth": 2, "heads": 3}
    config = ModelConfig(TINY, **shape, norm_eps=norm_eps, class_tokens=3 if pool == "class_avg" else 1)
    encoder = build_model(config, seed=1).eval()
    if pooled_norm:
        encoder.encoder.norm, encoder.encoder.fc_norm = nn.Identity(), encoder.encoder.norm
    kind = {"attention": "attentive", "ep": "ep"}.get(pool, "linear")
    pools = encoder.pools if kind == "linear" else (pool,)
    heads = Heads(kind, [(1, pool) for pool in pools], (1.0, 2.0), width=48, attention_heads=3, class_count=6)  # type: ignore[arg-type]
    for norm in heads.norms:
        nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    statistics: dict[str, Any] = {"mean": (0.4,) * 3, "std": (0.2,) * 3, "crop": 1.0}
    return encoder, heads.eval(), describe_probe(encoder, config, pool=pool, classes=CLASSES, **statistics)


@pytest.mark.parametrize("pooled_norm", [False, True])
@pytest.mark.parametrize("pool", ["token", "avg", "class_avg", "attention", "ep"])
def test_an_encoder_joined_to_a_head_gives_the_logits_of_the_head(pool: str, pooled_norm: bool, tmp_path: Path) -> None:
    encoder, heads, description = probe(pool, pooled_norm=pooled_norm, norm_eps=1e-3)
    number = heads.names.index(((1, pool), 2.0))
    images = noise(3, (32, 32))
    with torch.no_grad():
        features = encoder.tokens(images)[:, 1:] if pool in ("attention", "ep") else encoder.features(images)
        expected = heads.logits(features)[:, number]
    net, _ = load_classifier(save(join(encoder, heads, number, description), description, tmp_path / "a.safetensors"))
    torch.testing.assert_close(logits(net, images), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("pool", "norm_eps", "reason"),
    [
        ("attention", None, "has no norm"),
        ("class_avg", None, "the mean of several class tokens"),
        ("avg", 1e-3, "an epsilon of 0.001"),
    ],
)
def test_what_timm_cannot_state_is_refused(
    pool: str, norm_eps: float | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, heads, description = probe(pool, norm_eps=norm_eps)
    checkpoint = save(join(encoder, heads, 1, description), description, tmp_path / "a.safetensors")
    assert export(checkpoint, tmp_path / "exported") == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


def test_predictions_come_in_the_order_of_the_files_and_broken_ones_are_listed(tmp_path: Path) -> None:
    checkpoint, model = make(NETWORKS["resnet"], tmp_path)
    pictures = picture_folder(tmp_path / "pictures", 2, 7)
    (pictures / "class0" / "0001.png").write_text("no image")
    np.save(pictures / "class1" / "zebra.npy", np.zeros((30, 30, 4), dtype=np.uint8))
    rows = predict(checkpoint, pictures, tmp_path / "out.csv", evaluation_batch=2)
    names = [str(path) for path in sorted(pictures.rglob("*.*"))]
    assert [row["file"] for row in rows] == names
    assert [(row["class"], row["error"]) for row in rows if row["error"]] == [
        ("", "not an image"),
        ("", "4 channels, model.channels is 3"),
    ]
    pixels = torch.tensor([3, 40, 99]).view(1, 3, 1, 1) / 255  # 0003.png, of one color
    scores = logits(model.logits, ((pixels - 0.4) / 0.2).expand(1, 3, 32, 32)).softmax(dim=1)[0]
    (row,) = [row for row in rows if row["file"].endswith("0003.png")]
    best = int(scores.argmax())
    assert row["class"] == CLASSES[best]
    assert float(row["probability"]) == pytest.approx(float(scores[best]), abs=1e-3)
    top = json.loads(row["top5"])
    assert len(top) == 5
    assert list(top.values()) == sorted(top.values(), reverse=True)
    assert next(iter(top)) == row["class"]


def test_two_processes_write_the_same_file(tmp_path: Path) -> None:
    checkpoint, _ = make(NETWORKS["resnet"], tmp_path)
    pictures = picture_folder(tmp_path / "pictures", 2, 7)
    (pictures / "class1" / "0005.png").write_text("no image")
    predict(checkpoint, pictures, tmp_path / "one.csv", evaluation_batch=2)
    flags = as_flags({"checkpoint": checkpoint, "data.source": pictures, "out": tmp_path / "two.csv"})
    done = two_processes("predict", *flags, "--evaluation_batch", "2", package="finetune")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "two.csv").read_text()


def test_images_of_other_channels_are_converted_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, _ = make(NETWORKS["gray"], tmp_path)
    pictures, arrays = picture_folder(tmp_path / "pictures", 1, 2), tmp_path / "arrays"
    assert [row["error"] for row in predict(checkpoint, pictures, tmp_path / "gray.csv")] == ["", ""]
    arrays.mkdir()
    np.save(arrays / "a.npy", np.zeros((30, 30, 4), dtype=np.uint8))
    out = tmp_path / "out.csv"
    assert main(["predict", *as_flags({"checkpoint": checkpoint, "data.source": arrays, "out": out})]) == 2
    assert "can be read; the first: 4 channels, model.channels is 1" in capsys.readouterr().err
    assert not out.exists()


def test_what_is_no_classifier_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no tensors")
    checkpoint, model = make(NETWORKS["resnet"], tmp_path)
    _, description = load_classifier(checkpoint)
    with torch.no_grad():
        model.net.conv1[0].weight[0] = torch.nan
    broken = save(model.net, description, tmp_path / "broken.safetensors")
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "vit"}')
    places = {damaged: "cannot be read", broken: "not finite", tmp_path / "vit": "neither a run nor a model folder"}
    for path, message in places.items():
        assert main(["predict", *as_flags({"checkpoint": path, "out": tmp_path / "out.csv"})]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "reason"),
    [("bare.safetensors", "does not describe a classifier"), ("theirs.pth", "cannot be read as safetensors: ")],
)
def test_bare_weights_are_refused_with_what_to_do(
    name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    weights = {"head.weight": torch.zeros(2, 3)}
    if name == "theirs.pth":
        torch.save(weights, path)
    else:
        save_weights(path, weights, {})
    assert main(["predict", *as_flags({"checkpoint": path, "out": tmp_path / "out.csv"})]) == 2
    error = capsys.readouterr().err
    assert f"error: {path} {reason}" in error
    assert "timm.models.save_for_hf(model, FOLDER, safe_serialization=True)" in error


def test_the_folder_that_timm_writes_is_a_classifier(tmp_path: Path) -> None:
    theirs: Any = timm.create_model("resnet10t", num_classes=5).eval()
    timm.models.save_for_hf(theirs, str(tmp_path), safe_serialization=True)
    net, description = load_classifier(tmp_path)
    images = noise(3, (32, 32))
    torch.testing.assert_close(logits(net, images), logits(theirs, images))
    assert description.classes == ("0", "1", "2", "3", "4")
