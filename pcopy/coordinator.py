"""Which units are to be done next, and what comes of their outcomes.

                 take()                    drive
    frontier ───────────▶ units of a slice ─────────▶ executor ─▶ run(job, units, seconds)
       ▲                                                                │
       └──── leftover units ◀── absorb() ◀── Outcome ◀──────────────────┘
                                   └──▶ report, observer

What waits for what is the frontier's business, and which executor runs the slices is nobody's here.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import NamedTuple, TypeGuard

from pcopy.account import given_up, take_back
from pcopy.crew import Crew
from pcopy.frontier import Frontier
from pcopy.inodes import Inodes, Name
from pcopy.manifest import Spool
from pcopy.outcome import Failure, Outcome
from pcopy.pace import Throttle
from pcopy.quota import Quota
from pcopy.result import Observer, Progress, Report, Stop
from pcopy.work import (
    Begun,
    Clear,
    Entries,
    Finish,
    Group,
    Inode,
    Job,
    Link,
    Scan,
    Seal,
    Shared,
    Span,
    Unit,
    Verify,
    changed_group,
    directory_group,
    large_group,
)
from pcopy.worker import run

# Seconds of a slice. Long: messages are rare, but a worker that runs dry waits so long for the others' leftovers.
# Short: work is found and shared out quickly, at the price of a message for every few files.
LONG, SHORT = 0.1, 0.005
# The first slice runs in this process: a copy that takes no longer never pays for a pool.
FIRST = 0.01
# Units in one slice: more would be carried to a worker and back undone.
MOST = 256
# Names in the frontier up to which directories are read ahead of the copying, for a total. More would know the total of
# larger trees early, at about 100 bytes of memory a name.
AHEAD = 100_000
# Seconds an entry from which on that is worth it. Each directory is then opened twice and carried to a worker twice,
# about 50 microseconds of processor time: nothing where an entry takes longer, a quarter more where it takes 20.
SLOW = 200e-6
# Deaths in a row of the worker that holds a unit, until the unit is given up.
DEATHS = 3
STARTS = 8  # executors in a row that cannot be started, until the run is given up, or goes on without
FOREVER = threading.TIMEOUT_MAX
WORKER_DIED = "a worker process was killed from outside; others did its work again"


class Portion(NamedTuple):
    """The arguments of one slice."""

    units: list[Unit]
    seconds: float
    ahead: bool = False
    rate: float | None = None  # bytes a second
    deletes: int = 0  # entries that may be deleted before they are counted


class Coordinator:
    """Decides what is done next. It starts nothing and waits for nothing, so its decisions can be tested alone."""

    def __init__(self, job: Job, report: Report, observer: Observer, stop: Stop, spool: Spool | None = None) -> None:
        self.job, self.report = job, report
        self.by_handle = job  # to clean up in a destination that is not where it was any more
        self.observer, self.stop = observer, stop
        self.spool = spool  # where checksums go
        self.inodes = Inodes(job)
        self.frontier = Frontier(watched=self.inodes.waiting)
        self.ruined: set[Group] = set()
        self.deaths: Counter[Unit] = Counter()
        self.suspects: deque[Unit] = deque()  # held by a worker when it died
        self.trial = False  # one of them is in flight
        self.starts = 0  # in a row that failed
        self.begun: list[Begun] = []  # units that nothing could be done about where the destination should be
        self.batch = 1
        self.said: set[Failure] = set()  # of directories, for each part of which it is found again
        self.quota = Quota(job.options.max_delete or 0 if job.options.limits_deletion else 0)
        self.longest = LONG  # seconds of a slice
        self.small_seconds = 0.0  # that slices without large files took
        self.progress = Progress()
        limit = job.options.bwlimit
        self.throttle = Throttle(limit, report.jobs) if limit and not job.options.dry_run else None
        adapts = job.options.adapts and not self.throttle  # under which workers sleep, and wait for nothing
        self.crew = Crew(report.jobs) if adapts else None

    @property
    def jobs(self) -> int:
        """How many slices run at a time."""
        return self.crew.jobs if self.crew else self.report.jobs

    @property
    def stopped(self) -> bool:
        """Nothing more is to be handed out."""
        return self.report.stopped or bool(self.stop.signal)

    @property
    def outgrown(self) -> bool:
        """Whether the executor is to be closed, and one of more workers opened."""
        return bool(self.crew and self.crew.outgrown)

    def opened(self) -> None:
        """An executor of as many workers as there are jobs is open."""
        self.starts = 0
        if self.crew:
            self.report.jobs = max(self.report.jobs, self.jobs)
            self.crew.open(time.monotonic())

    # ---- taking in ----

    def add(self, units: Iterable[Unit]) -> None:
        self.frontier.add(units, self.reads_ahead)

    def put_back(self, units: Iterable[Unit]) -> None:
        """Nothing was done about them."""
        self.frontier.place(units, self.reads_ahead)

    def absorb(self, units: list[Unit], outcome: Outcome) -> None:
        """Fold in what a slice of these units did."""
        # A large file is told once, whoever else fails at a span of it.
        outcome.failures += [why for group, why in outcome.broken.items() if why.fatal or group not in self.ruined]
        self.ruined |= outcome.ruined
        for inode in self.inodes.waiting.keys() & outcome.ruined:
            self.choose_again(inode)
        self.gather(outcome.shared)  # first: a directory that is left to be finished has to wait for them
        self.frontier.hold(outcome.uncounted)
        self.add(outcome.leftover)
        self.put_back(self.quota.counted(outcome))
        self.frontier.release(units)
        self.decide(outcome)
        for unit in units:
            self.deaths.pop(unit, None)
        self.begun += [unit for unit in units if outcome.fatal and is_begun(unit)]
        if self.spool and outcome.sums:
            self.spool.add(outcome.sums)
        self.learn_batch(len(units), outcome)
        self.say_once(outcome)
        self.report.absorb(outcome)
        if self.throttle:
            self.throttle.paid += outcome.paid
        if not outcome.large_done:
            self.small_seconds += outcome.seconds
        if self.crew:
            self.crew.note(outcome, time.monotonic())
        self.tell(outcome)

    def refuse_uncounted(self) -> None:
        """No slice is under way that may still give back some of what it may delete: what is not counted by now is too much."""
        refusal = None if self.stopped else self.quota.refusal(self.job.trees[0].destination)
        if refusal:
            self.absorb([], Outcome(failures=[refusal]))

    def say_once(self, outcome: Outcome) -> None:
        """That nothing more can be written is said once, not for each entry under way, and they do not count as failed: nor do
        those that nobody has come to. What holds for a directory is said once, too.
        """
        kept, said = [], self.report.stopped
        for one in outcome.failures:
            if one.fatal and said:
                outcome.tally.failed = max(0, outcome.tally.failed - 1)
            elif one not in self.said:
                kept.append(one)
            said |= one.fatal
            if one.errno == errno.EXDEV:
                self.said.add(one)
        outcome.failures = kept

    def learn_batch(self, given: int, outcome: Outcome) -> None:
        """Units enough for a long slice, and few that come back undone."""
        if not outcome.leftover and outcome.seconds < LONG / 2:
            self.batch = min(self.batch * 2, MOST)
        elif len(outcome.leftover) > given:
            self.batch = max(self.batch // 2, 1)

    def gather(self, found: Iterable[Shared]) -> None:
        for some in found:
            self.frontier.hold_names(some)
            self.inodes.gather(some)

    def decide(self, outcome: Outcome) -> None:
        """Make units of the names of inodes of which all are known by now: those of an outcome may have been the last."""
        decided = self.inodes.decided((inode for some in outcome.shared for inode in some.inodes), not self.frontier.searching)
        outcome.tally.unchanged += len(decided.unchanged)
        outcome.share += sum(name.among.share for name in decided.unchanged)
        self.replace(decided.unchanged, ())
        self.replace(decided.firsts, decided.units)
        done = (*self.frontier.take_done(), *decided.waiting)
        copied = dict.fromkeys(inode for inode in done if not self.frontier.holding[inode])
        self.replace(*self.inodes.linked(copied, self.ruined))

    def choose_again(self, inode: Inode) -> None:
        """The first name of an inode was not copied: another one is to be, if there is one that waits for it."""
        names, units = self.inodes.choose_again(inode)
        if units:
            self.ruined.discard(inode)
            self.replace(names, units)

    def replace(self, names: Iterable[Name], units: Iterable[Unit]) -> None:
        """Names have become units."""
        self.add(units)
        for group, count in Counter(directory_group(name.among.tree, name.among.path) for name in names).items():
            self.frontier.let_go(group, count)

    def tell(self, outcome: Outcome) -> None:
        progress, report = self.progress, self.report
        progress.done = report.entries
        progress.found += outcome.listed
        progress.growing = bool(self.frontier.unscanned)
        progress.share += outcome.share
        progress.small_bytes += outcome.tally.bytes - outcome.large_sealed
        progress.large_found += outcome.large_found
        progress.large_done += outcome.large_done
        progress.large_open += outcome.large_open
        progress.bytes = progress.small_bytes + progress.large_done
        progress.current = outcome.current or progress.current
        for event in outcome.events:
            self.observer.event(event)
        for failure in outcome.failures:
            self.observer.failure(failure)
        self.observer.progress(progress)

    # ---- handing out ----

    def take(self, running: int) -> Portion | None:
        """The next slice; None if all that is left has to wait."""
        if self.throttle and running >= self.throttle.jobs:
            return None
        portion = self.next_portion(running)
        if portion and self.throttle:
            portion = portion._replace(rate=self.throttle.rate(min(self.jobs, running + 1 + len(self.frontier.units))))
        return portion and self.granted(portion)

    def next_portion(self, running: int) -> Portion | None:
        if not running:
            self.refuse_uncounted()
        if self.stopped or self.outgrown or self.quota.uncounted or (running >= self.jobs and not self.can_queue(running)):
            return None
        if running and (self.suspects or self.trial):
            return None  # a unit that may kill its worker must be alone in flight for that to be seen
        self.trial = bool(self.suspects)
        if self.suspects:
            suspect = self.suspects.popleft()
            return Portion([suspect], LONG, ahead=isinstance(suspect, Scan))  # a file in it is the likelier killer
        if self.runs_ahead:
            return self.portion(running, ahead=True)
        if not self.frontier.units:
            self.frontier.join_scans()
        if not self.frontier.units:
            last = [] if running else self.current(self.frontier.pop_last())
            return Portion(last, LONG) if last else None
        idle = self.jobs - running
        if idle > 1 and len(self.frontier.units) < 2 * idle:
            self.frontier.split(idle)
        return self.portion(running)

    def can_queue(self, running: int) -> bool:
        """Whether one more slice may wait for a worker: there is work for all, and its turn comes soon.

        One span of a large file is work enough. Without it a worker that ends a slice waits until this process gets a
        processor, while those are busy in the kernel for milliseconds.
        """
        units = self.frontier.units
        enough = bool(units) and isinstance(units[-1], Span)
        return 1 < self.jobs == running and (enough or len(units) > 2 * self.jobs)

    def portion(self, running: int, ahead: bool = False) -> Portion:
        """As many units as fill a slice, and leave something for the others.

        The slice is long while there is something for everybody, and short while somebody waits.
        """
        there = len(self.frontier.scans if ahead else self.frontier.units)
        count = min(self.batch, max(1, there // (2 * self.jobs)))
        units = self.frontier.pop_scans(count) if ahead else self.frontier.pop(count)
        seconds = self.longest if there - count >= self.jobs - running - 1 or self.jobs == 1 else SHORT
        return Portion(self.current(units), seconds, ahead)

    @property
    def reads_ahead(self) -> bool:
        """Whether directories are to be read before files are copied: for a total, where the storage is what takes long."""
        return self.observer.wants_total and self.small_seconds > SLOW * max(1000, self.report.accounted)

    @property
    def runs_ahead(self) -> bool:
        """Whether the next slice reads directories: as long as the names that wait are few."""
        return bool(self.frontier.scans) and self.frontier.names < AHEAD

    def take_all(self) -> Portion:
        """Everything, for one slice in this process."""
        portion = self.everything()
        return self.granted(portion._replace(rate=self.throttle.rate(1)) if self.throttle else portion)

    def granted(self, portion: Portion) -> Portion:
        return portion._replace(deletes=self.quota.grant(self.jobs)) if self.quota.most else portion

    def everything(self) -> Portion:
        if self.runs_ahead:
            return Portion(self.frontier.pop_scans(len(self.frontier.scans)), FIRST, ahead=True)
        self.frontier.join_scans()
        units = self.frontier.pop(len(self.frontier.units)) or self.frontier.pop_last()
        return Portion(self.current(units), FIRST)

    def current(self, units: list[Unit]) -> list[Unit]:
        return [self.as_it_stands(unit) for unit in units]

    def as_it_stands(self, unit: Unit) -> Unit:
        """A large file of which a span failed is not to be sealed; its other spans have nothing left to do.

        Nothing is to be deleted where an entry was not copied, nor a directory that has to keep something.
        """
        if isinstance(unit, Seal) and large_group(unit.large) in self.ruined:
            return unit._replace(discard=True)
        if isinstance(unit, Seal) and changed_group(unit.large) in self.ruined:
            return unit._replace(changed=True)
        if isinstance(unit, (Span, Verify)) and large_group(unit.large) in self.ruined:
            return unit._replace(start=unit.stop)
        if isinstance(unit, Finish) and unit.extra and self.is_to_keep_all(unit):
            return unit._replace(extra=())
        if isinstance(unit, (Clear, Entries, Link)) and unit.after in self.ruined:
            return unit._replace(kept=True)
        return unit

    def is_to_keep_all(self, unit: Finish) -> bool:
        """Whether an entry of a directory was not copied; where links are followed, of any: what is to go may be behind it."""
        return unit.after in self.ruined or bool(self.job.options.dereference and self.report.failed)

    # ---- workers that died, and the end ----

    def requeue(self, slices: list[list[Unit]]) -> None:
        """A worker died, and nobody knows which of these units it held: they are done again, one at a time.

        A unit that was alone in flight when its worker died, three times in a row, is given up.
        """
        self.warn_of_death()
        alone = len(slices) == 1 and len(slices[0]) == 1
        for unit in [unit for units in slices for unit in units]:
            unit = unit._replace(again=True) if isinstance(unit, Begun) else unit
            self.deaths[unit] += alone
            if self.deaths[unit] >= DEATHS:
                self.give_up(unit, "the worker process that copied it died each time")
            else:
                self.suspects.extend(self.frontier.parts(unit, MOST) if alone else [unit])

    def warn_of_death(self) -> None:
        if not self.stopped and WORKER_DIED not in self.report.warnings:
            self.report.warnings.append(WORKER_DIED)

    def give_up(self, unit: Unit, reason: str) -> None:
        """A unit that cannot be done becomes a failure, and the rest goes on."""
        self.absorb([unit], given_up(self.job, unit, reason))

    def not_started(self, reason: str) -> None:
        """No worker came up: nothing was tried, so no unit is to blame."""
        self.starts += 1
        if self.crew:
            self.crew.refused()
        if self.starts >= STARTS:
            self.cannot_start(reason)

    def cannot_start(self, reason: str) -> None:
        if self.job.options.adapts:  # nobody asked for any
            self.go_on_alone()
            self.report.warnings.append(f"workers cannot be started: {reason}; the rest is done in one process")
        else:
            reason = f"workers cannot be started: {reason}; run with -j 1"
            what = "check" if self.report.checked else "copy"
            failure = Failure(self.job.trees[0].destination, what, None, reason, fatal=True)
            self.absorb([], Outcome(failures=[failure]))

    def go_on_alone(self) -> None:
        if self.crew:
            self.crew.give_up()
        if self.throttle:
            self.throttle.jobs = 1
        if not (self.crew and self.crew.capacity):
            self.report.jobs = 1

    def left(self) -> list[Unit]:
        """The units that are not done when a run stops, of which nothing is handed out any more."""
        left = [*self.frontier.left(), *self.suspects, *self.quota.uncounted]
        return left + self.inodes.linked(list(self.inodes.waiting), self.ruined)[1]

    def clean_up(self, left: list[Unit]) -> list[Unit]:
        """Of what is left when a run stops: the large files under way, to be taken away again.

        Those of which a span failed are counted here: nobody hears of what becomes of them.
        """
        seals = [unit for unit in left if isinstance(unit, Seal)]
        self.report.failed += sum(unit.discard or large_group(unit.large) in self.ruined for unit in seals)
        return [unit._replace(discard=True) for unit in seals]

    @property
    def has_work(self) -> bool:
        return not self.stopped and bool(self.frontier or self.suspects or self.quota.uncounted)


def begin(coordinator: Coordinator) -> None:
    """The first slices, in this process."""
    end = time.monotonic() + FIRST
    while coordinator.has_work and time.monotonic() < end:
        do_here(coordinator)


def do_here(coordinator: Coordinator) -> None:
    """A slice in this process, of all that there is."""
    portion = coordinator.take_all()
    coordinator.absorb(portion.units, run(coordinator.job, *portion))
    coordinator.refuse_uncounted()


def wind_up(coordinator: Coordinator) -> None:
    """What is begun and will not be done any more is taken away, if the run stops."""
    left = coordinator.left()
    run(coordinator.by_handle, coordinator.clean_up(left), FOREVER)
    if coordinator.stopped and not coordinator.job.options.dry_run:
        begun = [*coordinator.begun, *(unit for unit in left if is_begun(unit))]
        coordinator.report.absorb(take_back(coordinator.by_handle, begun))


def is_begun(unit: Unit) -> TypeGuard[Begun]:
    """Whether a worker that was killed may have begun a unit."""
    return isinstance(unit, Begun) and unit.again
