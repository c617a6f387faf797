"""A limit on bytes a second, over all workers together.

    Throttle (coordinator) ── rate of this slice ──▶ Pace (worker): copies a piece, sleeps until its bytes are due
       ▲                                                    │
       └───────────── Outcome.paid ◀────────────────────────┘

Nobody shares a counter. The coordinator deals each slice an even part of the limit; a worker keeps to it by itself. What is
lost between slices, and what two slices that began at different times have too much, the coordinator sees in the outcomes: it
deals more, or less, until the sum is right.
"""

from __future__ import annotations

import time

# Seconds' worth of bytes in one piece: more is less smooth and keeps a slice that is to end for longer, less costs more calls.
PIECE = 0.05
SMALLEST_PIECE = 256  # bytes
# Bytes a second below which a worker sleeps too long over a piece: then fewer of them copy.
LEAST = 4000
# Sleeps shorter than this, in seconds, are put off: they cost more than they are worth.
SHORTEST = 0.002
# How much more is dealt for each second that the run is behind, as a part of the limit; and the bounds of that. More would
# overshoot, because outcomes come late; less would take long.
GAIN, LOWEST, HIGHEST = 4.0, 0.25, 1.5
# Seconds that a run may be behind: while it only looks at files it is, and may not make up for it.
CREDIT = 0.25


class Throttle:
    """What the coordinator knows of the limit."""

    def __init__(self, limit: float, jobs: int) -> None:
        self.limit = limit
        self.jobs = max(1, min(jobs, int(limit // LEAST)))
        self.began: float | None = None
        self.paid = 0

    def rate(self, slices: int) -> float:
        """Bytes a second for the next slice, one of so many that will run at a time."""
        now = time.monotonic()
        if self.began is None:
            self.began = now
        behind = now - self.began - self.paid / self.limit
        if behind > CREDIT:
            self.began += behind - CREDIT
            behind = CREDIT
        factor = min(HIGHEST, max(LOWEST, 1 + GAIN * behind))
        return self.limit * factor / max(1, min(slices, self.jobs))


class Pace:
    """Keeps one slice to its rate."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.began = time.monotonic()
        self.paid = 0
        self.piece = max(SMALLEST_PIECE, int(rate * PIECE))

    def pay(self, size: int) -> None:
        """Note that bytes were copied, and sleep until they are due."""
        self.paid += size
        self.settle(SHORTEST)

    def settle(self, shortest: float = 0.0) -> None:
        early = self.began + self.paid / self.rate - time.monotonic()
        if early > shortest:
            time.sleep(early)
