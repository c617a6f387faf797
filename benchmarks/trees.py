"""The trees that are copied: the same each time."""

from __future__ import annotations

import os
import random
from pathlib import Path

SMALL_FILE, PER_DIRECTORY, LARGE_FILES = 6000, 12, 4
BLOCK = random.Random(1).randbytes(1 << 20)  # not zeros: a copier may make holes of those


def make_small_files(top: Path, count: int) -> None:
    """Files of all sizes about SMALL_FILE, in a tree of directories."""
    rng = random.Random(1)
    directories = [top]
    top.mkdir()
    for number in range(count):
        if number % PER_DIRECTORY == 0:
            # Below one of the first, so that the tree is about as deep as people's trees are.
            directories.append(rng.choice(directories[: len(directories) // 8 + 1]) / f"d{number}")
            directories[-1].mkdir()
        (directories[-1] / f"f{number}").write_bytes(BLOCK[: min(len(BLOCK), int(rng.expovariate(1 / SMALL_FILE)))])


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
