"""The plain file, in one function: what nearly all of a tree's entries are, so every call of Python's counts here.

    copy        a new file
    link        a new file that an earlier copy has (--link-dest)
    unchanged   a file that was copied by an earlier run

With its steps spread over functions as in entry.py, a copy of 50,000 files of 8 KB on tmpfs took a tenth longer. The order
is the same: contents, has the source changed, attributes, times. Whatever is not plain, or goes wrong, is undone and left
to entry.py, which knows what to do about it and what to call it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Sequence

from pcopy import attributes as attr
from pcopy import changes, storage
from pcopy import filesystem as fs
from pcopy.contents import Contents
from pcopy.extents import has_hole
from pcopy.handles import Pair
from pcopy.metadata import EARLIEST, LATEST, SHORTLY, SPECIAL_BITS, Metadata
from pcopy.options import Options, Overwrite, When
from pcopy.work import Seen, Tree

CLOSED = -1
# Bytes copied before a file's length is looked at: more would cost more where it is found to be a large file after all,
# less one call more for files of medium size.
FIRST = 1 << 20
# Nanoseconds: hardly a call that writes so few bytes takes longer. Whether one is under way in files that were last changed
# before that is not asked: it would cost a twentieth of their copying.
REST = 60 * 10**9
# Handles that are closed by one call, where each close is a request to wait for: the interpreter, which would run between
# two of them, has lost its caches by then.
TOGETHER = 16
CREATE, SEEK_DATA = changes.CREATE, fs.SEEK_DATA


class Plain:
    """Copies new regular files with one name, no holes and no more bytes than fit into one step; compares and links such."""

    def __init__(self, options: Options, contents: Contents, metadata: Metadata, large: int) -> None:
        self.contents, self.metadata, self.large = contents, metadata, large
        self.read = fs.READ | fs.NOATIME | (0 if options.dereference else fs.NOFOLLOW)
        self.mask = 0o7777 if "mode" in options.preserve else 0o777 & ~metadata.umask
        self.links = "links" in options.preserve
        self.xattrs, self.times = "xattr" in options.preserve and attr.XATTRS, "times" in options.preserve
        self.follow, self.tells = options.dereference, options.tells
        self.quick, self.waits, self.guesses = False, False, True
        self.compares = options.overwrite in (Overwrite.CHANGED, Overwrite.OLDER) and not (options.limited or options.checksum)
        self.works = (
            not options.dry_run
            and not options.whole_files_only
            and not options.fsync
            and not options.limited
            and not options.verify
            and options.reflink is not When.ALWAYS
            and options.sparse is not When.ALWAYS
        )
        self.links_earlier = (
            self.works and options.overwrite is Overwrite.CHANGED and not options.checksum and not options.dereference
        )

    def copy(
        self, pair: Pair, names: Sequence[str], deadline: float, tree: Tree, elsewhere: bool, first: bool = False
    ) -> list[int]:
        """Copy files until one is not plain, or until the deadline. Returns the bytes of those that were copied.

        To see whether a source changed while it was read takes two looks at it, before and after. One will do, after, if
        its change time is older than the copying, by this machine's clock, and reading left the access time alone. That the
        next file is like the last one, and younger than REST only if that one was, is a guess: where it is wrong, entry.py
        does the file again. ``elsewhere``: another machine or process keeps the source, and nobody can wait for a write under
        way; each call is a request, so the contents of the next file come during those for the one at hand. ``first``: of their
        inodes.
        """
        sizes: list[int] = []
        contents, links, xattrs, mask, times = self.contents, self.links and not first, self.xattrs, self.mask, self.times
        above, below, top, read, large = pair.source, pair.destination, tree.source_inode[0], self.read, self.large
        open_, fstat, lseek, close, time_ns = os.open, os.fstat, os.lseek, os.close, time.time_ns
        chmod, utime, listxattr = os.fchmod, os.utime, os.listxattr if xattrs else no_attributes
        (user, group), inherits, quick = pair.owner or (None, None), pair.inherits, self.quick
        waits = self.waits if quick else not elsewhere
        begin = os.copy_file_range if contents.ranges else contents.first
        left = min(deadline - time.monotonic(), 1e9)
        moment = now = time_ns()  # one clock for both: the deadline, and whether it was set back
        late = now + int(left * 1e9)
        at_rest = now - REST if tree.one_clock else 0
        settled = now - SHORTLY if tree.one_clock and not elsewhere else at_rest
        opened: list[int] = []
        coming: tuple[int, os.stat_result] | None = None
        handle, made = CLOSED, False
        try:
            for name in names:
                if moment >= late and sizes:
                    break
                try:
                    if elsewhere:
                        source, before = coming or self.open_and_fetch(name, above)
                        coming = None
                    else:
                        source = open_(name, read, dir_fd=above)
                except Exception as error:
                    if isinstance(error, PermissionError) and error.errno == errno.EPERM:  # not ours to read without a trace
                        self.read, self.quick = self.read & ~fs.NOATIME, False
                    break
                try:
                    if not quick:
                        if not elsewhere:
                            before = fstat(source)
                        if not self.is_plain(before, links) or before.st_ctime_ns >= time_ns() - SHORTLY:
                            break
                    if waits:
                        try:
                            if lseek(source, 0, SEEK_DATA):  # waits, see fs.wait_for_writes
                                break
                        except OSError:  # nothing but a hole, or nobody can tell
                            pass
                    if elsewhere:
                        done = len(sizes)
                        if done and done + 1 < len(names) and moment + 2 * (moment - now) // done < late:  # its turn will come
                            try:  # noqa: SIM105 - as below
                                coming = self.open_and_fetch(names[done + 1], above)
                            except OSError:  # it will be met again
                                pass
                    made = True  # before it is: a signal can end this slice when open has returned and nothing is noted yet
                    try:
                        handle = open_(name, CREATE, 0o600, dir_fd=below)
                    except OSError:
                        made = False
                        break
                    try:
                        copied = begin(source, handle, FIRST)
                    except OSError as error:
                        contents.refused(error, ranges=True)
                        begin, copied = contents.first, 0
                    state = fstat(source)
                    mode, _, device, nlink, uid, gid, size, _, _, _ = state
                    modified = state.st_mtime_ns
                    if quick:
                        if (
                            state.st_ctime_ns >= (settled if waits else at_rest)
                            or mode & 0o170000 != 0o100000  # S_IFREG; is_plain, but a call less
                            or (nlink > 1 and links)
                            or size > large
                            or not EARLIEST <= modified <= LATEST
                            or state.st_blocks * 512 < size
                            or device != top
                        ):
                            self.quick = False
                            break
                        before = state
                    if copied != size or not size:
                        if copied <= size:
                            copied += contents.stream(source, handle, (size or FIRST) - copied)
                            state = fstat(source)
                        if copied != size:
                            break
                    if before is not state and (
                        state.st_mtime_ns != before.st_mtime_ns
                        or state.st_ctime_ns != before.st_ctime_ns
                        or state.st_size != before.st_size
                    ):
                        break
                    try:
                        attributes = listxattr(source)
                    except OSError:
                        attributes = attr.attributes_of(source)  # none, if there is no such thing
                    if user is None:
                        self.metadata.learn(handle, pair)
                        (user, group), inherits = pair.owner or (None, None), pair.inherits
                    if attributes or inherits or uid != user or gid != group:
                        self.metadata.dress(source, handle, before, pair)
                    else:
                        chmod(handle, mode & mask)
                        if times:
                            utime(handle, ns=(before.st_atime_ns, modified))
                    written, handle = handle, CLOSED  # it is closed even if close reports an error (close(2))
                    close(written)
                    moment = time_ns()
                    if moment < now:  # the clock was set back
                        moment = late
                        if quick:
                            self.quick = False
                            break
                    made = False
                    if not quick and self.guesses and read & fs.NOATIME:
                        self.quick = quick = before.st_ctime_ns < settled and device == top
                        if quick:
                            self.waits = waits = before.st_ctime_ns >= at_rest
                except Exception:
                    self.works = not made  # in the rest of this slice: what is refused for one file is refused for the next
                    break
                finally:
                    if made:
                        abandon(handle, name, below)
                    if elsewhere:
                        opened.append(source)
                        if len(opened) == TOGETHER:
                            fs.close_all_read(opened)
                    else:
                        try:  # noqa: SIM105 - suppress() takes longer than the call
                            close(source)
                        except OSError:  # of what was only read, it says nothing
                            pass
                sizes.append(size)
        finally:
            if coming:
                opened.append(coming[0])
            if opened:
                fs.close_all_read(opened)
        return sizes

    def open_and_fetch(self, name: str, directory: int) -> tuple[int, os.stat_result]:
        """Open a file that somebody else keeps, take the first look at it, and only then have its contents fetched.

        They come while other requests are under way. Were they older than the look, nobody would notice a change in between.
        """
        source = os.open(name, self.read, dir_fd=directory)
        try:
            state = os.fstat(source)
            storage.begin_to_read(source, FIRST)
        except BaseException:
            fs.close_read(source)
            raise
        return source, state

    def is_plain(self, state: os.stat_result, links: bool) -> bool:
        """Whether a file is regular, has no holes, no more bytes than fit into one step, and a usual time; with ``links``,
        one name, too.
        """
        return (
            state.st_mode & 0o170000 == 0o100000  # S_IFREG
            and not (links and state.st_nlink > 1)
            and state.st_size <= self.large
            and EARLIEST <= state.st_mtime_ns <= LATEST
            and state.st_blocks * 512 >= state.st_size
        )

    def link(self, pair: Pair, names: Sequence[str], deadline: float, tree: Tree, first: bool) -> int:
        """Make hard links to an earlier copy of files that are what they were then. Returns how many there were."""
        done, above, beside = 0, pair.source, pair.earlier[0]
        links, xattrs, on_disk, earlier = self.links and not first, self.xattrs, tree.on_disk, beside.destination
        stat, monotonic, differ, metadata = os.stat, time.monotonic, self.metadata.attributes_differ, self.metadata
        metadata.beyond = []
        for name in names:
            if done and monotonic() >= deadline:
                break
            try:
                state, copy = stat(name, dir_fd=above, follow_symlinks=False), stat(name, dir_fd=earlier, follow_symlinks=False)
                if (
                    state.st_mtime_ns != copy.st_mtime_ns
                    or state.st_size != copy.st_size
                    or state.st_mode != copy.st_mode
                    or state.st_mode & 0o170000 != 0o100000  # S_IFREG
                    or (
                        (state.st_uid != copy.st_uid or state.st_gid != copy.st_gid)
                        and (state.st_mode & SPECIAL_BITS or not metadata.is_as_owned_as_can_be(state, copy))
                    )
                    or (links and state.st_nlink > 1)
                    or (xattrs and differ(beside, name, name))
                    or (on_disk and state.st_size and has_hole(name, earlier, state.st_size))
                ):
                    break
                os.link(name, name, src_dir_fd=earlier, dst_dir_fd=pair.destination, follow_symlinks=False)
                if metadata.beyond:
                    metadata.lose_beyond()
            except OSError:
                break
            done += 1
        return done

    def unchanged(
        self,
        pair: Pair,
        names: Sequence[str],
        deadline: float,
        tree: Tree,
        first: bool = False,
        seen: list[Seen] | None = None,
    ) -> int:
        """How many files, from the first on, are what they were when they were copied. Stops at the deadline.

        Extended attributes are compared, but for a source that has none and was last changed before its copy, by one clock:
        then its copy has none either. What has some may have been copied by a tool that leaves them out, what was changed
        shortly before may have been changed while it was copied, and each further name changes the time of a copy.
        ``first``: of their inodes. Owners that our copies cannot get are counted as lost. ``seen`` gets what is found of files
        that have several names; it stops at one that has not, or another owner than its source.
        """
        done, foreign, above, below = 0, 0, pair.source, pair.destination
        first = first or seen is not None
        links, xattrs, follow, on_disk = self.links and not first, self.xattrs, self.follow, tree.on_disk
        device, other = tree.source_inode[0], tree.destination_inode[0] if tree.one_clock and tree.destination_inode else None
        tells, keep_owner = self.tells, self.metadata.keep_owner
        stat, monotonic, differ, metadata = os.stat, time.monotonic, self.metadata.attributes_differ, self.metadata
        metadata.beyond = []
        try:
            near = attr.way_to(above) if xattrs else ""
        except OSError:
            return 0
        for name in names:
            if done and monotonic() >= deadline:
                break
            try:
                state, copy = stat(name, dir_fd=above, follow_symlinks=follow), stat(name, dir_fd=below, follow_symlinks=False)
                mode, _, here, nlink, uid, gid, size, _, _, _ = state
                mode_there, _, there, nlink_there, uid_there, gid_there, size_there, _, _, _ = copy
                strange = uid != uid_there or gid != gid_there
                if (
                    state.st_mtime_ns != copy.st_mtime_ns
                    or size != size_there
                    or mode != mode_there
                    or mode & 0o170000 != 0o100000  # S_IFREG
                    or (links and nlink > 1)
                    or (
                        xattrs
                        and (
                            first
                            or strange
                            or nlink_there > 1
                            or state.st_ctime_ns + SHORTLY >= copy.st_ctime_ns
                            or here != device
                            or there != other
                            or os.listxattr(near + name, follow_symlinks=follow)
                        )
                        and differ(pair, name, name)
                    )
                    or (on_disk and size and has_hole(name, below, size))
                    or (seen is not None and (nlink <= 1 or strange or metadata.beyond))  # which counts once for an inode
                ):
                    break
                if seen is not None:
                    seen.append(((here, state.st_ino), nlink, (there, copy.st_ino)))
                elif strange:
                    if (tells and keep_owner) or not self.metadata.leaves_owner(state, copy):
                        break
                    foreign += 1
                if metadata.beyond:
                    metadata.lose_beyond()
            except OSError:
                break
            done += 1
        if foreign and keep_owner:
            self.metadata.lose("owner", foreign)
        return done


def no_attributes(handle: int) -> list[str]:
    return []


def abandon(handle: int, place: str, directory: int) -> None:
    """Leave nothing of a file that failed."""
    if handle != CLOSED:
        with contextlib.suppress(OSError):
            os.close(handle)
    with contextlib.suppress(OSError):
        changes.remove(place, directory)
