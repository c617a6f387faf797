"""Directories that are done at once: what comes of them is what comes of the general way, which runs that tell of it take."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pcopy as library
from pcopy.directory import Directories
from pcopy.entry import Copier
from pcopy.options import Options
from pcopy.work import Entries, Job, Scan, Tree
from pcopy.worker import run
from tests.comparer import differences
from tests.strace import lines_of, strace
from tests.test_destination import unprivileged
from tests.test_dry_run import COUNTS, JOBS, OVERWRITE, Hears, some_tree
from tests.trees import WHEN, Dir, Fifo, File, Hard, Link, make_tree, read_tree

KINDS = ["file", "file", "link", "dir", "full", "pipe", "none", "hard"]
FILTERS = ["n3", "!d1/n3", "n4/", "x", "!n5/x"]


def same(source: Path, told: Path, silent: Path, options: dict[str, Any]) -> library.Report:
    """Run twice, once told of each entry and once not, over copies that are the same. Gives the report of the second."""
    one = library.copy(source, told, verbose=True, observer=Hears(), **options)
    other = library.copy(source, silent, **options)
    assert {name: getattr(one, name) for name in COUNTS} == {name: getattr(other, name) for name in COUNTS}
    assert sorted(map(str, one.errors)) == sorted(str(error).replace(str(silent), str(told)) for error in other.errors)
    assert read_tree(told) == read_tree(silent)
    return other


@JOBS
@pytest.mark.parametrize("seed", range(12))
def test_who_is_told_nothing_gets_the_same(tmp_path: Path, jobs: int, seed: int) -> None:
    """Random trees, new, over random older copies, and once more, with whatever makes a directory special."""
    draw = random.Random(seed)
    source = make_tree(tmp_path / "src", some_tree(draw, KINDS))
    older = some_tree(draw, KINDS)
    if seed < 2:
        time.sleep(2.1)  # what was changed shortly before it was copied is looked at in full by reruns
    options = {"jobs": jobs, "overwrite": OVERWRITE[seed % 4], "delete": seed % 3 == 1, "filters": FILTERS if seed % 2 else ()}
    for number, before in enumerate([older, {}]):
        told, silent = copies = [make_tree(tmp_path / f"{name}{number}", before) for name in ("told", "silent")]
        same(source, told, silent, options)
        same(source, told, silent, options)
        for path in [source / "d1", *(copy / "d2" for copy in copies)]:
            (path / "later").write_text("1")
            os.utime(path / "later", (0, 0))
        os.utime(source / "d0", (0, 0))
        same(source, told, silent, options)


@JOBS
def test_what_makes_a_directory_special_is_kept(tmp_path: Path, jobs: int) -> None:
    special: dict[str | bytes, object] = {
        "acl": Dir({"f": "1"}, xattrs={"user.a": b"1"}),
        "setgid": Dir({"d": Dir({"f": "1"})}, mode=0o2775),
        "sticky": Dir({"f": "1"}, mode=0o1777),
        "shut": Dir({"f": "1", "d": Dir({"f": "1"})}, mode=0o500),
        "blind": Dir({"f": "1"}, mode=0o300),
        "dark": Dir({"f": "1"}, mode=0o000),
        "old": Dir({"f": "1"}, mtime_ns=-1),
        "far": Dir({"f": "1"}, mtime_ns=2**33 * 10**9),
        "empty": Dir(),
        "mixed": Dir({"f": "1", "l": Link("f"), "p": Fifo(), "h": Hard("a/b/acl/f"), "x": File(b"1", xattrs={"user.a": b"1"})}),
    }  # fmt: skip
    if os.geteuid():
        del special["dark"], special["blind"]
    source = make_tree(tmp_path / "src", {"a": Dir({"b": Dir(special)})})
    for word in ("copied", "unchanged"):
        report = library.copy(source, tmp_path / "dst", jobs=jobs)
        assert report.ok, word
        assert not differences(source, tmp_path / "dst")
    assert report.files == 0


CHANGES: dict[str, Callable[[Path], None]] = {
    "mode": lambda path: path.chmod(0o711),
    "special bits": lambda path: path.chmod(0o2755),
    "owner": lambda path: os.chown(path, 12, -1),
    "group": lambda path: os.chown(path, -1, 12),
    "xattr": lambda path: os.setxattr(path, "user.a", b"1"),
    "xattr's value": lambda path: os.setxattr(path, "user.b", b"2"),
    "xattr gone": lambda path: os.removexattr(path, "user.b"),
    "times": lambda path: os.utime(path, ns=(WHEN, WHEN + 1)),
    "access time": lambda path: os.utime(path, ns=(WHEN + 1, WHEN)),
    "name": lambda path: os.rename(path / "d", path / "e"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("where", ["src", "dst"])
def test_what_differs_in_a_directory_is_mended(tmp_path: Path, change: str, where: str) -> None:
    if os.geteuid() and change in ("owner", "group"):
        pytest.skip("needs root")
    source = make_tree(tmp_path / "src", {"a": Dir({"b": Dir({"d": Dir()}, xattrs={"user.b": b"1"})})})
    library.copy(source, tmp_path / "dst", jobs=1)
    CHANGES[change](tmp_path / where / "a/b")
    assert library.copy(source, tmp_path / "dst", jobs=1, delete=True).ok
    assert (source / "a/b").stat().st_atime_ns == (tmp_path / "dst/a/b").stat().st_atime_ns
    assert not differences(source, tmp_path / "dst")


MAKERS: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_bytes(b"1"),
    "a directory": lambda path: path.mkdir(),
    "a link": lambda path: path.symlink_to("elsewhere"),
    "a fifo": os.mkfifo,
    "nothing": lambda path: None,
}


@JOBS
@pytest.mark.parametrize("beside", [{}, {"d": Dir()}], ids=["files alone", "beside a directory"])
@pytest.mark.parametrize("there", MAKERS)
@pytest.mark.parametrize("kind", MAKERS)
def test_kinds_are_compared_where_names_and_times_are_the_same(
    tmp_path: Path, jobs: int, kind: str, there: str, beside: dict[str | bytes, object]
) -> None:
    source = make_tree(tmp_path / "src", {"a": Dir({"b": Dir({"f": "1", **beside})})})
    MAKERS[kind](source / "a/b/x")
    library.copy(source, tmp_path / "dst", jobs=1)
    place, above = tmp_path / "dst/a/b/x", tmp_path / "dst/a/b"
    if kind == "a directory":
        place.rmdir()
    else:
        place.unlink(missing_ok=True)
    MAKERS[there](place)
    os.utime(above, ns=((source / "a/b").stat().st_atime_ns, (source / "a/b").stat().st_mtime_ns))
    assert library.copy(source, tmp_path / "dst", jobs=jobs, delete=True).ok
    assert not differences(source, tmp_path / "dst")


@pytest.mark.parametrize("xattrs", [{}, {"user.label": b"1", "user.note": b"2"}], ids=["bare", "labelled"])
def test_plain_directories_take_no_other_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xattrs: dict[str, bytes]) -> None:
    """That it is the quick way cannot be seen in a copy."""
    scanned: list[str] = []
    copied: list[str] = []
    scan, copy = Directories.scan, Copier.copy

    def noted(self: Directories, unit: Any) -> object:
        scanned.append(unit.path)
        return scan(self, unit)

    def noted_copy(self: Copier, pair: Any, name: str, *more: Any) -> object:
        copied.append(name)
        return copy(self, pair, name, *more)

    monkeypatch.setattr(Directories, "scan", noted)
    monkeypatch.setattr(Copier, "copy", noted_copy)
    file = File(b"2", xattrs=xattrs)
    tree = {
        f"d{one}": Dir({"f": file, "e": Dir({f"f{two}": file for two in range(200)}, xattrs=xattrs)}, xattrs=xattrs)
        for one in range(20)
    }
    source = make_tree(tmp_path / "src", tree)
    assert library.copy(source, tmp_path / "dst", jobs=1).files == 20 * 201
    copied.clear()  # those that are young
    assert library.copy(source, tmp_path / "dst", jobs=1).unchanged == 20 * 201
    assert scanned == ["", ""]
    assert library.copy(source, tmp_path / "day2", jobs=1, link_dest=tmp_path / "dst").hardlinks == 20 * 201
    assert library.copy(source, tmp_path / "dst", jobs=1).unchanged == 20 * 201, "with two names each"
    assert len(copied) < 80, "more than the one with which a slice ends"


@JOBS
@pytest.mark.parametrize("spare", [0, 1])
def test_directories_that_go_are_counted_to_the_last_entry(tmp_path: Path, jobs: int, spare: int) -> None:
    tree = {f"d{one}": Dir({"f": "1", "e": Dir({f"f{two}": "2" for two in range(40)})}) for one in range(20)}
    source, copy = make_tree(tmp_path / "src", {"kept": "1"}), make_tree(tmp_path / "dst", tree)
    entries = 20 * 43
    report = library.copy(source, copy, jobs=jobs, delete=True, max_delete=entries - spare)
    assert (report.deleted, report.exit_status) == ((0, 3) if spare else (entries, 0))
    assert len(read_tree(copy)) == (1 + entries if spare else 2)


def test_copies_that_cannot_be_opened_take_no_handles(unlocked: Path) -> None:
    """They are made accessible, however many there are."""
    source = make_tree(unlocked / "src", {f"d{one}": Dir({"f": "1"}) for one in range(200)})
    make_tree(unlocked / "dst", {f"d{one}": Dir({"f": "1"}, mode=0) for one in range(200)})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (90, hard))
    try:
        done = unprivileged("-j", 1, source, unlocked / "dst")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert done.returncode == 0, done.stderr
    assert "200 unchanged" in done.stderr


def test_files_with_names_elsewhere_are_copied_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As are those of an environment of packages that has links to a cache: what they are is found out once, not one by one."""
    singly: list[str] = []
    copy = Copier.copy

    def noted(self: Copier, pair: Any, name: str, *more: Any) -> object:
        singly.append(name)
        return copy(self, pair, name, *more)

    source = make_tree(tmp_path / "src", {f"d{one}": Dir({f"f{two}": "1" for two in range(200)}) for one in range(20)})
    subprocess.run(["cp", "-al", source, tmp_path / "elsewhere"], check=True)
    time.sleep(2.1)  # younger ones are copied one by one
    monkeypatch.setattr(Copier, "copy", noted)
    assert library.copy(source, tmp_path / "dst", jobs=1).files == 4000
    assert library.copy(source, tmp_path / "dst", jobs=1).unchanged == 4000
    os.setxattr(tmp_path / "dst/d3/f3", "user.a", b"1")
    assert library.copy(source, tmp_path / "dst", jobs=1).unchanged == 4000
    assert not differences(source, tmp_path / "dst")
    assert library.copy(source, tmp_path / "day2", jobs=1, link_dest=tmp_path / "dst").hardlinks == 4000
    assert len(singly) < 400
    assert not differences(source, tmp_path / "day2")


def test_a_further_name_of_a_copy_does_not_make_it_look_newer(tmp_path: Path) -> None:
    """A link changes the change time, which else says that a copy has the attributes that its source has."""
    source = make_tree(tmp_path / "src", {"a": Dir({"f": File(b"1", xattrs={"user.a": b"1"})})})
    copy, other = tmp_path / "dst", tmp_path / "other"
    library.copy(source, copy, jobs=1)
    os.removexattr(source / "a/f", "user.a")
    time.sleep(2.1)
    os.link(copy / "a/f", other)
    assert library.copy(source, copy, jobs=1).ok
    assert not differences(source, copy)
    assert os.listxattr(other) == ["user.a"]


def test_where_times_are_not_kept_those_of_a_directory_stay(tmp_path: Path) -> None:
    source, copy = (make_tree(tmp_path / name, {"a": Dir({"b": Dir()})}) for name in ("src", "dst"))
    os.utime(copy / "a/b", ns=(WHEN + 1, WHEN))
    assert library.copy(source, copy, jobs=1, preserve=["mode", "owner", "links", "xattr"]).ok
    assert (copy / "a/b").stat().st_atime_ns == WHEN + 1


def test_a_closed_directory_goes_and_the_working_directory_is_not_taken_for_it(
    unlocked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_tree(unlocked / "src", {"f": "1"})
    copy = make_tree(unlocked / "dst", {"f": "1", "gone": Dir({"a": "1", "b": "2"}, mode=0)})
    make_tree(unlocked, {"here": Dir({"a": "1"}, mode=0o100)})
    monkeypatch.chdir(unlocked / "here")
    done = unprivileged("-j", 1, "--delete", source, copy)
    assert done.returncode == 0, done.stderr
    assert "3 deleted" in done.stderr
    assert os.listdir(copy) == ["f"]


def test_what_is_refused_for_one_file_is_not_tried_for_each_directory(tmp_path: Path) -> None:
    """Where no mode can be set, a file that was made by the quick way is made again, but not one in each directory."""
    source = make_tree(tmp_path / "src", {f"d{one}": Dir({"a": "1", "b": "2"}) for one in range(40)})
    time.sleep(2.1)  # younger ones are made by the general way
    log = tmp_path / "log"
    trace = strace("-e", "trace=unlinkat,fchmod", "-e", "inject=fchmod:error=EPERM", log=log)
    subprocess.run([*trace, sys.executable, "-m", "pcopy", "-j", "1", source, tmp_path / "dst"], check=True)
    assert len([line for line in lines_of(log) if "unlinkat" in line]) < 20


@pytest.mark.parametrize("fresh", [True, False])
def test_files_for_which_there_was_no_time_are_no_odd_ones(tmp_path: Path, fresh: bool) -> None:
    """Where the storage is slow, most slices end within a directory: one that ends there leaves one unit of its files."""
    make_tree(tmp_path / "src", {"d": Dir({f"f{number}": b"1" for number in range(5)})})
    make_tree(tmp_path / "dst", {"d": Dir({})})
    if not fresh:
        assert library.copy(tmp_path / "src", tmp_path / "dst").ok
    inodes = [(state.st_dev, state.st_ino) for state in ((tmp_path / name).stat() for name in ("src", "dst"))]
    tree = Tree(str(tmp_path / "src"), str(tmp_path / "dst"), inodes[0], inodes[1])
    outcome = run(Job(Options(), (tree,), "0123abcd", 0o022), [Scan(0, "d", fresh, 1.0)], 0.0)
    _, rest = outcome.leftover
    assert isinstance(rest, Entries)
    assert rest.regular
    assert outcome.tally.files + outcome.tally.unchanged + len(rest.names) == 5
