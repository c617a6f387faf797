"""What the destination has and the source lacks: what of it is to go, and where nothing is to.

Never what a filter hides, what other runs are writing, or what is on another mount than the destination.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Container

from pcopy import changes, runs
from pcopy import filesystem as fs
from pcopy.handles import ABSENT, Handles, Pair
from pcopy.mounts import mount_or_device
from pcopy.select import leaves_out, selection
from pcopy.work import Job, join

MOUNTED = f"{os.strerror(errno.EBUSY)} (something is mounted on it, so it stays: unmount that, or exclude it)"


class Extra:
    """Looks at it for one slice."""

    def __init__(self, job: Job, handles: Handles) -> None:
        self.job, self.handles, self.options = job, handles, job.options
        self.selection = selection(job.options.filters)
        self.needed = {*(tree.source_inode for tree in job.trees), *(tree.destination_inode for tree in job.earlier)}
        self.mounts: dict[int, str] = {}  # of trees

    def is_mounted(self, pair: Pair) -> bool:
        """Whether a directory of the destination is on another mount than that: what is there is not to be deleted."""
        if pair.tree not in self.mounts:
            self.mounts[pair.tree] = mount_or_device(self.handles.passing(pair.tree, "").destination)
        return mount_or_device(pair.destination) != self.mounts[pair.tree]

    def to_remove_from(self, tree: int, path: str) -> Pair:
        """The copy of a directory in which something is to go. Raises EXDEV if, by now, that is on another mount."""
        pair = self.handles.pair(~tree, path)
        if not pair.stays:
            if self.is_mounted(pair):
                raise OSError(errno.EXDEV, "is not on the destination's mount: nothing is removed there")
            pair.stays = True
        return pair

    def removable(self, pair: Pair, there: dict[str, bool], found: Container[str]) -> list[tuple[str, bool]]:
        """What is to go of the names in a directory of the destination.

        All but what its source has, what this run and others write, and what would not be copied if the source had it.
        """
        extra = [one for one in there.items() if one[0] not in found]
        if runs.may_be_stale(there):
            extra = [(name, is_dir) for name, is_dir in extra if not self.goes_uncounted(name, is_dir, pair.destination)]
        if self.job.spared:
            tree = max(pair.tree, ~pair.tree)
            extra = [one for one in extra if (tree, join(pair.path, one[0])) not in self.job.spared]
        if self.selection and extra:
            here = self.selection.here(pair.path)
            if here is None:
                return []
            hidden = here.hidden([name for name, is_dir in extra if is_dir], True)
            hidden |= here.hidden([name for name, is_dir in extra if not is_dir], False)
            extra = [one for one in extra if one[0] not in hidden]
        if self.options.limited:
            extra = [(name, is_dir) for name, is_dir in extra if is_dir or not self.is_left_out(name, pair.destination)]
        return extra

    def goes_uncounted(self, name: str, is_directory: bool, parent: int) -> bool:
        """Whether a name is a temporary one: of a directory, if it is empty, and yet there in a dry run only."""
        if not runs.is_temporary(name) or not is_directory:
            return runs.is_temporary(name)
        if not self.options.dry_run:
            return False
        try:
            changes.remove_directory(name, parent, pretend=True)
        except OSError:
            return False
        return True

    def is_left_out(self, name: str, directory: int) -> bool:
        state = fs.look_if_there(name, directory)
        return state is not None and leaves_out(self.options, state)

    def remove_directory(self, name: str, parent: int) -> bool:
        """Remove a directory. False if it is not empty; so one that something is mounted on is never looked into (rmdir(2))."""
        if self.options.dry_run:
            return False
        try:
            changes.remove_directory(name, parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
        return True

    def open_to_remove(self, name: str, parent: int) -> int:
        """Open a directory that is to be removed. Raises EBUSY if another run is at work in it, or this one copies from it.

        One that we may not read is none that such a run has, and if it is empty, nobody has to.
        """
        try:
            handle = fs.open_directory(name, parent)
        except PermissionError:
            return ABSENT
        try:
            state = os.fstat(handle)
            if (state.st_dev, state.st_ino) in self.needed:  # it was named by another path, to where it is mounted too
                changes.refuse_to_remove("is a source of this run, or an earlier copy: move it out of the destination")
            runs.leave_to_another_run([runs.is_marked(handle, runs.AT_WORK)])
        except OSError:
            fs.close_read(handle)
            raise
        return handle
