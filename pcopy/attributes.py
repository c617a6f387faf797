"""Owner, mode, times and extended attributes: system calls, named as in filesystem.py."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Container, Iterable

from pcopy.filesystem import Target, by_name
from pcopy.roaming import Process

XATTRS = hasattr(os, "listxattr")
# The file system cannot do it, or may not for us: the copy goes on without.
UNABLE = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENODATA})
UNKNOWN = frozenset({errno.ENOTSUP, errno.ENOSYS})  # there is no such thing
# Nor may it be read: a capability of another user namespace (capabilities(7), "Namespaced file capabilities").
UNREADABLE = UNABLE | {errno.EOVERFLOW}
# This one attribute is too large for the file system (setxattr(2); ext4 says ENOSPC: a value has to fit into one block).
TOO_LARGE = frozenset({errno.E2BIG, errno.ERANGE, errno.ENOSPC})
LARGEST_ATTRIBUTE = 64 << 10  # bytes (XATTR_SIZE_MAX, xattr(7))
# What file systems keep in this way for themselves is neither copied nor compared nor dropped. Lustre shows on each file where
# its parts are (mpifileutils issue 49); security.evm is the kernel's, and of one inode; libattr's xattr.conf skips the others.
INTERNAL = frozenset({"trusted.lov", "trusted.lma", "trusted.lmv", "trusted.link", "security.evm"})
INTERNAL_KINDS = ("lustre.", "afs.", "xfsroot.", "trusted.SGI_")
EVERY_ID = (1 << 32) - 1  # how many there are: the last one is chown(2)'s word for none
GROUP_OBJ = 0x04  # linux/posix_acl.h: ACL_GROUP_OBJ


class Ids(Container[int]):
    """User or group ids."""

    def __init__(self, ranges: Iterable[range]) -> None:
        self.ranges = list(ranges)

    def __contains__(self, number: object) -> bool:
        return any(number in one for one in self.ranges)


def known_ids(kind: str) -> Ids:
    """The ids of a kind, ``uid`` or ``gid``, that mean something in this process's user namespace (user_namespaces(7))."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/self/{kind}_map", "rb") as file:
        return Ids(range(int(first), int(first) + int(count)) for first, _, count in map(bytes.split, file))
    return Ids([range(EVERY_ID)])


def may_give_away() -> bool:
    """Whether this process may set any owner that its user namespace knows (CAP_CHOWN, capabilities(7)).

    Where /proc does not say so, root may.
    """
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/status", "rb") as file:
        return bool(int(file.read().split(b"\nCapEff:")[1].split()[0], 16) & 1)
    return os.geteuid() == 0


def ids_to_give(any_known: bool) -> tuple[Container[int], Container[int]]:
    """The users and the groups that this process may give its files to (chown(2)): any that it knows, or only its own."""
    users, groups = known_ids("uid"), known_ids("gid")
    if any_known:
        return users, groups
    return {os.geteuid()}, {group for group in (os.getegid(), *os.getgroups()) if group in groups}


def set_owner(target: Target, uid: int, gid: int) -> None:
    os.chown(target, uid, gid)


def set_mode(target: Target, mode: int) -> None:
    os.chmod(target, mode)


def set_times(target: Target, atime_ns: int, mtime_ns: int) -> None:
    os.utime(target, ns=(atime_ns, mtime_ns))


def attributes_of(target: Target) -> list[str]:
    """Names of the extended attributes; none where the system or the file system has no such thing."""
    try:
        return without_internal(os.listxattr(target)) if XATTRS else []
    except OSError as error:
        if error.errno in UNKNOWN:
            return []
        raise


def without_internal(names: list[str]) -> list[str]:
    """Those that belong to the file."""
    return [name for name in names if name not in INTERNAL and not name.startswith(INTERNAL_KINDS)] if names else names


def read_attribute(target: Target, name: str, follow: bool = True) -> bytes | None:
    """The value of an extended attribute, or None if there is none for us."""
    try:
        return os.getxattr(target, name, follow_symlinks=follow)
    except OSError as error:
        if error.errno in UNREADABLE:
            return None
        raise


def way_to(directory: int) -> str:
    """What to put before a name in an open directory for calls that take no directory handle; it holds until the next call.

    If this process may go there, nothing: the kernel then finds the name three times as fast as by way of /proc.
    """
    if Process.roams:
        os.fchdir(directory)
        return ""
    return by_name("", directory)


def attributes_by_name(name: str, directory: int, follow: bool = False) -> dict[str, bytes]:
    """All extended attributes of an entry, without opening it."""
    return read_attributes(way_to(directory) + name, follow)


def read_attributes(target: Target, follow: bool = True) -> dict[str, bytes]:
    """The extended attributes with their values; none where the system or the file system has no such thing."""
    if not XATTRS:
        return {}
    try:
        names = without_internal(os.listxattr(target, follow_symlinks=follow))
    except OSError as error:
        if error.errno in UNKNOWN:
            return {}
        raise
    return {name: value for name in names if (value := read_attribute(target, name, follow)) is not None}


def is_unknown(name: str, directory: int, attribute: str) -> bool:
    """Whether the file system of an entry says that it has no attributes of this kind."""
    try:
        os.getxattr(way_to(directory) + name, attribute, follow_symlinks=False)
    except OSError as error:
        return error.errno in UNKNOWN
    return False


def write_attribute(target: Target, name: str, value: bytes) -> None:
    os.setxattr(target, name, value)


def has_room(target: Target) -> bool:
    """Whether the file system could take an attribute of any size."""
    room = os.statvfs(target)
    blocks = room.f_bavail if os.geteuid() else room.f_bfree
    return blocks * room.f_frsize > LARGEST_ATTRIBUTE


def group_in_acl(value: bytes) -> int:
    """What an ACL gives to the group of the file, of rwx (linux/posix_acl_xattr.h: tag, permissions, id of each entry)."""
    entries = struct.iter_unpack("<HHI", value[4:] if len(value) % 8 == 4 else b"")
    return next((permissions & 0o7 for tag, permissions, _ in entries if tag == GROUP_OBJ), 0)


def drop_attribute(target: Target, name: str) -> None:
    os.removexattr(target, name)
