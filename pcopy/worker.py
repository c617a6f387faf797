"""The one function that workers run.

    run(job, units, seconds):
        stack ◀── units
        until the stack is empty or the time is up:
            unit ◀── top of the stack
            do it; what it finds goes on the stack
        Outcome ◀── what was done, what failed, what is left on the stack

Depth first: the stack stays small, and the handles of a directory are open while its files are copied. Below the files of
a directory lies the unit that finishes it, so a directory that one worker copies is finished by the same worker.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pcopy import at_once, removal, sums
from pcopy import large as largefile
from pcopy.account import Account, unforeseen
from pcopy.audit import Unfinished
from pcopy.crew import Effort
from pcopy.entry import EARLIER
from pcopy.handles import ABSENT, Handles, Pair
from pcopy.in_the_way import STAYS
from pcopy.links import Linker
from pcopy.listing import Listing
from pcopy.outcome import Outcome
from pcopy.pace import Pace
from pcopy.roaming import returning
from pcopy.verdict import Fate, Result
from pcopy.work import (
    DIRECTORY_WEIGHT,
    Check,
    Clear,
    Compared,
    Count,
    Entries,
    Finish,
    Job,
    Large,
    Link,
    Remove,
    Scan,
    Seal,
    Seen,
    Shared,
    Span,
    Sums,
    Unit,
    Verify,
    directory_group,
    entries_of,
    first_copy,
    join,
)

WORDS = {Fate.HARDLINK: "linked", Fate.UNCHANGED: "unchanged", Fate.SKIPPED: "skipped"}  # others: copied


def run(
    job: Job, units: Sequence[Unit], seconds: float, ahead: bool = False, rate: float | None = None, deletes: int = 0
) -> Outcome:
    """Do units, depth first, for about so many seconds. Raises nothing that the world can cause.

    ``ahead``: read directories only, and leave the entries found in them over. ``rate``: copy no more bytes a second.
    ``deletes``: entries that may be deleted before they are counted against the limit.
    """
    started = time.monotonic()
    effort = Effort() if job.options.adapts else None
    with returning(), Handles(job) as handles:
        work = Slice(job, handles, started + seconds, ahead, Pace(rate) if rate else None)
        work.deletes = deletes
        work.stack.extend(units)
        work.known = {unit.large for unit in units if isinstance(unit, Seal) and work.is_done_again}
        try:
            work.set_out(started)
            work.go()
        except BaseException:
            work.discard()
            raise
    if work.pace:
        work.pace.settle()
        work.outcome.paid = work.pace.paid
    work.outcome.undeleted = work.deletes
    work.outcome.seconds = time.monotonic() - started
    if effort:
        effort.into(work.outcome, work.copier.auditor.rested)
    return work.outcome


class Slice(Account):
    """One call of :func:`run`."""

    def __init__(self, job: Job, handles: Handles, deadline: float, ahead: bool = False, pace: Pace | None = None) -> None:
        super().__init__(job, handles, deadline, pace)
        self.ahead = ahead
        self.known: set[Large] = set()  # files that the coordinator knows to be under way
        self.linker = Linker(self.copier)
        self.copier.auditor.deadline = deadline
        self.at_once = at_once.may_be(self) and not ahead
        self.singly = pace is not None  # plain files too, so that the bytes of each are known before the next one
        if pace:
            self.copier.share_out(pace.piece)

    def set_out(self, started: float) -> None:
        """Go to where the first unit is. The slice then lasts at least as long as the way took.

        So the ways take no more than half of the time, however deep a tree is.
        """
        if not self.stack:
            return
        unit = self.stack[-1]
        path = unit.path.rpartition("/")[0] if isinstance(unit, Scan) else unit.path
        if path:
            with contextlib.suppress(OSError):  # which the unit will meet again
                self.handles.pair(unit.tree, path)
            now = time.monotonic()
            self.deadline = self.copier.auditor.deadline = max(self.deadline, now + (now - started))

    def go(self) -> None:
        while self.stack:  # the time is looked at last: a slice without any still makes progress
            unit = self.stack.pop()
            if self.open and unit.after in self.open:
                self.waiting.append(unit)
                self.open.update(unit.holds)
                continue
            self.handles.begin()
            try:
                DO[type(unit)](self, unit)
            except OSError as error:
                self.fail_unit(unit, self.failure_of(unit, self.source_path(unit), error))
            except Exception as error:  # a fault in pcopy itself: it must not take the other entries with it
                self.fail_unit(unit, unforeseen(self.source_path(unit), error))
            if self.to_sum:
                self.stack += self.to_sum
                self.to_sum = []
            if time.monotonic() >= self.deadline or self.stuck:
                break
        self.outcome.leftover = self.waiting + self.stack
        self.outcome.lost = self.copier.metadata.lost

    @property
    def stuck(self) -> bool:
        """Whether nothing else could be written either."""
        return bool(self.outcome.failures or self.outcome.broken) and self.outcome.fatal

    def discard(self) -> None:
        """This slice ends by force: take away the large files that nobody else will hear of."""
        for unit in self.stack:
            if isinstance(unit, Seal) and unit.large not in self.known:
                with contextlib.suppress(OSError):
                    largefile.take_away(self, unit.large)

    # ---- units ----

    def scan(self, unit: Scan) -> None:
        if self.at_once and at_once.do(self, unit):
            return
        begun = unit.again and not self.job.options.dry_run  # by a worker that was killed
        if begun and unit.fresh:
            self.take_back([unit])
        listing = self.directories.scan(unit)
        if begun and not unit.fresh:
            self.take_back(unit._replace(path=join(unit.path, name)) for name in listing.gone)
        outcome, stack, (tree, path) = self.outcome, self.stack, unit[:2]
        found, undone = listing.found, listing.undone
        outcome.tally.found += found
        outcome.tally.directories += 1
        outcome.tally.skipped += len(listing.skipped) + len(listing.hidden)
        outcome.listed += found - len(listing.directories)
        outcome.current = path
        if self.tells:
            self.tell_directory(unit, listing)
        for failure in listing.failures:
            self.fail(self.destination_gone(tree, failure.errno) or failure._replace(path=self.full(tree, failure.path)))
        share = unit.share / max(1, found + (DIRECTORY_WEIGHT - 1) * len(listing.directories))
        outcome.share += share * undone if found else unit.share
        if self.job.only_deletions:
            outcome.tally.skipped += listing.keep_those_over_directories()
        prefix = f"{path}/" if path else ""
        for name, made in listing.directories:
            weight, replaces = share * DIRECTORY_WEIGHT, name in listing.replaced
            again = unit.again and name in listing.begun
            below = Scan(tree, prefix + name, made, weight, 0, again, listing.only(name), replaces, listing.device)
            self.push(below, made and not unit.fresh)
        extra = () if listing.failures else listing.extra
        # What a link leads to may be what is to go: it is copied first.
        last = self.closes(listing.attributes.mode) or bool(extra and self.job.options.dereference)
        stack.append(Finish(tree, path, listing.attributes, unit.fresh, last, extra=extra, device=listing.device))
        for name, partial in listing.partial.items():
            listing.regular.remove(name)
            self.push_names(unit, [name], name not in listing.there, True, share, listing.device, partial)
        for names, regular in ((listing.other, False), (listing.regular, True)):
            new = [name for name in names if name not in listing.there] if listing.there else names
            if len(new) < len(names):
                there = [name for name in names if name in listing.there] if new else names
                self.push_names(unit, there, False, regular, share, listing.device)
            if new:
                self.push_names(unit, new, True, regular, share, listing.device)

    def tell_directory(self, unit: Scan, listing: Listing) -> None:
        if unit.fresh:
            self.event("made", unit, why="kind" if unit.replaces else "new")
        else:
            self.event("updated" if listing.differs else "directory", unit, why=listing.differs)
        for name in listing.skipped:
            self.event("skipped", unit, name, "is there")
        for name in listing.hidden:
            self.event("hidden", unit, name)

    def push_names(
        self, unit: Scan, names: list[str], new: bool, regular: bool, share: float, device: int, partial: str | None = None
    ) -> None:
        for some in entries_of(unit, names, new, regular, share, device):
            self.push(some._replace(partial=partial) if partial else some, new and not unit.fresh)

    def push(self, unit: Scan | Entries, tell: bool) -> None:
        """``tell``: it makes something new where something was before.

        If other workers are there, the coordinator is to know of it before it is begun: should this one be killed, nobody else
        could tell what it had begun from what was there.
        """
        if tell and (self.job.options.jobs > 1 or self.job.options.adapts):
            self.hand_back(unit)
        else:
            self.stack.append(unit)

    def copy_entries(self, unit: Entries) -> None:
        if self.ahead:
            self.hand_back(unit)
            return
        pair, names, done, begun, compared = self.pair_of(unit), unit.names, 0, False, None
        usual = not unit.again and not unit.partial and not unit.rename
        while done < len(names):
            if usual and (count := self.do_plain(unit, pair, names[done:])):
                done += count
                if done == len(names) or time.monotonic() >= self.deadline:
                    break
                if self.singly:
                    continue
            if usual and unit.regular and not unit.first_of and (count := self.gather(unit, pair, names[done:])):
                done += count
                if done == len(names) or time.monotonic() >= self.deadline:
                    break
                continue
            at = len(self.stack)
            try:
                begun = self.copy_entry(unit, pair, names[done])
            except Unfinished as unfinished:
                compared = unfinished.compared
                break
            done += 1
            if begun or time.monotonic() >= self.deadline or self.stuck:
                break  # others can join in a large file; a directory that is in the way goes first
        self.part(unit, done, at if begun else len(self.stack), compared)

    def do_plain(self, unit: Entries, pair: Pair, names: Sequence[str]) -> int:
        """Do entries in the quick way, from the first on, so far as they are plain. Returns how many."""
        plain, tree, first = self.copier.plain, self.job.trees[unit.tree], bool(unit.first_of)
        if not unit.regular:
            count = 0 if first else self.do_links(unit, pair, names)
        elif not unit.fresh:
            count = plain.unchanged(pair, names, self.deadline, tree, first) if self.may_be_unchanged(pair) else 0
            self.note_unchanged(unit, names[:count])
        elif pair.earlier:
            count = plain.link(pair, names, self.deadline, tree, first) if plain.links_earlier else 0
            self.note_linked(unit, names[:count], EARLIER)
        elif plain.works:
            some = names[:1] if self.singly else names
            sizes = plain.copy(pair, some, self.deadline, tree, self.is_elsewhere(unit), first)
            count = len(sizes)
            self.note_files(unit, some[:count], sizes)
            if self.pace:
                self.pace.pay(sum(sizes))
        else:
            count = 0
        return count

    def do_links(self, unit: Entries, pair: Pair, names: Sequence[str]) -> int:
        """Do symbolic links in the quick way, from the first on, so far as they are usual. Returns how many."""
        links = self.copier.symlinks
        if not unit.fresh:
            count = links.unchanged(pair, names, self.deadline)
            self.note_unchanged(unit, names[:count])
            return count
        count = links.make(pair, names, self.deadline)
        self.outcome.tally.symlinks += count
        self.note_there(unit, names[:count], None)
        if self.tells:
            for name in names[:count]:
                self.event("copied", unit, name, "new")
        return count

    def may_be_unchanged(self, pair: Pair) -> bool:
        """Whether files of which copies are there are compared with those before anything else."""
        return self.copier.plain.compares and pair.destination != ABSENT

    def part(self, unit: Entries | Link, done: int, height: int, compared: Compared | None) -> None:
        """So many names of a unit are done. The others go on the stack, below the units of what was begun at that height."""
        names, each = unit.names, unit.share / len(unit.names)
        self.outcome.share += each * done
        self.outcome.current = join(unit.path, names[max(0, done - 1)])
        if done < len(names):
            rest = unit.part(done)._replace(share=each * (len(names) - done), compared=compared)
            self.stack.insert(height, rest)

    def gather(self, unit: Entries, pair: Pair, names: Sequence[str]) -> int:
        """Leave names to the coordinator, from the first on, so far as their inodes have others, too. Returns how many.

        Of copies that are what they would become it makes no units, so nobody tells of them.
        """
        seen: list[Seen] = []
        if not unit.fresh and self.may_be_unchanged(pair) and self.copier.keep_links and not self.tells and not self.summing:
            self.copier.plain.unchanged(pair, names, self.deadline, self.job.trees[unit.tree], seen=seen)
        seen += self.copier.look_for_names(pair, names[len(seen) :], self.deadline)
        if seen:
            self.leave(unit, names[: len(seen)], seen)
        return len(seen)

    def leave(self, unit: Entries, names: Sequence[str], seen: Sequence[Seen]) -> None:
        """Leave names to the coordinator."""
        share, (inodes, links, copies) = unit.share / len(unit.names), zip(*seen, strict=True)
        self.outcome.share -= share * len(names)
        shared = Shared(unit.tree, unit.path, tuple(names), unit.rename, unit.fresh, unit.regular, inodes, links, copies, share)
        self.outcome.shared.append(shared._replace(device=unit.device, again=unit.again))
        self.open.add(directory_group(unit.tree, unit.path))

    def pair_of(self, unit: Entries | Link) -> Pair:
        pair = self.handles.pair(unit.tree, unit.path)
        if self.job.earlier:
            pair = self.handles.with_earlier(pair)
        kept = unit.kept or unit.after in self.outcome.ruined
        if unit.cleared and self.job.options.dry_run and not kept:
            return replace(pair, destination=ABSENT)  # as if it were cleared
        if unit.again and pair.destination != ABSENT:
            pair.note_names()
        return pair

    def copy_entry(self, unit: Entries, pair: Pair, name: str) -> bool:
        """Copy whatever is behind a name. True if it is not done yet, and to be before the next one."""
        self.copier.auditor.compared, self.copier.partial = unit.compared, unit.partial
        try:
            result = self.copier.copy(pair, name, unit.rename or name, unit.fresh, bool(unit.first_of), unit.again)
        except Unfinished:
            raise
        except OSError as error:
            self.entry_failed(unit, pair, name, error)
        except Exception as error:
            self.fail(unforeseen(self.full(unit.tree, unit.path, name), error))
        else:
            self.drop_partial(unit, pair)
            if isinstance(result, Result):
                return self.settle(unit, name, result)
            self.copied_file(unit, name, result)
        return False

    def copied_file(self, unit: Entries, name: str, size: int, why: str = "") -> None:
        self.note_files(unit, (name,), (size,), reason(unit, why))
        if self.pace and size <= self.copier.large:  # a larger one shares its source's blocks, or it would be in spans
            self.pace.pay(size)

    def settle(self, unit: Entries, name: str, result: Result) -> bool:
        """Note what became of an entry that is no plain file. True if it is not done yet, and to be before the next one."""
        share = unit.share / len(unit.names)
        if result.fate is Fate.BLOCKED:
            self.outcome.share -= share
            self.clear_first(unit, unit.one(name)._replace(fresh=False, share=share, cleared=True), name)
        elif result.fate is Fate.SHARED:
            assert result.inode
            self.leave(unit, (name,), ((result.inode, result.links, None),))
        elif result.fate is Fate.LARGE:
            assert result.version and result.temporary
            large = Large(
                unit.tree, unit.path, name, unit.rename or name, result.temporary, result.size, result.holes, result.version,
                unit.one(name).first_of, unit.tries, share, reason(unit, result.why), unit.device,
            )  # fmt: skip
            largefile.begin(self, large, result.there)
        elif result.fate is Fate.FILE:
            self.copied_file(unit, name, result.size, result.why)
        else:
            if result.fate is Fate.SKIPPED:
                self.spoil(unit.one(name))
            if not result.hidden:
                self.note_there(unit, (name,), unit.rename)
            self.count(result.fate)
            self.tell(unit, name, result)
        return result.fate in (Fate.LARGE, Fate.BLOCKED)

    def tell(self, unit: Entries | Link, name: str, result: Result) -> None:
        what = "hidden" if result.hidden else "updated" if result.updated else WORDS.get(result.fate, "copied")
        self.event(what, unit, name, reason(unit, result.why) if what in ("copied", "linked") else result.why)

    def clear_first(self, unit: Entries | Link, again: Entries | Link, name: str) -> None:
        """A directory that is not empty is in the place of something else: once it is removed, that is tried again."""
        if unit.cleared:
            error = OSError(errno.ENOTEMPTY, STAYS)
            self.spoil(unit)
            self.keep_all(unit)
            self.fail(self.failure_of(unit, self.full(unit.tree, unit.path, name), error))
        else:
            self.stack += [again, Clear(unit.tree, join(unit.path, unit.rename or name))]

    def link(self, unit: Link) -> None:
        pair = self.pair_of(unit)
        first = self.handles.pair(*unit.beside)
        names, firsts, done, height, compared = unit.names, unit.firsts, 0, len(self.stack), None
        each = unit.share / len(names)
        usual = not (unit.again or unit.rename or unit.cleared or self.job.options.dry_run or self.job.options.dereference)
        while done < len(names):
            if usual:
                make = self.linker.new if unit.fresh else self.linker.unchanged
                count = make(pair, names[done:], firsts[done:], first, self.deadline)
                if unit.fresh:
                    self.note_linked(unit, names[done : done + count], "new")
                else:
                    self.note_unchanged(unit, names[done : done + count])
                done += count
                if done == len(names) or (count and time.monotonic() >= self.deadline):
                    break
            try:
                self.link_one(unit.part(done, done + 1)._replace(share=each), pair, first)
            except Unfinished as unfinished:
                compared = unfinished.compared
                break
            done += 1
            if len(self.stack) > height or time.monotonic() >= self.deadline or self.stuck:
                break  # what has to be copied, or is in the way, goes first
        self.part(unit, done, height, compared)

    def link_one(self, unit: Link, pair: Pair, first: Pair) -> None:
        """Make one name, that of a unit, whatever is there."""
        name = unit.names[0]
        self.copier.auditor.compared = unit.compared
        try:
            result = self.linker.link(pair, unit, first)
        except Unfinished:
            raise
        except OSError as error:
            self.entry_failed(unit, pair, name, error)
        except Exception as error:
            self.fail(unforeseen(self.full(unit.tree, unit.path, name), error))
        else:
            if result is None:  # it is copied, as if it were the first
                self.outcome.share -= unit.share
                self.stack.append(first_copy(unit, unit.share))
            elif result.fate is Fate.BLOCKED:
                self.outcome.share -= unit.share
                self.clear_first(unit, unit._replace(cleared=True), name)
            else:
                self.note_there(unit, (name,), unit.rename)
                self.count(result.fate)
                self.tell(unit, name, result)

    def finish(self, unit: Finish) -> None:
        if unit.last:
            self.waiting.append(unit)
        elif unit.extra:
            removal.begin(self, unit)
        else:
            self.directories.finish(unit)


def reason(unit: Entries | Link, why: str) -> str:
    """Why something was made, in a word."""
    return "kind" if unit.cleared else why or "new"


DO: dict[type, Callable[[Slice, Any], None]] = {
    Scan: Slice.scan,
    Entries: Slice.copy_entries,
    Span: largefile.copy,
    Verify: largefile.verify,
    Seal: largefile.seal,
    Link: Slice.link,
    Sums: sums.take,
    Check: sums.check,
    Finish: Slice.finish,
    Remove: removal.remove,
    Clear: removal.clear,
    Count: removal.count,
}
