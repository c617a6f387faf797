"""Lists of checksums, in the form that sha256sum and b3sum write and read.

    Outcome.sums ──▶ Spool: sorted in parts, on disk if there are many ──▶ write(): merged, then renamed into place
    text ──▶ portions() ──▶ parse() of each line

A line is DIGEST, two blanks, NAME. A name with a backslash or a line's end is escaped and its line begins with a backslash
(GNU coreutils, "md5sum invocation"; since 9.0 a carriage return is escaped too, which b3sum 1.2 does not know).
"""

from __future__ import annotations

import heapq
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

from pcopy import attributes as attr
from pcopy import changes, runs, storage
from pcopy import filesystem as fs
from pcopy.options import Hash

# Lines sorted in memory: more take more of it, 150 bytes each, fewer make more parts to merge.
PART = 100_000
# Bytes of a manifest in one unit of a check: about a hundred lines, as many as names in a unit of a copy.
PORTION = 10_000
# Bytes of a line, at most: what is longer is none.
LONGEST = 1 << 20
LINE = rb"(?s)(\\?)([0-9a-fA-F]{64}) [ *](.+)\Z"
ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
ESCAPED = rb"(?s)\\(.?)"
MEANT = {b"\\": b"\\", b"n": b"\n", b"r": b"\r"}


class BadLine(ValueError):
    """Not a line of a manifest."""


def hasher(name: Hash) -> Any:
    """What makes a new hash object. Raises ImportError."""
    if name is Hash.BLAKE3:
        from blake3 import blake3

        return blake3
    from hashlib import sha256

    return sha256


def record(path: str, digest: str, kind: Hash) -> bytes:
    """What is sorted: the escaped path, a byte that no path holds, the digest."""
    return b"%b\0%b\n" % (escaped(path, kind), digest.encode())


def escaped(path: str, kind: Hash) -> bytes:
    """A name as ``sha256sum -c`` or ``b3sum -c`` reads it. Both take a single dash for the standard input."""
    name = os.fsencode(path)
    if name == b"-":
        return b"./-"
    if b"\\" in name or b"\n" in name or b"\r" in name:
        codes = rb"[\\\n]" if kind is Hash.BLAKE3 and not name.endswith(b"\r") else rb"[\\\n\r]"
        name = re.sub(codes, lambda found: ESCAPES[found[0]], name)
    return name


def line_of(one: bytes) -> bytes:
    """The line of a record. A name holds a backslash exactly if it was escaped."""
    name, _, digest = one.rpartition(b"\0")
    return b"%b%b  %b\n" % (b"\\" if b"\\" in name else b"", digest[:-1], name)


def parse(line: bytes) -> tuple[str, str] | None:
    """(path, digest) of a line without its end; None if nothing is on it, or a comment. Raises BadLine."""
    line = line.removesuffix(b"\r")
    if not line or line.startswith(b"#"):
        return None
    found = re.match(LINE, line)
    if not found or b"\0" in line:
        raise BadLine
    escaped, digest, name = found.groups()
    if escaped:
        name = re.sub(ESCAPED, lambda one: meant(one[1]), name)
    return os.fsdecode(name), digest.decode().lower()


def meant(code: bytes) -> bytes:
    if code not in MEANT:
        raise BadLine
    return MEANT[code]


class Lines(NamedTuple):
    """Some lines of a manifest, and the number of the first."""

    text: bytes
    first: int


def portions(file: IO[bytes]) -> Iterator[Lines]:
    """A manifest in pieces that end where lines do. Of a line that is too long only the beginning is kept."""
    first = 1
    while text := file.read(PORTION) + file.readline(LONGEST):
        if len(text) >= LONGEST and not text.endswith(b"\n"):
            while (more := file.readline(LONGEST)) and not more.endswith(b"\n"):
                pass
            text += b"\n"
        yield Lines(text, first)
        first += text.count(b"\n")


class Spool:
    """Takes in records as they come, and gives them out in the order of their paths."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.parts: list[IO[bytes]] = []
        self.trouble: OSError | None = None  # no room for a part: the run goes on, and hears of it at its end

    def add(self, records: Iterable[bytes]) -> None:
        self.lines += records
        if len(self.lines) >= PART:
            self.lines.sort()
            try:
                self.parts.append(self.part())
            except OSError as error:
                self.trouble = error
            self.lines = []

    def part(self) -> IO[bytes]:
        from tempfile import TemporaryFile

        file = TemporaryFile()  # noqa: SIM115
        file.writelines(self.lines)
        file.seek(0)
        return file

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def __iter__(self) -> Iterator[bytes]:
        """All records, each once."""
        if self.trouble:
            raise self.trouble
        self.lines.sort()
        merged = heapq.merge(*self.parts, self.lines)
        return (one for one, _ in itertools.groupby(merged))


def write(spool: Spool, path: str, own: bytes | None, umask: int, lasting: bool) -> None:
    """Write a manifest whole or not at all, never through a symbolic link. ``own``: its escaped name, to be left out.

    In a directory that is part of a copy, that directory keeps its times. Raises OSError.
    """
    where, name = os.path.split(path)
    directory = os.open(where, fs.DIRECTORY)
    try:
        state = os.fstat(directory)
        place = runs.temporary_name(os.urandom(4).hex(), 0, name)
        try:
            write_lines(spool, place, directory, own, umask, lasting)
            changes.rename(place, name, directory)
        except BaseException:
            changes.remove_if_there(place, directory)
            raise
        if own is not None:
            attr.set_times(directory, state.st_atime_ns, state.st_mtime_ns)
        if lasting:
            storage.sync(directory)
    finally:
        fs.close_read(directory)


def write_lines(spool: Spool, place: str, directory: int, own: bytes | None, umask: int, lasting: bool) -> None:
    with open(changes.create(place, directory), "wb") as file:
        for one in spool:
            if one.rpartition(b"\0")[0] != own:
                file.write(line_of(one))
        file.flush()
        attr.set_mode(file.fileno(), 0o666 & ~umask)
        if lasting:
            storage.sync(file.fileno())
