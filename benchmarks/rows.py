"""Rows of figures, side by side: python -m benchmarks.rows --help

Each row is one kind of work, done by pcopy and by its peers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.bench import Bench, Contender, measure, nothing, peak, ratios, workplace
from benchmarks.trees import make_large_files, make_small_files

PATTERNS = [f"*.ext{number}" for number in range(40)] + [f"/top{number}/" for number in range(30)]
PATTERNS += [f"cache{number}/*.tmp" for number in range(15)] + [f"**/build{number}/" for number in range(15)]

BARE = [sys.executable, "-m", "benchmarks.bare"]

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
        ("the C program", [bench.native("floor"), tree, copy, "2"]),
        ("a bare loop", [*BARE, "fresh", tree, copy, "2"]),
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
        ("the C program", [bench.native("floor"), tree, copy, "2"]),
    )


def one_large(bench: Bench) -> list[Contender]:
    """A fresh copy of one large file"""
    tree, copy = bench.large(count=1), str(bench.copy)
    return bench.fresh(
        ("pcopy -j 2", [*bench.pcopy, "-j", "2", str(tree), copy]),
        ("cp", ["cp", "-r", str(tree), copy]),
    )


def reflink(bench: Bench) -> list[Contender]:
    """One file of 4 GiB that shares its blocks, against cp plus a copy of a file of one byte by pcopy"""
    byte = bench.tree("byte", lambda top: make_large_files(top, 1, 1))
    if subprocess.run(["cp", "--reflink=always", byte / "f0", byte / "f1"], stderr=subprocess.DEVNULL, check=False).returncode:
        return []  # no blocks are shared here
    tree, copy = str(bench.large(4 << 30, 1)), str(bench.copy)
    script = 'cp -r --reflink=auto "$1" "$2" && shift 2 && exec "$@"'
    return bench.fresh(
        ("pcopy -j 2", [*bench.pcopy, "-j", "2", tree, copy]),
        ("cp, and a start", ["sh", "-c", script, "sh", tree, copy, *bench.pcopy, str(byte / "f0"), f"{copy}/byte"]),
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
    bare = [*BARE, "rerun", str(tree), str(bench.copy_of(tree, "bare")), "2"]
    return [
        *(
            Contender(name, [*command, f"{tree}{end}", str(bench.copy_of(tree, name))], nothing)
            for name, command, end in commands
        ),
        Contender("a bare loop", bare, nothing),
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
        ("cp, cmp", ["sh", "-c", script, "sh", str(tree), str(copy)], ("cmp",)),
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
    script = 'cd "$1" && sha256sum --quiet -c "$2"'
    return [
        Contender("pcopy -j 2", [*bench.pcopy, "-j", "2", "--check", str(sums), str(copy)], nothing),
        Contender("sha256sum -c", ["sh", "-c", script, "sh", str(copy), str(sums)], nothing, ("sha256sum",)),
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


def store(bench: Bench) -> list[Contender]:
    """Small files from a store that takes 1 ms a request"""
    tree, copy = bench.store(bench.small(6000)), str(bench.copy)
    if not tree.is_mount():
        return []
    return bench.fresh(
        ("pcopy -j 32", [*bench.pcopy, "-j", "32", str(tree), copy]),
        ("pcopy -j auto", [*bench.pcopy, str(tree), copy]),
        ("the C program", [bench.native("floor"), str(tree), copy, "32"]),
        ("xcp -w 32", ["xcp", "-r", "-w", "32", "--no-progress", str(tree), copy]),
        ("rclone", ["rclone", "copy", "--transfers", "32", "--checkers", "32", str(tree), copy]),
        ("cp -a", ["cp", "-a", str(tree), copy]),
    )


def store_large(bench: Bench) -> list[Contender]:
    """One file of 1.2 GB from that store"""
    tree, copy = bench.store(bench.large(1200 * 10**6, 1)), str(bench.copy)
    if not tree.is_mount():
        return []
    return bench.fresh(
        ("pcopy -j 16", [*bench.pcopy, "-j", "16", str(tree), copy]),
        ("pcopy -j auto", [*bench.pcopy, str(tree), copy]),
        ("cp", ["cp", "-r", str(tree), copy]),
        ("a bare loop", [*BARE, "large", str(tree), copy, "16"]),
    )


def million(bench: Bench) -> list[Contender]:
    """1,000,000 empty files, against a hundred copies of 10,000"""
    many, few, copy = bench.empty(1_000_000), bench.empty(10_000), str(bench.copy)
    script = 'mkdir "$1" && top=$1 && shift && for number in $(seq 100); do "$@" "$top/$number" || exit; done'
    return bench.fresh(
        ("pcopy -j 2", [*bench.pcopy, "-j", "2", str(many), copy]),
        ("a hundred times", ["sh", "-c", script, "sh", copy, *bench.pcopy, "-j", "2", str(few)]),
    )


def flat(bench: Bench) -> list[Contender]:
    """1,000,000 empty files in one directory"""
    tree, copy = str(bench.empty(1_000_000, 1_000_000)), str(bench.copy)
    return bench.fresh(
        ("pcopy -j 2", [*bench.pcopy, "-j", "2", tree, copy]),
        ("cp -a", ["cp", "-a", tree, copy]),
    )


ROWS: tuple[Row, ...] = (
    *(fresh, bars, large, one_large, reflink, rerun, few, delete, verify, check, check_small, filters, nightly),
    *(store, store_large, million, flat),
)
# Those that take longer than the others together: only if somebody names them.
LONG = frozenset({store, store_large, million, flat})
# GiB of memory that a copy takes, if that is not 1.
TAKES: dict[Row, int] = {large: 5, verify: 5, one_large: 2, store_large: 2, million: 3, flat: 3}


def told(row: Row, walls: dict[str, list[float]], memory: int) -> str:
    """A row as Markdown: the first contender as a part of each of the others, and the bytes of its largest process."""
    first, *others = walls
    parts = []
    for other in others:
        found = ratios(walls, first, other)
        parts.append(f"{statistics.median(found):.2f} of {other} ({min(found):.2f}-{max(found):.2f})")
    return f"| {row.__doc__} | {first} | {statistics.median(walls[first]):.3f} s | {'; '.join(parts)} | {memory / 1e6:.0f} MB |"


def installed() -> str:
    """The pcopy of this interpreter's environment."""
    here = os.path.dirname(sys.executable)
    return shutil.which("pcopy", path=here) or sys.exit(f"pcopy is not installed in {here}")


def number_of_rounds(word: str) -> int:
    if (rounds := int(word)) < 1:
        raise ValueError
    return rounds


def part(word: str) -> float:
    if not 0 < (scale := float(word)) < math.inf:
        raise ValueError
    return scale


def main() -> None:
    names = [row.__name__ for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows", description=__doc__.splitlines()[0])
    soon = [row.__name__ for row in ROWS if row not in LONG]
    longer = ", ".join(name for name in names if name not in soon)
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help=f"{', '.join(soon)}: all of these, if none is given; or {longer}, which take long",
    )
    parser.add_argument("--dir", help="where trees and copies are made (default: /dev/shm, else where temporary files are)")
    parser.add_argument("--rounds", type=number_of_rounds, default=7, help="that count, after one that warms up (default: 7)")
    parser.add_argument("--scale", type=part, default=1.0, help="so many times as much to do (default: 1)")
    parser.add_argument("--json", help="add the seconds to this file")
    given = parser.parse_args()
    if unknown := set(given.rows) - set(names):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    folder = given.dir or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    try:
        measure_rows(given.rows or soon, folder, given.rounds, given.scale, Path(given.json) if given.json else None)
    except subprocess.CalledProcessError as error:
        sys.exit(f"failed with status {error.returncode}: {shlex.join(map(str, error.cmd))}")
    except (OSError, json.JSONDecodeError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def measure_rows(rows: Sequence[str], folder: str | None, rounds: int, scale: float, kept: Path | None) -> None:
    """Print rows, one after the other, and keep their seconds in a file, beside those of others."""
    seconds: dict[str, dict[str, list[float]]] = {}
    if kept:
        with open(kept, "a+") as file:  # before anything takes its time
            file.seek(0)
            seconds = json.loads(file.read() or "{}")
    with workplace(folder) as top:
        bench = Bench(top, scale, [installed()])
        for row in ROWS:
            if row.__name__ not in rows:
                continue
            there = [one for one in row(bench) if one.is_there]
            if not there:
                print(f"{row.__doc__}: left out, because something is missing here: see benchmarks/README.md", file=sys.stderr)
                continue
            walls = seconds[row.__name__] = measure(there, rounds, round((TAKES.get(row, 1) << 30) * scale))
            print(told(row, walls, peak(there[0])), flush=True)
            bench.clear()
            if kept:
                kept.write_text(json.dumps(seconds, indent=1) + "\n")


if __name__ == "__main__":
    main()
