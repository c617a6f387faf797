"""A part of a run: the count of what may be deleted, the plan of it, the copy, the check of a manifest.

All of them go alike: at first in this process, then on the workers that they have in common, until Ctrl-C or the end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NamedTuple

from pcopy.asked import why_alone
from pcopy.coordinator import Coordinator, begin, do_here, wind_up
from pcopy.options import Options
from pcopy.outcome import Failure
from pcopy.paths import Landing
from pcopy.result import Observer, Report, Stop
from pcopy.stop import Interrupts
from pcopy.workers import Workers

DEFAULT = signal.default_int_handler


class Request(NamedTuple):
    """What was asked for, and makes sense. ``listing``: where a manifest goes; ``files``: what a run writes besides.

    ``only_deletions``: see Job.
    """

    top: str
    landings: Sequence[Landing]
    options: Options
    expected: Report | None
    listing: str | None
    files: Sequence[str]
    only_deletions: bool = False


class Run(NamedTuple):
    """Who goes through all the parts: the one that counts, the one that is told, the one that may end it, and the workers."""

    report: Report
    observer: Observer
    stop: Stop
    workers: Workers

    def note(self, failure: Failure) -> None:
        self.report.errors.append(failure)
        self.observer.failure(failure)

    def give_up(self, failure: Failure) -> None:
        """Nothing was copied."""
        self.note(failure)
        self.report.stopped = True


def new_report(options: Options) -> Report:
    alone = why_alone() if options.jobs > 1 else ""
    jobs, warnings = (1, [alone]) if alone else (options.jobs, [])
    return Report(jobs=jobs, dry_run=options.dry_run, warnings=warnings)


def coordinate(coordinator: Coordinator, workers: Workers) -> None:
    """Do all the work: at first in this process; a small copy pays for no engine, nor for importing one."""
    try:
        if not workers.executor:
            begin(coordinator)
        if coordinator.has_work:
            try:
                from pcopy.drive import drive
            except (ImportError, MemoryError, OSError) as error:  # no handle is left for a module, or no memory
                do_alone(coordinator, str(error) or os.strerror(errno.ENOMEM))
            else:
                drive(coordinator, workers)
    finally:
        wind_up(coordinator)


def do_alone(coordinator: Coordinator, reason: str) -> None:
    """The rest, in this process, if more were not insisted on."""
    if coordinator.jobs > 1:
        coordinator.cannot_start(reason)
    while coordinator.has_work:
        do_here(coordinator)


@contextlib.contextmanager
def stopped_by_ctrl_c(stop: Stop) -> Iterator[None]:
    """Where Ctrl-C would raise KeyboardInterrupt anywhere, let it be raised when the run has stopped; the second at once."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not DEFAULT:
        yield
        return
    interrupts = Interrupts()

    def ask(number: int, frame: FrameType | None) -> None:
        if interrupts.note():
            raise KeyboardInterrupt
        stop.signal = number

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, DEFAULT)
    if interrupts.first is not None:
        raise KeyboardInterrupt


@contextlib.contextmanager
def closed_in_peace(stop: Stop) -> Iterator[Workers]:
    """The workers of a run, which are closed at its end, however that comes: one Ctrl-C does not keep them from it."""
    workers = Workers()
    try:
        yield workers
    finally:
        with stopped_by_ctrl_c(stop):
            workers.__exit__(*sys.exc_info())


def add_warnings(report: Report, other: Report) -> None:
    """Those of another part's report, each once."""
    report.warnings += [warning for warning in other.warnings if warning not in report.warnings]
