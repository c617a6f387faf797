"""What a worker that was killed had begun, and did not finish: temporary names, and files that are not whole."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping

from pcopy import changes, runs
from pcopy import filesystem as fs
from pcopy.handles import ABSENT, Pair
from pcopy.metadata import NEW
from pcopy.verdict import Judge
from pcopy.work import Job


class Halves:
    """Tells half files from whole ones, and from those of others, and takes them away."""

    def __init__(self, job: Job, judge: Judge, mask: int) -> None:
        """``mask``: of the modes that files get."""
        self.options, self.token, self.judge, self.mask = job.options, job.token, judge, mask
        self.follow = job.options.dereference
        self.user = os.geteuid()

    def clear(self, pair: Pair, targets: Mapping[str, str], new: bool) -> None:
        """Take away what a killed worker left of entries: their temporary names, and their own if they were ``new``.

        A file that is whole stays: its times say so. ``targets``: the names in the source by those in the destination.
        """
        if pair.destination == ABSENT or self.options.dry_run:
            return
        names = pair.note_names()
        for target, name in targets.items():
            ours = runs.temporary_name(self.token, pair.depth, target)
            for place in (ours, *(one for one in pair.asides if one.startswith(ours))):
                changes.remove_aside(place, pair.destination)
            if new and target in names:
                with contextlib.suppress(OSError):
                    self.clear_half(pair, name, target)

    def clear_half(self, pair: Pair, name: str, target: str) -> None:
        """Take away a file that is not whole, where nothing was before this run and nobody else has made one since."""
        if self.options.whole_files_only:
            return
        state = None
        with contextlib.suppress(OSError):
            state = fs.look_at(name, pair.source, self.follow)
        if not self.may_be_half(target, pair.destination, state):
            return
        copy = fs.look_at(target, pair.destination)
        if not (state and stat.S_ISREG(state.st_mode) and self.judge.same(pair, name, target, state, copy)):
            changes.remove_if_there(target, pair.destination)

    def is_begun(self, pair: Pair, name: str, target: str, state: os.stat_result, copy: os.stat_result) -> bool:
        """Whether a killed worker had made an entry where nothing was: what is not whole was cleared, all else is another's."""
        same_kind = stat.S_IFMT(state.st_mode) == stat.S_IFMT(copy.st_mode)
        return same_kind and pair.spells(target) and self.judge.same(pair, name, target, state, copy)

    def may_be_half(self, target: str, directory: int, state: os.stat_result | None = None) -> bool:
        """Whether a file has the mode, owner and name alone that one has which was begun. ``state``: of its source, if any."""
        copy = fs.look_if_there(target, directory)
        if copy is None or not stat.S_ISREG(copy.st_mode) or copy.st_nlink > 1:
            return False
        mode = stat.S_IMODE(copy.st_mode)
        as_made = not mode & ~NEW  # the umask may have narrowed it
        if state is None:
            return as_made and self.user in (0, copy.st_uid)
        wanted = state.st_mode & self.mask  # the owner comes first, then what an ACL makes of the mode, then the mode
        return copy.st_uid in (self.user, state.st_uid) and (as_made or mode in (wanted, wanted & 0o777))
