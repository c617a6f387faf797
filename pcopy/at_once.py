"""Directories that need no units: one that holds only plain files is done in one go. Every call of Python's counts here, too.

    copy        a new directory, filled and finished
    compare     one that is in the destination, and is what it is to be, but maybe for its entries

With their steps spread over units and functions as in worker.py and directory.py, a copy of 50,000 files in 4,000 directories
took a tenth longer, and a rerun a fifth. The order is the same. The directories in one become units, as do entries that are no
plain files. A directory that is unusual otherwise is left to the general way, before anything is made or changed in it.
"""

# Annotations are no texts here, as in work.py: it costs time to compile those of named tuples.
import contextlib
import errno
import os
import stat
import time
from collections.abc import Sequence
from typing import NamedTuple

from pcopy import attributes as attr
from pcopy import changes, runs
from pcopy import filesystem as fs
from pcopy.account import Account
from pcopy.directory import ALL_OF_OWNER, APPEARED, attributes_of
from pcopy.handles import ABSENT, Pair, close
from pcopy.metadata import differing
from pcopy.outcome import Failure
from pcopy.work import DIRECTORY_WEIGHT, Finish, Scan, Tree, entries_of

MANY = 10_000  # names in a directory: to compare more at once would take memory, and save little
Names = tuple[list[str], list[str], list[str]]  # of directories, of regular files, of others


class Done(NamedTuple):
    """A directory, and how far it is done."""

    state: os.stat_result
    names: Names  # all in it
    shown: Names  # those that no filter hides: the same object, if there is none
    below: list[str]  # directories in it that are to be done
    done: int  # so many of the regular files are
    whole: bool  # nothing else is left


def may_be(work: Account) -> bool:
    """Whether a slice may do directories in this way."""
    options, job = work.job.options, work.job
    return (
        work.copier.plain.works
        and "mode" in options.preserve
        and not (options.dereference or work.verbose or work.summing or work.pace or job.earlier or job.umask & ALL_OF_OWNER)
    )


def do(work: Account, unit: Scan) -> bool:
    """Do a directory, but for what becomes units. False if nothing is done."""
    (tree, path, fresh), plain = unit[:3], work.copier.plain
    if not path or unit.again or unit.only is not None or not (plain.works if fresh else plain.compares):
        return False
    above, _, name = path.rpartition("/")
    parent = work.handles.pair(tree, above)
    source = destination = ABSENT
    held: bool | None = False
    try:
        source = fs.open_directory(name, parent.source)
        destination = fs.open_directory(name, parent.destination)
        pair = Pair(tree, path, source, destination, parent.depth + 1, True)
        if fresh:
            pair.owner, pair.inherits = parent.owner, parent.inherits  # what it got when made, its entries will get
            held = copy(work, unit, pair)
        else:
            held = compare(work, unit, pair)
        return held is not None
    except OSError:
        return False
    finally:
        if held:
            work.handles.hold(pair)
        elif source != ABSENT:
            fs.close_read(source)
            close(destination)


def copy(work: Account, unit: Scan, pair: Pair) -> bool | None:
    """Fill a new directory. Returns whether units were made that need it; None if nothing is done. May raise OSError then."""
    tree, state, metadata = work.job.trees[unit.tree], os.fstat(pair.source), work.copier.metadata
    if is_apart(work, tree, state):
        return None
    names = fs.names_in(pair.source)
    directories, regular, other = shown = visible(work, unit.path, names)
    if pair.owner is None:
        metadata.learn(pair.destination, pair)
    if pair.inherits and work.directories.owner and ~os.fstat(pair.destination).st_mode & ALL_OF_OWNER:  # its ACL says so
        return None
    made = make_all(work, unit, directories, pair.destination) if directories else directories
    if made is None:
        return False
    sizes = work.copier.plain.copy(pair, regular, work.deadline, tree, tree.elsewhere) if regular else []
    whole = len(sizes) == len(regular) and not other and not work.closes(state.st_mode)
    times = state.st_atime_ns, state.st_mtime_ns
    if whole and not metadata.finish_new(pair, state.st_mode, state.st_uid, state.st_gid, *times):
        try:
            metadata.finish_directory(pair, attributes_of(state), False)
        except OSError:  # the unit will meet it again
            whole = False
    work.outcome.tally.files += len(sizes)
    work.outcome.tally.bytes += sum(sizes)
    if work.tells:
        work.event("made", unit, why="kind" if unit.replaces else "new")
        work.tell_files(unit, regular[: len(sizes)], sizes, "new")
    if whole and names is shown and not directories:
        return end(work, unit, regular)
    return leave(work, unit, pair, Done(state, names, shown, made, len(sizes), whole))


def compare(work: Account, unit: Scan, pair: Pair) -> bool | None:
    """Look through a directory that has the attributes of its source and the same names in it. Returns the same as copy()."""
    tree, state, there = work.job.trees[unit.tree], os.fstat(pair.source), os.fstat(pair.destination)
    if (
        state.st_mtime_ns != there.st_mtime_ns
        or state.st_mode != there.st_mode
        or is_apart(work, tree, state)
        or (there.st_dev, there.st_ino) in work.directories.sources
        or (work.directories.owner and ~there.st_mode & ALL_OF_OWNER)
        or (
            (attr.attributes_of(pair.source) or attr.attributes_of(pair.destination))
            and differing(attr.read_attributes(pair.source), attr.read_attributes(pair.destination))
        )
    ):
        return None
    foreign, metadata = (state.st_uid, state.st_gid) != (there.st_uid, there.st_gid), work.copier.metadata
    if foreign and (work.tells or not metadata.leaves_owner(state, there)):
        return None
    runs.stay_out_of_deletion(pair.destination)
    names = fs.names_in(pair.source)
    if sum(map(len, names)) > MANY or not are_there(names, pair.destination):
        return None
    directories, regular, other = shown = visible(work, unit.path, names)
    pair.mode = stat.S_IMODE(there.st_mode)
    done = work.copier.plain.unchanged(pair, regular, work.deadline, tree) if regular else 0
    whole = done == len(regular) and not other
    if whole and foreign and metadata.keep_owner:
        metadata.lose("owner")
    if whole and metadata.keep_times and state.st_atime_ns != there.st_atime_ns:  # somebody has read it
        try:
            metadata.attempt("times", metadata.set_times, pair.destination, state.st_atime_ns, state.st_mtime_ns)
        except OSError:
            whole = False
    work.outcome.tally.unchanged += done
    if whole and names is shown and not directories:
        return end(work, unit, regular)
    return leave(work, unit, pair, Done(state, names, shown, directories, done, whole))


def are_there(names: Names, destination: int) -> bool:
    """Whether a copy has the same names in it, those of directories as directories. What the others are is seen one by one."""
    directories, regular, other = names
    if directories:
        return all(set(one) == set(copies) for one, copies in zip(names, fs.names_in(destination), strict=True))
    return set(os.listdir(destination)) == {*regular, *other}


def alone(pair: Pair, names: Sequence[str], done: int, deadline: float) -> int:
    """How many of the names that are not done, one or none, are to be a unit of their own.

    The next one is not plain, and not tried as such once more. But if its inode has several names, those after it often are of
    such, too, and all go to the coordinator together.
    """
    if done == len(names) or time.monotonic() >= deadline:
        return 0
    try:
        return int(os.stat(names[done], dir_fd=pair.source, follow_symlinks=False).st_nlink <= 1)
    except OSError:  # which the unit will meet again
        return 1


def is_apart(work: Account, tree: Tree, state: os.stat_result) -> bool:
    """Whether a directory is on another file system than its tree's top, or the destination itself."""
    return state.st_dev != tree.source_inode[0] or (state.st_dev, state.st_ino) in work.directories.ours


def visible(work: Account, path: str, names: Names) -> Names:
    """What filters do not hide of the names in a directory: all of them are the same object."""
    if not work.directories.selection:
        return names
    here, (directories, regular, other) = work.directories.selection.within(path), names
    hidden, files = here.hidden(directories, True), here.hidden((*regular, *other), False)
    if not hidden and not files:
        return names
    return (
        [name for name in directories if name not in hidden],
        [name for name in regular if name not in files],
        [name for name in other if name not in files],
    )


def make_all(work: Account, unit: Scan, names: list[str], parent: int) -> list[str] | None:
    """Make directories. Those that cannot be made are failures. None if that may pass: the unit is tried again."""
    made: list[str] = []
    failures: list[Failure] = []
    for name in names:
        try:
            changes.make_directory(name, parent, ALL_OF_OWNER)
            made.append(name)
        except OSError as error:
            if work.try_again(unit, error.errno):
                for one in made:
                    with contextlib.suppress(OSError):
                        changes.remove_directory(one, parent)
                return None
            if error.errno == errno.EEXIST:
                error.strerror = APPEARED
            failures.append(work.failure_of(unit, work.full(unit.tree, unit.path, name), error))
    for failure in failures:
        work.fail(failure)
    return made


def end(work: Account, unit: Scan, files: Sequence[str]) -> bool:
    """Note that a directory is done that holds these files only, as most do. Returns that nothing is left."""
    outcome, count, path = work.outcome, len(files), unit.path
    outcome.tally.directories += 1
    outcome.tally.found += count
    outcome.listed += count
    outcome.share += unit.share
    outcome.current = f"{path}/{files[-1]}" if files else path
    return False


def leave(work: Account, unit: Scan, pair: Pair, one: Done) -> bool:
    """Note how far a directory is done, and make units of what is left to do. Returns whether there are any."""
    state, names, shown, below, done, whole = one
    (tree, path, fresh), stack, outcome, tally = unit[:3], work.stack, work.outcome, work.outcome.tally
    directories, regular, other = shown
    found, device = sum(map(len, names)), state.st_dev
    hidden = found - len(directories) - len(regular) - len(other)
    share = unit.share / max(1, found + (DIRECTORY_WEIGHT - 1) * len(below))
    tally.directories += 1
    tally.found += found
    tally.skipped += hidden
    outcome.current = f"{path}/{regular[done - 1]}" if done else path
    outcome.listed += found - len(below)
    outcome.share += share * (hidden + len(directories) - len(below) + done) if found else unit.share
    for name in below:
        stack.append(Scan(tree, f"{path}/{name}", fresh, share * DIRECTORY_WEIGHT, device=device))
    if not whole:
        odd = alone(pair, regular, done, work.deadline)
        stack.append(Finish(tree, path, attributes_of(state), fresh, work.closes(state.st_mode), device=device))
        stack += entries_of(unit, other, fresh, False, share, device)
        stack += entries_of(unit, regular[done + odd :], fresh, True, share, device)
        stack += entries_of(unit, regular[done : done + odd], fresh, False, share, device)
    return bool(below) or not whole
