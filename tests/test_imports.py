"""The house has floors: a package imports only from packages on lower floors, and no modules import in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.processes import ROOT

FLOORS = [
    "config config_help config_messages distributed files png precision recipes terminal version",
    "cli curriculum run",
    "data model tracking",
    "training weights",
    "evaluation",
    "report",
    "search",
    "pretraining_config",
    "initialization reference",
    "pretraining",
    "commands",
    "__init__ __main__",
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}


def name(path: Path) -> str:
    """Return the dotted name of a module."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    name(path): path for package in ("mae_curriculum", "finetune", "slurm") for path in ROOT.glob(f"{package}/**/*.py")
}


def imports(path: Path) -> set[str]:
    """Return the project's modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys() - {"mae_curriculum"}


def room(module: str) -> str:
    """Return the package, or the module beside the packages, that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def test_every_package_has_a_floor() -> None:
    assert {room(module) for module in MODULES if module.startswith("mae_curriculum")} == set(FLOOR)


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("mae_curriculum")])
def test_a_package_imports_only_from_lower_floors(module: str) -> None:
    used = {room(other) for other in imports(MODULES[module])} - {room(module)}
    own = FLOOR[room(module)]
    assert not {other for other in used if FLOOR[other] > own or (own and FLOOR[other] == own)}


def test_no_modules_import_in_a_circle() -> None:
    TopologicalSorter({module: imports(path) - {module} for module, path in MODULES.items()}).prepare()


def test_finetune_imports_nothing_above_searches() -> None:
    used = {
        room(other)
        for module in MODULES
        if module.startswith("finetune")
        for other in imports(MODULES[module])
        if other.startswith("mae_curriculum")
    }
    assert not {other for other in used if FLOOR[other] > FLOOR["search"]}


def test_config_alone_knows_jsonargparse() -> None:
    assert {module for module, path in MODULES.items() if "jsonargparse" in path.read_text()} == {
        "mae_curriculum.config"
    }
