"""Hard links: one more name of an inode whose first copy is there.

new, unchanged: many names, so far as nothing is unusual; link: whatever is there
decide ─▶ unchanged │ skipped │ hardlink ─▶ link ─▶ rename, if it replaces something
                    └ copy: the first copy cannot be linked to
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import replace

from pcopy import changes
from pcopy import filesystem as fs
from pcopy.directory import APPEARED
from pcopy.entry import CANNOT_LINK, Copier
from pcopy.handles import ABSENT, Pair
from pcopy.in_the_way import refuse_loss
from pcopy.options import Overwrite
from pcopy.verdict import Fate, Result
from pcopy.work import Link


def is_alike(state: os.stat_result, made: os.stat_result, times: bool) -> bool:
    """Whether this is the copy of this inode for all that shows; :meth:`Linker.is_copy` also knows of coarse times."""
    return (
        not (state.st_mode ^ made.st_mode) & 0o170000  # S_IFMT
        and state.st_size == made.st_size
        and (not times or state.st_mtime_ns == made.st_mtime_ns)
    )


class Linker:
    """Makes the names after the first. What a copier knows decides with it."""

    def __init__(self, copier: Copier) -> None:
        self.copier, self.options = copier, copier.options

    def new(self, pair: Pair, names: Sequence[str], firsts: Sequence[str], first: Pair, deadline: float) -> int:
        """Make links where nothing is yet, until one is unusual, or until the deadline. Returns how many there are.

        What is unusual, or goes wrong, is left to :meth:`link`, as is what is there already under a name.
        """
        done, above, below, beside = 0, pair.source, pair.destination, first.destination
        stat, link, monotonic, times = os.stat, os.link, time.monotonic, self.copier.metadata.keep_times
        for name, other in zip(names, firsts, strict=True):
            if done and monotonic() >= deadline:
                break
            try:
                state = stat(name, dir_fd=above, follow_symlinks=False)
                if not is_alike(state, stat(other, dir_fd=beside, follow_symlinks=False), times):
                    break
                link(other, name, src_dir_fd=beside, dst_dir_fd=below, follow_symlinks=False)
            except OSError:
                break
            done += 1
        return done

    def unchanged(self, pair: Pair, names: Sequence[str], firsts: Sequence[str], first: Pair, deadline: float) -> int:
        """How many names, from the first on, are links to the copy of their inode already. Stops at the deadline."""
        done, above, below, beside = 0, pair.source, pair.destination, first.destination
        stat, monotonic, times = os.stat, time.monotonic, self.copier.metadata.keep_times
        for name, other in zip(names, firsts, strict=True):
            if done and monotonic() >= deadline:
                break
            try:
                state, copy = stat(name, dir_fd=above, follow_symlinks=False), stat(name, dir_fd=below, follow_symlinks=False)
                made = stat(other, dir_fd=beside, follow_symlinks=False)
            except OSError:
                break
            if copy.st_ino != made.st_ino or copy.st_dev != made.st_dev or not is_alike(state, made, times):
                break
            done += 1
        return done

    def link(self, pair: Pair, unit: Link, first: Pair) -> Result | None:
        """Make one more name of an inode, the one in a unit. None if it has to be copied instead."""
        name, first_name = unit.names[0], unit.firsts[0]
        target = unit.rename or name
        if unit.again:
            self.copier.halves.clear(pair, {target: name}, unit.fresh)
        state = fs.look_at(name, pair.source, self.copier.follow)
        copy = None if pair.destination == ABSENT else fs.look_if_there(target, pair.destination)
        made = None if first.destination == ABSENT else fs.look_if_there(first_name, first.destination)
        if self.options.dry_run:
            made = self.as_it_will_be(pair, unit, first, state, made)
        elif not (made and self.is_copy(first, state, made)):
            return None
        if (
            copy
            and unit.fresh
            and not self.options.dry_run
            and not (made and os.path.samestat(copy, made))
            and not (unit.again and self.copier.halves.is_begun(pair, name, target, state, copy))
            and self.options.overwrite is not Overwrite.NEVER
        ):
            raise OSError(errno.EEXIST, APPEARED)
        result = self.decide(pair, unit, state, copy, made)
        if result.fate is not Fate.HARDLINK:
            return result
        refuse_loss(pair, name, state, copy)
        directory = copy is not None and stat.S_ISDIR(copy.st_mode)
        if self.options.dry_run:
            gives_way = not directory or self.copier.in_the_way.would_give_way(target, pair.destination)
            return result if gives_way else Result(Fate.BLOCKED)
        place = self.copier.place_of(pair, target, copy is not None)
        try:
            changes.make_hard_link(first_name, first.destination, place, pair.destination)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in CANNOT_LINK:
                raise
            self.copier.metadata.lose("hard links")
            return None
        placed = self.copier.in_the_way.put_in_place(place, target, pair.destination, copy is not None, directory)
        return result if placed else Result(Fate.BLOCKED)

    def is_copy(self, first: Pair, state: os.stat_result, made: os.stat_result) -> bool:
        """Whether what is under the first name can be the copy of this inode: nobody has replaced it meanwhile."""
        if stat.S_IFMT(made.st_mode) != stat.S_IFMT(state.st_mode):
            return False
        if stat.S_ISREG(state.st_mode) and made.st_size != state.st_size:
            return False
        return not self.copier.metadata.keep_times or self.copier.judge.same_time(first, state.st_mtime_ns, made)

    def as_it_will_be(
        self, pair: Pair, unit: Link, first: Pair, state: os.stat_result, made: os.stat_result | None
    ) -> os.stat_result | None:
        """Dry runs only: what is under the first name, if the run would leave it there; None if it would be made anew."""
        if made is None:
            return None
        both = replace(first, source=pair.source)  # the source has the same inode under both names
        names = unit.names[0], unit.firsts[0]
        if self.copier.judge.fate_of(both, *names, state, made) is not Fate.UNCHANGED:
            return None
        return made if self.copier.refresh(both, *names, state, made) else None

    def decide(
        self, pair: Pair, unit: Link, state: os.stat_result, copy: os.stat_result | None, made: os.stat_result | None
    ) -> Result:
        """What is to be done about a name, and why."""
        if copy is None:
            return Result(Fate.HARDLINK, why="new")
        if made and os.path.samestat(copy, made):
            return Result(Fate.UNCHANGED)
        name = unit.names[0]
        target = unit.rename or name
        if self.options.checksum:  # whatever is in it: nothing is to be kept
            return Result(Fate.HARDLINK, why="links" if stat.S_IFMT(state.st_mode) == stat.S_IFMT(copy.st_mode) else "kind")
        fate = self.copier.judge.fate_of(pair, name, target, state, copy)
        if fate is Fate.SKIPPED:
            return self.copier.judge.skipped()
        if fate is Fate.UNCHANGED:  # but a file of its own
            return Result(Fate.HARDLINK, why="links")
        return Result(Fate.HARDLINK, why=self.copier.judge.why(pair, name, target, state, copy, fate))
