"""Owner, extended attributes, mode, times: in this order.

- The owner first, so that no set-uid bit is ever on a file of the wrong owner, and because chown(2) clears those bits
  and the capabilities in security.capability.
- Extended attributes before the mode: an ACL sets the mode's group bits, and a mode without u+w forbids user.* ones.
- Times last: the modification time says that the file is done.

What cannot be preserved is counted by kind in ``lost`` and fails nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Container, Iterator, Set
from functools import cached_property

from pcopy import attributes as attr
from pcopy import filesystem as fs
from pcopy.filesystem import Target
from pcopy.handles import Pair
from pcopy.options import Options
from pcopy.work import Attributes

SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID
NEW = 0o600  # the mode that changes.py makes files with
ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
# Nanoseconds. Times between these every file system keeps, if coarsely: FAT begins with 1980, many end in 2038.
EARLIEST, LATEST = 347_155_200 * 10**9, (2**31 - 1) * 10**9
# Nanoseconds: what times beyond those become. s_time_min and s_time_max of ext2 to ext4, xfs with and without bigtime, and
# NFSv3 in the kernel. FAT's, in any zone that it may be mounted for, are told by how coarsely it keeps times.
ENDS = frozenset(end * 10**9 for end in (-(2**31), 0, 2**31 - 1, 2**32 - 1, 2**34 - 2**31 - 1, 16_299_260_424))
COARSEST = 2 * 10**9  # nanoseconds: what FAT keeps of a time
SHORTLY = COARSEST  # within so long a second change of a file may not show in its times
GRAINS = (1, 100, 1000, 10**6, 10**7, 10**9, COARSEST)  # nanoseconds: what file systems keep of a time
LABEL = "security.selinux"
# What a copy has of these kinds and its source lacks is dropped, as are ACLs, but not what the system itself may have given it,
# such as a label, or system.nfs4_acl to each file on NFSv4.
KINDS = ("user.", "trusted.", "security.")
OF_THE_SYSTEM = (LABEL, "security.SMACK64", "security.ima", "security.apparmor")


class Metadata:
    """Gives copies the attributes of their sources, as far as the options ask for and the system allows."""

    def __init__(
        self, options: Options, umask: int, unlabelled: Set[int] = frozenset(), layered: Set[int] = frozenset()
    ) -> None:
        """``unlabelled``: devices on which SELinux's labels cannot be set; ``layered``: overlayfs's."""
        keep = options.preserve
        self.keep_owner, self.keep_mode = "owner" in keep, "mode" in keep
        self.keep_times, self.keep_xattrs = "times" in keep, "xattr" in keep
        self.umask, self.follow = umask, options.dereference
        self.unprivileged = os.geteuid() != 0
        self.user = os.geteuid()
        # What was refused in this slice: owner of the entry, uid, gid; and whether the group alone could be set.
        self.refused: dict[tuple[int, int, int], bool] = {}
        self.unlabelled, self.layered, self.dry_run = unlabelled, layered, options.dry_run
        self.beyond: list[str] = []  # attributes that the copy compared last lacks, because its file system has no such
        self.lost: dict[str, int] = {}

    def lose(self, kind: str, times: int = 1) -> None:
        self.lost[kind] = self.lost.get(kind, 0) + times

    def dress(self, source: Target, target: Target, state: os.stat_result, pair: Pair) -> None:
        """Give a new entry all that its source has."""
        if pair.owner is None:
            self.learn(target, pair)
        owned, names = True, attr.attributes_of(source) if self.keep_xattrs else []
        if (state.st_uid, state.st_gid) != pair.owner:
            owned = self.keep_owner and self.own(target, pair.owner, state.st_uid, state.st_gid, new=True)
        if names or (pair.inherits and self.keep_xattrs):
            if self.unprivileged and names and (pair.inherits or self.umask & NEW) and stat.S_ISREG(state.st_mode):
                self.attempt("", attr.set_mode, target, NEW)  # see update()
            self.copy_attributes(source, target, names)
        mode = None
        if not stat.S_ISLNK(state.st_mode):
            mode = self.beside_acl(source, target, names, self.mode_of(state.st_mode, owned))
        self.set_mode_and_times(target, mode, state.st_atime_ns, state.st_mtime_ns)

    def set_mode_and_times(self, target: Target, mode: int | None, atime_ns: int, mtime_ns: int) -> None:
        try:
            if mode is not None:
                attr.set_mode(target, mode)
            if self.keep_times:
                self.set_times(target, atime_ns, mtime_ns)
        except OSError:  # which of the two is not allowed?
            if mode is not None:
                self.attempt("mode", attr.set_mode, target, mode)
            if self.keep_times:
                self.attempt("times", self.set_times, target, atime_ns, mtime_ns)

    def set_times(self, target: Target, atime_ns: int, mtime_ns: int) -> None:
        """A time beyond what the file system can keep becomes the nearest that it can, and no error tells (utimensat(2))."""
        attr.set_times(target, atime_ns, mtime_ns)
        if not EARLIEST <= mtime_ns <= LATEST and abs(os.stat(target).st_mtime_ns - mtime_ns) >= COARSEST:
            self.lose("times")

    def learn(self, target: Target, pair: Pair) -> None:
        """What new entries of a directory get: the group can be the directory's, the owner that of a squashed root."""
        state = os.stat(target)
        pair.owner = (state.st_uid, state.st_gid)
        if pair.readable or fs.PROC:
            directory: Target = pair.destination if pair.readable else fs.by_name(".", pair.destination)
            pair.inherits = DEFAULT_ACL in attr.attributes_of(directory)

    def close_to_others(self, pair: Pair, copy: os.stat_result, wanted: os.stat_result) -> None:
        """Let nobody into the copy of a directory, before anything new comes into it, whom its source does not let in.

        Nobody at all, until it is finished, if that takes more to find out than to compare modes.
        """
        if not self.keep_mode:
            return
        others = self.keep_owner and not self.unprivileged and (copy.st_uid, copy.st_gid) != (wanted.st_uid, wanted.st_gid)
        others = others and not self.is_as_owned_as_can_be(wanted, copy)
        if others or (self.keep_xattrs and not self.same_acl(pair.source, pair.destination)):
            self.attempt("", attr.set_mode, pair.destination, stat.S_IRWXU)
            if others:
                self.attempt("", attr.set_owner, pair.destination, wanted.st_uid, wanted.st_gid)
        elif wide := copy.st_mode & ~wanted.st_mode & 0o077:
            self.attempt("", attr.set_mode, pair.destination, stat.S_IMODE(copy.st_mode) & ~wide | stat.S_IRWXU)

    @staticmethod
    def same_acl(one: int, other: int) -> bool:
        handles = (one, other)
        there = [ACL in attr.attributes_of(handle) for handle in handles]
        return not any(there) or (all(there) and attr.read_attribute(one, ACL) == attr.read_attribute(other, ACL))

    def finish_new(self, pair: Pair, mode: int, uid: int, gid: int, atime_ns: int, mtime_ns: int) -> bool:
        """Give a new directory what its source has, if that is mode and times, as nearly always. False if not, or refused."""
        if pair.inherits or pair.owner != (uid, gid) or not EARLIEST <= mtime_ns <= LATEST:
            return False
        try:
            if self.keep_xattrs and attr.attributes_of(pair.source):
                return False
            os.fchmod(pair.destination, self.mode_of(mode, True))
            if self.keep_times:
                os.utime(pair.destination, ns=(atime_ns, mtime_ns))
        except OSError:
            return False
        return True

    def finish_directory(self, pair: Pair, wanted: Attributes, fresh: bool) -> None:
        """Give a directory what its source had when it was scanned; touch nothing that is right already."""
        if fresh and self.finish_new(pair, *wanted):
            return
        source, target = pair.source, pair.destination
        names = attr.attributes_of(source) if self.keep_xattrs else []
        state = os.fstat(target)
        owner = state.st_uid, state.st_gid
        owned = owner == (wanted.uid, wanted.gid) or (self.keep_owner and self.own(target, owner, wanted.uid, wanted.gid))
        kept = self.as_kept(target, names, wanted.mode)
        if self.keep_xattrs:
            self.copy_attributes(source, target, names)
        mode = self.beside_acl(source, target, names, self.mode_of(wanted.mode, owned) if self.keep_mode else kept)
        if mode != stat.S_IMODE(os.fstat(target).st_mode):  # an owner or an ACL may have changed it
            self.attempt("mode", attr.set_mode, target, mode)
        if self.keep_times and not (
            is_kept(wanted.mtime_ns, state.st_mtime_ns) and is_kept(wanted.atime_ns, state.st_atime_ns)
        ):
            self.attempt("times", self.set_times, target, wanted.atime_ns, wanted.mtime_ns)

    def differences(
        self,
        pair: Pair,
        name: str,
        target: str,
        state: os.stat_result,
        copy: os.stat_result,
        had: int | None = None,
        owner: bool = True,
    ) -> Iterator[str]:
        """What an entry with the right contents lacks that its source has, by the names that the options have for it.

        ``had``: the mode that the copy had before this run needed another. ``owner``: tell that it has another owner, too.
        """
        owned = (state.st_uid, state.st_gid) == (copy.st_uid, copy.st_gid)
        if self.keep_mode and not stat.S_ISLNK(state.st_mode):
            mode = stat.S_IMODE(state.st_mode)
            if (stat.S_IMODE(copy.st_mode) if had is None else had) != (mode if owned else mode & ~SPECIAL_BITS):
                yield "mode"
        if owner and self.keep_owner and not owned:
            yield "owner"
        if self.keep_times and not stat.S_ISREG(state.st_mode) and not is_kept(state.st_mtime_ns, copy.st_mtime_ns):
            yield "times"  # a regular file with other times counts as changed and is copied again
        if self.keep_xattrs and self.attributes_differ(pair, name, target):
            yield "xattr"

    def attributes_differ(self, pair: Pair, name: str, target: str) -> bool:
        """Whether a copy is to get attributes, or to lose some. Those that its file system does not know are only noted.

        Where this process may go to directories, it is in that of the source afterwards, see :func:`attr.way_to`. A directory
        itself (".") is asked by its handle, which takes no right to go there.
        """
        self.beyond = []
        if target == ".":
            there, wanted = attr.read_attributes(pair.destination), attr.read_attributes(pair.source)
        else:
            there = attr.attributes_by_name(target, pair.destination)
            wanted = attr.attributes_by_name(name, pair.source, self.follow)
        if there == wanted:
            return False
        found = differing(wanted, there)
        beyond = [one for one in found if one in wanted and self.is_beyond(pair, target, one, one in there)]
        if target != ".":
            attr.way_to(pair.source)
        if len(beyond) == len(found):
            self.beyond = beyond
        return len(beyond) < len(found)

    def is_beyond(self, pair: Pair, target: str, name: str, there: bool) -> bool:
        """Whether an attribute that a copy lacks, or has otherwise if it is ``there``, cannot be set on its file system.

        Asked for one of a kind that it has not, it says so. Not if SELinux answers, with a label for all of its files; and
        overlayfs says it of the file system below, from which a file is copied when an attribute is set.
        """
        device = os.fstat(pair.destination).st_dev
        if name == LABEL and device in self.unlabelled:
            return True
        return not there and device not in self.layered and attr.is_unknown(target, pair.destination, name)

    def lose_beyond(self) -> None:
        """The copy compared last stays without them. A dry run does not count what would be lost."""
        for name in () if self.dry_run else self.beyond:
            self.lose(kind_of(name))
        self.beyond = []

    def directory_differences(self, pair: Pair, state: os.stat_result) -> list[str]:
        """The same of an open directory, before anything is made in it."""
        copy = os.fstat(pair.destination)
        found = list(self.differences(pair, ".", ".", state, copy, pair.mode))
        grain = grain_of(copy)
        if "times" in found and state.st_mtime_ns // grain * grain == copy.st_mtime_ns:
            found.remove("times")  # the file system keeps no more of it
        return [] if found == ["owner"] and self.is_as_owned_as_can_be(state, copy) else found

    def update(self, source: Target, target: Target, state: os.stat_result, copy: os.stat_result) -> None:
        """Mend what :meth:`differences` found, on an entry that stays in place."""
        owner = copy.st_uid, copy.st_gid
        owned = owner == (state.st_uid, state.st_gid)
        names = attr.attributes_of(source) if self.keep_xattrs else []
        kept = self.as_kept(target, names, stat.S_IMODE(copy.st_mode))
        if self.keep_owner and not owned:
            if self.keep_mode and copy.st_mode & ~state.st_mode & 0o7777 and not stat.S_ISLNK(state.st_mode):
                self.attempt("", attr.set_mode, target, copy.st_mode & state.st_mode & 0o777)  # the new owner gets no more
            owned = self.own(target, owner, state.st_uid, state.st_gid)
        if self.keep_xattrs:
            shut = self.unprivileged and not copy.st_mode & stat.S_IWUSR and stat.S_ISREG(state.st_mode)
            if shut and differing(attr.read_attributes(source), attr.read_attributes(target)):
                self.attempt("", attr.set_mode, target, NEW)  # without u+w its owner may not set user.* either
            self.copy_attributes(source, target, names)
        if not stat.S_ISLNK(state.st_mode):
            mode = self.beside_acl(source, target, names, self.mode_of(state.st_mode, owned) if self.keep_mode else kept)
            wanted = state.st_uid, state.st_gid
            given = owned and owner != wanted  # chown(2) leaves what it likes of a mode
            if given or mode != stat.S_IMODE(os.stat(target).st_mode):
                self.attempt("mode", attr.set_mode, target, mode)
        other = state.st_mtime_ns != copy.st_mtime_ns  # of a regular file it was asked already what can be kept
        if self.keep_times and other and (stat.S_ISREG(state.st_mode) or not is_kept(state.st_mtime_ns, copy.st_mtime_ns)):
            self.attempt("times", self.set_times, target, state.st_atime_ns, state.st_mtime_ns)

    def mode_of(self, mode: int, owned: bool) -> int:
        """The permissions to set: special bits only where the owner is the source's."""
        if not self.keep_mode:
            return mode & 0o777 & ~self.umask
        if not owned and mode & SPECIAL_BITS:
            self.lose("set-uid and set-gid bits")
            mode &= ~SPECIAL_BITS
        return stat.S_IMODE(mode)

    def beside_acl(self, source: Target, target: Target, names: list[str], mode: int) -> int:
        """The mode, or what an ACL says that is kept where modes are not: to set another would change the ACL (acl(5)).

        A directory into which everybody may write is sticky then if its source is. ``names``: of the source's attributes.
        """
        if self.keep_mode or ACL not in names or ACL not in attr.attributes_of(target):
            return mode
        made = os.stat(target).st_mode
        sticky = os.stat(source).st_mode & stat.S_ISVTX if stat.S_ISDIR(made) else 0
        return mode & 0o7000 | sticky | made & 0o777

    def as_kept(self, target: Target, names: list[str], mode: int) -> int:
        """The mode that a copy keeps where modes are not preserved, before it may lose its ACL. ``names``: as above."""
        return mode if self.keep_mode or not self.keep_xattrs or ACL in names else self.without_acl(target, mode)

    def own(self, target: Target, there: tuple[int, int] | None, uid: int, gid: int, new: bool = False) -> bool:
        """Set owner and group, or at least the group, of what has others. True if both are set.

        What is refused to the privileged for an entry that is not ``new`` may be so for that alone, if it is immutable, say.
        """
        owner, group = there or (-1, -1)
        known = self.refused.get((owner, uid, gid))
        if known is None and self.attempt("", attr.set_owner, target, uid, gid):
            return True
        if known is not False:
            alone = group == gid or self.attempt("", attr.set_owner, target, -1, gid)
            if new or self.is_beyond_us(uid, gid):
                self.refused[owner, uid, gid] = alone
        self.lose("owner")
        return False

    def leaves_owner(self, state: os.stat_result, copy: os.stat_result) -> bool:
        """Whether a copy of other owner or group stays so: nobody asks for more, or it is ours and :meth:`own` is refused."""
        if state.st_mode & SPECIAL_BITS:  # which are only for the right one
            return False
        known = self.refused.get((copy.st_uid, state.st_uid, state.st_gid))
        refused = known is False or (known is True and state.st_gid == copy.st_gid)
        beyond = refused and copy.st_uid == self.user and self.is_beyond_us(state.st_uid, state.st_gid)
        return not self.keep_owner or beyond

    @cached_property
    def gives_away(self) -> bool:  # asked of /proc when an owner differs, which in most slices none does
        return attr.may_give_away()

    @cached_property
    def ids_to_give(self) -> tuple[Container[int], Container[int]]:
        return attr.ids_to_give(self.gives_away)

    def is_beyond_us(self, uid: int, gid: int) -> bool:
        """Whether, once refused, they are so for all: for want of privilege, or in a user namespace that does not know them."""
        users, groups = self.ids_to_give
        return not self.gives_away or uid not in users or gid not in groups

    def is_as_owned_as_can_be(self, state: os.stat_result, copy: os.stat_result) -> bool:
        """Whether a copy made anew would not get its source's owner or group either, since this process cannot give them."""
        ours = copy.st_uid == self.user and self.is_beyond_us(state.st_uid, state.st_gid)
        return ours and (state.st_gid == copy.st_gid or state.st_gid not in self.ids_to_give[1])

    def copy_attributes(self, source: Target, target: Target, names: list[str]) -> None:
        """Make the target's extended attributes and ACLs those of the source, and drop what it has beyond them.

        ACLs come last: with one that takes u+w from it, nobody but root may set or drop ``user.*`` any more (xattr(7)).
        """
        there = attr.attributes_of(target)
        extra = [name for name in there if name not in names and is_dropped(name)]
        for name in sorted([*extra, *names], key=lambda name: name in (ACL, DEFAULT_ACL)):
            if name in extra:
                self.drop_attribute(target, name)
                continue
            value = attr.read_attribute(source, name)
            if value is None:
                self.lose(kind_of(name))
            elif not (name in there and attr.read_attribute(target, name) == value):
                self.write_attribute(target, name, value)

    def drop_attribute(self, target: Target, name: str) -> None:
        if name == ACL and (mode := stat.S_IMODE(os.stat(target).st_mode)) != (alone := self.without_acl(target, mode)):
            self.attempt("", attr.set_mode, target, alone)
        self.attempt("attributes", attr.drop_attribute, target, name)

    @staticmethod
    def without_acl(target: Target, mode: int) -> int:
        """A mode where an ACL goes: its bits of the group are the most for all whom that names, and the group gets its own."""
        acl = attr.read_attribute(target, ACL) if mode & stat.S_IRWXG else None
        return mode if acl is None else mode & (~stat.S_IRWXG | attr.group_in_acl(acl) << 3)

    def write_attribute(self, target: Target, name: str, value: bytes) -> None:
        kind = kind_of(name)
        try:
            self.attempt(kind, attr.write_attribute, target, name, value)
        except OSError as error:
            if error.errno not in attr.TOO_LARGE or not attr.has_room(target):
                raise
            self.lose(kind)

    def attempt(self, kind: str, change: Callable[..., None], *arguments: object) -> bool:
        """Make a change that the system may refuse: then it is counted as lost under ``kind``, and nothing fails."""
        try:
            change(*arguments)
            return True
        except OSError as error:
            if error.errno not in attr.UNABLE:
                raise
        if kind:
            self.lose(kind)
        return False


def is_kept(wanted_ns: int, there_ns: int) -> bool:
    """Whether a copy has a time, or the nearest that its file system can keep, as far as that can be told from the two."""
    beyond = wanted_ns < there_ns <= EARLIEST or wanted_ns > there_ns >= LATEST
    return wanted_ns == there_ns or (beyond and there_ns in ENDS)


def differing(wanted: dict[str, bytes], there: dict[str, bytes]) -> list[str]:
    """The names of the attributes that a copy lacks, has otherwise, or is to lose."""
    lacking = [name for name, value in wanted.items() if there.get(name) != value]
    return lacking + [name for name in there if name not in wanted and is_dropped(name)]


def is_dropped(name: str) -> bool:
    """Whether a copy is not to have an attribute that its source lacks."""
    return name in (ACL, DEFAULT_ACL) or (name.startswith(KINDS) and not name.startswith(OF_THE_SYSTEM))


def kind_of(name: str) -> str:
    """What attributes are counted as, when they are lost."""
    return f"attributes {name.partition('.')[0]}.*"


def grain_of(copy: os.stat_result) -> int:
    """A guess that writes nothing: the kernel sets the change time, as finely as the file system keeps times."""
    return next(grain for grain in reversed(GRAINS) if copy.st_ctime_ns % grain == copy.st_mtime_ns % grain == 0)
