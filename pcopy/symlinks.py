"""Symbolic links by a few calls each, where that is safe: some trees hold more of them than files.

    make        new ones
    unchanged   those that are what they were when they were copied

As in plain.py, whatever is not usual, or goes wrong, is undone and left to entry.py.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Sequence

from pcopy import attributes as attr
from pcopy import changes
from pcopy.handles import ABSENT, Pair
from pcopy.metadata import EARLIEST, LATEST, Metadata
from pcopy.options import Options, Overwrite

# Links in a row from which on it is worth seeing whether nobody else may write there. Fewer are made by their handles.
SEVERAL = 3


class Symlinks:
    """What a slice does to symbolic links that need no more."""

    def __init__(self, options: Options, metadata: Metadata) -> None:
        self.metadata, self.links = metadata, "links" in options.preserve
        self.xattrs = metadata.keep_xattrs and attr.XATTRS
        self.works = not (options.dry_run or options.whole_files_only or options.fsync or options.dereference)
        self.compares = options.overwrite in (Overwrite.CHANGED, Overwrite.OLDER) and not options.dereference

    def make(self, pair: Pair, names: Sequence[str], deadline: float) -> int:
        """Make links anew until one is not usual, or until the deadline. Returns how many.

        What is made gets its owner and times by its name, so only where nobody else can put something in its place.
        """
        above, below, done = pair.source, pair.destination, 0
        if not self.works or len(names) < SEVERAL:
            return 0
        try:
            if not self.is_ours_alone(below):
                return 0
            near = attr.way_to(above) if self.xattrs else ""
        except OSError:
            return 0
        keep_owner, keep_times, owner = self.metadata.keep_owner, self.metadata.keep_times, pair.owner
        for name in names:
            if done and time.monotonic() >= deadline:
                break
            made = False
            try:
                state = os.stat(name, dir_fd=above, follow_symlinks=False)
                mine = state.st_uid, state.st_gid
                if (
                    not self.is_usual(state)
                    or (keep_owner and owner not in (None, mine) and self.metadata.unprivileged)
                    or (self.xattrs and os.listxattr(near + name, follow_symlinks=False))
                ):
                    break
                target = os.readlink(name, dir_fd=above)
                made = True  # before it is: a signal can end this slice when it is there and nothing is noted yet
                try:
                    os.symlink(target, name, dir_fd=below)
                except OSError:
                    made = False
                    break
                if owner is None:
                    there = os.stat(name, dir_fd=below, follow_symlinks=False)
                    owner = there.st_uid, there.st_gid
                if keep_owner and mine != owner:
                    os.chown(name, *mine, dir_fd=below, follow_symlinks=False)
                if keep_times:
                    os.utime(name, ns=(state.st_atime_ns, state.st_mtime_ns), dir_fd=below, follow_symlinks=False)
                made = False
            except OSError:
                self.works = not made  # in the rest of this slice: what is refused for one is refused for the next
                break
            finally:
                if made:
                    with contextlib.suppress(OSError):
                        changes.remove(name, below)
            done += 1
        return done

    def is_ours_alone(self, directory: int) -> bool:
        """Whether nobody else may write into an open directory. An ACL that lets somebody in shows in its group's bits."""
        state = os.fstat(directory)
        return state.st_uid == os.geteuid() and not state.st_mode & 0o022

    def is_usual(self, state: os.stat_result) -> bool:
        return (
            stat.S_ISLNK(state.st_mode) and not (self.links and state.st_nlink > 1) and EARLIEST <= state.st_mtime_ns <= LATEST
        )

    def unchanged(self, pair: Pair, names: Sequence[str], deadline: float) -> int:
        """How many links, from the first on, are what they were when they were copied. Stops at the deadline."""
        above, below, done = pair.source, pair.destination, 0
        if not self.compares or below == ABSENT:
            return 0
        keep_owner, keep_times, metadata = self.metadata.keep_owner, self.metadata.keep_times, self.metadata
        metadata.beyond = []
        for name in names:
            if done and time.monotonic() >= deadline:
                break
            try:
                state = os.stat(name, dir_fd=above, follow_symlinks=False)
                copy = os.stat(name, dir_fd=below, follow_symlinks=False)
                if (
                    not self.is_usual(state)
                    or not stat.S_ISLNK(copy.st_mode)
                    or (keep_times and state.st_mtime_ns != copy.st_mtime_ns)
                    or (keep_owner and (state.st_uid, state.st_gid) != (copy.st_uid, copy.st_gid))
                    or os.readlink(name, dir_fd=above) != os.readlink(name, dir_fd=below)
                    or (self.xattrs and has_attributes(name, above, below) and metadata.attributes_differ(pair, name, name))
                ):
                    break
                if metadata.beyond:
                    metadata.lose_beyond()
            except OSError:
                break
            done += 1
        return done


def has_attributes(name: str, *directories: int) -> bool:
    """Whether any of the links of a name in open directories has extended attributes."""
    return any(os.listxattr(attr.way_to(directory) + name, follow_symlinks=False) for directory in directories)
