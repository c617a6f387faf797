"""The library: check files against a manifest, by the same coordinator and engines as a copy."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from typing import Literal, NamedTuple

from pcopy.asked import (
    HashName,
    Jobs,
    Path,
    check_count,
    check_flags,
    check_hash,
    check_jobs,
    check_kind,
    check_observer,
    text_of,
)
from pcopy.coordinator import Coordinator
from pcopy.errors import UsageError
from pcopy.manifest import portions
from pcopy.options import METHODS, Hash, Options
from pcopy.outcome import Failure
from pcopy.part import Run, coordinate, new_report, stopped_by_ctrl_c
from pcopy.places import absolute
from pcopy.prepare import current_umask
from pcopy.result import Observer, Report, Stop
from pcopy.work import Check, Job, Tree
from pcopy.workers import Workers

WHICH = "name the one that the manifest's names are relative to"


class Lines(NamedTuple):
    """A manifest that was read already."""

    path: str
    units: list[Check]


def check(
    manifest: Path | Lines,
    directory: Path = ".",
    *,
    jobs: Jobs | None = None,
    hash: Hash | HashName = "sha256",
    retries: int = 2,
    verbose: bool = False,
    start_method: Literal["fork", "forkserver", "spawn"] | None = None,
    observer: Observer | Iterable[Observer] | None = None,
    stop: Stop | None = None,
) -> Report:
    """Check the files of a directory against a manifest of ``copy``, ``sha256sum`` or ``b3sum``, in parallel.

    :param directory: what the names in the manifest are relative to
    :param hash: ``sha256`` or ``blake3``: lines do not tell, both are of one length
    :param observer: is told of progress, failures and, with ``verbose``, events; not of start and end, nor is a log kept
    :returns: ``files`` are good; what differs, is missing or is no line of a manifest is in ``report.errors``
    :raises UsageError: the manifest cannot be read, or there is no such directory

    The other parameters are those of :func:`pcopy.copy`.
    """
    check_flags(verbose=verbose)
    number, adapts = check_jobs(jobs)
    options = Options(
        jobs=number,
        adapts=adapts,
        sums=check_hash(hash, True),
        retries=check_count("retries", retries),
        verbose=verbose,
        start_method=start_method,
    )
    if start_method not in (None, *METHODS):
        raise UsageError(f"start_method {start_method!r}: must be one of {', '.join(METHODS)}")
    observer = check_observer(observer)
    if observer.files:
        raise UsageError("observer: a log and metrics are of copies; leave them out")
    check_kind("stop", stop, Stop)
    tree = look_at_directory(text_of("directory", directory))
    path, units = manifest if isinstance(manifest, Lines) else read(manifest)
    report = new_report(options)
    report.checked, report.found = True, sum(one.length for one in units)
    started = time.monotonic()
    stop = stop or Stop()
    coordinator = Coordinator(Job(options, (tree,), "", current_umask(), stop=stop), report, observer, stop)
    coordinator.progress.found = report.found
    coordinator.add(reversed(units))  # the last that comes in is the first to go out
    with stopped_by_ctrl_c(stop), Workers() as workers:
        run = Run(report, observer, stop, workers)
        coordinate(coordinator, workers)
    report.signal = stop.signal
    if not report.accounted and not report.signal:
        run.note(Failure(path, "check", None, "holds no checksums: is it a manifest?"))
    report.seconds = time.monotonic() - started
    if mismatch := report.reconcile(path):
        observer.failure(mismatch)
    return report


def read(manifest: Path) -> Lines:
    path = text_of("manifest", manifest)
    try:
        with open(path, "rb") as file:
            return Lines(path, [Check(path, *lines) for lines in portions(file)])
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"manifest {path!r}: cannot be read: {reason}; check the spelling") from None


def look_at_directory(given: str) -> Tree:
    path = os.path.realpath(absolute(given))
    try:
        state = os.stat(given)
    except (OSError, ValueError) as error:
        raise UsageError(f"{given!r}: cannot be looked at: {getattr(error, 'strerror', None) or error}; {WHICH}") from None
    if not stat.S_ISDIR(state.st_mode):
        raise UsageError(f"{given!r}: is not a directory; {WHICH}")
    return Tree(path, path, (state.st_dev, state.st_ino), None)
