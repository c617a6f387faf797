"""Names of inodes that have several, many in a directory: what is made of them in a row, and what is not like the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pcopy
from pcopy.inodes import Inodes
from pcopy.links import Linker
from pcopy.options import Options
from pcopy.outcome import Outcome
from pcopy.work import Job, Shared, Tree
from pcopy.work import Link as LinkUnit
from pcopy.worker import run
from tests.trees import Dir, Hard, Link, make_tree, read_tree

COUNT = 10


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """A source of a<n> and b<n>, names of one inode each, and a copy that has the first of them."""
    firsts: dict[str | bytes, object] = {f"a{number}": f"text {number}" for number in range(COUNT)}
    seconds: dict[str | bytes, object] = {f"b{number}": Hard(f"a{number}") for number in range(COUNT)}
    return make_tree(tmp_path / "src", firsts | seconds), make_tree(tmp_path / "dst", firsts)


def link(source: Path, copy: Path, fresh: bool = True, seconds: float = 10.0) -> Outcome:
    """What a slice makes of the unit of all second names."""
    states = [(path.stat().st_dev, path.stat().st_ino) for path in (source, copy)]
    job = Job(Options(), (Tree(str(source), str(copy), states[0], states[1]),), "0123abcd", 0o022)
    inodes = tuple((0, number) for number in range(COUNT))
    return run(job, [LinkUnit(0, "", names("b"), None, inodes, (0, ""), names("a"), 1.0, fresh=fresh)], seconds)


def names(letter: str) -> tuple[str, ...]:
    return tuple(f"{letter}{number}" for number in range(COUNT))


def linked(copy: Path) -> list[int]:
    """The numbers of second names that are links to the first ones."""
    inode_of = {name: (copy / name).stat().st_ino for name in os.listdir(copy)}
    return [number for number in range(COUNT) if inode_of.get(f"b{number}", 0) == inode_of.get(f"a{number}")]


def test_names_of_a_directory_become_links_in_a_row(trees: tuple[Path, Path]) -> None:
    outcome = link(*trees)
    assert (outcome.tally.hardlinks, outcome.failures, outcome.leftover) == (COUNT, [], [])
    assert linked(trees[1]) == list(range(COUNT))
    assert outcome.share == pytest.approx(1)


def test_what_is_unlike_the_others_is_no_link_and_the_others_are(trees: tuple[Path, Path]) -> None:
    """A first copy that another program replaced, one that is gone, a name that vanished, and one that is in the way."""
    source, copy = trees
    for number, text in ((1, "another file"), (2, "text 2")):
        (copy / f"a{number}").unlink()
        (copy / f"a{number}").write_text(text)  # its time is another
    (copy / "a3").unlink()
    (source / "b5").unlink()
    (copy / "b7").write_text("theirs")
    outcome = link(source, copy)
    tally = outcome.tally
    assert (tally.hardlinks, tally.files, tally.vanished, tally.failed) == (COUNT - 5, 3, 1, 1)
    assert [failure.path for failure in outcome.failures] == [str(source / "b7")]
    assert linked(copy) == [0, 4, 6, 8, 9]
    assert [(copy / f"b{number}").read_text() for number in (1, 2, 3, 7)] == ["text 1", "text 2", "text 3", "theirs"]
    assert not (copy / "b5").exists()
    assert outcome.share == pytest.approx(1)


def test_a_fault_at_one_name_takes_no_other_with_it(trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, copy = trees
    (copy / "b4").write_text("theirs")  # so that it is looked at by itself

    def fail(*_: object) -> None:
        raise RuntimeError("a fault in pcopy")

    monkeypatch.setattr(Linker, "link", fail)
    outcome = link(source, copy)
    assert (outcome.tally.hardlinks, outcome.tally.failed) == (COUNT - 1, 1)
    assert [failure.path for failure in outcome.failures] == [str(source / "b4")]
    assert linked(copy) == [number for number in range(COUNT) if number != 4]


@pytest.mark.parametrize("seconds", [10.0, 0.0])
def test_a_row_ends_with_the_time_and_what_is_left_is_the_rest(trees: tuple[Path, Path], seconds: float) -> None:
    source, copy = trees
    outcome = link(source, copy, seconds=seconds)
    done = COUNT if seconds else 1
    assert linked(copy) == list(range(done))
    assert outcome.tally.hardlinks == done
    assert outcome.share == pytest.approx(done / COUNT)
    for rest in outcome.leftover:
        assert isinstance(rest, LinkUnit)
        assert (rest.names, rest.firsts) == (names("b")[1:], names("a")[1:])
        assert len(rest.inodes) == COUNT - 1
        assert rest.share == pytest.approx(1 - outcome.share)
    assert len(outcome.leftover) == (0 if seconds else 1)


def test_links_that_are_there_are_unchanged_and_what_is_no_link_becomes_one(trees: tuple[Path, Path]) -> None:
    """Files of their own, of another inode, or none at all; and a first copy that is not what it was."""
    source, copy = trees
    assert link(source, copy).tally.hardlinks == COUNT
    assert link(source, copy, fresh=False).tally.unchanged == COUNT
    own = (copy / "b2").read_bytes()
    (copy / "b2").unlink()
    (copy / "b2").write_bytes(own)
    (copy / "b4").unlink()
    os.link(copy / "a5", copy / "b4")
    (copy / "b6").unlink()
    (copy / "a8").write_text("longer than it was")
    outcome = link(source, copy, fresh=False)
    tally = outcome.tally
    assert (tally.unchanged, tally.hardlinks, tally.files, tally.failed) == (COUNT - 4, 3, 1, 0)
    assert linked(copy) == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert [(copy / f"b{number}").read_text() for number in (2, 4, 6, 8)] == ["text 2", "text 4", "text 6", "text 8"]


@pytest.mark.parametrize("jobs", [1, 3])
def test_all_names_of_many_inodes_in_and_across_directories(tmp_path: Path, jobs: int) -> None:
    entries: dict[str | bytes, object] = {f"a{number}": f"text {number}" for number in range(300)}
    entries["d"] = Dir({"link": Link("../a1"), **{f"b{number}": Hard(f"a{number}") for number in range(300)}})
    entries["e"] = Dir({"f": Dir({f"c{number}": Hard(f"a{number}") for number in range(0, 300, 2)})})
    entries |= {f"z{number}": Hard(f"a{number}") for number in range(0, 300, 3)}
    source = make_tree(tmp_path / "src", entries)
    for expected in ((300, 550, 1, 0), (0, 0, 0, 851)):
        report = pcopy.copy([source], tmp_path / "dst", jobs=jobs)
        assert (report.files, report.hardlinks, report.symlinks, report.unchanged) == expected
        assert read_tree(tmp_path / "dst") == read_tree(source)


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_rerun_finds_names_that_are_links_no_more_and_such_as_became_links(tmp_path: Path, jobs: int) -> None:
    """Where all names of an inode are unchanged nothing is done; where one is not, what a first run would."""
    firsts: dict[str | bytes, object] = {f"a{number}": f"text {number}" for number in range(60)}
    entries = {**firsts, "d": Dir({f"b{number}": Hard(f"a{number}") for number in range(60)})}
    source, copy = make_tree(tmp_path / "src", entries), tmp_path / "dst"
    pcopy.copy([source], copy, jobs=jobs)
    for name in ("a3", "d/b4"):  # of its own now, with the same text
        text = (copy / name).read_bytes()
        times = (copy / name).stat()
        (copy / name).unlink()
        (copy / name).write_bytes(text)
        os.utime(copy / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    (source / "a5").write_text("longer than it was")
    os.setxattr(source / "a7", "user.new", b"1")
    (source / "d/b9").unlink()
    os.link(source / "a10", source / "c10")
    report = pcopy.copy([source], copy, jobs=jobs, delete=True)
    assert read_tree(copy) == read_tree(source)
    # a3 or d/b3, and a4 or d/b4, c10; a5 and a7 are copied, and their other names are links to that
    assert (report.files, report.hardlinks, report.deleted, report.failed) == (2, 5, 1, 0)
    assert report.unchanged == 120 - 7
    assert pcopy.copy([source], copy, jobs=jobs).unchanged == 120


@pytest.mark.parametrize("spoiled", ["contents", "xattr", "mode"])
def test_what_is_not_unchanged_under_one_name_is_not_left_as_it_is(tmp_path: Path, spoiled: str) -> None:
    """The names of an inode lead to two files in the copy, one of which is not what it should be."""
    source = make_tree(tmp_path / "src", {"a": b"text", "b": Hard("a"), "c": Hard("a")})
    pcopy.copy([source], tmp_path / "dst")
    other = tmp_path / "dst/b"
    times = other.stat()
    other.unlink()
    other.write_bytes(b"TEXT" if spoiled == "contents" else b"text")
    if spoiled == "xattr":
        os.setxattr(other, "user.theirs", b"1")
    other.chmod(0o600 if spoiled == "mode" else 0o644)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    report = pcopy.copy([source], tmp_path / "dst")
    assert (report.unchanged, report.hardlinks) == (2, 1)
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_where_links_are_followed_no_name_is_chosen_before_all_are_known() -> None:
    """An inode has more names then than it says: who is found first would be a matter of chance."""
    inode = (1, 2)
    inodes = Inodes(Job(Options(dereference=True), (Tree("/src", "/dst", (1, 1), None),), "0123abcd", 0o022))

    def found(path: str) -> Shared:
        return Shared(0, path, ("x", "y"), None, True, True, (inode, inode), (2, 2), (None, None), 0.1)

    inodes.gather(found("z"))
    assert inodes.decided([inode], complete=False).units == []
    inodes.gather(found("a"))
    (unit,) = inodes.decided([inode], complete=True).units
    assert unit.path == "a"
    assert [name.place for name in inodes.waiting[inode][1]] == [(0, "z", "x"), (0, "z", "y"), (0, "a", "y")]
