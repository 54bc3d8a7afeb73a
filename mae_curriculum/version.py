"""The version of the package, and the commit of the code that runs."""

import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

__version__ = "0.2.0"

ROOT = Path(__file__).parent.parent

VERSION = "VERSION"
"""File with the commit, in a copy of the code without its repository."""


def code_version() -> str | None:
    """Return the commit, with -dirty after it if files were changed since; None if it is not known."""
    copied = ROOT / VERSION
    if copied.exists():
        return copied.read_text().strip()
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    words = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or None


def describe_software() -> str:
    """Return the versions that results may depend on: of this package, Python, and what trains and decodes."""
    others = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "simplejpeg", "pillow"))
    return f"mae-curriculum {__version__}, Python {platform.python_version()}, {others}"


def describe_version() -> str:
    """Format the version for `--version`, with the commit if it is known."""
    commit = code_version()
    return f"mae-curriculum {__version__}" + (f" ({commit})" if commit else "")
