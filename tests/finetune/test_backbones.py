"""CSWin and PVT: published sizes, attention against a slow form, any image size, resumed runs."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.__main__ import main
from finetune.backbones.cswin import StripeAttention
from finetune.classifier import Classifier, build_classifier
from finetune.config import ClassifierConfig, ExportConfig
from finetune.export import model_card, write_timm
from finetune.finetune import training_flops
from finetune.mixing import layer_decay_groups
from finetune.saved import describe
from mae_curriculum.curriculum.clock import View
from mae_curriculum.model.positions import resample_positions
from mae_curriculum.run.folder import RunFolder
from tests.runs import as_flags, equal, picture_folder, weights

CSWIN = ClassifierConfig(
    "cswin_tiny", image_size=96, options={"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [2, 2, 2, 4]}
)
PVT = ClassifierConfig(
    "pvt_tiny", image_size=96, options={"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2]}
)


def build(config: ClassifierConfig) -> Classifier:
    return build_classifier(config, None, class_count=4, seed=0)[0].eval()


def pictures(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cswin_tiny", 22_320_552),
        ("cswin_small", 34_643_304),
        ("cswin_base", 77_382_184),
        ("pvt_tiny", 13_229_288),
        ("pvt_small", 24_485_864),
        ("pvt_medium", 44_208_104),
        ("pvt_large", 61_369_320),
    ],
)
def test_networks_have_as_many_parameters_as_those_of_their_authors(name: str, parameters: int) -> None:
    with torch.device("meta"):
        net: Any = timm.create_model(name)
    assert sum(value.numel() for value in net.parameters()) == parameters
    assert net.pretrained_cfg["architecture"] == name


@pytest.mark.parametrize(("name", "published"), [("cswin_tiny", 4.3e9), ("pvt_tiny", 1.9e9)])
def test_networks_compute_as_much_as_published(name: str, published: float) -> None:
    with torch.device("meta"):
        classifier, _ = build_classifier(ClassifierConfig(name), None, class_count=1000, seed=0)
    multiply_adds = training_flops(classifier, View((224, 224))) / 3 / 2
    assert multiply_adds == pytest.approx(published, rel=0.02)


def attend_slowly(layer: StripeAttention, x: Tensor, stripe: tuple[int, int]) -> Tensor:
    """Attend stripe by stripe and head by head, by the formula."""
    _, h, w, width = x.shape
    q, k, v = layer.qkv(x).split(width, dim=-1)
    out = torch.empty_like(x)
    for branch in range(2):
        for head in range(layer.heads):
            own = width // (2 * layer.heads)
            first = branch * width // 2 + head * own
            channels = slice(first, first + own)
            end, side = (w, stripe[1]) if branch == 0 else (h, stripe[0])
            for start in range(0, end, side):
                stripe_at, whole = slice(start, start + side), slice(None)
                part = (whole, whole, stripe_at) if branch == 0 else (whole, stripe_at, whole)
                one_q, one_k, one_v = (each[part][..., channels] for each in (q, k, v))
                scores = one_q.flatten(1, 2) @ one_k.flatten(1, 2).transpose(1, 2) / math.sqrt(own)
                attended = scores.softmax(dim=-1) @ one_v.flatten(1, 2)
                kernel: Any = layer.positions[branch]
                rows = slice(head * own, (head + 1) * own)
                places = F.conv2d(
                    one_v.permute(0, 3, 1, 2), kernel.weight[rows], kernel.bias[rows], padding=1, groups=own
                )
                out[part][..., channels] = attended.view(one_v.shape) + places.permute(0, 2, 3, 1)
    slow: Tensor = layer.proj(out)
    return slow


@pytest.mark.parametrize("stripe", [(1, 1), (2, 3)])
def test_stripes_attend_as_the_formula_says(stripe: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = StripeAttention(16, heads=4, branches=2)
    x = torch.randn(2, 4, 6, 16)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, stripe), attend_slowly(layer, x, stripe), atol=1e-6, rtol=0)


def test_a_single_branch_attends_to_the_whole_grid() -> None:
    layer = StripeAttention(8, heads=2, branches=1)
    x = torch.randn(1, 3, 3, 8, requires_grad=True)
    layer(x, (3, 3))[0, 0, 0].sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any(dim=-1).all()


def test_cswins_parameters_do_not_depend_on_the_size_of_the_images() -> None:
    classifier = build(CSWIN)
    before = {name: value.clone() for name, value in classifier.named_parameters()}
    small = classifier.logits(pictures(64, 64))
    assert classifier.logits(pictures(96, 128)).isfinite().all()
    assert torch.equal(classifier.logits(pictures(64, 64)), small)
    other = build(ClassifierConfig(CSWIN.name, image_size=64, options=CSWIN.options))
    assert equal(before, dict(other.named_parameters()))
    assert torch.equal(other.logits(pictures(64, 64)), small)


def test_pvt_at_a_smaller_size_equals_a_network_of_that_size_with_resampled_positions() -> None:
    classifier = build(PVT)
    other = build(ClassifierConfig(PVT.name, image_size=64, options=PVT.options))
    state = dict(classifier.net.state_dict())
    for stage, (full, small) in enumerate(((24, 16), (12, 8), (6, 4), (3, 2))):
        key = f"stages.{stage}.pos_embed"
        prefix = int(stage == 3)  # the class token's own
        token, patches = state[key][0].tensor_split([prefix])
        state[key] = torch.cat([token, resample_positions(patches, (full, full), (small, small))])[None]
    other.net.load_state_dict(state)
    images = pictures(64, 64)
    torch.testing.assert_close(classifier.logits(images), other.logits(images), atol=1e-6, rtol=0)


def test_gradients_reach_the_full_positions_of_every_stage_of_pvt() -> None:
    classifier = build(PVT)
    classifier.logits(pictures(64, 64)).square().sum().backward()  # type: ignore[no-untyped-call]
    for stage, side in enumerate((24, 12, 6, 3)):
        gradient = classifier.net.stages[stage].pos_embed.grad
        assert gradient.shape[1] == side**2 + (stage == 3)
        assert (gradient != 0).float().mean() > 0.9


@pytest.mark.parametrize("config", [CSWIN, PVT], ids=["cswin", "pvt"])
def test_layer_decay_knows_the_blocks(config: ClassifierConfig) -> None:
    net = build(config).net
    groups = layer_decay_groups(net, 0.05, 0.5)
    scale = {id(value): group["lr_scale"] for group in groups for value in group["params"]}
    assert scale.keys() == {id(value) for value in net.parameters()}
    blocks = [block.norm1.weight for stage in net.stages for block in stage.blocks]
    assert [scale[id(block)] for block in blocks] == [0.5**layers for layers in (5, 4, 3, 2, 1)]
    decayed = {id(value) for group in groups if group["weight_decay"] for value in group["params"]}
    assert not [name for name, value in net.named_parameters() if "cls_token" in name and id(value) in decayed]


@pytest.mark.parametrize("config", [CSWIN, PVT], ids=["cswin", "pvt"])
def test_exports_load_in_timm_as_their_cards_say(config: ClassifierConfig, tmp_path: Path) -> None:
    classifier = build(config)
    description = describe(classifier, classes=tuple("abcd"), mean=(0.5,) * 3, std=(0.5,) * 3, crop=1.0)
    write_timm(classifier.net, description, tmp_path / "folder")
    card = model_card(classifier.net, description, ExportConfig(checkpoint=tmp_path, out=tmp_path / "card"))
    assert f"    import {type(classifier.net).__module__}  # for timm\n    timm.create_model(" in card
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    images = pictures(96, 96)
    assert torch.equal(again.eval()(images), classifier.logits(images))


@pytest.mark.parametrize("config", [CSWIN, PVT], ids=["cswin", "pvt"])
def test_a_run_that_lost_its_last_steps_repeats_them_to_the_same_bits(config: ClassifierConfig, tmp_path: Path) -> None:
    settings = {
        "run": tmp_path / "whole",
        "data.source": picture_folder(tmp_path / "images", classes=2, count=20),
        "data.workers": 0,
        "model.name": config.name,
        "model.image_size": 64,
        "model.options": config.options,
        "curriculum": "efficienttrain",
        "average_decay": 0.9,
        "batch_size": 4,
        "epochs": 3,
        "evaluate_every_epochs": 3,
        "saving.every_minutes": 1e-6,
        "saving.keep": 100,
    }
    assert main(["finetune", *as_flags(settings)]) == 0
    cut = RunFolder(Path(shutil.copytree(tmp_path / "whole", tmp_path / "cut")))
    middle = cut.checkpoints[len(cut.checkpoints) // 2]  # images of 32 pixels until then, of 64 at the end
    for path in (*cut.checkpoints[len(cut.checkpoints) // 2 + 1 :], cut.summary, cut.path / "results.json"):
        path.unlink()
    assert cut.newest() == middle
    assert main(["finetune", *as_flags(settings | {"run": cut.path})]) == 0
    assert equal(weights(tmp_path / "whole"), weights(cut.path))
