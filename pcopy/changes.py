"""System calls that make names in a directory, change them and take them away; named as in filesystem.py."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterable

from pcopy.filesystem import DEAD, DIRECTORY, c_library, close_read, error_of_c, open_directory

CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
NOREPLACE, EXCHANGE = 1, 2  # linux/fs.h: RENAME_NOREPLACE, RENAME_EXCHANGE


def create(name: str, directory: int) -> int:
    """Make a new file with mode 0600, so that nobody else reads what is not finished."""
    return os.open(name, CREATE, 0o600, dir_fd=directory)


def create_unnamed(directory: int) -> int:
    """Make a file that has no name and goes when it is closed (O_TMPFILE, open(2)). OSError where there is no such thing."""
    if not hasattr(os, "O_TMPFILE"):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)


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
