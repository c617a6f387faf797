"""Hard links: one more name of an inode whose first copy is there.

decide ─▶ unchanged │ skipped │ hardlink ─▶ link ─▶ rename, if it replaces something
                    └ copy: the first copy cannot be linked to
"""

from __future__ import annotations

import errno
import os
import stat

from pcopy import filesystem as fs
from pcopy.entry import Copier, Fate, Result
from pcopy.handles import ABSENT, Pair
from pcopy.work import Link

CANNOT_LINK = frozenset({errno.EMLINK, errno.EPERM, errno.EXDEV, errno.ENOTSUP})


class Linker:
    """Makes the names after the first. What a copier knows decides with it."""

    def __init__(self, copier: Copier) -> None:
        self.copier, self.options = copier, copier.options

    def link(self, pair: Pair, unit: Link, first: Pair) -> Result | None:
        """Make one more name of an inode. None if it has to be copied instead."""
        target = unit.rename or unit.name
        state = fs.look_at(unit.name, pair.source, self.copier.follow)
        copy = None if pair.destination == ABSENT else fs.look_if_there(target, pair.destination)
        made = None if first.destination == ABSENT else fs.look_if_there(unit.first.name, first.destination)
        if not self.options.dry_run and not (made and self.is_copy(first, state, made)):
            return None
        fate = self.decide(pair, unit, state, copy, made)
        if fate is not Fate.HARDLINK or self.options.dry_run:
            return Result(fate)
        if copy and stat.S_ISDIR(copy.st_mode):
            self.copier.clear_directory(target, pair.destination)
            copy = None
        place = target
        if copy:
            place = fs.temporary_name(self.copier.token, pair.depth, target)
            fs.remove_if_there(place, pair.destination)  # ours, of a worker that was killed
        try:
            fs.make_hard_link(unit.first.name, first.destination, place, pair.destination)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in CANNOT_LINK:
                raise
            self.copier.metadata.lose("hard links")
            return None
        if copy:
            self.copier.put_in_place(place, target, pair.destination)
        return Result(Fate.HARDLINK)

    def is_copy(self, first: Pair, state: os.stat_result, made: os.stat_result) -> bool:
        """Whether what is under the first name can be the copy of this inode: nobody has replaced it meanwhile."""
        if stat.S_IFMT(made.st_mode) != stat.S_IFMT(state.st_mode):
            return False
        if stat.S_ISREG(state.st_mode) and made.st_size != state.st_size:
            return False
        return not self.copier.metadata.keep_times or self.copier.same_time(first, state.st_mtime_ns, made)

    def decide(
        self, pair: Pair, unit: Link, state: os.stat_result, copy: os.stat_result | None, made: os.stat_result | None
    ) -> Fate:
        """What is to be done about a name. In a dry run the first copy is still what it was before."""
        if copy is None:
            return Fate.HARDLINK
        target = unit.rename or unit.name
        linked = made is not None and os.path.samestat(copy, made)
        if linked and not self.options.dry_run:
            return Fate.UNCHANGED
        if self.options.checksum and not linked:  # whatever is in it: nothing is to be kept
            return Fate.HARDLINK
        fate = self.copier.fate_of(pair, unit.name, target, state, copy)
        if linked and fate is Fate.UNCHANGED and self.copier.refresh(pair, unit.name, target, state, copy):
            return Fate.UNCHANGED
        return Fate.SKIPPED if fate is Fate.SKIPPED else Fate.HARDLINK
