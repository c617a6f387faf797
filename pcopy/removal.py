"""Take away what the source lacks: names by the batch, directories from the leaves up.

    Finish with extra ─▶ Finish, Remove (names), Clear (each directory)
    Clear             ─▶ Clear emptied, Remove (the names in it), Clear (each directory in it)

A directory is finished, or removed itself, when nothing holds it any more, as in copying. A directory of which an entry could
not be copied keeps all that it has: it may be wanted yet.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence

from pcopy import changes, runs
from pcopy import filesystem as fs
from pcopy.account import Account
from pcopy.extra import MOUNTED
from pcopy.handles import ABSENT, Pair, close
from pcopy.outcome import Event
from pcopy.work import BATCH, Clear, Count, Finish, Remove, counts_of, directory_group, gone_group, join

WIDE = 1000  # directories that wait to be counted, from which on the deepest is next


def begin(work: Account, unit: Finish) -> None:
    """A directory is copied but for its attributes, and has more in it than its source."""
    work.stack.append(unit._replace(extra=(), last=work.closes(unit.attributes.mode)))
    if unit.after in work.outcome.ruined:
        return
    try:
        pair = work.extra.to_remove_from(unit.tree, unit.path)
        runs.leave_to_another_run(runs.marks(pair.destination, runs.AT_WORK, 0, pair.depth))
    except OSError as error:
        work.outcome.tally.found += 1
        work.fail(work.failure_of(unit, work.copy_path(unit.tree, unit.path), error))
    else:
        work.stack += units_of(unit.tree, unit.path, unit.extra)


def units_of(tree: int, path: str, extra: Sequence[tuple[str, bool]]) -> Iterator[Clear | Remove]:
    for name, is_directory in extra:
        if is_directory:
            yield Clear(tree, join(path, name))
    names = tuple([name for name, is_directory in extra if not is_directory])
    for at in range(0, len(names), BATCH):
        yield Remove(tree, path, names[at : at + BATCH])


def count(work: Account, unit: Count) -> None:
    """Count names below directories, by their paths, as long as the time allows. They are told as if they were deleted.

    In breadth at first: so many small parts are left that they are soon shared out.
    """
    left, names, done = list(unit.paths), 0, False
    while left and not done:
        path = left.pop(0 if len(left) < WIDE else -1)
        handle = fs.open_directory(path, fs.HERE)  # what stays, if it is too much, keeps its access times
        try:
            with os.scandir(handle) as entries:
                for entry in entries:
                    names += 1
                    if entry.is_dir(follow_symlinks=False):
                        left.append(f"{path}/{entry.name}")
        finally:
            fs.close_read(handle)
        done = time.monotonic() >= work.deadline
    work.outcome.tally.deleted += names
    work.stack += counts_of(left)


def is_free(work: Account, unit: Remove | Clear) -> bool:
    """Whether the limit on deletions, if there is one, allows for a unit: it was counted, or this slice may do so many.

    If not, the coordinator, who knows of all of them, gets it first.
    """
    if unit.counted or not work.counts:
        return True
    if unit.entries > work.deletes:
        work.outcome.uncounted.append(unit)
        work.open.update(unit.holds)
        return False
    work.deletes -= unit.entries
    return True


def remove(work: Account, unit: Remove) -> None:
    if not is_free(work, unit):
        return
    try:
        directory = work.extra.to_remove_from(unit.tree, unit.path).destination
    except FileNotFoundError:  # a worker that was killed had come further
        return
    names, gone = unit.names, 0
    while names:
        done = len(names) if work.job.options.dry_run else changes.remove_some(names, directory, work.deadline)
        deleted(work, unit, names[:done])
        names, gone = names[done:], gone + done
        if names and gone and time.monotonic() >= work.deadline:
            work.stack.append(unit._replace(names=names, counted=True))
            return
        if names:
            remove_one(work, unit._replace(names=names[:1], counted=True), directory)
            names = names[1:]


def remove_one(work: Account, unit: Remove, directory: int) -> None:
    try:
        changes.remove_if_there(unit.names[0], directory)  # that it is gone is as good: a worker that was killed has done it
    except OSError as error:
        failed(work, unit, error)
    else:
        deleted(work, unit, unit.names)


def clear(work: Account, unit: Clear) -> None:
    above, _, name = unit.path.rpartition("/")
    if unit.emptied and (unit.kept or unit.after in work.outcome.ruined):  # something in it is to stay, or had to
        work.outcome.ruined |= {directory_group(unit.tree, above), gone_group(unit.tree, unit.path)}
        return
    if unit.emptied and not is_free(work, unit):
        return
    try:
        pair = work.extra.to_remove_from(unit.tree, above)
        parent = pair.destination
        handle = ABSENT if unit.emptied else work.extra.open_to_remove(name, parent)
        try:
            at_once = not work.job.options.dry_run and (not work.counts or work.deletes > 0)
            gone = (unit.emptied or at_once) and work.extra.remove_directory(name, parent)
            if gone and work.counts and not unit.emptied:
                work.deletes -= 1
        except OSError:
            close(handle)
            raise
        if not gone and not unit.emptied:
            if not (at_once and handle != ABSENT and is_plain(work) and clear_plain(work, unit, handle, pair)):
                empty(work, unit, handle, at_once)
            return
        close(handle)
    except FileNotFoundError:  # as above
        gone = True
    except OSError as error:
        failed(work, unit, error)
        return
    if gone or work.job.options.dry_run:
        deleted(work, unit, [""])
    else:
        failed(work, unit, OSError(errno.ENOTEMPTY, "somebody puts entries into it: run the same line again"))


def is_plain(work: Account) -> bool:
    """Whether all that is found in a directory that goes is to go, and nobody wants to hear of it."""
    return not (work.tells or work.directories.selection or work.job.options.limited or work.job.spared)


def clear_plain(work: Account, unit: Clear, handle: int, above: Pair) -> bool:
    """Remove the files in a directory and, if that is all that it holds, itself, in one function: by units, a third more.

    False if something is left to the general way; else the handle is taken over. Nobody asks what the names are of: unlink(2)
    says which are directories.
    """
    try:
        names = os.listdir(handle)
    except OSError:  # the unit will meet it again, and say what it is
        return False
    if runs.may_be_stale(names) or (work.counts and len(names) >= work.deletes):
        return False
    directories: list[str] = []
    done = changes.remove_some(names, handle, work.deadline, directories)
    whole, gone = done == len(names), done - len(directories)
    if whole and not directories:
        try:
            changes.remove_directory(unit.path.rpartition("/")[2], above.destination)
            gone += 1
        except OSError:  # the unit will meet it again
            whole = False
    work.outcome.tally.deleted += gone
    if work.counts:
        work.deletes -= gone
    if whole and directories:
        pair = work.handles.hold(Pair(~unit.tree, unit.path, ABSENT, handle, above.depth + 1, readable=True))
        pair.stays = True  # a directory with a mount on it would have said so to rmdir(2)
        work.stack.append(unit._replace(emptied=True))
        work.stack += [Clear(unit.tree, join(unit.path, name)) for name in directories]
    elif whole:
        close(handle)
    return whole


def empty(work: Account, unit: Clear, handle: int, tried: bool) -> None:
    """First what is in a directory, then itself. ``tried``: to remove it, which says if something is mounted on it."""
    inside, kept = work.directories.contents(unit.tree, unit.path, handle, tried)
    if kept:
        work.outcome.ruined.add(directory_group(unit.tree, unit.path))
    emptied, height = unit._replace(emptied=True), len(work.stack)
    work.stack.append(emptied)
    for one in units_of(unit.tree, unit.path, inside):
        if isinstance(one, Remove):  # at once, while the directory's handle is at hand
            remove(work, one)
        else:
            work.stack.append(one)
    if len(work.stack) == height + 1 and emptied.after not in work.open:  # nothing is left to be done before
        work.stack.pop()
        clear(work, emptied)


def failed(work: Account, unit: Remove | Clear, error: OSError) -> None:
    """What could not be removed is no entry of the source, but it is one of the run."""
    if work.try_again(unit, error.errno):
        return
    if error.strerror == os.strerror(errno.EBUSY):
        error.strerror = MOUNTED
    above, name = (unit.path, unit.names[0]) if isinstance(unit, Remove) else (unit.path.rpartition("/")[0], "")
    work.outcome.ruined.add(directory_group(unit.tree, above))
    work.outcome.tally.found += 1
    work.fail(work.failure_of(unit, work.copy_path(unit.tree, unit.path, name), error))


def deleted(work: Account, unit: Remove | Clear, names: Sequence[str]) -> None:
    """Names in a directory are gone; of a Clear, the directory itself."""
    work.outcome.tally.deleted += len(names)
    if work.tells:
        for name in names:
            work.outcome.events.append(Event("deleted", work.copy_path(unit.tree, unit.path, name)))
