"""The units that nobody holds: their order, who waits for whom, and what is counted of them."""

from __future__ import annotations

from pcopy.frontier import Frontier
from pcopy.work import Attributes, Entries, Finish, Scan

ATTRIBUTES = Attributes(0o755, 0, 0, 1, 2)


def scan(path: str) -> Scan:
    return Scan(0, path, True, 0.1)


def entries(path: str, *names: str) -> Entries:
    return Entries(0, path, names, True, True, 0.1)


def finish(path: str, last: bool = False) -> Finish:
    return Finish(0, path, ATTRIBUTES, last=last)


def test_the_last_that_comes_in_is_the_first_to_go_out() -> None:
    frontier = Frontier({})
    frontier.add([scan("a"), scan("b"), scan("c")])
    assert frontier.pop(2) == [scan("b"), scan("c")]
    assert frontier.pop(1) == [scan("a")]
    assert not frontier


def test_directories_that_are_read_ahead_come_back_below_all_else() -> None:
    frontier = Frontier({})
    frontier.add([*map(scan, "abcd"), entries("", "f")], ahead=True)
    assert frontier.pop_scans(2) == [scan("c"), scan("d")]
    assert frontier.left() == [entries("", "f"), scan("a"), scan("b")]
    frontier.join_scans()
    assert list(frontier.units) == [scan("a"), scan("b"), entries("", "f")]
    assert not frontier.scans


def test_a_directory_waits_for_all_that_is_in_it() -> None:
    frontier, here = Frontier({}), [entries("d", "a", "b"), entries("d", "c")]
    frontier.add([finish("d"), *here])
    frontier.add([finish("d")])
    assert frontier.left()[-1] == finish("d")
    assert frontier.names == 3
    first = frontier.pop(1)
    assert frontier.names == 2
    frontier.release(first)
    assert frontier.waiting
    frontier.release(frontier.pop(1))
    assert finish("d") in frontier.units
    assert not frontier.waiting and not frontier.holding


def test_names_of_a_unit_that_waited_count_when_its_time_comes() -> None:
    frontier, late = Frontier({}), entries("", "x")._replace(cleared=True)
    frontier.holding[late.after] = 1
    frontier.add([late])
    assert (frontier.names, list(frontier.units)) == (0, [])
    frontier.let_go(late.after, 1)
    assert (frontier.names, list(frontier.units)) == (1, [late])
    frontier.pop(1)
    assert frontier.names == 0


def test_who_is_watched_is_told_when_nobody_holds_it_any_more() -> None:
    inode = (1, 2)
    frontier, first = Frontier({inode: None}), entries("d", "a")._replace(first_of=(inode,))
    frontier.add([first, entries("d", "b")])
    frontier.release([entries("d", "b")])
    assert frontier.take_done() == []
    frontier.release([first])
    assert (frontier.take_done(), frontier.take_done()) == ([inode], [])


def test_what_is_last_comes_deepest_last() -> None:
    frontier = Frontier({})
    frontier.add([finish("a/b", last=True), finish("a", last=True), finish("a/b/c", last=True)])
    assert not frontier.units and frontier
    assert frontier.pop_last() == [finish("a"), finish("a/b"), finish("a/b/c")]
    assert not frontier
