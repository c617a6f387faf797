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
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait

from pcopy.engines import Engine, dead_workers, end_workers
from pcopy.result import Observer, Progress, Report, Stop
from pcopy.work import Entries, Finish, Group, Inode, Job, Link, Outcome, Place, Scan, Seal, Shared, Span, Unit
from pcopy.worker import Slice, run

# Seconds of a slice. Long: messages are rare, but a worker that runs dry waits so long for the others' leftovers.
# Short: work is found and shared out quickly, at the price of a message for every few files.
LONG, SHORT = 0.1, 0.005
# The first slice runs in this process: a copy that takes no longer never pays for a pool.
FIRST = 0.02
# Units in one slice: more would be carried to a worker and back undone.
MOST = 64
# Bytes of the smallest span worth sharing out.
SMALLEST_SPAN = 4 << 20
# Deaths in a row of the worker that holds a unit, until the unit is given up.
DEATHS = 3
# Seconds after which a silent pool is looked at.
PATIENCE = 1.0
FOREVER = threading.TIMEOUT_MAX


class Coordinator:
    """Decides what is done next. It starts nothing and waits for nothing, so its decisions can be tested alone."""

    def __init__(self, job: Job, report: Report, observer: Observer, stop: Stop) -> None:
        self.job, self.report, self.jobs = job, report, report.jobs
        self.observer, self.stop = observer, stop
        self.frontier: deque[Unit] = deque()
        self.holding: Counter[Group] = Counter()
        self.waiting: dict[Group, list[Unit]] = {}
        self.last: list[Finish] = []
        self.first_names: dict[Inode, tuple[Place, int]] = {}
        self.ruined: set[Group] = set()
        self.deaths: Counter[Unit] = Counter()
        self.suspects: deque[Unit] = deque()  # held by a worker when it died
        self.batch = 1
        self.scans = 0  # units that will find more
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
            self.scans += isinstance(unit, Scan)
        for unit in units:
            if isinstance(unit, Finish) and unit.last:
                self.last.append(unit)
            elif unit.after is not None and self.holding[unit.after]:
                self.waiting.setdefault(unit.after, []).append(unit)
            else:
                self.frontier.append(unit)

    def release(self, units: Iterable[Unit]) -> None:
        """These units are done, or have come back in another form: whoever waited for the last of them goes on."""
        for unit in units:
            self.scans -= isinstance(unit, Scan)
            for group in unit.holds:
                self.holding[group] -= 1
                if not self.holding[group]:
                    del self.holding[group]
                    self.frontier.extend(self.waiting.pop(group, ()))

    def absorb(self, units: list[Unit], outcome: Outcome) -> None:
        """Fold in what a slice of these units did."""
        self.ruined |= outcome.ruined
        self.add(outcome.leftover)
        for name in outcome.shared:
            self.add([self.copy_or_link(name)])
        self.release(units)
        for unit in units:
            self.deaths.pop(unit, None)
        self.learn_batch(len(units), outcome)
        self.report.absorb(outcome)
        self.tell(outcome)

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
        if left == 1:
            del self.first_names[name.inode]
        if first == place:
            return Entries(name.tree, name.path, (name.name,), name.fresh, True, name.share, name.rename, first_of=name.inode)
        return Link(name.tree, name.path, name.name, name.rename, name.inode, first, name.share)

    def tell(self, outcome: Outcome) -> None:
        progress, report = self.progress, self.report
        progress.done = report.entries
        progress.found += outcome.listed
        progress.growing = bool(self.scans)
        progress.share += outcome.share
        progress.small_bytes += outcome.tally.bytes - outcome.large_sealed
        progress.large_found += outcome.large_found
        progress.large_done += outcome.large_done
        progress.bytes = progress.small_bytes + progress.large_done
        progress.current = outcome.current or progress.current
        for event in outcome.events:
            self.observer.event(*event)
        for failure in outcome.failures:
            self.observer.failure(failure)
        self.observer.progress(progress)

    # ---- handing out ----

    def take(self, running: int) -> list[Unit]:
        """The units of the next slice; none if all that is left has to wait."""
        if self.stopped:
            return []
        if self.suspects:
            return [self.suspects.popleft()] if not running else []
        if not self.frontier:
            return self.take_last() if not running else []
        idle = self.jobs - running
        if idle > 1 and len(self.frontier) < 2 * idle:
            self.split(idle)
        count = min(self.batch, max(1, len(self.frontier) // (2 * self.jobs)))
        taken = [self.current(self.frontier.pop()) for _ in range(count)]
        taken.reverse()  # the last is the next to do
        return taken

    def take_all(self) -> list[Unit]:
        """Everything, for one slice."""
        units = [self.current(unit) for unit in self.frontier]
        self.frontier.clear()
        return units or self.take_last()

    def take_last(self) -> list[Unit]:
        """What has to be done when all else is: the deepest directories come first, so they are last in the list."""
        self.last.sort(key=lambda unit: unit.path.count("/"))
        units: list[Unit] = [unit._replace(last=False) for unit in self.last]
        self.last = []
        return units

    def current(self, unit: Unit) -> Unit:
        """A large file of which a span failed is not to be sealed."""
        if isinstance(unit, Seal) and unit.after in self.ruined:
            return unit._replace(discard=True)
        return unit

    def seconds(self, running: int) -> float:
        """Long slices while there is something for everybody, short ones while somebody waits."""
        return LONG if len(self.frontier) >= self.jobs - running or self.jobs == 1 else SHORT

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
        alone = len(slices) == 1 and len(slices[0]) == 1
        for unit in [unit for units in slices for unit in units]:
            self.deaths[unit] += alone
            if self.deaths[unit] >= DEATHS:
                self.give_up(unit, "the worker process that copied it died each time")
            else:
                self.suspects.extend(self.parts(unit, MOST) if alone else [unit])

    def give_up(self, unit: Unit, reason: str) -> None:
        """A unit that cannot be done becomes a failure, and the rest goes on."""
        self.absorb([unit], Slice.given_up(self.job, unit, reason))

    def clean_up(self) -> list[Unit]:
        """Of what is left when a run stops: the large files under way, to be taken away again."""
        left = [*self.frontier, *self.suspects]
        for units in self.waiting.values():
            left += units
        return [unit._replace(discard=True) for unit in left if isinstance(unit, Seal)]

    @property
    def has_work(self) -> bool:
        return not self.stopped and bool(self.frontier or self.waiting or self.suspects or self.last)


def coordinate(coordinator: Coordinator, engine: Engine) -> None:
    """Do all the work: at first in this process, then on the engine's executor, on another one if that breaks."""
    try:
        begin(coordinator)
        while coordinator.has_work:
            with engine.open() as executor:
                drive(coordinator, executor)
    finally:
        run(coordinator.job, coordinator.clean_up(), FOREVER)


def begin(coordinator: Coordinator) -> None:
    """The first slices, in this process."""
    end = time.monotonic() + FIRST
    while coordinator.has_work and time.monotonic() < end:
        units = coordinator.take_all()
        coordinator.absorb(units, run(coordinator.job, units, FIRST))


def drive(coordinator: Coordinator, executor: Executor) -> None:
    """Submit slices and take their outcomes in, until nothing is left or the executor breaks."""
    running: dict[Future[Outcome], list[Unit]] = {}
    try:
        while True:
            while len(running) < coordinator.jobs and (units := coordinator.take(len(running))):
                seconds = coordinator.seconds(len(running) + 1)
                try:
                    running[executor.submit(run, coordinator.job, units, seconds)] = units
                except BrokenExecutor as error:
                    lost: Future[Outcome] = Future()
                    lost.set_exception(error)
                    running[lost] = units
            if not running or collect(coordinator, executor, running):
                return
    except BaseException:  # Ctrl-C in a program that did not ask for anything else
        coordinator.stop.signal = coordinator.stop.signal or signal.SIGINT
        collect(coordinator, executor, running, FOREVER)
        raise


def collect(
    coordinator: Coordinator, executor: Executor, running: dict[Future[Outcome], list[Unit]], patience: float = PATIENCE
) -> bool:
    """Wait for a slice and take in what is done. True if the executor is broken; then nothing is running any more."""
    everything = patience == FOREVER
    done, _ = wait(running, patience, ALL_COMPLETED if everything else FIRST_COMPLETED)
    if not done and dead_workers(executor):
        end_workers(executor)  # the executor waits for the rest of a message: now it sees the end of it
    broken = [future for future in done if isinstance(future.exception(), BrokenExecutor)]
    if broken:
        done, _ = wait(running)
    lost = []
    for future in done:
        units, error = running.pop(future), future.exception()
        if isinstance(error, BrokenExecutor):
            lost.append(units)
        elif error:
            for unit in units:
                coordinator.give_up(unit, f"unforeseen {type(error).__name__}: {error}")
        else:
            coordinator.absorb(units, future.result())
    if lost:
        coordinator.requeue(lost)
    return bool(lost)


def divide(unit: Unit, parts: int) -> list[Unit]:
    """A unit in several, if it can be."""
    if isinstance(unit, Entries) and len(unit.names) > 1:
        size = max(1, len(unit.names) // parts)
        names = [unit.names[at : at + size] for at in range(0, len(unit.names), size)]
        return [unit._replace(names=some, share=unit.share * len(some) / len(unit.names)) for some in names]
    if isinstance(unit, Span) and unit.stop - unit.start >= 2 * SMALLEST_SPAN:
        size = max(SMALLEST_SPAN, -(-(unit.stop - unit.start) // parts))
        starts = range(unit.start, unit.stop, size)
        return [Span(unit.large, start, min(start + size, unit.stop)) for start in starts]
    return [unit]
