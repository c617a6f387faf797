"""Whole processes side by side, in rounds that take turns: python -m benchmarks.rows --help

Each row is one kind of work, done by pcopy and by its peers. In each round every contender runs once, each time in another
order. What counts is the median of the ratios within the rounds, where both met the same machine.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.trees import make_large_files, make_small_files

PATTERNS = [f"*.ext{number}" for number in range(40)] + [f"/top{number}/" for number in range(30)]
PATTERNS += [f"cache{number}/*.tmp" for number in range(15)] + [f"**/build{number}/" for number in range(15)]

# Seconds from the making of a tree to its first copy: a rerun looks twice at files that had just changed when they were copied.
REST = 3.0


class Contender(NamedTuple):
    """``before``: what is made ready while no clock runs."""

    name: str
    command: Sequence[str]
    before: Callable[[], None]


class Bench:
    """Where it works, and how much there is to do."""

    def __init__(self, folder: Path, scale: float, pcopy: Sequence[str]) -> None:
        self.folder, self.scale, self.pcopy = folder, scale, [*pcopy, "--quiet"]

    def small(self, files: int = 50_000) -> Path:
        return self.tree(f"small {files}", lambda top: make_small_files(top, round(files * self.scale)))

    def large(self, size: int = 1 << 30) -> Path:
        return self.tree(f"large {size}", lambda top: make_large_files(top, round(size * self.scale)))

    def tree(self, name: str, make: Callable[[Path], None]) -> Path:
        top = self.folder / name
        if not top.exists():
            make(top)
            time.sleep(REST)
        return top

    def fresh(self, *commands: tuple[str, Sequence[str]]) -> list[Contender]:
        """Those that make ``copy``, which is not there before."""
        return [Contender(name, command, self.clear) for name, command in commands]

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


Row = Callable[[Bench], list[Contender]]


def fresh(bench: Bench) -> list[Contender]:
    """A fresh copy of many small files"""
    tree, copy = str(bench.small()), str(bench.copy)
    return bench.fresh(
        ("pcopy -j 2", [*bench.pcopy, "-j", "2", tree, copy]),
        ("pcopy -j 1", [*bench.pcopy, "-j", "1", tree, copy]),
        ("cp -a", ["cp", "-a", tree, copy]),
        ("rsync -a", ["rsync", "-a", f"{tree}/", copy]),
        ("xcp -w 2", ["xcp", "-r", "-w", "2", "--no-progress", tree, copy]),
    )


def bars(bench: Bench) -> list[Contender]:
    """The same with bars"""
    tree, copy = str(bench.small()), str(bench.copy)
    return bench.fresh(
        ("with bars", [*bench.pcopy, "--progress", "-j", "2", tree, copy]),
        ("without", [*bench.pcopy, "-j", "2", tree, copy]),
    )


def large(bench: Bench) -> list[Contender]:
    """A fresh copy of four large files"""
    tree, copy = str(bench.large()), str(bench.copy)
    return bench.fresh(
        ("pcopy -j 2", [*bench.pcopy, "-j", "2", tree, copy]),
        ("cp -a", ["cp", "-a", tree, copy]),
        ("xcp -w 2", ["xcp", "-r", "-w", "2", "--no-progress", tree, copy]),
    )


def rerun(bench: Bench) -> list[Contender]:
    """A rerun with nothing changed"""
    tree = bench.small()
    commands: list[tuple[str, list[str], str]] = [
        ("pcopy -j 2", [*bench.pcopy, "-j", "2"], ""),
        ("rsync -a", ["rsync", "-a"], "/"),
        ("cp -au", ["cp", "-au", "-T"], ""),
        ("rsync -aHAXS", ["rsync", "-aHAXS"], "/"),
    ]
    return [
        Contender(name, [*command, f"{tree}{end}", str(bench.copy_of(tree, name))], nothing) for name, command, end in commands
    ]


def few(bench: Bench) -> list[Contender]:
    """Twenty files, against the start of the interpreter"""
    tree = bench.tree("few", lambda top: make_small_files(top, 20))
    return bench.fresh(
        ("pcopy -j 8", [*bench.pcopy, "-j", "8", str(tree), str(bench.copy)]),
        ("import click", [sys.executable, "-c", "import click"]),
    )


def delete(bench: Bench) -> list[Contender]:
    """--delete of many small files"""
    tree = bench.small()
    empty = bench.tree("empty", Path.mkdir)

    def fill() -> None:
        bench.clear()
        subprocess.run(["cp", "-a", tree, bench.copy], check=True)

    words = ["-j", "2", "--delete", "--max-delete", "1000000"]
    return [
        Contender("pcopy -j 2", [*bench.pcopy, *words, str(empty), str(bench.copy)], fill),
        Contender("rsync -a", ["rsync", "-a", "--delete", f"{empty}/", f"{bench.copy}/"], fill),
    ]


def verify(bench: Bench) -> list[Contender]:
    """--verify of four large files, against cp, then cmp"""
    tree, copy = bench.large(), bench.copy
    script = 'cp -a "$1" "$2" && for file in "$1"/*; do cmp "$file" "$2/${file##*/}" || exit; done'
    return bench.fresh(
        ("pcopy -j 2", [*bench.pcopy, "-j", "2", "--verify", str(tree), str(copy)]),
        ("cp, cmp", ["sh", "-c", script, "sh", str(tree), str(copy)]),
    )


def check(bench: Bench) -> list[Contender]:
    """--check of four large files"""
    return checks(bench, bench.large())


def check_small(bench: Bench) -> list[Contender]:
    """--check of many small files"""
    return checks(bench, bench.small())


def checks(bench: Bench, tree: Path) -> list[Contender]:
    sums, copy = bench.folder / f"sums of {tree.name}", bench.copy_of(tree, "to be checked")
    if not sums.exists():
        subprocess.run([*bench.pcopy, "--manifest", sums, tree, copy], check=True)
    return [
        Contender("pcopy -j 2", [*bench.pcopy, "-j", "2", "--check", str(sums), str(copy)], nothing),
        Contender("sha256sum -c", ["sh", "-c", 'cd "$1" && sha256sum --quiet -c "$2"', "sh", str(copy), str(sums)], nothing),
    ]


def filters(bench: Bench) -> list[Contender]:
    """A hundred patterns, against none"""
    tree, copy = str(bench.small()), str(bench.copy)
    words = [word for pattern in PATTERNS for word in ("--exclude", pattern)]
    return bench.fresh(
        ("with 100 patterns", [*bench.pcopy, "-j", "2", *words, tree, copy]),
        ("without", [*bench.pcopy, "-j", "2", tree, copy]),
    )


def nightly(bench: Bench) -> list[Contender]:
    """A snapshot with nothing changed"""
    tree, copy = bench.small(), str(bench.copy)
    earlier = str(bench.copy_of(tree, "of yesterday"))
    return bench.fresh(
        ("pcopy -j 2", [*bench.pcopy, "-j", "2", "--delete", "--link-dest", earlier, str(tree), copy]),
        ("rsync -a", ["rsync", "-a", "--delete", f"--link-dest={earlier}", f"{tree}/", copy]),
    )


ROWS: tuple[Row, ...] = (fresh, bars, large, rerun, few, delete, verify, check, check_small, filters, nightly)


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


def told(row: Row, walls: dict[str, list[float]]) -> str:
    """A row as Markdown: the first contender as a part of each of the others."""
    first, *others = walls
    parts = []
    for other in others:
        found = ratios(walls, first, other)
        parts.append(f"{statistics.median(found):.2f} of {other} ({min(found):.2f}-{max(found):.2f})")
    return f"| {row.__doc__} | {first} | {statistics.median(walls[first]):.3f} s | {'; '.join(parts)} |"


def main() -> None:
    names = [row.__name__ for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows", description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"among {', '.join(names)}; all, if none is given")
    parser.add_argument("--dir", help="where trees and copies are made (default: /dev/shm, else where temporary files are)")
    parser.add_argument("--rounds", type=int, default=7, help="that count, after one that warms up (default: 7)")
    parser.add_argument("--scale", type=float, default=1.0, help="so many times as much to do (default: 1)")
    parser.add_argument("--json", help="add the seconds to this file")
    given = parser.parse_args()
    if unknown := set(given.rows) - set(names):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    folder = given.dir or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    seconds: dict[str, dict[str, list[float]]] = {}
    if given.json and os.path.exists(given.json):
        seconds = json.loads(Path(given.json).read_text())
    with tempfile.TemporaryDirectory(prefix="pcopy-bench-", dir=folder) as top:
        bench = Bench(Path(top), given.scale, [shutil.which("pcopy") or sys.exit("pcopy is not installed")])
        for row in ROWS:
            if given.rows and row.__name__ not in given.rows:
                continue
            there = [one for one in row(bench) if shutil.which(one.command[0])]
            walls = measure(there, given.rounds, round(((5 if row in (large, verify) else 1) << 30) * given.scale))
            print(told(row, walls), flush=True)
            seconds[row.__name__] = walls
            bench.clear()
            if given.json:
                Path(given.json).write_text(json.dumps(seconds, indent=1) + "\n")


if __name__ == "__main__":
    main()
