"""The bytes of files, read to be compared or summed up."""

from __future__ import annotations

import math
import time
from typing import Any

from pcopy import storage
from pcopy.extents import next_extent
from pcopy.stop import Stop

# Bytes at a time: more leaves the processor's cache, fewer cost more calls.
BUFFER = 1 << 20


class Stopped(Exception):
    """The run is to stop, and a checksum is not ready."""


class Reader:
    """Two buffers, made when they are needed and kept for a slice."""

    def __init__(self) -> None:
        self.buffers: tuple[bytearray, bytearray] | None = None

    def compare(
        self, one: int, other: int, start: int, stop: int, holes: bool = False, deadline: float = math.inf
    ) -> tuple[int, bool]:
        """Compare the bytes from start to stop of two open files, until they differ or the time is up.

        Returns how far they were read, and whether they are equal so far. ``holes``: what is a hole in both is equal.
        """
        position = start
        while position < stop:
            if position > start and time.monotonic() >= deadline:
                break
            if holes:
                data = min(next_extent(one, position)[0], next_extent(other, position)[0])
                position = min(data, stop)
            size = min(BUFFER, stop - position)
            if not self.equal(one, other, position, size):
                return position, False
            position += size
        return position, True

    def equal(self, one: int, other: int, position: int, size: int) -> bool:
        """Whether so many bytes, at most BUFFER, are there in both and are the same."""
        self.buffers = self.buffers or (bytearray(BUFFER), bytearray(BUFFER))
        left, right = self.buffers
        if fill(one, left, position, size) != size or fill(other, right, position, size) != size:
            return False
        if size < BUFFER:  # bytes, because memoryviews are compared one number at a time
            return left[:size] == right[:size]
        return left == right

    def digest(self, handle: int, new: Any, stop: Stop | None) -> tuple[str, int]:
        """The checksum of an open file and how many bytes it has. Raises Stopped.

        A hash object cannot be sent to another process, so this is the one thing that a slice cannot leave half done.
        """
        self.buffers = self.buffers or (bytearray(BUFFER), bytearray(BUFFER))
        buffer, size = self.buffers[0], 0
        total = new()
        with memoryview(buffer) as view:
            while count := storage.read_into(handle, view, size):
                total.update(view[:count])
                size += count
                if stop and stop.signal:
                    raise Stopped
        return total.hexdigest(), size


def fill(handle: int, buffer: bytearray, position: int, size: int) -> int:
    """Read into a buffer until so many bytes are there or the file ends. Returns how many."""
    done = 0
    with memoryview(buffer) as view:
        while done < size and (count := storage.read_into(handle, view[done:size], position + done)):
            done += count
    return done
