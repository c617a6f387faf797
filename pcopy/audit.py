"""What is known by reading files, not by their times: whether a copy is equal to its source.

equal      does the copy that is there differ from the source (--checksum)?  ─▶ yes │ no │ Unfinished: later, from here
"""

from __future__ import annotations

import math
import os

from pcopy import filesystem as fs
from pcopy.contents import has_holes
from pcopy.handles import Pair
from pcopy.options import Options
from pcopy.reading import Reader
from pcopy.work import Compared, Version


class Unfinished(Exception):
    """The time of the slice is up, and so far the two are equal."""

    def __init__(self, compared: Compared) -> None:
        super().__init__(compared)
        self.compared = compared


class Auditor:
    """Reads for one slice, until its ``deadline``. ``compared``: what an earlier slice found out of the file at hand."""

    def __init__(self, options: Options) -> None:
        self.follow = options.dereference
        self.reader = Reader()
        self.deadline = math.inf
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
                os.close(copy)
        finally:
            os.close(source)

    def equal_files(self, source: int, copy: int) -> bool:
        state = os.fstat(source)
        size = state.st_size
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


def is_changed(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether an open file was written to, or had its attributes changed, between two looks at it."""
    return after.st_mtime_ns != before.st_mtime_ns or after.st_ctime_ns != before.st_ctime_ns or after.st_size != before.st_size


def version_of(state: os.stat_result) -> Version:
    return Version((state.st_dev, state.st_ino), state.st_size, state.st_mtime_ns, state.st_ctime_ns)
