"""The library: validate, prepare the destination, run the coordinator, report."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import time
from collections.abc import Iterable, Sequence, Set
from typing import Literal

from pcopy import failures
from pcopy import filesystem as fs
from pcopy.asked import (
    HashName,
    Jobs,
    OverwriteName,
    Path,
    WhenName,
    check_choice,
    check_count,
    check_filters,
    check_flags,
    check_hash,
    check_jobs,
    check_kind,
    check_observer,
    check_preserve,
    check_rate,
    check_sharing,
    check_sizes,
    check_value,
    listed,
    text_of,
)
from pcopy.besides import check_files, check_place, refuse_one_file
from pcopy.coordinator import Coordinator
from pcopy.errors import UsageError
from pcopy.limit import empty_source, too_much
from pcopy.manifest import Spool, escaped, write
from pcopy.options import ALL_ATTRIBUTES, METHODS, Hash, Options, Overwrite, When
from pcopy.outcome import Event, Failure
from pcopy.part import Request, Run, closed_in_peace, coordinate, new_report, stopped_by_ctrl_c
from pcopy.paths import Landing, land
from pcopy.places import (
    check_deletion,
    check_earlier,
    look_at_destination,
    look_at_sources,
    only_listed,
    place_of,
    refuse_overlap,
    refuse_own_place,
    within,
)
from pcopy.prepare import enter, make_lasting, prepare
from pcopy.result import Observer, Report, Stop
from pcopy.values import moment_of, size_of
from pcopy.work import Job, Tree


def copy(
    sources: Path | Iterable[Path],
    destination: Path,
    *,
    jobs: Jobs | None = None,
    overwrite: Overwrite | OverwriteName = "changed",
    checksum: bool = False,
    preserve: str | Iterable[str] = ALL_ATTRIBUTES,
    dereference: bool = False,
    one_file_system: bool = False,
    filters: Iterable[str] = (),
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

    :param jobs: worker processes; 1 copies in this process; ``auto``, the default, begins with as many as this process may use
        processors, and takes more, up to 64, where they wait for the storage
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
    program's main module. To end a copy from a signal handler, set ``stop.signal``, or raise what is no :class:`Exception`
    (:class:`KeyboardInterrupt`, say): an ``Exception`` in a slice counts as the failure of one entry. A daemonic process, such
    as a worker of ``multiprocessing.Pool``, may not start workers: it copies alone, whatever ``jobs`` says, and a warning in
    the report says so.
    """
    observer = check_observer(observer)
    check_flags(checksum=checksum, dereference=dereference, one_file_system=one_file_system, atomic=atomic, fsync=fsync)
    check_flags(verify=verify, dry_run=dry_run, delete=delete, verbose=verbose)
    number, adapts = check_jobs(jobs)
    options = Options(
        jobs=number,
        adapts=adapts,
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
        sums=check_hash(hash, manifest is not None),
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
    refuse_overlap(found, there, landings, one_file_system)
    check_deletion(options, found, landings)
    refuse_own_place(found, top, landings, options)
    check_files(observer.files, landings, options)
    listing = None if manifest is None else check_place(text_of("manifest", manifest), top, landings)
    files = [*observer.files, *([listing] if listing else [])]
    refuse_one_file(files)
    options = options._replace(link_dest=tuple(check_earlier(one, top, found, options) for one in options.link_dest))
    report, stop, started = new_report(options), stop or Stop(), time.monotonic()
    if len(found) == 1 and found[0].leads_to_directory:
        report.warnings.append(
            f"{found[0].given}: is a symbolic link and copied as one; write a / after it to copy the directory"
        )
    observer.started([one.path for one in found], there.path, options)
    try:
        request = Request(top, landings, options, expected, listing, files)
        with closed_in_peace(stop) as workers:
            run = Run(report, observer, stop, workers)
            failure = empty_source(landings) if options.delete and options.max_delete is None else None
            if failure:
                run.give_up(failure)
            else:
                carry_out(request, run)
    except BaseException as error:  # an observer's; the caller gets it, and a log is to say why it ends
        if not stop.signal:
            why = f"the run was ended by {type(error).__name__}: {error}"
            report.errors.append(Failure(top, "copy", None, why, fatal=True))
            report.stopped = True
        raise
    finally:
        report.signal = stop.signal
        report.seconds = time.monotonic() - started
        end(report, top, observer)
    return report


def spared(trees: Sequence[Tree], files: Iterable[str]) -> frozenset[tuple[int, str]]:
    """The files of a run that lie in the copy, which lacks a source for them: (tree, path below it)."""
    places = [place_of(path) for path in files]
    below = [(tree, within(path, one.destination)) for tree, one in enumerate(trees) for path in places]
    return frozenset((tree, path) for tree, path in below if path)


def carry_out(request: Request, run: Run) -> None:
    """Prepare the destination and do all the work."""
    top, landings, options, expected, listing, files, only_deletions = request
    report, observer, stop, workers = run
    with contextlib.ExitStack() as stack:
        undo = stack.enter_context(contextlib.ExitStack())
        try:
            place = enter(top, landings, options, report, stack, undo)
        except OSError as error:
            run.give_up(not_prepared(top, error, options.dry_run))
            return
        to_delete = 0
        if options.delete and options.max_delete is not None and not only_deletions:
            limited = keep_to_limit(request, run)
            if not limited:
                return
            options, to_delete = limited
        undo.pop_all()
        known = len(report.errors)
        try:
            job, units = prepare(place, top, landings, options, report, stack)
        except OSError as error:
            run.give_up(not_prepared(top, error, options.dry_run))
            return
        spool = stack.enter_context(contextlib.closing(Spool()))
        full = job._replace(stop=stop, spared=spared(job.trees, files), only_deletions=only_deletions)
        coordinator = Coordinator(full, report, observer, stop, spool)
        coordinator.by_handle = by_handle(job, top, place.handle)
        coordinator.quota.expected = to_delete
        if expected:
            coordinator.progress.expected = (expected.entries, expected.bytes)
        for one in report.errors[known:]:  # of whole sources
            observer.failure(one)
        tell_skipped(job, landings, {one.path for one in report.errors[known:]}, observer)
        coordinator.add(units)
        coordinator.progress.found += sum(len(landing.names) for landing in landings)
        with stopped_by_ctrl_c(stop):
            coordinate(coordinator, workers)
            if not only_deletions:  # the last part of the run that needs them
                workers.close()
        if options.fsync and place.handle is not None and not (options.dry_run or report.stopped or stop.signal):
            try:
                make_lasting(place.handle, top)
            except OSError as error:
                run.note(failures.of(top, error))
        if listing and not options.dry_run:
            write_manifest(spool, listing, top, job, run)


def keep_to_limit(request: Request, run: Run) -> tuple[Options, int] | None:
    """The options to go on with, and how many entries are expected to be deleted at most; None if nothing is to be done."""
    failure, to_delete = too_much(request, run, carry_out)
    if run.stop.signal:
        return None
    if failure and failure.fatal:
        run.give_up(failure)
        return None
    if failure:
        run.note(failure)
        return request.options._replace(delete=False), to_delete
    return request.options, to_delete


def not_prepared(top: str, error: OSError, dry_run: bool) -> Failure:
    if dry_run and error.errno == errno.EACCES and os.path.isdir(top):
        error.strerror = f"{error.strerror}{failures.CLOSED}"
    return failures.of(top, error)._replace(operation="prepare the destination", fatal=True)


def by_handle(job: Job, top: str, handle: int | None) -> Job:
    """The same job for this process alone, by an open handle of the destination."""
    place = None if handle is None or not fs.PROC else fs.held(handle)
    if not isinstance(place, str):
        return job
    trees = [tree._replace(destination=os.path.join(place, os.path.relpath(tree.destination, top))) for tree in job.trees]
    return job._replace(trees=tuple(trees))


def end(report: Report, top: str, observer: Observer) -> None:
    """Reconcile, and let the observers have the last word: what they add to the errors is told as any other."""
    mismatch = report.reconcile(top)
    known = len(report.errors)
    try:
        if mismatch:
            observer.failure(mismatch)
    finally:
        observer.finished(report)
    for failure in report.errors[known:]:
        observer.failure(failure)


def write_manifest(spool: Spool, path: str, top: str, job: Job, run: Run) -> None:
    if run.report.stopped or run.stop.signal:
        run.report.warnings.append(f"{path}: not written, because the run was cut short")
        return
    below = within(path, top)
    own = None if below is None else escaped(below, job.options.sums or Hash.SHA256)
    try:
        write(spool, path, own, job.umask, job.options.fsync)
    except OSError as error:
        run.note(failures.of(path, error)._replace(operation="write the manifest"))


def tell_skipped(job: Job, landings: Sequence[Landing], failed: Set[str], observer: Observer) -> None:
    """Of the sources that an entry to be kept stands in the way of: they have no tree, nor have those that failed."""
    if job.options.tells:
        for left_out in {landing.source for landing in landings} - {tree.source for tree in job.trees} - failed:
            observer.event(Event("skipped", left_out, "is there"))


__all__ = ["Failure", "copy"]
