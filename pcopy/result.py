"""What a run tells: its progress while it lasts, its report at the end, and who wants to hear."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pcopy.errors import ExitStatus
from pcopy.options import Options
from pcopy.outcome import Event, Failure, Outcome, Tally
from pcopy.stop import Stop

# What one more file costs, in bytes that could be copied instead: 30 microseconds at 2 GB/s. For the bar only.
FILE_COST = 64 << 10


@dataclass(eq=False, repr=False)
class Progress:
    """How far a run is. Sizes in bytes."""

    done: int = 0  # entries that are no directories
    found: int = 0  # likewise
    bytes: int = 0
    growing: bool = True  # directories are left to be read, so more will be found
    current: str = ""
    share: float = 0.0  # of the tree that is copied, or open if it is large: guessed from the shape of the tree
    small_bytes: int = 0
    large_found: int = 0
    large_done: int = 0
    large_open: int = 0  # files
    expected: tuple[int, int] | None = None  # (entries that are no directories, bytes), if known beforehand

    def fraction(self) -> float:
        """The part of the work that is done, from 0 to 1.

        Nothing is read for it that the copy does not read anyway. While directories are left to be read, each shares
        out its part of the whole evenly among its entries, so the part done is guessed although the total is not known
        (Knuth, "Estimating the efficiency of backtrack programs", 1975). Large files are weighed by their bytes; a few
        tell little of what is not found yet, which is taken to be at most as much again.
        """
        small = self.small_bytes + FILE_COST * self.done
        if self.expected:
            entries, size = self.expected
            return min(1.0, (small + self.large_done) / max(1, size + FILE_COST * entries))
        seen = (self.done + self.large_open) / self.found if self.found else 1.0  # the others are taken to be like these
        if self.growing:
            share = min(1.0, max(self.share, 1e-9))
            total = self.large_found + max(small / share, self.large_found * min(1.0, 1.0 / share - 1.0))
        else:
            total = (small + self.large_found) / max(min(seen, 1.0), 1e-9)
        return min(1.0, (small + self.large_done) / total) if total else 0.0


class Observer:
    """Is told how a run goes. This one does nothing; override what you want to hear.

    It is called in the process and thread that called :func:`pcopy.copy`, after each slice. With ``wants_total``, directories
    are read ahead of the copying where the storage is slow, which tells the total early. With ``wants_events`` it is told of
    every entry that changes even without ``verbose=True``. What it writes are ``files``, which are not removed if they lie in
    the copy. Of several, one that ``starts_last`` is started after the others, which may still refuse the run.
    """

    wants_total = False
    wants_events = False
    starts_last = False
    files: Sequence[str] = ()

    def started(self, sources: Sequence[str], destination: str, options: Options) -> None:
        """The request makes sense, and nothing was touched. The paths are absolute. May raise UsageError to refuse."""

    def progress(self, progress: Progress) -> None:
        """After each slice. The object is the same each time, and changes."""

    def event(self, event: Event) -> None:
        """What became of one entry, or would become of it in a dry run; only if it was asked for."""

    def failure(self, failure: Failure) -> None:
        """An entry that could not be copied."""

    def finished(self, report: Report) -> None:
        """At the end, however it came. What is added to ``report.errors`` is an error of the run."""


class Several(Observer):
    """Passes on what it is told. Who was named last is the first to hear of the end."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.observers = list(observers)
        self.wants_total = any(one.wants_total for one in self.observers)
        self.wants_events = any(one.wants_events for one in self.observers)
        self.files = [path for one in self.observers for path in one.files]

    def started(self, sources: Sequence[str], destination: str, options: Options) -> None:
        for one in sorted(self.observers, key=lambda one: one.starts_last):
            one.started(sources, destination, options)

    def progress(self, progress: Progress) -> None:
        for one in self.observers:
            one.progress(progress)

    def event(self, event: Event) -> None:
        for one in self.observers:
            one.event(event)

    def failure(self, failure: Failure) -> None:
        for one in self.observers:
            one.failure(failure)

    def finished(self, report: Report) -> None:
        with contextlib.ExitStack() as stack:  # the last first; all of them, whatever one raises
            for one in self.observers:
                stack.callback(one.finished, report)


@dataclass(eq=False)
class Report(Tally):
    """What a run did. Counts are of entries, ``bytes`` of copied files, ``seconds`` of wall time."""

    seconds: float = 0.0
    jobs: int = 1
    errors: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)  # what could not be preserved: on how many entries
    stopped: bool = False  # no space, destination unusable, another run holds it
    signal: int = 0  # that interrupted the run
    dry_run: bool = False
    checked: bool = False  # against a manifest, not copied

    @property
    def engine(self) -> str:
        """Who does the work: ``serial``, this process alone, or a ``pool`` of others, unless it is done before they are."""
        return "serial" if self.jobs == 1 else "pool"

    @property
    def ok(self) -> bool:
        """Whether the destination is what was asked for."""
        return self.exit_status == ExitStatus.OK

    @property
    def exit_status(self) -> int:
        if self.signal:
            return ExitStatus.SIGNAL + self.signal
        if self.stopped:
            return ExitStatus.STOPPED
        return ExitStatus.FAILED if self.errors or self.failed else ExitStatus.OK

    @property
    def entries(self) -> int:
        """Those accounted for that are no directories."""
        return self.accounted - self.directories

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds if self.seconds else 0.0

    @property
    def files_per_second(self) -> float:
        return self.files / self.seconds if self.seconds else 0.0

    def absorb(self, outcome: Outcome) -> None:
        self.add(outcome.tally)
        self.errors += outcome.failures
        self.warnings += [warning for warning in outcome.warnings if warning not in self.warnings]
        self.stopped |= outcome.fatal
        for kind, count in outcome.lost.items():
            self.lost[kind] = self.lost.get(kind, 0) + count

    def reconcile(self, path: str) -> Failure | None:
        """A run that came to its end has to account for every entry that it found. What is noted if it cannot."""
        if self.found == self.accounted or self.stopped or self.signal:
            return None
        reason = f"found {self.found:,} entries, but can account for {self.accounted:,}: run the same line again"
        self.errors.append(Failure(path, "reconcile", None, reason))
        return self.errors[-1]


__all__ = ["Observer", "Progress", "Report", "Stop"]
