"""The coordinator's decisions, shown without an executor: what is handed out when, what waits, what is done again.

Units and outcomes are made by hand here. The last tests run real slices, of lengths that hypothesis chooses, through the
coordinator's decisions and compare the trees.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pcopy.large
from pcopy.api import copy
from pcopy.coordinator import DEATHS, STARTS, Coordinator
from pcopy.division import SMALLEST_SPAN, divide
from pcopy.engines import Engine, InPlace, NotStarted
from pcopy.options import Options, Overwrite
from pcopy.outcome import Event, Failure, Outcome, Tally
from pcopy.result import Observer, Report, Stop
from pcopy.stop import of_this_process
from pcopy.work import (
    Attributes,
    Clear,
    Entries,
    Finish,
    Inode,
    Job,
    Large,
    Link,
    Remove,
    Scan,
    Seal,
    Shared,
    Span,
    Temporary,
    Tree,
    Unit,
    Version,
    large_group,
)
from pcopy.worker import DO, run
from tests.trees import Dir, File, Hard, Holes, make_tree, read_tree
from tests.trees import Link as Symlink

MIB = 1 << 20
ATTRIBUTES = Attributes(0o755, 0, 0, 1, 2)
INODE = (1, 2)


def scan(path: str = "") -> Scan:
    return Scan(0, path, True, 0.1)


def entries(path: str, *names: str) -> Entries:
    return Entries(0, path, names, True, True, 0.1)


def finish(path: str = "", last: bool = False) -> Finish:
    return Finish(0, path, ATTRIBUTES, last=last)


def large(path: str = "", name: str = "big", size: int = 64 * MIB, first_of: tuple[tuple[int, int], ...] = ()) -> Large:
    return Large(
        0,
        path,
        name,
        name,
        Temporary(".temporary", INODE, (0, 0), False),
        size,
        False,
        Version(INODE, size, 1, 2),
        first_of,
        0,
        0.1,
    )


def tree_of(source: Path, destination: Path) -> Tree:
    one, two = os.stat(source), os.stat(destination)
    return Tree(str(source), str(destination), (one.st_dev, one.st_ino), (two.st_dev, two.st_ino))


def shared(name: str, path: str = "", links: int = 3) -> Shared:
    return Shared(0, path, (name,), None, True, True, (INODE,), (links,), (None,), 0.1)


def link(name: str, first: str, path: str = "") -> Link:
    return Link(0, path, (name,), None, (INODE,), (0, ""), (first,), 0.1, fresh=True)


def links_in(units: Iterable[Unit]) -> list[tuple[str, str]]:
    """Names that are to become links, and to which."""
    return [pair for unit in units if isinstance(unit, Link) for pair in zip(unit.names, unit.firsts, strict=True)]


def a_coordinator(
    jobs: int = 1, units: Sequence[Unit] = (), top: Path | None = None, max_delete: int | None = None
) -> Coordinator:
    where, options = str(top or "/nonexistent"), Options(jobs=jobs, delete=max_delete is not None, max_delete=max_delete)
    job = Job(options, (Tree(f"{where}/src", f"{where}/dst", (0, 0), (0, 1)),), "00000000", 0o022)
    coordinator = Coordinator(job, Report(jobs=jobs), Observer(), Stop())
    coordinator.add(units)
    return coordinator


def take(coordinator: Coordinator, running: int) -> list[Unit]:
    """The units of the next slice, none if all that is left has to wait."""
    portion = coordinator.take(running)
    return portion.units if portion else []


def done(coordinator: Coordinator, units: list[Unit], *leftover: Unit, **what: object) -> None:
    coordinator.absorb(units, Outcome(leftover=list(leftover), **what))  # type: ignore[arg-type]


def names_in(units: Sequence[Unit]) -> list[tuple[str, str]]:
    return [(unit.path, name) for unit in units if isinstance(unit, Entries) for name in unit.names]


def nothing_is_held(coordinator: Coordinator) -> bool:
    """Whatever the run was, at its end no bookkeeping is left: a million files must not leave a million marks."""
    frontier, inodes = coordinator.frontier, coordinator.inodes
    queues = (frontier.units, frontier.scans, coordinator.suspects, frontier.last, coordinator.quota.uncounted)
    marks = (frontier.holding, frontier.waiting, inodes.first_names, frontier.unscanned, frontier.names)
    names = (inodes.gathered, inodes.undecided, inodes.waiting, frontier.done)
    return not any([*queues, *marks, *names, frontier.searching])


# ---- order ----


def test_what_a_limit_on_deletions_can_spare_is_granted_anew_until_more_is_deleted_than_expected() -> None:
    coordinator = a_coordinator(1, max_delete=150)
    coordinator.quota.expected, grants = 100, []
    for number in range(20):
        coordinator.add([scan(str(number))])
        portion = coordinator.take(0)
        assert portion
        grants.append(portion.deletes)
        done(coordinator, portion.units, tally=Tally(deleted=max(0, portion.deletes - 5)), undeleted=min(5, portion.deletes))
    assert grants[:6] == [25] * 6  # five times 20 are what was expected
    assert grants[6] < 25
    assert 100 < coordinator.quota.taken <= 150


def test_a_directory_waits_for_deletions_that_have_to_be_counted() -> None:
    coordinator = a_coordinator(3, [scan("a")], max_delete=2)
    deletions: list[Clear | Remove] = [Clear(0, "a/d", emptied=True), Remove(0, "a", ("x",))]
    done(coordinator, take(coordinator, 0), finish("a"), uncounted=deletions)
    counted: list[Unit] = [unit._replace(counted=True) for unit in deletions]
    assert [*take(coordinator, 0), *take(coordinator, 1)] == counted[::-1]
    assert take(coordinator, 2) == []
    done(coordinator, counted)
    assert take(coordinator, 0) == [finish("a")]
    done(coordinator, [finish("a")])
    assert nothing_is_held(coordinator)
    done(coordinator, [], uncounted=[Remove(0, "a", ("z",))])
    assert take(coordinator, 0) == [] and coordinator.report.exit_status == 3


@pytest.mark.parametrize("used", [2, 3])
def test_what_others_may_delete_is_waited_for_before_a_run_is_stopped(used: int) -> None:
    """Until it is known, nothing more is handed out that could use it up."""
    coordinator = a_coordinator(2, [scan("a"), scan("b"), scan("c")], max_delete=20)
    first, second = coordinator.take(0), coordinator.take(1)
    assert first and second and (first.deletes, second.deletes) == (5, 3)
    removal = Remove(0, "c", tuple("abcdefghijklmnopqr"))
    done(coordinator, first.units, uncounted=[removal], undeleted=5)
    assert coordinator.has_work and take(coordinator, 1) == []
    done(coordinator, second.units, tally=Tally(deleted=used), undeleted=3 - used)
    assert list(coordinator.frontier.units) == [scan("a"), *([removal._replace(counted=True)] if used == 2 else [])]
    assert bool(take(coordinator, 0)) == (used == 2)
    assert (coordinator.quota.taken, coordinator.report.exit_status) == ((20, 0) if used == 2 else (3, 3))


def test_what_others_find_too_when_a_run_stops_is_neither_told_nor_counted() -> None:
    coordinator = a_coordinator(2, [scan("a"), scan("b")])
    for units in (take(coordinator, 0), take(coordinator, 1)):
        failure = Failure(f"/src/{units[0].path}/f", "write", errno.ENOSPC, "No space left on device", fatal=True)
        done(coordinator, units, failures=[failure], tally=Tally(found=1, failed=1))
    report = coordinator.report
    assert (len(report.errors), report.failed, report.exit_status) == (1, 1, 3)


def test_the_last_unit_that_came_in_goes_out_first() -> None:
    coordinator = a_coordinator(1, [scan("a"), scan("b"), scan("c")])
    taken = take(coordinator, 0)
    assert taken == [scan("c")]
    done(coordinator, taken, scan("c/d"), scan("c/e"))
    assert [take(coordinator, 0) for _ in range(4)] == [[scan("c/e")], [scan("c/d")], [scan("b")], [scan("a")]]
    assert take(coordinator, 0) == []


def test_a_slice_of_many_units_keeps_their_order() -> None:
    """A worker does the last of its units first, too."""
    units = [scan(str(number)) for number in range(100)]
    coordinator = a_coordinator(1, units)
    coordinator.batch = 8
    assert take(coordinator, 0) == units[-8:]
    assert coordinator.take_all().units == units[:-8]


def test_nothing_goes_out_when_the_run_is_to_stop() -> None:
    for stopped in ("by a signal", "by a fatal failure"):
        coordinator = a_coordinator(1, [scan("a"), scan("b")])
        if stopped == "by a signal":
            coordinator.stop.signal = 15
        else:
            done(coordinator, take(coordinator, 0), failures=[Failure("a", "write", 28, "No space left", fatal=True)])
        assert take(coordinator, 0) == []
        assert not coordinator.has_work


# ---- what waits ----


def test_a_finish_waits_until_nothing_holds_its_directory() -> None:
    coordinator = a_coordinator(1, [finish(), entries("", "a"), scan("d")])
    assert take(coordinator, 0) == [scan("d")]
    held = take(coordinator, 0)
    assert held == [entries("", "a")]
    assert take(coordinator, 0) == []
    done(coordinator, held)
    assert take(coordinator, 0) == [finish()]


def test_a_finish_waits_for_all_slices_that_its_entries_are_split_over() -> None:
    names = [f"n{number}" for number in range(12)]
    coordinator = a_coordinator(3, [finish(), entries("", *names)])
    slices: list[list[Unit]] = []
    while units := take(coordinator, 0):
        slices.append(units)
    assert len(slices) > 1
    assert sorted(name for units in slices for _, name in names_in(units)) == sorted(names)
    for units in slices[1:]:
        done(coordinator, units)
        assert take(coordinator, 1) == []
    done(coordinator, slices[0], entries("", "n1"))  # one piece comes back
    left = take(coordinator, 0)
    assert left == [entries("", "n1")]
    done(coordinator, left)
    assert take(coordinator, 0) == [finish()]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_schedule_finishes_a_directory_too_early_or_never(data: st.DataObject) -> None:
    """Any number of slices in flight, coming back in any order, with any part of their names undone, or killed."""
    jobs = data.draw(st.integers(1, 4))
    sizes = {f"d{number}": data.draw(st.integers(0, 9)) for number in range(3)}
    units: list[Unit] = []
    for path, count in sizes.items():
        units.append(finish(path))
        units += [entries(path, *(f"n{number}" for number in range(count)))] if count else []
    coordinator = a_coordinator(jobs, units)
    missing = Counter({path: count for path, count in sizes.items() if count})
    finished: list[str] = []
    running: list[list[Unit]] = []
    kills = data.draw(st.integers(0, DEATHS - 1))
    while coordinator.has_work or running:
        while len(running) < jobs and (taken := take(coordinator, len(running))):
            running.append(taken)
        assert running, "work is left and nothing can be done"
        if kills and data.draw(st.booleans()):
            kills -= 1
            coordinator.requeue(running)
            running = []
            continue
        units = running.pop(data.draw(st.integers(0, len(running) - 1)))
        leftover: list[Unit] = []
        for unit in units:
            if isinstance(unit, Finish):
                assert not missing[unit.path]
                finished.append(unit.path)
            elif isinstance(unit, Entries):
                made = data.draw(st.integers(0 if unit is not units[-1] else 1, len(unit.names)))
                missing[unit.path] -= made
                for name in unit.names[made:]:
                    leftover.append(entries(unit.path, name))
        done(coordinator, units, *leftover)
    assert sorted(finished) == sorted(sizes)
    assert not coordinator.report.errors
    assert not +missing
    assert nothing_is_held(coordinator)


def test_what_closes_a_path_is_done_last_and_deepest_first() -> None:
    coordinator = a_coordinator(1, [finish("a", last=True), finish("a/b/c", last=True), finish("a/b", last=True), scan("z")])
    taken = take(coordinator, 0)
    assert taken == [scan("z")]
    assert take(coordinator, 1) == []  # it may still find something in there
    done(coordinator, taken)
    assert take(coordinator, 0) == [finish("a"), finish("a/b"), finish("a/b/c")]  # the last is the next to do


# ---- hard links ----


def test_links_wait_for_the_first_copy() -> None:
    coordinator = a_coordinator(1, [finish("d"), scan("")])
    taken = take(coordinator, 0)
    done(coordinator, taken, finish(""), shared=[shared("one"), shared("two", "e"), shared("three")])
    first = take(coordinator, 0)
    assert names_in(first) == [("", "one")]
    assert isinstance(first[0], Entries)
    assert first[0].first_of == (INODE,)
    assert take(coordinator, 0) == [finish("d")]
    assert take(coordinator, 0) == []
    done(coordinator, first)
    links = [unit for _ in range(2) for unit in take(coordinator, 0)]
    assert links == [link("three", "one"), link("two", "one", "e")]
    assert take(coordinator, 0) == []  # the directory's times wait for the link, too
    done(coordinator, links)
    assert take(coordinator, 0) == [finish("")]


def pairs_of_names(count: int) -> list[Shared]:
    """So many inodes of two names each, a<n> and e/b<n>."""
    names = [shared(f"a{number}", links=2) for number in range(count)] + [
        shared(f"b{number}", "e", 2) for number in range(count)
    ]
    return [name._replace(inodes=((1, number % count),)) for number, name in enumerate(names)]


def test_first_copies_of_a_directory_are_one_unit_and_each_link_waits_for_its_own() -> None:
    coordinator = a_coordinator(1)
    done(coordinator, [], shared=pairs_of_names(6))
    (first,) = units = take(coordinator, 0)
    assert isinstance(first, Entries)
    assert names_in(units) == [("", f"a{number}") for number in range(6)]
    assert first.first_of == tuple((1, number) for number in range(6))
    assert take(coordinator, 0) == []
    done(coordinator, units, first.part(3), ruined={(1, 1)})
    found = [unit for _ in range(4) for unit in take(coordinator, 0)]
    assert sorted(links_in(found)) == [("b0", "a0"), ("b2", "a2")]
    assert sorted(names_in(found)) == [("", "a3"), ("", "a4"), ("", "a5"), ("e", "b1")]
    assert take(coordinator, 0) == []
    done(coordinator, found)
    links = [unit for _ in range(3) for unit in take(coordinator, 0)]
    assert sorted(links_in(links)) == [("b3", "a3"), ("b4", "a4"), ("b5", "a5")]
    done(coordinator, links)
    assert nothing_is_held(coordinator)


def test_a_name_that_is_found_when_none_was_to_come_becomes_a_link() -> None:
    """As of a file that was copied once more, and has got a second name meanwhile."""
    coordinator = a_coordinator(1)
    done(coordinator, [], shared=[shared("one", links=2)])
    (first,) = take(coordinator, 0)
    assert isinstance(first, Entries)
    done(coordinator, [first], shared=[shared("two", links=2)])
    assert take(coordinator, 0) == [link("two", "one")]


def test_a_name_that_is_found_when_the_first_is_long_done_becomes_a_link() -> None:
    coordinator = a_coordinator(1, [scan("d")])
    search = take(coordinator, 0)
    done(coordinator, search, shared=[shared("one", links=3), shared("two", links=3)])
    done(coordinator, take(coordinator, 0))
    done(coordinator, take(coordinator, 0))
    done(coordinator, [], shared=[shared("three", links=3)])
    units = take(coordinator, 0)
    assert units == [link("three", "one")]
    done(coordinator, units)
    assert nothing_is_held(coordinator)


@pytest.mark.parametrize(("copies", "settled"), [(((7, 1), (7, 1)), True), (((7, 1), (7, 2)), False), (((7, 1), None), False)])
def test_names_that_are_unchanged_together_become_no_units(copies: tuple[Inode | None, ...], settled: bool) -> None:
    coordinator = a_coordinator(1, [finish("d")])
    pair = Shared(0, "d", ("one", "two"), None, False, True, (INODE,) * 2, (2,) * 2, copies, 0.125)
    done(coordinator, [], shared=[pair])
    units = take(coordinator, 0)
    if settled:
        assert units == [finish("d")]
        assert (coordinator.report.unchanged, coordinator.progress.share) == (2, 0.25)
        done(coordinator, units)
        assert nothing_is_held(coordinator)
    else:
        assert names_in(units) == [("d", "one")]
        assert (coordinator.report.unchanged, coordinator.progress.share) == (0, 0)


def test_first_copies_are_shared_out() -> None:
    coordinator = a_coordinator(4)
    done(coordinator, [], shared=pairs_of_names(16))
    slices = [take(coordinator, running) for running in range(4)]
    assert all(slices)
    for units in slices:
        assert all(isinstance(unit, Entries) for unit in units)
        done(coordinator, units)
    done_links = 0
    while units := take(coordinator, 0):
        done_links += len(links_in(units))
        done(coordinator, units)
    assert done_links == 16
    assert nothing_is_held(coordinator)


def test_links_wait_for_a_large_first_copy_until_it_has_its_name() -> None:
    coordinator = a_coordinator(1)
    done(coordinator, [], shared=[shared("one", links=2), shared("two", links=2)])
    first = take(coordinator, 0)
    file = large(name="one", first_of=(INODE,))
    done(coordinator, first, Seal(file), Span(file, 0, file.size))
    span = take(coordinator, 0)
    assert span == [Span(file, 0, file.size)]
    assert take(coordinator, 0) == []
    done(coordinator, span)
    seal = take(coordinator, 0)
    assert seal == [Seal(file)]
    assert take(coordinator, 0) == []
    done(coordinator, seal)
    units = take(coordinator, 0)
    assert links_in(units) == [("two", "one")]
    done(coordinator, units)
    assert nothing_is_held(coordinator)


def test_the_names_of_an_inode_are_forgotten_when_all_are_seen() -> None:
    coordinator = a_coordinator(1)
    for name in ("one", "two", "three"):
        assert not coordinator.inodes.first_names or name != "one"
        done(coordinator, [], shared=[shared(name)])
    assert not coordinator.inodes.first_names


def test_the_same_name_is_copied_in_whatever_order_they_are_found() -> None:
    """As long as there is something to search, a name that should come first may still be found."""
    for order in itertools.permutations(["b", "c", "a"]):
        coordinator = a_coordinator(1, [scan("d")])
        search = take(coordinator, 0)
        for name in order[:2]:
            done(coordinator, [], shared=[shared(name, links=9)])
            assert take(coordinator, 0) == []
        done(coordinator, search, shared=[shared(order[2], links=9)])
        first = take(coordinator, 0)
        assert names_in(first) == [("", "a")]
        done(coordinator, first)
        assert sorted(links_in(unit for _ in "bc" for unit in take(coordinator, 0))) == [("b", "a"), ("c", "a")]


def test_a_name_that_is_there_already_comes_first_unless_it_is_to_be_kept() -> None:
    for overwrite, expected in (("changed", "b"), ("always", "b"), ("older", "a"), ("never", "a")):
        coordinator = a_coordinator(1)
        coordinator.inodes.options = Options(overwrite=Overwrite(overwrite))
        done(coordinator, [], shared=[shared("a"), shared("b")._replace(fresh=False)])
        assert names_in(take(coordinator, 0)) == [("", expected)]


def test_more_names_than_can_be_kept_are_decided_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcopy.inodes.KEPT", 2)
    coordinator = a_coordinator(1, [scan("d")])
    take(coordinator, 0)
    done(coordinator, [], shared=[shared("c", links=9), shared("b", links=9)])
    assert take(coordinator, 0) == []
    done(coordinator, [], shared=[shared("d", links=9)])
    assert names_in(take(coordinator, 0)) == [("", "b")]


def test_when_the_first_name_is_not_copied_another_one_is() -> None:
    coordinator = a_coordinator(1)
    done(coordinator, [], shared=[shared("a", links=4), shared("b", links=4), shared("c", links=4), shared("d", links=4)])
    for name in ("a", "b"):
        first = take(coordinator, 0)
        assert names_in(first) == [("", name)]
        done(coordinator, first, ruined={INODE})
    done(coordinator, take(coordinator, 0))
    units = take(coordinator, 0)
    assert units == [link("d", "c")]
    done(coordinator, units)
    assert nothing_is_held(coordinator)


def test_a_killed_slice_that_saw_the_first_name_twice_copies_it_twice() -> None:
    """A name must never become a link to itself."""
    coordinator = a_coordinator(1)
    done(coordinator, [], shared=[shared("one"), shared("one")])
    units = [*take(coordinator, 0), *take(coordinator, 0)]
    assert [type(unit) for unit in units] == [Entries, Entries]


# ---- large files ----


def spans_in_flight(jobs: int) -> tuple[Coordinator, Large, list[list[Unit]]]:
    file = large("d")
    coordinator = a_coordinator(jobs, [finish("d"), Seal(file), Span(file, 0, file.size)])
    slices: list[list[Unit]] = []
    while units := take(coordinator, 0):
        slices.append(units)
    while coordinator.frontier.units:  # more parts than workers
        slices.append(coordinator.frontier.pop(1))
    return coordinator, file, slices


def test_a_seal_waits_for_all_spans_of_its_file() -> None:
    coordinator, file, slices = spans_in_flight(4)
    assert len(slices) >= 4
    while slices:
        assert take(coordinator, len(slices)) == []
        units = slices.pop(0)
        (span,) = units
        assert isinstance(span, Span)
        if span.start == 0:  # it comes back in part
            rest = Span(file, span.start + MIB, span.stop)
            done(coordinator, units, rest)
            slices.append(take(coordinator, len(slices)))
            assert slices[-1] == [rest]
            rest_of_rest = Span(file, span.stop - MIB, span.stop)
            done(coordinator, slices.pop(), rest_of_rest)
            slices.append(take(coordinator, len(slices)))
        else:
            done(coordinator, units)
    seal = take(coordinator, 0)
    assert seal == [Seal(file)]
    done(coordinator, seal)
    assert take(coordinator, 0) == [finish("d")]


@pytest.mark.parametrize(
    ("others", "shared_out"),
    [((), True), (("one",), False), (("one", "two", "three"), False)],
    ids=["alone", "and another", "and others"],
)
def test_a_large_file_is_shared_out_if_there_is_nothing_else_to_do(others: tuple[str, ...], shared_out: bool) -> None:
    """Two that write to one file wait for each other."""
    file = large()
    units: list[Unit] = [Seal(file), Span(file, 0, file.size)]
    coordinator = a_coordinator(2, [entries("", *others), *units] if others else units)
    first, second = take(coordinator, 0), take(coordinator, 1)
    assert [type(unit) for unit in first] == [Span]
    assert isinstance(second[-1], Span) == shared_out
    assert (first == [Span(file, 0, file.size)]) != shared_out


@pytest.mark.parametrize("waits", [True, False], ids=["a span", "files"])
def test_a_large_file_may_wait_for_a_worker_where_there_is_little_else(waits: bool) -> None:
    """Else who ends a slice waits for the coordinator, which waits for a processor."""
    files = [large(name=str(number)) for number in range(3)]
    spans: list[Unit] = [Span(file, 0, file.size) for file in files]
    coordinator = a_coordinator(2, [*spans, *map(Seal, files)] if waits else [entries("", "a"), *spans[1:]])
    held = [take(coordinator, running) for running in range(4)]
    assert held[:2] == [[spans[2]], [spans[1]]]
    assert held[2:] == ([[spans[0]], []] if waits else [[], []])


def test_a_file_of_which_a_span_failed_is_not_sealed_but_taken_away() -> None:
    coordinator, file, slices = spans_in_flight(2)
    failure = Failure("d/big", "read", 5, "Input/output error")
    done(coordinator, slices.pop(), ruined={large_group(file)}, failures=[failure])
    for units in slices:
        done(coordinator, units)
    assert take(coordinator, 0) == [Seal(file, discard=True)]
    assert coordinator.report.errors == [failure]


def test_a_stopped_run_takes_away_its_large_files() -> None:
    coordinator, waiting, _ = spans_in_flight(2)
    ready, suspect = large("", "ready"), large("", "suspect")
    coordinator.add([Seal(ready)])
    coordinator.requeue([[Seal(suspect)], [scan("d")]])
    coordinator.stop.signal = 2
    assert set(coordinator.clean_up(coordinator.left())) == {Seal(one, discard=True) for one in (waiting, ready, suspect)}


# ---- dividing ----


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 400), st.integers(1, 40))
def test_the_parts_of_a_directory_hold_each_name_once(count: int, parts: int) -> None:
    unit = entries("d", *(f"n{number}" for number in range(count)))
    divided = divide(unit, parts)
    assert [name for _, name in names_in(divided)] == list(unit.names)
    assert all(isinstance(part, Entries) and part.names for part in divided)
    assert sum(part.share for part in divided if isinstance(part, Entries)) == pytest.approx(unit.share)
    assert {part.holds for part in divided} == {unit.holds}
    assert len(divided) >= min(parts, count)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 300 * MIB), st.integers(1, 300 * MIB), st.integers(1, 40))
def test_the_parts_of_a_span_hold_each_byte_once(start: int, size: int, parts: int) -> None:
    unit = Span(large(size=700 * MIB), start, start + size)
    divided = [part for part in divide(unit, parts) if isinstance(part, Span)]
    assert (divided[0].start, divided[-1].stop) == (unit.start, unit.stop)
    for left, right in itertools.pairwise(divided):
        assert left.stop == right.start
    assert all(part.start < part.stop for part in divided)
    assert all(part.stop - part.start >= SMALLEST_SPAN for part in divided[:-1])
    assert len(divided) <= parts
    assert {part.holds for part in divided} == {unit.holds}


@pytest.mark.parametrize(("large", "small"), [(40, 4), (300, 3), (7, 1)])
def test_it_is_the_larger_units_that_are_divided(large: int, small: int) -> None:
    """Parts of one name each would take longer to hand out than to do."""
    units = [entries(path, *map(str, range(count))) for path, count in (("a", small), ("b", large), ("c", small))]
    coordinator = a_coordinator(4, units)
    parts = [*take(coordinator, 0), *coordinator.frontier.units]
    assert [part for part in parts if part.path != "b"] == [units[2], units[0]]
    assert len(units) + 4 <= len(parts) <= len(units) + 8
    assert sorted(names_in(parts)) == sorted(names_in(units))


@pytest.mark.parametrize("unit", [scan(), finish(), Seal(large()), entries("", "only"), Span(large(), 0, MIB)], ids=repr)
def test_what_cannot_be_divided_stays_whole(unit: Unit) -> None:
    assert divide(unit, 8) == [unit]


# ---- workers that died ----


def test_nothing_is_lost_when_slices_are_killed() -> None:
    file = large("d")
    units: list[Unit] = [
        finish("d"), entries("d", "a", "b", "c"), Seal(file), Span(file, 0, file.size), scan("e"), finish("f"),
    ]  # fmt: skip
    coordinator = a_coordinator(3, units)
    slices: list[list[Unit]] = []
    while taken := take(coordinator, len(slices)):
        slices.append(taken)
    coordinator.requeue(slices)
    seen: list[Unit] = []
    while coordinator.has_work:
        taken = take(coordinator, 0)
        assert taken, "work is left and nothing can be done"
        seen += taken
        done(coordinator, taken)
    assert sorted(names_in(seen)) == [("d", "a"), ("d", "b"), ("d", "c")]
    spans = sorted((unit.start, unit.stop) for unit in seen if isinstance(unit, Span))
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
    assert spans[-1][1] == file.size
    others = [unit for unit in seen if not isinstance(unit, (Entries, Span))]
    assert Counter(others) == Counter([finish("d"), Seal(file), scan("e")._replace(again=True), finish("f")])
    assert others.index(Seal(file)) < others.index(finish("d"))
    assert nothing_is_held(coordinator)
    assert not coordinator.report.errors


def test_a_suspect_is_tried_alone() -> None:
    """Only then does a death say which unit it was."""
    coordinator = a_coordinator(4, [scan("a"), scan("b"), scan("c")])
    slices = [take(coordinator, number) for number in range(2)]
    coordinator.requeue(slices)
    assert take(coordinator, 1) == []
    first = take(coordinator, 0)
    assert len(first) == 1
    assert take(coordinator, 1) == []
    done(coordinator, first)
    assert len(take(coordinator, 0)) == 1
    assert take(coordinator, 1) == []  # beside the last suspect, too
    assert take(coordinator, 0) == [scan("a")]


def test_a_suspected_directory_is_only_listed() -> None:
    """What kills a worker is more often a file in it: the directory must not be given up for that."""
    coordinator = a_coordinator(1, [scan("a")])
    coordinator.requeue([take(coordinator, 0)])
    portion = coordinator.take(0)
    assert portion
    assert (portion.units, portion.ahead) == ([scan("a")._replace(again=True)], True)


def test_a_unit_that_kills_its_worker_each_time_becomes_a_named_failure(tmp_path: Path) -> None:
    coordinator = a_coordinator(2, [finish("d"), entries("d", *"abcdefgh")], tmp_path)
    copied: list[str] = []
    deaths = 0
    while coordinator.has_work:
        running: list[list[Unit]] = []
        while len(running) < 2 and (taken := take(coordinator, len(running))):
            running.append(taken)
        assert running
        if any(("d", "e") in names_in(units) for units in running):
            deaths += 1
            assert deaths < 20, "it is tried for ever"
            coordinator.requeue(running)
            continue
        for units in running:
            copied += [name for _, name in names_in(units)]
            done(coordinator, units)
    assert sorted(copied) == list("abcdfgh")
    (failure,) = coordinator.report.errors
    assert failure.path.endswith("/src/d/e")
    assert "died" in failure.reason
    assert coordinator.report.failed == 1
    assert nothing_is_held(coordinator)


def test_deaths_that_are_not_in_a_row_do_not_condemn_a_unit() -> None:
    coordinator = a_coordinator(1, [entries("", "a")])
    for _ in range(DEATHS + 1):
        for _ in range(DEATHS - 1):
            coordinator.requeue([take(coordinator, 0)])
        taken = take(coordinator, 0)
        assert taken == [entries("", "a")._replace(again=True)]
        done(coordinator, taken, entries("", "a"))  # it came back whole: its source had changed
    assert not coordinator.report.errors


@pytest.mark.parametrize("unit", [Span(large("d"), 0, MIB), Seal(large("d"))], ids=["span", "seal"])
def test_a_large_file_that_is_given_up_leaves_no_gate_shut(unit: Unit, tmp_path: Path) -> None:
    coordinator = a_coordinator(1, [finish("d"), Seal(large("d")), Span(large("d"), 0, MIB)], tmp_path)
    while unit not in (taken := take(coordinator, 0)):
        done(coordinator, taken)
    for _ in range(DEATHS - 1):
        coordinator.requeue([taken])
        taken = take(coordinator, 0)
        assert taken == [unit]
    coordinator.requeue([taken])
    seen: list[Unit] = []
    while coordinator.has_work:
        taken = take(coordinator, 0)
        assert taken
        seen += taken
        done(coordinator, taken)
    # Whoever gave up, the temporary file has to go, and the directory is finished after that.
    assert seen == [Seal(large("d"), discard=True), finish("d")]
    assert coordinator.report.errors[0].path.endswith("/src/d/big")


def test_a_slice_that_ends_by_force_takes_away_only_large_files_that_nobody_knows_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is only to be given its name is known to the coordinator, which has that done again."""
    source, destination = make_tree(tmp_path / "src", {"big": Holes(40 * MIB)}), make_tree(tmp_path / "dst", {})
    tree = tree_of(source, destination)
    job = Job(Options(jobs=2), (tree,), "00000000", 0o022, stop=of_this_process())
    begun = run(job, [Entries(0, "", ("big",), True, True, 1.0)], 0.0).leftover
    assert len(list(destination.glob(".pcopy-*"))) == 1

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(DO, Entries, end)
    with pytest.raises(KeyboardInterrupt):
        run(job, [*begun, Entries(0, "", ("other",), True, True, 1.0)], 0.0)
    assert len(list(destination.glob(".pcopy-*"))) == 1
    while begun != [seal := begun[0]]:
        begun = run(job, begun, 0.0).leftover
    complete = pcopy.large.complete
    monkeypatch.setattr(pcopy.large, "complete", end)
    with pytest.raises(KeyboardInterrupt):
        run(job, [seal], 0.0)
    monkeypatch.setattr(pcopy.large, "complete", complete)
    assert run(job, [seal], 1.0).failures == []
    assert read_tree(destination).keys() == read_tree(source).keys()


# ---- executors that break ----


class Fragile(InPlace):
    """Breaks at its second call, in a given way."""

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls += 1
        if self.calls > 1:
            raise self.error
        return super().submit(fn, *args, **kwargs)


class Attempts:
    """An engine that gives these executors one after the other; an exception is raised in place of one."""

    def __init__(self, *attempts: Executor | Exception) -> None:
        self.attempts = iter(attempts)

    @contextlib.contextmanager
    def open(self) -> Iterator[Executor]:
        attempt = next(self.attempts)
        if isinstance(attempt, Exception):
            raise attempt
        yield attempt


def coordinated(top: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Report:
    monkeypatch.setattr("pcopy.coordinator.FIRST", 0.0)
    monkeypatch.setattr("pcopy.coordinator.LONG", 0.0)
    monkeypatch.setattr("pcopy.coordinator.SHORT", 0.0)
    monkeypatch.setattr("pcopy.drive.PAUSE", 0.0)
    make_tree(top / "src", {f"d{number}": Dir({"f": str(number)}) for number in range(20)})
    monkeypatch.setattr("pcopy.drive.engine_for", lambda jobs, start_method: engine)
    return copy(top / "src", top / "dst", jobs=2)


@pytest.mark.parametrize(
    "error",
    [BrokenExecutor(), RuntimeError("after shutdown"), EOFError(), ConnectionRefusedError(), BrokenPipeError()],
    ids=repr,
)
def test_an_executor_that_breaks_when_it_is_given_something_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    report = coordinated(tmp_path, Attempts(Fragile(error), Fragile(error), InPlace()), monkeypatch)
    assert report.ok, report.errors
    assert len(report.warnings) == 1
    assert read_tree(tmp_path / "dst") == read_tree(tmp_path / "src")


def test_a_start_that_fails_for_a_while_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = [NotStarted("no room")] * (STARTS - 1)
    engine = Attempts(*fails, Fragile(BrokenExecutor()), *fails, InPlace())
    report = coordinated(tmp_path, engine, monkeypatch)
    assert report.ok, report.errors
    assert read_tree(tmp_path / "dst") == read_tree(tmp_path / "src")


def test_starts_that_fail_in_a_row_end_the_run_and_blame_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = coordinated(tmp_path, Attempts(*[NotStarted("no room")] * STARTS), monkeypatch)
    (failure,) = report.errors
    assert failure.reason == "workers cannot be started: no room; run with -j 1"
    assert (report.exit_status, report.failed) == (3, 0)


# ---- what passes between processes ----

ODD = ["plain", "with\nnewline", "\udcff\udc80 not utf-8", "ü"]
MESSAGES: list[object] = [
    *(scan(name) for name in ODD),
    *(entries(name, *ODD) for name in ODD),
    Entries(1, "p", ("a",), False, True, 0.5, "renamed", (INODE,), 2),
    Span(large(first_of=(INODE,)), 5, 9),
    Seal(large(), discard=True),
    Link(0, "p", ("n",), "m", (INODE,), (0, "q"), ("f",), 0.25),
    finish("p", last=True),
    Job(Options(jobs=3), (Tree("s", "d", INODE, None, 1),), "0123abcd", 0o077),
    Outcome(),
    Outcome(
        tally=Tally(found=3, files=2, bytes=9),
        failures=[Failure("p\udcff", "read", 5, "Input/output error", fatal=True)],
        warnings=["w"],
        lost={"owner": 2},
        events=[Event("copied", "p", "new", 3)],
        leftover=[scan(), Span(large(), 0, 1)],
        shared=[shared("a")],
        ruined={large_group(large())},
        share=0.5,
        current="x",
        seconds=0.1,
    ),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_passes_between_processes_survives_it(message: object) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(message, protocol))
        if isinstance(message, Outcome):
            assert asdict(again) == asdict(message)
        else:
            assert again == message
        assert type(again) is type(message)


# ---- real slices ----

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
FILES = st.one_of(
    st.builds(File, st.binary(max_size=50), st.sampled_from([0o644, 0o600, 0o755])),
    st.builds(Symlink, st.sampled_from(["nowhere", ".", "../x"])),
)
TREES = st.recursive(
    st.dictionaries(NAMES, FILES, max_size=5),
    lambda below: st.dictionaries(NAMES, st.one_of(FILES, below.map(lambda one: Dir(dict(one)))), max_size=4),
    max_leaves=12,
)
LENGTHS = st.sampled_from([0.0, 0.0, 0.0001, 0.001, 1.0])


def sliced(top: Path, jobs: int, seconds: Callable[[], float]) -> Report:
    """Copy top/src to top/dst through a coordinator's decisions, each slice run here, one after the other."""
    source, destination = top / "src", top / "dst"
    destination.mkdir()
    tree = tree_of(source, destination)
    coordinator = Coordinator(Job(Options(jobs=jobs), (tree,), "00000000", 0o022), Report(jobs=jobs), Observer(), Stop())
    coordinator.add([Scan(0, "", True, 1.0)])
    coordinator.report.found = 1
    for _ in range(10_000):
        units = take(coordinator, 0)
        if not units:
            break
        coordinator.absorb(units, run(coordinator.job, units, seconds()))
    assert not coordinator.has_work, "slices make no progress"
    assert nothing_is_held(coordinator)
    coordinator.report.reconcile(str(destination))
    return coordinator.report


@settings(max_examples=60, deadline=None)
@given(TREES, st.integers(1, 3), st.lists(LENGTHS, min_size=1, max_size=6))
def test_slices_of_any_length_make_an_equal_tree(tree: dict[str, object], jobs: int, lengths: list[float]) -> None:
    turns = itertools.cycle(lengths)
    with tempfile.TemporaryDirectory() as where:
        source = make_tree(Path(where) / "src", tree)
        if isinstance(tree.get("a"), File):
            os.link(source / "a", source / "another name of a")
        report = sliced(Path(where), jobs, lambda: next(turns))
        assert report.ok, report.errors
        assert read_tree(Path(where) / "dst") == read_tree(source)


def test_a_slice_without_time_still_makes_progress(tmp_path: Path) -> None:
    """Whatever the load of the machine, and however slow the storage, each slice does something."""
    entries: dict[str, object] = {f"f{number}": str(number) for number in range(20)}
    entries |= {"d": Dir({"e": Dir({"x": "y"})}), "h": Hard("f1"), "big": Holes(41 * MIB, {0: b"a", 40 * MIB: b"z"})}
    source = make_tree(tmp_path / "src", entries)
    report = sliced(tmp_path, 2, lambda: 0.0)
    assert report.ok, report.errors
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_a_directory_waits_for_names_that_came_back_with_it() -> None:
    """A slice that gives back a directory to be finished and, with it, a name in it that has to be linked."""
    coordinator = a_coordinator(1, [entries("d", "a")])
    taken = take(coordinator, 0)
    coordinator.absorb(taken, Outcome(leftover=[finish("d")], shared=[shared("a", "d")]))
    first = take(coordinator, 0)
    assert [type(unit) for unit in first] == [Entries]
    done(coordinator, first)
    assert take(coordinator, 0) == [finish("d")]
