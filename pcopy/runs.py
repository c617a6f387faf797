"""What runs leave for each other to see in a destination: locks, marks, and the temporary names of files under way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct
from collections.abc import Container, Iterable, Iterator
from itertools import islice

from pcopy import changes
from pcopy import filesystem as fs

PREFIX = ".pcopy-"  # of temporary names
FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2): type, whence, start, length, process
# Bytes of a directory that its run marks: it has locked it; it removes what the source lacks; it copies a tree into it.
AT_WORK, DELETES, COPIES = 0, 1, 2
ASKED = [FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, what, 1, 0) for what in (AT_WORK, DELETES, COPIES)]
DELETED = "another run deletes here what its source lacks: wait until it has ended"
COPIED = "another run, whose copies would be deleted here, is at work in it or above it: wait until it has ended"
TEMPORARY = r"(?a)\.pcopy-([0-9a-f]{8})-(\d{1,9})-([0-9a-f]{16})(?:-([0-9a-f]{16}))?\Z"


def temporary_name(token: str, depth: int, name: str, version: str = "") -> str:
    """The name under which ``name`` is written before it is renamed: the same each time in one run.

    ``depth`` is how far below the directory that its run has locked it lies: whoever finds it can see by that lock
    whether the run is alive. ``version``: of what it is to be a copy, if a later run may go on with it.
    """
    digests = [digest_of(one) for one in (name, version) if one]
    return "-".join([".pcopy", token, str(depth), *digests])


def two_names(token: str, depth: int, name: str) -> tuple[str, str]:
    """For a directory that is to take the place of something else, and for that."""
    return temporary_name(token, depth, name), temporary_name(token, depth, name, "old")


def create_temporary(name: str, directory: int) -> int:
    """Make a file of a temporary name, and open it to write."""
    try:
        return changes.create(name, directory)
    except FileExistsError:  # ours, of a worker that was killed
        changes.remove(name, directory)
        return changes.create(name, directory)


def digest_of(text: str) -> str:
    from hashlib import blake2b

    return blake2b(os.fsencode(text), digest_size=8).hexdigest()


def same_version(one: str, other: str) -> bool:
    """Whether two temporary names are of copies of the same version of a file."""
    left, right = re.match(TEMPORARY, one), re.match(TEMPORARY, other)
    return bool(left and right and left[4] and left[4] == right[4])


def may_be_stale(there: Iterable[str]) -> list[str]:
    """Of the names in a directory, those that look like temporary ones."""
    if PREFIX not in "/".join(there):  # twice for each directory, and nearly always so
        return []
    return [name for name in there if name.startswith(PREFIX)]


def clear_stale(
    there: dict[str, bool], keep: Container[str], depth: int, directory: int, token: str, names: Iterable[str] = ()
) -> dict[str, str]:
    """Remove what dead runs left in an open directory: temporary names whose run holds no lock any more.

    ``there`` says of each name in it whether it is a directory; what is removed is taken out of it. ``keep``: names that
    the source has too, so that they are copies and not leftovers. Unfinished copies of what goes under ``names`` stay:
    returned are their temporary names, by those.

    A run locks a directory; its temporary names say how far up that is. What this run has locked, ``depth`` levels up, no
    other run has, so runs that had locked the same are dead.
    """
    alive: dict[int, bool] = {depth: False}
    unfinished: dict[str, str] = {}  # what is known of it is the digest of its name
    for name in [name for name in may_be_stale(there) if name not in keep]:
        match = re.match(TEMPORARY, name)
        if match and match[1] != token:
            up = int(match[2])
            if up not in alive:
                alive[up] = is_locked(up, directory)
            if not alive[up] and there[name]:
                with contextlib.suppress(OSError):  # not empty: no run's
                    changes.remove_directory(name, directory)
                    del there[name]
            elif not alive[up]:
                if match[4] and match[3] not in unfinished:
                    unfinished[match[3]] = name
                else:
                    changes.remove_if_there(name, directory)
                del there[name]
    wanted = {name: unfinished.pop(digest) for name in names if unfinished and (digest := digest_of(name)) in unfinished}
    for name in unfinished.values():
        changes.remove_if_there(name, directory)
    return wanted


def clear_own(there: dict[str, bool], directory: int, token: str) -> None:
    """Remove what a killed worker of this run left in an open directory. ``there``: as for :func:`clear_stale`."""
    for name in [name for name in there if name.startswith(f"{PREFIX}{token}-")]:
        changes.remove_aside(name, directory)
        del there[name]


def is_temporary(name: str) -> bool:
    return name.startswith(PREFIX) and re.match(TEMPORARY, name) is not None


def lock(directory: int, exclusive: bool) -> None:
    """Lock an open directory for this run; BlockingIOError if another run has it. Ends with the last handle (flock(2))."""
    mark(directory, AT_WORK)
    fcntl.flock(directory, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)


def mark(directory: int, what: int) -> None:
    """Let others see, without a lock of their own, what a run does in an open directory, until its last handle is closed.

    A shared lock of one byte, by the open file description (fcntl(2), F_OFD_SETLK): it is in nobody's way.
    """
    lock_bytes(directory, fcntl.F_RDLCK, what, 1)


def lock_bytes(directory: int, kind: int, start: int, length: int) -> None:
    if hasattr(fcntl, "F_OFD_SETLK"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(directory, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


@contextlib.contextmanager
def released(directory: int) -> Iterator[None]:
    """Close an open directory at the end, and take back its lock and marks.

    A process that the program has forked meanwhile would keep them (flock(2)). After an exception they go with the last
    handle: workers may be still at work, and have one, too.
    """
    try:
        yield
        with contextlib.suppress(OSError):
            fcntl.flock(directory, fcntl.LOCK_UN)
        lock_bytes(directory, fcntl.F_UNLCK, 0, 0)  # all of them
    finally:
        fs.close_read(directory)


def claim(directory: int, deletes: bool, above: bool = True) -> str:
    """Mark the open top of a copy. Returns why it is not to be one, if another run would remove what this one makes there.

    Or the other way round, or if such a run is at work ``above``. Marked first and asked then, so that of two that begin at
    once, at least one sees the other.
    """
    mark(directory, DELETES if deletes else COPIES)
    return in_the_way(directory, deletes) or (in_the_way(directory, deletes, 1) if above else "")


def in_the_way(directory: int, deletes: bool, start: int | None = None) -> str:
    """What another run does to an open directory that keeps one which deletes, or not, from it.

    Or to the directories from ``start`` levels above it on: 0 is itself, opened anew, so that marks of this handle count, too.
    """
    others = {DELETES: DELETED} | ({COPIES: COPIED} if deletes else {})
    for what, why in others.items():
        if is_marked(directory, what) if start is None else any(marks(directory, what, start)):
            return why
    return ""


def is_marked(directory: int, what: int) -> bool | None:
    """Whether a run has marked a directory, by another handle than this one; None if nobody can tell."""
    try:
        return bool(FLOCK.unpack(fcntl.fcntl(directory, fcntl.F_OFD_GETLK, ASKED[what]))[0] != fcntl.F_UNLCK)
    except (AttributeError, OSError):
        return None


def marks(directory: int, what: int, start: int = 0, stop: int | None = None) -> Iterator[bool | None]:
    """As :func:`is_marked`, of the directories from so many levels above one on, as far up as one may go."""
    with contextlib.suppress(OSError):
        for handle in islice(fs.upwards(directory), start, stop):
            try:
                readable = os.open(".", fs.DIRECTORY, dir_fd=handle)
            except OSError:
                yield None
                continue
            try:
                yield is_marked(readable, what)
            finally:
                fs.close_read(readable)


def stay_out_of_deletion(directory: int) -> None:
    """Raises EBUSY if another run removes from an open directory what its own source lacks."""
    if is_marked(directory, DELETES):
        raise OSError(errno.EBUSY, "another run deletes in it: run the same line again when that has ended")


def leave_to_another_run(marked: Iterable[bool | None]) -> None:
    """Raises EBUSY if another run is at work: what it makes is not to be removed."""
    if any(marked):
        changes.refuse_to_remove("another run is copying into it: run the same line again when that has ended")


def is_locked(up: int, directory: int) -> bool:
    """Whether a run has locked the directory so many levels up; also if that cannot be found out, or nothing is there."""
    return next(marks(directory, AT_WORK, up, up + 1), None) is not False
