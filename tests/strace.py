"""strace(1): which system calls a run makes, or a run of which some fail, or take long."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def strace(*words: str, log: str | Path = os.devnull) -> list[str]:
    """What to put before a command. Skips the test if there is no strace."""
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    return ["strace", "-f", "-qq", "-o", str(log), *words]


def lines_of(log: Path) -> list[str]:
    """What was traced. Skips the test if nothing was: it takes rights that a container may lack."""
    text = log.read_text(errors="replace") if log.exists() else ""
    if not text:
        pytest.skip("strace may not trace here")
    return text.splitlines()
