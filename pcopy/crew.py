"""How many slices run at a time, where nobody has said.

    Effort (worker) ── seconds it computed, and waited ──▶ Outcome ──▶ Crew (coordinator) ──▶ jobs

A worker that waits for the storage leaves its processor to another. So there are to be as many as keep the processors busy:
two of them, where one second in ten goes into computing, are kept so by twenty. Where it is the storage that has no more to
give, more workers only wait longer, or make a disk's heads move. That shows in how much is computed in a second, whatever the
files are like; so now and then half as many are tried, and if they get on faster, it is left at that for a while.
"""

from __future__ import annotations

import contextlib
import time

from pcopy import filesystem as fs
from pcopy.outcome import Outcome

# More would find room on very distant storage only, and each takes 10 ms to start, by fork, and 4 MB of memory.
MOST = 64
# Handles that the limit has to allow for each: it gets two of every worker that was started before it, and opens some.
HANDLES = 16
# Another pool, which takes as long as a slice, is worth its start only for so many times the workers; with so many times too
# many, some are left idle.
WORTH = 2
# Seconds: of a look at how fast it goes; of one with half as many; until the slices of the number before are out of the way;
# until something that did not help is tried again, at first.
BASE, TRIAL, SETTLING, HOLD = 5.0, 0.3, 0.1, 30.0
SLICES = 2  # of each worker, at least, in one look
FASTER = 1.1  # times as much, to be no chance
# Seconds of each worker by which it is known how much they wait; and of a slice that was held up by something else: SIGSTOP,
# say, or a server that started again.
MEMORY, STALLED = 2.0, 1.0


class Effort:
    """What a slice takes of a processor, begun when it is made.

    Waiting for one is no waiting for the storage: the second number in /proc/thread-self/schedstat says how long that
    took, in nanoseconds (Documentation/scheduler/sched-stats.rst). Where there is no such file, it counts as that. Nor is the
    time that files are given to come to rest.
    """

    def __init__(self) -> None:  # to be put aside while /proc is read must not look like a wait
        self.queued, self.computed, self.began = queued(), time.thread_time(), time.monotonic()

    def into(self, outcome: Outcome, rested: float = 0.0) -> None:
        took, outcome.computed = time.monotonic() - self.began, time.thread_time() - self.computed
        outcome.waited = max(0.0, took - rested - outcome.computed - (queued() - self.queued))


def queued() -> float:
    """Seconds for which this thread could have run, and no processor was free."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/thread-self/schedstat", "rb") as file:
        return int(file.read().split()[1]) / 1e9
    return 0.0


class Crew:
    """Decides how many slices run at a time. Times are seconds of one clock."""

    def __init__(self, processors: int) -> None:
        self.processors = self.jobs = processors
        self.most = max(processors, fs.as_many_as_handles_allow(MOST, HANDLES))
        self.capacity = 0  # workers of the open pool; none is open yet
        self.computed = self.waited = 0.0
        self.full: tuple[int, float] | None = None  # what half as many are compared with: jobs, and their rate
        self.grows = self.shrinks = 0.0  # until when no larger number is tried, or no smaller one
        self.hold = HOLD
        self.restart(0.0)

    def restart(self, since: float) -> None:
        """Look anew at how fast it goes, from then on."""
        self.since, self.slices, self.done = since, 0, 0.0

    @property
    def wanted(self) -> int:
        """As many as keep the processors busy."""
        waits = self.waited / self.computed if self.computed else 0.0
        return min(self.most, round(self.processors * (1 + waits)))

    @property
    def outgrown(self) -> bool:
        """Whether the open pool has too few workers."""
        return self.jobs > self.capacity > 0

    def open(self, now: float) -> None:
        """A pool is opened, of as many workers as there are to be."""
        self.capacity = self.jobs
        self.restart(now + SETTLING)

    def refused(self) -> None:
        """So many workers could not be started."""
        self.jobs = self.most = max(self.processors, self.jobs // 2)
        self.full = None

    def give_up(self) -> None:
        """None could be started, time and again: from now on there is this process alone."""
        self.jobs = self.most = self.processors = 1
        self.full = None

    def note(self, outcome: Outcome, now: float) -> None:
        """Take in what a slice did."""
        if outcome.seconds > STALLED:
            return
        kept = max(0.0, 1 - outcome.seconds / (MEMORY * self.jobs))
        self.computed = self.computed * kept + outcome.computed
        self.waited = self.waited * kept + outcome.waited
        if not self.capacity:
            self.waited += outcome.waited  # once more: what is done for the first time takes longer to compute
            self.jobs = self.wanted
        elif now >= self.since and not self.outgrown:
            self.slices += 1
            self.done += outcome.computed
            self.decide(now)

    def decide(self, now: float) -> None:
        took, wanted = now - self.since, self.wanted
        worth = wanted if wanted > WORTH * self.capacity else min(wanted, self.capacity)
        if self.slices < SLICES * self.jobs:
            return
        if self.full:
            if took >= TRIAL:
                self.judge(*self.full, self.done / took, now)
        elif wanted * WORTH < self.jobs:
            self.change(wanted, now)
        elif worth > FASTER * self.jobs and now >= self.grows:
            self.change(worth, now)
        elif took >= BASE and now >= self.shrinks and self.jobs > self.processors:
            self.full = self.jobs, self.done / took
            self.change(max(self.processors, self.jobs // 2), now)

    def judge(self, jobs: int, before: float, rate: float, now: float) -> None:
        """Do half as many get on faster? Then it is left at them, and fewer may do; each time for longer."""
        self.full = None
        if rate > FASTER * before:
            self.hold *= 2
            self.grows = now + self.hold
            self.restart(now)
        else:
            self.shrinks = now + HOLD
            self.change(jobs, now)

    def change(self, jobs: int, now: float) -> None:
        self.jobs = jobs
        self.restart(now + SETTLING)
