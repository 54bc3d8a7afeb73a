import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mae_curriculum.__main__ import main
from tests.processes import ROOT

CONFIGS = ROOT / "configs"


def plan(recipe: str, *arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["plan", "--config", str(CONFIGS / "pretrain" / f"{recipe}.yaml"), *arguments, "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


@pytest.mark.parametrize(
    ("recipe", "published"), [("vit_b16_in1k_efficienttrain", 1.54), ("vit_l16_in1k_efficienttrain", 1.53)]
)
def test_speed_ups_match_the_published_ones(recipe: str, published: float, capsys: pytest.CaptureFixture[str]) -> None:
    facts = plan(recipe, capsys=capsys)
    assert facts["speedup"] == pytest.approx(published, abs=0.005)
    assert [stage["size"] for stage in facts["stages"]] == [[160, 160], [192, 192], [224, 224]]
    assert facts["steps"] == plan("vit_b16_in1k", capsys=capsys)["steps"]


def test_stage_has_all_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--devices", "8", "--rate", "5000", "--curriculum.augmentation.randaug", "[0, 9]")
    stage = plan("vit_b16_in1k_efficienttrain", *arguments, capsys=capsys)["stages"][0]
    assert stage["grid"] == [10, 10]
    assert stage["visible_tokens"] == 25
    assert stage["magnitude"] == pytest.approx([0, 5.4])
    assert stage["real_epochs"] == pytest.approx(960, abs=0.01)
    assert stage["equivalent_epochs"] == pytest.approx(960)
    # 4096 images on 8 devices; 512 fit at full size, 512 * (224/160)^2 = 1003 at 160 px
    assert (stage["batch_images"], stage["micro_batch"], stage["accumulation"]) == (4096, 512, 1)
    assert stage["loader_images_per_second"] == pytest.approx(5000 / 0.507, rel=0.01)


def test_efficienttrain_plus_plus_has_more_real_than_equivalent_epochs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts = plan("vit_b16_in1k_efficienttrain_pp", capsys=capsys)
    assert facts["equivalent_epochs"] == 400
    assert facts["real_epochs"] == pytest.approx(400 * 2.2729, rel=1e-3)  # 0.2 * 5.444 + 0.4 * 1.96 + 0.4
    assert facts["stages"][0]["real_epochs"] == pytest.approx(80 * 49 / 9, rel=1e-3)
    assert facts["speedup"] == pytest.approx(1, abs=0.01)  # equal compute by construction


def test_a_quarter_of_the_epochs_with_efficienttrain_plus_plus_is_a_quarter_of_the_compute(
    capsys: pytest.CaptureFixture[str],
) -> None:
    baseline = plan("vit_b16_in1k", capsys=capsys)
    ours, ours_with_hog = (
        plan("vit_b16_in1k_efficienttrain_pp", "--model.target", target, capsys=capsys)
        for target in ("norm_pixels", "hog")
    )
    assert (baseline["equivalent_epochs"], ours["equivalent_epochs"]) == (1600, 400)
    assert 3.98 <= baseline["flops"] / ours["flops"] <= 4.0  # published: 3.98x
    hog_speedup = baseline["flops"] / ours_with_hog["flops"]  # 108 values a patch instead of 768
    assert hog_speedup == pytest.approx(4.016, abs=0.001)


LARGE_BATCH = ("--curriculum", "efficienttrain_pp_large_batch", "--curriculum.augmentation.randaug", "null")


def test_a_large_batch_early_keeps_the_speed_up_on_many_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    # a step at full size computes for 4096 / 65536 s = 62.5 ms, and averages gradients for half as long
    cluster = ("--nodes", "8", "--devices", "64", "--rate", "65536")
    baseline = plan("vit_b16_in1k", *cluster, "--epochs", "800", capsys=capsys)
    large = plan("vit_b16_in1k_efficienttrain_pp", *cluster, *LARGE_BATCH, capsys=capsys)
    plain = plan("vit_b16_in1k_efficienttrain_pp", *cluster, capsys=capsys)
    # 111,655,680 weights of 4 bytes, of which each of 8 nodes sends 2 * 7/8, at 25 GB/s
    assert baseline["nodes"]["all_reduce_seconds"] == pytest.approx(0.031264, rel=1e-4)
    # equal compute by construction; steps per step of the baseline: 0.2 * 49/9 + 0.4 * 1.96 + 0.4 = 2.273
    assert baseline["hours"] / large["hours"] == pytest.approx(2 * 1.5 / (1 + 0.5), rel=0.005)  # 2.0x
    assert baseline["hours"] / plain["hours"] == pytest.approx(2 * 1.5 / (1 + 2.273 * 0.5), rel=0.005)  # 1.4x
    assert large["nodes"]["speedup"] == pytest.approx(1, rel=0.005)  # over as many epochs
    assert large["nodes"]["speedup_without_batch_factors"] == pytest.approx(plain["nodes"]["speedup"])
    assert [stage["compute_seconds"] for stage in large["stages"]] == pytest.approx([0.0625] * 3, rel=0.03)


def test_a_plan_on_one_node_has_no_communication(capsys: pytest.CaptureFixture[str]) -> None:
    facts = plan("vit_b16_in1k_efficienttrain", "--devices", "8", "--bandwidth", "1e-9", capsys=capsys)
    assert facts["nodes"] is None
    assert facts["baseline_hours"] / facts["hours"] == pytest.approx(facts["speedup"])


def test_what_a_stage_sets_is_planned_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    stages = "[{share: 0.5, size: 224, mask_ratio: 0.5, resize: bicubic}, {share: 0.5, size: 224, batch_factor: 4}]"
    changes = ("--curriculum.stages", stages, "--optim.batch_factor_lr", "sqrt")
    first, second = plan("vit_b16_in1k_efficienttrain", *changes, capsys=capsys)["stages"]
    assert (first["visible_tokens"], second["visible_tokens"]) == (98, 49)
    assert first["flops_per_image"] > 1.3 * second["flops_per_image"]
    assert first["loader_images_per_second"] < 1000 == pytest.approx(second["loader_images_per_second"])
    recipe = str(CONFIGS / "pretrain" / "vit_b16_in1k_efficienttrain.yaml")
    assert main(["plan", "--config", recipe, *changes, "--nodes", "2", "--devices", "16"]) == 0
    text = capsys.readouterr().out
    assert "stage 1: mask_ratio 0.5, resize bicubic; steps of 4,096 images, peak learning rate 0.0024\n" in text
    assert "stage 2: batch_factor 4.0; steps of 16,384 images, peak learning rate 0.0048\n" in text
    assert "2 nodes: 17.9 ms a step to average 0.447 GB of gradients at 25 GB/s, after " in text
    assert "\nassumed: compute goes with FLOPs, whatever the batch; float32 gradients are averaged once" in text


def test_more_nodes_than_devices_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "digits", "--nodes", "8"]) == 2
    assert "nodes must be in 1..devices, which is 1, got 8; set --devices" in capsys.readouterr().err


def test_plain_mae_is_a_curriculum_of_one_stage(capsys: pytest.CaptureFixture[str]) -> None:
    none = plan("vit_b16_in1k_efficienttrain", "--curriculum", str(CONFIGS / "curriculum" / "none.yaml"), capsys=capsys)
    assert none["speedup"] == 1
    assert none["stages"] == plan("vit_b16_in1k", capsys=capsys)["stages"]


def test_more_devices_than_images_per_step_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(CONFIGS / "pretrain" / "digits.yaml")
    stages = '[{"share": 1.0, "size": 224, "batch_factor": 0.5}]'
    assert main(["plan", "--config", recipe, "--devices", "100", "--curriculum.stages", stages]) == 2
    assert "makes steps of 64 images, fewer than the 100 processes" in capsys.readouterr().err


def test_text_output_matches_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", str(CONFIGS / "pretrain" / "vit_b16_in1k_efficienttrain.yaml")]) == 0
    text = capsys.readouterr().out
    assert "speed-up 1.54x" in text
    assert [line.split()[1:4] for line in text.splitlines()[4:7]] == [
        ["160", "10x10", "25/100"],
        ["192", "12x12", "36/144"],
        ["224", "14x14", "49/196"],
    ]


@pytest.mark.parametrize(
    ("name", "pace", "stages"),
    [
        ("none", "images", [(1, 224)]),
        ("efficienttrain", "images", [(0.6, 160), (0.2, 192), (0.2, 224)]),
        ("efficienttrain_pp", "compute", [(0.2, 96), (0.4, 160), (0.4, 224)]),
        ("efficienttrain_pp_convnext", "compute", [(0.6, 160), (0.4, 224)]),
        ("efficienttrain_pp_deit", "compute", [(0.2, 96), (0.4, 160), (0.2, 192), (0.2, 224)]),
    ],
)
def test_curriculum_files_match_the_tables_of_the_papers(
    name: str, pace: str, stages: list[tuple[float, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    curriculum = str(CONFIGS / "curriculum" / f"{name}.yaml")
    facts = plan("vit_b16_in1k", "--curriculum", curriculum, capsys=capsys)
    ends = [stage["progress"][1] for stage in facts["stages"]]
    assert [(end - start, s["size"][0]) for start, end, s in zip([0, *ends], ends, facts["stages"], strict=False)] == [
        (pytest.approx(share), size) for share, size in stages
    ]
    assert (facts["real_epochs"] > 1601) == (pace == "compute")
    assert [s["magnitude"] is None for s in facts["stages"]] == [name == "none"] * len(stages)


def test_plans_stand_side_by_side_with_the_same_flags(capsys: pytest.CaptureFixture[str]) -> None:
    files = ["vit_b16_in1k", str(CONFIGS / "pretrain" / "vit_l16_in1k_efficienttrain.yaml")]
    assert main(["plan", *files, "--epochs", "160", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert [facts["name"] for facts in plans] == files
    assert plans[1] == {"name": files[1], **plan("vit_l16_in1k_efficienttrain", "--epochs", "160", capsys=capsys)}

    assert main(["plan", "--json", "false", *files, "--epochs", "160"]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    table = {cells[0]: cells[1:] for cells in ([cell.strip() for cell in row if cell] for row in rows)}
    assert table["plan"] == files
    assert table["sizes in pixels"] == ["224", "160 192 224"]
    assert table["equivalent epochs"] == ["160", "160"]
    assert table["speed-up"] == ["1.00x", "1.53x"]
    assert table["steps"] == ["50,046", "50,046"]


def test_a_mistake_in_one_of_several_plans_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "vit_b16_in1k", "digits", "--devices", "1000"]) == 2
    assert capsys.readouterr().err.startswith("error: digits: batch_size 128 makes steps of 128 images, fewer than ")
    assert main(["plan", "digits", "cifar10", "--print_config"]) == 2
    assert capsys.readouterr().err == "error: --print_config: one file at a time, got digits, cifar10\n"


def test_plans_are_drawn_in_one_figure(tmp_path: Path) -> None:
    assert main(["plan", "digits", "vit_b16_in1k", "--picture", str(tmp_path / "a.png")]) == 0
    with Image.open(tmp_path / "a.png") as image:
        colors = {color for _, color in image.convert("RGB").getcolors(10**5) or []}
    assert colors >= {(31, 119, 180), (255, 127, 14)}  # of the two plans
