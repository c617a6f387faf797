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
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from pcopy import attributes as attr
from pcopy import filesystem as fs
from pcopy import runs
from pcopy.errors import UsageError
from pcopy.options import Hash
from pcopy.paths import Landing

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
            fs.rename(place, name, directory)
        except BaseException:
            fs.remove_if_there(place, directory)
            raise
        if own is not None:
            attr.set_times(directory, state.st_atime_ns, state.st_mtime_ns)
        if lasting:
            fs.sync(directory)
    finally:
        fs.close_read(directory)


def write_lines(spool: Spool, place: str, directory: int, own: bytes | None, umask: int, lasting: bool) -> None:
    with open(fs.create(place, directory), "wb") as file:
        for one in spool:
            if one.rpartition(b"\0")[0] != own:
                file.write(line_of(one))
        file.flush()
        attr.set_mode(file.fileno(), 0o666 & ~umask)
        if lasting:
            fs.sync(file.fileno())


def check_place(given: str, top: str, landings: Sequence[Landing]) -> str:
    """Where a manifest goes, as an absolute path. Raises UsageError if it cannot, or would replace what it lists."""
    name = os.path.basename(given)
    if not name or "\0" in given or os.path.isdir(given):
        raise UsageError(f"manifest {given!r}: is a directory or no name; name a file")
    path, real_top = place_of(given), os.path.realpath(top)
    where = os.path.dirname(path)
    if path == real_top:
        raise UsageError(f"manifest {given}: is the destination itself; name a file")
    if where != real_top and not os.path.isdir(where):  # the destination will be there
        raise UsageError(f"manifest {given}: {where} is not a directory that exists; make it first (mkdir -p)")
    if os.path.isdir(where) and not os.access(where, os.W_OK | os.X_OK):
        raise UsageError(f"manifest {given}: {where} may not be written to; name a file elsewhere")
    if reason := refusal_of(path):
        raise UsageError(f"manifest {given}: {reason}; name another")
    if holds_something_else(path):
        raise UsageError(f"manifest {given}: is there and is no manifest; name another file, or remove it")
    for landing in landings:
        if listed_as := source_of(path, landing):
            raise UsageError(f"manifest {given}: would take the place of {listed_as} or its copy; name another file")
    return path


def refusal_of(path: str) -> str:
    """Why a file cannot be put in a place, if it cannot. Opens nothing: a FIFO would wait for somebody."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    return "" if regular else "is there and is no regular file"


def holds_something_else(path: str) -> bool:
    """Whether a file would be lost that nobody meant to give up."""
    try:
        with open(path, "rb") as file:
            line = file.readline(PORTION)
        return bool(line) and parse(line.removesuffix(b"\n")) is None
    except BadLine:
        return True
    except OSError:
        return False


def source_of(path: str, landing: Landing) -> str | None:
    """The source that is this file, or whose copy it would be."""
    for name in landing.names:
        source = os.path.join(landing.source, name)
        if os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
            return source
    return copied_to(path, landing)


def copied_to(path: str, landing: Landing) -> str | None:
    """The source whose copy a file would be."""
    below = within(path, landing.destination)
    for name in landing.names:
        if below == (landing.rename or name):
            return os.path.join(landing.source, name)
    source = os.path.join(landing.source, below or "")
    return source if below and not landing.names and os.path.lexists(source) else None


def absolute(path: str) -> str:
    """An absolute path. "x/.." is only taken out where x is no symbolic link."""
    try:
        if ".." in path.split("/"):
            parent, name = os.path.split(path.rstrip("/"))
            return os.path.realpath(path) if name in ("..", ".") else os.path.join(os.path.realpath(parent), name)
        return os.path.abspath(path)
    except FileNotFoundError:  # getcwd(2)
        raise UsageError(f"{path}: the working directory is gone: change to another, or give an absolute path") from None


def place_of(path: str) -> str:
    """Where a name is: links on the way to it are followed, one that it may be itself is not."""
    return os.path.join(os.path.realpath(absolute(os.path.dirname(path) or ".")), os.path.basename(path))


def within(path: str, top: str) -> str | None:
    """A path below a directory, relative to it."""
    top = os.path.realpath(top).rstrip("/") + "/"
    return path[len(top) :] if path.startswith(top) else None
