"""Large files, shared out: many copy spans of one, each verified if it is to be, and the last gives it its name.

begin ─▶ Seal, Span (each gap of what is there), Verify (each stretch that is there)
Span  ─▶ Span (the rest), Verify (what was copied)
Seal waits for all of them: attributes, then the name; or, if one has failed, nothing is left of it
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator

from pcopy import changes, storage
from pcopy import filesystem as fs
from pcopy.account import Account
from pcopy.audit import open_source
from pcopy.contents import BLOCK
from pcopy.directory import APPEARED
from pcopy.entry import TRIES, Copier, SourceChanged, changed
from pcopy.handles import Pair
from pcopy.in_the_way import STAYS, give_name
from pcopy.verdict import Fate
from pcopy.work import Clear, Entries, Large, Seal, Span, Unit, Verify, changed_group, join, large_group

# Bytes of a large file copied between two looks at the clock: the first so small that slow storage does not keep a
# short slice for long, doubled while the storage is fast, up to the last.
FIRST_PIECE, LAST_PIECE = 1 << 20, 64 << 20
FAST = 0.01  # seconds
# Bytes of a large file copied before they are verified: more would keep a slice waiting for the storage for longer.
VERIFIED = 64 << 20


class Blocked(Exception):
    """A directory that is not empty is in the place of what is made."""


def begin(work: Account, large: Large, there: Iterable[tuple[int, int]]) -> None:
    """Share out a large file, but for the stretches that are there already."""
    work.outcome.large_found += large.size
    work.outcome.large_open += 1
    work.outcome.large_done += sum(stop - start for start, stop in there)
    units: list[Unit] = [Seal(large)]
    if work.job.options.verify:
        units += [Verify(large, *stretch) for stretch in there]
    work.stack += [*units, *(Span(large, *gap) for gap in gaps(there, large.size))]


def gaps(there: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """What is left of a file, from byte to byte, between stretches in their order."""
    at = 0
    for start, stop in [*there, (size, size)]:
        if at < start:
            yield at, start
        at = stop


def copy(work: Account, unit: Span) -> None:
    large, position, piece = unit.large, unit.start, FIRST_PIECE
    widest = work.pace.piece if work.pace else LAST_PIECE
    reached, most = position, VERIFIED if work.job.options.verify else large.size
    if large_group(large) in work.outcome.ruined:
        return
    pair = work.handles.pair(large.tree, large.path)
    work.outcome.current = join(large.path, large.name)
    work.copier.contents.begin(work.is_elsewhere(unit), unit.shared)
    source = open_source(large, pair, work.job.options.dereference)
    if source is None:
        work.outcome.ruined.add(changed_group(large))
        work.outcome.large_done += unit.stop - position
        return
    try:
        target = open_temporary(large, pair)
        try:
            while position < unit.stop:
                began = time.monotonic()
                if position > unit.start and (began >= work.deadline or position - unit.start >= most):
                    break
                if work.pace and large.holes:  # holes are no bytes that were copied
                    data = work.copier.contents.skip_hole(source, position, unit.stop)
                    work.outcome.large_done += data - position
                    position = data
                step = max(BLOCK, min(piece, widest))
                stop = min(unit.stop, (position + step) // BLOCK * BLOCK)  # a hole would not show in a part of a block
                if work.copier.contents.span(source, target, position, stop, large.holes) < stop:
                    break  # the source has shrunk: the seal will see it
                work.outcome.large_done += stop - position
                if work.pace:
                    work.pace.pay(stop - position)
                if most == VERIFIED:
                    storage.forget(target, position, stop - position)  # it begins to be written out
                position = reached = stop
                if time.monotonic() - began < FAST:
                    piece = min(piece * 2, LAST_PIECE)
            else:
                position = unit.stop
        finally:
            fs.close_written(target)
    except OSError as error:
        work.fail_unit(unit._replace(start=position), work.failure_of(unit, work.source_path(unit), error))
        position = unit.stop
    finally:
        fs.close_read(source)
    if position < unit.stop and (time.monotonic() >= work.deadline or position - unit.start >= most):
        work.stack.append(unit._replace(start=position))
    if work.job.options.verify and reached > unit.start:
        work.stack.append(Verify(large, unit.start, reached))


def verify(work: Account, unit: Verify) -> None:
    """Read back what was copied. It fails as a span does: then the file is not given its name."""
    if unit.start < unit.stop and unit.holds[0] not in work.outcome.ruined:
        pair = work.handles.pair(unit.tree, unit.path)
        reached = work.copier.auditor.read_back_span(pair, unit.large, unit.start, unit.stop)
        if reached is None:
            work.outcome.ruined.add(changed_group(unit.large))
        elif reached < unit.stop:
            work.stack.append(unit._replace(start=reached))


def seal(work: Account, unit: Seal) -> None:
    large = unit.large
    work.outcome.large_open -= 1
    if unit.discard or large_group(large) in work.outcome.ruined:
        take_away(work, large)
        work.spoil(unit)
        work.outcome.tally.failed += 1  # once, however many of its spans failed
        return
    try:
        if unit.changed or changed_group(large) in work.outcome.ruined:
            raise SourceChanged
        complete(work.copier, work.handles.pair(large.tree, large.path), large)
    except SourceChanged:
        undo(work, large)
        if large.tries + 1 >= TRIES:
            raise changed() from None
        work.hand_back(again(large))  # the coordinator, which knows the seal, has to know what comes after it
    except Blocked:
        if unit.cleared:
            take_away(work, large)
            raise OSError(errno.ENOTEMPTY, STAYS) from None
        work.outcome.large_open += 1
        work.stack += [unit._replace(cleared=True), Clear(large.tree, join(large.path, large.target))]
    except OSError as error:
        undo(work, large)
        if error.errno not in fs.PASSING or large.tries >= work.job.options.retries:
            raise
        work.hand_back(again(large))  # all of it: what sync has refused once counts as written (fsync(2))
    except BaseException as error:
        if isinstance(error, Exception) or not work.is_done_again:
            take_away(work, large)
        raise
    else:
        work.count(Fate.FILE)
        work.outcome.tally.bytes += large.size
        work.outcome.large_sealed += large.size
        work.note_there(unit, (large.name,), large.target, copied=True)
        work.event("copied", unit, large.name, large.why, large.size)


def complete(copier: Copier, pair: Pair, large: Large) -> None:
    """Give a large file its attributes and its name. Raises SourceChanged if the source is not what it was.

    Blocked, if a directory is in its place that has to be emptied first: what is made waits for that.
    """
    there = fs.look_if_there(large.target, pair.destination)
    over = there is not None and stat.S_ISDIR(there.st_mode)
    if over and not large.temporary.replaces:
        raise OSError(errno.EEXIST, APPEARED)
    if over and not copier.in_the_way.would_give_way(large.target, pair.destination):
        raise Blocked
    source = open_source(large, pair, copier.follow)
    if source is None:
        raise SourceChanged
    try:
        state = os.fstat(source)
        try:
            handle = open_temporary(large, pair)
        except FileNotFoundError:
            made = fs.look_if_there(large.target, pair.destination)
            if made and (made.st_dev, made.st_ino) == large.temporary.inode:
                return  # a worker that was killed had come so far
            raise SourceChanged from None  # or it had taken it away, to copy the file once more
        try:
            if os.fstat(handle).st_size != large.size:
                raise OSError(errno.EIO, "the copy has not the length of its source")
            copier.metadata.dress(source, handle, state, pair)
            if copier.options.fsync:
                storage.sync(handle)
        except BaseException:
            fs.close_read(handle)
            raise
        fs.close_written(handle)
        if over and not copier.in_the_way.gives_way(large.target, pair.destination):
            raise Blocked
        give_name(large.temporary.name, large.target, pair.destination, large.temporary.replaces and not over)
    finally:
        fs.close_read(source)


def open_temporary(large: Large, pair: Pair) -> int:
    """Open what :meth:`Copier.begin` made. Whoever may write into the directory could have put a file of their own there.

    That has another inode, or another owner if the number of the inode was used again.
    """
    made = large.temporary
    handle = changes.open_to_write(made.name, pair.destination)
    state = os.fstat(handle)
    if (state.st_dev, state.st_ino) != made.inode or state.st_uid not in made.owners:
        fs.close_read(handle)
        raise OSError(errno.EBUSY, "somebody put another file in the place of its temporary one: run the same line again")
    return handle


def take_away(work: Account, large: Large) -> None:
    """Of a copy that is not to get its name. Its source may be gone."""
    changes.remove_if_there(large.temporary.name, work.handles.pair(~large.tree, large.path).destination)


def undo(work: Account, large: Large) -> None:
    """The same, as if it had never been begun."""
    take_away(work, large)
    work.outcome.large_found -= large.size
    work.outcome.large_done -= large.size


def again(large: Large) -> Entries:
    """The unit that copies a large file once more."""
    rename = large.target if large.target != large.name else None
    fresh = not large.temporary.replaces
    copy = Entries(large.tree, large.path, (large.name,), fresh, True, large.share, rename, large.first_of, large.tries + 1)
    return copy._replace(device=large.device)
