"""One entry that is not a directory: how its copy is made, if the verdict is that it is not there already.

    copy ─▶ what is it, what is there ─▶ verdict.py ─▶ unchanged │ skipped │ make
    make ─▶ contents ─▶ did the source change? ─▶ attributes ─▶ times ─▶ rename, if it replaces something

A file that replaces nothing is written under its own name; its times, set last, say that it is whole. What replaces
something is written under a temporary name and renamed over it, so the old entry is whole until the new one is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
import time
from collections.abc import Sequence

from pcopy import attributes as attr
from pcopy import changes, runs, storage
from pcopy import filesystem as fs
from pcopy.audit import Auditor, is_changed, version_of
from pcopy.contents import Contents
from pcopy.directory import APPEARED
from pcopy.extents import has_holes, written
from pcopy.halves import Halves
from pcopy.handles import ABSENT, Pair
from pcopy.in_the_way import InTheWay, refuse_loss
from pcopy.metadata import NEW, Metadata
from pcopy.options import Overwrite, When
from pcopy.plain import CLOSED, Plain, abandon
from pcopy.select import leaves_out
from pcopy.symlinks import Symlinks
from pcopy.verdict import Fate, Judge, Result
from pcopy.work import Job, Seen, Temporary

# Bytes from which a file is shared out in spans: smaller costs two renames and messages for nothing, larger keeps the
# other workers waiting for the last file.
LARGE = 32 << 20
CANNOT_LINK = frozenset({errno.EMLINK, errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.ENOSYS})
TRIES = 3  # copies of a source that changes each time
EARLIER = "earlier"  # why a name is a link: an earlier copy has the file
SWAPPED = "somebody put another file in its place: run the same line again"


class SourceChanged(Exception):
    """The source is not what it was when its copy began."""


class Copier:
    """What a slice does to entries of directories, with what it learnt on the way."""

    def __init__(self, job: Job) -> None:
        self.options = options = job.options
        self.trees = (*job.trees, *job.earlier)
        self.token = job.token
        self.follow = options.dereference
        self.keep_links = "links" in options.preserve
        self.contents = Contents(options)
        devices = [(tree, tree.destination_inode[0]) for tree in self.trees if tree.destination_inode]
        unlabelled = {device for tree, device in devices if not tree.labels}
        self.metadata = Metadata(options, job.umask, unlabelled, {device for tree, device in devices if tree.layered})
        self.large = LARGE
        self.auditor = Auditor(options, job.stop)
        self.plain = Plain(options, self.contents, self.metadata, LARGE)
        self.symlinks = Symlinks(options, self.metadata)
        self.judge = Judge(job, self.auditor, self.metadata)
        self.halves = Halves(job, self.judge, self.plain.mask)
        self.user = os.geteuid()
        self.in_the_way = InTheWay(options, of_files=not any(tree.whole for tree in job.trees))
        self.aside = False  # the entry at hand gets its name when it is whole
        self.over = False  # it takes the place of a directory
        self.sharing = False  # the source at hand is an earlier copy
        self.partial: str | None = None  # the temporary name of what a run that was cut left of the entry at hand

    def share_out(self, size: int) -> None:
        """Take files of more bytes than this for large ones, and read none to find out whether it is."""
        self.large = self.plain.large = min(LARGE, size)
        self.plain.guesses = False

    def copy(self, pair: Pair, name: str, target: str, new: bool, first: bool, again: bool = False) -> int | Result:
        """Copy one entry. ``new``: the destination lacks it, says the scan; ``first``: of its inode; ``again``: it was begun.

        Returns the bytes of a file that was copied, which is what nearly all come to, or a Result.
        """
        if again:
            self.halves.clear(pair, {target: name}, new)
        state = fs.look_at(name, pair.source, self.follow)
        if stat.S_ISDIR(state.st_mode):
            raise OSError(errno.EISDIR, "became a directory while it was copied: run the same line again")
        if self.options.limited and leaves_out(self.options, state):
            return Result(Fate.SKIPPED, hidden=True)
        if state.st_nlink > 1 and self.keep_links and not first:
            return shared(state)
        copy = None if pair.destination == ABSENT else fs.look_if_there(target, pair.destination)
        # Something was there, or nobody knows: when this worker is killed, a half file could not be told from that.
        self.aside = self.options.whole_files_only or not new
        appeared = copy and new and self.options.overwrite is not Overwrite.NEVER and not self.options.dry_run
        if copy and appeared and not (again and self.halves.is_begun(pair, name, target, state, copy)):
            raise OSError(errno.EEXIST, APPEARED)
        if not copy:
            return self.make(pair, name, target, state, copy, first)
        fate = self.judge.fate_of(pair, name, target, state, copy)
        if fate is Fate.UNCHANGED and (result := self.refresh(pair, name, target, state, copy)):
            return result
        if fate is Fate.SKIPPED:
            return self.judge.skipped()
        why = self.judge.why(pair, name, target, state, copy, fate) if self.options.tells else ""
        return explained(self.make(pair, name, target, state, copy, first), why)

    def look_for_names(self, pair: Pair, names: Sequence[str], deadline: float) -> list[Seen]:
        """The inodes of regular files, from the first on, as long as they have several names. Stops at the deadline."""
        found: list[Seen] = []
        if not self.keep_links or self.options.limited:
            return found
        look, source, follow, monotonic = os.stat, pair.source, self.follow, time.monotonic
        for name in names:
            if monotonic() >= deadline:
                break
            try:
                state = look(name, dir_fd=source, follow_symlinks=follow)
            except OSError:  # which copy() will meet again
                break
            if state.st_nlink <= 1 or state.st_mode & 0o170000 != 0o100000:  # S_IFREG
                break
            found.append(((state.st_dev, state.st_ino), state.st_nlink, None))
        return found

    def refresh(self, pair: Pair, name: str, target: str, state: os.stat_result, copy: os.stat_result) -> Result | None:
        """Bring the attributes of an unchanged entry up to date. None if it has to be copied anew for that.

        It has to when the copy has other names: they may belong to a snapshot of another day, or to another source file.
        """
        if os.path.samestat(state, copy):
            return Result(Fate.UNCHANGED)
        why = self.judge.lacking(pair, name, target, state, copy)
        if not why:
            self.metadata.lose_beyond()
            return Result(Fate.UNCHANGED)
        several = copy.st_nlink > 1 and not stat.S_ISDIR(copy.st_mode)
        if (several or self.options.dry_run) and why == ["owner"] and self.metadata.is_as_owned_as_can_be(state, copy):
            self.metadata.lose("owner")
            self.metadata.lose_beyond()
            return Result(Fate.UNCHANGED)
        if several:
            return None
        if not self.options.dry_run:
            written = self.open_to_sync(target, pair.destination, state)
            source = fs.hold(name, pair.source, self.follow)
            try:
                handle = fs.hold(target, pair.destination)
                try:
                    if not os.path.samestat(os.fstat(handle), copy):
                        raise OSError(errno.EBUSY, SWAPPED)
                    self.metadata.update(fs.held(source), fs.held(handle), state, copy)
                    after = os.fstat(handle)
                    if why == ["owner"] and (after.st_uid, after.st_gid) == (copy.st_uid, copy.st_gid):  # refused
                        why = []
                finally:
                    fs.close_read(handle)
            finally:
                fs.close_read(source)
            if written != CLOSED:
                try:
                    storage.sync(written)
                finally:
                    os.close(written)
        return Result(Fate.UNCHANGED, updated=bool(why), why=", ".join(why))

    def open_to_sync(self, name: str, directory: int, state: os.stat_result) -> int:
        """A handle of a regular file, from before its new mode can forbid it; none if there is nothing to sync."""
        if not self.options.fsync or not stat.S_ISREG(state.st_mode):
            return CLOSED
        return fs.open_to_read(name, directory)

    # ---- making ----

    def make(
        self, pair: Pair, name: str, target: str, state: os.stat_result, copy: os.stat_result | None, first: bool
    ) -> int | Result:
        """Make the copy of an entry, in place of ``copy``, if any: a directory gives way only to what is made already."""
        regular = stat.S_ISREG(state.st_mode)
        refuse_loss(pair, name, state, copy)
        self.over = copy is not None and stat.S_ISDIR(copy.st_mode)
        if self.over and not self.in_the_way.would_give_way(target, pair.destination) and self.options.dry_run:
            return Result(Fate.BLOCKED)
        if self.options.dry_run:
            links = regular and self.options.reflink is not When.ALWAYS
            if links and self.find_earlier(pair, name, target, state, copy):
                self.metadata.lose_beyond()
                return Result(Fate.HARDLINK, why=EARLIER)
            return state.st_size if regular else Result(fate_when_made(state.st_mode))
        if regular:
            linked = self.link_earlier(pair, name, target, state, copy) if pair.earlier else None
            return self.file(pair, name, target, first, copy is not None) if linked is None else linked
        place = self.place_of(pair, target, copy is not None or self.aside)
        self.make_other(pair, name, place, state)
        placed = self.in_the_way.put_in_place(place, target, pair.destination, copy is not None, self.over)
        return Result(fate_when_made(state.st_mode) if placed else Fate.BLOCKED)

    def place_of(self, pair: Pair, target: str, aside: bool) -> str:
        """The name under which something other than a copied file is made, maybe ``aside``."""
        if not aside:
            return target
        place = runs.temporary_name(self.token, pair.depth, target)
        changes.remove_if_there(place, pair.destination)  # ours, of a worker that was killed
        return place

    def make_other(self, pair: Pair, name: str, place: str, state: os.stat_result) -> None:
        """Make a symbolic link, a FIFO, a socket or a device; none of them is ever opened."""
        if stat.S_ISLNK(state.st_mode):
            changes.make_symbolic_link(fs.read_link(name, pair.source), place, pair.destination)
        else:
            changes.make_special(place, pair.destination, state.st_mode, state.st_rdev)
        try:
            source, made = fs.hold(name, pair.source, self.follow), fs.hold(place, pair.destination)
            try:
                self.refuse_another(os.fstat(made), state)
                self.metadata.dress(fs.held(source), fs.held(made), state, pair)
            finally:
                fs.close_read(source)
                fs.close_read(made)
        except BaseException:
            abandon(CLOSED, place, pair.destination)
            raise

    @staticmethod
    def refuse_another(made: os.stat_result, state: os.stat_result) -> None:
        """Whoever may write into the directory could have put a file of somebody else in the place of what was just made."""
        if stat.S_IFMT(made.st_mode) != stat.S_IFMT(state.st_mode) or made.st_nlink != 1:
            raise OSError(errno.EBUSY, SWAPPED)

    def find_earlier(
        self, pair: Pair, name: str, target: str, state: os.stat_result, there: os.stat_result | None
    ) -> Pair | None:
        """The first earlier copy in which a file is what it is now, attributes and all. ``there``: what it is to replace.

        That is none: to rename one of two names of an inode to the other leaves both (rename(2)).
        """
        if self.options.overwrite is Overwrite.ALWAYS:
            return None
        for one in pair.earlier:
            copy = fs.look_if_there(target, one.destination)
            if there and copy and os.path.samestat(there, copy):
                continue
            if copy and stat.S_ISREG(copy.st_mode) and state.st_size == copy.st_size:
                owner = not self.metadata.is_as_owned_as_can_be(state, copy)
                if (
                    self.judge.same_time(pair, state.st_mtime_ns, copy)
                    and not any(self.metadata.differences(one, name, target, state, copy, owner=owner))
                    and self.judge.is_whole(one, name, target, state.st_size)
                    and not (self.options.checksum and not self.auditor.equal(one, name, target))
                ):
                    return one
        return None

    def link_earlier(
        self, pair: Pair, name: str, target: str, state: os.stat_result, there: os.stat_result | None
    ) -> int | Result | None:
        """Make a file a hard link to its earlier copy, or share blocks with that. None if there is none, or it cannot be."""
        one, replaces = self.find_earlier(pair, name, target, state, there), there is not None
        if one is None:
            return None
        if self.options.reflink is When.ALWAYS:
            self.sharing = True
            try:
                shared = dataclasses.replace(one, source=one.destination, destination=pair.destination)
                result = self.file(shared, target, target, True, replaces)
                self.metadata.lose_beyond()
                return result
            finally:
                self.sharing = False
        place = self.place_of(pair, target, replaces)
        try:
            changes.make_hard_link(target, one.destination, place, pair.destination)
        except OSError as error:
            if error.errno not in CANNOT_LINK:
                raise
            self.metadata.lose("links to earlier copies")
            return None
        placed = self.in_the_way.put_in_place(place, target, pair.destination, replaces, self.over)
        if placed:
            self.metadata.lose_beyond()
        return Result(Fate.HARDLINK, why=EARLIER) if placed else Result(Fate.BLOCKED)

    def file(self, pair: Pair, name: str, target: str, first: bool, replaces: bool, tries: int = TRIES) -> int | Result:
        """Copy a regular file, in place of something if it ``replaces`` it; again if the source changed meanwhile."""
        source = fs.open_to_read(name, pair.source, self.follow)
        try:
            state = self.auditor.at_rest(source)
            if state is None:
                raise SourceChanged
            if not stat.S_ISREG(state.st_mode):
                raise OSError(errno.ENXIO, "became another kind of entry while it was copied")
            if state.st_nlink > 1 and self.keep_links and not first:
                return shared(state)
            large = state.st_size > self.large
            version = version_of(state).text if large else ""
            aside = large or replaces or self.aside
            place = runs.temporary_name(self.token, pair.depth, target, version) if aside else target
            return self.write(source, state, pair, place, target, replaces)
        except SourceChanged:
            if tries == 1:
                raise changed() from None
        finally:
            fs.close_read(source)
        return self.file(pair, name, target, first, replaces, tries - 1)

    def write(self, source: int, state: os.stat_result, pair: Pair, place: str, target: str, replaces: bool) -> int | Result:
        """Make the copy of an open file as ``place``, and give it its name when it is whole. Returns its bytes."""
        handle, closing, size = CLOSED, False, state.st_size
        try:
            if size > self.large:
                handle, there = self.open_large(place, pair, state)
            else:
                handle = (changes.create if place == target else runs.create_temporary)(place, pair.destination)
            if size <= self.large:
                size = self.contents.whole(source, handle, state)
            elif not self.contents.try_clone(source, handle):
                return self.begin(handle, place, state, replaces, there)
            elif self.options.verify and not self.sharing:
                return self.begin(handle, place, state, replaces, ((0, size),))
            if self.options.verify:  # before its mode may forbid us to read it, as an ACL or the umask may already
                if self.user and stat.S_IMODE(os.fstat(handle).st_mode) != NEW:
                    attr.set_mode(handle, NEW)
                self.auditor.read_back(source, state, place, pair.destination, size)
            if is_changed(state, os.fstat(source)):
                raise SourceChanged
            self.metadata.dress(source, handle, state, pair)
            if self.options.fsync:
                storage.sync(handle)
            written, handle, closing = handle, CLOSED, True  # it is closed even if close reports an error (close(2))
            fs.close_written(written)
            if not self.in_the_way.put_in_place(place, target, pair.destination, replaces, self.over):
                return Result(Fate.BLOCKED)
        except BaseException as error:
            if handle != CLOSED or closing or not isinstance(error, OSError):  # else nothing was made
                abandon(handle, place, pair.destination)
            raise
        return size

    # ---- large files ----

    def open_large(self, place: str, pair: Pair, source: os.stat_result) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Go on with what a run that was cut left of a large file, or begin it anew. Returns what is there of it already.

        Only if the name says that the source is the same, and nobody could have made the file, or given another its name, but
        us and the source's owner; only where holes tell what was not written; and not where contents alone are believed.
        """
        directory, tree = pair.destination, self.trees[pair.tree]
        place_of = os.fstat(directory)
        exact = tree.exact and tree.destination_inode and place_of.st_dev == tree.destination_inode[0]  # no mount below it
        if not exact or place_of.st_uid not in (0, self.user, source.st_uid) or stat.S_IMODE(place_of.st_mode) & 0o022:
            return runs.create_temporary(place, directory), ()
        if self.partial and not self.options.checksum and runs.same_version(self.partial, place):
            with contextlib.suppress(OSError):
                changes.rename(self.partial, place, directory)
        with contextlib.suppress(OSError):
            handle = changes.open_to_write(place, directory)
            storage.forget(handle, 0, 0)  # else what was read of what was not written counts as data
            state = os.fstat(handle)
            mine = stat.S_ISREG(state.st_mode) and state.st_uid == self.user and stat.S_IMODE(state.st_mode) == NEW
            if mine and state.st_nlink == 1 and state.st_size == source.st_size and (there := written(handle, state.st_size)):
                return handle, tuple(there)
            fs.close_read(handle)
        return runs.create_temporary(place, directory), ()

    def begin(
        self, handle: int, place: str, state: os.stat_result, replaces: bool, there: tuple[tuple[int, int], ...]
    ) -> Result:
        """Leave a large file to whoever has time: its length set, its bytes to be copied but for those that are there."""
        storage.set_length(handle, state.st_size)
        made = os.fstat(handle)
        if stat.S_IMODE(made.st_mode) != NEW:  # the umask has narrowed it: others have to open it
            attr.set_mode(handle, NEW)
        temporary = Temporary(place, (made.st_dev, made.st_ino), (made.st_uid, state.st_uid), replaces)
        fs.close_written(handle)
        version = version_of(state)
        return Result(Fate.LARGE, state.st_size, version=version, temporary=temporary, holes=has_holes(state), there=there)


def explained(made: int | Result, why: str) -> int | Result:
    """What was made, with a reason if there is one to tell."""
    if not why:
        return made
    return made._replace(why=why) if isinstance(made, Result) else Result(Fate.FILE, made, why=why)


def shared(state: os.stat_result) -> Result:
    return Result(Fate.SHARED, inode=(state.st_dev, state.st_ino), links=state.st_nlink)


def fate_when_made(mode: int) -> Fate:
    return Fate.SYMLINK if stat.S_ISLNK(mode) else Fate.SPECIAL


def changed() -> OSError:
    return OSError(errno.EBUSY, "changed each time it was copied: copy it again when nobody writes to it")
