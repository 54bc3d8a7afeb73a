"""Which version of the code this is: its commit, in a repository or in the copy that a job runs."""

import shutil
import subprocess
from pathlib import Path

__version__ = "0.2.0"

ROOT = Path(__file__).parent.parent

VERSION = "VERSION"
"""File of a copy without repository that holds its version."""


def code_version() -> str | None:
    """Give the commit, with -dirty behind it where files were changed since; None where it is not known."""
    copied = ROOT / VERSION
    if copied.exists():
        return copied.read_text().strip()
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    words = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or None
