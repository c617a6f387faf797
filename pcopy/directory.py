"""One directory: make its copy, list it, and finish it when its entries are in place."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace
from itertools import chain

from pcopy import filesystem as fs
from pcopy import runs
from pcopy.handles import ABSENT, Handles, Pair, close
from pcopy.metadata import Metadata
from pcopy.mounts import mount_or_device
from pcopy.options import Options, Overwrite
from pcopy.select import Here, leaves_out, selection
from pcopy.work import Attributes, Failure, Finish, Job, Scan, join

ALL_OF_OWNER = 0o700
# Where modes are not preserved, what tells a directory that a killed run had not finished from one that its owner has closed.
STICKY, SET_GROUP_ID = 0o1000, 0o2000
NOTHING = Attributes(0, 0, 0, 0, 0)
APPEARED = "something of this name appeared in the destination during the run, maybe another name that it cannot tell apart"


@dataclass
class Listing:
    """What a scan found, by what is to be done with it."""

    attributes: Attributes
    device: int  # st_dev
    directories: list[tuple[str, bool]] = field(default_factory=list)  # (name, whether its copy is new)
    regular: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    replaced: set[str] = field(default_factory=set)  # those that an entry of another kind gave way to
    begun: set[str] = field(default_factory=set)  # those that were there when their copies were to be made
    skipped: list[str] = field(default_factory=list)  # directories that an entry to be kept stands in the way of
    hidden: list[str] = field(default_factory=list)  # by a filter
    failures: list[Failure] = field(default_factory=list)
    partial: dict[str, str] = field(default_factory=dict)  # of regular files, the temporary names that a cut run left
    there: dict[str, bool] = field(default_factory=dict)  # names in the destination: whether it is a directory
    extra: tuple[tuple[str, bool], ...] = ()  # those of them that the source lacks, to be removed
    below: dict[str, list[str]] | None = None  # of each name that is listed, the paths below it that are; None: all
    differs: str = ""  # in what the copy differs, if that is to be told

    @property
    def gone(self) -> list[str]:
        """Directories in the destination that the source has not, or not any more."""
        known = {name for name, _ in self.directories}
        return [name for name, is_directory in self.there.items() if is_directory and name not in known]

    @property
    def found(self) -> int:
        return len(self.directories) + len(self.regular) + len(self.other) + self.undone

    @property
    def undone(self) -> int:
        return len(self.skipped) + len(self.hidden) + len(self.failures)

    def only(self, name: str) -> tuple[str, ...] | None:
        """What is to be copied of a directory."""
        return None if self.below is None else tuple(self.below.get(name, ()))

    def hide(self, here: Here) -> None:
        """Put aside what a filter hides."""
        directories = here.hidden([name for name, _ in self.directories], True)
        files = here.hidden((*self.regular, *self.other), False)
        if directories or files:
            self.directories = [one for one in self.directories if one[0] not in directories]
            self.regular = [name for name in self.regular if name not in files]
            self.other = [name for name in self.other if name not in files]
            self.hidden = sorted(directories | files)


class Directories:
    """What a slice does to directories."""

    def __init__(self, job: Job, handles: Handles, metadata: Metadata) -> None:
        self.job, self.handles, self.metadata = job, handles, metadata
        self.options = job.options
        self.selection = selection(job.options.filters)
        self.ours = {tree.destination_inode for tree in job.trees}
        self.needed = {*(tree.source_inode for tree in job.trees), *(tree.destination_inode for tree in job.earlier)}
        self.tells = job.options.tells
        self.mounts: dict[int, str] = {}  # of trees
        self.owner = os.geteuid()

    def scan(self, unit: Scan) -> Listing:
        """List a directory, and make the copies of the directories in it."""
        pair, state = self.enter(unit)
        listing = Listing(attributes_of(state), state.st_dev)
        if self.tells and not unit.fresh and pair.destination != ABSENT:
            listing.differs = ", ".join(self.metadata.directory_differences(pair, state))
        tree = self.job.trees[unit.tree]
        if self.options.one_file_system and state.st_dev != tree.source_inode[0]:
            return listing
        if (state.st_dev, state.st_ino) in self.ours:
            raise OSError(errno.ELOOP, "this is the destination")
        if self.options.dereference:
            self.refuse_loop(unit, pair.source, state)
        self.sort(pair, listing, unit)
        if not unit.fresh and pair.destination != ABSENT:
            try:
                self.look_at_copy(pair, listing, unit)
            except OSError as error:
                raise self.error_of_copy(unit, error) from None
        if self.selection:
            listing.hide(self.selection.within(unit.path))
            for name in [name for name in listing.partial if name in listing.hidden]:
                fs.remove_if_there(listing.partial.pop(name), pair.destination)
        if "mode" not in self.options.preserve:
            begun = unit.fresh or ((pair.mode or 0) & ~SET_GROUP_ID) == mode_begun(self.options)
            mode = state.st_mode & 0o777 & ~self.job.umask if begun else pair.mode or 0
            listing.attributes = listing.attributes._replace(mode=mode)
        self.make_directories(pair, listing, unit)
        return listing

    def enter(self, unit: Scan) -> tuple[Pair, os.stat_result]:
        """Open a directory and its copy, and keep the handles."""
        parent_path, _, name = unit.path.rpartition("/")
        parent = self.handles.pair(unit.tree, parent_path)  # of a tree's top, itself
        source = fs.open_directory(name or ".", parent.source, self.options.dereference)
        try:
            state = os.fstat(source)
            destination, mode = self.open_copy(name or ".", parent.destination, unit.fresh)
        except OSError as error:
            fs.close_read(source)
            raise self.error_of_copy(unit, error) from None
        pair = Pair(unit.tree, unit.path, source, destination, parent.depth + bool(unit.path), readable=True, mode=mode)
        if unit.path and unit.fresh and not unit.again and destination != ABSENT:  # what it got when made, its entries will get
            if parent.owner is None:
                self.metadata.learn(destination, pair)
            else:
                pair.owner, pair.inherits = parent.owner, parent.inherits
        self.handles.hold(pair)
        if not unit.fresh and destination != ABSENT and not self.options.dry_run:
            try:
                if unit.path:
                    runs.stay_out_of_deletion(destination)
                copy = os.fstat(destination)
                pair.shared = copy.st_uid not in (0, self.owner, state.st_uid) or bool(copy.st_mode & 0o022)
                self.metadata.close_to_others(pair, copy, state)
            except OSError as error:
                raise self.error_of_copy(unit, error) from None
        return pair, state

    def error_of_copy(self, unit: Scan, error: OSError) -> OSError:
        """What fails is the copy of the directory: it is named, and not its source."""
        path = f"{self.job.trees[unit.tree].destination}/{unit.path}".rstrip("/")
        return fs.CopyError(error.errno, error.strerror, path).with_traceback(error.__traceback__)

    def open_copy(self, name: str, parent: int, fresh: bool) -> tuple[int, int | None]:
        """Open the copy of a directory, and tell its mode. One of ours that we may not use we may use until it is finished."""
        if parent == ABSENT:
            return ABSENT, None
        mode = None
        try:
            handle = fs.open_directory(name, parent)
        except (FileNotFoundError, NotADirectoryError):
            if self.options.dry_run:
                return ABSENT, None
            raise
        except PermissionError:
            if self.options.dry_run:
                raise
            mode = self.make_accessible(name, parent)
            handle = fs.open_directory(name, parent)
        if fresh and mode is None and not self.job.umask & ALL_OF_OWNER:
            return handle, mode
        state = os.fstat(handle)
        mode = stat.S_IMODE(state.st_mode) if mode is None else mode
        if self.owner and state.st_uid == self.owner and ~mode & ALL_OF_OWNER and not self.options.dry_run:
            fs.set_mode(handle, mode | ALL_OF_OWNER)
        return handle, mode

    def make_accessible(self, name: str, parent: int) -> int:
        handle = fs.hold(name, parent)
        try:
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            fs.set_mode(fs.held(handle), mode | ALL_OF_OWNER)
            return mode
        finally:
            fs.close_read(handle)

    def refuse_loop(self, unit: Scan, source: int, state: os.stat_result) -> None:
        """Where links are followed, a directory can lie below itself, or in the destination."""
        if not unit.path:
            return
        names = unit.path.split("/")
        for count in range(len(names)):  # from the top, so that each is opened below the one before
            above = os.fstat(self.handles.passing(unit.tree, "/".join(names[:count])).source)
            if os.path.samestat(above, state):
                raise OSError(errno.ELOOP, "a symbolic link leads to a directory above it")
        for inode in fs.inodes_above(source):
            if inode == self.job.trees[unit.tree].source_inode:
                return
            if inode in self.ours:
                raise OSError(errno.ELOOP, "a symbolic link leads into the destination")

    def list_source(self, pair: Pair, unit: Scan) -> Listing:
        """What is to be copied of a directory, and what a filter hides in it. Nothing, if it cannot be read."""
        listing = Listing(NOTHING, 0)
        with contextlib.suppress(OSError):
            source = fs.open_directory(".", pair.source)  # which may be a handle to name things only
            try:
                self.sort(replace(pair, source=source), listing, unit)
            finally:
                fs.close_read(source)
        if self.selection:
            listing.hide(self.selection.within(unit.path))
        return listing

    def sort(self, pair: Pair, listing: Listing, unit: Scan) -> None:
        if unit.only is None:
            self.sort_entries(pair, listing)
        else:
            self.sort_listed(pair, listing, unit.only)

    def sort_entries(self, pair: Pair, listing: Listing) -> None:
        follow = self.options.dereference
        directories, regular, other = listing.directories, listing.regular, listing.other
        for entry in chain.from_iterable(fs.read_directory(pair.source)):
            try:
                if entry.is_file(follow_symlinks=follow):
                    regular.append(entry.name)
                elif entry.is_dir(follow_symlinks=follow):
                    directories.append((entry.name, True))
                else:
                    other.append(entry.name)
            except OSError:  # of an unknown type, and it cannot be looked at: whoever copies it will say why
                other.append(entry.name)

    def sort_listed(self, pair: Pair, listing: Listing, only: Iterable[str]) -> None:
        """As :meth:`sort_entries`, of what a list names. It implies the directories above what it names."""
        listing.below = {}
        for path in only:
            name, _, rest = path.partition("/")
            listing.below.setdefault(name, []).extend([rest] if rest else [])
        for name, below in listing.below.items():
            try:
                self.sort_one(pair, listing, name, bool(below))
            except OSError as error:
                paths = ["/".join(part for part in (pair.path, name, rest) if part) for rest in below or [""]]
                listing.failures += [fs.failure(path, error) for path in paths]

    def sort_one(self, pair: Pair, listing: Listing, name: str, is_passed: bool) -> None:
        """Put an entry that a list names where it belongs. ``is_passed``: the list names something below it."""
        mode = fs.look_at(name, pair.source, self.options.dereference).st_mode
        if stat.S_ISDIR(mode):
            listing.directories.append((name, True))
        elif is_passed:
            advice = ": follow it with --dereference" if stat.S_ISLNK(mode) else ""
            what = "a symbolic link" if stat.S_ISLNK(mode) else "no directory"
            raise NotADirectoryError(errno.ENOTDIR, f"{name} is {what}{advice}")
        else:
            (listing.regular if stat.S_ISREG(mode) else listing.other).append(name)

    def look_at_copy(self, pair: Pair, listing: Listing, unit: Scan) -> None:
        """List the copy, and clear what dead runs, or a dead worker of this one, left in it."""
        listing.there = fs.list_directory(pair.destination)
        if unit.again and not self.options.dry_run:  # by a worker that was killed
            runs.clear_own(listing.there, pair.destination, self.job.token)
        in_full = unit.only is None
        if self.job.locked and not self.options.dry_run and runs.may_be_stale(listing.there):
            names = (*listing.regular, *listing.other, *(name for name, _ in listing.directories))
            keep = set(runs.may_be_stale(names))
            listing.partial = runs.clear_stale(
                listing.there, keep, pair.depth, pair.destination, self.job.token, listing.regular
            )
            if pair.shared:  # it looks as if it were not any more
                for name in listing.partial.values():
                    fs.remove_if_there(name, pair.destination)
                listing.partial = {}
        if self.options.delete and in_full:
            found = {*listing.regular, *listing.other, *(name for name, _ in listing.directories)}
            listing.extra = tuple(self.removable(pair, listing.there, found))
            if listing.extra and self.is_mounted(pair):
                listing.extra = ()

    def is_mounted(self, pair: Pair) -> bool:
        """Whether a directory of the destination is on another mount than that: what is there is not to be deleted."""
        if pair.tree not in self.mounts:
            self.mounts[pair.tree] = mount_or_device(self.handles.passing(pair.tree, "").destination)
        return mount_or_device(pair.destination) != self.mounts[pair.tree]

    def to_remove_from(self, tree: int, path: str) -> Pair:
        """The copy of a directory in which something is to go. Raises EXDEV if, by now, that is on another mount."""
        pair = self.handles.pair(~tree, path)
        if not pair.stays:
            if self.is_mounted(pair):
                raise OSError(errno.EXDEV, "is not on the destination's mount: nothing is removed there")
            pair.stays = True
        return pair

    def removable(self, pair: Pair, there: dict[str, bool], found: Container[str]) -> list[tuple[str, bool]]:
        """What is to go of the names in a directory of the destination.

        All but what its source has, what this run and others write, and what would not be copied if the source had it.
        """
        extra = [one for one in there.items() if one[0] not in found]
        if runs.may_be_stale(there):
            extra = [(name, is_dir) for name, is_dir in extra if is_dir or not runs.is_temporary(name)]
        if self.job.spared:
            tree = max(pair.tree, ~pair.tree)
            extra = [one for one in extra if (tree, join(pair.path, one[0])) not in self.job.spared]
        if self.selection and extra:
            here = self.selection.here(pair.path)
            if here is None:
                return []
            hidden = here.hidden([name for name, is_dir in extra if is_dir], True)
            hidden |= here.hidden([name for name, is_dir in extra if not is_dir], False)
            extra = [one for one in extra if one[0] not in hidden]
        if self.options.limited:
            extra = [(name, is_dir) for name, is_dir in extra if is_dir or not self.is_left_out(name, pair.destination)]
        return extra

    def is_left_out(self, name: str, directory: int) -> bool:
        state = fs.look_if_there(name, directory)
        return state is not None and leaves_out(self.options, state)

    def make_directories(self, pair: Pair, listing: Listing, unit: Scan) -> None:
        """Make the copies of all the directories in one, so that its own times can be set before theirs.

        Raises what may pass while the unit can still be tried again.
        """
        found, listing.directories = listing.directories, []
        if unit.again and pair.destination != ABSENT:
            pair.note_names()
        for name, _ in found:
            try:
                self.make_directory(pair, name, listing, unit)
            except OSError as error:
                if error.errno in fs.PASSING and unit.failed < self.options.retries:
                    self.take_back(pair, listing, unit)
                    raise
                listing.failures.append(fs.failure(join(pair.path, name), error))

    def take_back(self, pair: Pair, listing: Listing, unit: Scan) -> None:
        """All is tried again: in a new directory, what is there by then is to be somebody else's."""
        for name in [name for name, _ in listing.directories if unit.fresh and name not in listing.begun]:
            with contextlib.suppress(OSError):
                fs.remove_directory(name, pair.destination)

    def make_directory(self, pair: Pair, name: str, listing: Listing, unit: Scan) -> None:
        there = listing.there.get(name)
        if there is False:
            if self.options.overwrite is Overwrite.NEVER:
                listing.skipped.append(name)
                return
            self.look_into(pair, name, unit)
            listing.replaced.add(name)
        if not there and not self.options.dry_run:
            mode = mode_begun(self.options)
            try:
                if there is False:
                    fs.make_directory_instead(name, runs.two_names(self.job.token, pair.depth, name), pair.destination, mode)
                else:
                    fs.make_directory(name, pair.destination, mode)
            except FileExistsError as error:
                if not (unit.again and stat.S_ISDIR(fs.look_at(name, pair.destination).st_mode) and pair.spells(name)):
                    error.strerror = APPEARED
                    raise
                there = True
        if there:
            listing.begun.add(name)
        listing.directories.append((name, not there))

    def look_into(self, pair: Pair, name: str, unit: Scan) -> None:
        """Raises OSError if a directory of the source cannot be read: nothing is to give way to its copy."""
        source = fs.open_directory(name, pair.source, self.options.dereference)
        try:
            state = os.fstat(source)
            if self.options.dereference:
                self.refuse_loop(unit._replace(path=join(unit.path, name)), source, state)
            fs.list_directory(source)
        finally:
            fs.close_read(source)

    def take_away(self, unit: Scan) -> Finish | None:
        """The source of a directory that this run made cannot be read: it must not look like an empty one.

        Returns the unit that sets the times of the directory above again.
        """
        if self.options.dry_run:
            return None
        if not unit.path:
            self.take_away_top(unit)
            return None
        parent_path, _, name = unit.path.rpartition("/")
        parent = self.handles.pair(unit.tree, parent_path)
        attributes = attributes_of(os.fstat(parent.source))
        if "mode" not in self.options.preserve:
            attributes = attributes._replace(mode=stat.S_IMODE(os.fstat(parent.destination).st_mode))
        try:
            fs.remove_directory(name, parent.destination)
        except PermissionError:  # the directory above has been finished already
            self.make_accessible(".", parent.destination)
            fs.remove_directory(name, parent.destination)
        return Finish(unit.tree, parent_path, attributes, fresh=False)

    def take_away_top(self, unit: Scan) -> None:
        """The same for a tree as a whole. The directory above it is not the run's."""
        above = fs.pass_through("..", self.handles.pair(unit.tree, "").destination)
        try:
            fs.remove_directory(os.path.basename(self.job.trees[unit.tree].destination), above)
        finally:
            fs.close_read(above)

    def remove_directory(self, name: str, parent: int) -> bool:
        """Remove a directory. False if it is not empty; so one that something is mounted on is never looked into (rmdir(2))."""
        if self.options.dry_run:
            return False
        try:
            fs.remove_directory(name, parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
        return True

    def open_to_remove(self, name: str, parent: int) -> int:
        """Open a directory that is to be removed. Raises EBUSY if another run is at work in it, or this one copies from it.

        One that we may not read is none that such a run has, and if it is empty, nobody has to.
        """
        try:
            handle = fs.open_directory(name, parent)
        except PermissionError:
            return ABSENT
        try:
            state = os.fstat(handle)
            if (state.st_dev, state.st_ino) in self.needed:  # it was named by another path, to where it is mounted too
                fs.refuse_to_remove("is a source of this run, or an earlier copy: move it out of the destination")
            runs.leave_to_another_run([runs.is_marked(handle, runs.AT_WORK)])
        except OSError:
            fs.close_read(handle)
            raise
        return handle

    def contents(self, tree: int, path: str, handle: int, stays: bool) -> tuple[list[tuple[str, bool]], bool]:
        """What is to go of what is in a directory that is to be removed, and whether anything has to stay.

        Takes over the handle from :meth:`open_to_remove`; ``stays``: nothing is mounted there.
        """
        parent_path, _, name = path.rpartition("/")
        parent = self.handles.pair(~tree, parent_path)
        if handle == ABSENT or self.owner:  # it has to be made accessible, or that has to be found out
            close(handle)
            handle, _ = self.open_copy(name, parent.destination, fresh=False)
        pair = self.handles.hold(Pair(~tree, path, ABSENT, handle, parent.depth + 1, readable=True))
        if not stays and self.is_mounted(pair):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))  # else rmdir says so
        pair.stays = True
        there = fs.list_directory(handle)
        if self.options.dry_run:  # the run would hold the lock that shows them to be dead
            there = {name: is_dir for name, is_dir in there.items() if is_dir or not runs.is_temporary(name)}
        elif self.job.locked:
            runs.clear_stale(there, (), pair.depth, handle, self.job.token)
        inside = self.removable(pair, there, ())
        return inside, len(inside) < len(there)

    def finish(self, unit: Finish) -> None:
        if self.options.dry_run:
            return
        pair = self.handles.readable(unit.tree, unit.path)
        self.metadata.finish_directory(pair, unit.attributes, unit.fresh)
        if self.options.fsync:
            fs.sync(pair.destination)


def mode_begun(options: Options) -> int:
    """The mode of a directory until its last entry is in place."""
    return ALL_OF_OWNER if "mode" in options.preserve else ALL_OF_OWNER | STICKY


def attributes_of(state: os.stat_result) -> Attributes:
    return Attributes(state.st_mode, state.st_uid, state.st_gid, state.st_atime_ns, state.st_mtime_ns)
