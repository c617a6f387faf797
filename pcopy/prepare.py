"""Make and lock the directory that a run writes into, and say with which units it begins."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pcopy import attributes as attr
from pcopy import changes, failures, mounts, runs, storage
from pcopy import filesystem as fs
from pcopy.directory import ALL_OF_OWNER, mode_begun
from pcopy.options import Options, Overwrite
from pcopy.paths import Landing
from pcopy.result import Report
from pcopy.work import BATCH, Entries, Inode, Job, Scan, Tree, Unit

# Seconds that a run of single files waits for others, which have the directory alone only to clear what dead runs left.
TURN, TURNS = 0.02, 50
# Copies that are marked one by one, which takes an open handle each; for more, the directory that they are in is.
MARKED = 16


class Place(NamedTuple):
    """What a run writes into."""

    fresh: bool  # it was not there
    handle: int | None = None  # none in a dry run into what does not exist
    alone: bool = False  # no other run is in it


def enter(
    top: str,
    landings: Sequence[Landing],
    options: Options,
    report: Report,
    stack: contextlib.ExitStack,
    undo: contextlib.ExitStack,
) -> Place:
    """Make and lock what the run writes into, and mark the copies in it, for as long as the stack. Raises OSError.

    Nothing in it is changed yet. ``undo``: takes back what was changed of itself, if no more is to be done.
    """
    is_copy = becomes_a_copy(top, landings)
    fresh = make_top(top, options, mode=mode_begun(options) if is_copy else 0o777)
    if options.dry_run:
        if fresh:
            return Place(fresh)
        handle = os.open(top, fs.PASS)
        stack.callback(fs.close_read, handle)
        return Place(fresh, handle)
    if is_copy:
        make_accessible(top, undo)
    check_usable(top)
    handle, alone = stack.enter_context(locked(top, not is_single(landings), report))
    ask(top, handle, options)
    copies = [os.path.basename(one.destination) if one.destination != top else "." for one in landings if not one.names]
    few = are_few(landings)
    for name in copies if few else [".", *copies]:
        claim(name, top, handle, options, stack if few or name == "." else None)
    return Place(fresh, handle, alone)


def ask(top: str, directory: int, options: Options) -> None:
    """Raises OSError if what another run does in an open directory, or above it, keeps this one from it."""
    if reason := runs.in_the_way(directory, options.delete, 0):
        raise OSError(errno.EWOULDBLOCK, reason, top)


def becomes_a_copy(top: str, landings: Sequence[Landing]) -> bool:
    """Whether a directory is to be like its source, and not only to hold copies."""
    return any(landing.destination == top and not landing.names for landing in landings)


def are_few(landings: Sequence[Landing]) -> bool:
    """Whether each copy of a directory can be marked."""
    return sum(not one.names for one in landings) <= MARKED


def is_single(landings: Sequence[Landing]) -> bool:
    """Whether only files go into a directory: others may be copied into it at the same time."""
    return len(landings) == 1 and bool(landings[0].names)


def prepare(
    place: Place, top: str, landings: Sequence[Landing], options: Options, report: Report, stack: contextlib.ExitStack
) -> tuple[Job, list[Unit]]:
    """Make what the copies are to land on, and say with which units the run begins. Raises OSError."""
    fresh, handle, alone = place
    token, partial = os.urandom(4).hex(), {}
    if handle is not None and alone:
        keep = {landing.rename or name for landing in landings for name in landing.names}
        if keep:  # without names the directory is scanned, and cleared by who scans it
            partial = runs.clear_stale(fs.list_directory(handle), keep, 0, handle, token, keep)
        if is_single(landings):
            runs.lock(handle, exclusive=False)
    few = are_few(landings)
    trees: list[Tree] = []
    sources: list[str] = []  # where each landed below the destination
    units: list[Unit] = []
    for landing in landings:
        report.found += len(landing.names) or 1
        below = os.path.basename(landing.destination) if landing.destination != top else None
        try:
            os.stat(landing.source)  # it may have gone since it was looked at
            is_new = make_landing(below, handle, landing.source, options, token) if below else fresh
        except (failures.CopyError, FileNotFoundError) as error:
            report.failed += len(landing.names) or 1
            report.errors.append(failures.of(landing.source, error))
            continue
        if is_new and below and few and handle is not None and not options.dry_run:
            claim(below, top, handle, options, stack, above=False)  # asked before anything gave way
        if is_new is None:
            report.skipped += 1
            continue
        trees.append(tree_of(landing, below, handle))
        sources.append(os.path.basename(landing.source) if below else "")
        units += units_of(landing, len(trees) - 1, is_new, 1.0 / len(landings), partial)
    earlier: list[Tree] = []
    for number, below in enumerate(sources):
        found = list(earlier_trees(options.link_dest, below))
        numbers = range(len(trees) + len(earlier), len(trees) + len(earlier) + len(found))
        trees[number] = trees[number]._replace(earlier=tuple(numbers))
        earlier += found
    return Job(options, tuple(trees), token, current_umask(), alone, tuple(earlier)), units


def make_top(path: str, options: Options, mode: int) -> bool:
    """Make the directory that the run locks. True if it was not there."""
    if options.dry_run:
        fresh = not os.path.isdir(path)
        if not fresh:
            check_usable(path)
        elif not may_write(os.path.dirname(path)):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        return fresh
    if not os.path.lexists(path):
        ask_above(path, options)
    try:
        os.mkdir(path, mode)
        return True
    except FileExistsError:
        if os.path.isdir(path):
            return False
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)  # says why it cannot be looked at
        raise


def ask_above(path: str, options: Options) -> None:
    """As :func:`ask`, of the directory in which one is to be made: its times change, and another run may have finished it."""
    try:
        above = os.open(os.path.dirname(path), fs.PASS)
    except OSError:  # who makes it will say why it cannot be
        return
    try:
        ask(path, above, options)
    finally:
        fs.close_read(above)


def make_accessible(top: str, undo: contextlib.ExitStack) -> None:
    """A directory of our own that we may not look into we may until it gets its source's mode, or until that is undone.

    No more is touched yet: who changes the mode of a directory and is not in its group takes its set-group-id bit (chmod(2)).
    """
    state, user, bits = os.stat(top), os.geteuid(), stat.S_IRUSR | stat.S_IXUSR
    if user and state.st_uid == user and ~state.st_mode & bits:
        os.chmod(top, stat.S_IMODE(state.st_mode) | bits)
        undo.callback(set_back, top, stat.S_IMODE(state.st_mode))


def set_back(top: str, mode: int) -> None:
    with contextlib.suppress(OSError):  # what went wrong is told by who leaves
        os.chmod(top, mode)


def claim(name: str, top: str, handle: int, options: Options, stack: contextlib.ExitStack | None, above: bool = True) -> None:
    """Mark the directory of a copy, if it is there, for as long as the stack. Raises OSError if another run is at work on it.

    Or ``above`` it. Without a stack it is only asked about: one above it is marked.
    """
    state = fs.look_if_there(name, handle)
    if not state or not stat.S_ISDIR(state.st_mode):
        return
    try:
        place = open_to_mark(name, handle, state)
    except PermissionError:  # of somebody else's: the others are copied
        return
    try:
        reason = runs.claim(place, options.delete, above) if stack else runs.in_the_way(place, options.delete)
        if reason:
            raise failures.CopyError(errno.EWOULDBLOCK, reason, os.path.normpath(os.path.join(top, name)))
    except OSError:
        fs.close_read(place)
        raise
    if stack:
        stack.enter_context(runs.released(place))
    else:
        fs.close_read(place)


def open_to_mark(name: str, top: int, state: os.stat_result) -> int:
    """Open a directory; one of ours that we may not read too, by a mode that it has for as long as that takes."""
    try:
        return fs.open_directory(name, top)
    except PermissionError:
        if state.st_uid != os.geteuid():
            raise
    mode, closed = stat.S_IMODE(state.st_mode), fs.hold(name, top)
    try:
        attr.set_mode(fs.held(closed), mode | ALL_OF_OWNER)
        try:
            return fs.open_directory(name, top)
        finally:
            attr.set_mode(fs.held(closed), mode)
    finally:
        fs.close_read(closed)


def make_landing(name: str, top: int | None, source: str, options: Options, token: str) -> bool | None:
    """Make the directory of one of several sources. True if it was not there; None if what is there is to be kept.

    A symbolic link in its place is not followed: only the destination itself may be one. Raises CopyError if the source cannot
    be read: nothing gives way to it.
    """
    state = None if top is None else fs.look_if_there(name, top)
    if state and stat.S_ISDIR(state.st_mode):
        return False
    if state and options.overwrite is Overwrite.NEVER:
        return None
    if state:
        look_into(source, options.retries)
    if top is not None and not options.dry_run:
        if state:
            changes.make_directory_instead(name, runs.two_names(token, 0, name), top, mode_begun(options))
        else:
            changes.make_directory(name, top, mode_begun(options))
    return True


def look_into(source: str, retries: int) -> None:
    """Raises CopyError if a directory cannot be read, not even when it is tried again."""
    while True:
        try:
            handle = fs.open_directory(source, fs.HERE, follow=True)
            try:
                fs.list_directory(handle)
                return
            finally:
                fs.close_read(handle)
        except OSError as error:
            if error.errno not in fs.PASSING or not retries:
                raise failures.CopyError(error.errno, error.strerror, source).with_traceback(error.__traceback__) from None
        retries -= 1


def make_lasting(top: int, path: str) -> None:
    """Wait until all that is in the destination, and its own name, are on stable storage. Raises OSError.

    What was copied is there already. What was not, because an earlier run had copied it, or a worker that was killed before it
    could wait, may not be.
    """
    storage.sync_file_system(top)
    storage.sync(top)
    with contextlib.suppress(PermissionError):  # then somebody else made the name
        above = os.open(os.path.dirname(path), fs.DIRECTORY)
        try:
            storage.sync(above)
        finally:
            fs.close_read(above)


def tree_of(landing: Landing, below: str | None, top: int | None) -> Tree:
    source = os.stat(landing.source)
    inode: Inode | None = None
    state = None if top is None else fs.look_if_there(below or ".", top)
    if state and stat.S_ISDIR(state.st_mode):  # else a dry run
        inode = (state.st_dev, state.st_ino)
    place = mounts.deepest_there(landing.destination)
    kind, kind_of_source = mounts.kind_of(place), mounts.kind_of(landing.source)
    return Tree(
        landing.source,
        landing.destination,
        (source.st_dev, source.st_ino),
        inode,
        depth=1 if below else 0,
        on_disk=mounts.is_on_disk(kind),
        exact=kind in mounts.EXACT,
        one_clock=kind in mounts.LOCAL and kind_of_source in mounts.LOCAL,
        elsewhere=mounts.is_elsewhere(kind_of_source),
        whole=not landing.names,
        labels=mounts.takes_labels(place),
        layered=kind == mounts.LAYERED,
    )


def earlier_trees(paths: Sequence[str], below: str) -> Iterator[Tree]:
    """The earlier copies of what landed ``below`` the destination, those that have it."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            place = os.path.join(path, below) if below else path
            state = os.stat(place) if not below else os.lstat(place)
            if stat.S_ISDIR(state.st_mode):
                inode = (state.st_dev, state.st_ino)
                kind, labels = mounts.kind_of(place), mounts.takes_labels(place)
                on_disk, layered = mounts.is_on_disk(kind), kind == mounts.LAYERED
                yield Tree(place, place, inode, inode, on_disk=on_disk, labels=labels, layered=layered)


def units_of(landing: Landing, tree: int, fresh: bool, share: float, partial: dict[str, str]) -> Iterator[Unit]:
    """``partial``: what runs that were cut left of files, by the names that these are to have."""
    if not landing.names:
        yield Scan(tree, "", fresh, share, only=landing.only)
    groups: dict[tuple[bool, str | None], list[str]] = {}  # by what is known of the names in a unit
    for name in landing.names:
        groups.setdefault((name in landing.regular, partial.get(landing.rename or name)), []).append(name)
    for (regular, left), names in groups.items():
        for at in range(0, len(names), BATCH):
            some = tuple(names[at : at + BATCH])
            part = share * len(some) / len(landing.names)
            yield Entries(tree, "", some, False, regular, part, landing.rename, partial=left)


@contextlib.contextmanager
def locked(top: str, exclusive: bool, report: Report) -> Iterator[tuple[int, bool]]:
    """Keep other runs out of a destination. Single files may be copied into one directory by several runs at a time.

    Gives a handle of the directory, and whether no other run is in it.
    """
    handle = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with runs.released(handle):
        alone = False
        try:
            runs.lock(handle, exclusive=True)
            alone = True
        except BlockingIOError:
            lock_with_others(handle, top, exclusive)
        except OSError as error:
            report.warnings.append(f"{top}: cannot be locked ({error.strerror}): see to it that no other run copies into it")
        yield handle, alone


def lock_with_others(handle: int, top: str, exclusive: bool) -> None:
    """Another run has a lock: only single files may go beside other single files, which begin with a look of their own."""
    for _ in range(0 if exclusive else TURNS):
        with contextlib.suppress(BlockingIOError):
            runs.lock(handle, exclusive=False)
            return
        time.sleep(TURN)
    raise OSError(errno.EWOULDBLOCK, "another run is copying into it: wait until it has ended", top)


def check_usable(top: str) -> None:
    """Say once what would otherwise be said of each entry. Raises OSError; a directory of our own can be made writable."""
    if may_write(top):
        return
    if os.statvfs(top).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), top)
    if os.stat(top).st_uid != os.geteuid():
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), top)


def may_write(directory: str) -> bool:
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def current_umask() -> int:
    """Without setting it, which another thread could notice."""
    with (
        contextlib.suppress(OSError, ValueError),
        open("/proc/self/status", encoding="ascii", errors="replace") as lines,
    ):
        for line in lines:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
