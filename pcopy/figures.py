"""What a comparison found, and what can be told from it. Pure: wall times in, ratios and advice out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from pcopy.errors import ExitStatus

# Ratios nearer to 1 are taken for noise, as are those of which not all rounds agree on the side.
NOISE = 0.05
ROUNDS = 5
ENOUGH = 4  # rounds: with three, noise alone falls on one side in one of four comparisons


@dataclass
class Contender:
    """Something that copies a tree, and the wall times in seconds of its counted rounds."""

    name: str
    command: tuple[str, ...]
    jobs: int | None = None  # None: not pcopy
    seconds: list[float] = field(default_factory=list)
    trouble: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class Comparison:
    """What a comparison found. The first contender is the single process."""

    files: int
    bytes: int
    rounds: int
    contenders: list[Contender]
    place: str = ""  # the directory in which the copies were made

    @property
    def base(self) -> Contender:
        return self.contenders[0]

    def speed_up(self, one: Contender) -> float:
        """How many times as fast as the single process, as the median over the rounds."""
        return statistics.median(ratios(self.base.seconds, one.seconds))

    @property
    def best_jobs(self) -> int | None:
        """The fewest processes that are as fast as any, within the noise; None if that cannot be told."""
        if self.untold:
            return None
        return best_jobs({one.jobs: one.seconds for one in self.contenders if one.jobs and one.seconds})

    @property
    def pools(self) -> list[Contender]:
        """Of more than one process; those that could be measured."""
        return [one for one in self.contenders if one.jobs and one.jobs > 1 and one.seconds]

    @property
    def untold(self) -> str:
        """Why nothing can be told from this, if that is so."""
        if not self.base.seconds:
            return "the single process failed: nothing to compare with"
        if any(one.jobs and one.jobs > 1 for one in self.contenders) and not self.pools:
            return "only one process was measured, because no pool came to its end: nothing to compare with"
        if not self.pools:
            return "only one process was measured: nothing to compare with; list more, such as -j 2,4"
        if self.rounds < ENOUGH:
            return f"too few rounds to tell a difference from noise: give --rounds {ROUNDS}"
        return ""

    @property
    def advice(self) -> str:
        if self.untold:
            return self.untold
        best, pools = self.best_jobs, self.pools
        if best == 1 and not any(differ(self.base.seconds, one.seconds) for one in pools):
            return "no difference beyond the noise: -j 1 does as well here"
        if best == 1:
            return "choose -j 1: more processes are slower here"
        chosen = next(one for one in pools if one.jobs == best)
        return f"choose -j {best}: {self.speed_up(chosen):.2f} times as fast as one process here"

    @property
    def exit_status(self) -> int:
        return ExitStatus.FAILED if any(one.trouble for one in self.contenders) else ExitStatus.OK


def ratios(base: Sequence[float], other: Sequence[float]) -> list[float]:
    """How many times as fast the other was, round by round."""
    return [one / two for one, two in zip(base, other, strict=True)]


def differ(base: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two differ beyond the noise: by more than 5 % in the median, and every round on the same side.

    With five rounds and no difference, all fall on one side by chance in one of 16 comparisons (sign test). With fewer
    than four rounds nobody can tell, and nothing is called a difference.
    """
    both = ratios(base, other)
    return len(both) >= ENOUGH and abs(statistics.median(both) - 1) > NOISE and (min(both) > 1 or max(both) < 1)


def best_jobs(seconds: dict[int | None, list[float]]) -> int:
    """The fewest jobs that no others beat beyond the noise."""
    by_jobs = sorted((jobs, walls) for jobs, walls in seconds.items() if jobs)
    return next((jobs for jobs, walls in by_jobs if not any(beats(other, walls) for _, other in by_jobs)), 1)


def beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is faster than the other beyond the noise. Never goes in a circle: it is faster in every round."""
    return differ(other, one) and min(ratios(other, one)) > 1


def order_of_round(count: int, number: int) -> list[int]:
    """Each contender runs first in its turn, and forwards and backwards alternate, so no neighbour is always the same."""
    step = 1 if number % 2 else -1
    return [(number + step * at) % count for at in range(count)]
