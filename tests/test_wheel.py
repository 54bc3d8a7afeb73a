"""What `pip install` puts on a machine: every package, the recipes, the page of reports, types, a console script."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mae_curriculum.version import __version__
from tests.processes import ROOT

SOURCES = ("mae_curriculum", "finetune", "slurm", "configs")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, unpacked."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = source.glob(f"mae_curriculum-{__version__}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_the_wheel_holds_every_source_file_and_recipe(installed: Path) -> None:
    files = [path for name in SOURCES for path in (ROOT / name).rglob("*") if path.is_file()]
    files = [path.relative_to(ROOT) for path in files if path.suffix in (".py", ".yaml", ".css", ".html", ".js")]
    missing = [path for path in files if not (installed / path).exists()]
    assert {path for path in missing if not (installed / "mae_curriculum" / path).exists()} == set()
    assert {path.parts[0] for path in missing} == {"configs"}
    assert (installed / "mae_curriculum" / "py.typed").exists()


def test_the_wheel_has_a_console_script(installed: Path) -> None:
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "mae-curriculum = mae_curriculum.__main__:main" in entry_points.read_text()


def test_an_installed_package_finds_its_recipes_by_name(installed: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mae_curriculum", "pretrain", "--config", "digits", "--curriculum", "none"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*words, "--print_config"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("run: runs/digits\n")
    assert "{share: 1.0, size: 224" in done.stdout
