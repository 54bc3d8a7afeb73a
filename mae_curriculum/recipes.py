"""The YAML files of `configs/`, found by name wherever the package is installed: `--config imagenette128`."""

from pathlib import Path

_INSTALLED = Path(__file__).parent / "configs"
_REPOSITORY = Path(__file__).parent.parent / "configs"

CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _REPOSITORY
"""The recipes: inside the package where pip installed it, else beside it, in the repository."""

FOLDERS = {
    "PretrainConfig": "pretrain",
    "FinetuneConfig": "finetune",
    "LinprobeConfig": "linprobe",
    "Curriculum": "curriculum",
    "ClusterConfig": "cluster",
    "PipelineConfig": "pipeline",
    "SearchConfig": "search",
    "SupervisedSearchConfig": "supervised_search",
}
"""Where the recipes of a settings class, and of those that extend it, are in `CONFIGS`."""


def list_recipes(config_class: type) -> dict[str, Path]:
    """Return the files of the recipes for a settings class by their names, such as digits or supervised/resnet50."""
    recipes: dict[str, Path] = {}
    for folder in [CONFIGS / FOLDERS[base.__name__] for base in config_class.__mro__ if base.__name__ in FOLDERS]:
        recipes |= {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.yaml"))}
    return recipes


def find_file(name: str, config_class: type, folder: Path) -> Path:
    """Return the path of a settings file: an existing file first, then a recipe, else the path as it was given.

    name  path relative to `folder`, or the name of a recipe, without folder and suffix.
    """
    path = folder / name
    return path if path.is_file() else list_recipes(config_class).get(name, path)
