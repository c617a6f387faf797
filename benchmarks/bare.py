"""The least that a copy can take from Python: a bare loop of its system calls, by some processes that have nothing to say.

    python -m benchmarks.bare fresh|rerun|large SOURCE COPY PROCESSES

The calls are those that pcopy makes for plain files without attributes, and for their directories. What is left out is all that
it does between them: whatever else a tree may hold, failures, limits, times to stop, the report. Click is imported, because
whoever has a command line waits for that, too. It is no tool to copy with: a call that fails ends it with a traceback.
"""

from __future__ import annotations

import gc
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial

import click  # noqa: F401 - see above

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# Subtrees to share among the processes: with fewer the last one is still busy when the others have nothing left.
SUBTREES = 300
FIRST = 1 << 20  # bytes of a file by one call
SPAN = 8 << 20  # bytes of a large file for one process

Job = Callable[[], None]


class Fresh:
    """A copy of what is not there yet."""

    def begin(self, name: str, above: int, below: int) -> tuple[int, int]:
        source = os.open(name, DIRECTORY, dir_fd=above)
        os.mkdir(name, 0o700, dir_fd=below)
        return source, os.open(name, DIRECTORY, dir_fd=below)

    def files(self, source: int, copy: int, names: Sequence[str]) -> None:
        open_, fstat, close, chmod, utime = os.open, os.fstat, os.close, os.fchmod, os.utime
        copy_file_range, listxattr = os.copy_file_range, os.listxattr
        for name in names:
            one = open_(name, READ, dir_fd=source)
            other = open_(name, CREATE, 0o600, dir_fd=copy)
            copy_file_range(one, other, FIRST)
            state = fstat(one)
            listxattr(one)
            chmod(other, state.st_mode & 0o7777)
            utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
            close(other)
            close(one)

    def end(self, source: int, copy: int) -> None:
        state = os.fstat(source)
        os.listxattr(source)
        os.fchmod(copy, state.st_mode & 0o7777)
        os.utime(copy, ns=(state.st_atime_ns, state.st_mtime_ns))


class Rerun:
    """A look at what is there already, and has not changed."""

    def begin(self, name: str, above: int, below: int) -> tuple[int, int]:
        source, copy = os.open(name, DIRECTORY, dir_fd=above), os.open(name, DIRECTORY, dir_fd=below)
        assert os.fstat(source).st_mtime_ns == os.fstat(copy).st_mtime_ns
        assert not os.listxattr(source) + os.listxattr(copy)
        assert os.listdir(copy) is not None
        return source, copy

    def files(self, source: int, copy: int, names: Sequence[str]) -> None:
        stat, listxattr = os.stat, os.listxattr
        os.chdir(source)  # there is no call that lists attributes of a name in an open directory
        for name in names:
            one, other = stat(name, dir_fd=source, follow_symlinks=False), stat(name, dir_fd=copy, follow_symlinks=False)
            assert one.st_mtime_ns == other.st_mtime_ns and one.st_size == other.st_size and one.st_mode == other.st_mode
            assert one.st_uid == other.st_uid and one.st_gid == other.st_gid and not listxattr(name, follow_symlinks=False)

    def end(self, source: int, copy: int) -> None:
        pass


def names_in(directory: int) -> tuple[list[str], list[str]]:
    """The names of files in a directory, and of directories."""
    names: tuple[list[str], list[str]] = [], []
    with os.scandir(directory) as entries:
        for entry in entries:
            names[entry.is_dir(follow_symlinks=False)].append(entry.name)
    return names


def subtree(way: Fresh | Rerun, name: str, above: int, below: int) -> None:
    source, copy = way.begin(name, above, below)
    files, directories = names_in(source)
    way.files(source, copy, files)
    for one in directories:
        subtree(way, one, source, copy)
    way.end(source, copy)
    os.close(source)
    os.close(copy)


def tree(way: Fresh | Rerun, source: str, copy: str, processes: int) -> None:
    """The directories near the top are begun here, without their files, until there is enough to share."""
    if isinstance(way, Fresh):
        os.mkdir(copy, 0o700)
    opened = [(os.open(source, DIRECTORY), os.open(copy, DIRECTORY))]
    jobs: list[Job] = []
    below: list[tuple[str, int, int]] = []
    for source_handle, copy_handle in opened:
        files, directories = names_in(source_handle)
        jobs.append(partial(way.files, source_handle, copy_handle, files))
        below += [(name, source_handle, copy_handle) for name in directories]
        if source_handle == opened[-1][0] and len(below) < SUBTREES:  # one level more
            opened += [way.begin(*one) for one in below]
            below = []
    share([*jobs, *(partial(subtree, way, *one) for one in below)], processes)
    for pair in reversed(opened):
        way.end(*pair)


def large(source: str, copy: str, processes: int) -> None:
    """The large files of a directory, read past the page cache."""
    os.mkdir(copy, 0o700)
    jobs: list[Job] = []
    for name in os.listdir(source):
        one = os.open(f"{source}/{name}", os.O_RDONLY | os.O_DIRECT)
        other = os.open(f"{copy}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        jobs += [partial(span, one, other, start) for start in range(0, os.fstat(one).st_size, SPAN)]
    share(jobs, processes)


def span(one: int, other: int, start: int) -> None:
    with mmap.mmap(-1, FIRST) as buffer:
        for position in range(start, start + SPAN, FIRST):
            count = os.preadv(one, [buffer], position)
            os.pwrite(other, memoryview(buffer)[:count], position)


def share(jobs: Sequence[Job], processes: int) -> None:
    """Have processes take the next job each, until there is none."""
    numbers, end = os.pipe()
    gc.disable()
    children = [start(jobs, numbers, end) for _ in range(processes)]
    os.close(numbers)
    with open(end, "wb") as pipe:
        pipe.write(b"".join(number.to_bytes(4, "little") for number in range(len(jobs))))
    for child in children:
        if os.waitpid(child, 0)[1]:
            sys.exit("a process failed")


def start(jobs: Sequence[Job], numbers: int, end: int) -> int:
    if child := os.fork():
        return child
    os.close(end)
    while number := os.read(numbers, 4):
        jobs[int.from_bytes(number, "little")]()
    os._exit(0)


def main() -> None:
    if sys.argv[1:] == ["--help"]:
        print(__doc__)
        return
    if len(sys.argv) != 5 or sys.argv[1] not in ("fresh", "rerun", "large"):
        sys.exit(__doc__)
    how, source, copy, processes = sys.argv[1:]
    if how == "large":
        large(source, copy, int(processes))
    else:
        tree(Rerun() if how == "rerun" else Fresh(), source, copy, int(processes))


if __name__ == "__main__":
    main()
