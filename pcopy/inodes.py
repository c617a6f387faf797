"""Names of inodes that have several: which one is copied, and which become hard links to that.

Shared ─▶ gather ─▶ decided, when all names of an inode are known ─▶ Entries (the first); nothing, if all are unchanged
                                  others wait ─▶ linked, when the first is done ─▶ Link, or Entries if it was not copied
                                                 choose_again, if it was not    ─▶ Entries (another)
"""

# Annotations are no texts here, see work.py.
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from pcopy.options import Overwrite
from pcopy.work import BATCH, Group, Inode, Job, Link, Shared, Unit, first_copy

# Names of inodes that have several, up to which they are kept until all of an inode are known. More would decide the same
# in each run of ever larger trees, at about 300 bytes of memory a name.
KEPT = 200_000
# First names of an inode that fail, or are to be left as they are, until each of the others is copied by itself. More would
# take long where no name of a file with many can be read.
FIRSTS = 8


class Place(NamedTuple):
    """One name in the destination."""

    tree: int
    path: str
    name: str


class Name(NamedTuple):
    """One of them. ``among``: what it has in common with others."""

    among: Shared
    name: str
    inode: Inode
    links: int
    copy: Inode | None

    @property
    def place(self) -> Place:
        return Place(self.among.tree, self.among.path, self.among.rename or self.name)


@dataclass(eq=False, repr=False)
class Decided:
    """What becomes of names, as all names of their inodes are known."""

    waiting: list[Inode] = field(default_factory=list)  # whose names wait until the first one is copied
    unchanged: list[Name] = field(default_factory=list)  # under all names of their inode: nothing is to be done
    firsts: list[Name] = field(default_factory=list)  # to be copied, by the units
    units: list[Unit] = field(default_factory=list)


class Inodes:
    """What is known of them. Decides the same in each run and in a dry run, in whatever order the names are found."""

    def __init__(self, job: Job) -> None:
        self.options = job.options
        # Sources can overlap, and a link that is followed is a name too: then an inode can have more names than it says.
        self.countable = len(job.trees) == 1 and not job.options.dereference
        self.first_names: dict[Inode, tuple[Place, int]] = {}  # of an inode that was decided, and how many names it has left
        self.gathered: dict[Inode, list[Name]] = {}  # names of which there may be more
        self.undecided = 0  # names in there
        # Names that wait for the first, which is at this place. One object for ever: the frontier watches these inodes.
        self.waiting: dict[Inode, tuple[Place, list[Name]]] = {}
        self.ruins: Counter[Inode] = Counter()  # of first names

    def gather(self, found: Shared) -> None:
        among = found._replace(names=(), inodes=(), links=(), copies=())
        for name in map(Name, (among,) * len(found.names), found.names, found.inodes, found.links, found.copies):
            if group := self.gathered.get(name.inode):
                group.append(name)
            else:
                self.gathered[name.inode] = [name]  # without room for more: most have one name here, others elsewhere
        self.undecided += len(found.names)

    def decided(self, inodes: Iterable[Inode], complete: bool) -> Decided:
        """What becomes of those of these inodes of which all names are known by now.

        All are known when as many came as the inode has, with these as the last, or when no more can come: it is ``complete``.
        """
        decided, twice = Decided(), list[Name]()
        everything = complete or self.undecided > KEPT
        for inode in list(self.gathered if everything else dict.fromkeys(inodes)):
            group = self.gathered[inode]
            known = self.first_names.get(inode)
            if not everything and not (self.countable and len(group) >= (known[1] if known else group[0].links)):
                continue
            del self.gathered[inode]
            self.undecided -= len(group)
            first = min(group, key=self.rank) if len(group) > 1 else group[0]
            place, left = known or (first.place, first.links)
            left -= len(group)
            if left > 0 or not self.countable:
                self.first_names[inode] = (place, left)
            else:
                self.first_names.pop(inode, None)
            if not known and first.copy and all(name.copy == first.copy for name in group):
                decided.unchanged.extend(group)
                continue
            if not known:
                decided.firsts.append(first)
                group.remove(first)
            if not group:
                continue
            decided.waiting.append(inode)
            waiting = self.waiting.setdefault(inode, (place, []))[1]
            for name in group:
                # The first name can be there twice, if a worker was killed.
                again = (name.among.rename or name.name) == place.name and name.place == place
                (twice if again else waiting).append(name)
        decided.units.extend(first_copies(decided.firsts))
        for name in twice:
            decided.firsts.append(name)
            decided.units.extend(first_copies([name]))
        return decided

    def linked(self, inodes: Iterable[Inode], ruined: Set[Group]) -> tuple[list[Name], list[Unit]]:
        """The names that waited for the first ones of these inodes, and the units that they become."""
        done: list[Name] = []
        alone: list[Name] = []
        links: dict[tuple[Shared, int, str], list[tuple[Name, str]]] = {}
        for inode in inodes:
            first, names = self.waiting.pop(inode)
            done += names
            if inode in ruined:
                alone += names
                continue
            for name in names:
                links.setdefault((name.among, first.tree, first.path), []).append((name, first.name))
        units = [unit for (_, tree, path), some in links.items() for unit in links_to((tree, path), some)]
        return done, [*first_copies(alone), *units]

    def choose_again(self, inode: Inode) -> tuple[list[Name], list[Unit]]:
        """The first name of an inode was not copied: one of those that wait is to be; none, if that was tried enough."""
        names = self.waiting[inode][1]
        self.ruins[inode] += 1
        if not names or self.ruins[inode] >= FIRSTS:
            return [], []
        first = min(names, key=lambda name: name.place)
        names.remove(first)
        self.waiting[inode] = (first.place, names)
        if inode in self.first_names:
            self.first_names[inode] = (first.place, self.first_names[inode][1])
        return [first], first_copies([first])

    def rank(self, name: Name) -> tuple[bool, int, str, str]:
        """Who comes first is copied: rather a name that is there already, unless such names are to be kept as they are."""
        keeps = self.options.overwrite in (Overwrite.NEVER, Overwrite.OLDER)
        return (name.among.fresh != keeps, name.among.tree, name.among.path, name.name)


def first_copies(names: Sequence[Name]) -> list[Unit]:
    """The units that copy these names, each as the first of its inode."""
    units: list[Unit] = []
    together: dict[Shared, list[Name]] = {}
    for name in names:
        together.setdefault(name.among, []).append(name)
    for among, group in together.items():
        for at in range(0, len(group), BATCH):
            some = group[at : at + BATCH]
            called, inodes = tuple(name.name for name in some), tuple(name.inode for name in some)
            units.append(first_copy(among._replace(names=called, inodes=inodes), among.share * len(some), among.regular))
    return units


def links_to(beside: tuple[int, str], names: Sequence[tuple[Name, str]]) -> Iterator[Link]:
    """The units that make links of names of one directory to first copies in another one."""
    among = names[0][0].among
    for at in range(0, len(names), BATCH):
        some = names[at : at + BATCH]
        called, inodes = tuple(name.name for name, _ in some), tuple(name.inode for name, _ in some)
        firsts, share = tuple(first for _, first in some), among.share * len(some)
        link = Link(among.tree, among.path, called, among.rename, inodes, beside, firsts, share, device=among.device)
        yield link._replace(fresh=among.fresh, again=among.again)
