"""Plans of fine-tuning: the computation columns of EfficientTrain's papers, without data."""

import json
from pathlib import Path

import pytest

from finetune.__main__ import main
from finetune.config import FinetuneConfig, PlanConfig
from finetune.plan import describe_plan
from mae_curriculum.config import ConfigError, load
from mae_curriculum.recipes import CONFIGS
from mae_curriculum.run.folder import RunFolder

SMALL = ["--model.options", '{"layers": [1, 1, 1, 1]}']


@pytest.mark.parametrize(
    ("name", "curriculum", "epochs", "published"),
    [
        ("resnet50", "efficienttrain_pp", 200, 1.49),
        ("deit_tiny_patch16_224", "efficienttrain", 300, 1.59),
        ("pvt_tiny", "efficienttrain_pp", 200, 1.51),
    ],
)
def test_plans_reproduce_the_published_savings_of_computation(
    name: str, curriculum: str, epochs: int, published: float
) -> None:
    flags = ["--model.name", name, "--curriculum", curriculum, "--epochs", str(epochs), "--baseline_epochs", "300"]
    facts = describe_plan(load(PlanConfig, ["--config", "supervised/resnet50", *flags]))
    assert facts["speedup"] == pytest.approx(published, abs=0.02)


def test_a_plan_is_printed_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "supervised/resnet50", "--devices", "8"]
    assert main(["plan", *arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["steps"], facts["equivalent_epochs"], facts["parameters"]) == (93_835, 300, 25_557_032)
    assert [stage["size"] for stage in facts["stages"]] == [[160, 160], [192, 192], [224, 224]]
    assert main(["plan", *arguments, *SMALL]) == 0
    text = capsys.readouterr().out
    assert "parameters, 1,000 classes (assumed: image_count alone does not tell); compared with 300 epochs" in text
    assert "resnet50: 300 equivalent epochs (300.0 real) of 1,281,167 images" in text
    assert "speed-up 1.53x" in text
    assert "grid" not in text


def test_a_plan_does_not_follow_another_run_in_the_default_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["plan", "--model.name", "resnet50", *SMALL, "--data.source", "digits", "--json"]
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 0
    alone = json.loads(capsys.readouterr().out)
    other = FinetuneConfig(batch_size=2, epochs=1)
    RunFolder(other.run).claim(other, command="finetune")
    assert main(flags) == 0
    assert json.loads(capsys.readouterr().out) == alone


def test_plans_of_several_recipes_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["supervised/resnet50", str(CONFIGS / "finetune" / "supervised" / "resnet50.yaml")]
    assert main(["plan", *names, *SMALL]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["plan", *names] in rows
    assert ["speed-up", "1.53x", "1.53x"] in rows


def test_invalid_plans_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", "supervised/resnet50", "--baseline_epochs", "0"]) == 2
    assert capsys.readouterr().err == "error: baseline_epochs must be at least 1 or null, got 0\n"
    assert main(["plan", "supervised/resnet50", "supervised/deit_tiny", "--model.name", "deit_tinny"]) == 2
    assert capsys.readouterr().err.startswith("error: supervised/resnet50: model.name: timm has no 'deit_tinny'")


def test_drop_path_is_scaled_by_the_budget() -> None:
    swin = ["--config", "supervised/swin_tiny", "--drop_path_epochs", "200"]
    assert load(PlanConfig, ["--config", "supervised/swin_tiny"]).scaled_drop_path == 0.2
    assert load(PlanConfig, [*swin, "--epochs", "100"]).scaled_drop_path == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="for drop_path_epochs 200 would be 1 for 1000 epochs"):
        load(PlanConfig, [*swin, "--epochs", "1000"])
