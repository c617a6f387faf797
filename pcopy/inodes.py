"""Names of inodes that have several: which one is copied, and which become hard links to that.

Shared ─▶ gather ─▶ decided, when all names of an inode are known ─▶ Entries (the first), Link (each other)
                    choose_again, if the first was not copied     ─▶ Entries (another), Link (each that is left)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence

from pcopy.options import Overwrite
from pcopy.work import BATCH, Entries, Group, Inode, Job, Link, Place, Shared, Unit, first_copy

# Names of inodes that have several, up to which they are kept until all of an inode are known. More would decide the same
# in each run of ever larger trees, at about 300 bytes of memory a name.
KEPT = 200_000
NONE: Inode = (0, 0)
# First names of an inode that fail, or are to be left as they are, until each of the others is copied by itself. More would
# take long where no name of a file with many can be read.
FIRSTS = 8


class Inodes:
    """What is known of them. Decides the same in each run and in a dry run, in whatever order the names are found."""

    def __init__(self, job: Job) -> None:
        self.options = job.options
        self.one_tree = len(job.trees) == 1
        self.first_names: dict[Inode, tuple[Place, int]] = {}  # of an inode that was decided, and how many names it has left
        self.gathered: dict[Inode, list[Shared]] = {}  # names of which there may be more
        self.undecided = 0  # names in there
        self.ruins: Counter[Group] = Counter()  # of first names

    def gather(self, name: Shared) -> None:
        self.gathered.setdefault(name.inode, []).append(name)
        self.undecided += 1

    def decided(self, names: Iterable[Shared], complete: bool) -> tuple[list[Shared], list[Unit]]:
        """The names of the inodes of which all are known, and the units that they become.

        All are known when as many came as the inode has, with these as the last, or when no more can come: it is ``complete``.
        """
        done: list[Shared] = []
        firsts: dict[Hashable, list[Shared]] = {}
        others: list[Unit] = []
        everything = complete or self.undecided > KEPT
        for inode in list(self.gathered if everything else dict.fromkeys(name.inode for name in names)):
            group = self.gathered[inode]
            known = self.first_names.get(inode)
            if everything or (self.one_tree and len(group) >= (known[1] if known else group[0].links)):
                del self.gathered[inode]
                self.undecided -= len(group)
                done += group
                if not known:
                    first = min(group, key=self.rank) if len(group) > 1 else group[0]
                    firsts.setdefault(first._replace(name="", inode=NONE, links=0, share=0.0), []).append(first)
                    group.remove(first)
                    known = place_of(first), first.links - 1
                place, left = known
                # The first name can be there twice, if a worker was killed.
                others += [
                    link_to(place, name) if place_of(name) != place else first_copy(name, name.regular) for name in group
                ]
                left -= len(group)
                # Sources can overlap, and a link that is followed is a name too: then it has more names than it says.
                if left > 0 or not self.one_tree or self.options.dereference:
                    self.first_names[inode] = (place, left)
                else:
                    self.first_names.pop(inode, None)
        return done, [*(unit for some in firsts.values() for unit in first_copies(some)), *others]

    def choose_again(self, inode: Group, links: Sequence[Link]) -> list[Unit]:
        """The first name of an inode was not copied: one of those that wait is to be; nothing, if that was tried enough."""
        self.ruins[inode] += 1
        if not links or self.ruins[inode] >= FIRSTS:
            return []
        first = min(links)
        place = place_of(first)
        if first.inode in self.first_names:
            self.first_names[first.inode] = (place, self.first_names[first.inode][1])
        others = [unit._replace(first=place) for unit in links if unit is not first]
        return [first_copy(first), *others]

    def rank(self, name: Shared) -> tuple[bool, int, str, str]:
        """Who comes first is copied: rather a name that is there already, unless such names are to be kept as they are."""
        keeps = self.options.overwrite in (Overwrite.NEVER, Overwrite.OLDER)
        return (name.fresh != keeps, name.tree, name.path, name.name)


def place_of(name: Shared | Link) -> Place:
    return Place(name.tree, name.path, name.rename or name.name)


def link_to(first: Place, name: Shared) -> Link:
    """What the names of an inode after the first become."""
    link = Link(name.tree, name.path, name.name, name.rename, name.inode, first, name.share, device=name.device)
    return link._replace(fresh=name.fresh, again=name.again)


def first_copies(names: Sequence[Shared]) -> Iterator[Entries]:
    """The units that copy names of one directory, each as the first of its inode."""
    for at in range(0, len(names), BATCH):
        some = names[at : at + BATCH]
        whole = first_copy(some[0], some[0].regular)
        share = sum(name.share for name in some)
        yield whole._replace(names=tuple(name.name for name in some), first_of=tuple(name.inode for name in some), share=share)
