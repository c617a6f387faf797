"""A limit on deletions, over all workers together.

    Quota (coordinator) ── entries that it may delete before they are counted ──▶ slice
       ▲                                                                           │
       └──── Outcome: deleted, undeleted (of those), uncounted (found besides) ────┘

A count before the run expects so many entries to be deleted at most. But the source may lose more of them since, so each is
counted once more as it is found.
"""

from __future__ import annotations

from pcopy.outcome import Failure, Outcome
from pcopy.work import Clear, Remove

# Entries that a slice may delete before they are counted: about as many as it can in its time.
GRANT = 10_000


class Quota:
    """What the coordinator knows of the limit. With 0, be it no limit or a limit of none, nothing is granted."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0  # entries counted against it, deleted or to be
        self.expected = 0  # entries that the count before the run expects to be deleted, less those that are
        self.uncounted: list[Remove | Clear] = []  # too many, if slices under way delete all that they may

    def grant(self, jobs: int) -> int:
        """Entries that one of so many slices may delete before they are counted, of those that are beyond what is expected.

        So what is expected is never too much because somebody else has not used theirs. Who dies has spent all of them, for all
        that is known.
        """
        grant = max(0, min(GRANT, (self.most - self.taken - self.expected) // (2 * jobs)))
        self.taken += grant
        return grant

    def counted(self, outcome: Outcome) -> list[Remove | Clear]:
        """Take in what a slice did. Returns the units that may go on, counted by now."""
        self.taken -= outcome.undeleted
        self.expected = max(0, self.expected - outcome.tally.deleted)
        self.uncounted += outcome.uncounted
        counted: list[Remove | Clear] = []
        while self.uncounted and self.taken + self.uncounted[-1].entries <= self.most:
            unit = self.uncounted.pop()
            self.taken += unit.entries
            counted.append(unit._replace(counted=True))
        return counted[::-1]

    def refusal(self, path: str) -> Failure | None:
        """Why nothing more is deleted, once no slice is under way that may still give back some of what it may delete."""
        if not self.uncounted:
            return None
        reason = f"by now more is to be deleted than max-delete allows ({self.most:,}): is the source still all there?"
        return Failure(path, "delete", None, reason, fatal=True)
