"""Snapshots: what has not changed since an earlier copy becomes a hard link to it, and an earlier copy never changes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import pcopy
from tests.conftest import Run, as_root
from tests.strace import strace
from tests.test_fidelity import on_loop_device
from tests.trees import WHEN, Dir, Fifo, File, Hard, Link, State, make_tree, read_tree


def tree() -> dict[str | bytes, object]:
    return {
        "f": b"1", "g": b"2", "empty": b"", "x": File(b"3", xattrs={"user.a": b"1"}), "l": Link("f"), "p": Fifo(),
        "d": Dir({"h": b"4", "e": Dir({"i": b"5", b"\xff": b"6"})}), "one": b"7", "two": Hard("one"),
    }  # fmt: skip


def state_of(top: Path) -> dict[bytes, State]:
    """A tree, without the names that its inodes have elsewhere."""
    states = read_tree(top)
    return {path: replace(state, names=frozenset()) if len(state.names) == 1 else state for path, state in states.items()}


def shared(one: Path, two: Path) -> set[str]:
    """The regular files that two trees have in common as inodes."""
    return {
        os.path.relpath(path, one)
        for path in one.rglob("*")
        if path.is_file() and not path.is_symlink() and os.path.lexists(two / path.relative_to(one))
        if path.samefile(two / path.relative_to(one))
    }


def test_what_has_not_changed_becomes_a_link_to_the_earlier_copy(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", tree())
    pcopy.copy(source, tmp_path / "day1", jobs=jobs)
    (source / "g").write_bytes(b"new")
    (source / "more").write_bytes(b"more")
    plan = pcopy.copy(source, tmp_path / "day2", jobs=jobs, link_dest="../day1", dry_run=True)
    report = pcopy.copy(source, tmp_path / "day2", jobs=jobs, link_dest="../day1")
    assert (report.ok, report.files, report.bytes, report.hardlinks) == (True, 2, 7, 8), report.errors
    assert (plan.files, plan.hardlinks, plan.bytes) == (2, 8, 7)
    assert state_of(tmp_path / "day2") == state_of(source)
    assert shared(tmp_path / "day2", tmp_path / "day1") == {"f", "empty", "x", "d/h", "d/e/i", "d/e/\udcff", "one", "two"}
    again = pcopy.copy(source, tmp_path / "day2", jobs=jobs, link_dest="../day1")
    assert (again.files, again.hardlinks, again.failed) == (0, 0, 0)
    assert state_of(tmp_path / "day2") == state_of(source)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.chmod(0o600),
        lambda path: os.utime(path, ns=(WHEN, WHEN + 1)),
        lambda path: path.write_bytes(b"longer"),
        lambda path: os.setxattr(path, "user.new", b"1"),
        pytest.param(lambda path: os.chown(path, 1, 1), marks=as_root),
    ],
    ids=["mode", "time", "contents", "attribute", "owner"],
)
def test_what_has_changed_is_copied_and_the_earlier_copy_stays_as_it_was(tmp_path: Path, jobs: int, change: object) -> None:
    assert callable(change)
    source = make_tree(tmp_path / "src", {"f": b"1", "d": Dir({"f": b"1", "kept": b"2"})})
    pcopy.copy(source, tmp_path / "day1", jobs=jobs)
    before = state_of(tmp_path / "day1")
    for path in (source / "f", source / "d/f"):
        change(path)
    report = pcopy.copy(source, tmp_path / "day2", jobs=jobs, link_dest="../day1")
    assert (report.ok, report.files, report.hardlinks) == (True, 2, 1)
    assert state_of(tmp_path / "day2") == state_of(source)
    assert (state_of(tmp_path / "day1"), shared(tmp_path / "day1", tmp_path / "day2")) == (before, {"d/kept"})


def test_a_rerun_into_a_snapshot_changes_no_earlier_one(tmp_path: Path, jobs: int) -> None:
    """An attribute that changes is set on a file of its own, not on the inode that two days share."""
    source = make_tree(tmp_path / "src", tree())
    pcopy.copy(source, tmp_path / "day1", jobs=jobs)
    before = state_of(tmp_path / "day1")
    pcopy.copy(source, tmp_path / "day2", jobs=jobs, link_dest="../day1")
    (source / "f").chmod(0o600)
    os.setxattr(source / "d/h", "user.a", b"1")
    assert pcopy.copy(source, tmp_path / "day2", jobs=jobs, link_dest="../day1").ok
    assert (state_of(tmp_path / "day2"), state_of(tmp_path / "day1")) == (state_of(source), before)


def test_the_first_of_several_earlier_copies_that_has_it_is_taken(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"a": b"1", "b": b"2", "c": Dir({"d": b"3"})})
    make_tree(tmp_path / "one", {"a": b"1", "c": b"no directory"})
    make_tree(tmp_path / "two", {"a": b"1", "b": b"2", "c": Dir({"d": b"3"})})
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, link_dest=["../one", tmp_path / "two"])
    assert (report.ok, report.files, report.hardlinks) == (True, 0, 3)
    assert shared(tmp_path / "dst", tmp_path / "one") == {"a"}
    assert shared(tmp_path / "dst", tmp_path / "two") == {"b", "c/d"}


def test_several_sources_have_earlier_copies_by_their_names(tmp_path: Path, jobs: int) -> None:
    both = make_tree(tmp_path / "src", {"a": Dir({"f": b"1"}), "b": Dir({"f": b"2"}), "c": b"3"})
    sources = [both / "a", both / "b", both / "c"]
    pcopy.copy(sources, tmp_path / "day1", jobs=jobs)
    report = pcopy.copy(sources, tmp_path / "day2", jobs=jobs, link_dest="../day1")
    assert (report.ok, report.files, report.hardlinks) == (True, 0, 3)
    assert shared(tmp_path / "day2", tmp_path / "day1") == {"a/f", "b/f", "c"}


def test_links_planted_in_an_earlier_copy_are_not_followed(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir({"f": b"1"}), "g": b"1"})
    outside = make_tree(tmp_path / "outside", {"f": b"1", "g": b"1"})
    make_tree(tmp_path / "day1", {"d": Link("../outside"), "g": Link("../outside/g")})
    report = pcopy.copy(source, tmp_path / "day2", jobs=jobs, link_dest="../day1")
    assert (report.ok, report.files, report.hardlinks) == (True, 2, 0)
    assert (outside / "f").stat().st_nlink == (outside / "g").stat().st_nlink == 1


def test_a_file_with_too_many_names_is_copied_and_that_is_said_once(tmp_path: Path, pcopy: Run) -> None:
    """EMLINK from the second on, by strace: a file system with few links a file would take 65,000 of them."""
    source = make_tree(tmp_path / "src", {f"f{number}": b"1" for number in range(5)})
    pcopy(source, tmp_path / "day1")
    traced = strace("-e", "trace=linkat", "-e", "inject=linkat:error=EMLINK:when=2+")
    words = [sys.executable, "-m", "pcopy", "-j", "1", "--link-dest", "../day1", source, tmp_path / "day2"]
    done = subprocess.run([*traced, *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    said, last = done.stderr.splitlines()
    assert said == "pcopy: links to earlier copies: could not be preserved on 4 of the copies"
    assert last.startswith("copied 4 files")
    assert state_of(tmp_path / "day2") == state_of(source)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("../nothing", "relative to the destination): No such file or directory"),
        ("../src/f", "is not a directory"),
        ("../dst", "is the destination itself"),
        ("/proc", "is on another file system"),
    ],
)
def test_what_cannot_be_linked_to_is_refused(tmp_path: Path, pcopy: Run, given: str, says: str) -> None:
    source, dst = make_tree(tmp_path / "src", {"f": b"1"}), make_tree(tmp_path / "dst", {})
    done = pcopy("--link-dest", given, source, dst)
    assert (done.returncode, says in done.stderr, os.listdir(dst)) == (2, True, []), done.stderr


@pytest.mark.parametrize(
    ("given", "words", "says"),
    [
        ("../src", [], "whose own files would be the copy"),
        ("../src/d", [], "whose own files would be the copy"),
        ("old", ["--delete"], "lies in the destination"),
        ("old/d", ["--delete"], "lies in the destination"),
    ],
)
def test_an_earlier_copy_that_could_not_stay_what_it_is_is_refused(
    tmp_path: Path, pcopy: Run, given: str, words: list[str], says: str
) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1", "d": Dir({"g": b"2"})})
    dst = make_tree(tmp_path / "dst", {"old": Dir({"f": b"1", "d": Dir({"g": b"2"})})})
    before = read_tree(tmp_path)
    done = pcopy(*words, "--link-dest", given, source, dst)
    assert (done.returncode, says in done.stderr, read_tree(tmp_path) == before) == (2, True, True), done.stderr


@as_root
def test_blocks_shared_with_an_earlier_copy_are_verified_too(tmp_path: Path, pcopy: Run) -> None:
    """A large file, of which the copy is made from the earlier one and not from the source."""
    with on_loop_device("btrfs", tmp_path / "disk") as disk:
        source = make_tree(tmp_path / "src", {"large": os.urandom(34 << 20), "f": b"1"})
        assert pcopy(source, disk / "day1").returncode == 0
        done = pcopy("--verify", "--reflink", "always", "--link-dest", "../day1", source, disk / "day2")
        assert done.returncode == 0, done.stderr
        assert (disk / "day2/large").read_bytes() == (source / "large").read_bytes()
        assert not (disk / "day2/large").samefile(disk / "day1/large")


@as_root
def test_blocks_shared_with_an_earlier_copy_take_the_place_of_what_is_there(tmp_path: Path, pcopy: Run) -> None:
    with on_loop_device("btrfs", tmp_path / "disk") as disk:
        source = make_tree(tmp_path / "src", {"f": b"1"})
        assert pcopy(source, disk / "day1").returncode == 0
        make_tree(disk / "day2", {"f": b"other"})
        done = pcopy("--reflink", "always", "--link-dest", "../day1", source, disk / "day2")
        assert done.returncode == 0, done.stderr
        assert read_tree(disk / "day2") == read_tree(source)
