"""The library: validate, prepare the destination, run the coordinator, report."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import FrameType
from typing import Literal, NamedTuple, TypeVar

from pcopy import filesystem as fs
from pcopy.coordinator import Coordinator, coordinate
from pcopy.engines import METHODS, Engine, Pool, Serial, may_start_processes
from pcopy.errors import UsageError
from pcopy.manifest import Spool, check_place, hasher, within, write
from pcopy.options import ALL_ATTRIBUTES, Hash, Options, Overwrite, When, attributes_from
from pcopy.paths import Destination, Landing, Source, land
from pcopy.prepare import make_lasting, prepare
from pcopy.result import Observer, Report, Several, Stop
from pcopy.select import selection
from pcopy.values import moment_of, relative_paths, size_of
from pcopy.work import Event, Failure, Job

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
OverwriteName = Literal["changed", "always", "older", "never"]
HashName = Literal["sha256", "blake3"]
Choice = TypeVar("Choice", Overwrite, When, Hash)
Given = TypeVar("Given")
DEFAULT = signal.default_int_handler
ALONE = "this process is daemonic, as a worker of multiprocessing.Pool is, and may not start others: it copied alone"
RATE = re.compile(r"(\d+\.?\d*|\.\d+)\s*([kmgt]?)b?", re.IGNORECASE | re.ASCII)
FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
# Slower, a single block would take seconds.
SLOWEST, FASTEST = 1000, 10**15
WhenName = Literal["auto", "always", "never"]


def copy(
    sources: Path | Iterable[Path],
    destination: Path,
    *,
    jobs: int | None = None,
    overwrite: Overwrite | OverwriteName = "changed",
    checksum: bool = False,
    preserve: str | Iterable[str] = ALL_ATTRIBUTES,
    dereference: bool = False,
    one_file_system: bool = False,
    filters: Sequence[str] = (),
    files_from: Iterable[Path] | None = None,
    max_size: int | str | None = None,
    min_size: int | str | None = None,
    newer_than: int | str | datetime.datetime | None = None,
    reflink: When | WhenName = "auto",
    sparse: When | WhenName = "auto",
    atomic: bool = False,
    fsync: bool = False,
    verify: bool = False,
    manifest: Path | None = None,
    hash: Hash | HashName = "sha256",
    retries: int = 2,
    bwlimit: float | str | None = None,
    dry_run: bool = False,
    delete: bool = False,
    max_delete: int | None = None,
    link_dest: Path | Iterable[Path] = (),
    verbose: bool = False,
    start_method: Literal["fork", "forkserver", "spawn"] | None = None,
    observer: Observer | Iterable[Observer] | None = None,
    stop: Stop | None = None,
    expected: Report | None = None,
) -> Report:
    """Copy files and directory trees, faithfully and in parallel.

    One source directory: ``destination`` becomes a copy of it, and a second run brings it up to date. One source file:
    ``destination`` is its new name, or the directory that it goes into. Several sources go into ``destination``.

    :param jobs: worker processes; by default as many as this process may use processors; 1 copies in this process
    :param overwrite: what to do with a file that is there: ``changed`` replaces it if size or modification time differ
    :param checksum: ``changed`` means that contents differ, which takes reading both; times are brought up to date
    :param preserve: ``all``, or among ``mode``, ``owner``, ``times``, ``links``, ``xattr`` (ACLs with it)
    :param dereference: copy what symbolic links point to
    :param one_file_system: leave out other file systems mounted below a source, but not bind mounts of its own
    :param filters: lines as in a gitignore file, which hide what is below each source directory; the last that matches
        decides, and one that begins with ``!`` brings back
    :param files_from: copy only these, paths below the one source, which is a directory; directories without their contents
    :param max_size: leave out larger files: bytes, or such as ``10k``, ``5M``, ``1G``
    :param min_size: leave out smaller files
    :param newer_than: leave out files that were not modified after this: nanoseconds since the epoch, a ``datetime``,
        a date or an age such as ``7d``, ``12h``
    :param reflink: share blocks where the file system can; ``always`` fails where it cannot
    :param sparse: keep holes (``auto``), also make them of zeros (``always``), or fill them (``never``)
    :param atomic: new files too appear under their names only when they are whole
    :param fsync: wait until all that was copied is on stable storage, with its directories
    :param verify: read every copied file back from the storage and compare; what differs fails, and is not left in place
    :param manifest: a file to write the checksums of all files in the copy to, for ``sha256sum -c`` in the destination
    :param hash: ``sha256``, or ``blake3`` for ``b3sum -c``
    :param retries: times that an entry is tried again after an error that may pass (EIO, ESTALE, EAGAIN, ETIMEDOUT)
    :param bwlimit: bytes a second over all workers together, or a text such as ``50M`` or ``1.5G``
    :param dry_run: report what would be done and touch nothing
    :param delete: remove what the source lacks from the copies of directories. An empty source is refused.
    :param max_delete: do nothing at all if that is more than so many entries; with it, a source may be empty
    :param link_dest: earlier copies on the destination's file system, relative to it: files that have not changed since become
        hard links to them, or share their blocks with ``reflink="always"``
    :param verbose: tell the observer of every entry
    :param start_method: multiprocessing's; by default ``fork`` while this process has a single thread
    :param observer: is told how the run goes, or several are, such as a :class:`pcopy.Log`; what one raises ends the run
    :param stop: set its ``signal``, and the run stops within a slice
    :param expected: the report of a dry run, so that the progress knows the total
    :returns: what was done. Entries that failed are in ``report.errors``; they raise nothing.
    :raises UsageError: the request makes no sense as it stands; nothing was touched

    No output of its own. Safe in a program with threads: workers are then started by ``forkserver``. They never import the
    program's main module. A daemonic process, such as a worker of ``multiprocessing.Pool``, may not start workers: it copies
    alone, whatever ``jobs`` says, and a warning in the report says so.
    """
    observer = check_observer(observer)
    options = Options(
        jobs=check_jobs(jobs),
        overwrite=check_choice("overwrite", Overwrite, overwrite),
        checksum=checksum,
        preserve=check_preserve(preserve),
        dereference=dereference,
        one_file_system=one_file_system,
        filters=check_filters(filters),
        max_size=None if max_size is None else check_value("max_size", size_of, max_size),
        min_size=None if min_size is None else check_value("min_size", size_of, min_size),
        newer_than=None if newer_than is None else check_value("newer_than", moment_of, newer_than),
        reflink=check_choice("reflink", When, reflink),
        sparse=check_choice("sparse", When, sparse),
        atomic=atomic,
        fsync=fsync,
        verify=verify,
        sums=check_hash(hash) if manifest is not None else None,
        retries=check_count("retries", retries),
        bwlimit=check_rate(bwlimit),
        dry_run=dry_run,
        delete=delete,
        max_delete=None if max_delete is None else check_count("max_delete", max_delete),
        link_dest=tuple(text_of("link_dest", one) for one in listed(link_dest)),
        verbose=verbose,
        events=observer.wants_events,
        start_method=start_method,
    )
    if start_method not in (None, *METHODS):
        raise UsageError(f"start_method {start_method!r}: must be one of {', '.join(METHODS)}")
    check_sharing(options.reflink, options.sparse)
    check_sizes(options)
    if checksum and options.overwrite is not Overwrite.CHANGED:
        raise UsageError(f"checksum says what 'changed' means: leave overwrite at it, not at '{options.overwrite.value}'")
    check_kind("stop", stop, Stop)
    check_kind("expected", expected, Report)
    found = look_at_sources(sources, options)
    there = look_at_destination(destination)
    top, landings = land(found, there)
    if files_from is not None:
        landings = [only_listed(found, landings, files_from)]
    refuse_overlap(found, there, landings)
    check_deletion(options, landings)
    listing = None if manifest is None else check_place(os.fsdecode(manifest), top, landings)
    options = replace(options, link_dest=tuple(check_earlier(one, top) for one in options.link_dest))
    report, stop, started = new_report(options), stop or Stop(), time.monotonic()
    observer.started([one.path for one in found], there.path, options)
    try:
        request = Request(top, landings, options, expected, listing, spared(landings, [*observer.files, listing]))
        if options.delete and (failure := too_much(request, stop)):
            give_up(report, failure, observer)
        else:
            carry_out(request, report, observer, stop)
    finally:
        report.signal = stop.signal
        report.seconds = time.monotonic() - started
        end(report, top, observer)
    return report


class Request(NamedTuple):
    """What was asked for, and makes sense. ``listing``: where a manifest goes; ``spared``: as in a job."""

    top: str
    landings: Sequence[Landing]
    options: Options
    expected: Report | None
    listing: str | None
    spared: frozenset[tuple[int, str]]


def spared(landings: Sequence[Landing], files: Iterable[str | None]) -> frozenset[tuple[int, str]]:
    """The files of a run that lie in the copy, which lacks a source for them: (tree, path below it)."""
    places = [os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) for path in files if path]
    below = [(tree, within(path, one.destination)) for tree, one in enumerate(landings) for path in places]
    return frozenset((tree, path) for tree, path in below if path)


def carry_out(request: Request, report: Report, observer: Observer, stop: Stop) -> None:
    """Prepare the destination and do all the work."""
    top, landings, options, expected, listing, spared = request
    with contextlib.ExitStack() as stack:
        try:
            job, units, handle = prepare(top, landings, options, report, stack)
        except OSError as error:
            give_up(report, fs.failure(top, error)._replace(operation="prepare the destination", fatal=True), observer)
            return
        spool = stack.enter_context(contextlib.closing(Spool()))
        coordinator = Coordinator(job._replace(stop=stop, spared=spared), report, observer, stop, spool)
        if expected:
            coordinator.progress.expected = (expected.entries, expected.bytes)
        tell_skipped(job, landings, observer)
        coordinator.add(units)
        coordinator.progress.found += sum(len(landing.names) for landing in landings)
        with stopped_by_ctrl_c(stop):
            coordinate(coordinator, engine_for(options))
        if options.fsync and not options.dry_run and handle is not None and not report.stopped:
            try:
                make_lasting(handle, top)
            except OSError as error:
                note(report, fs.failure(top, error), observer)
        if listing and not options.dry_run:
            write_manifest(spool, listing, top, job, report, observer, stop)


def end(report: Report, top: str, observer: Observer) -> None:
    """Reconcile, and let the observers have the last word: what they add to the errors is told as any other."""
    if mismatch := report.reconcile(top):
        observer.failure(mismatch)
    known = len(report.errors)
    observer.finished(report)
    for failure in report.errors[known:]:
        observer.failure(failure)


def new_report(options: Options) -> Report:
    engine = engine_for(options)
    warnings = [ALONE] if engine.jobs < options.jobs else []
    return Report(jobs=engine.jobs, engine=engine.name, dry_run=options.dry_run, warnings=warnings)


def too_much(request: Request, stop: Stop) -> Failure | None:
    """Why nothing is to be deleted, and so nothing done at all. How much there is to delete tells a dry run."""
    top, landings, options = request[:3]
    if options.max_delete is None:
        empty = next((one.source for one in landings if is_empty(one.source)), None)
        reason = "the source is empty, so that all would be deleted: is it mounted? If it is meant to be, give max-delete"
        return Failure(empty, "delete", None, reason, fatal=True) if empty else None
    silent = replace(options, dry_run=True, verbose=False, events=False)
    plan = new_report(silent)
    carry_out(request._replace(options=silent, expected=None), plan, Observer(), stop)
    if plan.deleted <= options.max_delete:
        return None
    reason = f"would remove {plan.deleted:,} entries, more than max-delete allows ({options.max_delete:,}): nothing was done"
    return Failure(top, "delete", None, reason, fatal=True)


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
    alone = options.jobs == 1 or not may_start_processes()
    return Serial() if alone else Pool(options.jobs, options.start_method)


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


def check_count(name: str, count: int) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise UsageError(f"{name} {count!r}: must be 0 or more")
    return count


def check_deletion(options: Options, landings: Sequence[Landing]) -> None:
    if options.max_delete is not None and not options.delete:
        raise UsageError("max-delete goes with delete")
    if options.delete and all(landing.names for landing in landings):
        raise UsageError("delete is for copies of directories: no source is one")


def check_earlier(given: str, top: str) -> str:
    """An earlier copy that hard links can be made to. A relative path is relative to the destination, as for rsync."""
    path = os.path.normpath(os.path.join(top, given))
    try:
        state, there = os.stat(path), os.stat(top if os.path.exists(top) else os.path.dirname(top))
    except OSError as error:
        where = "" if os.path.isabs(given) else f" (that is {path}: relative to the destination)"
        raise UsageError(f"link-dest {given}{where}: {error.strerror}") from None
    if not stat.S_ISDIR(state.st_mode):
        raise UsageError(f"link-dest {given}: is not a directory")
    if state.st_dev != there.st_dev:
        raise UsageError(f"link-dest {given}: is on another file system than {top}, and hard links cannot reach there")
    if os.path.samestat(state, there):
        raise UsageError(f"link-dest {given}: is the destination itself; give an earlier copy")
    return path


def is_empty(directory: str) -> bool:
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is None
    except OSError:  # which the run will meet again
        return False


def check_rate(rate: float | str | None) -> float | None:
    """Bytes a second. Raises UsageError."""
    if rate is None:
        return None
    found = RATE.fullmatch(str(rate).strip()) if not isinstance(rate, bool) else None
    if not found:
        raise UsageError(f"bwlimit {rate!r}: must be bytes a second, such as 500k, 50M or 1.5G")
    number = float(found[1]) * FACTORS[found[2].lower()]
    if not SLOWEST <= number <= FASTEST:
        raise UsageError(f"bwlimit {rate!r}: must be from {SLOWEST:,} bytes a second to {FASTEST // 10**12} TB")
    return number


def check_observer(observer: Observer | Iterable[Observer] | None) -> Observer:
    if observer is None or isinstance(observer, Observer):
        return observer or Observer()
    observers = list(observer) if isinstance(observer, Iterable) else [observer]
    for one in observers:
        check_kind("observer", one, Observer)
    return Several(observers)


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


def check_preserve(preserve: str | Iterable[str]) -> frozenset[str]:
    try:
        return attributes_from(preserve)
    except ValueError as error:
        raise UsageError(f"preserve {error}") from None


def check_filters(filters: Sequence[str]) -> tuple[str, ...]:
    if isinstance(filters, str) or not all(isinstance(line, str) for line in filters):
        raise UsageError(f"filters {filters!r}: must be a list of lines as in a gitignore file")
    selection(tuple(filters))
    return tuple(filters)


def check_value(name: str, meaning: Callable[[Given], int], given: Given) -> int:
    try:
        return meaning(given)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def check_sizes(options: Options) -> None:
    if options.max_size is not None and options.min_size is not None and options.max_size < options.min_size:
        raise UsageError(f"max_size {options.max_size:,} is less than min_size {options.min_size:,}: no file is left to copy")


def only_listed(sources: Sequence[Source], landings: Sequence[Landing], files_from: Iterable[Path]) -> Landing:
    """The one source, of which only what a list names is copied."""
    if len(sources) != 1 or not sources[0].is_directory:
        raise UsageError("a list of what to copy (files_from) needs one source, the directory that its paths are below")
    paths = [files_from] if isinstance(files_from, (str, bytes, os.PathLike)) else files_from
    return landings[0]._replace(only=relative_paths(os.fsdecode(path) for path in paths))


def look_at_sources(sources: Path | Iterable[Path], options: Options) -> list[Source]:
    return [look_at_source(text_of("source", path), options.dereference) for path in listed(sources)]


def listed(paths: Path | Iterable[Path]) -> Iterable[object]:
    """Several paths, or the one that stands for itself."""
    several = isinstance(paths, Iterable) and not isinstance(paths, (str, bytes, os.PathLike))
    return paths if several else [paths]  # type: ignore[return-value]


def text_of(what: str, path: object) -> str:
    try:
        return os.fsdecode(path)  # type: ignore[arg-type]
    except TypeError:
        raise UsageError(f"{what} {path!r}: must be a path: str, bytes or os.PathLike") from None


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
    given = text_of("destination", destination)
    if not given or "\0" in given:
        raise UsageError(f"{given!r}: cannot be a destination")
    path = absolute(given)
    is_directory = os.path.isdir(path)
    if is_directory:
        path = os.path.realpath(path)
    if os.path.islink(path) and not os.path.exists(path) and given.endswith("/"):
        raise UsageError(f"{given}: is a symbolic link to nothing; remove it or give another destination")
    special, parent = False, os.path.dirname(path)
    try:
        special = is_special(os.lstat(path).st_mode)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"{given}: the path, or a name in it, is too long: choose a shorter one") from None
    below_file = os.path.lexists(parent) and not os.path.isdir(parent)
    return Destination(given, path, os.path.lexists(path), is_directory, os.path.isdir(parent), below_file, special)


def absolute(path: str) -> str:
    """An absolute path. "x/.." is only taken out where x is no symbolic link."""
    try:
        if ".." in path.split("/"):
            parent, name = os.path.split(path.rstrip("/"))
            return os.path.realpath(path) if name in ("..", ".") else os.path.join(os.path.realpath(parent), name)
        return os.path.abspath(path)
    except FileNotFoundError:  # getcwd(2)
        raise UsageError(f"{path}: the working directory is gone: change to another, or give an absolute path") from None


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


def tell_skipped(job: Job, landings: Sequence[Landing], observer: Observer) -> None:
    """Of the directories that an entry to be kept stands in the way of."""
    if job.options.tells:
        for left_out in {landing.source for landing in landings} - {tree.source for tree in job.trees}:
            observer.event(Event("skipped", left_out, "is there"))


def note(report: Report, failure: Failure, observer: Observer) -> None:
    report.errors.append(failure)
    observer.failure(failure)


def give_up(report: Report, failure: Failure, observer: Observer) -> None:
    """Nothing was copied."""
    note(report, failure, observer)
    report.stopped = True


__all__ = ["Failure", "copy"]
