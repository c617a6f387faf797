"""System calls on directory handles, one to a function.

A function here is named after its operation: when it raises, failures.py reads the operation off the traceback, so that naming
it costs nothing while all is well. No function follows a symbolic link at a name, except for ``follow``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

Target = int | str  # an open handle, or what held() gives for one

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: a FIFO that took the file's place since the scan must not stop us; it changes nothing for regular files.
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# O_PATH needs no permission on the directory itself and costs no request on a network file system.
PASS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
NOFOLLOW = os.O_NOFOLLOW
HERE = -100  # linux/fcntl.h: AT_FDCWD, in place of an open directory: paths start at the working directory
# Reading leaves the access time alone; EPERM for anybody but root and the owner (open(2)).
NOATIME = getattr(os, "O_NOATIME", 0)
UNCACHED = getattr(os, "O_DIRECT", 0)

PROC = os.path.isdir("/proc/self/fd")
SEEK_DATA = getattr(os, "SEEK_DATA", os.SEEK_SET)
FICLONE = 0x40049409  # linux/fs.h; ioctl_ficlone(2)
NOREPLACE, EXCHANGE = 1, 2  # linux/fs.h: RENAME_NOREPLACE, RENAME_EXCHANGE

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
    if len(path) < SHORT:
        return open_to_read(path, directory, follow=True)
    above = os.open(".", PASS, dir_fd=directory)
    try:
        while len(path) >= SHORT and (cut := path.rfind("/", 1, SHORT)) > 0:
            below = pass_through(path[:cut], above, follow=True)
            close_read(above)
            above, path = below, path[cut + 1 :]
        return open_to_read(path, above, follow=True)
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


def is_dead(path: str) -> bool:
    """Whether nothing can be made in a directory, because its file system fails as a whole. Makes a file without a name."""
    try:
        directory = os.open(path, DIRECTORY)
        try:
            close_read(create_unnamed(directory))
        finally:
            close_read(directory)
    except OSError as error:
        return error.errno in DEAD
    return False


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


# ---- making and taking away -----------------------------------------------------------------------------------------


def create(name: str, directory: int) -> int:
    """Make a new file with mode 0600, so that nobody else reads what is not finished."""
    return os.open(name, CREATE, 0o600, dir_fd=directory)


def create_unnamed(directory: int) -> int:
    """Make a file that has no name and goes when it is closed (O_TMPFILE, open(2)). OSError where there is no such thing."""
    if not hasattr(os, "O_TMPFILE"):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)


def open_to_write(name: str, directory: int) -> int:
    return os.open(name, WRITE, dir_fd=directory)


def make_directory(name: str, parent: int, mode: int) -> None:
    os.mkdir(name, mode, dir_fd=parent)


def make_symbolic_link(target: str, name: str, directory: int) -> None:
    os.symlink(target, name, dir_fd=directory)


def make_special(name: str, directory: int, mode: int, device: int) -> None:
    if stat.S_ISFIFO(mode):
        os.mkfifo(name, 0o600, dir_fd=directory)
    else:
        os.mknod(name, stat.S_IFMT(mode) | 0o600, device, dir_fd=directory)


def make_hard_link(old: str, old_directory: int, new: str, directory: int) -> None:
    os.link(old, new, src_dir_fd=old_directory, dst_dir_fd=directory, follow_symlinks=False)


def rename(old: str, new: str, directory: int, replaces: bool = True) -> None:
    """Raises EEXIST if something is to be new and is there, maybe under another spelling, where the file system can tell.

    RENAME_NOREPLACE, renameat2(2), which Python lacks.
    """
    if replaces or not renamed(old, new, directory, NOREPLACE):
        os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)


def renamed(old: str, new: str, directory: int, how: int) -> bool:
    """Rename with a flag of renameat2(2). False if the file system, or the system, cannot do that."""
    library = c_library()
    if not library or not hasattr(library, "renameat2"):
        return False
    if not library.renameat2(directory, os.fsencode(old), directory, os.fsencode(new), how):
        return True
    error = error_of_c()
    if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EPERM):  # EPERM: a filter of system calls
        raise error
    return False


def make_directory_instead(name: str, asides: tuple[str, str], directory: int, mode: int) -> None:
    """Make a directory in the place of what is none, by exchanging the two: whatever happens, one of them is there.

    Where they cannot be exchanged, the other one is put aside for a moment, and is back if the directory cannot be there.
    So is a directory that somebody has put there meanwhile.
    """
    aside, old = asides
    make_directory(aside, directory, mode)
    try:
        if renamed(aside, name, directory, EXCHANGE):
            old = aside
        else:
            rename(name, old, directory)
            try:
                rename(aside, name, directory)
            except BaseException:
                rename(old, name, directory, replaces=False)
                raise
        try:
            remove(old, directory)
        except OSError:
            remove_directory(name, directory)
            rename(old, name, directory, replaces=False)
            raise
    except BaseException:
        remove_aside(aside, directory)
        raise


def remove_aside(name: str, directory: int) -> None:
    """Take away what has a temporary name: a file, or a directory that is not in its place yet, and so empty."""
    try:
        remove_if_there(name, directory)
    except OSError:  # EISDIR, EPERM (unlink(2))
        with contextlib.suppress(OSError):
            remove_directory(name, directory)


def remove(name: str, directory: int) -> None:
    os.unlink(name, dir_fd=directory)


def remove_if_there(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return


def remove_some(names: Iterable[str], directory: int, deadline: float, directories: list[str] | None = None) -> int:
    """How many names, from the first on, are gone: up to one that cannot be removed, or to the deadline (monotonic).

    With ``directories``, what unlink(2) says to be one is put there, and counts too.
    """
    done, unlink, monotonic = 0, os.unlink, time.monotonic
    for name in names:
        if done and monotonic() >= deadline:
            break
        try:
            unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            if directories is None or error.errno != errno.EISDIR:
                break
            directories.append(name)
        done += 1
    return done


def remove_directory(name: str, parent: int, pretend: bool = False) -> None:
    """Raises ENOTEMPTY if it holds anything; if that is all that is to be found out, touches nothing."""
    if not pretend:
        os.rmdir(name, dir_fd=parent)
        return
    handle = open_directory(name, parent)
    try:
        if os.listdir(handle):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
    finally:
        close_read(handle)


def refuse_to_remove(reason: str) -> None:
    raise OSError(errno.EBUSY, reason)


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


def sync(handle: int) -> None:
    """Wait until a file, or a directory's names, are on stable storage (fsync(2))."""
    os.fsync(handle)


def sync_file_system(handle: int) -> None:
    """Wait until all of a file system is on stable storage (syncfs(2), which Python lacks).

    Raises OSError also for what could not be written since the handle was opened.
    """
    library = c_library()
    if not library or not hasattr(library, "syncfs"):
        os.sync()
    elif library.syncfs(handle):
        raise error_of_c()


def write_out(handle: int) -> None:
    """Wait until the contents of a file have left memory, where the file system can tell (fdatasync(2))."""
    try:
        os.fdatasync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def begin_to_read(handle: int, size: int) -> None:
    """Have so many bytes from the start of a file fetched, and do not wait (POSIX_FADV_WILLNEED, posix_fadvise(2))."""
    try:  # noqa: SIM105 - suppress() takes longer than the call
        os.posix_fadvise(handle, 0, size, os.POSIX_FADV_WILLNEED)
    except (OSError, AttributeError):  # it is no promise; and not all systems have it
        pass


def forget(handle: int, start: int, size: int) -> None:
    """Drop what memory holds of a part of a file, to the end if ``size`` is 0; what is not written out yet begins to be.

    POSIX_FADV_DONTNEED, posix_fadvise(2); generic_fadvise() in mm/fadvise.c. tmpfs has nowhere else to read it from.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(handle, start, size, os.POSIX_FADV_DONTNEED)


def verify(same: bool, position: int) -> None:
    """Raises if what was read back is not what was copied. No number: to do it again would only hide bad storage."""
    if not same:
        raise OSError(f"read back, the copy differs from its source at byte {position:,} or after: check the storage")


def read(source: int, size: int) -> bytes:
    return os.read(source, size)


def read_uncached(source: int, buffer: memoryview) -> int:
    """Read from the current offset past the page cache (O_DIRECT, open(2)). 0 at the end, and where that cannot be.

    What is in the cache and not written out yet is written first (kiocb_write_and_wait() in mm/filemap.c, nfs_sync_mapping()).
    The flag is set here and not by open, because a FUSE server would open its own file with it, and might not be ready for
    what it asks of addresses and lengths.
    """
    flags = fcntl.fcntl(source, fcntl.F_GETFL)
    try:
        fcntl.fcntl(source, fcntl.F_SETFL, flags | UNCACHED)
        return os.readv(source, [buffer])
    except OSError:
        return 0
    finally:
        fcntl.fcntl(source, fcntl.F_SETFL, flags)


def read_into(source: int, buffer: memoryview, position: int) -> int:
    return os.preadv(source, [buffer], position)


def write(target: int, block: bytes | memoryview) -> None:
    """Write all of the block."""
    view = memoryview(block)
    while view:
        view = view[os.write(target, view) :]


def set_length(target: int, size: int) -> None:
    os.ftruncate(target, size)


def share_blocks(source: int, target: int) -> None:
    """Make ``target`` a reflink of ``source`` (ioctl_ficlone(2))."""
    fcntl.ioctl(target, FICLONE, source)


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
