"""How many slices run at a time, where nobody has said.

    Effort (worker) ── seconds it computed, and waited ──▶ Outcome ──▶ Crew (coordinator) ──▶ jobs

A worker that waits for the storage leaves its processor to another. So there are to be as many as keep the processors busy:
two of them, where one second in ten goes into computing, are kept so by twenty. Where it is the storage that has no more to
give, more workers only wait longer, or make a disk's heads move. That shows in how much is done in a second; so now and then
half as many are tried, and if they are faster, it is left at that.
"""

from __future__ import annotations

import contextlib
import time

from pcopy.work import Outcome

# More would find room on very distant storage only, and each takes 10 ms to start and 4 MB of memory.
MOST = 64
# A pool is opened again only for so many times as many workers: that takes as long as a slice.
WORTH = 2
# Seconds: of a look at how fast it goes; of one with half as many; until the slices of the number before are out of the way;
# until something that did not help is tried again.
BASE, TRIAL, SETTLING, HOLD = 5.0, 0.3, 0.1, 30.0
SLICES = 2  # of each worker, at least, in one look
# Bytes that count as much as an entry.
BYTES = 64 << 10


class Effort:
    """What a slice takes of a processor, begun when it is made.

    Waiting for one is no waiting for the storage: the second number in /proc/thread-self/schedstat says how long that
    took, in nanoseconds (Documentation/scheduler/sched-stats.rst). Where there is no such file, it counts as that.
    """

    def __init__(self) -> None:
        self.began, self.computed, self.queued = time.monotonic(), time.thread_time(), queued()

    def into(self, outcome: Outcome) -> None:
        outcome.computed = time.thread_time() - self.computed
        outcome.waited = max(0.0, time.monotonic() - self.began - outcome.computed - (queued() - self.queued))


def queued() -> float:
    """Seconds for which this thread could have run, and no processor was free."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/thread-self/schedstat", "rb") as file:
        return int(file.read().split()[1]) / 1e9
    return 0.0


class Crew:
    """Decides how many slices run at a time. Times are seconds of one clock."""

    def __init__(self, processors: int) -> None:
        self.processors = self.jobs = processors
        self.capacity = 0  # workers of the open pool; none is open yet
        self.computed = self.waited = 0.0
        self.full: tuple[int, float] | None = None  # what half as many are compared with: jobs, and their rate
        self.held = 0.0  # until when no other number is tried
        self.restart(0.0)

    def restart(self, since: float) -> None:
        """Look anew at how fast it goes, from then on."""
        self.since, self.slices, self.done = since, 0, 0.0

    @property
    def wanted(self) -> int:
        """As many as keep the processors busy."""
        waits = self.waited / self.computed if self.computed else 0.0
        return min(max(MOST, self.processors), round(self.processors * (1 + waits)))

    @property
    def outgrown(self) -> bool:
        """Whether the open pool has too few workers."""
        return self.jobs > self.capacity > 0

    def open(self, now: float) -> None:
        """A pool is opened, of as many workers as there are to be."""
        self.capacity = self.jobs
        self.restart(now + SETTLING)

    def refused(self) -> None:
        """So many workers could not be started: no more than there have to be, from now on."""
        self.jobs, self.held = self.processors, float("inf")

    def note(self, outcome: Outcome, now: float) -> None:
        """Take in what a slice did."""
        self.computed += outcome.computed
        self.waited += outcome.waited
        if not self.capacity:
            self.waited += outcome.waited  # once more: what is done for the first time takes longer to compute
            self.jobs = self.wanted
        elif now >= self.since and not self.outgrown:
            self.slices += 1
            self.done += outcome.tally.found + outcome.tally.accounted + outcome.tally.bytes / BYTES
            self.decide(now)

    def decide(self, now: float) -> None:
        took, wanted = now - self.since, self.wanted
        if self.slices < SLICES * self.jobs:
            return
        if self.full:
            if took >= TRIAL:
                self.judge(self.done / took, now)
        elif (wanted > WORTH * self.capacity and now >= self.held) or wanted * WORTH < self.jobs:
            self.change(wanted, now)
        elif took >= BASE and now >= self.held and self.jobs > self.processors:
            self.full = self.jobs, self.done / took
            self.change(max(self.processors, self.jobs // 2), now)

    def judge(self, rate: float, now: float) -> None:
        """Are half as many faster? Then it is left at them, and fewer may do. If not, nothing else is tried for a while."""
        jobs, before = self.full or (self.jobs, 0.0)
        self.full = None
        if rate <= before:
            self.held = now + HOLD
            self.change(jobs, now)
        else:
            self.change(self.jobs, now)

    def change(self, jobs: int, now: float) -> None:
        self.jobs = jobs
        self.computed, self.waited = self.computed / 2, self.waited / 2  # what was long ago counts less and less
        self.restart(now + SETTLING)
