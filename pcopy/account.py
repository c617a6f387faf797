"""What a slice tells: what became of the entries, and what went wrong. A failure is a value; nothing here stops a run."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterable, Sequence

from pcopy import changes, failures, runs
from pcopy import filesystem as fs
from pcopy.directory import Directories
from pcopy.entry import Copier
from pcopy.extra import Extra
from pcopy.handles import Handles, Pair
from pcopy.outcome import Event, Failure, Outcome
from pcopy.pace import Pace
from pcopy.stop import of_this_process
from pcopy.verdict import Fate
from pcopy.work import (
    Begun,
    Check,
    Clear,
    Count,
    Entries,
    Finish,
    Group,
    Job,
    Link,
    Remove,
    Scan,
    Seal,
    Span,
    Sums,
    Unit,
    Verify,
    changed_group,
    directory_group,
    join,
    large_group,
)

# Told only to those who want to hear of all: what does not change.
QUIET = frozenset({"unchanged", "directory", "hidden"})
Listed = Begun | Finish | Span | Verify | Seal
Retried = Begun | Finish | Span | Verify | Sums | Check | Remove | Clear | Count
SOON = 2.0  # seconds
DOUBTFUL = (
    "{path}{more}: the source lacks it, and it may be a part of a file that a killed worker was copying: "
    "look at it, and remove it if so"
)
UNMOUNTED = "is not on the file system any more that it was listed on: was it unmounted?"


class Account:
    """The outcome of a slice, as it grows."""

    def __init__(self, job: Job, handles: Handles, deadline: float = 0.0, pace: Pace | None = None) -> None:
        self.job, self.handles, self.deadline, self.pace = job, handles, deadline, pace
        self.copier = Copier(job)
        self.extra = Extra(job, handles)
        self.directories = Directories(job, handles, self.copier.metadata, self.extra)
        self.outcome = Outcome()
        self.stack: list[Unit] = []
        self.waiting: list[Unit] = []  # for something that only the coordinator knows, or for better times
        self.open: set[Group] = set()  # groups that are held by something outside of this slice
        self.counts = job.options.limits_deletion  # what is deleted, against a limit
        self.deletes = 0  # entries that may be deleted before the coordinator counts them
        self.verbose, self.tells = job.options.verbose, job.options.tells
        self.summing = job.options.sums is not None and not job.options.dry_run
        self.doubtful: list[str] = []  # paths of files that may be halves of what the source lacks by now
        self.to_sum: list[Sums] = []  # files that are in the copy, by what the unit at hand did

    @property
    def is_done_again(self) -> bool:
        """Whether this is a worker: if it ends by force, its units are done again, or what is begun is taken back."""
        return self.job.stop is of_this_process()

    def closes(self, mode: int) -> bool:
        """Whether nobody could pass through a directory with this mode any more, not even this run."""
        return self.copier.metadata.unprivileged and not mode & stat.S_IXUSR

    def give_up(self, unit: Unit, reason: str) -> Outcome:
        failure = Failure(self.source_path(unit), "copy", None, reason)
        if isinstance(unit, Seal) and not unit.discard:  # it has to be taken away, and is counted there
            self.outcome.failures.append(failure)
            self.outcome.leftover.append(unit._replace(discard=True))
            return self.outcome
        self.fail_unit(unit._replace(again=True) if isinstance(unit, Begun) else unit, failure)
        return self.outcome

    def take_back(self, units: Iterable[Begun]) -> None:
        """Take away what workers that were killed had begun of these units and did not finish.

        How far they had come nobody knows: what is not found soon, the next run clears.
        """
        end, stack = time.monotonic() + SOON, list(units)
        while stack and time.monotonic() < end:
            unit = stack.pop()
            self.handles.begin()
            with contextlib.suppress(OSError):
                if isinstance(unit, Scan):
                    stack += self.take_back_directory(unit)
                else:
                    targets = {unit.rename or name: name for name in unit.names}
                    self.copier.halves.clear(self.pair_to_clear(unit), targets, unit.fresh)
        if self.doubtful:
            first, more = self.doubtful[0], len(self.doubtful) - 1
            self.outcome.warnings.append(DOUBTFUL.format(path=first, more=f" (and {more:,} more)" if more else ""))
            self.doubtful = []

    def take_back_directory(self, unit: Scan) -> list[Scan]:
        """Of one directory. Returns those in it.

        Others may have put something into it since it was made: only what the source has and is to be copied is touched.
        """
        pair = self.pair_to_clear(unit)
        directory = fs.open_directory(".", pair.destination)
        try:
            there = fs.list_directory(directory)
        finally:
            fs.close_read(directory)
        runs.clear_own(there, pair.destination, self.copier.token)
        listing = self.directories.list_source(pair, unit) if unit.fresh else None
        if not listing:
            return [unit._replace(path=join(unit.path, name)) for name, is_directory in there.items() if is_directory]
        wanted = {*listing.regular, *listing.other, *(name for name, _ in listing.directories)}
        hidden = {*listing.hidden}
        for name in [name for name, is_directory in there.items() if not is_directory and name not in hidden]:
            with contextlib.suppress(OSError):
                if name in wanted and not (self.job.options.limited and self.extra.is_left_out(name, pair.source)):
                    self.copier.halves.clear_half(pair, name, name)
                elif self.copier.halves.may_be_half(name, pair.destination) and not self.is_spared(unit, name):
                    self.doubtful.append(self.copy_path(unit.tree, unit.path, name))
        below = [name for name, is_directory in there.items() if is_directory and name not in hidden]
        return [unit._replace(path=join(unit.path, name), only=listing.only(name)) for name in below]

    def is_spared(self, unit: Scan, name: str) -> bool:
        """Whether it is a file of the run itself in its copy."""
        return (unit.tree, join(unit.path, name)) in self.job.spared

    def pair_to_clear(self, unit: Begun) -> Pair:
        """The handles of a directory, whose source may be gone by now."""
        try:
            return self.handles.pair(unit.tree, unit.path)
        except OSError:
            return self.handles.pair(~unit.tree, unit.path)

    def hand_back(self, unit: Scan | Entries) -> None:
        """Leave a unit to the coordinator, which is to know of it before it is begun."""
        self.waiting.append(unit)
        self.open.update(unit.holds)

    def entry_failed(self, unit: Entries | Link, pair: Pair, name: str, error: OSError) -> None:
        """Gone from the source since the scan is no failure; everything else is, unless it goes better later."""
        one = unit.one(name)
        if self.try_again(one, error.errno):
            return
        self.spoil(one)
        self.drop_partial(unit, pair)
        if error.errno == errno.ENOENT and self.vanished(pair, name):
            if os.fstat(pair.source).st_dev == self.device_of(unit):
                self.vanish(unit, name)
                return
            error = OSError(errno.ESTALE, UNMOUNTED)
        self.keep_all(unit)
        self.fail(self.failure_of(unit, self.full(unit.tree, unit.path, name), error))

    def drop_partial(self, unit: Entries | Link, pair: Pair) -> None:
        """Nobody goes on with what a run that was cut left of an entry."""
        if isinstance(unit, Entries) and unit.partial:
            with contextlib.suppress(OSError):  # then the next run will
                changes.remove_if_there(unit.partial, pair.destination)

    def try_again(self, unit: Retried, number: int | None) -> bool:
        """Leave a unit over if the error may pass. What comes after it waits, as for any unit that somebody else has."""
        again = number in fs.PASSING and unit.failed < self.job.options.retries
        if again:
            self.waiting.append(unit._replace(failed=unit.failed + 1))
            self.open.update(unit.holds)
        return again

    def failure_of(self, unit: Unit, path: str, error: OSError) -> Failure:
        """What failed, and whether that is because the destination is gone."""
        return self.destination_gone(unit.tree, error.errno) or failures.of(path, error)

    def destination_gone(self, number: int, reason: int | None) -> Failure | None:
        """What to say if the destination is gone, or its file system dead: then nothing else can be written either."""
        tree = self.job.trees[number]
        if reason not in fs.PERHAPS_GONE or not tree.destination_inode:
            return None
        if reason in fs.DEAD and not self.job.options.dry_run and changes.is_dead(tree.destination):
            why = "its file system fails as a whole (dmesg may say why): bring it back, run the line again"
        elif fs.is_gone(tree.destination, tree.destination_inode):
            why = "is not the directory any more that it was when the run began: bring it back, run the line again"
        else:
            return None
        return Failure(tree.destination, "open", reason, why, fatal=True)

    def vanish(self, unit: Unit, name: str) -> None:
        """Note that an entry is gone from the source: no failure, unless it was given by its name."""
        if self.job.trees[unit.tree].whole:
            self.outcome.tally.vanished += 1
            self.event("vanished", unit, name)
        else:
            error = OSError(errno.ENOENT, "is not there any more")
            self.fail(failures.of(self.full(unit.tree, unit.path, name), error)._replace(operation="open to read"))

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
        if gone and isinstance(unit, Listed) and self.is_unmounted(unit):
            gone, failure = False, failure._replace(errno=errno.ESTALE, reason=UNMOUNTED)
        self.spoil(unit)
        if not gone:
            self.keep_all(unit)
        if isinstance(unit, Begun):
            # A directory that was there is not searched for what was begun in it for each error: it can be large.
            if unit.again and (unit.fresh or not isinstance(unit, Scan) or failure.errno in (None, errno.ENOENT, errno.ESTALE)):
                self.take_back([unit])
            outcome.share += unit.share
            names = ("",) if isinstance(unit, Scan) else unit.names
            for name in names:
                if gone:
                    self.vanish(unit, name)
                else:
                    whole = failure.fatal or not name  # the failure has its path
                    self.fail(failure if whole else failure._replace(path=self.full(unit.tree, unit.path, name)))
            if isinstance(unit, Scan) and unit.fresh and failure.errno:
                self.take_away(unit)
        elif isinstance(unit, (Span, Verify)) and gone:
            outcome.ruined.add(changed_group(unit.large))
            outcome.large_done += unit.stop - unit.start if isinstance(unit, Span) else 0
        elif isinstance(unit, (Span, Verify)):
            outcome.ruined.add(large_group(unit.large))
            outcome.broken.setdefault(large_group(unit.large), failure)
        elif isinstance(unit, Seal) and gone:
            self.vanish(unit, unit.large.name)
        elif isinstance(unit, Seal):
            self.fail(failure)
        elif isinstance(unit, (Remove, Clear)):
            self.outcome.tally.found += 1
            self.fail(failure)
        elif isinstance(unit, Check):
            outcome.tally.failed += unit.length
            outcome.failures.append(failure)
        elif isinstance(unit, Sums) or not gone:
            outcome.failures.append(failure)  # a directory's attributes; the directory was counted already

    def is_gone(self, unit: Unit) -> bool:
        """Whether the directory of a unit is in the source no more, though the source is still there."""
        try:
            fs.look_deep(self.full(unit.tree, unit.path))
        except (FileNotFoundError, NotADirectoryError):
            return os.path.isdir(self.job.trees[unit.tree].source)
        except OSError:
            pass
        return False

    def is_unmounted(self, unit: Listed) -> bool:
        """Whether what is left of the way to a directory that is gone lies on another file system than it did."""
        path = unit.path
        while path:
            path = path.rpartition("/")[0]
            try:
                return fs.look_deep(self.full(unit.tree, path), follow=True).st_dev != self.device_of(unit)
            except (FileNotFoundError, NotADirectoryError):
                pass  # gone too
            except OSError:
                break
        return True

    def device_of(self, unit: Listed) -> int:
        """That of the directory in which the entries of a unit were listed."""
        device = unit.large.device if isinstance(unit, (Span, Verify, Seal)) else unit.device
        return device or self.job.trees[unit.tree].source_inode[0]

    def is_elsewhere(self, unit: Entries | Span) -> bool:
        """Whether another machine or process keeps the source of a unit. Of what is mounted below the top nobody knows."""
        tree = self.job.trees[unit.tree]
        return tree.elsewhere and self.device_of(unit) == tree.source_inode[0]

    def take_away(self, unit: Scan) -> None:
        """An empty directory must not stand for one that could not be read."""
        try:
            finish = self.directories.take_away(unit)
        except OSError:
            return  # it is not empty: a killed worker had come further
        if finish and not self.closes(finish.attributes.mode):  # else it is finished after all others
            self.stack.append(finish)

    # ---- notes ----

    def note_files(self, unit: Entries, names: Sequence[str], sizes: Sequence[int], why: str = "new") -> None:
        self.outcome.tally.files += len(names)
        self.outcome.tally.bytes += sum(sizes)
        self.note_there(unit, names, unit.rename, copied=True)
        self.tell_files(unit, names, sizes, why)

    def tell_files(self, unit: Scan | Entries, names: Sequence[str], sizes: Sequence[int], why: str) -> None:
        if self.tells:
            above = self.full(unit.tree, unit.path).rstrip("/")
            self.outcome.events += [
                Event("copied", f"{above}/{name}", why, size) for name, size in zip(names, sizes, strict=True)
            ]

    def note_linked(self, unit: Entries | Link, names: Sequence[str], why: str) -> None:
        """Names that became links."""
        self.outcome.tally.hardlinks += len(names)
        self.note_there(unit, names, unit.rename)
        if self.tells:
            for name in names:
                self.event("linked", unit, name, why)

    def note_unchanged(self, unit: Entries | Link, names: Sequence[str]) -> None:
        self.outcome.tally.unchanged += len(names)
        self.note_there(unit, names, unit.rename)
        if self.verbose:
            for name in names:
                self.event("unchanged", unit, name)

    def note_there(self, unit: Entries | Link | Seal, names: Sequence[str], rename: str | None, copied: bool = False) -> None:
        """Entries are in the copy, maybe files."""
        if self.summing and names:
            self.to_sum.append(Sums(unit.tree, unit.path, tuple(names), rename, copied))

    def sum_failed(self, unit: Sums, name: str, error: OSError) -> None:
        """The copy could not be read; it was counted already."""
        if not self.try_again(unit._replace(names=(name,)), error.errno):
            path = self.copy_path(unit.tree, unit.path, unit.rename or name)
            self.outcome.failures.append(self.failure_of(unit, path, error))

    def check_failed(self, unit: Check, path: str, error: OSError) -> None:
        """A file differs from the manifest, or is missing, or cannot be read. ``unit``: its line."""
        if self.try_again(unit, error.errno):
            return
        failure = failures.of(os.path.join(self.job.trees[unit.tree].source, path), error)
        if error.errno == errno.ENOENT:
            failure = failure._replace(reason="is missing")
        self.fail(failure._replace(operation="check"))

    def spoil(self, unit: Unit) -> None:
        """The first name of an inode was not copied: no other may become a link to what is there under it."""
        if isinstance(unit, Entries):
            self.outcome.ruined.update(unit.first_of)
        elif isinstance(unit, Seal):
            self.outcome.ruined.update(unit.large.first_of)

    def keep_all(self, unit: Unit) -> None:
        """An entry of a directory was not copied: nothing is to be deleted there."""
        if self.job.options.delete:
            self.outcome.ruined.add(directory_group(unit.tree, unit.path))

    def fail(self, failure: Failure) -> None:
        self.outcome.tally.failed += 1
        self.outcome.failures.append(failure)

    def count(self, fate: Fate) -> None:
        setattr(self.outcome.tally, fate.value, getattr(self.outcome.tally, fate.value) + 1)

    def event(self, what: str, unit: Unit, name: str = "", why: str = "", size: int | None = None) -> None:
        if self.verbose or (self.tells and what not in QUIET):
            self.outcome.events.append(Event(what, self.full(unit.tree, unit.path, name), why, size))

    def source_path(self, unit: Unit) -> str:
        if isinstance(unit, (Remove, Clear)):
            return self.copy_path(unit.tree, unit.path)
        name = unit.large.name if isinstance(unit, (Span, Verify, Seal)) else ""
        return self.full(unit.tree, unit.path, name)

    def full(self, tree: int, path: str, name: str = "") -> str:
        return below(self.job.trees[tree].source, path, name)

    def copy_path(self, tree: int, path: str, name: str = "") -> str:
        return below(self.job.trees[tree].destination, path, name)


def below(top: str, path: str, name: str) -> str:
    """The path of a name in a directory of a tree, or of that, or of the tree itself, whose top may be the root."""
    inside = join(path, name) if name else path
    return os.path.join(top, inside) if inside else top.rstrip("/") or "/"


def given_up(job: Job, unit: Unit, reason: str) -> Outcome:
    """The outcome of a unit that could not be run at all."""
    with Handles(job) as handles:
        return Account(job, handles).give_up(unit, reason)


def take_back(job: Job, units: Iterable[Begun]) -> Outcome:
    """The run stops: see :meth:`Account.take_back`."""
    with Handles(job) as handles:
        account = Account(job, handles)
        account.take_back(units)
        return account.outcome


def unforeseen(path: str, error: Exception) -> Failure:
    return Failure(path, "copy", None, f"unforeseen {type(error).__name__}: {error}")
