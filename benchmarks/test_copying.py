"""Whole processes that copy a tree, side by side: pcopy with one process and with several, the standard library, cp, rsync.

One group, and so one table, for each tree and kind of run. No test here fails by its time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

pytestmark = pytest.mark.timeout(0)  # as long as the scale makes it

ROUNDS = 5  # and one more before them that warms up
TREES = ("small files", "large files", "both")
COPYTREE = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2], symlinks=True)"
PCOPY = {f"pcopy -j {jobs}": (sys.executable, "-m", "pcopy", "--quiet", "-j", str(jobs)) for jobs in (1, 2, 4)}
# What stands before the paths of the source and of its copy. With "/." and "/" they go into a directory that is there too.
FRESH: dict[str, Sequence[str]] = {
    **PCOPY,
    "shutil.copytree": (sys.executable, "-c", COPYTREE),
    "cp -a": ("cp", "-a"),
    "rsync -a": ("rsync", "-a"),
}
AGAIN: dict[str, Sequence[str]] = {**PCOPY, "cp -au": ("cp", "-a", "-u"), "rsync -a": ("rsync", "-a")}


def contenders(commands: Mapping[str, Sequence[str]]) -> list[object]:
    """Those whose program is not installed are skipped."""
    return [
        pytest.param(name, id=name, marks=pytest.mark.skipif(not shutil.which(command[0]), reason=f"no {command[0]} here"))
        for name, command in commands.items()
    ]


def line(name: str, command: Sequence[str], source: Path, copy: Path) -> list[str]:
    """The command line by which ``copy`` becomes a copy of ``source``, whether it exists or not."""
    end = {"cp -a": "/.", "cp -au": "/.", "rsync -a": "/"}.get(name, "")
    return [*command, f"{source}{end}", str(copy)]


def run(argv: Sequence[str]) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def sizes(top: Path) -> dict[str, int]:
    paths = [os.path.join(where, name) for where, _, names in os.walk(top) for name in names]
    return {os.path.relpath(path, top): os.lstat(path).st_size for path in paths}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("name", contenders(FRESH))
def test_copy(benchmark: BenchmarkFixture, trees: Mapping[str, Path], copy: Path, tree: str, name: str) -> None:
    """Into a destination that is not there; the last round's copy is removed before the clock starts."""
    benchmark.group = f"copy {tree}"
    argv = line(name, FRESH[name], trees[tree], copy)

    def remove_the_last() -> None:
        if copy.exists():
            shutil.rmtree(copy)

    benchmark.pedantic(run, args=(argv,), setup=remove_the_last, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
    assert sizes(copy) == sizes(trees[tree])


@pytest.mark.parametrize("tree", ("small files", "both"))
@pytest.mark.parametrize("name", contenders(AGAIN))
def test_rerun(benchmark: BenchmarkFixture, trees: Mapping[str, Path], copy: Path, tree: str, name: str) -> None:
    """Over its own copy, with nothing changed since."""
    benchmark.group = f"rerun {tree}"
    argv = line(name, AGAIN[name], trees[tree], copy)
    run(argv)
    benchmark.pedantic(run, args=(argv,), rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
    assert sizes(copy) == sizes(trees[tree])
