"""System calls on directory handles, one to a function.

A function here is named after its operation: when it raises, failures.py reads the operation off the traceback, so that naming
it costs nothing while all is well. No function follows a symbolic link at a name, except for ``follow``.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

Target = int | str  # an open handle, or what held() gives for one

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: a FIFO that took the file's place since the scan must not stop us; it changes nothing for regular files.
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
# O_PATH needs no permission on the directory itself and costs no request on a network file system.
PASS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
NOFOLLOW = os.O_NOFOLLOW
HERE = -100  # linux/fcntl.h: AT_FDCWD, in place of an open directory: paths start at the working directory
# Reading leaves the access time alone; EPERM for anybody but root and the owner (open(2)).
NOATIME = getattr(os, "O_NOATIME", 0)

PROC = os.path.isdir("/proc/self/fd")
SEEK_DATA = getattr(os, "SEEK_DATA", os.SEEK_SET)

SOME = 1000  # entries of a directory, read at a time
SHORT = 1000  # characters of a path that any call takes, four bytes each (PATH_MAX)
# What a file system that was shut down says to everything: ext4 and xfs after an error of theirs, FUSE without its server.
DEAD = frozenset({errno.EIO, errno.ENOTCONN, errno.ECONNABORTED})
# The destination may be gone: unmounted, moved away, removed, replaced; or its file system is dead.
PERHAPS_GONE = DEAD | {errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENXIO, errno.ENODEV}
# It may go better at another time: a network or a disk that recovers.
PASSING = frozenset({errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT})
# ---- looking --------------------------------------------------------------------------------------------------------


def look_at(name: str, directory: int, follow: bool = False) -> os.stat_result:
    return os.stat(name, dir_fd=directory, follow_symlinks=follow)


def look_if_there(name: str, directory: int) -> os.stat_result | None:
    """The state of ``name``, or None if there is no such entry."""
    try:
        return look_at(name, directory)
    except FileNotFoundError:
        return None


def open_to_read(name: str, directory: int, follow: bool = False) -> int:
    """Open to read, and leave the access time alone where we may."""
    flags = READ if follow else READ | NOFOLLOW
    try:
        return os.open(name, flags | NOATIME, dir_fd=directory)
    except PermissionError as error:
        if error.errno != errno.EPERM:
            raise
        return os.open(name, flags, dir_fd=directory)


def open_deep(path: str, directory: int) -> int:
    """Open a file to read, however long its path below an open directory is. Links are followed."""
    if len(path) < SHORT:  # as nearly always: there is one call for each file that is checked
        return open_to_read(path, directory, follow=True)
    with shortened(path, directory) as (rest, above):
        return open_to_read(rest, above, follow=True)


def look_deep(path: str, follow: bool = False) -> os.stat_result:
    """The state of an entry, however long its path is."""
    with shortened(path, HERE) as (rest, above):
        return look_at(rest, above, follow)


@contextlib.contextmanager
def shortened(path: str, directory: int) -> Iterator[tuple[str, int]]:
    """As much of the end of a path as any call takes, and the open directory that it starts at. Links up to it are followed."""
    above = os.open("/" if path.startswith("/") else ".", PASS, dir_fd=directory)
    try:
        while len(path) >= SHORT and (cut := path.rfind("/", 1, SHORT)) > 0:
            below = pass_through(path[:cut], above, follow=True)
            close_read(above)
            above, path = below, path[cut + 1 :]
        yield path, above
    finally:
        close_read(above)


def open_top(path: str, inode: tuple[int, int]) -> int:
    """Open a tree's top by its path. Raises ESTALE if it is not the inode that it was when the run began."""
    handle = os.open(path, PASS)
    state = os.fstat(handle)
    if (state.st_dev, state.st_ino) != inode:
        close_read(handle)
        raise OSError(errno.ESTALE, "replaced by another directory during the run", path)
    return handle


def is_gone(path: str, inode: tuple[int, int]) -> bool:
    """Whether a path does not lead to the directory any more that it led to when the run began, or nobody can tell."""
    try:
        state = os.stat(path)
    except OSError:
        return True
    return (state.st_dev, state.st_ino) != inode


def upwards(directory: int) -> Iterator[int]:
    """Handles of a directory and of all above it, to the root, to pass through; each is closed when the next is asked for."""
    handle = os.open(".", PASS, dir_fd=directory)
    try:
        while True:
            yield handle
            below, handle = handle, os.open("..", PASS, dir_fd=handle)
            at_root = os.path.samestat(os.fstat(below), os.fstat(handle))
            close_read(below)
            if at_root:
                return
    finally:
        close_read(handle)


def inodes_above(directory: int) -> Iterator[tuple[int, int]]:
    """Of all directories above an open one, up to the root."""
    for handle in islice(upwards(directory), 1, None):
        state = os.fstat(handle)
        yield state.st_dev, state.st_ino


def open_directory(name: str, parent: int, follow: bool = False) -> int:
    """As :func:`open_to_read`."""
    flags = DIRECTORY if follow else DIRECTORY | NOFOLLOW
    try:
        return os.open(name, flags | NOATIME, dir_fd=parent)
    except PermissionError as error:
        if error.errno != errno.EPERM:
            raise
        return os.open(name, flags, dir_fd=parent)


def reopen_directory(handle: int) -> int:
    """As :func:`open_to_read`, of what was opened to pass through, also by somebody who may read it and not pass through."""
    try:
        return open_directory(".", handle)
    except PermissionError:
        target = held(handle)
        if isinstance(target, int):
            raise
        return os.open(target, DIRECTORY)


def pass_through(name: str, parent: int, follow: bool = False) -> int:
    """Open a directory as a place to name things in, not to read."""
    return os.open(name, PASS if follow else PASS | NOFOLLOW, dir_fd=parent)


def read_directory(handle: int) -> Iterator[list[os.DirEntry[str]]]:
    """The entries of an open directory, some at a time; the handle stays open. What fails on the way fails in here."""
    with os.scandir(handle) as entries:
        while some := list(islice(entries, SOME)):
            yield some


def names_in(handle: int, follow: bool = False) -> tuple[list[str], list[str], list[str]]:
    """The names in an open directory: of directories, of regular files, of all else."""
    directories: list[str] = []
    regular: list[str] = []
    other: list[str] = []
    for some in read_directory(handle):
        for entry in some:
            try:
                if entry.is_file(follow_symlinks=follow):
                    regular.append(entry.name)
                elif entry.is_dir(follow_symlinks=follow):
                    directories.append(entry.name)
                else:
                    other.append(entry.name)
            except OSError:  # of an unknown type, and it cannot be looked at: whoever copies it will say why
                other.append(entry.name)
    return directories, regular, other


def list_directory(handle: int) -> dict[str, bool]:
    """The names in an open directory, and whether each is a directory."""
    return {entry.name: is_directory(entry) for some in read_directory(handle) for entry in some}


def is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:  # of an unknown type, and it cannot be looked at: whoever does something with it will say why
        return False


def wait_for_writes(handle: int) -> None:
    """Return when all that was being written to an open file, by writes that began before this, is in it.

    A write sets the times of a file before it changes the first byte: half of it can be there while no time changes any more.
    It has the inode locked from before until it ends (generic_file_write_iter() in mm/filemap.c), and to seek for data takes
    that lock (shmem_file_llseek(), ext4_llseek(), find_desired_extent() of btrfs). On xfs every read does.
    Nothing of that holds where somebody else keeps the file.
    """
    if hasattr(os, "SEEK_DATA"):
        with contextlib.suppress(OSError):
            if os.lseek(handle, 0, os.SEEK_DATA):
                os.lseek(handle, 0, os.SEEK_SET)


def read_link(name: str, directory: int) -> str:
    return os.readlink(name, dir_fd=directory)


# ---- what Python lacks ----------------------------------------------------------------------------------------------


@cache
def c_library() -> ctypes.CDLL | None:
    """Loaded when it is needed: importing ctypes takes 3 ms. None where Python was built without it."""
    try:
        import ctypes
    except ImportError:
        return None
    return ctypes.CDLL(None, use_errno=True)


def error_of_c() -> OSError:
    """Of the last call of the C library."""
    import ctypes

    return OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def as_many_as_handles_allow(most: int, each: int) -> int:
    """How many of something there can be for which the limit on open handles has to allow so many each."""
    limit = os.sysconf("SC_OPEN_MAX")  # -1: none
    return most if limit < 0 else min(most, limit // each)


def close_read(handle: int) -> None:
    """An error says nothing about what was only read: that is all there."""
    try:  # noqa: SIM105 - for each directory twice, and suppress() takes longer than the call
        os.close(handle)
    except OSError:
        pass


def close_all_read(handles: list[int]) -> None:
    """Close what was only read, neighbours by one call (close_range(2)), and empty the list."""
    handles.sort()
    try:
        while handles:
            last = first = handles.pop()
            while handles and handles[-1] == first - 1:
                first = handles.pop()
            os.closerange(first, last + 1)
    finally:
        while handles:  # a signal handler raised: the calls can take long, and signals come in them
            close_read(handles.pop())


def close_written(handle: int) -> None:
    """Network file systems say only here that a write failed (close(2))."""
    os.close(handle)


# ---- by name --------------------------------------------------------------------------------------------------------


def by_name(name: str, directory: int) -> str:
    """A path to an entry of an open directory, for calls that take no directory handle."""
    if not PROC:
        raise OSError(errno.ENOSYS, "this needs /proc to be mounted")
    return f"/proc/self/fd/{directory}/{name}"


def hold(name: str, directory: int, follow: bool = False) -> int:
    """A handle that stands for an entry of any kind without opening it (O_PATH, open(2); O_SYMLINK on macOS)."""
    if hasattr(os, "O_PATH"):
        return os.open(name, os.O_PATH | os.O_CLOEXEC | (0 if follow else NOFOLLOW), dir_fd=directory)
    return os.open(name, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else getattr(os, "O_SYMLINK", 0)), dir_fd=directory)


def held(handle: int) -> Target:
    """What to give to attributes.py for a handle from :func:`hold`; it means a symbolic link, not its target."""
    if not hasattr(os, "O_PATH"):
        return handle
    if not PROC:
        raise OSError(errno.ENOSYS, "this needs /proc to be mounted")
    return f"/proc/self/fd/{handle}"
