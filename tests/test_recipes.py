from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.config import FinetuneConfig, LinprobeConfig
from mae_curriculum.config import dump, load, load_file
from mae_curriculum.curriculum.schedule import Curriculum
from mae_curriculum.pretraining_config import PretrainConfig
from tests.runs import ROOT

CONFIGS = ROOT / "configs"
RECIPES = sorted((CONFIGS / "pretrain").glob("*.yaml"))
VERBS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "linprobe": LinprobeConfig}
DOWNSTREAM = [(verb, path) for verb in ("finetune", "linprobe") for path in sorted((CONFIGS / verb).glob("*.yaml"))]


@pytest.mark.parametrize(("verb", "path"), DOWNSTREAM, ids=lambda part: part if isinstance(part, str) else part.stem)
def test_a_downstream_recipe_loads_prints_and_says_what_it_takes(verb: str, path: Path, tmp_path: Path) -> None:
    config: Any = load(VERBS[verb], ["--config", str(path), "--checkpoint", "RUN"])
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load_file(VERBS[verb], tmp_path / "again.yaml") == config
    words = " ".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"python -m finetune {verb} --config configs/{verb}/{path.name} --checkpoint" in words
    assert all(word in words for word in ("Hardware:", "Time:", "Result:"))


def test_downstream_recipes_are_there_for_each_pretraining() -> None:
    names = {verb: {path.stem for other, path in DOWNSTREAM if other == verb} for verb in ("finetune", "linprobe")}
    published = {"vit_b16_in1k", "vit_l16_in1k", "vit_h14_in1k"}
    assert names["finetune"] == names["linprobe"] == {"digits", "cifar10", "imagenette128"} | published


def test_the_recipes_are_there() -> None:
    assert [path.stem for path in RECIPES] == [
        "cifar10",
        "digits",
        "imagenette128",
        "vit_b16_in1k",
        "vit_b16_in1k_efficienttrain",
        "vit_b16_in1k_efficienttrain_pp",
        "vit_l16_in1k_efficienttrain",
    ]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_prints_and_loads_again_to_an_equal_object(path: Path, tmp_path: Path) -> None:
    config = load_file(PretrainConfig, path)
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load_file(PretrainConfig, tmp_path / "again.yaml") == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_begins_with_command_hardware_time_and_result(path: Path) -> None:
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    words = " ".join(comment)
    assert f"--config configs/pretrain/{path.name}" in words
    assert all(word in words for word in ("Hardware:", "Time:", "Result:"))
    assert load_file(PretrainConfig, path).run == Path("runs") / path.stem


@pytest.mark.parametrize("path", sorted((CONFIGS / "curriculum").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_curriculum_file_loads_prints_and_loads_again_to_an_equal_object(path: Path, tmp_path: Path) -> None:
    curriculum = load(PretrainConfig, ["--curriculum", str(path)]).curriculum
    (tmp_path / "again.yaml").write_text(dump(curriculum))
    assert load(PretrainConfig, ["--curriculum", str(tmp_path / "again.yaml")]).curriculum == curriculum
    assert {"pace", "stages", "augmentation"} <= set(yaml.safe_load(path.read_text()))  # so that it replaces a recipe's


@pytest.mark.parametrize(
    ("recipe", "curriculum"),
    [
        ("digits", "efficienttrain"),
        ("cifar10", "efficienttrain"),
        ("imagenette128", "efficienttrain"),
        ("vit_b16_in1k", "none"),
        ("vit_b16_in1k_efficienttrain", "efficienttrain"),
        ("vit_l16_in1k_efficienttrain", "efficienttrain"),
        ("vit_b16_in1k_efficienttrain_pp", "efficienttrain_pp"),
    ],
)
def test_mae_recipes_follow_the_curriculum_files_but_for_randaugment(recipe: str, curriculum: str) -> None:
    ours = load_file(PretrainConfig, CONFIGS / "pretrain" / f"{recipe}.yaml").curriculum
    published = load(PretrainConfig, ["--curriculum", str(CONFIGS / "curriculum" / f"{curriculum}.yaml")]).curriculum
    assert ours == replace(published, augmentation=ours.augmentation)
    assert ours.augmentation.randaug is None


def test_no_curriculum_is_one_stage_at_full_size() -> None:
    none = load(PretrainConfig, ["--curriculum", str(CONFIGS / "curriculum" / "none.yaml")]).curriculum
    assert none == Curriculum() == PretrainConfig().curriculum
