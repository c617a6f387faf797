"""The extents of a file: which stretches of it are data, which are holes, and which only look like one of them."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys

from pcopy import filesystem as fs
from pcopy import storage

HEAD, EXTENT = struct.Struct("=QQIIII"), struct.Struct("=QQQ16xI12x")  # linux/fiemap.h: fiemap, fiemap_extent
FIEMAP, EXTENTS = 0xC020660B, 32  # linux/fs.h: FS_IOC_FIEMAP; extents asked for at a time
LAST, UNWRITTEN = 0x1, 0x800  # linux/fiemap.h: FIEMAP_EXTENT_LAST, FIEMAP_EXTENT_UNWRITTEN
# Of what was written when a run was cut, so many bytes at each end are not relied on: far more than a block.
MARGIN = 4 << 20
PIECE = 256 << 10  # bytes read at a time


def has_hole(name: str, directory: int, size: int) -> bool:
    """Whether a file shows a hole, as one does of which the length reached the disk before its contents.

    Even if its blocks were reserved, so that st_blocks tells nothing (ext4: extents that are unwritten).
    """
    handle = os.open(name, fs.READ | fs.NOFOLLOW, dir_fd=directory)
    try:
        if os.lseek(handle, 0, os.SEEK_HOLE) < size:
            return True
        if not has_unwritten(handle, size):
            return False
        storage.forget(handle, 0, 0)
        return os.lseek(handle, 0, os.SEEK_HOLE) < size
    finally:
        fs.close_read(handle)


def has_unwritten(handle: int, size: int) -> bool:
    """Whether extents of an open file are not written, by the disk's word (FS_IOC_FIEMAP; kernel: filesystems/fiemap.rst).

    SEEK_HOLE takes them for data when their zeros have been read into memory, or what is to be written there is in it.
    """
    asked, start = bytearray(HEAD.size + EXTENTS * EXTENT.size), 0
    while start < size:
        HEAD.pack_into(asked, 0, start, size - start, 0, 0, EXTENTS, 0)
        try:
            fcntl.ioctl(handle, FIEMAP, asked)
        except OSError:  # nobody can tell
            return False
        count = HEAD.unpack_from(asked)[3]
        for number in range(count):
            logical, _, length, flags = EXTENT.unpack_from(asked, HEAD.size + number * EXTENT.size)
            if flags & UNWRITTEN:
                return True
            start = logical + length
        if count < EXTENTS or flags & LAST:
            break
    return False


def has_holes(state: os.stat_result) -> bool:
    """Whether a file takes less room than its length, as files with holes do."""
    return state.st_blocks * 512 < state.st_size


def next_extent(source: int, start: int) -> tuple[int, int]:
    """The first stretch of data from ``start`` on, as (its start, its end); beyond every file if only a hole is left."""
    try:
        data = os.lseek(source, start, os.SEEK_DATA)
        return data, os.lseek(source, data, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data up to the end of the file
            return sys.maxsize, sys.maxsize
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP):  # cannot tell: take all for data
            return start, sys.maxsize
        raise


def seek(handle: int, start: int, what: int, size: int) -> int:
    """The next hole or data from ``start`` on; ``size`` if there is none, as lseek(2) says by ENXIO."""
    try:
        return min(size, os.lseek(handle, start, what)) if start < size else size
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size


def lacks_data(source: int, copy: int, size: int) -> bool:
    """Whether a copy has holes where its source has something else than zeros.

    Of a file whose length was set before its contents reached the disk a power cut leaves just that: the length, and the times.
    """
    at = 0
    while (hole := seek(copy, at, os.SEEK_HOLE, size)) < size:
        at = seek(copy, hole, os.SEEK_DATA, size)
        while (data := seek(source, hole, os.SEEK_DATA, size)) < at:
            hole = min(at, seek(source, data, os.SEEK_HOLE, size))
            for start in range(data, hole, PIECE):
                if os.pread(source, min(PIECE, hole - start), start).strip(b"\0"):
                    return True
    return False


def written(copy: int, size: int) -> list[tuple[int, int]]:
    """The stretches of a copy that was cut off of which it is certain that they were written; its length was set before.

    Nothing if the file system shows no holes in it: it may fill them with zeros, or not know them.
    """
    found: list[tuple[int, int]] = []
    try:
        data = seek(copy, 0, os.SEEK_DATA, size)
        while data < size and (hole := seek(copy, data, os.SEEK_HOLE, size)) - data < size:
            start = -(-(data + MARGIN if data else 0) // MARGIN) * MARGIN
            stop = (hole - MARGIN) // MARGIN * MARGIN
            if start < stop:
                found.append((start, stop))
            data = seek(copy, hole, os.SEEK_DATA, size)
    except OSError:
        return []
    return found
