"""What kind of file system a directory is on, and what can be relied on there."""

from __future__ import annotations

import os

from pcopy import filesystem as fs

# Their times come from the clock of this machine.
LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "tmpfs", "ramfs"})
# Another machine or process keeps the files, and each call is a question to it.
ELSEWHERE = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "gpfs", "beegfs", "afs", "9p", "virtiofs", "fuse",
})  # fmt: skip
# What is closed there is as safe as it will be: in memory, or elsewhere. Others write it to a disk when they like.
OFF_DISK = ELSEWHERE | {"tmpfs", "ramfs"}
# Each block of a file that was not written shows as a hole. Elsewhere what surrounds the bytes that were written can be shown
# as data too: on tmpfs a page of 2 MiB, on ZFS a record of up to 16.
EXACT = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs"})
LAYERED = "overlay"
SELINUX = "/sys/fs/selinux/enforce"  # is there where it is at work


def mount_of(handle: int) -> str:
    """The number of the mount that an open handle is on (proc_pid_fdinfo(5)). Raises OSError, StopIteration."""
    with open(f"/proc/self/fdinfo/{handle}", encoding="ascii") as lines:
        return next(line.split()[1] for line in lines if line.startswith("mnt_id:"))


def mount_or_device(handle: int) -> str:
    """The same, or the number of the device where nobody says on which mount it is. Raises OSError."""
    try:
        return mount_of(handle)
    except (FileNotFoundError, PermissionError, StopIteration):  # no /proc; not such as EMFILE, for one of two to be compared
        return str(os.fstat(handle).st_dev)


def is_mount(name: str, parent: int) -> bool:
    """Whether something is mounted on a directory in an open one. Raises OSError."""
    handle = fs.pass_through(name, parent)
    try:
        return mount_or_device(handle) != mount_or_device(parent)
    finally:
        fs.close_read(handle)


def kind_of(path: str) -> str:
    """The type of the file system that a directory is on; nothing if that cannot be found out."""
    return mount_at(path).partition(" ")[0]


def deepest_there(path: str) -> str:
    """A directory, or the one above it in which it is to be made, on its file system."""
    while not os.path.isdir(path) and (above := os.path.dirname(path)) != path:
        path = above
    return path


def takes_labels(path: str) -> bool:
    """Whether SELinux's labels can be set where a directory is: not where it is at work, and gives one to the whole mount.

    Then it shows no option "seclabel" (selinux_sb_show_options() in security/selinux/hooks.c).
    """
    mount = mount_at(path) if os.path.exists(SELINUX) else ""
    return not mount or "seclabel" in mount.rpartition(" ")[2].split(",")


def mount_at(path: str) -> str:
    """The type, source and options of the file system that a directory is on; nothing if that cannot be found out.

    The kernel says which mount an open handle is on (proc_pid_fdinfo(5), proc_pid_mountinfo(5)): by the paths alone nobody
    can tell, because a later mount hides those below it.
    """
    try:
        handle = os.open(path, fs.PASS)
        try:
            mount = mount_of(handle)
        finally:
            fs.close_read(handle)
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            line = next(line for line in lines if line.startswith(f"{mount} "))
        return line.rstrip("\n").partition(" - ")[2]  # spaces and newlines in names are escaped, nothing else is
    except (OSError, StopIteration):
        return ""


def is_on_disk(kind: str) -> bool:
    """Whether a power cut can take from a file what was written to it, and leave its length and times."""
    return kind.partition(".")[0] not in OFF_DISK


def is_elsewhere(kind: str) -> bool:
    """Whether each call is a question to another machine or process."""
    return kind.partition(".")[0] in ELSEWHERE
