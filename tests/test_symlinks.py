"""Symbolic links by a few calls each: what that way is for, and what it leaves to the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import pcopy as library
from pcopy.entry import Copier
from tests.comparer import differences
from tests.conftest import Run, as_root
from tests.strace import lines_of, strace
from tests.trees import Dir, Fifo, Hard, Link, make_tree

MANY = 40


def links(count: int = MANY) -> dict[str | bytes, object]:
    return {f"l{number}": Link(f"../elsewhere/{number}") for number in range(count)}


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are copied in the other way."""
    names: list[str] = []
    copy = Copier.copy

    def noted(self: Copier, pair: Any, name: str, *more: Any) -> object:
        names.append(name)
        return copy(self, pair, name, *more)

    monkeypatch.setattr(Copier, "copy", noted)
    return names


def test_they_are_copied_and_compared(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {**links(), "d": Dir(links()), b"\xff": Link(b"\xfe\n"), "f": b"1"})
    report = library.copy(source, tmp_path / "dst", jobs=jobs)
    assert (report.ok, report.symlinks, report.files) == (True, 2 * MANY + 1, 1)
    assert not differences(source, tmp_path / "dst")
    report = library.copy(source, tmp_path / "dst", jobs=jobs)
    assert (report.ok, report.symlinks, report.unchanged) == (True, 0, 2 * MANY + 2)
    os.unlink(source / "l3")
    os.symlink("new", source / "l3")
    there = os.lstat(tmp_path / "dst/l3")
    os.utime(source / "l3", ns=(there.st_atime_ns, there.st_mtime_ns), follow_symlinks=False)
    os.utime(source / "d/l4", (10**9, 10**9), follow_symlinks=False)
    if not os.geteuid():
        os.chown(tmp_path / "dst/d/l5", 12, 34, follow_symlinks=False)
    report = library.copy(source, tmp_path / "dst", jobs=jobs)
    assert (report.ok, report.symlinks, report.unchanged) == (True, 1, 2 * MANY + 1)
    assert not differences(source, tmp_path / "dst")


def test_usual_ones_take_no_other_way(tmp_path: Path, one_by_one: list[str]) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir(links())})
    for _ in range(2):
        assert library.copy(source, tmp_path / "dst", jobs=1).ok
    for number in range(3):
        os.unlink(tmp_path / f"dst/d/l{number}")
    assert library.copy(source, tmp_path / "dst", jobs=1).symlinks == 3
    assert one_by_one == []


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_where_others_may_write_none_is_made_by_name(tmp_path: Path, one_by_one: list[str], mode: int) -> None:
    """They could put the name of somebody's file in the place of a link, and it would get that link's owner."""
    source = make_tree(tmp_path / "src", {"d": Dir(links(), mode=mode)})
    copy = make_tree(tmp_path / "dst", {"d": Dir(mode=mode)})
    (copy / "d/theirs").touch()  # so that the copy has another time, and is looked into
    assert library.copy(source, copy, jobs=1).symlinks == MANY
    assert sorted(one_by_one) == sorted(links())


@as_root
def test_in_the_directory_of_somebody_else_none_is_made_by_name(tmp_path: Path, one_by_one: list[str]) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir(links())})
    copy = make_tree(tmp_path / "dst", {"d": Dir(mode=0o755)})
    for path in (source / "d", copy / "d"):
        os.chown(path, 12, 12)
    (copy / "d/theirs").touch()
    assert library.copy(source, copy, jobs=1).symlinks == MANY
    assert sorted(one_by_one) == sorted(links())


def test_one_or_two_are_made_by_their_handles(tmp_path: Path, one_by_one: list[str]) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir(links(2))})
    assert library.copy(source, tmp_path / "dst", jobs=1).symlinks == 2
    assert sorted(one_by_one) == sorted(links(2))


@as_root
@pytest.mark.parametrize("keep", ["", "owner", "times", "owner,times"])
@pytest.mark.parametrize("verbose", [False, True])
def test_owners_and_times_are_kept_if_asked_for(tmp_path: Path, keep: str, verbose: bool) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir(links(4))})
    for number in range(3):
        os.chown(source / f"d/l{number}", 12, number, follow_symlinks=False)
    copy = tmp_path / "dst"
    for _ in range(2):
        assert library.copy(source, copy, jobs=1, preserve={"mode", *keep.split(",")} - {""}, verbose=verbose).ok
        for number in range(4):
            one, other = os.lstat(source / f"d/l{number}"), os.lstat(copy / f"d/l{number}")
            assert ((one.st_uid, one.st_gid) == (other.st_uid, other.st_gid)) is ("owner" in keep or number == 3)
            assert (one.st_mtime_ns == other.st_mtime_ns) is ("times" in keep)


@as_root
def test_unusual_ones_are_as_faithful(tmp_path: Path, jobs: int) -> None:
    odd: dict[str | bytes, object] = {
        **links(4), "far": Link("x", mtime_ns=2**33 * 10**9), "old": Link("x", mtime_ns=-5), "again": Hard("d/l1"), "p": Fifo(),
    }  # fmt: skip
    source = make_tree(tmp_path / "src", {"d": Dir(odd), "e": Dir(links(4))})
    os.setxattr(source / "e/l2", "trusted.a", b"1", follow_symlinks=False)
    for symlinks in (9 + 2, 0):
        report = library.copy(source, tmp_path / "dst", jobs=jobs)
        assert (report.ok, report.symlinks + report.hardlinks) == (True, symlinks and 11)
        assert not differences(source, tmp_path / "dst")
    os.setxattr(tmp_path / "dst/e/l3", "trusted.b", b"1", follow_symlinks=False)
    os.setxattr(source / "e/l1", "trusted.c", b"1", follow_symlinks=False)
    assert library.copy(source, tmp_path / "dst", jobs=jobs).ok
    assert os.getxattr(tmp_path / "dst/e/l1", "trusted.c", follow_symlinks=False) == b"1"
    time.sleep(2.1)
    os.removexattr(tmp_path / "dst/e/l2", "trusted.a", follow_symlinks=False)  # as by a tool that leaves them out
    os.setxattr(tmp_path / "dst/e/l0", "trusted.d", b"1", follow_symlinks=False)
    assert library.copy(source, tmp_path / "dst", jobs=jobs).ok
    assert os.getxattr(tmp_path / "dst/e/l2", "trusted.a", follow_symlinks=False) == b"1"
    assert os.listxattr(tmp_path / "dst/e/l0", follow_symlinks=False) == []


@pytest.mark.parametrize("call, lost", [("utimensat", "times"), ("symlinkat", None), ("chown,fchownat", "owner")])
def test_what_is_refused_is_said_and_leaves_nothing(tmp_path: Path, call: str, lost: str | None) -> None:
    if os.geteuid() and lost == "owner":
        pytest.skip("needs root")
    source = make_tree(tmp_path / "src", {"d": Dir(links(5))})
    if not os.geteuid():
        for number in range(5):
            os.chown(source / f"d/l{number}", 12, 34, follow_symlinks=False)
    log = tmp_path / "log"
    words = strace("-e", f"trace={call}", "-e", f"inject={call}:error=EPERM", log=log)
    command = [*words, sys.executable, "-m", "pcopy", "-j", "1", "--json", str(source), str(tmp_path / "dst")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines_of(log)
    report = json.loads(done.stdout)
    if lost:
        assert (done.returncode, report["symlinks"]) == (0, 5), done.stderr
        assert f"{lost}: could not be preserved on " in done.stderr
    else:
        assert (done.returncode, report["failed"]) == (1, 5), done.stderr
        assert f"{source}/d/l0: make symbolic link: Operation not permitted" in done.stderr
        assert os.listdir(tmp_path / "dst/d") == []


def test_they_are_told_as_in_the_other_way(tmp_path: Path, pcopy: Run) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir(links(3))})
    lines = {f"copied {source}/d/l{number} (new)" for number in range(3)}
    assert lines <= {*pcopy("-v", source, tmp_path / "dst").stderr.splitlines()}
    assert {f"unchanged {source}/d/l{number}" for number in range(3)} <= {
        *pcopy("-v", source, tmp_path / "dst").stderr.splitlines()
    }
    for words in (["-L"], ["--atomic"], ["-n"], ["--overwrite", "never"], ["--overwrite", "always"], ["-c"]):
        done = pcopy("--json", *words, source, tmp_path / "-".join(["other", *words]))
        assert json.loads(done.stdout)["symlinks"] == (0 if words == ["-L"] else 3), (words, done.stderr)
