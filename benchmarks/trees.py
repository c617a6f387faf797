"""The trees that are copied: the same each time."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

PER_DIRECTORY, LARGE_FILES = 12, 4
MIDDLE, SPREAD = 4096, 1.2  # bytes of the file in the middle, and how far the others are from it, as a logarithm
BLOCK = random.Random(1).randbytes(1 << 20)  # not zeros: a copier may make holes of those


def make_small_files(top: Path, count: int) -> None:
    """Most of a few kilobytes, some much larger; in a tree in which most directories are five to ten levels deep, and some have
    many more files than others.
    """
    rng = random.Random(1)
    top.mkdir()
    directories = [top]
    while len(directories) * PER_DIRECTORY < count:
        above = directories[int(len(directories) * rng.random() ** 2)]  # the older it is, the more there is in it
        directories.append(above / f"d{len(directories)}")
        directories[-1].mkdir()
    weights = [rng.lognormvariate(0, 1) for _ in directories]
    for number, directory in enumerate(rng.choices(directories, weights, k=count)):
        size = int(rng.lognormvariate(math.log(MIDDLE), SPREAD))
        (directory / f"f{number}").write_bytes(BLOCK[: min(size, len(BLOCK))])


def make_empty_files(top: Path, count: int, each: int) -> None:
    """So many of them, and so many to a directory."""
    top.mkdir()
    for number in range(count):
        if number % each == 0:
            directory = top / f"d{number}"
            directory.mkdir()
        os.close(os.open(directory / f"f{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def make_large_files(top: Path, size: int, count: int = LARGE_FILES) -> None:
    top.mkdir()
    for number in range(count):
        with open(top / f"f{number}", "wb") as file:
            for at in range(0, size, len(BLOCK)):
                file.write(BLOCK[: size - at])
