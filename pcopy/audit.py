"""What is known by reading files, not by their times: whether a copy is equal to its source.

equal           is the copy that is there equal to its source (--checksum)?  ─▶ yes │ no │ Unfinished: later, from here
read_back       did the bytes that were copied reach the storage (--verify)?  ─▶ OSError if not
check           has a file the checksum that a manifest says (--check)?
sum             the checksum of a file in the copy (--manifest)
read_back_span  write out ─▶ forget what memory holds of it ─▶ read both ─▶ compare
"""

from __future__ import annotations

import math
import os
import stat
import time

from pcopy import filesystem as fs
from pcopy import storage
from pcopy.extents import has_holes
from pcopy.handles import ABSENT, Pair
from pcopy.manifest import hasher
from pcopy.metadata import SHORTLY
from pcopy.options import Options
from pcopy.reading import Reader
from pcopy.stop import Stop
from pcopy.work import Compared, Large, Version

# Nanoseconds within which a second change of a file may not show where times have fractions of a second: they are those of the
# kernel's last tick, 10 ms apart at most (current_time() in fs/inode.c).
TICK = 20 * 10**6


class Unfinished(Exception):
    """The time of the slice is up, and so far the two are equal; or the run is to stop."""

    def __init__(self, compared: Compared | None) -> None:
        super().__init__(compared)
        self.compared = compared


class Auditor:
    """Reads for one slice, until its ``deadline``. ``compared``: what an earlier slice found out of the file at hand."""

    def __init__(self, options: Options, stop: Stop | None) -> None:
        self.follow, self.stop = options.dereference, stop
        self.new = hasher(options.sums) if options.sums else None
        self.reader = Reader()
        self.deadline = math.inf
        self.rested = 0.0  # seconds spent until sources were at rest
        self.compared: Compared | None = None

    def equal(self, pair: Pair, name: str, target: str) -> bool:
        """Whether a regular file and its copy have the same contents. What cannot be read in the copy is not the same."""
        source = fs.open_to_read(name, pair.source, self.follow)
        try:
            try:
                copy = fs.open_to_read(target, pair.destination)
            except PermissionError:
                return False
            try:
                return self.equal_files(source, copy)
            finally:
                fs.close_read(copy)
        finally:
            fs.close_read(source)

    def equal_files(self, source: int, copy: int) -> bool:
        state = os.fstat(source)
        size = state.st_size
        fs.wait_for_writes(source)
        found = Compared(0, version_of(state), version_of(os.fstat(copy)))
        if found.copy.size != size:
            return False
        known = self.compared
        if known and known == found._replace(position=known.position):
            found = known
        position, same = self.reader.compare(source, copy, found.position, size, has_holes(state), self.deadline)
        if same and position < size:
            raise Unfinished(found._replace(position=position))
        return same and version_of(os.fstat(source)) == found.source

    def at_rest(self, source: int) -> os.stat_result | None:
        """The state of an open file at a time when any further change will show in it: waits, if it was changed just now.

        None if it is changed all the time, and its file system is one that may not show it. Raises Unfinished.
        """
        state = os.fstat(source)
        if wait := unrest(state):
            start = time.monotonic()
            while (left := start + wait - time.monotonic()) > 0:
                if self.stop and self.stop.signal:
                    raise Unfinished(self.compared)
                time.sleep(min(left, TICK / 1e9))
            self.rested += time.monotonic() - start
            state = os.fstat(source)
            if not state.st_ctime_ns % 10**9 and unrest(state):
                return None
        fs.wait_for_writes(source)
        return state

    def read_back(self, source: int, state: os.stat_result, place: str, directory: int, size: int) -> None:
        """Compare the ``size`` bytes of a file that was just written with its open source. Raises OSError if they differ.

        A source that changed meanwhile proves nothing, and the caller sees that it did.
        """
        copy = fs.open_to_read(place, directory)
        try:
            storage.write_out(copy)
            storage.forget(copy, 0, 0)
            position, same = self.reader.compare(source, copy, 0, size, has_holes(state))
            same = same and os.fstat(copy).st_size == size
            storage.verify(same or is_changed(state, os.fstat(source)), position)
        finally:
            fs.close_read(copy)

    def read_back_span(self, pair: Pair, large: Large, start: int, stop: int) -> int | None:
        """Compare a part of a large file with its source. Returns how far it came. Raises OSError if they differ.

        None if the source is not what it was: there is nothing to compare with.
        """
        source = open_source(large, pair, self.follow)
        if source is None:
            return None
        try:
            copy = fs.open_to_read(large.temporary.name, pair.destination)
            try:
                storage.write_out(copy)
                storage.forget(copy, start, stop - start)
                position, same = self.reader.compare(source, copy, start, stop, large.holes, self.deadline)
                if version_of(os.fstat(source)) != large.version:
                    return None
                storage.verify(same, position)
                return position
            finally:
                fs.close_read(copy)
        finally:
            fs.close_read(source)

    def sum(self, pair: Pair, name: str, target: str, copied: bool) -> str | None:
        """The checksum of a file in the copy; None if it is no regular file. Raises Stopped.

        Of one that this run copied it is the source's, as long as that is what was copied: then a copy that went bad on its way
        is found by whoever checks it.
        """
        state = fs.look_at(target, pair.destination)
        if not stat.S_ISREG(state.st_mode):
            return None
        if copied and pair.source != ABSENT and (digest := self.sum_source(pair, name, state)):
            return digest
        handle = fs.open_to_read(target, pair.destination)
        try:
            return self.reader.digest(handle, self.new, self.stop)[0]
        finally:
            fs.close_read(handle)

    def check(self, top: int, path: str, digest: str) -> int:
        """The bytes of a file that has this checksum. Raises OSError if it has another, Stopped."""
        handle = fs.open_deep(path, top)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError("is no regular file")
            found, size = self.reader.digest(handle, self.new, self.stop)
        finally:
            fs.close_read(handle)
        if found != digest:
            raise OSError("differs from the manifest")
        return size

    def sum_source(self, pair: Pair, name: str, copy: os.stat_result) -> str | None:
        """None if the source may have changed: its time is not the one that it gave to its copy."""
        try:
            source = fs.open_to_read(name, pair.source, self.follow)
        except OSError:
            return None
        try:
            if os.fstat(source).st_mtime_ns != copy.st_mtime_ns:  # else it is read in vain
                return None
            digest, size = self.reader.digest(source, self.new, self.stop)
            return digest if size == copy.st_size and os.fstat(source).st_mtime_ns == copy.st_mtime_ns else None
        finally:
            fs.close_read(source)


def unrest(state: os.stat_result) -> float:
    """Seconds until any further change of a file will show in its times. Times to come are of another clock: 0."""
    slot = TICK if state.st_ctime_ns % 10**9 else SHORTLY
    early = state.st_ctime_ns + slot - time.time_ns()
    return early / 1e9 if 0 < early <= slot else 0.0


def is_changed(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether an open file was written to, or had its attributes changed, between two looks at it."""
    return after.st_mtime_ns != before.st_mtime_ns or after.st_ctime_ns != before.st_ctime_ns or after.st_size != before.st_size


def version_of(state: os.stat_result) -> Version:
    return Version((state.st_dev, state.st_ino), state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def open_source(large: Large, pair: Pair, follow: bool) -> int | None:
    """The source of a large file; None if it is gone, or not what it was: another may be on the way to it for a while."""
    try:
        source = fs.open_to_read(large.name, pair.source, follow)
    except FileNotFoundError:
        return None
    if version_of(os.fstat(source)) == large.version:
        return source
    fs.close_read(source)
    return None
