"""The units that nobody holds, and those that wait for others.

    add ─▶ hold: their groups are not done ─▶ place ─┬▶ units, last in, first out
                                                     ├▶ scans, where directories are read ahead of the copying
                                                     ├▶ waiting, until no unit holds the group that they come after ─▶ units
                                                     └▶ last, until all else is done
    release: they are done, or have come back in another form

Last in, first out keeps it small. What a unit is, and when it is done, is for others to say.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from pcopy.division import divide, pieces
from pcopy.work import Entries, Finish, Group, Inode, Scan, Shared, Span, Unit, Verify, directory_group


class Frontier:
    """Keeps them, and counts what is in them."""

    def __init__(self, watched: dict[Inode, Any]) -> None:
        """``watched``: inodes of which somebody wants to hear, as soon as no unit holds them any more."""
        self.units: deque[Unit] = deque()
        self.scans: deque[Scan] = deque()  # apart from the others while scanning runs ahead
        self.holding: Counter[Group] = Counter()
        self.waiting: dict[Group, list[Unit]] = {}
        self.last: list[Finish] = []
        self.watched = watched
        self.done: list[Inode] = []  # of these, since somebody last asked
        self.unscanned = 0  # directories
        self.searching = 0  # units in which more names of known inodes may be found
        self.names = 0  # of entries in the units

    def __bool__(self) -> bool:
        return bool(self.units or self.scans or self.last)

    # ---- taking in ----

    def add(self, units: Iterable[Unit], ahead: bool = False) -> None:
        units = list(units)
        self.hold(units)
        self.place(units, ahead)

    def hold(self, units: Iterable[Unit]) -> None:
        for unit in units:
            self.holding.update(unit.holds)
            self.unscanned += isinstance(unit, Scan)
            self.searching += searches(unit)

    def hold_names(self, some: Shared) -> None:
        """Names that are no units yet are entries of their directory all the same."""
        self.holding[directory_group(some.tree, some.path)] += len(some.names)

    def place(self, units: Iterable[Unit], ahead: bool = False) -> None:
        """``ahead``: directories are read before files are copied."""
        for unit in units:
            if isinstance(unit, Finish) and unit.last:
                self.last.append(unit)
            elif unit.after is not None and self.holding[unit.after]:
                self.waiting.setdefault(unit.after, []).append(unit)
            elif isinstance(unit, Scan) and ahead:
                self.scans.append(unit)
            else:
                self.push(unit)

    def push(self, unit: Unit) -> None:
        self.units.append(unit)
        self.names += len(unit.names) if isinstance(unit, Entries) else 0

    def release(self, units: Iterable[Unit]) -> None:
        """These units are done, or have come back in another form: whoever waited for the last of them goes on."""
        for unit in units:
            self.unscanned -= isinstance(unit, Scan)
            self.searching -= searches(unit)
            for group in unit.holds:
                self.let_go(group, 1)

    def let_go(self, group: Group, count: int) -> None:
        self.holding[group] -= count
        if not self.holding[group]:
            del self.holding[group]
            for unit in self.waiting.pop(group, ()):
                self.push(unit)
            if group in self.watched:
                self.done.append(group)

    def take_done(self) -> list[Inode]:
        done, self.done = self.done, []
        return done

    # ---- handing out ----

    def pop(self, count: int) -> list[Unit]:
        """The last of them; the very last is the next to do, and the last of these."""
        units = [self.units.pop() for _ in range(count)]
        self.names -= sum(len(unit.names) for unit in units if isinstance(unit, Entries))
        return units[::-1]

    def pop_scans(self, count: int) -> list[Unit]:
        scans: list[Unit] = [self.scans.pop() for _ in range(count)]
        return scans[::-1]

    def join_scans(self) -> None:
        """Directories are not read ahead any more."""
        self.units.extendleft(reversed(self.scans))
        self.scans.clear()

    def pop_last(self) -> list[Unit]:
        """What has to be done when all else is: the deepest directories come first, so they are last in the list.

        Before the first of them is closed, all is deleted that is to be.
        """
        deleting = [unit for unit in self.last if unit.extra]
        units, self.last = (deleting, [unit for unit in self.last if not unit.extra]) if deleting else (self.last, [])
        return [unit._replace(last=False) for unit in sorted(units, key=lambda unit: unit.path.count("/"))]

    def split(self, idle: int) -> None:
        """Make more units of the largest there are, so that nobody stands idle.

        Of a large file only if there is not something else for each: the kernel lets one at a time write to a file
        (generic_file_write_iter() in mm/filemap.c, and much the same on xfs and ext4), and who waits spins.
        """
        for shared in (False, True):
            units = list(self.units)
            if shared and len(units) >= idle:
                break
            sizes = [pieces(unit) if isinstance(unit, (Span, Verify)) == shared else 0 for unit in units]
            each = max(1, sum(sizes) / (2 * idle))
            self.units.clear()
            for unit, size in zip(units, sizes, strict=True):
                self.units.extend(self.parts(unit, math.ceil(size / each)) if size > each else [unit])

    def parts(self, unit: Unit, count: int) -> list[Unit]:
        """A unit in about so many, which hold what it held."""
        parts = divide(unit, count)
        self.hold(parts)
        self.release([unit])
        return parts

    def left(self) -> list[Unit]:
        """All but what is to be done last."""
        return [*self.units, *self.scans, *(unit for units in self.waiting.values() for unit in units)]


def searches(unit: Unit) -> bool:
    """Whether names of inodes that have several may be found in a unit."""
    return isinstance(unit, Scan) or (isinstance(unit, Entries) and not unit.first_of)
