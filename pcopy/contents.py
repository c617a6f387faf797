"""The bytes of a file, by the cheapest call that works here.

    clone (FICLONE) ──▶ copy_file_range ──▶ (uncached reads) ──▶ sendfile ──▶ read and write

What a file system cannot do is learnt once in a slice. A call that says "nothing more" before the size is reached is
never believed: plain reads have the last word (copy_file_range returns 0 at once on the files of /proc and, on some
kernels, elsewhere; copy_file_range(2), BUGS).
"""

from __future__ import annotations

import errno
import os
import sys

from pcopy.extents import has_holes, next_extent
from pcopy.options import Options, When
from pcopy.storage import read, read_uncached, set_length, share_blocks, write

# A range for one call: below 1 GiB, because some file systems fail or wrap above; smaller would cost more calls.
RANGE = 512 << 20
# Plain reads: larger leaves the processor's cache, smaller costs more calls.
BUFFER = 256 << 10
# Reads past the page cache, of which each is a request: larger is more than NFS and FUSE ask for at once.
REQUEST = 1 << 20
# Holes are looked for in blocks of this size: that of a page and of most file systems.
BLOCK = 4096

CANNOT_RANGE = frozenset({errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP})
CANNOT_THIS = frozenset({errno.EINVAL, errno.EBADF, errno.EPERM, errno.ETXTBSY, errno.EOVERFLOW, errno.EIO})
ZEROS = bytes(BLOCK)


class Contents:
    """Copies bytes between open files, and remembers for one slice which calls work."""

    def __init__(self, options: Options) -> None:
        self.sparse = options.sparse
        self.reflink = options.reflink
        self.ranges = hasattr(os, "copy_file_range") and options.reflink is not When.NEVER
        self.extent = (0, 0)  # of the file at hand: the stretch of data that was found last
        self.direct = options.reflink is not When.ALWAYS and options.sparse is not When.ALWAYS
        self.sendfile = hasattr(os, "sendfile") and sys.platform == "linux"
        self.elsewhere = self.shared = False
        self.uncached = True
        self.buffer: memoryview | None = None

    def whole(self, source: int, target: int, state: os.stat_result) -> int:
        """Copy a whole file, its holes included. Returns its length in bytes, as it was read."""
        size = state.st_size
        holes = has_holes(state)
        if self.direct and size and not holes:  # nearly every file
            done = self.range(source, target, size) if self.ranges else 0
            return size if done == size else done + self.stream(source, target, size - done)
        if self.reflink is When.ALWAYS:
            share_blocks(source, target)
            return size
        if not size:  # or a virtual file, whose length nobody knows
            return read_up_to(source, target, sys.maxsize)
        if self.sparse is When.NEVER:
            return read_up_to(source, target, size)
        return self.with_holes(source, target, size)

    def with_holes(self, source: int, target: int, size: int) -> int:
        """Copy the data of a file and leave out its holes."""
        if self.sparse is When.AUTO and self.try_clone(source, target):
            return size
        self.begin()
        reached = self.span(source, target, 0, size, holes=True)
        set_length(target, reached)
        return reached

    def try_clone(self, source: int, target: int) -> bool:
        """Share all the blocks of a file, if the file system can; raises if that was demanded and it cannot."""
        if self.reflink is When.NEVER or self.sparse is not When.AUTO:  # shared blocks have the holes of the source
            return False
        try:
            share_blocks(source, target)
            return True
        except OSError:
            if self.reflink is When.ALWAYS:
                raise
            return False

    def begin(self, elsewhere: bool = False, shared: bool = False) -> None:
        """Another file is at hand. ``elsewhere``: another machine or process keeps it; ``shared``: others copy it, too."""
        self.extent, self.elsewhere, self.shared = (0, 0), elsewhere, shared

    def skip_hole(self, source: int, start: int, stop: int) -> int:
        """Where there is something to copy from ``start`` on; ``stop`` if there is nothing."""
        return start if self.sparse is When.NEVER else self.next_data(source, start, stop)[0]

    def span(self, source: int, target: int, start: int, stop: int, holes: bool) -> int:
        """Copy the bytes from start to stop to the same place; if there are ``holes``, without them unless to be filled.

        Returns how far it came: less than ``stop`` if the source ends earlier.
        """
        holes = holes and self.sparse is not When.NEVER
        while start < stop:
            data, end = self.next_data(source, start, stop) if holes else (start, stop)
            if data < end and (done := self.piece(source, target, data, end - data)) < end - data:
                return data + done
            start = end
        return stop

    def next_data(self, source: int, start: int, stop: int) -> tuple[int, int]:
        """The first stretch of data between start and stop; (stop, stop) if there is only a hole.

        What was found last is remembered: to look for the end of a gigabyte of data, tmpfs passes over each of its pages.
        """
        if not self.extent[0] <= start < self.extent[1]:
            self.extent = next_extent(source, start)
        data, end = self.extent
        return min(max(data, start), stop), min(end, stop)

    def piece(self, source: int, target: int, start: int, size: int) -> int:
        """Copy ``size`` bytes from ``start`` to the same place. Returns how many there were."""
        os.lseek(source, start, os.SEEK_SET)
        os.lseek(target, start, os.SEEK_SET)
        if self.sparse is When.ALWAYS:
            return copy_but_zeros(source, target, size)
        in_turns = self.shared and not self.elsewhere  # one reads, the other writes: copy_file_range locks the target for both
        if self.sparse is When.NEVER or in_turns:
            return read_up_to(source, target, size)
        return self.stream(source, target, size, self.elsewhere)

    def stream(self, source: int, target: int, size: int, elsewhere: bool = False) -> int:
        """Copy ``size`` bytes from the current offsets. Returns how many there were."""
        done = self.range(source, target, size) if self.ranges else 0
        if elsewhere and self.uncached and size - done >= REQUEST:
            done += self.fetch(source, target, size - done)
        if done < size and self.sendfile and size > BUFFER:
            done += self.send(source, target, size - done)
        return done if done == size else done + read_up_to(source, target, size - done)

    def first(self, source: int, target: int, size: int) -> int:
        """Up to ``size`` bytes by the cheapest call. Returns how many; fewer than there are tells nothing."""
        if not self.ranges and not self.sendfile:
            return read_up_to(source, target, size)
        try:
            return os.copy_file_range(source, target, size) if self.ranges else os.sendfile(target, source, None, size)
        except OSError as error:
            self.refused(error, self.ranges)
            return 0

    def range(self, source: int, target: int, size: int) -> int:
        """copy_file_range until it ends. Returns how many bytes it copied; fewer than ``size`` where it cannot."""
        done = 0
        try:
            while done < size and (count := os.copy_file_range(source, target, min(size - done, RANGE))):
                done += count
        except OSError as error:
            self.refused(error, ranges=True)
        return done

    def send(self, source: int, target: int, size: int) -> int:
        """Sendfile until it ends, as :meth:`range`."""
        done = 0
        try:
            while done < size and (count := os.sendfile(target, source, None, min(size - done, RANGE))):
                done += count
        except OSError as error:
            self.refused(error, ranges=False)
        return done

    def fetch(self, source: int, target: int, size: int) -> int:
        """Read past the page cache and write, as :meth:`range`.

        Through the cache, the kernel asks for 128 KiB at a time unless it is told otherwise (read_ahead_kb), and copies each
        byte once more, into memory that it has to find first.
        """
        import mmap  # which other copies do without

        if self.buffer is None:
            self.buffer = memoryview(mmap.mmap(-1, REQUEST))  # begins with a page, as some file systems want it
        done = 0
        while done < size:
            room = min(REQUEST, -(-(size - done) // BLOCK) * BLOCK)  # some want whole blocks, at the end of a file too
            count = min(read_uncached(source, self.buffer[:room]), size - done)
            if not count:
                break
            write(target, self.buffer[:count])
            done += count
        self.uncached = done == size  # else it cannot be asked so, or has ended
        return done

    def refused(self, error: OSError, ranges: bool) -> None:
        """Not by this call, for these files or for any: another will do. Raises what no other would help against."""
        if error.errno not in CANNOT_RANGE | CANNOT_THIS:
            raise error
        if not ranges:
            self.sendfile = False
        elif error.errno in CANNOT_RANGE:
            self.ranges = False


def read_up_to(source: int, target: int, size: int) -> int:
    """Plain reads and writes from the current offsets, until ``size`` bytes or the source's end. Returns how many."""
    done = 0
    while done < size and (block := read(source, min(BUFFER, size - done))):
        write(target, block)
        done += len(block)
    return done


def copy_but_zeros(source: int, target: int, size: int) -> int:
    """As :func:`read_up_to`, but step over blocks of zeros, so that they become holes."""
    done = 0
    while done < size and (block := read(source, min(BUFFER, size - done))):
        for at in range(0, len(block), BLOCK):
            part = block[at : at + BLOCK]
            if part == ZEROS[: len(part)]:
                os.lseek(target, len(part), os.SEEK_CUR)
            else:
                write(target, part)
        done += len(block)
    return done
