"""The plain data that passes between the coordinator and the workers.

    units ──▶ run(job, units, seconds) ──▶ Outcome(tally, failures, units left over, …): see outcome.py

A unit holds no handle and knows its directory as a path below a tree's top, so any process can do it. Units are
idempotent: done twice, the result is the same. They are named tuples because those are the cheapest to pickle.

Two rules order them. A unit *holds* groups open (a directory, a large file, an inode with several names), and a unit may
wait *after* a group: the directory's times are set when nothing holds the directory any more.
"""

# Annotations are no texts here, because typing.NamedTuple compiles each one that is: a twentieth of the start of a run.
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from pcopy.options import Options
from pcopy.stop import Stop

# Names in one unit: more would make units too coarse to share out, fewer would make messages long.
BATCH = 128
# Directories in one unit that counts what is below them.
FEW = 8
# A directory of which nothing is known is guessed to be as much work as this many files.
DIRECTORY_WEIGHT = 10

Group = Hashable
Inode = tuple[int, int]  # (st_dev, st_ino)
Seen = tuple[Inode, int, Inode | None]  # of a name: its inode, how many names that has, and as for Shared.copies


class Tree(NamedTuple):
    """Where a copy starts: absolute paths of two directories, and the inodes that they had when the run began."""

    source: str
    destination: str
    source_inode: Inode
    destination_inode: Inode | None  # None: a dry run into a directory that does not exist
    depth: int = 0  # below the directory that the run has locked
    on_disk: bool = True  # the destination: what was written to it may have been lost in a power cut
    exact: bool = False  # the destination's file system shows a hole for each block that was not written
    one_clock: bool = False  # source and destination keep times by the clock of this machine
    elsewhere: bool = False  # another machine or process keeps the source
    earlier: tuple[int, ...] = ()  # among the job's trees: earlier copies, to which unchanged files become hard links
    whole: bool = True  # the source is copied, and not only some of its entries
    labels: bool = True  # SELinux's can be set on the destination
    layered: bool = False  # the destination is on overlayfs


class Job(NamedTuple):
    """What every slice of a run has to know."""

    options: Options
    trees: tuple[Tree, ...]
    token: str  # in the names of temporary files: tells this run's from those of a dead one
    umask: int
    locked: bool = True  # no other run is in the destination
    earlier: tuple[Tree, ...] = ()  # numbered after the trees; only their destinations mean anything
    stop: Stop | None = None
    spared: frozenset[tuple[int, str]] = frozenset()  # files of the run in its copy, which nothing removes: (tree, path)
    only_deletions: bool = False  # a dry run that is to find out no more than how much would be deleted


class Attributes(NamedTuple):
    """What a directory gets when its contents are in place. Times in nanoseconds."""

    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int


class Version(NamedTuple):
    """What tells that a source file is not the one that was opened any more. Times in nanoseconds."""

    inode: Inode
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def text(self) -> str:
        """The same to a later run, for which devices can have other numbers."""
        return f"{self.inode[1]} {self.size} {self.mtime_ns} {self.ctime_ns}"


class Compared(NamedTuple):
    """How far a file and its copy are known to be equal, as long as both are what they were then."""

    position: int  # bytes
    source: Version
    copy: Version


class Scan(NamedTuple):
    """Read one directory and make the copies of its subdirectories.

    ``fresh``: its copy was made by this run. ``only``: the paths below it that are to be copied; None for all.
    """

    tree: int
    path: str
    fresh: bool
    share: float  # the part of the whole run that is guessed to lie below, for the progress bar
    failed: int = 0  # times, by an error that may pass
    again: bool = False  # it may have been begun before, by a worker that was killed
    only: tuple[str, ...] | None = None
    replaces: bool = False  # an entry of another kind gave way to its copy
    device: int = 0  # st_dev of the directory that it was listed in; 0: that of the tree's top

    @property
    def holds(self) -> tuple[Group, ...]:
        return ()

    @property
    def after(self) -> Group:
        return None


class Entries(NamedTuple):
    """Copy these names of one directory, none of them a directory.

    ``fresh``: the destination has none of them. ``regular``: the scan saw regular files. ``rename``: the name in the
    destination, if there is one name and it differs. ``first_of``: the inodes, in the same order, of which these names are to
    be the first copies. ``cleared``: there is one name, and it waits until the directory that was in its place is removed;
    ``kept``: which had to stay. ``compared``: of the first name, where contents decide. ``partial``: there is one name, and a
    run that was cut left this temporary name of it.
    """

    tree: int
    path: str
    names: tuple[str, ...]
    fresh: bool
    regular: bool
    share: float
    rename: str | None = None
    first_of: tuple[Inode, ...] = ()
    tries: int = 0  # how often the source changed under the copy
    failed: int = 0
    cleared: bool = False
    kept: bool = False
    again: bool = False  # as for Scan
    device: int = 0  # as for Scan
    compared: Compared | None = None
    partial: str | None = None

    @property
    def holds(self) -> tuple[Group, ...]:
        return (directory_group(self.tree, self.path), *self.first_of)

    @property
    def after(self) -> Group:
        return gone_group(self.tree, join(self.path, self.rename or self.names[0])) if self.cleared else None

    def part(self, start: int, stop: int | None = None) -> "Entries":
        """The unit of some of the names. It has all of the share."""
        return self._replace(names=self.names[start:stop], first_of=self.first_of[start:stop])

    def one(self, name: str) -> "Entries":
        """The unit of one of the names, without a share."""
        at = self.names.index(name)
        return self.part(at, at + 1)._replace(share=0.0)


class Temporary(NamedTuple):
    """The name of a file under way, and what tells that it is still the file that was made for it.

    ``owners``: who made it, and who gets it. ``replaces``: something of the final name was there when it was made.
    """

    name: str
    inode: Inode
    owners: tuple[int, int]
    replaces: bool


class Large(NamedTuple):
    """A large file under way: written as ``temporary`` by anybody, span by span, then given its name."""

    tree: int
    path: str
    name: str
    target: str
    temporary: Temporary
    size: int  # bytes
    holes: bool
    version: Version
    first_of: tuple[Inode, ...]  # one or none
    tries: int
    share: float
    why: str = ""  # it is copied
    device: int = 0  # as for Scan


class Span(NamedTuple):
    """Copy the bytes from start to stop of a large file. ``shared``: others have spans of it, too."""

    large: Large
    start: int
    stop: int
    failed: int = 0
    shared: bool = False

    @property
    def tree(self) -> int:
        return self.large.tree

    @property
    def path(self) -> str:
        return self.large.path

    @property
    def holds(self) -> tuple[Group, ...]:
        return (large_group(self.large),)

    @property
    def after(self) -> Group:
        return None


class Verify(NamedTuple):
    """Read back the bytes from start to stop of a large file, and compare them with the source's."""

    large: Large
    start: int
    stop: int
    failed: int = 0

    @property
    def tree(self) -> int:
        return self.large.tree

    @property
    def path(self) -> str:
        return self.large.path

    @property
    def holds(self) -> tuple[Group, ...]:
        return (large_group(self.large),)

    @property
    def after(self) -> Group:
        return None


class Seal(NamedTuple):
    """Give a large file its attributes and its name, or take it away if the run stops or a span of it failed.

    ``changed``: something else than the source of which it is a copy was read for a part of it. ``cleared``: as for Entries.
    """

    large: Large
    discard: bool = False
    changed: bool = False
    cleared: bool = False

    @property
    def tree(self) -> int:
        return self.large.tree

    @property
    def path(self) -> str:
        return self.large.path

    @property
    def holds(self) -> tuple[Group, ...]:
        return (directory_group(self.tree, self.path), *self.large.first_of)

    @property
    def after(self) -> Group:
        return gone_group(self.tree, join(self.path, self.large.target)) if self.cleared else large_group(self.large)


class Link(NamedTuple):
    """Make one more name of each of these inodes, whose first copies are ``firsts`` in the directory ``beside``.

    The names are of one directory. ``rename``, ``cleared``, ``kept`` and ``compared``: as for Entries.
    """

    tree: int
    path: str
    names: tuple[str, ...]
    rename: str | None
    inodes: tuple[Inode, ...]
    beside: tuple[int, str]  # tree and path
    firsts: tuple[str, ...]
    share: float
    failed: int = 0
    cleared: bool = False
    device: int = 0  # as for Scan
    kept: bool = False
    compared: Compared | None = None
    fresh: bool = False  # as for Entries
    again: bool = False  # as for Scan

    @property
    def holds(self) -> tuple[Group, ...]:
        return (directory_group(self.tree, self.path),)

    @property
    def after(self) -> Group:
        return gone_group(self.tree, join(self.path, self.rename or self.names[0])) if self.cleared else None

    def part(self, start: int, stop: int | None = None) -> "Link":
        """The unit of some of the names. It has all of the share."""
        some = slice(start, stop)
        return self._replace(names=self.names[some], inodes=self.inodes[some], firsts=self.firsts[some])

    def one(self, name: str) -> "Link":
        """The unit of one of the names, without a share."""
        at = self.names.index(name)
        return self.part(at, at + 1)._replace(share=0.0)


class Sums(NamedTuple):
    """Take the checksums of these names, so far as they are regular files.

    ``copied`` by this run: what was read in the source is what should be in the copy.
    """

    tree: int
    path: str
    names: tuple[str, ...]
    rename: str | None
    copied: bool
    failed: int = 0

    @property
    def holds(self) -> tuple[Group, ...]:
        return (directory_group(self.tree, self.path),)

    @property
    def after(self) -> Group:
        return None


class Check(NamedTuple):
    """Compare files with the checksums in these lines of a manifest, of which the first has this number."""

    manifest: str
    text: bytes
    first: int
    failed: int = 0

    @property
    def tree(self) -> int:
        return 0

    @property
    def path(self) -> str:
        return ""

    @property
    def lines(self) -> list[bytes]:
        return self.text.removesuffix(b"\n").split(b"\n")

    @property
    def length(self) -> int:
        return len(self.lines)

    def part(self, start: int, stop: int | None = None) -> "Check":
        return self._replace(text=b"\n".join([*self.lines[start:stop], b""]), first=self.first + start)

    @property
    def holds(self) -> tuple[Group, ...]:
        return ()

    @property
    def after(self) -> Group:
        return None


class Finish(NamedTuple):
    """Give a directory its attributes, now that its entries are in place.

    ``extra``: what its source lacks, and whether it is a directory: to be removed first. ``last``: at the end of the run,
    deepest first, because nobody could pass through the directory afterwards.
    """

    tree: int
    path: str
    attributes: Attributes
    fresh: bool = False  # made by this run
    last: bool = False
    failed: int = 0
    extra: tuple[tuple[str, bool], ...] = ()
    device: int = 0  # st_dev of the directory

    @property
    def holds(self) -> tuple[Group, ...]:
        return ()

    @property
    def after(self) -> Group:
        return directory_group(self.tree, self.path)


class Remove(NamedTuple):
    """Remove these names, none of them a directory, from a directory of the destination.

    ``counted``: against the limit on deletions.
    """

    tree: int
    path: str
    names: tuple[str, ...]
    failed: int = 0
    counted: bool = False

    @property
    def entries(self) -> int:
        return len(self.names)

    @property
    def holds(self) -> tuple[Group, ...]:
        return (directory_group(self.tree, self.path),)

    @property
    def after(self) -> Group:
        return None


class Clear(NamedTuple):
    """Remove a directory of the destination: first what is in it and then, ``emptied``, the directory itself.

    ``kept``: something in it could not be removed, or is not to be.
    """

    tree: int
    path: str
    emptied: bool = False
    kept: bool = False
    failed: int = 0
    counted: bool = False  # as for Remove

    @property
    def entries(self) -> int:
        return 1

    @property
    def holds(self) -> tuple[Group, ...]:
        return directory_group(self.tree, self.path.rpartition("/")[0]), gone_group(self.tree, self.path)

    @property
    def after(self) -> Group:
        return directory_group(self.tree, self.path) if self.emptied else None


class Count(NamedTuple):
    """Count the names below these directories: so many would be deleted at most."""

    paths: tuple[str, ...]
    failed: int = 0

    @property
    def tree(self) -> int:
        return 0

    @property
    def path(self) -> str:
        return ""

    @property
    def holds(self) -> tuple[Group, ...]:
        return ()

    @property
    def after(self) -> Group:
        return None


# Those that remember that a worker which was killed may have begun them.
Begun = Scan | Entries | Link
Unit = Scan | Entries | Span | Verify | Seal | Link | Sums | Check | Finish | Remove | Clear | Count


def counts_of(paths: Sequence[str]) -> list[Count]:
    return [Count(tuple(paths[at : at + FEW])) for at in range(0, len(paths), FEW)]


def join(path: str, name: str) -> str:
    """The path of a name in a directory; the top's path is empty."""
    return f"{path}/{name}" if path else name


def directory_group(tree: int, path: str) -> Group:
    return (tree, path)


def gone_group(tree: int, path: str) -> Group:
    """Held by what removes a directory."""
    return (tree, path, Clear)


def large_group(large: Large) -> Group:
    return (large.tree, large.path, large.name)


def changed_group(large: Large) -> Group:
    """Ruined when, for a part of a large file, its name led to another file than when its copy began."""
    return (large.tree, large.path, large.name, large.tries)


class Shared(NamedTuple):
    """Names of one directory whose inodes have several: the coordinator decides which are copied and which ones are linked.

    ``copies``: the inodes of those copies that have the contents and attributes of the source, None for others.
    """

    tree: int
    path: str
    names: tuple[str, ...]
    rename: str | None
    fresh: bool
    regular: bool
    inodes: tuple[Inode, ...]
    links: tuple[int, ...]  # names that the inodes have
    copies: tuple[Inode | None, ...]
    share: float  # of each name
    device: int = 0  # as for Scan
    again: bool = False  # as for Scan


def first_copy(some: Shared | Link, share: float, regular: bool = False) -> Entries:
    """The unit that copies names of inodes that have several, as the first of them."""
    copy = Entries(some.tree, some.path, some.names, some.fresh, regular, share, some.rename, some.inodes)
    return copy._replace(device=some.device, again=some.again)


def entries_of(scan: Scan, names: Sequence[str], new: bool, regular: bool, share: float, device: int) -> Iterator[Entries]:
    """The units that copy what was found in a directory. ``share``: of each name."""
    for at in range(0, len(names), BATCH):
        batch = tuple(names[at : at + BATCH])
        yield Entries(scan.tree, scan.path, batch, new, regular, share * len(batch), again=scan.again, device=device)
