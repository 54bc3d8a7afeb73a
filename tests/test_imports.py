"""The house has floors: a module imports only from floors below its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mae_curriculum"
ROWS = [
    "config distributed frequency positions schedule decode augment targets table gauges curves wandb_files version",
    "curriculum model sources optim checkpoint tracking stopping cli spelling",
    "data flops weights results saver lock wandb_log",
    "inference training summary reconstruction history wandb_rows",
    "wandb_bring knn holding health pictures told",
    "reporting charts findings",
    "loop",
    "pretrain",
    "plan plot bench export evaluate reconstruct replay report",
    "__main__",
]
ROW = {module: row for row, modules in enumerate(ROWS) for module in modules.split()}


def imports(path: Path) -> set[str]:
    """Name the package's own modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mae_curriculum."):
            found.add(str(node.module).split(".")[1])
        if isinstance(node, ast.ImportFrom) and node.module == "mae_curriculum":
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mae_curriculum.")}
    return found


def test_every_module_has_a_row() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(ROW)


@pytest.mark.parametrize("module", ROW)
def test_a_module_imports_only_from_rows_above_its_own(module: str) -> None:
    too_low = {other for other in imports(PACKAGE / f"{module}.py") if ROW[other] >= ROW[module]}
    assert not too_low


def test_config_alone_knows_jsonargparse() -> None:
    knowing = {path.stem for path in PACKAGE.glob("*.py") if "jsonargparse" in path.read_text()}
    assert knowing == {"config"}


def test_the_package_itself_imports_nothing() -> None:
    assert not [
        n
        for n in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
        if isinstance(n, ast.Import | ast.ImportFrom)
    ]


def test_finetune_imports_nothing_above_the_loop() -> None:
    used = {module for path in (PACKAGE.parent / "finetune").glob("*.py") for module in imports(path)}
    assert {module for module in used if ROW[module] > ROW["loop"]} == set()
