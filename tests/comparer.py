"""Compares two trees in everything that a copy has to keep. Shares no code with pcopy, nor with the trees of the tests.

differences(source, copy)                a list of texts, empty if the copy is equal
differences(source, copy, extra=True)    the copy may have entries that the source lacks

Works step by step on directory handles, so that no path is too long, and opens nothing but directories and regular files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

STEPS = 8  # names of at most 255 bytes in one path: below PATH_MAX
BLOCK = 1 << 18
SLACK = 128  # blocks of 512 bytes that a sparse file's copy may take beyond its source

Names = tuple[bytes, ...]
Inode = tuple[int, int]


def differences(source: os.PathLike[str] | str, copy: os.PathLike[str] | str, extra: bool = False) -> list[str]:
    """What the copy has not, or has otherwise."""
    return Comparer(source, copy, extra).compare()


class Comparer:
    def __init__(self, source: os.PathLike[str] | str, copy: os.PathLike[str] | str, extra: bool) -> None:
        self.tops, self.extra = (source, copy), extra
        self.found: list[str] = []
        self.groups: tuple[dict[Names, Inode], dict[Names, Inode]] = ({}, {})

    def compare(self) -> list[str]:
        handles = [os.open(top, os.O_RDONLY | os.O_DIRECTORY) for top in self.tops]
        try:
            self.entry((), [os.fstat(handle) for handle in handles], [f"/proc/self/fd/{handle}" for handle in handles])
            waiting: list[Names] = [()]
            while waiting:
                waiting += self.directory(waiting.pop(), handles)
        finally:
            for handle in handles:
                os.close(handle)
        self.hard_links()
        return self.found

    def directory(self, path: Names, tops: list[int]) -> list[Names]:
        """Compare what lies in one directory; gives the directories that both have in it."""
        handles = [below(top, path) for top in tops]
        try:
            names, copies = (set(os.listdir(os.fsencode(f"/proc/self/fd/{handle}"))) for handle in handles)
            for name in sorted(names - copies):
                self.say((*path, name), "is missing")
            for name in sorted(copies - names) if not self.extra else ():
                self.say((*path, name), "is not in the source")
            return [(*path, name) for name in sorted(names & copies) if self.pair((*path, name), handles)]
        finally:
            for handle in handles:
                os.close(handle)

    def pair(self, path: Names, parents: list[int]) -> bool:
        """Compare two entries of one name. True if both are directories."""
        states = [os.stat(path[-1], dir_fd=parent, follow_symlinks=False) for parent in parents]
        kind, other = (stat.S_IFMT(state.st_mode) for state in states)
        if kind != other:
            self.say(path, f"is of kind {other:o}, not {kind:o}")
            return False
        for group, state in zip(self.groups, states, strict=True):
            if kind != stat.S_IFDIR:
                group[path] = (state.st_dev, state.st_ino)
        self.entry(path, states, [f"/proc/self/fd/{parent}/{os.fsdecode(path[-1])}" for parent in parents])
        if kind == stat.S_IFREG:
            self.contents(path, states, parents)
        elif kind == stat.S_IFLNK:
            self.same(path, "target", [os.readlink(path[-1], dir_fd=parent) for parent in parents])
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            self.same(path, "device", [state.st_rdev for state in states])
        return kind == stat.S_IFDIR

    def entry(self, path: Names, states: list[os.stat_result], places: list[str]) -> None:
        """What entries of every kind have."""
        if not stat.S_ISLNK(states[0].st_mode):
            self.same(path, "mode", [f"{stat.S_IMODE(state.st_mode):04o}" for state in states])
        self.same(path, "owner", [(state.st_uid, state.st_gid) for state in states])
        self.same(path, "modification time", [state.st_mtime_ns for state in states])
        self.same(path, "attributes", [attributes(place, follow=not path) for place in places])

    def contents(self, path: Names, states: list[os.stat_result], parents: list[int]) -> None:
        source, copy = states
        self.same(path, "size", [source.st_size, copy.st_size])
        if source.st_size == copy.st_size and not all(one == two for one, two in zip(*blocks(path[-1], parents), strict=True)):
            self.say(path, "has other contents")
        sparse = source.st_blocks * 512 < source.st_size
        if sparse and copy.st_blocks > source.st_blocks + SLACK:
            self.say(path, f"takes {copy.st_blocks} blocks, not {source.st_blocks}: its holes are filled")

    def hard_links(self) -> None:
        """Two names are of one inode in both trees or in none."""
        one, two = ({path: names for names in gathered(group) for path in names} for group in self.groups)
        for path in one:
            if one[path] != two[path]:
                self.say(path, f"is linked with {sorted(two[path] - {path})}, not with {sorted(one[path] - {path})}")

    def same(self, path: Names, what: str, values: Sequence[object]) -> None:
        if values[0] != values[1]:
            self.say(path, f"{what} is {values[1]!r}, not {values[0]!r}")

    def say(self, path: Names, text: str) -> None:
        self.found.append(f"{b'/'.join(path) or b'.'!r}: {text}")


def below(top: int, path: Names) -> int:
    """Open a directory by a few steps at a time."""
    handle = os.dup(top)
    for at in range(0, len(path), STEPS):
        before, handle = handle, os.open(b"/".join(path[at : at + STEPS]), os.O_RDONLY | os.O_DIRECTORY, dir_fd=handle)
        os.close(before)
    return handle


def attributes(place: str, follow: bool) -> dict[str, bytes]:
    """Extended attributes, ACLs among them."""
    return {name: os.getxattr(place, name, follow_symlinks=follow) for name in os.listxattr(place, follow_symlinks=follow)}


def blocks(name: bytes, parents: list[int]) -> list[Iterator[bytes]]:
    return [read(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)) for parent in parents]


def read(handle: int) -> Iterator[bytes]:
    with open(handle, "rb") as file:
        while block := file.read(BLOCK):
            yield block


def gathered(group: dict[Names, Inode]) -> list[set[Names]]:
    by_inode: dict[Inode, set[Names]] = {}
    for path, inode in group.items():
        by_inode.setdefault(inode, set()).add(path)
    return list(by_inode.values())
