"""System calls on the bytes of open files, in memory and on the storage; named as in filesystem.py."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from pcopy.filesystem import c_library, error_of_c

UNCACHED = getattr(os, "O_DIRECT", 0)
FICLONE = 0x40049409  # linux/fs.h; ioctl_ficlone(2)


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
