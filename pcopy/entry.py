"""One entry that is not a directory: is it there already, and if not, how is it made.

    copy ─▶ what is it, what is there ─▶ unchanged │ skipped │ make
    make ─▶ contents ─▶ did the source change? ─▶ attributes ─▶ times ─▶ rename, if it replaces something

A file that replaces nothing is written under its own name; its times, set last, say that it is whole. What replaces
something is written under a temporary name and renamed over it, so the old entry is whole until the new one is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import os
import stat
from collections.abc import Mapping
from typing import NamedTuple

from pcopy import filesystem as fs
from pcopy import runs
from pcopy.audit import Auditor, is_changed, open_source, version_of
from pcopy.contents import Contents, has_holes, lacks_data, written
from pcopy.directory import APPEARED
from pcopy.handles import ABSENT, Pair
from pcopy.metadata import COARSEST, EARLIEST, GRAINS, LATEST, NEW, Metadata, grain_of
from pcopy.options import Overwrite, When
from pcopy.plain import CLOSED, Plain, abandon
from pcopy.select import leaves_out
from pcopy.work import Inode, Job, Large, Temporary, Version

# Bytes from which a file is shared out in spans: smaller costs two renames and messages for nothing, larger keeps the
# other workers waiting for the last file.
LARGE = 32 << 20
CANNOT_LINK = frozenset({errno.EMLINK, errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.ENOSYS})
TRIES = 3  # copies of a source that changes each time
IN_ITS_PLACE = "a directory that is not empty is in its place: move or remove it, or give delete"
FOLLOWED = "a directory that is not empty is in its place, and a link may lead into it: move or remove it"
EARLIER = "earlier"  # why a name is a link: an earlier copy has the file
SWAPPED = "somebody put another file in its place: run the same line again"
FAR = 2**40 * 10**9  # nanoseconds: beyond the times that a file system with limits keeps


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
    BLOCKED = "  "  # a directory is in its place that has to be removed first


class Result(NamedTuple):
    fate: Fate
    size: int = 0  # bytes
    inode: Inode | None = None
    links: int = 1
    version: Version | None = None
    temporary: Temporary | None = None
    holes: bool = False
    updated: bool = False  # unchanged, but for attributes
    hidden: bool = False  # skipped, by a filter
    why: str = ""
    there: tuple[tuple[int, int], ...] = ()  # of a large file, what need not be copied any more, from byte to byte


class SourceChanged(Exception):
    """The source is not what it was when its copy began."""


class Blocked(Exception):
    """A directory that is not empty is in the place of what is made."""


class Copier:
    """What a slice does to entries of directories, with what it learnt on the way."""

    def __init__(self, job: Job) -> None:
        self.options = options = job.options
        self.trees = (*job.trees, *job.earlier)
        self.token = job.token
        self.follow = options.dereference
        self.keep_links = "links" in options.preserve
        self.contents = Contents(options)
        self.metadata = Metadata(options, job.umask)
        self.large = LARGE
        self.auditor = Auditor(options, job.stop)
        self.plain = Plain(options, self.contents, self.metadata, LARGE)
        self.user = os.geteuid()
        self.aside = False  # the entry at hand gets its name when it is whole
        self.over = False  # it takes the place of a directory
        self.sharing = False  # the source at hand is an earlier copy
        self.partial: str | None = None  # the temporary name of what a run that was cut left of the entry at hand
        self.grains: dict[int, int] = {}  # st_dev: granularity of times in nanoseconds
        self.ranges: dict[int, tuple[int, int]] = {}  # st_dev: the first time that is kept and the last, likewise

    def share_out(self, size: int) -> None:
        """Take files of more bytes than this for large ones, and read none to find out whether it is."""
        self.large = self.plain.large = min(LARGE, size)
        self.plain.guesses = False

    def copy(self, pair: Pair, name: str, target: str, new: bool, first: bool, again: bool = False) -> int | Result:
        """Copy one entry. ``new``: the destination lacks it, says the scan; ``first``: of its inode; ``again``: it was begun.

        Returns the bytes of a file that was copied, which is what nearly all come to, or a Result.
        """
        if again:
            self.clear(pair, {target: name}, new)
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
        appeared = copy and new and self.options.overwrite is not Overwrite.NEVER
        if copy and appeared and not (again and self.is_begun(pair, name, target, state, copy)):
            raise OSError(errno.EEXIST, APPEARED)
        if not copy:
            return self.make(pair, name, target, state, copy, first)
        fate = self.fate_of(pair, name, target, state, copy)
        if fate is Fate.UNCHANGED and (result := self.refresh(pair, name, target, state, copy)):
            return result
        if fate is Fate.SKIPPED:
            return self.skipped()
        why = self.why(pair, name, target, state, copy, fate) if self.options.tells else ""
        return explained(self.make(pair, name, target, state, copy, first), why)

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
                fs.remove_aside(place, pair.destination)
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
        if not (state and stat.S_ISREG(state.st_mode) and self.same(pair, name, target, state, copy)):
            fs.remove_if_there(target, pair.destination)

    def is_begun(self, pair: Pair, name: str, target: str, state: os.stat_result, copy: os.stat_result) -> bool:
        """Whether a killed worker had made an entry where nothing was: what is not whole was cleared, all else is another's."""
        same_kind = stat.S_IFMT(state.st_mode) == stat.S_IFMT(copy.st_mode)
        return same_kind and pair.spells(target) and self.same(pair, name, target, state, copy)

    def may_be_half(self, target: str, directory: int, state: os.stat_result | None = None) -> bool:
        """Whether a file has the mode, owner and name alone that one has which was begun. ``state``: of its source, if any."""
        copy = fs.look_if_there(target, directory)
        if copy is None or not stat.S_ISREG(copy.st_mode) or copy.st_nlink > 1:
            return False
        mode = stat.S_IMODE(copy.st_mode)
        as_made = not mode & ~NEW  # the umask may have narrowed it
        if state is None:
            return as_made and self.user in (0, copy.st_uid)
        wanted = state.st_mode & self.plain.mask  # the owner comes first, then what an ACL makes of the mode, then the mode
        return copy.st_uid in (self.user, state.st_uid) and (as_made or mode in (wanted, wanted & 0o777))

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
            lost = stat.S_ISREG(state.st_mode) and (copy.st_size, copy.st_mtime_ns) == (state.st_size, state.st_mtime_ns)
            return None if lost else Fate.SKIPPED  # of the same age, and its contents did not reach the disk
        return None

    def skipped(self) -> Result:
        return Result(Fate.SKIPPED, why="is there" if self.options.overwrite is Overwrite.NEVER else "is not older")

    def why(self, pair: Pair, name: str, target: str, state: os.stat_result, copy: os.stat_result, fate: Fate | None) -> str:
        """In a word, why an entry that is there is replaced. Looks at nothing that deciding has not looked at."""
        regular = stat.S_ISREG(state.st_mode)
        if stat.S_IFMT(state.st_mode) != stat.S_IFMT(copy.st_mode):
            return "kind"
        if fate is Fate.UNCHANGED:  # and yet to be replaced, see refresh
            return ", ".join(self.metadata.differences(pair, name, target, state, copy))
        if regular and state.st_size != copy.st_size:
            return "size"
        if regular and not self.same_time(pair, state.st_mtime_ns, copy):
            return "time"
        if self.options.overwrite is Overwrite.ALWAYS and self.same(pair, name, target, state, copy):
            return "always"
        return "contents"

    def same(self, pair: Pair, name: str, target: str, state: os.stat_result, copy: os.stat_result) -> bool:
        """Whether the contents of two entries of one kind count as equal."""
        if os.path.samestat(state, copy):
            return True
        if stat.S_ISREG(state.st_mode):
            if state.st_size != copy.st_size or not self.same_time(pair, state.st_mtime_ns, copy):
                return False
            return self.is_whole(pair, name, target, state.st_size)
        if stat.S_ISLNK(state.st_mode):
            return fs.read_link(name, pair.source) == fs.read_link(target, pair.destination)
        return state.st_rdev == copy.st_rdev

    def is_whole(self, pair: Pair, name: str, target: str, size: int) -> bool:
        """Whether a copy of the right length and time has its contents, as far as its holes tell: a power cut can take them."""
        if not size or not self.trees[max(pair.tree, ~pair.tree)].on_disk:
            return True
        try:
            if not fs.has_hole(target, pair.destination, size):
                return True
        except PermissionError:  # its mode is that of the source: to read it takes more rights than to read that
            return True
        source = fs.open_to_read(name, pair.source, self.follow)
        try:
            copy = fs.open_to_read(target, pair.destination)
            try:
                return not lacks_data(source, copy, size)
            finally:
                fs.close_read(copy)
        finally:
            fs.close_read(source)

    def same_time(self, pair: Pair, mtime_ns: int, copy: os.stat_result) -> bool:
        """Equal as far as the destination keeps times: its granularity is measured when two nearly agree, its range when one
        is beyond what every file system keeps.
        """
        if mtime_ns == copy.st_mtime_ns:
            return True
        if not EARLIEST <= mtime_ns <= LATEST:
            first, last = self.range_at(pair, copy)
            mtime_ns = min(max(mtime_ns, first), last)
        if abs(mtime_ns - copy.st_mtime_ns) >= COARSEST:
            return False
        if self.options.dry_run:
            grain = grain_of(copy)
        else:
            if copy.st_dev not in self.grains:
                self.grains[copy.st_dev] = self.measure_grain(pair)
            grain = self.grains[copy.st_dev]
        return mtime_ns // grain * grain == copy.st_mtime_ns

    def range_at(self, pair: Pair, copy: os.stat_result) -> tuple[int, int]:
        """The first and the last time that a file system keeps. In a dry run a guess: the copy's may be one of them."""
        if self.options.dry_run:
            return min(copy.st_mtime_ns, EARLIEST), max(copy.st_mtime_ns, LATEST)
        if copy.st_dev not in self.ranges:
            self.ranges[copy.st_dev] = (self.kept(pair, -FAR), self.kept(pair, FAR))
        return self.ranges[copy.st_dev]

    def measure_grain(self, pair: Pair) -> int:
        """Set a time that no coarse file system can keep, and see what it keeps of it."""
        wanted = 1_000_000_001_123_456_789
        kept = self.kept(pair, wanted)
        return next((grain for grain in GRAINS if wanted // grain * grain == kept), 1)

    def kept(self, pair: Pair, wanted: int) -> int:
        """What the destination keeps of a time. A worker that is killed here leaves nothing, if files can be without a name."""
        name = runs.temporary_name(self.token, pair.depth, f"time/{os.getpid()}")  # several workers may ask at once
        try:
            handle = fs.create_unnamed(pair.destination)
        except OSError:
            handle = self.create_temporary(name, pair.destination)
        try:
            with contextlib.suppress(OSError):  # refused: it keeps the time of its making, which is no other's
                fs.set_times(handle, wanted, wanted)
            return os.fstat(handle).st_mtime_ns
        finally:
            fs.close_read(handle)
            fs.remove_if_there(name, pair.destination)

    def refresh(self, pair: Pair, name: str, target: str, state: os.stat_result, copy: os.stat_result) -> Result | None:
        """Bring the attributes of an unchanged entry up to date. None if it has to be copied anew for that.

        It has to when the copy has other names: they may belong to a snapshot of another day, or to another source file.
        """
        if os.path.samestat(state, copy):
            return Result(Fate.UNCHANGED)
        why = list(self.metadata.differences(pair, name, target, state, copy))
        if self.options.checksum and self.metadata.keep_times and stat.S_ISREG(state.st_mode):
            why += [] if self.same_time(pair, state.st_mtime_ns, copy) else ["times"]
        if not why:
            return Result(Fate.UNCHANGED)
        if copy.st_nlink > 1 and not stat.S_ISDIR(copy.st_mode):
            if why != ["owner"] or not self.is_as_owned_as_can_be(state, copy):
                return None
            self.metadata.lose("owner")
            return Result(Fate.UNCHANGED)
        if not self.options.dry_run:
            written = self.open_to_sync(target, pair.destination, state)
            source = fs.hold(name, pair.source, self.follow)
            try:
                handle = fs.hold(target, pair.destination)
                try:
                    if not os.path.samestat(os.fstat(handle), copy):
                        raise OSError(errno.EBUSY, SWAPPED)
                    self.metadata.update(fs.held(source), fs.held(handle), state, copy)
                finally:
                    fs.close_read(handle)
            finally:
                fs.close_read(source)
            if written != CLOSED:
                try:
                    fs.sync(written)
                finally:
                    os.close(written)
        return Result(Fate.UNCHANGED, updated=True, why=", ".join(why))

    def is_as_owned_as_can_be(self, state: os.stat_result, copy: os.stat_result) -> bool:
        """Whether a copy made anew would not get its source's owner or group either: who has no privilege cannot give them."""
        beyond = state.st_gid not in (copy.st_gid, os.getegid(), *os.getgroups())
        return self.metadata.unprivileged and copy.st_uid == self.user and (beyond or state.st_gid == copy.st_gid)

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
        self.over = copy is not None and stat.S_ISDIR(copy.st_mode)
        if self.over and not self.would_give_way(target, pair.destination) and self.options.dry_run:
            return Result(Fate.BLOCKED)
        if self.options.dry_run:
            links = regular and self.options.reflink is not When.ALWAYS
            if links and self.find_earlier(pair, name, target, state):
                return Result(Fate.HARDLINK, why=EARLIER)
            return state.st_size if regular else Result(fate_when_made(state.st_mode))
        if regular:
            linked = self.link_earlier(pair, name, target, state, copy is not None) if pair.earlier else None
            return self.file(pair, name, target, first, copy is not None) if linked is None else linked
        place = self.place_of(pair, target, copy is not None or self.aside)
        self.make_other(pair, name, place, state)
        placed = self.put_in_place(place, target, pair.destination, copy is not None)
        return Result(fate_when_made(state.st_mode) if placed else Fate.BLOCKED)

    def place_of(self, pair: Pair, target: str, aside: bool) -> str:
        """The name under which something other than a copied file is made, maybe ``aside``."""
        if not aside:
            return target
        place = runs.temporary_name(self.token, pair.depth, target)
        fs.remove_if_there(place, pair.destination)  # ours, of a worker that was killed
        return place

    def make_other(self, pair: Pair, name: str, place: str, state: os.stat_result) -> None:
        """Make a symbolic link, a FIFO, a socket or a device; none of them is ever opened."""
        if stat.S_ISLNK(state.st_mode):
            fs.make_symbolic_link(fs.read_link(name, pair.source), place, pair.destination)
        else:
            fs.make_special(place, pair.destination, state.st_mode, state.st_rdev)
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

    def gives_way(self, target: str, parent: int, pretend: bool = False) -> bool:
        """An empty directory gives way to something else; one that holds anything only if that may be deleted first."""
        try:
            fs.remove_directory(target, parent, pretend)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not self.options.delete or self.follow:
                error.strerror = FOLLOWED if self.options.delete else IN_ITS_PLACE
                raise
            return False
        return True

    def would_give_way(self, target: str, parent: int) -> bool:
        """The same, but it stays. One that we may not read is asked when it comes to that."""
        try:
            return self.gives_way(target, parent, pretend=True)
        except PermissionError:
            if self.options.dry_run:
                raise
            return True

    def put_in_place(self, place: str, target: str, directory: int, replaces: bool) -> bool:
        """Give what is made its name. False if it is taken away again: a directory is there that has to be emptied first."""
        if place == target:
            return True
        placed = False
        try:
            if not self.over or self.gives_way(target, directory):
                give_name(place, target, directory, replaces and not self.over)
                placed = True
        finally:
            if not placed:
                abandon(CLOSED, place, directory)
        return placed

    def find_earlier(self, pair: Pair, name: str, target: str, state: os.stat_result) -> Pair | None:
        """The first earlier copy in which a file is what it is now, attributes and all."""
        if self.options.overwrite is Overwrite.ALWAYS:
            return None
        for one in pair.earlier:
            copy = fs.look_if_there(target, one.destination)
            if copy and stat.S_ISREG(copy.st_mode) and state.st_size == copy.st_size:
                mine = self.metadata.unprivileged and copy.st_uid == self.user  # what a copy of another's file would be too
                if (
                    self.same_time(pair, state.st_mtime_ns, copy)
                    and not any(self.metadata.differences(one, name, target, state, copy, owner=not mine))
                    and self.is_whole(one, name, target, state.st_size)
                    and not (self.options.checksum and not self.auditor.equal(one, name, target))
                ):
                    return one
        return None

    def link_earlier(self, pair: Pair, name: str, target: str, state: os.stat_result, replaces: bool) -> int | Result | None:
        """Make a file a hard link to its earlier copy, or share blocks with that. None if there is none, or it cannot be."""
        one = self.find_earlier(pair, name, target, state)
        if one is None:
            return None
        if self.options.reflink is When.ALWAYS:
            self.sharing = True
            try:
                shared = dataclasses.replace(one, source=one.destination, destination=pair.destination)
                return self.file(shared, target, target, True, replaces)
            finally:
                self.sharing = False
        place = self.place_of(pair, target, replaces)
        try:
            fs.make_hard_link(target, one.destination, place, pair.destination)
        except OSError as error:
            if error.errno not in CANNOT_LINK:
                raise
            self.metadata.lose("links to earlier copies")
            return None
        placed = self.put_in_place(place, target, pair.destination, replaces)
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
                handle = (fs.create if place == target else self.create_temporary)(place, pair.destination)
            if size <= self.large:
                size = self.contents.whole(source, handle, state)
            elif not self.contents.try_clone(source, handle):
                return self.begin(handle, place, state, replaces, there)
            elif self.options.verify and not self.sharing:
                return self.begin(handle, place, state, replaces, ((0, size),))
            if self.options.verify:  # before its mode may forbid us to read it
                self.auditor.read_back(source, state, place, pair.destination, size)
            if is_changed(state, os.fstat(source)):
                raise SourceChanged
            self.metadata.dress(source, handle, state, pair)
            if self.options.fsync:
                fs.sync(handle)
            written, handle, closing = handle, CLOSED, True  # it is closed even if close reports an error (close(2))
            fs.close_written(written)
            if not self.put_in_place(place, target, pair.destination, replaces):
                return Result(Fate.BLOCKED)
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

    def open_large(self, place: str, pair: Pair, source: os.stat_result) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Go on with what a run that was cut left of a large file, or begin it anew. Returns what is there of it already.

        Only if the name says that the source is the same, and nobody could have made the file, or given another its name, but
        us and the source's owner; only where holes tell what was not written; and not where contents alone are believed.
        """
        directory, tree = pair.destination, self.trees[pair.tree]
        place_of = os.fstat(directory)
        exact = tree.exact and tree.destination_inode and place_of.st_dev == tree.destination_inode[0]  # no mount below it
        if not exact or place_of.st_uid not in (0, self.user, source.st_uid) or stat.S_IMODE(place_of.st_mode) & 0o022:
            return self.create_temporary(place, directory), ()
        if self.partial and not self.options.checksum and runs.same_version(self.partial, place):
            with contextlib.suppress(OSError):
                fs.rename(self.partial, place, directory)
        with contextlib.suppress(OSError):
            handle = fs.open_to_write(place, directory)
            fs.forget(handle, 0, 0)  # else what was read of what was not written counts as data
            state = os.fstat(handle)
            mine = stat.S_ISREG(state.st_mode) and state.st_uid == self.user and stat.S_IMODE(state.st_mode) == NEW
            if mine and state.st_nlink == 1 and state.st_size == source.st_size and (there := written(handle, state.st_size)):
                return handle, tuple(there)
            fs.close_read(handle)
        return self.create_temporary(place, directory), ()

    def begin(
        self, handle: int, place: str, state: os.stat_result, replaces: bool, there: tuple[tuple[int, int], ...]
    ) -> Result:
        """Leave a large file to whoever has time: its length set, its bytes to be copied but for those that are there."""
        fs.set_length(handle, state.st_size)
        made = os.fstat(handle)
        if stat.S_IMODE(made.st_mode) != NEW:  # the umask has narrowed it: others have to open it
            fs.set_mode(handle, NEW)
        temporary = Temporary(place, (made.st_dev, made.st_ino), (made.st_uid, state.st_uid), replaces)
        fs.close_written(handle)
        version = version_of(state)
        return Result(Fate.LARGE, state.st_size, version=version, temporary=temporary, holes=has_holes(state), there=there)

    def seal(self, pair: Pair, large: Large) -> None:
        """Give a large file its attributes and its name. Raises SourceChanged if the source is not what it was.

        Blocked, if a directory is in its place that has to be emptied first: what is made waits for that.
        """
        there = fs.look_if_there(large.target, pair.destination)
        over = there is not None and stat.S_ISDIR(there.st_mode)
        if over and not large.temporary.replaces:
            raise OSError(errno.EEXIST, APPEARED)
        if over and not self.would_give_way(large.target, pair.destination):
            raise Blocked
        source = open_source(large, pair, self.follow)
        if source is None:
            raise SourceChanged
        try:
            state = os.fstat(source)
            try:
                handle = open_temporary(large, pair)
            except FileNotFoundError:
                made = fs.look_if_there(large.target, pair.destination)
                if made and (made.st_dev, made.st_ino) == large.temporary.inode:
                    return  # a worker that was killed had come so far
                raise SourceChanged from None  # or it had taken it away, to copy the file once more
            try:
                if os.fstat(handle).st_size != large.size:
                    raise OSError(errno.EIO, "the copy has not the length of its source")
                self.metadata.dress(source, handle, state, pair)
                if self.options.fsync:
                    fs.sync(handle)
            except BaseException:
                fs.close_read(handle)
                raise
            fs.close_written(handle)
            if over and not self.gives_way(large.target, pair.destination):
                raise Blocked
            give_name(large.temporary.name, large.target, pair.destination, large.temporary.replaces and not over)
        finally:
            fs.close_read(source)


def give_name(place: str, target: str, directory: int, replaces: bool) -> None:
    try:
        fs.rename(place, target, directory, replaces)
    except FileExistsError as error:
        error.strerror = APPEARED
        raise


def explained(made: int | Result, why: str) -> int | Result:
    """What was made, with a reason if there is one to tell."""
    if not why:
        return made
    return made._replace(why=why) if isinstance(made, Result) else Result(Fate.FILE, made, why=why)


def shared(state: os.stat_result) -> Result:
    return Result(Fate.SHARED, inode=(state.st_dev, state.st_ino), links=state.st_nlink)


def fate_when_made(mode: int) -> Fate:
    return Fate.SYMLINK if stat.S_ISLNK(mode) else Fate.SPECIAL


def open_temporary(large: Large, pair: Pair) -> int:
    """Open what :meth:`Copier.begin` made. Whoever may write into the directory could have put a file of their own there.

    That has another inode, or another owner if the number of the inode was used again.
    """
    made = large.temporary
    handle = fs.open_to_write(made.name, pair.destination)
    state = os.fstat(handle)
    if (state.st_dev, state.st_ino) != made.inode or state.st_uid not in made.owners:
        fs.close_read(handle)
        raise OSError(errno.EBUSY, "somebody put another file in the place of its temporary one: run the same line again")
    return handle


def changed() -> OSError:
    return OSError(errno.EBUSY, "changed each time it was copied: copy it again when nobody writes to it")
