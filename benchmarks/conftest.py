"""Where the benchmarks work, how much they copy, and the trees that they copy."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.bench import workplace
from benchmarks.trees import make_large_files, make_small_files

# At scale 1: trees that one process copies in a fraction of a second, so that the suite takes a minute and a half.
SMALL_FILES, LARGE_FILE = 2000, 24 << 20


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pcopy benchmarks")
    group.addoption(
        "--bench-dir", metavar="DIR", help="make trees and copies here (default: TMPDIR, or /dev/shm if there is one)"
    )
    group.addoption(
        "--bench-scale",
        type=float,
        default=float(os.environ.get("PCOPY_BENCH_SCALE", "1")),
        metavar="N",
        help="N times as much to copy (default: PCOPY_BENCH_SCALE, or 1)",
    )


def default_folder() -> str:
    memory = "/dev/shm"
    return os.environ.get("TMPDIR") or (memory if os.access(memory, os.W_OK) else tempfile.gettempdir())


@pytest.fixture(scope="session")
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory for trees and copies, removed at the end."""
    with workplace(request.config.getoption("--bench-dir") or default_folder()) as one:
        yield one


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> float:
    return float(request.config.getoption("--bench-scale"))


@pytest.fixture(scope="session")
def trees(folder: Path, scale: float) -> dict[str, Path]:
    """Many small files, a few large ones, and both; each is made once, the same each time."""
    made = {name: folder / f"tree of {name}" for name in ("small files", "large files", "both")}
    for name, top in made.items():
        top.mkdir()
        if name != "large files":
            make_small_files(top / "small", round(SMALL_FILES * scale))
        if name != "small files":
            make_large_files(top / "large", round(LARGE_FILE * scale))
    return made


@pytest.fixture
def copy(folder: Path) -> Iterator[Path]:
    """The path of a copy to be made."""
    path = folder / "copy"
    yield path
    shutil.rmtree(path, ignore_errors=True)
