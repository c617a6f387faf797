"""What a slice tells: what became of the entries, and what went wrong. A failure is a value; nothing here stops a run."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence

from pcopy import filesystem as fs
from pcopy.directory import Directories
from pcopy.entry import Copier, Fate
from pcopy.handles import Handles, Pair
from pcopy.work import (
    Check,
    Entries,
    Failure,
    Finish,
    Group,
    Job,
    Link,
    Outcome,
    Scan,
    Seal,
    Span,
    Sums,
    Unit,
    Verify,
    large_group,
)

Retried = Scan | Entries | Span | Verify | Link | Sums | Check | Finish


class Account:
    """The outcome of a slice, as it grows."""

    def __init__(self, job: Job, handles: Handles) -> None:
        self.job, self.handles = job, handles
        self.copier = Copier(job)
        self.directories = Directories(job, handles, self.copier.metadata)
        self.outcome = Outcome()
        self.stack: list[Unit] = []
        self.waiting: list[Unit] = []  # for something that only the coordinator knows, or for better times
        self.open: set[Group] = set()  # groups that are held by something outside of this slice
        self.verbose = job.options.verbose
        self.summing = job.options.sums is not None and not job.options.dry_run
        self.to_sum: list[Sums] = []  # files that are in the copy, by what the unit at hand did

    def give_up(self, unit: Unit, reason: str) -> Outcome:
        failure = Failure(self.source_path(unit), "copy", None, reason)
        if isinstance(unit, Seal) and not unit.discard:  # it has to be taken away, and is counted there
            self.outcome.failures.append(failure)
            self.outcome.leftover.append(unit._replace(discard=True))
            return self.outcome
        if isinstance(unit, Entries):
            with contextlib.suppress(OSError):
                pair = self.handles.pair(unit.tree, unit.path)
                for name in unit.names:
                    self.copier.clear(pair, name, unit.rename or name, unit.fresh)
        self.fail_unit(unit, failure)
        return self.outcome

    def entry_failed(self, unit: Entries | Link, pair: Pair, name: str, error: OSError) -> None:
        """Gone from the source since the scan is no failure; everything else is, unless it goes better later."""
        one = unit._replace(names=(name,), fresh=False, share=0.0) if isinstance(unit, Entries) else unit._replace(share=0.0)
        if self.try_again(one, error.errno):
            return
        self.spoil(unit)
        if error.errno == errno.ENOENT and self.vanished(pair, name):
            self.outcome.tally.vanished += 1
            self.event("vanished", unit, name)
        else:
            self.fail(self.failure_of(self.full(unit.tree, unit.path, name), error))

    def try_again(self, unit: Retried, number: int | None) -> bool:
        """Leave a unit over if the error may pass. What comes after it waits, as for any unit that somebody else has."""
        again = number in fs.PASSING and unit.failed < self.job.options.retries
        if again:
            self.waiting.append(unit._replace(failed=unit.failed + 1))
            self.open.update(unit.holds)
        return again

    def failure_of(self, path: str, error: OSError) -> Failure:
        """What failed, and whether that is because the destination is gone: then nothing else can be written either."""
        if error.errno in fs.PERHAPS_GONE:
            for tree in self.job.trees:
                if tree.destination_inode and fs.is_gone(tree.destination, tree.destination_inode):
                    reason = "is not the directory any more that it was when the run began: bring it back, run the line again"
                    return Failure(tree.destination, "open", error.errno, reason, fatal=True)
        return fs.failure(path, error)

    def vanished(self, pair: Pair, name: str) -> bool:
        try:
            return fs.look_if_there(name, pair.source) is None
        except OSError:
            return False

    def fail_unit(self, unit: Unit, failure: Failure) -> None:
        """A unit failed as a whole: every entry in it has failed, or has vanished with its directory."""
        if not isinstance(unit, Seal) and self.try_again(unit, failure.errno):
            return
        outcome = self.outcome
        gone = failure.errno == errno.ENOENT and self.is_gone(unit)
        self.spoil(unit)
        if isinstance(unit, (Scan, Entries, Link)):
            outcome.share += unit.share
            names = unit.names if isinstance(unit, Entries) else (unit.name,) if isinstance(unit, Link) else ("",)
            for name in names:
                if gone:
                    outcome.tally.vanished += 1
                    self.event("vanished", unit, name)
                else:
                    self.fail(failure if failure.fatal else failure._replace(path=self.full(unit.tree, unit.path, name)))
            if isinstance(unit, Scan) and unit.fresh and failure.errno:
                self.take_away(unit)
        elif isinstance(unit, (Span, Verify)):
            outcome.ruined.add(large_group(unit.large))
            outcome.failures.append(failure)
        elif isinstance(unit, Seal):
            self.fail(failure)
        elif isinstance(unit, Check):
            outcome.tally.failed += unit.length
            outcome.failures.append(failure)
        elif isinstance(unit, Sums) or not gone:
            outcome.failures.append(failure)  # a directory's attributes; the directory was counted already

    def is_gone(self, unit: Unit) -> bool:
        """Whether the directory of a unit is in the source no more, though the source is still there."""
        try:
            os.lstat(self.full(unit.tree, unit.path))
        except (FileNotFoundError, NotADirectoryError):
            return os.path.isdir(self.job.trees[unit.tree].source)
        except OSError:
            pass
        return False

    def take_away(self, unit: Scan) -> None:
        """An empty directory must not stand for one that could not be read."""
        try:
            finish = self.directories.take_away(unit)
        except OSError:
            return  # it is not empty: a killed worker had come further
        if finish:
            self.stack.append(finish)

    # ---- notes ----

    def note_files(self, unit: Entries, names: Sequence[str], size: int) -> None:
        self.outcome.tally.files += len(names)
        self.outcome.tally.bytes += size
        if self.summing and names:
            self.to_sum.append(Sums(unit.tree, unit.path, tuple(names), unit.rename, copied=True))
        if self.verbose:
            for name in names:
                self.event("copied", unit, name)

    def note_unchanged(self, unit: Entries, names: Sequence[str]) -> None:
        self.outcome.tally.unchanged += len(names)
        if self.summing and names:
            self.to_sum.append(Sums(unit.tree, unit.path, tuple(names), unit.rename, copied=False))
        if self.verbose:
            for name in names:
                self.event("unchanged", unit, name)

    def note_there(self, unit: Entries | Link | Seal, name: str, rename: str | None, copied: bool = False) -> None:
        """An entry is in the copy, maybe a file."""
        if self.summing:
            self.to_sum.append(Sums(unit.tree, unit.path, (name,), rename, copied))

    def sum_failed(self, unit: Sums, name: str, error: OSError) -> None:
        """The copy could not be read; it was counted already."""
        if not self.try_again(unit._replace(names=(name,)), error.errno):
            top = self.job.trees[unit.tree].destination
            path = "/".join(part for part in (top, unit.path, unit.rename or name) if part)
            self.outcome.failures.append(self.failure_of(path, error))

    def check_failed(self, unit: Check, path: str, error: OSError) -> None:
        """A file differs from the manifest, or is missing, or cannot be read. ``unit``: its line."""
        if self.try_again(unit, error.errno):
            return
        failure = fs.failure(os.path.join(self.job.trees[unit.tree].source, path), error)
        if error.errno == errno.ENOENT:
            failure = failure._replace(reason="is missing")
        self.fail(failure._replace(operation="check"))

    def spoil(self, unit: Unit) -> None:
        """The first name of an inode was not copied: no other may become a link to what is there under it."""
        first_of = unit.first_of if isinstance(unit, Entries) else unit.large.first_of if isinstance(unit, Seal) else None
        if first_of:
            self.outcome.ruined.add(first_of)

    def fail(self, failure: Failure) -> None:
        self.outcome.tally.failed += 1
        self.outcome.failures.append(failure)

    def count(self, fate: Fate) -> None:
        setattr(self.outcome.tally, fate.value, getattr(self.outcome.tally, fate.value) + 1)

    def event(self, what: str, unit: Unit, name: str = "") -> None:
        if self.verbose:
            self.outcome.events.append((what, self.full(unit.tree, unit.path, name)))

    def source_path(self, unit: Unit) -> str:
        name = unit.large.name if isinstance(unit, (Span, Verify, Seal)) else unit.name if isinstance(unit, Link) else ""
        return self.full(unit.tree, unit.path, name)

    def full(self, tree: int, path: str, name: str = "") -> str:
        return "/".join(part for part in (self.job.trees[tree].source.rstrip("/"), path, name) if part)


def given_up(job: Job, unit: Unit, reason: str) -> Outcome:
    """The outcome of a unit that could not be run at all."""
    with Handles(job) as handles:
        return Account(job, handles).give_up(unit, reason)


def unforeseen(path: str, error: Exception) -> Failure:
    return Failure(path, "copy", None, f"unforeseen {type(error).__name__}: {error}")
