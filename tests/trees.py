"""Trees as data: make one, read one back, compare. Shares no code with pcopy.

make_tree(tmp_path / "src", {"a": File(b"text", mode=0o600), "d": Dir({"l": Link("../a")}), "h": Hard("a")})
assert read_tree(tmp_path / "dst") == read_tree(tmp_path / "src")
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

WHEN = 1_500_000_000_123_456_789  # nanoseconds: a time that no copy has by chance


@dataclass(frozen=True)
class File:
    data: bytes = b""
    mode: int = 0o644
    mtime_ns: int = WHEN
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    owner: tuple[int, int] | None = None


@dataclass(frozen=True)
class Holes:
    """A sparse file: {offset: data} within a length."""

    length: int
    data: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Dir:
    entries: Mapping[str | bytes, object] = field(default_factory=dict)
    mode: int = 0o755
    mtime_ns: int = WHEN
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Link:
    target: str | bytes
    mtime_ns: int = WHEN


@dataclass(frozen=True)
class Hard:
    """Another name of an entry made earlier; its path is from the top of the tree."""

    first: str


@dataclass(frozen=True)
class Fifo:
    mode: int = 0o640


@dataclass(frozen=True)
class Socket:
    pass


@dataclass(frozen=True)
class Device:
    """Needs root. The null device unless told otherwise."""

    kind: int = stat.S_IFCHR
    major: int = 1
    minor: int = 3


def make_tree(top: Path | str, entries: Mapping[str | bytes, object] | Mapping[str, object], mode: int = 0o755) -> Path:
    """Make a directory with these entries. Strings and bytes stand for files with that content."""
    root = os.fsencode(top)
    os.makedirs(root, exist_ok=True)
    for name, entry in entries.items():
        make_entry(root, os.path.join(root, os.fsencode(name)), entry)
    os.chmod(root, mode)
    os.utime(root, ns=(WHEN, WHEN))
    return Path(os.fsdecode(root))


def make_entry(root: bytes, path: bytes, entry: object) -> None:
    if isinstance(entry, (str, bytes)):
        entry = File(entry.encode() if isinstance(entry, str) else entry)
    if isinstance(entry, File):
        write_file(path, entry)
    elif isinstance(entry, Holes):
        with open(path, "wb") as file:
            file.truncate(entry.length)
            for offset, data in entry.data.items():
                file.seek(offset)
                file.write(data)
        os.utime(path, ns=(WHEN, WHEN))
    elif isinstance(entry, Dir):
        os.mkdir(path)
        for name, below in entry.entries.items():
            make_entry(root, os.path.join(path, os.fsencode(name)), below)
        for key, value in entry.xattrs.items():
            os.setxattr(path, key, value)
        os.chmod(path, entry.mode)
        os.utime(path, ns=(entry.mtime_ns - 7, entry.mtime_ns))
    elif isinstance(entry, Link):
        os.symlink(os.fsencode(entry.target), path)
        os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
    elif isinstance(entry, Hard):
        os.link(os.path.join(root, os.fsencode(entry.first)), path, follow_symlinks=False)
    else:
        make_special(path, entry)


def write_file(path: bytes, entry: File) -> None:
    with open(path, "wb") as file:
        file.write(entry.data)
    for key, value in entry.xattrs.items():
        os.setxattr(path, key, value)
    if entry.owner:
        os.chown(path, *entry.owner)
    os.chmod(path, entry.mode)
    os.utime(path, ns=(entry.mtime_ns - 5, entry.mtime_ns))


def make_special(path: bytes, entry: object) -> None:
    if isinstance(entry, Fifo):
        os.mkfifo(path)
        os.chmod(path, entry.mode)
    elif isinstance(entry, Socket):
        handle = os.open(os.path.dirname(path), os.O_PATH)  # the address of a socket is at most 108 bytes long
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(f"/proc/self/fd/{handle}/{os.fsdecode(os.path.basename(path))}")
        os.close(handle)
    elif isinstance(entry, Device):
        os.mknod(path, entry.kind | 0o620, os.makedev(entry.major, entry.minor))
    else:
        raise TypeError(entry)
    os.utime(path, ns=(WHEN, WHEN))


@dataclass(frozen=True)
class State:
    """All of an entry that a copy has to have, but for its access time and its inode number."""

    kind: str
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    content: str  # digest of a file, target of a link, numbers of a device
    xattrs: tuple[tuple[str, bytes], ...]
    names: frozenset[bytes]  # all the names in the tree of an inode that has several


def read_tree(top: Path | str) -> dict[bytes, State]:
    """{path: State} of a tree; the top itself is b"." ."""
    root = os.fsencode(top)
    paths = [b"."]
    for where, directories, names in os.walk(root):
        paths += [os.path.relpath(os.path.join(where, name), root) for name in directories + names]
    by_inode: dict[int, set[bytes]] = {}
    for path in paths:
        state = os.lstat(os.path.join(root, path))
        if state.st_nlink > 1 and not stat.S_ISDIR(state.st_mode):
            by_inode.setdefault(state.st_ino, set()).add(path)
    return {path: read_entry(os.path.join(root, path), by_inode) for path in paths}


def read_entry(path: bytes, by_inode: Mapping[int, set[bytes]]) -> State:
    state = os.lstat(path)
    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}.get(stat.S_IFMT(state.st_mode), "special")
    content = ""
    if kind == "file":
        with open(path, "rb") as file:
            content = (
                f"{state.st_size} {hashlib.file_digest(file, 'sha1').hexdigest()}"
                if hasattr(hashlib, "file_digest")
                else (f"{state.st_size} {hashlib.sha1(file.read()).hexdigest()}")
            )
    elif kind == "link":
        content = repr(os.readlink(path))
    elif kind == "special":
        content = f"{stat.S_IFMT(state.st_mode):o} {state.st_rdev}"
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = tuple((os.fsdecode(name), os.getxattr(path, name, follow_symlinks=False)) for name in names)
    mode = 0 if kind == "link" else stat.S_IMODE(state.st_mode)
    group = frozenset(by_inode.get(state.st_ino, ()))
    return State(kind, mode, (state.st_uid, state.st_gid), state.st_mtime_ns, content, xattrs, group)
