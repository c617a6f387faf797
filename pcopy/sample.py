"""The tree that a comparison copies: one that is made for it, or what is found in one that is given."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import stat
from collections.abc import Sequence

Inode = tuple[int, int]  # (st_dev, st_ino)
# The sample tree: enough for about a second of one process.
SAMPLE_FILES, SAMPLE_DIRECTORIES, SAMPLE_FILE = 4000, 250, 6000
SAMPLE_LARGE, SAMPLE_LARGE_FILE = 2, 64 << 20
SAMPLE_ENTRIES = SAMPLE_FILES + SAMPLE_LARGE + SAMPLE_DIRECTORIES
# What it takes at most, with blocks of 4 KiB.
SAMPLE_SIZE = SAMPLE_FILES * (SAMPLE_FILE + 4096) + SAMPLE_DIRECTORIES * 4096 + SAMPLE_LARGE * SAMPLE_LARGE_FILE


def make_sample(tree: str) -> None:
    """Many small files and a few large ones, the same each time."""
    rng = random.Random(1)
    block = rng.randbytes(1 << 20)
    os.makedirs(tree)
    directories = [tree]
    while len(directories) < SAMPLE_DIRECTORIES:
        directories.append(os.path.join(rng.choice(directories[-40:]), f"d{len(directories)}"))
        os.mkdir(directories[-1])
    for number in range(SAMPLE_FILES):
        with open(os.path.join(rng.choice(directories), f"f{number}"), "wb") as file:
            file.write(block[: min(len(block), int(rng.expovariate(1 / SAMPLE_FILE)))])
    for number in range(SAMPLE_LARGE):
        with open(os.path.join(tree, f"large{number}"), "wb") as file:
            for _ in range(SAMPLE_LARGE_FILE // len(block)):
                file.write(block)


def measure(tree: str, options: Sequence[str] = ()) -> tuple[int, int, int, int]:
    """Files, their bytes, the bytes that their copies take, and the entries, by what the options of ``pcopy`` leave out or add.

    By directory handles, for trees deeper than a path is long, and without recursion.
    """
    found = Measure(options)
    stack: list[tuple[int | None, list[str], tuple[Inode, ...]]] = [(None, [tree], ())]
    while stack:
        parent, names, above = stack[-1]
        name = names.pop()
        handle = None
        with contextlib.suppress(OSError):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if found.follow else os.O_NOFOLLOW)
            handle = os.open(name, flags, dir_fd=parent)
        if not names:  # closed as soon as it can be: a chain of directories takes two handles, however long
            stack.pop()
            if parent is not None:
                os.close(parent)
        if handle is None:
            continue
        here = inode_of(os.fstat(handle))
        below = [] if here in above or (above and found.stays and here[0] != above[0][0]) else found.look_into(handle)
        if below:
            stack.append((handle, below, (*above, here) if found.follow else above or (here,)))
        else:
            os.close(handle)
    return found.files, found.bytes, found.used, found.entries


class Measure:
    """What is found in a tree. ``follow``: links; ``stays`` on one file system; ``fills`` holes; keeps ``links``."""

    def __init__(self, options: Sequence[str]) -> None:
        self.follow = not {"-L", "--dereference"}.isdisjoint(options)
        self.stays = not {"-x", "--one-file-system"}.isdisjoint(options)
        self.fills, self.links = "never" in chosen(options, "--sparse"), keeps_links(options)
        self.files = self.bytes = self.used = self.entries = 0
        self.seen: set[Inode] = set()  # those that have several names

    def look_into(self, handle: int) -> list[str]:
        """Count what is in a directory. Returns the names of those in it."""
        below = []
        with contextlib.suppress(OSError), os.scandir(handle) as found:
            for one in found:
                with contextlib.suppress(OSError):  # a link to nothing
                    if one.is_dir(follow_symlinks=self.follow):
                        below.append(one.name)
                    self.count(one.stat(follow_symlinks=self.follow))
        return below

    def count(self, state: os.stat_result) -> None:
        self.entries += 1
        regular = not stat.S_ISDIR(state.st_mode)
        self.files += regular
        if regular and self.links and state.st_nlink > 1:  # the contents once: the other names are links
            if inode_of(state) in self.seen:
                return
            self.seen.add(inode_of(state))
        self.bytes += state.st_size if regular else 0
        self.used += max(state.st_blocks * 512, state.st_size if self.fills and regular else 0)


def inode_of(state: os.stat_result) -> Inode:
    return state.st_dev, state.st_ino


def chosen(options: Sequence[str], name: str) -> set[str]:
    """What is given to an option of ``pcopy``, a list of words."""
    given = [one.partition("=")[2] for one in options if one.startswith(f"{name}=")]
    given += [value for one, value in itertools.pairwise(options) if one == name]
    return {word for value in given for word in value.split(",")}


def keeps_links(options: Sequence[str]) -> bool:
    kept = chosen(options, "--preserve") or {"all"}
    return bool(kept & {"all", "links"}) and not chosen(options, "--no-preserve") & {"all", "links"}
