"""The library: validate, prepare the destination, run the coordinator, report."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import Literal, TypeVar

from pcopy import filesystem as fs
from pcopy.coordinator import Coordinator, coordinate
from pcopy.engines import METHODS, Engine, Pool, Serial
from pcopy.errors import UsageError
from pcopy.manifest import Spool, check_place, hasher, within, write
from pcopy.options import ALL_ATTRIBUTES, Hash, Options, Overwrite, When
from pcopy.paths import Destination, Landing, Source, land
from pcopy.prepare import make_lasting, prepare
from pcopy.result import Observer, Report, Stop
from pcopy.work import Failure, Job

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
OverwriteName = Literal["changed", "always", "older", "never"]
Choice = TypeVar("Choice", Overwrite, When, Hash)
HashName = Literal["sha256", "blake3"]
DEFAULT = signal.default_int_handler
WhenName = Literal["auto", "always", "never"]


def copy(
    sources: Path | Iterable[Path],
    destination: Path,
    *,
    jobs: int | None = None,
    overwrite: Overwrite | OverwriteName = "changed",
    checksum: bool = False,
    preserve: Iterable[str] = ALL_ATTRIBUTES,
    dereference: bool = False,
    one_file_system: bool = False,
    reflink: When | WhenName = "auto",
    sparse: When | WhenName = "auto",
    atomic: bool = False,
    fsync: bool = False,
    verify: bool = False,
    manifest: Path | None = None,
    hash: Hash | HashName = "sha256",
    retries: int = 2,
    dry_run: bool = False,
    verbose: bool = False,
    start_method: Literal["fork", "forkserver", "spawn"] | None = None,
    observer: Observer | None = None,
    stop: Stop | None = None,
    expected: Report | None = None,
) -> Report:
    """Copy files and directory trees, faithfully and in parallel.

    One source directory: ``destination`` becomes a copy of it, and a second run brings it up to date. One source file:
    ``destination`` is its new name, or the directory that it goes into. Several sources go into ``destination``.

    :param jobs: worker processes; by default as many as this process may use processors; 1 copies in this process
    :param overwrite: what to do with a file that is there: ``changed`` replaces it if size or modification time differ
    :param checksum: ``changed`` means that contents differ, which takes reading both; times are brought up to date
    :param preserve: among ``mode``, ``owner``, ``times``, ``links``, ``xattr`` (ACLs with it)
    :param dereference: copy what symbolic links point to
    :param one_file_system: leave out what is mounted below a source
    :param reflink: share blocks where the file system can; ``always`` fails where it cannot
    :param sparse: keep holes (``auto``), also make them of zeros (``always``), or fill them (``never``)
    :param atomic: new files too appear under their names only when they are whole
    :param fsync: wait until all that was copied is on stable storage, with its directories
    :param verify: read every copied file back from the storage and compare; what differs fails, and is not left in place
    :param manifest: a file to write the checksums of all files in the copy to, for ``sha256sum -c`` in the destination
    :param hash: ``sha256``, or ``blake3`` for ``b3sum -c``
    :param retries: times that an entry is tried again after an error that may pass (EIO, ESTALE, EAGAIN, ETIMEDOUT)
    :param dry_run: report what would be done and touch nothing
    :param verbose: tell the observer of every entry
    :param start_method: multiprocessing's; by default ``fork`` while this process has a single thread
    :param observer: is told how the run goes; exceptions that it raises end the run
    :param stop: set its ``signal``, and the run stops within a slice
    :param expected: the report of a dry run, so that the progress knows the total
    :returns: what was done. Entries that failed are in ``report.errors``; they raise nothing.
    :raises UsageError: the request makes no sense as it stands; nothing was touched

    No output of its own. Safe in a program with threads: workers are then started by ``forkserver``. They never import the
    program's main module.
    """
    options = Options(
        jobs=check_jobs(jobs),
        overwrite=check_choice("overwrite", Overwrite, overwrite),
        checksum=checksum,
        preserve=check_preserve(preserve),
        dereference=dereference,
        one_file_system=one_file_system,
        reflink=check_choice("reflink", When, reflink),
        sparse=check_choice("sparse", When, sparse),
        atomic=atomic,
        fsync=fsync,
        verify=verify,
        sums=check_hash(hash) if manifest is not None else None,
        retries=check_retries(retries),
        dry_run=dry_run,
        verbose=verbose,
        start_method=start_method,
    )
    if start_method not in (None, *METHODS):
        raise UsageError(f"start_method {start_method!r}: must be one of {', '.join(METHODS)}")
    check_sharing(options.reflink, options.sparse)
    if checksum and options.overwrite is not Overwrite.CHANGED:
        raise UsageError(f"checksum says what 'changed' means: leave overwrite at it, not at '{options.overwrite.value}'")
    check_kind("observer", observer, Observer)
    check_kind("stop", stop, Stop)
    check_kind("expected", expected, Report)
    found = look_at_sources(sources, options)
    there = look_at_destination(destination)
    top, landings = land(found, there)
    refuse_overlap(found, there, landings)
    listing = None if manifest is None else check_place(os.fsdecode(manifest), top, landings)
    report = Report(jobs=options.jobs, engine="serial" if options.jobs == 1 else "pool", dry_run=dry_run)
    started = time.monotonic()
    observer, stop = observer or Observer(), stop or Stop()
    with contextlib.ExitStack() as stack:
        try:
            job, units, handle = prepare(top, landings, options, report, stack)
        except OSError as error:
            give_up(report, top, error, observer)
        else:
            spool = stack.enter_context(contextlib.closing(Spool()))
            coordinator = Coordinator(job._replace(stop=stop), report, observer, stop, spool)
            if expected:
                coordinator.progress.expected = (expected.entries, expected.bytes)
            coordinator.add(units)
            coordinator.progress.found += sum(len(landing.names) for landing in landings)
            with stopped_by_ctrl_c(stop):
                coordinate(coordinator, engine_for(options))
            if options.fsync and not options.dry_run and handle is not None and not report.stopped:
                try:
                    make_lasting(handle, top)
                except OSError as error:
                    note(report, fs.failure(top, error), observer)
            if listing and not dry_run:
                write_manifest(spool, listing, top, job, report, observer, stop)
    report.signal = stop.signal
    report.seconds = time.monotonic() - started
    if mismatch := report.reconcile(top):
        observer.failure(mismatch)
    return report


def write_manifest(spool: Spool, path: str, top: str, job: Job, report: Report, observer: Observer, stop: Stop) -> None:
    if report.stopped or stop.signal:
        report.warnings.append(f"{path}: not written, because the run was cut short")
        return
    try:
        write(spool, path, within(path, top), job.umask, job.options.fsync)
    except OSError as error:
        note(report, fs.failure(path, error)._replace(operation="write the manifest"), observer)


@contextlib.contextmanager
def stopped_by_ctrl_c(stop: Stop) -> Iterator[None]:
    """Where Ctrl-C would raise KeyboardInterrupt anywhere, let it be raised when the run has stopped; the second at once."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not DEFAULT:
        yield
        return
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked, stop.signal = True, number

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, DEFAULT)
    if asked:
        raise KeyboardInterrupt


def engine_for(options: Options) -> Engine:
    return Serial() if options.jobs == 1 else Pool(options.jobs, options.start_method)


def processors() -> int:
    """Those that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


# ---- what was asked for ---------------------------------------------------------------------------------------------


def check_jobs(jobs: int | None) -> int:
    if jobs is None:
        return processors()
    if not isinstance(jobs, int) or isinstance(jobs, bool) or not 1 <= jobs <= 1024:
        raise UsageError(f"jobs {jobs!r}: must be a number from 1 to 1024")
    return jobs


def check_retries(retries: int) -> int:
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise UsageError(f"retries {retries!r}: must be 0 or more")
    return retries


def check_kind(name: str, value: object, kind: type[object]) -> None:
    if value is not None and not isinstance(value, kind):
        raise UsageError(f"{name} {value!r}: must be a pcopy.{kind.__name__}")


def check_sharing(reflink: str, sparse: str) -> None:
    if reflink == When.ALWAYS and sparse != When.AUTO:
        raise UsageError("reflink 'always' shares the blocks as they are: leave sparse at 'auto'")


def check_hash(name: str) -> Hash:
    kind = check_choice("hash", Hash, name)
    try:
        hasher(kind)
    except ImportError:
        raise UsageError(
            f"hash '{kind.value}' needs a module that is not installed: pip install 'pcopy[{kind.value}]'"
        ) from None
    return kind


def check_choice(name: str, kind: type[Choice], value: str) -> Choice:
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"{name} {value!r}: must be one of {', '.join(one.value for one in kind)}") from None


def check_preserve(preserve: Iterable[str]) -> frozenset[str]:
    names = frozenset(preserve.split(",") if isinstance(preserve, str) else preserve)
    if unknown := names - ALL_ATTRIBUTES:
        raise UsageError(f"preserve {', '.join(sorted(unknown))}: must be among {', '.join(sorted(ALL_ATTRIBUTES))}")
    return names


def look_at_sources(sources: Path | Iterable[Path], options: Options) -> list[Source]:
    paths = [sources] if isinstance(sources, (str, bytes, os.PathLike)) else list(sources)
    return [look_at_source(os.fsdecode(path), options.dereference) for path in paths]


def look_at_source(given: str, dereference: bool) -> Source:
    """A symbolic link is copied as a link, unless it ends in a slash or links are to be followed."""
    try:
        state = os.stat(given) if dereference or given.endswith("/") else os.lstat(given)
    except FileNotFoundError:
        raise UsageError(f"{given or repr('')}: the source does not exist; check the spelling") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{given!r}: the source cannot be looked at: {getattr(error, 'strerror', None) or error}") from None
    return Source(given, absolute(given), stat.S_ISDIR(state.st_mode), is_special(state.st_mode))


def is_special(mode: int) -> bool:
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))


def look_at_destination(destination: Path) -> Destination:
    given = os.fsdecode(destination)
    if not given or "\0" in given:
        raise UsageError(f"{given!r}: cannot be a destination")
    path = absolute(given)
    is_directory = os.path.isdir(path)
    if is_directory:
        path = os.path.realpath(path)
    if os.path.islink(path) and not os.path.exists(path) and given.endswith("/"):
        raise UsageError(f"{given}: is a symbolic link to nothing; remove it or give another destination")
    special, parent = False, os.path.dirname(path)
    with contextlib.suppress(OSError):
        special = is_special(os.lstat(path).st_mode)
    below_file = os.path.lexists(parent) and not os.path.isdir(parent)
    return Destination(given, path, os.path.lexists(path), is_directory, os.path.isdir(parent), below_file, special)


def absolute(path: str) -> str:
    """An absolute path. "x/.." is only taken out where x is no symbolic link."""
    if ".." in path.split("/"):
        parent, name = os.path.split(path.rstrip("/"))
        return os.path.realpath(path) if name in ("..", ".") else os.path.join(os.path.realpath(parent), name)
    return os.path.abspath(path)


def refuse_overlap(sources: Sequence[Source], destination: Destination, landings: Sequence[Landing]) -> None:
    """No source may hold the destination or be it; compared by inode, so that no link or bind mount hides it."""
    above = [(one.st_dev, one.st_ino) for one in states_above(destination.path)]
    for source in sources:
        state = os.stat(source.path) if source.is_directory else os.lstat(source.path)
        if source.is_directory and (state.st_dev, state.st_ino) in above:
            same = destination.exists and os.path.samestat(state, os.stat(destination.path))
            what = "are the same directory" if same else "the destination lies in the source, which would never end"
            raise UsageError(f"{source.given} and {destination.given}: {what}; give another destination")
    for landing in landings:
        with contextlib.suppress(OSError):
            if not landing.names and os.path.samestat(os.stat(landing.source), os.lstat(landing.destination)):
                raise UsageError(f"{landing.source}: is the destination itself; give another")
        for name in landing.names:
            with contextlib.suppress(OSError):
                target = os.lstat(os.path.join(landing.destination, landing.rename or name))
                if os.path.samestat(os.lstat(os.path.join(landing.source, name)), target):
                    raise UsageError(f"{os.path.join(landing.source, name)}: is the destination itself")


def states_above(path: str) -> Iterator[os.stat_result]:
    """Of a path, if it exists, and of all the directories above it."""
    path = os.path.realpath(path)
    while True:
        with contextlib.suppress(OSError):  # what cannot be looked at is no source, which could be
            yield os.stat(path)
        if path == os.path.dirname(path):
            return
        path = os.path.dirname(path)


def note(report: Report, failure: Failure, observer: Observer) -> None:
    report.errors.append(failure)
    observer.failure(failure)


def give_up(report: Report, top: str, error: OSError, observer: Observer) -> None:
    """The destination cannot be used: nothing was copied."""
    failure = fs.failure(top, error)._replace(operation="prepare the destination", fatal=True)
    note(report, failure, observer)
    report.stopped = True


__all__ = ["Failure", "copy"]
