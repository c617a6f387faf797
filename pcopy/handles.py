"""Open directories, source and destination side by side, reached step by step from the top and never through a link."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from dataclasses import dataclass, replace

from pcopy import filesystem as fs
from pcopy import runs
from pcopy.work import Job

# Pairs kept open at a time, at most: each takes two handles. Fewer would open the directories between a deep one and the
# top again for each unit.
KEPT = 50
# Of the files that the process may open (ulimit -n), one in so many is a pair: three quarters are left for all else.
SHARE = 8
ABSENT = -1  # instead of a handle: the destination has no such directory (a dry run), or the source has none


@dataclass(eq=False, repr=False)
class Pair:
    """A directory and its copy. ``owner`` is learnt when the first file is made in the copy."""

    tree: int
    path: str
    source: int
    destination: int
    depth: int  # of the destination below the directory that the run has locked
    readable: bool = False  # not only good for naming things in it
    owner: tuple[int, int] | None = None  # what new entries get here
    mode: int | None = None  # what the copy had before the run, if it was there
    inherits: bool = False  # new entries get an ACL from the directory
    shared: bool = False  # others could write into the copy when the run came to it
    stays: bool = False  # the copy is known to be on the mount of the destination's top
    earlier: tuple[Pair, ...] = ()  # the source beside earlier copies, while a unit is at work
    names: frozenset[str] | None = None  # in the copy, as they were spelled when that was first asked
    asides: tuple[str, ...] = ()  # those of them that are temporary

    def spells(self, name: str) -> bool:
        """Whether the copy has a name in this spelling: where case does not count, what is found under it may have another."""
        return name in self.note_names()

    def note_names(self) -> frozenset[str]:
        """Those in the copy, when this is first asked: before an entry that was begun is made again."""
        if self.names is None:
            directory = fs.open_directory(".", self.destination)  # which may be a handle to name things only
            try:
                self.names = frozenset(fs.list_directory(directory))
            finally:
                fs.close_read(directory)
            self.asides = tuple(runs.may_be_stale(self.names))
        return self.names

    def close(self) -> None:
        for handle in (self.source, self.destination):
            if handle != ABSENT:
                fs.close_read(handle)


class Handles:
    """A cache of pairs for one slice; a context manager that closes them.

    What was given out since :meth:`begin` stays open, however many others are opened meanwhile.
    """

    def __init__(self, job: Job) -> None:
        self.trees = (*job.trees, *job.earlier)
        self.follow = job.options.dereference
        self.dry_run = job.options.dry_run
        self.pairs: OrderedDict[tuple[int, str], Pair] = OrderedDict()
        self.used: set[tuple[int, str]] = set()
        self.kept = max(2, fs.as_many_as_handles_allow(KEPT, SHARE))

    def __enter__(self) -> Handles:
        return self

    def __exit__(self, *error: object) -> None:
        for pair in self.pairs.values():
            pair.close()

    def begin(self) -> None:
        """Another unit is at hand: what was given out for the last one may be closed."""
        self.used.clear()

    def pair(self, tree: int, path: str) -> Pair:
        """The handles of a directory, opened if need be. They stay open until the next unit begins.

        With ``~tree`` for the tree, only the handle of the copy: its source may lack the directory.
        """
        key = tree, path
        self.used.add(key)
        found = self.pairs.get(key)
        if found:  # as it nearly always is: three times for each directory
            self.pairs.move_to_end(key)
            return found
        return self.passing(tree, path)

    def passing(self, tree: int, path: str) -> Pair:
        """As :meth:`pair`, for a look: the next call may close them."""
        found = self.pairs.get((tree, path))
        if found:
            self.pairs.move_to_end((tree, path))
            return found
        if not path:
            return self.keep(self.top(tree))
        known = path  # the deepest ancestor that is open; a loop, because paths can be deeper than Python's stack
        while known and (tree, known) not in self.pairs:
            known = known.rpartition("/")[0]
        parent = self.passing(tree, known)
        for name in path[len(known) :].strip("/").split("/"):
            parent = self.keep(self.below(parent, name))
        return parent

    def top(self, number: int) -> Pair:
        tree = self.trees[max(number, ~number)]
        source = ABSENT if number < 0 else fs.open_top(tree.source, tree.source_inode)
        try:
            destination = fs.open_top(tree.destination, tree.destination_inode) if tree.destination_inode else ABSENT
        except OSError:
            close(source)
            raise
        return Pair(number, "", source, destination, tree.depth)

    def below(self, parent: Pair, name: str) -> Pair:
        path = f"{parent.path}/{name}" if parent.path else name
        source = ABSENT if parent.source == ABSENT else fs.pass_through(name, parent.source, self.follow)
        try:
            destination = ABSENT if parent.destination == ABSENT else self.copy_of(parent.destination, name)
        except OSError:
            close(source)
            raise
        return Pair(parent.tree, path, source, destination, parent.depth + 1)

    def copy_of(self, parent: int, name: str) -> int:
        try:
            return fs.pass_through(name, parent)
        except (FileNotFoundError, NotADirectoryError):
            if self.dry_run:
                return ABSENT
            raise

    def with_earlier(self, pair: Pair) -> Pair:
        """A pair with the earlier copies of its directory."""
        found = []
        for number in self.trees[pair.tree].earlier:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                handle = self.pair(~number, pair.path).destination
                if handle != ABSENT:
                    found.append(replace(pair, destination=handle, earlier=()))
        pair.earlier = tuple(found)
        return pair

    def readable(self, tree: int, path: str) -> Pair:
        """As :meth:`pair`, with handles that can be read and given attributes."""
        pair = self.pair(tree, path)
        if not pair.readable:
            source = fs.reopen_directory(pair.source)
            destination = ABSENT if pair.destination == ABSENT else fs.open_directory(".", pair.destination)
            pair = self.keep(Pair(tree, path, source, destination, pair.depth, readable=True))
        return pair

    def hold(self, pair: Pair) -> Pair:
        """Take over a pair that the unit at hand works with."""
        self.used.add((pair.tree, pair.path))
        return self.keep(pair)

    def keep(self, pair: Pair) -> Pair:
        pairs, key = self.pairs, (pair.tree, pair.path)
        known = pairs.pop(key, None)
        if known:
            known.close()
        pairs[key] = pair
        if len(pairs) > self.kept + len(self.used):
            for oldest in pairs:
                if oldest not in self.used:
                    pairs.pop(oldest).close()
                    break
        return pair


def close(handle: int) -> None:
    if handle != ABSENT:
        fs.close_read(handle)
