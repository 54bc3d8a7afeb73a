import re
from bisect import bisect
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import yaml

from finetune.config import FinetuneConfig, LinprobeConfig
from finetune.search_config import SupervisedSearchConfig
from mae_curriculum.__main__ import COMMANDS as MAE_CURRICULUM
from mae_curriculum.commands.config import SearchConfig
from mae_curriculum.config import ConfigError, dump, load, load_file
from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.curriculum.config import Augmentation, Curriculum
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.recipes import FOLDERS, find_file, list_recipes
from slurm.__main__ import COMMANDS as SLURM
from tests.processes import ROOT

CONFIGS = ROOT / "configs"
RECIPES = sorted((CONFIGS / "pretrain").glob("*.yaml"))
COMMANDS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "linprobe": LinprobeConfig}
DOWNSTREAM = [
    (command, path) for command in ("finetune", "linprobe") for path in sorted((CONFIGS / command).glob("*.yaml"))
]


@pytest.mark.parametrize(("command", "path"), DOWNSTREAM, ids=lambda part: part if isinstance(part, str) else part.stem)
def test_a_downstream_recipe_loads_and_states_command_hardware_time_and_result(
    command: str, path: Path, tmp_path: Path
) -> None:
    config: Any = load(COMMANDS[command], ["--config", str(path), "--checkpoint", "RUN"])
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load_file(COMMANDS[command], tmp_path / "again.yaml") == config
    words = " ".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"python -m finetune {command} --config {path.stem} --checkpoint" in words
    assert all(word in words for word in ("Hardware:", "Time:", "Result:"))


@pytest.mark.parametrize("path", sorted((CONFIGS / "finetune/supervised").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_supervised_recipe_has_the_papers_settings_and_states_command_hardware_time_and_result(path: Path) -> None:
    config = load(FinetuneConfig, ["--config", f"supervised/{path.stem}"])
    defaults = load(FinetuneConfig, []).curriculum.augmentation
    expected = Curriculum.preset("efficienttrain")
    assert config.curriculum == replace(expected, augmentation=replace(defaults, randaug=(0, 9)))
    optim = config.optim
    assert (config.batch_size, config.epochs, optim.base_lr * 16, optim.min_lr * 16) == (4096, 300, 4e-3, 1e-6)
    assert (optim.clip_norm == 5.0) == path.stem.startswith(("deit", "swin"))
    assert (config.average_decay == 0.9999) == path.stem.startswith(("convnext", "cswin"))
    words = " ".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"python -m finetune finetune --config supervised/{path.stem} --data.source IMAGENET " in words
    assert all(word in words for word in ("Hardware:", "Time: not measured", "Result: published", "not run here"))


def test_each_pretraining_recipe_has_downstream_recipes() -> None:
    names = {
        command: {path.stem for other, path in DOWNSTREAM if other == command} for command in ("finetune", "linprobe")
    }
    published = {"vit_b16_in1k", "vit_l16_in1k", "vit_h14_in1k"}
    assert names["finetune"] == names["linprobe"] == {"digits", "cifar10", "imagenette128"} | published


def test_these_pretraining_recipes_exist() -> None:
    assert [path.stem for path in RECIPES] == [
        "cifar10",
        "continue_vit_b16",
        "digits",
        "imagenette128",
        "vit_b16_in1k",
        "vit_b16_in1k_blocks",
        "vit_b16_in1k_efficienttrain",
        "vit_b16_in1k_efficienttrain_pp",
        "vit_l16_in1k_efficienttrain",
    ]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_dumps_and_loads_to_an_equal_object(path: Path, tmp_path: Path) -> None:
    config = load_file(PretrainConfig, path)
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load_file(PretrainConfig, tmp_path / "again.yaml") == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_starts_with_command_hardware_time_and_result(path: Path) -> None:
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    words = " ".join(comment)
    assert re.search(rf"pretrain --config {path.stem}(\s|$)", words)
    assert all(word in words for word in ("Hardware:", "Time:", "Result:"))
    assert load_file(PretrainConfig, path).run == Path("runs") / path.stem


@pytest.mark.parametrize("path", sorted((CONFIGS / "curriculum").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_curriculum_file_loads_dumps_and_loads_to_an_equal_object(path: Path, tmp_path: Path) -> None:
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
        ("continue_vit_b16", "efficienttrain"),
        ("vit_b16_in1k", "none"),
        ("vit_b16_in1k_efficienttrain", "efficienttrain"),
        ("vit_l16_in1k_efficienttrain", "efficienttrain"),
        ("vit_b16_in1k_efficienttrain_pp", "efficienttrain_pp"),
    ],
)
def test_mae_recipes_follow_the_curriculum_files_except_for_randaugment(recipe: str, curriculum: str) -> None:
    ours = load_file(PretrainConfig, CONFIGS / "pretrain" / f"{recipe}.yaml").curriculum
    published = load(PretrainConfig, ["--curriculum", str(CONFIGS / "curriculum" / f"{curriculum}.yaml")]).curriculum
    assert ours == replace(published, augmentation=ours.augmentation)
    assert ours.augmentation.randaug is None


SEARCHES = {"search": (SearchConfig, "mae_curriculum"), "supervised_search": (SupervisedSearchConfig, "finetune")}


@pytest.mark.parametrize(
    ("folder", "path"), [(folder, path) for folder in SEARCHES for path in sorted((CONFIGS / folder).glob("*.yaml"))]
)
def test_a_recipe_of_a_search_loads_and_states_command_hardware_time_and_result(
    folder: str, path: Path, tmp_path: Path
) -> None:
    config_class, package = SEARCHES[folder]
    config: Any = load_file(config_class, path)
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load_file(config_class, tmp_path / "again.yaml") == config
    assert config.run == Path("runs") / f"{folder}_{path.stem}"
    words = " ".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"python -m {package} search --config {path.stem}" in words
    assert all(word in words for word in ("Hardware:", "Time:", "Result:"))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("efficienttrain_pp", [96] * 2 + [160] * 4 + [224] * 4),
        ("efficienttrain_pp_large_batch", [96] * 2 + [160] * 4 + [224] * 4),
        ("efficienttrain_pp_convnext", [160] * 6 + [224] * 4),
        ("efficienttrain_pp_deit", [96] * 2 + [160] * 4 + [192] * 2 + [224] * 2),
    ],
)
def test_each_tenth_of_the_compute_is_a_stage_of_efficienttrain_plus_plus(name: str, sizes: list[int]) -> None:
    curriculum = Curriculum.preset(name)
    clock = Clock(
        curriculum,
        image_size=(224, 224),
        patch_size=(16, 16),
        images_per_epoch=10_000,
        epochs=30,
        batch_images=100,
    )
    areas = [span.size[0] ** 2 for span in clock.spans for _ in range(span.images)]
    compute = list(accumulate(areas))
    tenths = [areas[bisect(compute, compute[-1] * (2 * tenth + 1) // 20)] for tenth in range(10)]
    assert tenths == [size**2 for size in sizes]
    edges = [areas[bisect(compute, compute[-1] * (100 * tenth + 1) // 1000)] for tenth in range(10)]
    assert edges == tenths  # from the first hundredth of a tenth on
    magnitudes = [clock.moment(step).magnitude for step in (0, clock.total_steps)]
    assert magnitudes == [0, 9]


def test_large_batches_early_have_as_many_pixels_in_a_step() -> None:
    large = Curriculum.preset("efficienttrain_pp_large_batch")
    assert [stage.batch_factor * stage.size**2 for stage in large.stages] == pytest.approx([224**2] * 3, rel=1e-4)
    stages = tuple(replace(stage, batch_factor=1.0) for stage in large.stages)
    assert replace(large, stages=stages) == Curriculum.preset("efficienttrain_pp")


def test_the_recipe_none_is_one_stage_at_full_size() -> None:
    none = load(PretrainConfig, ["--curriculum", str(CONFIGS / "curriculum" / "none.yaml")]).curriculum
    assert none == Curriculum()


def test_pretraining_follows_efficienttrain_unless_told_otherwise() -> None:
    assert PretrainConfig().curriculum == replace(Curriculum.preset("efficienttrain"), augmentation=Augmentation())


@pytest.mark.parametrize(
    ("config_class", "folder"),
    [
        (PretrainConfig, "pretrain"),
        (resolve_name(MAE_CURRICULUM["plan"][0]), "pretrain"),
        (FinetuneConfig, "finetune"),
        (LinprobeConfig, "linprobe"),
        (Curriculum, "curriculum"),
        (resolve_name(MAE_CURRICULUM["search"][0]), "search"),
        (resolve_name(SLURM["submit"][0]), "cluster"),
        (resolve_name(SLURM["pipeline"][0]), "pipeline"),
    ],
)
def test_each_settings_class_finds_the_recipes_of_its_folder(config_class: type, folder: str) -> None:
    recipes = list_recipes(config_class)
    assert list(recipes.values()) == sorted((CONFIGS / folder).rglob("*.yaml"))
    assert all(find_file(name, config_class, Path()) == path for name, path in recipes.items())
    assert folder in FOLDERS.values()


def test_an_existing_file_takes_precedence_over_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    assert load_file(PretrainConfig, Path("digits")).run == Path("runs/digits")
    Path("digits").rmdir()
    Path("digits").write_text("run: runs/mine")
    assert load_file(PretrainConfig, Path("digits")).run == Path("runs/mine")


def test_a_file_may_name_the_recipe_of_its_curriculum(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("curriculum: efficienttrain")
    curriculum = load_file(PretrainConfig, tmp_path / "a.yaml").curriculum
    assert curriculum == load(PretrainConfig, ["--curriculum", "efficienttrain"]).curriculum
    assert [stage.size for stage in curriculum.stages] == [160, 192, 224]
    (tmp_path / "a.yaml").write_text("curriculum: efficient")
    with pytest.raises(
        ConfigError, match=r"a.yaml: curriculum: cannot read .*; recipes: efficienttrain, efficient"
    ) as caught:
        load_file(PretrainConfig, tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)
