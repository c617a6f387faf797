"""Is an entry there already? What is to become of it, and why.

fate_of ─▶ unchanged │ skipped │ None: it is replaced
same    ─▶ kind, size, time as far as the file system keeps it, holes that the source has not
"""

# Annotations are no texts here, see work.py.
import contextlib
import enum
import os
import stat
from typing import NamedTuple

from pcopy import attributes as attr
from pcopy import changes, runs
from pcopy import filesystem as fs
from pcopy.audit import Auditor
from pcopy.extents import has_hole, lacks_data
from pcopy.handles import Pair
from pcopy.metadata import COARSEST, EARLIEST, ENDS, GRAINS, LATEST, Metadata, grain_of
from pcopy.options import Overwrite
from pcopy.work import Inode, Job, Temporary, Version

FAR = 2**40 * 10**9  # nanoseconds: beyond the times that a file system with limits keeps


class Fate(enum.Enum):
    """What became of an entry. The values are the names of the counts in a Tally, where it is done."""

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


class Judge:
    """Compares entries with their copies, with what it learnt of the file systems on the way."""

    def __init__(self, job: Job, auditor: Auditor, metadata: Metadata) -> None:
        self.options, self.token, self.auditor, self.metadata = job.options, job.token, auditor, metadata
        self.trees = (*job.trees, *job.earlier)
        self.follow = job.options.dereference
        self.grains: dict[int, int] = {}  # st_dev: granularity of times in nanoseconds
        self.ranges: dict[int, tuple[int, int]] = {}  # st_dev: the first time that is kept and the last, likewise

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
            return ", ".join(self.lacking(pair, name, target, state, copy))
        if regular and state.st_size != copy.st_size:
            return "size"
        if regular and not self.same_time(pair, state.st_mtime_ns, copy):
            return "time"
        if self.options.overwrite is Overwrite.ALWAYS and self.same(pair, name, target, state, copy):
            return "always"
        return "contents"

    def lacking(self, pair: Pair, name: str, target: str, state: os.stat_result, copy: os.stat_result) -> list[str]:
        """What a copy with the right contents lacks: for :attr:`Options.checksum`, a regular file may have other times, too."""
        found = list(self.metadata.differences(pair, name, target, state, copy))
        if self.options.checksum and self.metadata.keep_times and stat.S_ISREG(state.st_mode):
            found += [] if self.same_time(pair, state.st_mtime_ns, copy) else ["times"]
        return found

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
            if not has_hole(target, pair.destination, size):
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
        """The first and the last time that a file system keeps. In a dry run a guess: the copy's, where one may end there."""
        if self.options.dry_run:
            if copy.st_mtime_ns in ENDS or grain_of(copy) == COARSEST:
                return min(copy.st_mtime_ns, EARLIEST), max(copy.st_mtime_ns, LATEST)
            return -FAR, FAR
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
            handle = changes.create_unnamed(pair.destination)
        except OSError:
            handle = runs.create_temporary(name, pair.destination)
        try:
            with contextlib.suppress(OSError):  # refused: it keeps the time of its making, which is no other's
                attr.set_times(handle, wanted, wanted)
            return os.fstat(handle).st_mtime_ns
        finally:
            fs.close_read(handle)
            changes.remove_if_there(name, pair.destination)
