"""The units that nobody holds, and the loop that hands them out.

                 take()                    submit
    frontier ───────────▶ units of a slice ─────────▶ executor ─▶ run(job, units, seconds)
       ▲                                                                │
       └──── leftover units ◀── absorb() ◀── Outcome ◀──────────────────┘
                                   └──▶ report, observer

The frontier is last in, first out, so that it stays small. Units that wait for others (a directory's times for its
files) are kept aside until no unit holds their group any more. Which executor runs the slices is nobody's business here.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from typing import NamedTuple

from pcopy.account import given_up
from pcopy.engines import PATIENCE, Engine, NotStarted, end_workers, hurry_workers, is_broken
from pcopy.manifest import Spool
from pcopy.result import Observer, Progress, Report, Stop
from pcopy.work import (
    Check,
    Entries,
    Failure,
    Finish,
    Group,
    Inode,
    Job,
    Link,
    Outcome,
    Place,
    Scan,
    Seal,
    Shared,
    Span,
    Sums,
    Unit,
    Verify,
    large_group,
)
from pcopy.worker import run

# Seconds of a slice. Long: messages are rare, but a worker that runs dry waits so long for the others' leftovers.
# Short: work is found and shared out quickly, at the price of a message for every few files.
LONG, SHORT = 0.1, 0.005
# The first slice runs in this process: a copy that takes no longer never pays for a pool.
FIRST = 0.01
# Units in one slice: more would be carried to a worker and back undone.
MOST = 64
# Bytes of the smallest span worth sharing out.
SMALLEST_SPAN = 4 << 20
PAGE = 64 << 10  # bytes: the largest that Linux is built for
# Names in the frontier up to which directories are read ahead of the copying, for a total. More would know the total of
# larger trees early, at about 100 bytes of memory a name.
AHEAD = 100_000
# Seconds an entry from which on that is worth it. Each directory is then opened twice and carried to a worker twice,
# about 50 microseconds of processor time: nothing where an entry takes longer, a quarter more where it takes 20.
SLOW = 200e-6
# Deaths in a row of the worker that holds a unit, until the unit is given up.
DEATHS = 3
# Executors in a row that cannot be started, until the run is given up, and the seconds between two of them: what they
# lack may come back in a moment.
STARTS, PAUSE = 8, 0.1
FOREVER = threading.TIMEOUT_MAX
# What the calls of an executor that broke end with: some learn it from the pipe to the workers.
BROKEN = (BrokenExecutor, OSError, EOFError)
WORKER_DIED = "a worker process was killed from outside; others did its work again"


class Portion(NamedTuple):
    """The arguments of one slice."""

    units: list[Unit]
    seconds: float
    ahead: bool = False


class Coordinator:
    """Decides what is done next. It starts nothing and waits for nothing, so its decisions can be tested alone."""

    def __init__(self, job: Job, report: Report, observer: Observer, stop: Stop, spool: Spool | None = None) -> None:
        self.job, self.report, self.jobs = job, report, report.jobs
        self.observer, self.stop = observer, stop
        self.spool = spool  # where checksums go
        self.frontier: deque[Unit] = deque()
        self.holding: Counter[Group] = Counter()
        self.waiting: dict[Group, list[Unit]] = {}
        self.last: list[Finish] = []
        self.first_names: dict[Inode, tuple[Place, int]] = {}
        self.ruined: set[Group] = set()
        self.deaths: Counter[Unit] = Counter()
        self.suspects: deque[Unit] = deque()  # held by a worker when it died
        self.trial = False  # one of them is in flight
        self.starts = 0  # in a row that failed
        self.batch = 1
        self.scans: deque[Scan] = deque()  # apart from the frontier while scanning runs ahead
        self.unscanned = 0  # directories
        self.names = 0  # of entries in the frontier
        self.small_seconds = 0.0  # that slices without large files took
        self.progress = Progress()

    @property
    def stopped(self) -> bool:
        """Nothing more is to be handed out."""
        return self.report.stopped or bool(self.stop.signal)

    # ---- taking in ----

    def add(self, units: Iterable[Unit]) -> None:
        units = list(units)
        for unit in units:
            self.holding.update(unit.holds)
            self.unscanned += isinstance(unit, Scan)
        for unit in units:
            if isinstance(unit, Finish) and unit.last:
                self.last.append(unit)
            elif unit.after is not None and self.holding[unit.after]:
                self.waiting.setdefault(unit.after, []).append(unit)
            elif isinstance(unit, Scan) and self.reads_ahead:
                self.scans.append(unit)
            else:
                self.frontier.append(unit)
                self.names += len(unit.names) if isinstance(unit, Entries) else 0

    def release(self, units: Iterable[Unit]) -> None:
        """These units are done, or have come back in another form: whoever waited for the last of them goes on."""
        for unit in units:
            self.unscanned -= isinstance(unit, Scan)
            for group in unit.holds:
                self.holding[group] -= 1
                if not self.holding[group]:
                    del self.holding[group]
                    self.frontier.extend(self.waiting.pop(group, ()))

    def absorb(self, units: list[Unit], outcome: Outcome) -> None:
        """Fold in what a slice of these units did."""
        self.ruined |= outcome.ruined
        # In one go: a directory that is left to be finished has to wait for the names in it that are still to be linked.
        self.add([*outcome.leftover, *(self.copy_or_link(name) for name in outcome.shared)])
        self.release(units)
        for unit in units:
            self.deaths.pop(unit, None)
        if self.spool and outcome.sums:
            self.spool.add(outcome.sums)
        self.learn_batch(len(units), outcome)
        outcome.failures = self.worth_telling(outcome.failures)
        self.report.absorb(outcome)
        if not outcome.large_done:
            self.small_seconds += outcome.seconds
        self.tell(outcome)

    def worth_telling(self, failures: list[Failure]) -> list[Failure]:
        """That nothing more can be written is said once, not for each entry that was under way."""
        kept, said = [], self.report.stopped
        for one in failures:
            if not (one.fatal and said):
                kept.append(one)
            said |= one.fatal
        return kept

    def learn_batch(self, given: int, outcome: Outcome) -> None:
        """Units enough for a long slice, and few that come back undone."""
        if not outcome.leftover and outcome.seconds < LONG / 2:
            self.batch = min(self.batch * 2, MOST)
        elif len(outcome.leftover) > given:
            self.batch = max(self.batch // 2, 1)

    def copy_or_link(self, name: Shared) -> Unit:
        """The first name seen of an inode is copied, the others become links to it when it is there."""
        place = Place(name.tree, name.path, name.rename or name.name)
        first, left = self.first_names.get(name.inode, (place, name.links))
        self.first_names[name.inode] = (first, left - 1)
        if left == 1 and len(self.job.trees) == 1:  # sources can overlap, and then it has more names than it says
            del self.first_names[name.inode]
        if first == place:
            names = (name.name,)
            return Entries(name.tree, name.path, names, name.fresh, name.regular, name.share, name.rename, name.inode)
        return Link(name.tree, name.path, name.name, name.rename, name.inode, first, name.share)

    def tell(self, outcome: Outcome) -> None:
        progress, report = self.progress, self.report
        progress.done = report.entries
        progress.found += outcome.listed
        progress.growing = bool(self.unscanned)
        progress.share += outcome.share
        progress.small_bytes += outcome.tally.bytes - outcome.large_sealed
        progress.large_found += outcome.large_found
        progress.large_done += outcome.large_done
        progress.large_open += outcome.large_open
        progress.bytes = progress.small_bytes + progress.large_done
        progress.current = outcome.current or progress.current
        for event in outcome.events:
            self.observer.event(*event)
        for failure in outcome.failures:
            self.observer.failure(failure)
        self.observer.progress(progress)

    # ---- handing out ----

    def take(self, running: int) -> Portion | None:
        """The next slice; None if all that is left has to wait."""
        if self.stopped or (running >= self.jobs and not self.can_queue(running)):
            return None
        if running and (self.suspects or self.trial):
            return None  # a unit that may kill its worker must be alone in flight for that to be seen
        self.trial = bool(self.suspects)
        if self.suspects:
            suspect = self.suspects.popleft()
            return Portion([suspect], LONG, ahead=isinstance(suspect, Scan))  # a file in it is the likelier killer
        if self.runs_ahead:
            return self.portion(self.scans, running, ahead=True)
        if not self.frontier:
            self.frontier, self.scans = deque(self.scans), deque()
        if not self.frontier:
            last = [] if running else self.take_last()
            return Portion(last, LONG) if last else None
        idle = self.jobs - running
        if idle > 1 and len(self.frontier) < 2 * idle:
            self.split(idle)
        portion = self.portion(self.frontier, running)
        self.names -= sum(len(unit.names) for unit in portion.units if isinstance(unit, Entries))
        return portion

    def can_queue(self, running: int) -> bool:
        """Whether one more slice may wait for a worker: there is work for all, and its turn comes soon."""
        return 1 < self.jobs == running and len(self.frontier) > 2 * self.jobs

    def portion(self, stack: deque[Unit] | deque[Scan], running: int, ahead: bool = False) -> Portion:
        """As many units off a stack as fill a slice, and leave something for the others.

        The slice is long while there is something for everybody, and short while somebody waits.
        """
        count = min(self.batch, max(1, len(stack) // (2 * self.jobs)))
        units = [self.current(stack.pop()) for _ in range(count)]
        units.reverse()  # the last is the next to do
        seconds = LONG if len(stack) >= self.jobs - running - 1 or self.jobs == 1 else SHORT
        return Portion(units, seconds, ahead)

    @property
    def reads_ahead(self) -> bool:
        """Whether directories are to be read before files are copied: for a total, where the storage is what takes long."""
        return self.observer.wants_total and self.small_seconds > SLOW * max(1000, self.report.accounted)

    @property
    def runs_ahead(self) -> bool:
        """Whether the next slice reads directories: as long as the names that wait are few."""
        return bool(self.scans) and self.names < AHEAD

    def take_all(self) -> Portion:
        """Everything, for one slice in this process."""
        if self.runs_ahead:
            portion = Portion(list(self.scans), FIRST, ahead=True)
            self.scans.clear()
            return portion
        units = [self.current(unit) for unit in [*self.scans, *self.frontier]]
        self.scans.clear()
        self.frontier.clear()
        self.names = 0
        return Portion(units or self.take_last(), FIRST)

    def take_last(self) -> list[Unit]:
        """What has to be done when all else is: the deepest directories come first, so they are last in the list."""
        self.last.sort(key=lambda unit: unit.path.count("/"))
        units: list[Unit] = [unit._replace(last=False) for unit in self.last]
        self.last = []
        return units

    def current(self, unit: Unit) -> Unit:
        """A large file of which a span failed is not to be sealed, nor a name linked to one that was not copied.

        The other spans of such a file have nothing left to do.
        """
        if isinstance(unit, Seal) and unit.after in self.ruined:
            return unit._replace(discard=True)
        if isinstance(unit, (Span, Verify)) and large_group(unit.large) in self.ruined:
            return unit._replace(start=unit.stop)
        return unit._replace(copied=True) if isinstance(unit, Link) and unit.inode in self.ruined else unit

    def split(self, idle: int) -> None:
        """Make more units of the largest there are, so that nobody stands idle."""
        units = list(self.frontier)
        self.frontier.clear()
        for unit in units:
            self.frontier.extend(self.parts(unit, 2 * idle))

    def parts(self, unit: Unit, count: int) -> list[Unit]:
        parts = divide(unit, count)
        for part in parts[1:]:
            self.holding.update(part.holds)
        return parts

    # ---- workers that died, and the end ----

    def requeue(self, slices: list[list[Unit]]) -> None:
        """A worker died, and nobody knows which of these units it held: they are done again, one at a time.

        A unit that was alone in flight when its worker died, three times in a row, is given up.
        """
        if not self.stopped and WORKER_DIED not in self.report.warnings:
            self.report.warnings.append(WORKER_DIED)
        alone = len(slices) == 1 and len(slices[0]) == 1
        for unit in [unit for units in slices for unit in units]:
            self.deaths[unit] += alone
            if self.deaths[unit] >= DEATHS:
                self.give_up(unit, "the worker process that copied it died each time")
            else:
                self.suspects.extend(self.parts(unit, MOST) if alone else [unit])

    def give_up(self, unit: Unit, reason: str) -> None:
        """A unit that cannot be done becomes a failure, and the rest goes on."""
        self.absorb([unit], given_up(self.job, unit, reason))

    def not_started(self, reason: str) -> None:
        """No worker came up: nothing was tried, so no unit is to blame."""
        self.starts += 1
        if self.starts >= STARTS:
            reason = f"workers cannot be started: {reason}; run with -j 1"
            failure = Failure(self.job.trees[0].destination, "copy", None, reason, fatal=True)
            self.absorb([], Outcome(failures=[failure]))

    def clean_up(self) -> list[Unit]:
        """Of what is left when a run stops: the large files under way, to be taken away again."""
        left: list[Unit] = [*self.frontier, *self.suspects]
        for units in self.waiting.values():
            left += units
        return [unit._replace(discard=True) for unit in left if isinstance(unit, Seal)]

    @property
    def has_work(self) -> bool:
        return not self.stopped and bool(self.frontier or self.scans or self.suspects or self.last)


def coordinate(coordinator: Coordinator, engine: Engine) -> None:
    """Do all the work: at first in this process, then on the engine's executor, on another one if that breaks."""
    try:
        begin(coordinator)
        while coordinator.has_work:
            try:
                with engine.open() as executor:
                    coordinator.starts = 0
                    drive(coordinator, executor)
            except NotStarted as error:
                coordinator.not_started(str(error))
                time.sleep(PAUSE)
    finally:
        run(coordinator.job, coordinator.clean_up(), FOREVER)


def begin(coordinator: Coordinator) -> None:
    """The first slices, in this process."""
    end = time.monotonic() + FIRST
    while coordinator.has_work and time.monotonic() < end:
        portion = coordinator.take_all()
        coordinator.absorb(portion.units, run(coordinator.job, *portion))


def drive(coordinator: Coordinator, executor: Executor) -> None:
    """Submit slices and take their outcomes in, until nothing is left or the executor breaks."""
    running: dict[Future[Outcome], list[Unit]] = {}
    try:
        while True:
            while portion := coordinator.take(len(running)):
                running[submit(executor, coordinator.job, portion)] = portion.units
            if not running or collect(coordinator, executor, running):
                return
    except BaseException:  # the observer raised, or a signal handler
        coordinator.stop.signal = coordinator.stop.signal or signal.SIGINT
        coordinator.observer = Observer()
        while running:
            collect(coordinator, executor, running)
        raise


def submit(executor: Executor, job: Job, portion: Portion) -> Future[Outcome]:
    """A slice under way; if the executor broke a moment ago, one that says so."""
    try:
        return executor.submit(run, job, *portion)
    except (RuntimeError, *BROKEN) as error:  # or one that says it was shut down, while its thread takes note of it
        lost: Future[Outcome] = Future()
        lost.set_exception(BrokenExecutor(str(error)))
        return lost


def collect(coordinator: Coordinator, executor: Executor, running: dict[Future[Outcome], list[Unit]]) -> bool:
    """Wait for a slice and take in what is done. True if the executor is broken; then nothing is running any more."""
    done, _ = wait(running, PATIENCE, FIRST_COMPLETED)
    broken = any(isinstance(future.exception(), BROKEN) for future in done)
    if not done and coordinator.stopped:
        hurry_workers(executor)
    if not done and is_broken(executor):
        end_workers(executor)  # the executor waits for the rest of a message: now it sees the end of it
        broken = True
    if broken:
        done, _ = wait(running, PATIENCE)
    lost = []
    for future in list(running) if broken else done:
        units, error = running.pop(future), future.exception() if future.done() else BrokenExecutor()
        if isinstance(error, BROKEN):
            lost.append(units)
        elif error:
            for unit in units:
                coordinator.give_up(unit, f"unforeseen {type(error).__name__}: {error}")
        else:
            coordinator.absorb(units, future.result())
    if lost:
        coordinator.requeue(lost)
    return broken


def divide(unit: Unit, parts: int) -> list[Unit]:
    """A unit in several, if it can be."""
    if isinstance(unit, Entries) and len(unit.names) > 1:
        size = max(1, len(unit.names) // parts)
        names = [unit.names[at : at + size] for at in range(0, len(unit.names), size)]
        return [unit._replace(names=some, share=unit.share * len(some) / len(unit.names)) for some in names]
    if isinstance(unit, Check) and unit.length > 1:
        size = max(1, unit.length // parts)
        return [unit.part(at, at + size) for at in range(0, unit.length, size)]
    if isinstance(unit, Sums) and len(unit.names) > 1:
        size = max(1, len(unit.names) // parts)
        return [unit._replace(names=unit.names[at : at + size]) for at in range(0, len(unit.names), size)]
    if isinstance(unit, (Span, Verify)) and unit.stop - unit.start >= 2 * SMALLEST_SPAN:
        size = max(SMALLEST_SPAN, -(-(unit.stop - unit.start) // parts))
        size = -(-size // PAGE) * PAGE  # no page is written by two workers, one of which has verified its part of it
        starts = range(unit.start, unit.stop, size)
        return [unit._replace(start=start, stop=min(start + size, unit.stop)) for start in starts]
    return [unit]
