"""The limit on deletions: where more is to go than it allows, nothing is done at all.

Names are counted by all workers, which takes less than to plan; only where there are more than may go, a plan tells how
many of them would.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from pcopy.coordinator import MOST, Coordinator
from pcopy.options import Options
from pcopy.outcome import Failure
from pcopy.part import Request, Run, add_warnings, coordinate, new_report, stopped_by_ctrl_c
from pcopy.paths import Landing
from pcopy.places import is_empty
from pcopy.result import Observer, Progress, Report
from pcopy.work import Job, Tree, counts_of

# Seconds of a slice in which names are counted: there are few, and all wait for the last.
BRIEF = 0.01
# What a plan ends with where something stays that is known: it is mounted, hidden by a filter, or another run's.
KNOWN_TO_STAY = frozenset({errno.EBUSY, errno.ENOTEMPTY})
CarryOut = Callable[[Request, Run], None]


def empty_source(landings: Sequence[Landing]) -> Failure | None:
    """Why nothing is to be done: all would be deleted."""
    empty = next((one.source for one in landings if is_empty(one.source)), None)
    reason = "the source is empty, so that all would be deleted: is it mounted? If it is meant to be, give max-delete"
    return Failure(empty, "delete", None, reason, fatal=True) if empty else None


def too_much(request: Request, run: Run, carry_out: CarryOut) -> tuple[Failure | None, int]:
    """Why nothing is to be deleted, and so nothing done at all. How much there is to delete tells a dry run, by ``carry_out``.

    Not fatal if that could not be found out: then all is done but the deletion, as rsync does after an error. Also returned is
    how many entries are expected to be deleted at most.
    """
    top, landings, options = request[:3]
    most = options.max_delete or 0
    silent = options._replace(dry_run=True, verbose=False, events=False, checksum=False)
    names = new_report(silent)
    in_the_way = [path for path in places(landings, files=True) if os.path.isdir(path) and not os.path.islink(path)]
    names.deleted = len(in_the_way)
    count_names([*places(landings), *in_the_way], silent, run._replace(report=names, observer=Enough(names, most)))
    if names.deleted <= most and not names.errors:
        add_warnings(run.report, names)
        return None, names.deleted  # without a plan, which takes longer than to count names
    plan = new_report(silent)
    carry_out(
        request._replace(options=silent, expected=None, only_deletions=True), run._replace(report=plan, observer=Observer())
    )
    add_warnings(run.report, plan)
    if plan.deleted <= most:
        uncounted = next((one for one in plan.errors if one.errno not in KNOWN_TO_STAY), None)
        if not uncounted:
            return None, plan.deleted
        reason = f"not counted, so nothing is deleted: {uncounted.path}: {uncounted.reason}"
        return Failure(top, "delete", None, reason), 0
    entries = "1 entry" if plan.deleted == 1 else f"{plan.deleted:,} entries"
    reason = f"would remove {entries}, more than max-delete allows ({most:,}): nothing was done"
    return Failure(top, "delete", None, reason, fatal=True), 0


def places(landings: Sequence[Landing], files: bool = False) -> list[str]:
    """The destinations of directories, or of what is none: a full directory that is in its place has to go first."""
    if not files:
        return [one.destination for one in landings if not one.names]
    return [os.path.join(one.destination, one.rename or name) for one in landings for name in one.names]


class Enough(Observer):
    """Stops a count that need not go on."""

    def __init__(self, names: Report, most: int) -> None:
        self.names, self.most = names, most

    def progress(self, progress: Progress) -> None:
        self.names.stopped = self.names.stopped or self.names.deleted > self.most


def count_names(below: Sequence[str], options: Options, run: Run) -> None:
    """How many names are below directories, so far as they are there: told as if so many were deleted."""
    there = [path for path in below if os.path.lexists(path)]
    if not there:
        return
    job = Job(options, tuple(Tree(path, path, (0, 0), None) for path in there), "", 0, stop=run.stop)
    coordinator = Coordinator(job, run.report, run.observer, run.stop)
    coordinator.longest, coordinator.batch = BRIEF, MOST
    coordinator.add(counts_of(there))
    with stopped_by_ctrl_c(run.stop):
        coordinate(coordinator, run.workers)
