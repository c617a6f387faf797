"""One entry that is not a directory: is it there already, and if not, how is it made.

    copy ─▶ what is it, what is there ─▶ unchanged │ skipped │ make
    make ─▶ contents ─▶ did the source change? ─▶ attributes ─▶ times ─▶ rename, if it replaces something

A file that replaces nothing is written under its own name; its times, set last, say that it is whole. What replaces
something is written under a temporary name and renamed over it, so the old entry is whole until the new one is.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from typing import NamedTuple

from pcopy import filesystem as fs
from pcopy.audit import Auditor, is_changed, version_of
from pcopy.contents import Contents, has_holes
from pcopy.handles import ABSENT, Pair
from pcopy.metadata import NEW, Metadata
from pcopy.options import Overwrite
from pcopy.plain import CLOSED, Plain, abandon
from pcopy.work import Inode, Job, Large, Version

# Bytes from which a file is shared out in spans: smaller costs two renames and messages for nothing, larger keeps the
# other workers waiting for the last file.
LARGE = 32 << 20
TRIES = 3  # copies of a source that changes each time
IN_ITS_PLACE = "a directory that is not empty is in its place: move or remove it"
GRAINS = (1, 100, 1000, 10**6, 10**7, 10**9, 2 * 10**9)  # nanoseconds: what file systems keep of a time


class Fate(enum.Enum):
    """What became of an entry. The values are the names of the counts in a Tally."""

    FILE = "files"
    SYMLINK = "symlinks"
    HARDLINK = "hardlinks"
    SPECIAL = "specials"
    UNCHANGED = "unchanged"
    SKIPPED = "skipped"
    SHARED = ""  # one of several names of an inode: the coordinator decides
    LARGE = " "  # to be shared out in spans


class Result(NamedTuple):
    fate: Fate
    size: int = 0  # bytes
    inode: Inode | None = None
    links: int = 1
    version: Version | None = None
    temporary: str = ""
    holes: bool = False
    updated: bool = False  # unchanged, but for attributes
    cloned: bool = False  # all its blocks are there already


class SourceChanged(Exception):
    """The source is not what it was when its copy began."""


class Copier:
    """What a slice does to entries of directories, with what it learnt on the way."""

    def __init__(self, job: Job) -> None:
        self.options = options = job.options
        self.token = job.token
        self.follow = options.dereference
        self.keep_links = "links" in options.preserve
        self.contents = Contents(options)
        self.metadata = Metadata(options, job.umask)
        self.auditor = Auditor(options, job.stop)
        self.plain = Plain(options, self.contents, self.metadata, LARGE)
        self.grains: dict[int, int] = {}  # st_dev: granularity of times in nanoseconds

    def copy(self, pair: Pair, name: str, target: str, new: bool, first: bool) -> int | Result:
        """Copy one entry. ``new``: a regular file that the destination lacks, says the scan; ``first``: of its inode.

        Returns the bytes of a file that was copied, which is what nearly all come to, or a Result.
        """
        state = fs.look_at(name, pair.source, self.follow)
        if stat.S_ISDIR(state.st_mode):
            raise OSError(errno.EISDIR, "became a directory while it was copied: run the same line again")
        if state.st_nlink > 1 and self.keep_links and not first:
            return shared(state)
        copy = None if pair.destination == ABSENT else fs.look_if_there(target, pair.destination)
        if copy and new and not self.options.whole_files_only:  # the scan did not see it: a killed worker's, or somebody else's
            self.clear(pair, name, target, new)
            copy = fs.look_if_there(target, pair.destination)
        if copy:
            fate = self.fate_of(pair, name, target, state, copy)
            if fate is Fate.UNCHANGED and (result := self.refresh(pair, name, target, state, copy)):
                return result
            if fate is Fate.SKIPPED:
                return Result(fate)
        return self.make(pair, name, target, state, copy, first)

    def clear(self, pair: Pair, name: str, target: str, new: bool) -> None:
        """Take away what a killed worker left of an entry: its temporary name, and its own name if it was ``new``.

        A file that is whole stays: its times say so.
        """
        fs.remove_if_there(fs.temporary_name(self.token, pair.depth, target), pair.destination)
        copy = fs.look_if_there(target, pair.destination) if new else None
        if copy and stat.S_ISREG(copy.st_mode):
            state = fs.look_at(name, pair.source, self.follow)
            if not self.same(pair, name, target, state, copy):
                fs.remove_if_there(target, pair.destination)

    # ---- deciding ----

    def fate_of(self, pair: Pair, name: str, target: str, state: os.stat_result, copy: os.stat_result) -> Fate | None:
        """What to do about an entry that is there: leave it (unchanged, skipped) or replace it (None)."""
        overwrite = self.options.overwrite
        if overwrite is Overwrite.NEVER:
            return Fate.SKIPPED
        if stat.S_IFMT(state.st_mode) != stat.S_IFMT(copy.st_mode):
            return None
        if overwrite is Overwrite.ALWAYS and not os.path.samestat(state, copy):
            return None
        if self.options.checksum and stat.S_ISREG(state.st_mode) and not os.path.samestat(state, copy):
            same = state.st_size == copy.st_size and self.auditor.equal(pair, name, target)
        else:
            same = self.same(pair, name, target, state, copy)
        if same:
            return Fate.UNCHANGED
        if overwrite is Overwrite.OLDER and copy.st_mtime_ns >= state.st_mtime_ns:
            return Fate.SKIPPED
        return None

    def same(self, pair: Pair, name: str, target: str, state: os.stat_result, copy: os.stat_result) -> bool:
        """Whether the contents of two entries of one kind count as equal."""
        if os.path.samestat(state, copy):
            return True
        if stat.S_ISREG(state.st_mode):
            return state.st_size == copy.st_size and self.same_time(pair, state.st_mtime_ns, copy)
        if stat.S_ISLNK(state.st_mode):
            return fs.read_link(name, pair.source) == fs.read_link(target, pair.destination)
        return state.st_rdev == copy.st_rdev

    def same_time(self, pair: Pair, mtime_ns: int, copy: os.stat_result) -> bool:
        """Equal to the granularity that the destination keeps, which is measured when two times nearly agree."""
        if mtime_ns == copy.st_mtime_ns:
            return True
        if abs(mtime_ns - copy.st_mtime_ns) >= GRAINS[-1]:
            return False
        if self.options.dry_run:
            grain = grain_of(copy)
        else:
            if copy.st_dev not in self.grains:
                self.grains[copy.st_dev] = self.measure_grain(pair)
            grain = self.grains[copy.st_dev]
        return mtime_ns // grain * grain == copy.st_mtime_ns

    def measure_grain(self, pair: Pair) -> int:
        """Set a time that no coarse file system can keep, and see what it keeps of it."""
        name = fs.temporary_name(self.token, pair.depth, "time/")
        handle = self.create_temporary(name, pair.destination)
        try:
            wanted = 1_000_000_001_123_456_789
            fs.set_times(handle, wanted, wanted)
            kept = os.fstat(handle).st_mtime_ns
        finally:
            os.close(handle)
            fs.remove_if_there(name, pair.destination)
        return next((grain for grain in GRAINS if wanted // grain * grain == kept), 1)

    def refresh(self, pair: Pair, name: str, target: str, state: os.stat_result, copy: os.stat_result) -> Result | None:
        """Bring the attributes of an unchanged entry up to date. None if it has to be copied anew for that.

        It has to when the copy has other names: they may belong to a snapshot of another day, or to another source file.
        """
        if os.path.samestat(state, copy):
            return Result(Fate.UNCHANGED)
        old = self.options.checksum and self.metadata.keep_times and stat.S_ISREG(state.st_mode)
        old = old and not self.same_time(pair, state.st_mtime_ns, copy)
        if not old and not self.metadata.differs(pair, name, target, state, copy):
            return Result(Fate.UNCHANGED)
        if copy.st_nlink > 1 and not stat.S_ISDIR(copy.st_mode):
            return None
        if not self.options.dry_run:
            written = self.open_to_sync(target, pair.destination, state)
            source = fs.hold(name, pair.source, self.follow)
            try:
                handle = fs.hold(target, pair.destination)
                try:
                    self.metadata.update(fs.held(source), fs.held(handle), state, copy)
                finally:
                    os.close(handle)
            finally:
                os.close(source)
            if written != CLOSED:
                try:
                    fs.sync(written)
                finally:
                    os.close(written)
        return Result(Fate.UNCHANGED, updated=True)

    def open_to_sync(self, name: str, directory: int, state: os.stat_result) -> int:
        """A handle of a regular file, from before its new mode can forbid it; none if there is nothing to sync."""
        if not self.options.fsync or not stat.S_ISREG(state.st_mode):
            return CLOSED
        return fs.open_to_read(name, directory)

    # ---- making ----

    def make(
        self, pair: Pair, name: str, target: str, state: os.stat_result, copy: os.stat_result | None, first: bool
    ) -> int | Result:
        """Make the copy of an entry, in place of ``copy`` if there is one."""
        regular = stat.S_ISREG(state.st_mode)
        directory = copy is not None and stat.S_ISDIR(copy.st_mode)
        if self.options.dry_run:
            if directory:
                self.refuse_full(target, pair.destination)
            return state.st_size if regular else Result(fate_when_made(state.st_mode))
        if directory:
            self.clear_directory(target, pair.destination)
            copy = None
        replace = copy is not None or self.options.whole_files_only
        if regular:
            return self.file(pair, name, target, first, replace)
        place = fs.temporary_name(self.token, pair.depth, target) if replace else target
        if replace:
            fs.remove_if_there(place, pair.destination)
        self.make_other(pair, name, place, state)
        if replace:
            self.put_in_place(place, target, pair.destination)
        return Result(fate_when_made(state.st_mode))

    def make_other(self, pair: Pair, name: str, place: str, state: os.stat_result) -> None:
        """Make a symbolic link, a FIFO, a socket or a device; none of them is ever opened."""
        if stat.S_ISLNK(state.st_mode):
            fs.make_symbolic_link(fs.read_link(name, pair.source), place, pair.destination)
        else:
            fs.make_special(place, pair.destination, state.st_mode, state.st_rdev)
        try:
            source, made = fs.hold(name, pair.source, self.follow), fs.hold(place, pair.destination)
            try:
                self.metadata.dress(fs.held(source), fs.held(made), state, pair)
            finally:
                os.close(source)
                os.close(made)
        except BaseException:
            abandon(CLOSED, place, pair.destination)
            raise

    def clear_directory(self, target: str, parent: int) -> None:
        """An empty directory may give way to something else; one that holds anything may not."""
        try:
            fs.remove_directory(target, parent)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                error.strerror = IN_ITS_PLACE
            raise

    def refuse_full(self, target: str, parent: int) -> None:
        """What :meth:`clear_directory` would say."""
        handle = fs.open_directory(target, parent)
        try:
            if os.listdir(handle):
                raise OSError(errno.ENOTEMPTY, IN_ITS_PLACE)
        finally:
            os.close(handle)

    def put_in_place(self, place: str, target: str, directory: int) -> None:
        try:
            fs.rename(place, target, directory)
        except BaseException:
            abandon(CLOSED, place, directory)
            raise

    def file(self, pair: Pair, name: str, target: str, first: bool, replace: bool = False, tries: int = TRIES) -> int | Result:
        """Copy a regular file, again if the source changed meanwhile."""
        source = fs.open_to_read(name, pair.source, self.follow)
        try:
            state = os.fstat(source)
            if not stat.S_ISREG(state.st_mode):
                raise OSError(errno.ENXIO, "became another kind of entry while it was copied")
            if state.st_nlink > 1 and self.keep_links and not first:
                return shared(state)
            replace = replace or state.st_size > LARGE
            place = fs.temporary_name(self.token, pair.depth, target) if replace else target
            return self.write(source, state, pair, place, target)
        except SourceChanged:
            if tries == 1:
                raise changed() from None
        finally:
            os.close(source)
        return self.file(pair, name, target, first, replace, tries - 1)

    def write(self, source: int, state: os.stat_result, pair: Pair, place: str, target: str) -> int | Result:
        """Make the copy of an open file as ``place``, and give it its name when it is whole. Returns its bytes."""
        handle, closing, cloned, size = CLOSED, False, False, state.st_size
        try:
            create = fs.create if place == target else self.create_temporary
            handle = create(place, pair.destination)
            if size <= LARGE:
                size = self.contents.whole(source, handle, state)
            elif not (cloned := self.contents.try_clone(source, handle)) or self.options.verify:
                return self.begin(handle, place, state, cloned)
            if self.options.verify:  # before its mode may forbid us to read it
                self.auditor.read_back(source, state, place, pair.destination, size)
            if is_changed(state, os.fstat(source)):
                raise SourceChanged
            self.metadata.dress(source, handle, state, pair)
            if self.options.fsync:
                fs.sync(handle)
            written, handle, closing = handle, CLOSED, True  # it is closed even if close reports an error (close(2))
            fs.close_written(written)
            if place != target:
                fs.rename(place, target, pair.destination)
        except BaseException as error:
            if handle != CLOSED or closing or not isinstance(error, OSError):  # else nothing was made
                abandon(handle, place, pair.destination)
            raise
        return size

    def create_temporary(self, name: str, directory: int) -> int:
        try:
            return fs.create(name, directory)
        except FileExistsError:  # ours, of a worker that was killed
            fs.remove(name, directory)
            return fs.create(name, directory)

    # ---- large files ----

    def begin(self, handle: int, place: str, state: os.stat_result, cloned: bool) -> Result:
        """Leave a large file to whoever has time: its length set, its bytes to be copied."""
        fs.set_length(handle, state.st_size)
        fs.set_mode(handle, NEW)  # which the umask may have narrowed: others have to open it
        fs.close_written(handle)
        version = version_of(state)
        return Result(Fate.LARGE, state.st_size, version=version, temporary=place, holes=has_holes(state), cloned=cloned)

    def seal(self, pair: Pair, large: Large) -> None:
        """Give a large file its attributes and its name. Raises SourceChanged if the source is not what it was."""
        source = fs.open_to_read(large.name, pair.source, self.follow)
        try:
            state = os.fstat(source)
            if version_of(state) != large.version:
                raise SourceChanged
            handle = fs.open_to_write(large.temporary, pair.destination)
            try:
                if os.fstat(handle).st_size != large.size:
                    raise OSError(errno.EIO, "the copy has not the length of its source")
                self.metadata.dress(source, handle, state, pair)
                if self.options.fsync:
                    fs.sync(handle)
            except BaseException:
                os.close(handle)
                raise
            fs.close_written(handle)
            fs.rename(large.temporary, large.target, pair.destination)
        finally:
            os.close(source)


def grain_of(copy: os.stat_result) -> int:
    """A guess that writes nothing: the kernel sets the change time, as finely as the file system keeps times."""
    return next(grain for grain in reversed(GRAINS) if copy.st_ctime_ns % grain == copy.st_mtime_ns % grain == 0)


def shared(state: os.stat_result) -> Result:
    return Result(Fate.SHARED, inode=(state.st_dev, state.st_ino), links=state.st_nlink)


def fate_when_made(mode: int) -> Fate:
    return Fate.SYMLINK if stat.S_ISLNK(mode) else Fate.SPECIAL


def changed() -> OSError:
    return OSError(errno.EBUSY, "changed each time it was copied: copy it again when nobody writes to it")
