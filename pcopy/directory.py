"""One directory: make its copy, list it, and finish it when its entries are in place."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import replace

from pcopy import attributes as attr
from pcopy import changes, failures, runs, storage
from pcopy import filesystem as fs
from pcopy.extra import MOUNTED, Extra
from pcopy.handles import ABSENT, Handles, Pair, close
from pcopy.listing import Listing
from pcopy.metadata import Metadata
from pcopy.options import Options, Overwrite
from pcopy.select import selection
from pcopy.work import Attributes, Finish, Job, Scan, join

ALL_OF_OWNER = 0o700
# Where modes are not preserved, what tells a directory that a killed run had not finished from one that its owner has closed.
STICKY, SET_GROUP_ID = 0o1000, 0o2000
NOTHING = Attributes(0, 0, 0, 0, 0)
OVER_ITSELF = "is a source of this run, which would be written over: give another destination"
APPEARED = "something of this name appeared in the destination during the run, maybe another name that it cannot tell apart"


class Directories:
    """What a slice does to directories."""

    def __init__(self, job: Job, handles: Handles, metadata: Metadata, extra: Extra) -> None:
        self.job, self.handles, self.metadata, self.extra = job, handles, metadata, extra
        self.options = job.options
        self.selection = selection(job.options.filters)
        self.ours = {tree.destination_inode for tree in job.trees}
        self.sources = {tree.source_inode for tree in job.trees if tree.whole}
        self.tells = job.options.tells
        self.owner = os.geteuid()

    def scan(self, unit: Scan) -> Listing:
        """List a directory, and make the copies of the directories in it."""
        pair, state, differs = self.enter(unit)
        listing = Listing(attributes_of(state), state.st_dev)
        listing.differs = ", ".join(differs)
        if "mode" not in self.options.preserve:
            listing.attributes = listing.attributes._replace(mode=self.mode_kept(state, pair.mode or 0, unit.fresh))
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
                changes.remove_if_there(listing.partial.pop(name), pair.destination)
        self.make_directories(pair, listing, unit)
        return listing

    def enter(self, unit: Scan) -> tuple[Pair, os.stat_result, list[str]]:
        """Open a directory and its copy, and keep the handles. Tells what the copy lacks, before anything is made of it."""
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
        there = not unit.fresh and destination != ABSENT
        differs = self.metadata.directory_differences(pair, state) if there and self.tells else []
        try:
            self.make_usable(destination, mode)
            if there and not self.options.dry_run:
                if unit.path:
                    runs.stay_out_of_deletion(destination)
                copy = os.fstat(destination)
                pair.shared = copy.st_uid not in (0, self.owner, state.st_uid) or bool(copy.st_mode & 0o022)
                self.metadata.close_to_others(pair, copy, state)
        except OSError as error:
            raise self.error_of_copy(unit, error) from None
        return pair, state, differs

    def error_of_copy(self, unit: Scan, error: OSError) -> OSError:
        """What fails is the copy of the directory: it is named, and not its source."""
        path = f"{self.job.trees[unit.tree].destination}/{unit.path}".rstrip("/")
        return failures.CopyError(error.errno, error.strerror, path).with_traceback(error.__traceback__)

    def open_copy(self, name: str, parent: int, fresh: bool) -> tuple[int, int | None]:
        """Open the copy of a directory, and tell its mode if it may be another than that of a new one."""
        if parent == ABSENT:
            return ABSENT, None
        mode = None
        try:
            handle = fs.open_directory(name, parent)
        except (FileNotFoundError, NotADirectoryError):
            if self.options.dry_run:
                return ABSENT, None
            raise
        except PermissionError as error:
            if self.options.dry_run:
                error.strerror = f"{error.strerror}{failures.CLOSED}"
                raise
            mode = self.make_accessible(name, parent)
            handle = fs.open_directory(name, parent)
        if fresh and mode is None and not (self.owner or self.job.umask & ALL_OF_OWNER):  # a default ACL is no hurdle either
            return handle, mode
        state = os.fstat(handle)
        if (state.st_dev, state.st_ino) in self.sources:
            fs.close_read(handle)
            raise OSError(errno.EBUSY, OVER_ITSELF)
        return handle, stat.S_IMODE(state.st_mode) if mode is None else mode

    def make_usable(self, handle: int, mode: int | None) -> None:
        """A directory of ours that we may not use we may use until it is finished. ``mode``: as :meth:`open_copy` tells it."""
        if mode is None or handle == ABSENT or not self.owner or not ~mode & ALL_OF_OWNER or self.options.dry_run:
            return
        if os.fstat(handle).st_uid == self.owner:
            attr.set_mode(handle, mode | ALL_OF_OWNER)

    def make_accessible(self, name: str, parent: int) -> int:
        handle = fs.hold(name, parent)
        try:
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            attr.set_mode(fs.held(handle), mode | ALL_OF_OWNER)
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
        directories, listing.regular, listing.other = fs.names_in(pair.source, self.options.dereference)
        listing.directories = [(name, True) for name in directories]

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
                listing.failures += [failures.of(path, error) for path in paths]

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
        if self.job.locked and not self.options.dry_run and (stale := runs.may_be_stale(listing.there)):
            keep = {name for name in stale if fs.look_if_there(name, pair.source)}  # a list of paths may not name it
            listing.partial = runs.clear_stale(
                listing.there, keep, pair.depth, pair.destination, self.job.token, listing.regular
            )
            if pair.shared:  # it looks as if it were not any more
                for name in listing.partial.values():
                    changes.remove_if_there(name, pair.destination)
                listing.partial = {}
        if self.options.delete and in_full:
            found = {*listing.regular, *listing.other, *(name for name, _ in listing.directories)}
            listing.extra = tuple(self.extra.removable(pair, listing.there, found))
            if listing.extra and self.extra.is_mounted(pair):
                listing.extra = ()

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
                listing.failures.append(failures.of(join(pair.path, name), error))

    def take_back(self, pair: Pair, listing: Listing, unit: Scan) -> None:
        """All is tried again: in a new directory, what is there by then is to be somebody else's."""
        for name in [name for name, _ in listing.directories if unit.fresh and name not in listing.begun]:
            with contextlib.suppress(OSError):
                changes.remove_directory(name, pair.destination)

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
                    asides = runs.two_names(self.job.token, pair.depth, name)
                    changes.make_directory_instead(name, asides, pair.destination, mode)
                else:
                    changes.make_directory(name, pair.destination, mode)
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

    def mode_kept(self, state: os.stat_result, mode: int, fresh: bool) -> int:
        """Where modes are not preserved: the one that a copy has, or what the umask leaves of its source's if it is new."""
        begun = fresh or mode & ~SET_GROUP_ID == mode_begun(self.options)
        return state.st_mode & 0o777 & ~self.job.umask if begun else mode

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
        state = os.fstat(parent.source)
        attributes = attributes_of(state)
        if "mode" not in self.options.preserve:
            mode = stat.S_IMODE(os.fstat(parent.destination).st_mode)  # maybe it is still to be finished, by another worker
            attributes = attributes._replace(mode=self.mode_kept(state, mode, False))
        try:
            changes.remove_directory(name, parent.destination)
        except PermissionError:  # the directory above has been finished already
            self.make_accessible(".", parent.destination)
            changes.remove_directory(name, parent.destination)
        return Finish(unit.tree, parent_path, attributes, fresh=False)

    def take_away_top(self, unit: Scan) -> None:
        """The same for a tree as a whole. The directory above it is not the run's."""
        above = fs.pass_through("..", self.handles.pair(unit.tree, "").destination)
        try:
            changes.remove_directory(os.path.basename(self.job.trees[unit.tree].destination), above)
        finally:
            fs.close_read(above)

    def contents(self, tree: int, path: str, handle: int, stays: bool) -> tuple[list[tuple[str, bool]], bool]:
        """What is to go of what is in a directory that is to be removed, and whether anything has to stay.

        Takes over the handle from :meth:`Extra.open_to_remove`; ``stays``: nothing is mounted there.
        """
        parent_path, _, name = path.rpartition("/")
        parent = self.handles.pair(~tree, parent_path)
        if handle == ABSENT or self.owner:  # it has to be made accessible, or that has to be found out
            close(handle)
            handle, mode = self.open_copy(name, parent.destination, fresh=False)
            self.make_usable(handle, mode)
        pair = self.handles.hold(Pair(~tree, path, ABSENT, handle, parent.depth + 1, readable=True))
        if not stays and self.extra.is_mounted(pair):
            changes.refuse_to_remove(MOUNTED)  # else rmdir says so
        pair.stays = True
        there = fs.list_directory(handle)
        if self.options.dry_run:  # the run would hold the lock that shows them to be dead
            there = {name: is_dir for name, is_dir in there.items() if not self.extra.goes_uncounted(name, is_dir, handle)}
        elif self.job.locked:
            runs.clear_stale(there, (), pair.depth, handle, self.job.token)
        inside = self.extra.removable(pair, there, ())
        return inside, len(inside) < len(there)

    def finish(self, unit: Finish) -> None:
        if self.options.dry_run:
            return
        pair = self.handles.readable(unit.tree, unit.path)
        self.metadata.finish_directory(pair, unit.attributes, unit.fresh)
        if self.options.fsync:
            storage.sync(pair.destination)


def mode_begun(options: Options) -> int:
    """The mode of a directory until its last entry is in place."""
    return ALL_OF_OWNER if "mode" in options.preserve else ALL_OF_OWNER | STICKY


def attributes_of(state: os.stat_result) -> Attributes:
    return Attributes(state.st_mode, state.st_uid, state.st_gid, state.st_atime_ns, state.st_mtime_ns)
