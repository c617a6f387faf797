"""Whole processes in rounds that take turns: what is run, where, and how long it takes.

In each round every contender runs once, each time in another order. What counts is the median of the ratios within the rounds,
where both met the same machine.
"""

from __future__ import annotations

import contextlib
import mmap
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.trees import LARGE_FILES, make_empty_files, make_large_files, make_small_files

# What compiles a program of this directory, if there is all that it needs.
COMPILE = 'gcc -O2 -pthread -o "$1" "$2" $(pkg-config --cflags --libs fuse3 2>/dev/null)'

# What tells the largest process of a command, in KiB.
PEAK = """import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"""

# Seconds from the making of a tree to its first copy: a rerun looks twice at files that had just changed when they were copied.
REST = 3.0


class Contender(NamedTuple):
    """``before``: what is made ready while no clock runs; ``needs``: programs besides the command's own."""

    name: str
    command: Sequence[str]
    before: Callable[[], None]
    needs: tuple[str, ...] = ()

    @property
    def is_there(self) -> bool:
        return all(shutil.which(program) for program in (self.command[0], *self.needs))


class Bench:
    """Where it works, and how much there is to do."""

    def __init__(self, folder: Path, scale: float, pcopy: Sequence[str]) -> None:
        self.folder, self.scale, self.pcopy = folder, scale, [*pcopy, "--quiet"]

    def small(self, files: int = 50_000) -> Path:
        return self.tree(f"small {files}", lambda top: make_small_files(top, round(files * self.scale)))

    def large(self, size: int = 1 << 30, count: int = LARGE_FILES) -> Path:
        return self.tree(f"{count} of {size}", lambda top: make_large_files(top, round(size * self.scale), count))

    def empty(self, files: int, each: int = 100) -> Path:
        """Files of no bytes, so many to a directory."""
        count = round(files * self.scale)
        return self.tree(f"{files} by {each}", lambda top: make_empty_files(top, count, each))

    def tree(self, name: str, make: Callable[[Path], None]) -> Path:
        top = self.folder / name
        if not top.exists():
            make(top)
            time.sleep(REST)
        return top

    def native(self, name: str) -> str:
        """One of the programs in C that are beside this file. It is not there if it could not be compiled."""
        path = self.folder / name
        if not path.exists():
            source = Path(__file__).with_name(f"{name}.c")
            subprocess.run(["sh", "-c", COMPILE, "sh", path, source], stderr=subprocess.DEVNULL, check=False)
        return str(path)

    def store(self, tree: Path) -> Path:
        """A tree as seen through a store that takes its time. Nothing is there if such a thing cannot be mounted."""
        place = self.folder / f"store of {tree.name}"
        if not place.exists() and shutil.which("fusermount3"):
            place.mkdir()
            with contextlib.suppress(OSError):
                subprocess.run([self.native("store"), tree, place], stderr=subprocess.DEVNULL, check=False)
        return place

    def fresh(self, *commands: tuple[str, Sequence[str]] | tuple[str, Sequence[str], tuple[str, ...]]) -> list[Contender]:
        """Those that make ``copy``, which is not there before: a name, a command, maybe what that needs besides."""
        return [Contender(name, command, self.clear, *needs) for name, command, *needs in commands]

    @property
    def copy(self) -> Path:
        return self.folder / "copy"

    def clear(self) -> None:
        shutil.rmtree(self.copy, ignore_errors=True)

    def copy_of(self, tree: Path, name: str) -> Path:
        """A copy for one contender to come back to."""
        path = self.folder / f"copy {name}"
        if not path.exists():
            subprocess.run(["cp", "-a", tree, path], check=True)
        return path


def nothing() -> None:
    pass


def touch(size: int) -> None:
    """Have the memory that a copy will take: a virtual machine may have to ask its host for it, which takes as long."""
    with mmap.mmap(-1, size) as memory:
        for at in range(0, size, mmap.PAGESIZE):
            memory[at] = 1


def timed(one: Contender, size: int) -> float:
    one.before()
    if size:
        touch(size)
    began = time.perf_counter()
    subprocess.run(one.command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def peak(one: Contender) -> int:
    """Bytes of the largest process, in a run of its own: at exec a process counts what it was before (getrusage(2))."""
    one.before()
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *one.command], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return int(done.stdout) << 10


def measure(contenders: Sequence[Contender], rounds: int, size: int = 0) -> dict[str, list[float]]:
    """Seconds of each contender, round by round; one round before them does not count."""
    walls: dict[str, list[float]] = {one.name: [] for one in contenders}
    for number in range(rounds + 1):
        turn = number % len(contenders)
        for one in [*contenders[turn:], *contenders[:turn]]:
            wall = timed(one, size)
            if number:
                walls[one.name].append(wall)
    return walls


def ratios(walls: dict[str, list[float]], one: str, other: str) -> list[float]:
    return [mine / theirs for mine, theirs in zip(walls[one], walls[other], strict=True)]


@contextlib.contextmanager
def workplace(folder: str | None) -> Iterator[Path]:
    """A directory for trees and copies, removed at the end, also by SIGTERM."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with tempfile.TemporaryDirectory(prefix="pcopy-bench-", dir=folder) as top:
            try:
                yield Path(top)
            finally:
                for place in Path(top).glob("store of *"):
                    subprocess.run(["fusermount3", "-u", "-z", place], stderr=subprocess.DEVNULL, check=False)
    finally:
        signal.signal(signal.SIGTERM, before)
