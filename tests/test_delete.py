"""What the source lacks goes from the copy: all of that, only that, and nothing of it when something is wrong."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pcopy
import pcopy as library
from pcopy import changes, engines, runs
from pcopy.directory import Directories
from pcopy.entry import Copier
from pcopy.limit import count_names, too_much
from pcopy.mounts import mount_or_device
from pcopy.options import Options
from pcopy.prepare import Place, prepare
from tests.conftest import SHARED, Run, as_root, compiled
from tests.strace import strace
from tests.test_destination import mounted, unprivileged, without_privilege
from tests.test_order import live_run
from tests.trees import WHEN, Dir, Fifo, File, Hard, Holes, Link, make_tree, read_tree

LARGE = 33 << 20  # bytes: such a file is copied in spans
SOURCE: dict[str | bytes, object] = {"f": b"1", "d": Dir({"g": b"2", "e": Dir({})}), "l": Link("f")}


def litter(depth: int = 3) -> dict[str | bytes, object]:
    """A tree of all kinds of entries, of which the source has none. Its entries: see :func:`count`."""
    below: dict[str | bytes, object] = (
        {f"sub{number}": Dir(litter(depth - 1), mode=0o500) for number in range(3)} if depth else {}
    )
    names: dict[str | bytes, object] = {f"file{number}": b"x" for number in range(5)}
    return {**names, **below, "link": Link("nowhere"), "out": Link("/"), "fifo": Fifo(), b"\xff\n": b"odd", "none": Dir({})}


def count(entries: dict[str | bytes, object]) -> int:
    return sum(1 + (count(dict(entry.entries)) if isinstance(entry, Dir) else 0) for entry in entries.values())


def test_what_the_source_lacks_is_deleted(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", SOURCE)
    make_tree(tmp_path / "dst", {**SOURCE, "x": Dir(litter()), "d": Dir({"g": b"2", "e": Dir(litter(1)), "more": b"3"})})
    extra = 1 + count(litter()) + count(litter(1)) + 1
    plan = pcopy.copy(source, tmp_path / "dst", jobs=jobs, delete=True, dry_run=True)
    assert (plan.ok, plan.deleted) == (True, extra)
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, delete=True)
    assert (report.ok, report.deleted, report.failed) == (True, extra, 0), report.errors
    assert read_tree(tmp_path / "dst") == read_tree(source)
    assert pcopy.copy(source, tmp_path / "dst", jobs=jobs, delete=True).deleted == 0


def test_without_the_option_nothing_is_deleted(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", SOURCE)
    make_tree(tmp_path / "dst", {"x": Dir({"y": b"1"})})
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs)
    assert (report.ok, report.deleted, (tmp_path / "dst/x/y").exists()) == (True, 0, True)


def test_every_deletion_is_named_in_both_runs(tmp_path: Path, pcopy: Run) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1"})
    dst = make_tree(tmp_path / "dst", {"f": b"1", "x": Dir({"y": b"2", "z": Dir({})})})
    planned = pcopy("-n", "-v", "--delete", source, dst)
    assert (dst / "x/y").exists()
    done = pcopy("-v", "--delete", source, dst)
    names = [f"{dst}/x/y", f"{dst}/x/z", f"{dst}/x"]
    assert sorted(line for line in planned.stderr.splitlines() if "delete " in line) == sorted(
        f"would delete {x}" for x in names
    )
    assert sorted(line for line in done.stderr.splitlines() if line.startswith("deleted ")) == sorted(
        f"deleted {x}" for x in names
    )
    assert "3 deleted" in planned.stderr.splitlines()[-1] and "3 deleted" in done.stderr.splitlines()[-1]


# ---- nothing is deleted ---------------------------------------------------------------------------------------------


def test_more_than_allowed_is_none(tmp_path: Path, pcopy: Run) -> None:
    source = make_tree(tmp_path / "src", {"new": b"1"})
    dst = make_tree(tmp_path / "dst", {f"x{number}": b"2" for number in range(5)})
    before = read_tree(dst)
    done = pcopy("--delete", "--max-delete", 4, source, dst)
    assert done.returncode == 3
    assert "would remove 5 entries, more than max-delete allows (4): nothing was done" in done.stderr
    assert read_tree(dst) == before
    assert pcopy("--delete", "--max-delete", 4, "-n", source, dst).returncode == 3
    done = pcopy("--delete", "--max-delete", 5, source, dst)
    assert (done.returncode, read_tree(dst)) == (0, read_tree(source))  # its times too


def after_the_plan(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    def late(place: Place, top: str, landings: Any, options: Options, *rest: Any) -> Any:
        if not options.dry_run:
            do()
        return prepare(place, top, landings, options, *rest)

    monkeypatch.setattr("pcopy.api.prepare", late)


@pytest.mark.parametrize("limit", [3, 30, 100])
def test_the_limit_holds_if_the_source_loses_entries_after_the_plan(
    tmp_path: Path, jobs: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a disk were unmounted in that moment: the run meets another tree than the one that was counted."""
    names: dict[str | bytes, object] = {**litter(1), "e": Dir({}), "names": Dir({f"{number:0200}": b"" for number in range(9)})}
    tree: dict[str | bytes, object] = {f"d{number}": Dir(names) for number in range(20)}
    make_tree(tmp_path, {"src": Dir({**tree, "new": b"1"}), "dst": Dir({**tree, "old": Dir({"x": b"", "y": b""})})})
    before = count({"dst": Dir(tree)})

    def lose() -> None:
        for number in range(1, 20):
            shutil.rmtree(tmp_path / f"src/d{number}")

    after_the_plan(monkeypatch, lose)
    report = pcopy.copy(tmp_path / "src", tmp_path / "dst", jobs=jobs, delete=True, max_delete=limit)
    assert report.exit_status == 3
    told = [(one.path, one.reason.partition(":")[0]) for one in report.errors]
    assert told == [(str(tmp_path / "dst"), f"by now more is to be deleted than max-delete allows ({limit})")]
    left = sum(len(names) + len(directories) for _, directories, names in os.walk(tmp_path / "dst"))
    assert before + 2 - limit <= left <= before + 3 and report.deleted <= limit
    assert read_tree(tmp_path / "dst/d0") == read_tree(tmp_path / "src/d0")


def test_a_directory_that_was_to_stay_is_not_removed_uncounted_if_it_becomes_empty(
    tmp_path: Path, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else removes what a filter hides in it, after it was listed."""
    tree: dict[str | bytes, object] = {f"d{number}": Dir({"x.o": b""}) for number in range(10)}
    make_tree(tmp_path, {"src": Dir({"new": b"1", **dict.fromkeys(tree, Dir({}))}), "dst": Dir(tree)})
    look = Directories.contents

    def contents(self: Directories, tree: int, path: str, *rest: Any) -> object:
        found = look(self, tree, path, *rest)
        (tmp_path / "dst" / path / "x.o").unlink()
        return found

    def lose() -> None:
        monkeypatch.setattr(Directories, "contents", contents)
        for name in tree:
            (tmp_path / "src" / os.fsdecode(name)).rmdir()

    after_the_plan(monkeypatch, lose)
    report = pcopy.copy(tmp_path / "src", tmp_path / "dst", jobs=jobs, delete=True, max_delete=3, filters=["*.o"])
    assert (report.exit_status, report.deleted) == (0, 0)
    assert sorted(os.listdir(tmp_path / "dst")) == sorted([*map(os.fsdecode, tree), "new"])


@pytest.mark.parametrize("more", [-1, 0, 5])
def test_what_the_limit_allows_is_deleted_if_the_source_loses_entries_after_the_plan(
    tmp_path: Path, jobs: int, more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although several workers have entries that they may delete before they are counted, and not all of them do."""
    names: dict[str | bytes, object] = {**litter(1), "names": Dir({f"{number:0200}": b"" for number in range(9)})}
    tree: dict[str | bytes, object] = {f"d{number}": Dir(names) for number in range(40)}
    make_tree(tmp_path, {"src": Dir({**tree, "new": b"1"}), "dst": Dir({**tree, "old": Dir({"x": b"", "y": b""})})})
    lost = [f"d{number}" for number in range(0, 40, 2)]
    exactly = count({name: Dir(names) for name in lost}) + 3

    def lose() -> None:
        for name in lost:
            shutil.rmtree(tmp_path / "src" / name)

    after_the_plan(monkeypatch, lose)
    report = pcopy.copy(tmp_path / "src", tmp_path / "dst", jobs=jobs, delete=True, max_delete=exactly + more)
    assert report.exit_status == (3 if more < 0 else 0), report.errors
    assert report.deleted <= exactly + more and (more < 0 or read_tree(tmp_path / "dst") == read_tree(tmp_path / "src"))


@pytest.mark.parametrize(("limit", "names"), [(100, 24), (24, 24), (23, 12)])
def test_names_are_counted_and_what_is_to_be_deleted_only_if_they_are_too_many(
    tmp_path: Path, jobs: int, limit: int, names: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is enough to know that no more names are there. Counted by the workers, one directory at a time."""
    tree: dict[str | bytes, object] = {f"d{number}": Dir({"g": b"2"}) for number in range(6)}
    source = make_tree(tmp_path / "src", tree)
    more: dict[str | bytes, object] = {f"e{number}": Dir({"y": b"3"}) for number in range(6)}
    dst = make_tree(tmp_path / "dst", {**tree, **more})
    for constant, module in (("FIRST", "coordinator"), ("SHORT", "coordinator"), ("BRIEF", "limit")):
        monkeypatch.setattr(f"pcopy.{module}.{constant}", 0.0)
    expected, real = [], too_much

    def noted(*words: Any) -> Any:
        expected.append(real(*words))
        return expected[-1]

    monkeypatch.setattr("pcopy.api.too_much", noted)
    report = pcopy.copy(source, dst, jobs=jobs, delete=True, max_delete=limit)
    assert (report.exit_status, report.deleted, expected) == (0, 12, [(None, names)])
    assert read_tree(dst) == read_tree(source)


def test_a_count_ends_where_there_is_too_much(tmp_path: Path, jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million files need not be looked at to see that they are more than ten. One executor does for all of the run."""
    source = make_tree(tmp_path / "src", {"f": b"1"})
    make_tree(tmp_path / "dst", {"f": b"1", **{f"d{number}": Dir({"x": b"2"}) for number in range(200)}})
    for constant, module in (("FIRST", "coordinator"), ("SHORT", "coordinator"), ("BRIEF", "limit")):
        monkeypatch.setattr(f"pcopy.{module}.{constant}", 0.0)
    counted: list[int] = []
    opened: list[int] = []
    engine_for = engines.engine_for

    def noted(below: Any, options: Any, run: Any) -> None:
        count_names(below, options, run)
        counted.append(run.report.deleted)

    def opening(number: int, start_method: str | None) -> engines.Engine:
        opened.append(number)
        return engine_for(number, start_method)

    monkeypatch.setattr("pcopy.limit.count_names", noted)
    monkeypatch.setattr("pcopy.drive.engine_for", opening)
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, delete=True, max_delete=200)
    assert report.exit_status == 3
    assert "would remove 400 entries" in report.errors[0].reason
    assert 200 < counted[0] < 300
    assert opened == [jobs]


@pytest.mark.parametrize("mode", [0o500, 0o200, 0o2550])
def test_the_mode_of_a_destination_in_which_nothing_is_done_stays(tmp_path: Path, mode: int) -> None:
    """It has to be opened to be locked, and to count what is in it."""
    source = make_tree(tmp_path / "src", {"new": b"1"})
    dst = make_tree(tmp_path / "dst", {"x": b"2", "y": b"2"})
    if not os.geteuid():
        os.chown(dst, 0, 2000)  # a group of which the owner is no member
    dst.chmod(mode)
    done = unprivileged("--delete", "--max-delete", 1, source, dst)
    assert (done.returncode, stat.S_IMODE(dst.stat().st_mode), sorted(os.listdir(dst))) == (3, mode, ["x", "y"])


@pytest.mark.parametrize("why", ["Ctrl-C", "an observer", "another run"])
def test_however_a_count_ends_the_mode_of_the_destination_stays(tmp_path: Path, why: str) -> None:
    source = make_tree(tmp_path / "src", {"new": b"1"})
    dst = make_tree(tmp_path / "dst", {"x": Dir({"y": b"2"}, mode=0 if why == "an observer" else 0o755)})
    program = f"""
import os, signal, sys, pcopy, pcopy.limit
class Raises(pcopy.Observer):
    def failure(self, failure):
        raise RuntimeError
if sys.argv[1] == "Ctrl-C":
    pcopy.limit.Enough.progress = lambda *words: os.kill(os.getpid(), signal.SIGINT)
try:
    report = pcopy.copy({str(source)!r}, {str(dst)!r}, jobs=1, delete=True, max_delete=9, observer=Raises())
except (KeyboardInterrupt, RuntimeError) as error:
    print(type(error).__name__)
"""
    with live_run(dst) if why == "another run" else contextlib.nullcontext():
        dst.chmod(0o300)
        command = [*without_privilege(), sys.executable, "-c", program, why]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == ("KeyboardInterrupt" if why == "Ctrl-C" else "RuntimeError"), done.stderr
    assert stat.S_IMODE(dst.stat().st_mode) == 0o300
    assert os.listdir(dst) == ["x"]


def test_a_full_directory_in_the_place_of_a_file_counts(tmp_path: Path, jobs: int) -> None:
    """Also where it is none in a directory that is copied, but a source of its own: nothing at all is done."""
    make_tree(tmp_path, {"s": Dir({"f": b"2"}), "d": Dir({"new": b"1"})})
    dst = make_tree(tmp_path / "dst", {"d": Dir({}), "f": Dir({"x": Dir({"1": b"", "2": b""})})})
    before, sources = read_tree(dst), [tmp_path / "d", tmp_path / "s/f"]
    report = pcopy.copy(sources, dst, jobs=jobs, delete=True, max_delete=3)
    assert (report.exit_status, read_tree(dst)) == (3, before)
    assert "would remove 4 entries" in report.errors[0].reason
    report = pcopy.copy(sources, dst, jobs=jobs, delete=True, max_delete=4)
    assert (report.exit_status, report.deleted, (dst / "f").read_bytes()) == (0, 4, b"2")


def test_a_run_that_is_stopped_while_it_counts_does_nothing(tmp_path: Path, jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path, {"a": Dir({"f": b"1"}), "b": Dir({"f": b"1"}), "c": Dir({"f": b"1"})})
    dst = make_tree(tmp_path / "dst", {"a": Dir({"x": b"1"}), "b": b"a file that would give way"})
    before, stop = read_tree(dst), pcopy.Stop()

    def stopped(*words: Any) -> None:
        stop.signal = signal.SIGTERM
        count_names(*words)

    monkeypatch.setattr("pcopy.limit.count_names", stopped)
    report = pcopy.copy([tmp_path / x for x in "abc"], dst, jobs=jobs, delete=True, max_delete=9, stop=stop)
    assert (report.exit_status, report.errors, read_tree(dst)) == (128 + signal.SIGTERM, [], before)


def test_that_handles_run_out_is_not_taken_for_a_mount(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            mount_or_device(handle)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(handle)


@pytest.mark.parametrize("limit", [10, 400])
def test_the_limit_holds_if_the_destination_grows_after_the_count(
    tmp_path: Path, jobs: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So few names were in it that none needed to be counted in the run."""
    source = make_tree(tmp_path / "src", {"f": b"1"})
    dst = make_tree(tmp_path / "dst", {f"d{number}": Dir({}) for number in range(8)})

    def grow() -> None:
        for number in range(700):
            (dst / f"d{number % 8}" / str(number)).touch()

    after_the_plan(monkeypatch, grow)
    report = pcopy.copy(source, dst, jobs=jobs, delete=True, max_delete=limit)
    left = sum(len(names) + len(directories) for _, directories, names in os.walk(dst)) - (dst / "f").exists()
    assert (report.exit_status, report.deleted) == (3, 708 - left) and 708 - left <= limit, report.errors


def test_a_limit_that_is_just_enough_is(tmp_path: Path, jobs: int) -> None:
    """Also where directories have to stay, for something that is hidden in them, and many workers delete."""
    tree: dict[str | bytes, object] = {f"d{number}": Dir({**litter(1), "keep": Dir({"x.o": b""})}) for number in range(20)}
    source = make_tree(tmp_path / "src", {"f": b"1"})
    make_tree(tmp_path / "dst", {**tree, "g": Dir({f"{number:0200}": b"" for number in range(300)})})
    extra = count(tree) + 301 - 3 * 20
    refused = pcopy.copy(source, tmp_path / "dst", jobs=jobs, delete=True, max_delete=extra - 1, filters=["*.o"])
    assert (refused.exit_status, refused.deleted, refused.errors[0].operation) == (3, 0, "delete")
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, delete=True, max_delete=extra, filters=["*.o"])
    assert (report.ok, report.deleted) == (True, extra), report.errors
    assert set(os.listdir(tmp_path / "dst")) == {"f", *tree} and os.listdir(tmp_path / "dst/d7") == ["keep"]


def test_to_count_what_is_to_go_looks_at_no_file(tmp_path: Path, jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither before a first copy, nor before a rerun that compares contents."""
    if jobs > 1:
        pytest.skip("what workers look at is not seen here")
    looked: list[str] = []
    scanned: list[str] = []
    copy, scan = Copier.copy, Directories.scan

    def noted(self: Copier, pair: Any, name: str, *more: Any) -> object:
        looked.append(name)
        return copy(self, pair, name, *more)

    def noted_scan(self: Directories, unit: Any) -> object:
        scanned.append(unit.path)
        return scan(self, unit)

    monkeypatch.setattr(Copier, "copy", noted)
    monkeypatch.setattr(Directories, "scan", noted_scan)
    source = make_tree(tmp_path / "src", {f"d{one}": Dir({f"f{two}": b"1" for two in range(9)}) for one in range(9)})
    for what in ("first", "rerun"):
        report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, delete=True, max_delete=3, checksum=True)
        assert (report.ok, len(looked)) == (True, 81), what
        assert what == "rerun" or scanned == [""], "nothing is there to be counted"
        looked.clear()
    make_tree(tmp_path / "dst/d3", {"gone": Dir({"a": b"1", "b": b"2"})})
    assert pcopy.copy(source, tmp_path / "dst", jobs=jobs, delete=True, max_delete=2, checksum=True).exit_status == 3
    assert not looked
    assert pcopy.copy(source, tmp_path / "dst", jobs=jobs, delete=True, max_delete=3, checksum=True).deleted == 3
    make_tree(source, {"file": b"1", "link": Link("d1")})
    make_tree(tmp_path / "dst", {name: Dir({"a": b"1"}) for name in ("file", "link")})
    refused = pcopy.copy(source, tmp_path / "dst", jobs=jobs, delete=True, max_delete=3, checksum=True)
    assert "would remove 4 entries" in refused.errors[0].reason


def test_to_count_what_is_to_go_reads_no_source_that_is_a_file(unlocked: Path) -> None:
    source = make_tree(unlocked / "src", {"A": Dir({"a": b"1"}), "big": File(b"1", mode=0)})
    make_tree(unlocked / "dst", {"A": Dir(dict.fromkeys("abc", b"1")), "big": b"1"})
    done = unprivileged("-j", 1, "-c", "--delete", "--max-delete", 2, source / "A", source / "big", unlocked / "dst")
    assert done.returncode == 1, done.stderr
    assert "2 deleted, 1 failed" in done.stderr


def test_what_a_link_leads_to_is_copied_before_it_is_deleted(tmp_path: Path, jobs: int) -> None:
    """Whichever of the directories comes first, something in it is to go that another one has a link to."""
    dst = make_tree(tmp_path / "dst", {x: Dir({"old": x.encode(), "more": Dir({"y": b"2"})}) for x in "abc"})
    links = {"a": "b/old", "b": "c/more/y", "c": "a/old"}
    source = make_tree(tmp_path / "src", {x: Dir({"link": Link(str(dst / to)), "f": b"1"}) for x, to in links.items()})
    plan = pcopy.copy(source, dst, jobs=jobs, delete=True, dereference=True, dry_run=True)
    report = pcopy.copy(source, dst, jobs=jobs, delete=True, dereference=True)
    assert (report.ok, report.deleted, plan.deleted) == (True, 9, 9), report.errors
    assert [(dst / x / "link").read_bytes() for x in "abc"] == [b"b", b"2", b"a"]
    assert [sorted(os.listdir(dst / x)) for x in "abc"] == [["f", "link"]] * 3
    assert [(dst / x).stat().st_mtime_ns for x in "abc"] == [(source / x).stat().st_mtime_ns for x in "abc"]


def test_where_a_link_cannot_be_followed_nothing_is_deleted(tmp_path: Path, jobs: int) -> None:
    """A directory in the destination is not copied into it; it would go, and what the link stands for with it."""
    dst = make_tree(tmp_path / "dst", {"old": Dir({"y": b"2"}), "a": Dir({"x": b"3"})})
    source = make_tree(tmp_path / "src", {"a": Dir({"f": b"1"}), "z": Dir({"link": Link(str(dst / "old"))})})
    report = pcopy.copy(source, dst, jobs=jobs, delete=True, dereference=True)
    assert (report.exit_status, report.deleted) == (1, 0), report.errors
    assert "into the destination" in report.errors[0].reason and len(report.errors) == 1
    assert (dst / "old/y").exists() and (dst / "a/x").exists()


def test_where_links_are_followed_only_an_empty_directory_gives_way(tmp_path: Path, jobs: int) -> None:
    dst = make_tree(tmp_path / "dst", {"d": Dir({"f": b"2"}), "e": Dir({})})
    source = make_tree(tmp_path / "src", {"a": Dir({"b": Dir({"x": Link(str(dst / "d/f"))})}), "d": b"1", "e": b"3"})
    for dry_run in (True, False):
        report = pcopy.copy(source, dst, jobs=jobs, delete=True, dereference=True, dry_run=dry_run)
        assert [(one.path, one.errno) for one in report.errors] == [(str(source / "d"), errno.ENOTEMPTY)]
    assert [(dst / name).read_bytes() for name in ("a/b/x", "d/f", "e")] == [b"2", b"2", b"3"]


def test_a_directory_that_is_closed_at_the_end_keeps_all_if_an_entry_of_it_failed(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"c": Dir({"f": b"1"}), "d": Dir({})})
    dst = make_tree(tmp_path / "dst", {"c": Dir({"x": b"2"}), "d": Dir({"y": b"3", "e": Dir({"z": b"4"})})})
    for closed in (source / "c", source / "d"):
        closed.chmod(0o400)
    try:
        done = unprivileged("--delete", source, dst)
        modes = [stat.S_IMODE((dst / name).stat().st_mode) for name in "cd"]
    finally:
        for closed in (source / "c", source / "d", dst / "c", dst / "d"):
            closed.chmod(0o700)
    assert (done.returncode, modes, done.stderr.count("Permission denied")) == (1, [0o400, 0o400], 1), done.stderr
    assert (os.listdir(dst / "c"), os.listdir(dst / "d")) == (["x"], [])


def test_no_directory_is_closed_before_what_is_to_go_below_it(tmp_path: Path) -> None:
    """So many entries that workers share them out, and that what is to be done higher up comes before their end."""
    names: dict[str | bytes, object] = {"x": b""}
    deep = Dir({**names, "e": Dir({**names, "e": Dir({**names, "e": Dir({})})})})
    source = make_tree(tmp_path / "src", {"c": Dir({"e": Dir({"e": Dir({"e": Dir({})})})})})
    dst = make_tree(tmp_path / "dst", {"c": deep})
    places = [dst / "c/e/e/e", dst / "c/e/e", dst / "c/e", dst / "c"]
    for number in range(8_000):
        os.mknod(places[0] / str(number))
    for place in places:
        place.chmod(0o600)
    try:
        done = unprivileged("-L", "--no-preserve", "mode", "--delete", "-j", 3, source, dst)
        modes = [stat.S_IMODE(place.stat().st_mode) for place in places]
    finally:
        for place in places[::-1]:
            place.chmod(0o700)
    assert (done.returncode, "8,003 deleted" in done.stderr, modes) == (0, True, [0o600] * 4), done.stderr


def test_an_empty_source_is_refused(tmp_path: Path, pcopy: Run) -> None:
    source, dst = make_tree(tmp_path / "src", {}), make_tree(tmp_path / "dst", {"x": Dir({"y": b"1"})})
    before = read_tree(dst)
    done = pcopy("--delete", source, dst)
    assert (done.returncode, "is it mounted?" in done.stderr) == (3, True)
    assert read_tree(dst) == before
    other = make_tree(tmp_path / "other", {"f": b"1"})
    assert pcopy("--delete", other, source, tmp_path / "both").returncode == 3
    assert pcopy("--delete", "--max-delete", 1, source, dst).returncode == 3
    assert pcopy("--delete", "--max-delete", 2, source, dst).returncode == 0
    assert os.listdir(dst) == []


FAILING = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <string.h>
int openat(int dir, const char *name, int flags, unsigned mode) {
    static int (*real)(int, const char *, int, unsigned);
    if (!real) real = dlsym(RTLD_NEXT, "openat");
    if (!strcmp(name, "broken")) { errno = EIO; return -1; }
    return real(dir, name, flags, mode);
}
int openat64(int dir, const char *name, int flags, unsigned mode) { return openat(dir, name, flags, mode); }
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which nothing of the name "broken" can be opened: EIO."""
    return {**os.environ, "LD_PRELOAD": str(compiled(tmp_path_factory.mktemp("broken"), FAILING, *SHARED))}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("what", [b"1", Dir({"f": b"1"})], ids=["file", "directory"])
def test_where_something_cannot_be_read_nothing_is_deleted(
    tmp_path: Path, pcopy: Run, broken: dict[str, str], what: object, count: int
) -> None:
    inside: dict[str | bytes, object] = {"x": b"2", "y": Dir({"z": b"3"})}
    source = make_tree(tmp_path / "src", {"bad": Dir({"broken": what}), "good": Dir({"f": b"1"})})
    dst = make_tree(tmp_path / "dst", {"bad": Dir({"broken": Dir(inside), **inside}), "good": Dir(inside)})
    before = read_tree(dst / "bad")
    done = pcopy("-j", count, "--delete", "--retries", 1, source, dst, env=broken)
    assert (done.returncode, "Input/output error" in done.stderr) == (1, True)
    after = read_tree(dst / "bad")
    assert {path: after[path] for path in before if path.startswith(b"broken/")} == {
        path: before[path] for path in before if path.startswith(b"broken/")
    }
    assert isinstance(what, Dir) or set(after) == set(before)
    assert os.listdir(dst / "good") == ["f"]
    assert pcopy("-j", count, "--delete", source, dst).returncode == 0
    assert read_tree(dst) == read_tree(source)


def test_what_cannot_be_deleted_is_named_and_the_rest_goes(tmp_path: Path, jobs: int) -> None:
    """Something is mounted in a directory that is to go: it is not looked into, and what is around it goes."""
    if os.geteuid():
        pytest.skip("needs root")
    source = make_tree(tmp_path / "src", {"f": b"1"})
    kept = make_tree(tmp_path / "kept", {"mine": b"2", "d": Dir({})})
    dst = make_tree(tmp_path / "dst", {"x": Dir({"a": b"3", "m": Dir({}), "b": Dir({"c": b"4"})}), "y": b"5"})
    if subprocess.run(["mount", "--bind", kept, dst / "x/m"], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        before = read_tree(kept)
        report = pcopy.copy(source, dst, jobs=jobs, delete=True)
        assert read_tree(kept) == before
        assert (report.exit_status, report.failed, report.deleted) == (1, 1, 4)
        (error,) = report.errors
        assert error.path == f"{dst}/x/m"
        assert error.reason == (
            "Device or resource busy (something is mounted on it, so it stays: unmount that, or exclude it)"
        )
        assert sorted(os.listdir(dst)) == ["f", "x"] and os.listdir(dst / "x") == ["m"]
    finally:
        subprocess.run(["umount", dst / "x/m"], check=True)
    report = pcopy.copy(source, dst, jobs=jobs, delete=True)
    assert (report.ok, report.deleted) == (True, 2)


def test_links_are_deleted_and_not_followed(tmp_path: Path, jobs: int) -> None:
    outside = make_tree(tmp_path / "outside", {"mine": b"1", "d": Dir({"e": b"2"})})
    before = read_tree(outside)
    source = make_tree(tmp_path / "src", {"f": b"1", "d": Dir({"g": b"2"})})
    make_tree(tmp_path / "dst", {"x": Link(str(outside)), "d": Link(str(outside)), "y": Dir({"z": Link("../../outside/d")})})
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, delete=True)
    assert (report.ok, report.deleted) == (True, 3)
    assert read_tree(outside) == before
    assert read_tree(tmp_path / "dst") == read_tree(source)


@as_root
@pytest.mark.parametrize("bind", [True, False], ids=["bind", "tmpfs"])
def test_nothing_is_deleted_across_a_mount_in_the_destination(tmp_path: Path, jobs: int, bind: bool) -> None:
    """The source has the directory too: what is copied goes there, what is there stays."""
    source = make_tree(tmp_path / "src", {"m": Dir({"f": b"1", "d": Dir({"g": b"2"})}), "x": Dir({"y": b"3"})})
    dst = make_tree(tmp_path / "dst", {"m": Dir({}), "x": Dir({"goes": b"4"}), "n": Dir({"m": Dir({})})})
    make_tree(tmp_path / "other", {"precious": b"5", "d": Dir({"mine": b"6"})})
    with mounted(dst / "m", *(["--bind", tmp_path / "other"] if bind else ["-t", "tmpfs", "none"])):
        if not bind:
            shutil.copytree(tmp_path / "other", dst / "m", dirs_exist_ok=True)
        plan = pcopy.copy(source, dst, jobs=jobs, delete=True, dry_run=True)
        report = pcopy.copy(source, dst, jobs=jobs, delete=True)
        assert (report.ok, report.deleted, plan.deleted) == (True, 3, 3), report.errors
        assert (dst / "m/precious").read_bytes() == b"5" and (dst / "m/d/mine").read_bytes() == b"6"
        assert (dst / "m/d/g").read_bytes() == b"2" and os.listdir(dst / "x") == ["y"]


@as_root
@pytest.mark.parametrize(("limit", "bind"), [(None, True), (2001, True), (None, False)])
def test_what_is_mounted_over_a_directory_while_it_is_emptied_stays(
    tmp_path: Path, jobs: int, limit: int | None, bind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices open it anew by its path: the names in it are the same."""
    monkeypatch.setattr("pcopy.coordinator.LONG", 0.002)
    monkeypatch.setattr("pcopy.coordinator.FIRST", 0.0)
    names = [f"x{number}" for number in range(1000)]
    make_tree(
        tmp_path, {"src": Dir({"k": Dir({"f": b"1"})}), "dst": Dir({"k": Dir({"f": b"1"}), "gone": Dir({})}), "other": Dir({})}
    )
    places = [tmp_path / "dst/k", tmp_path / "dst/gone", tmp_path / "other"]
    for name in names:
        for place in places:
            (place / name).touch()

    with contextlib.ExitStack() as stack:

        class Mounts(library.Observer):
            def progress(self, progress: library.Progress) -> None:
                for place in list(places[:2]):
                    if len(os.listdir(place)) < len(names):
                        places.remove(place)
                        stack.enter_context(
                            mounted(place, *(["--bind", str(tmp_path / "other")] if bind else ["-t", "tmpfs", "none"]))
                        )
                        if not bind:
                            shutil.copytree(tmp_path / "other", place, dirs_exist_ok=True)

        copy = tmp_path / "dst"
        report = library.copy(tmp_path / "src", copy, jobs=jobs, delete=True, max_delete=limit, observer=Mounts())
        for place in {tmp_path / "dst/k", tmp_path / "dst/gone"} - set(places):
            assert set(names) == set(os.listdir(place))
    assert len(places) < 3 and 0 < len(report.errors) <= 4, report.errors
    assert report.exit_status == 1
    assert set(os.listdir(tmp_path / "other")) == set(names)


@as_root
@pytest.mark.parametrize("limit", [2, 100])
def test_a_mount_that_is_in_the_way_stays_and_is_named(
    tmp_path: Path, jobs: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a dry run, and where deletions are counted before they are done: then no rmdir says so. Also one that comes late."""
    source = make_tree(tmp_path / "src", {"f": b"1"})
    dst, other = (
        make_tree(tmp_path / "dst", {"m": Dir({}), "g": b"3", "f": b"1"}),
        make_tree(tmp_path / "other", {"precious": b"2"}),
    )
    with mounted(dst / "m", "--bind", str(other)):
        plan = pcopy.copy(source, dst, jobs=jobs, delete=True, dry_run=True)
    with contextlib.ExitStack() as stack:
        after_the_plan(monkeypatch, lambda: stack.enter_context(mounted(dst / "m", "--bind", str(other))))
        limited = pcopy.copy(source, dst, jobs=jobs, delete=True, max_delete=limit)
    (dst / "g").touch()
    with mounted(dst / "m", "--bind", str(other)):
        report = pcopy.copy(source, dst, jobs=jobs, delete=True)
    assert (other / "precious").read_bytes() == b"2"
    told = [[(one.path, one.errno) for one in each.errors] for each in (plan, limited, report)]
    assert told == [[(str(dst / "m"), errno.EBUSY)]] * 3
    assert (plan.deleted, limited.deleted, report.deleted) == (1, 1, 1)


@as_root
@pytest.mark.parametrize("limit", [2, 3, 4, 100])
def test_what_else_is_to_go_where_something_is_mounted_is_known(tmp_path: Path, jobs: int, limit: int) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1"})
    dst = make_tree(tmp_path / "dst", {"x": Dir({"y": Dir({}), "g": b"2"}), "h": b"3", "gone": Dir({})})
    with mounted(dst / "x/y", "-t", "tmpfs", "none"):
        (dst / "x/y/precious").touch()
        report = pcopy.copy(source, dst, jobs=jobs, delete=True, max_delete=limit)
        assert os.listdir(dst / "x/y") == ["precious"]
    if limit == 2:
        assert (report.exit_status, os.listdir(dst / "x") != ["y"]) == (3, True)
        assert "would remove 3 entries" in report.errors[0].reason
    else:
        assert (report.exit_status, report.deleted, sorted(os.listdir(dst))) == (1, 3, ["f", "x"])
        assert [(one.path, "something is mounted" in one.reason) for one in report.errors] == [(str(dst / "x/y"), True)]


@as_root
@pytest.mark.parametrize("limit", [5, 6, 100])
@pytest.mark.parametrize("hidden", [False, True], ids=["mounted", "hidden"])
def test_what_else_is_to_go_where_a_directory_does_not_give_way_is_known(
    tmp_path: Path, jobs: int, limit: int, hidden: bool
) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1", "g": b"2", "d": Dir({})})
    gone = Dir({"x": Dir(dict.fromkeys("1234", b"3"))})
    dst = make_tree(tmp_path / "dst", {"d": gone, "f": Dir({"a": b"4", **({"m.o": b"5"} if hidden else {"m": Dir({})})})})
    with contextlib.nullcontext() if hidden else mounted(dst / "f/m", "-t", "tmpfs", "none"):
        for _ in range(0 if hidden else 3):
            (dst / "f/m" / os.urandom(4).hex()).touch()
        report = pcopy.copy(source, dst, jobs=jobs, delete=True, max_delete=limit, filters=["*.o"] if hidden else [])
    if limit == 5:
        assert (report.exit_status, sorted(os.listdir(dst))) == (3, ["d", "f"])
        assert "would remove 6 entries" in report.errors[0].reason
    else:
        assert (report.exit_status, report.deleted, sorted(os.listdir(dst))) == (1, 6, ["d", "f", "g"]), report.errors
        assert (os.listdir(dst / "d"), len(os.listdir(dst / "f"))) == ([], 1)


def test_another_file_system_of_the_source_is_left_alone(tmp_path: Path, jobs: int) -> None:
    """With -x what is mounted in the source is not looked at, so nobody knows what it lacks."""
    if os.geteuid():
        pytest.skip("needs root")
    source = make_tree(tmp_path / "src", {"f": b"1", "m": Dir({})})
    dst = make_tree(tmp_path / "dst", {"m": Dir({"x": b"2"}), "y": b"3"})
    if subprocess.run(["mount", "-t", "tmpfs", "none", source / "m"], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        report = pcopy.copy(source, dst, jobs=jobs, delete=True, one_file_system=True)
    finally:
        subprocess.run(["umount", source / "m"], check=True)
    assert (report.ok, report.deleted, os.listdir(dst / "m")) == (True, 1, ["x"])


@pytest.mark.parametrize("at", ["dst/x", "dst/x/empty", "dst/x/deep/er", "dst/d", "dst/d/e"])
@pytest.mark.parametrize("kind", [True, False], ids=["a tree", "single files"])
def test_nothing_is_deleted_where_another_run_is_at_work(tmp_path: Path, pcopy: Run, jobs: int, at: str, kind: bool) -> None:
    """A run into a part of the destination holds a lock there, and what it has made looks like any other extra entry."""
    source = make_tree(tmp_path / "src", {"f": b"1", "d": Dir({"e": Dir({"g": b"2"})})})
    theirs = Dir({"y": b"2", "empty": Dir({}), "deep": Dir({"er": Dir({"z": b"3"})})})
    dst = make_tree(tmp_path / "dst", {"f": b"1", "x": theirs, "d": Dir({"e": Dir({"g": b"2", "more": theirs})}), "old": b"4"})
    inside = read_tree(tmp_path / at)
    handle = os.open(tmp_path / at, os.O_RDONLY)
    try:
        runs.lock(handle, kind)
        plan = pcopy("-n", "--delete", "-j", jobs, source, dst)
        done = pcopy("--delete", "-j", jobs, source, dst)
        assert (tmp_path / at).stat().st_ino == os.fstat(handle).st_ino
    finally:
        os.close(handle)
    for run in (plan, done):
        assert run.returncode == 1, run.stderr
        failure = run.stderr.splitlines()[0]
        named = tmp_path / ("dst/d/e" if at == "dst/d" else at)  # where something was to go
        assert failure.startswith(f"pcopy: {named}: refuse to remove: another run is copying into it"), run.stderr
    assert read_tree(tmp_path / at) == inside
    assert not (dst / "old").exists()
    assert pcopy("--delete", "-j", jobs, source, dst).returncode == 0
    assert read_tree(dst) == read_tree(source)


@pytest.mark.parametrize("deletes", [True, False])
@pytest.mark.parametrize("below", ["x", "x/y/z"])
def test_no_run_begins_below_one_that_deletes(tmp_path: Path, pcopy: Run, deletes: bool, below: str) -> None:
    """What it finds there would be removed behind its back."""
    source = make_tree(tmp_path / "src", {"f": b"1"})
    dst = make_tree(tmp_path / "dst", {"x": Dir({"y": Dir({"z": Dir({"f": b"1"})})})})
    handle = os.open(dst, os.O_RDONLY)
    try:
        runs.lock(handle, exclusive=True)
        if deletes:
            runs.mark(handle, runs.DELETES)
        for given in (source, source / "f"):
            done = pcopy(given, dst / below / "")
            assert (done.returncode, "another run deletes here" in done.stderr) == ((3, True) if deletes else (0, False))
        assert pcopy("-n", source, dst / below).returncode == 0
    finally:
        os.close(handle)
    assert pcopy(source, dst / below).returncode == 0


@pytest.mark.parametrize("copies", [True, False], ids=["a tree", "single files"])
@pytest.mark.parametrize("below", ["x", "x/y/z"])
def test_no_run_that_deletes_begins_below_one_that_copies_a_tree(tmp_path: Path, pcopy: Run, copies: bool, below: str) -> None:
    """What that had just made would be removed, and both would end well."""
    make_tree(tmp_path, {"src": Dir({"f": b"1"}), "upper": Dir({"x": Dir({"y": Dir({"z": Dir({"f": b"1"})})})}), "g": b"2"})
    dst = make_tree(tmp_path / "dst", {"x": Dir({"y": Dir({"z": Dir({"f": b"1"})})})})
    seen = []

    class Looks(library.Observer):
        def progress(self, progress: library.Progress) -> None:
            for more in (["--delete"], []):
                (dst / below / "theirs").touch()
                seen.append(pcopy(*more, tmp_path / "src", dst / below).returncode)
                assert (dst / below / "theirs").exists() or not copies

    assert library.copy(tmp_path / ("upper" if copies else "g"), f"{dst}/", jobs=1, observer=Looks()).ok
    assert set(zip(seen[::2], seen[1::2], strict=True)) == {(3 if copies else 0, 0)}


@pytest.mark.parametrize("top", [True, False])
def test_no_run_copies_into_a_directory_that_another_one_deletes_in(tmp_path: Path, pcopy: Run, jobs: int, top: bool) -> None:
    """It was there first, further down: what came to it now would be removed, or has been looked at already."""
    tree = Dir({"y": Dir({"f": b"1", "new": b"3"})})
    make_tree(tmp_path, {"src": Dir({"x": tree, "g": b"2"}), "x": tree, "other": Dir({"h": b"4"})})
    dst = make_tree(tmp_path / "dst", {"x": Dir({"y": Dir({"f": b"1"})})})
    handle = os.open(dst / ("x" if top else "x/y"), os.O_RDONLY)
    try:
        runs.lock(handle, exclusive=True)
        runs.mark(handle, runs.DELETES)
        done = pcopy("-j", jobs, tmp_path / "src", dst)
        assert (done.returncode, "another run deletes in it" in done.stderr) == (1, True), done.stderr
        assert (dst / "g").exists() and os.listdir(dst / "x/y") == ["f"]
        several = pcopy("-j", jobs, tmp_path / "x", tmp_path / "other", dst)
        assert several.returncode == (3 if top else 1), several.stderr
        assert os.listdir(dst / "x/y") == ["f"]
    finally:
        os.close(handle)
    assert pcopy("-j", jobs, tmp_path / "src", tmp_path / "x", dst).returncode == 0


def test_of_several_sources_only_the_copies_are_marked(tmp_path: Path, pcopy: Run) -> None:
    """Nothing is deleted beside them."""
    make_tree(tmp_path / "a", {"f": b"1"})
    make_tree(tmp_path / "b", {"f": b"1"})
    dst = make_tree(tmp_path / "dst", {"a": Dir({}), "other": Dir({})})
    seen = {}

    class Looks(library.Observer):
        def progress(self, progress: library.Progress) -> None:
            for place in ("a", "other"):
                seen[place] = pcopy(tmp_path / "a/f", dst / place / "").returncode

    assert library.copy([tmp_path / "a", tmp_path / "b"], dst, jobs=1, delete=True, observer=Looks()).ok
    assert seen == {"a": 3, "other": 0}


def test_many_sources_do_not_take_many_handles(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    """The directory that they all go to is marked then."""
    sources = [make_tree(tmp_path / f"d{number}", {"f": b"1"}) for number in range(100)]
    make_tree(tmp_path / "dst", {"d7": Dir({"x": b"2"})})
    seen: list[int] = []

    class Looks(library.Observer):
        def progress(self, progress: library.Progress) -> None:
            if not seen:
                seen.append(pcopy("--delete", sources[0], tmp_path / "dst/other").returncode)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (90, hard))
    try:
        report = library.copy(sources, tmp_path / "dst", jobs=jobs, delete=True, observer=Looks())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (report.ok, report.deleted, set(seen)) == (True, 1, {3}), report.errors


@pytest.mark.parametrize("count", [2, 70])
def test_a_run_that_is_refused_has_changed_nothing(tmp_path: Path, pcopy: Run, count: int) -> None:
    """Another one deletes in the last of the directories that it would go to."""
    sources = [make_tree(tmp_path / f"d{number}", {"f": b"1"}) for number in range(count)]
    last = f"d{count - 1}"
    dst = make_tree(tmp_path / "dst", {"d0": b"old", last: Dir({"x": b"2"})})
    before = read_tree(dst)
    handle = os.open(dst / last, os.O_RDONLY)
    try:
        runs.lock(handle, exclusive=True)
        runs.mark(handle, runs.DELETES)
        done = pcopy(*sources, dst)
    finally:
        os.close(handle)
    assert (done.returncode, "another run deletes here" in done.stderr) == (3, True), done.stderr
    assert read_tree(dst) == before
    assert pcopy(*sources, dst).returncode == 0


@pytest.mark.parametrize(
    "words",
    [("src", "dst/z/new"), ("--delete", "src", "dst/z/new/"), ("src", "src/f", "dst/z/new")],
    ids=["one", "delete", "several"],
)
@pytest.mark.parametrize("what", [runs.DELETES, runs.COPIES], ids=["deletes", "copies"])
def test_a_run_that_is_refused_does_not_touch_what_another_one_makes(
    tmp_path: Path, pcopy: Run, words: tuple[str, ...], what: int
) -> None:
    """Not even the times of a directory that is finished, by making another one in it."""
    make_tree(tmp_path, {"src": Dir({"f": b"1"}), "dst": Dir({"x": b"2", "z": Dir({})})})
    before, refused = read_tree(tmp_path / "dst"), what == runs.DELETES or words[0] == "--delete"
    handle = os.open(tmp_path / "dst", os.O_RDONLY)
    try:
        runs.lock(handle, exclusive=True)
        runs.mark(handle, what)
        done = pcopy(*words)
    finally:
        os.close(handle)
    assert (done.returncode, "another run" in done.stderr) == ((3, True) if refused else (0, False)), done.stderr
    assert (read_tree(tmp_path / "dst") == before) == refused


def test_a_run_that_began_first_goes_on_if_another_one_begins_to_delete_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it counts. What it has locked, the other one leaves alone; here a file has to give way to what is copied."""
    sources = [make_tree(tmp_path / name, {"f": b"1"}) for name in "ab"]
    dst = make_tree(tmp_path / "top/dst", {"a": Dir({"x": b"2"}), "b": b"3"})
    handle = os.open(tmp_path / "top", os.O_RDONLY)
    try:
        after_the_plan(monkeypatch, lambda: runs.mark(handle, runs.DELETES))
        report = library.copy(sources, dst, jobs=1, delete=True, max_delete=9)
    finally:
        os.close(handle)
    assert (report.errors, report.exit_status, report.deleted) == ([], 0, 1)
    assert [read_tree(dst / name) for name in "ab"] == [read_tree(source) for source in sources]


def test_copies_that_a_run_makes_are_marked_too(tmp_path: Path, pcopy: Run) -> None:
    sources = [make_tree(tmp_path / name, {"f": b"1"}) for name in "ab"]
    seen = []

    class Looks(library.Observer):
        def progress(self, progress: library.Progress) -> None:
            seen.append(pcopy("--delete", sources[0], tmp_path / "dst/b").returncode)

    assert library.copy(sources, tmp_path / "dst", jobs=1, observer=Looks()).ok
    assert set(seen) == {3}


def test_no_source_that_cannot_be_read_takes_the_place_of_a_file(tmp_path: Path) -> None:
    sources = [make_tree(tmp_path / name, {"f": b"1"}) for name in "ab"]
    dst = make_tree(tmp_path / "dst", {"a": b"old", "b": b"old"})
    sources[0].chmod(0)
    try:
        done = unprivileged("--json", *sources, dst)
    finally:
        sources[0].chmod(0o700)
    report = json.loads(done.stdout)
    assert (done.returncode, report["failed"], (dst / "a").read_bytes()) == (1, 1, b"old"), done.stderr
    assert f"{sources[0]}: " in done.stderr and "Permission denied" in done.stderr
    assert (dst / "b/f").read_bytes() == b"1"


@pytest.mark.parametrize("given", ["dst/sub", "dst/x/sub", "dst/x", "link/"])
@pytest.mark.parametrize("more", [[], ["-n"], ["--max-delete", "100"]], ids=str)
def test_a_source_in_the_destination_is_refused(tmp_path: Path, pcopy: Run, given: str, more: list[str]) -> None:
    """It would be deleted, or a part of it, for it is nothing that it has in itself."""
    sub = Dir({"sub": Dir({"f": b"1"}), "g": b"2"})
    make_tree(tmp_path, {"dst": Dir({"sub": sub, "x": Dir({"sub": sub})}), "link": Link("dst/sub")})
    before = read_tree(tmp_path)
    done = pcopy("--delete", *more, given, "dst")
    assert (done.returncode, "from which delete would remove it" in done.stderr) == (2, True), done.stderr
    assert read_tree(tmp_path) == before
    own = given in ("dst/sub", "link/")  # what it holds would have its place
    assert pcopy(given, "dst").returncode == (2 if own else 0)


@as_root
def test_a_source_that_is_mounted_from_the_destination_is_not_deleted(tmp_path: Path, pcopy: Run) -> None:
    """Nor is an earlier copy: their paths do not show that they lie there."""
    make_tree(tmp_path, {"dst": Dir({"sub": Dir({"f": b"1"}), "old": Dir({"f": b"1"}), "x": b"2"}), "earlier": Dir({})})
    with (
        mounted(tmp_path / "src", "--bind", str(tmp_path / "dst/sub")),
        mounted(tmp_path / "earlier", "--bind", str(tmp_path / "dst/old")),
    ):
        done = pcopy("--delete", "--link-dest", tmp_path / "earlier", "src", "dst")
        assert done.returncode == 1, done.stderr
        assert done.stderr.count("is a source of this run, or an earlier copy") == 2
    assert sorted(os.listdir(tmp_path / "dst")) == ["f", "old", "sub"]
    assert os.listdir(tmp_path / "dst/sub") == os.listdir(tmp_path / "dst/old") == ["f"]


def test_what_cannot_be_counted_is_not_deleted(tmp_path: Path) -> None:
    """A limit is one. The run itself could do more than its plan: it makes its own directories accessible."""
    source = make_tree(tmp_path / "src", {"f": b"1", "new": b"4", "way": b"5"})
    old = Dir({f"x{number}": b"2" for number in range(5)})
    dst = make_tree(tmp_path / "dst", {"f": b"1", "old": old, "y": b"3", "way": Dir({"z": b"6"})})
    (dst / "old").chmod(0)
    try:
        done = unprivileged("--delete", "--max-delete", 3, source, dst)
    finally:
        (dst / "old").chmod(0o700)
    assert (done.returncode, set(os.listdir(dst))) == (1, {"f", "new", "old", "y", "way"}), done.stderr
    assert "not counted, so nothing is deleted" in done.stderr
    assert "is in its place: move or remove it\n" in done.stderr


def test_a_run_that_deletes_marks_its_destination(tmp_path: Path, jobs: int) -> None:
    source, dst = make_tree(tmp_path / "src", {"f": b"1"}), make_tree(tmp_path / "dst", {"x": b"2"})
    seen = []

    class Looks(pcopy.Observer):
        def progress(self, progress: pcopy.Progress) -> None:
            handle = os.open(dst, os.O_RDONLY)
            seen.append((runs.is_marked(handle, runs.AT_WORK), runs.is_marked(handle, runs.DELETES)))
            os.close(handle)

    for delete in (False, True):
        assert pcopy.copy(source, dst, jobs=jobs, delete=delete, observer=Looks()).ok
        assert set(seen) == {(True, delete)}
        seen.clear()
    handle = os.open(dst, os.O_RDONLY)
    assert (runs.is_marked(handle, runs.AT_WORK), runs.is_marked(handle, runs.DELETES)) == (False, False)
    os.close(handle)


def test_workers_do_not_take_each_other_for_another_run(tmp_path: Path) -> None:
    """All of them look at the directories above those in which something is to go."""
    deep = "/".join("abcdefgh")
    for number in range(2000):
        (tmp_path / "src" / deep / str(number)).mkdir(parents=True)
        (tmp_path / "dst" / deep / str(number) / "x").mkdir(parents=True)
        (tmp_path / "dst" / deep / str(number) / "e").touch()
    report = pcopy.copy(tmp_path / "src", tmp_path / "dst", jobs=8, delete=True)
    assert (report.ok, report.deleted) == (True, 4000), report.errors


def test_what_dead_runs_left_keeps_no_directory_that_is_to_go(tmp_path: Path, jobs: int) -> None:
    """Of runs into this destination, and into what the source lacks now; and where a file is in its place."""
    source = make_tree(tmp_path / "src", {"f": b"1", "now a file": b"2", "d": Dir({"e": b"3"})})
    name = ".pcopy-0123abcd-{}-0123456789abcdef"
    deep = Dir({name.format(depth): b"half" for depth in (0, 1, 2)})
    dst = make_tree(tmp_path / "dst", {"x": Dir({name.format(1): b"half", "deep": deep}), "d": Dir({"gone": deep})})
    make_tree(dst, {"now a file": Dir({name.format(1): b"half", "deep": deep})})
    plan = pcopy.copy(source, dst, jobs=jobs, delete=True, dry_run=True)
    assert len(list(dst.rglob(name.format("*")))) == 11
    report = pcopy.copy(source, dst, jobs=jobs, delete=True)
    assert (report.ok, report.deleted, plan.ok, plan.deleted) == (True, 5, True, 5), report.errors
    assert read_tree(dst) == read_tree(source)


# ---- what filters leave out -----------------------------------------------------------------------------------------

EXTRA: dict[str | bytes, object] = {
    "x.o": b"1",
    "x.c": b"2",
    "build": Dir({"y": b"3"}),
    "gone": Dir({"z.c": b"4", "deep": Dir({"z.o": b"5", "z.c": b"6"}), "build": Dir({})}),
    "all": Dir({"z.c": b"7", "none": Dir({})}),
}


def both_runs(source: Path, dst: Path, jobs: int, **options: Any) -> int:
    """Delete, after a dry run that says the same. Returns how many entries went."""
    before = read_tree(dst)
    plan = pcopy.copy(source, dst, jobs=jobs, delete=True, dry_run=True, **options)
    assert read_tree(dst) == before
    report = pcopy.copy(source, dst, jobs=jobs, delete=True, **options)
    assert (plan.ok, report.ok, plan.deleted) == (True, True, report.deleted), report.errors
    assert len(before.keys() - read_tree(dst).keys()) == report.deleted
    assert pcopy.copy(source, dst, jobs=jobs, delete=True, **options).deleted == 0
    return report.deleted


def paths(top: Path) -> set[str]:
    return {os.fsdecode(path) for path in read_tree(top)} - {"."}


def test_what_a_filter_hides_is_not_deleted(tmp_path: Path, jobs: int) -> None:
    """Nor is a directory that holds any of it, however deep; nor what is in the source and hidden there."""
    source = make_tree(tmp_path / "src", {"f": b"1", "d": Dir({"g": b"2"}), "old.o": b"3", "build": Dir({"of source": b"4"})})
    dst = make_tree(tmp_path / "dst", {**EXTRA, "d": Dir(EXTRA), "old.o": Dir({"a": b"8"})})
    assert both_runs(source, dst, jobs, filters=["*.o", "build/"]) == 2 * (3 + 3)
    kept = {"x.o", "build", "build/y", "gone", "gone/build", "gone/deep", "gone/deep/z.o"}
    assert paths(dst) == {"f", "d", "d/g", "old.o", "old.o/a", *kept, *(f"d/{path}" for path in kept)}


def test_what_is_brought_back_is_deleted_and_what_hides_it_stays(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"f.jpg": b"1", "notes": b"2"})
    dst = make_tree(
        tmp_path / "dst", {"x.jpg": b"3", "x": b"4", "d": Dir({"y.jpg": b"5", "y": b"6", "e": Dir({"z.jpg": b"7"})})}
    )
    assert both_runs(source, dst, jobs, filters=["*", "!*/", "!*.jpg"]) == 4
    assert paths(dst) == {"f.jpg", "x", "d", "d/y"}


def test_patterns_with_a_place_hold_there_only(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1", "d": Dir({})})
    inside = Dir({"cache": b"2", "d": Dir({"cache": b"3"})})
    dst = make_tree(tmp_path / "dst", {"cache": b"4", "d": inside, "gone": inside})
    assert both_runs(source, dst, jobs, filters=["/d/cache", "gone/**/cache"]) == 3
    assert paths(dst) == {"f", "d", "d/cache", "gone", "gone/cache", "gone/d", "gone/d/cache"}


@pytest.mark.parametrize(
    ("limits", "stays"),
    [
        ({"max_size": 10}, {"large", "gone", "gone/large"}),
        ({"min_size": 10}, {"small", "young", "gone", "gone/small"}),
        ({"newer_than": WHEN}, {"large", "small", "gone", "gone/large", "gone/small"}),
    ],
    ids=["max_size", "min_size", "newer_than"],
)
def test_what_a_limit_leaves_out_is_not_deleted(tmp_path: Path, jobs: int, limits: dict[str, int], stays: set[str]) -> None:
    files: dict[str | bytes, object] = {"large": bytes(99), "small": b"1"}
    gone = Dir({**files, "link": Link("large"), "none": Dir({})})
    source = make_tree(tmp_path / "src", {"d": Dir({})})
    dst = make_tree(tmp_path / "dst", {**files, "young": File(b"2", mtime_ns=WHEN + 1), "gone": gone, "link": Link("large")})
    everything = paths(dst)
    assert both_runs(source, dst, jobs, **limits) == len(everything - stays)
    assert paths(dst) == {"d", *stays}


def test_what_a_list_does_not_name_is_not_deleted(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1", "other": b"2", "d": Dir({"g": b"3", "more": b"4"})})
    here: dict[str | bytes, object] = {"other": b"5", "extra": b"6", "gone": Dir({"x": b"7"})}
    dst = make_tree(tmp_path / "dst", {**here, "d": Dir({**here, "more": b"8"})})
    before = read_tree(dst)
    assert both_runs(source, dst, jobs, files_from=["f", "d/g"]) == 0
    after = read_tree(dst)
    assert after.keys() - before.keys() == {b"f", b"d/g"}
    assert {path: after[path] for path in before if path not in (b".", b"d")} == {
        path: before[path] for path in before if path not in (b".", b"d")
    }


@pytest.mark.parametrize(
    "options", [{"filters": ["*.o"]}, {"filters": ["/x/"]}, {"max_size": 3}], ids=["hidden", "itself hidden", "too large"]
)
def test_a_directory_with_something_that_is_left_out_gives_way_to_nothing(
    tmp_path: Path, jobs: int, options: dict[str, Any]
) -> None:
    source = make_tree(tmp_path / "src", {"x": b"1", "y": b"2"})
    dst = make_tree(tmp_path / "dst", {"x": Dir({"d": Dir({"a.o": b"large"}), "e": b"3"})})
    for dry_run in (True, False):
        report = pcopy.copy(source, dst, jobs=jobs, delete=True, dry_run=dry_run, **options)
        assert [(error.path, error.errno) for error in report.errors] == [(f"{source}/x", errno.ENOTEMPTY)]
        assert "holds something that is not to be deleted" in report.errors[0].reason
    assert (report.exit_status, (dst / "x/d/a.o").read_bytes(), (dst / "y").read_bytes()) == (1, b"large", b"2")


def test_what_is_left_out_does_not_count_against_max_delete(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1"})
    dst = make_tree(tmp_path / "dst", {**{f"{number}.o": b"" for number in range(20)}, "x": b"2"})
    report = pcopy.copy(source, dst, jobs=jobs, delete=True, max_delete=1, filters=["*.o"])
    assert (report.ok, report.deleted, len(os.listdir(dst))) == (True, 1, 21)


# ---- a directory in the place of something else ---------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("inside", [{"x": Dir({"y": b"2"})}, {}], ids=["full", "empty"])
def test_no_directory_gives_way_to_what_cannot_be_made(tmp_path: Path, inside: dict[str | bytes, object]) -> None:
    """Not readable; a device that this user may not make; larger than a file may be; larger than what is left."""
    entries: dict[str, dict[str | bytes, object]]
    entries = {"user": {"closed": b"1"}, "limit": {"large": b"1" * 70_000}, "full": {"huge": bytes(40 << 20)}}
    source = make_tree(tmp_path / "src", {name: Dir(files) for name, files in entries.items()})
    (source / "user/closed").chmod(0)
    os.mknod(source / "user/null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    with mounted(tmp_path / "mount", "-t", "tmpfs", "-o", "size=4m", "none") as disk:
        dst = make_tree(disk / "dst", {name: Dir({one: Dir(inside) for one in entries[name]}) for name in entries})
        make_tree(dst / "user/null", inside)
        before = read_tree(dst)
        done = unprivileged("--delete", "--no-preserve", "times", source / "user", dst / "user")
        assert (done.returncode, done.stderr.count("Permission denied"), done.stderr.count("not permitted")) == (1, 1, 1), (
            done.stderr
        )
        script = ["bash", "-c", 'ulimit -f 64; exec "$@"', "bash", sys.executable, "-m", "pcopy", "--delete"]
        for name, words, status in (("limit", script, 1), ("full", script[4:], 3)):
            words = [*words, str(source / name), str(dst / name)]
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == status, done.stderr
        after = read_tree(dst)
        assert after.keys() == before.keys()


@as_root
def test_a_directory_gives_way_where_no_room_can_be_reserved(tmp_path: Path, jobs: int) -> None:
    """ramfs knows no fallocate(2)."""
    source = make_tree(tmp_path / "src", {"small": b"1", "large": bytes(33 << 20)})
    with mounted(tmp_path / "mount", "-t", "ramfs", "none") as disk:
        dst = make_tree(disk / "dst", {"small": Dir({}), "large": Dir({"a": b"2"})})
        report = pcopy.copy(source, dst, jobs=jobs, delete=True)
        assert (report.ok, report.deleted) == (True, 2), report.errors
        assert read_tree(dst) == read_tree(source)


def under_strace(inject: str, *words: object, jobs: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the command line with calls that fail. A rule with "when" is for one job: it counts each process by itself."""
    command = [*strace(*inject.split()), sys.executable, "-m", "pcopy", "-j", str(jobs)]
    return subprocess.run([*command, *map(str, words)], capture_output=True, text=True, timeout=60, check=False)


def test_a_directory_does_not_give_way_to_contents_that_cannot_be_read(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"x": b"1" * 5000, "y": b"2"})
    dst = make_tree(tmp_path / "dst", {"x": Dir({"data": b"3"})})
    calls = "copy_file_range,sendfile,read,pread64"
    done = under_strace(f"-e trace={calls} -e inject={calls}:error=EIO -P {source}/x", "--delete", source, dst)
    assert (done.returncode, "Input/output error" in done.stderr) == (1, True), done.stderr
    assert read_tree(dst).keys() == {*read_tree(source), b"x/data"}
    assert (dst / "x/data").read_bytes() == b"3"


@as_root
def test_a_directory_does_not_give_way_to_a_link_that_cannot_be_made(tmp_path: Path) -> None:
    """Nor to the copy instead of it, for which there is no room after the first one."""
    source = make_tree(tmp_path / "src", {"a": bytes(5 << 20), "b": Hard("a")})
    with mounted(tmp_path / "mount", "-t", "tmpfs", "-o", "size=8m", "none") as disk:
        dst = make_tree(disk / "dst", {name: Dir({"data": b"1"}) for name in ("a", "b")})
        done = under_strace("-e trace=linkat -e inject=linkat:error=EPERM", "--delete", source, dst)
        assert done.returncode == 3, done.stderr
        left = [name for name in ("a", "b") if (dst / name).is_dir()]
        assert [(dst / name / "data").read_bytes() for name in left] == [b"1"]
        assert len(os.listdir(dst)) == 2


@as_root
@pytest.mark.parametrize("many", [False, True], ids=["one", "several"])
def test_a_file_gives_way_only_to_a_directory_that_can_be_made(tmp_path: Path, pcopy: Run, many: bool) -> None:
    """No inode is left for it: what is there has another name too."""
    source = make_tree(tmp_path / "src", {"a": Dir({"f": b"1"}), "b": Dir({"f": b"2"})})
    with mounted(tmp_path / "mount", "-t", "tmpfs", "-o", "nr_inodes=9", "none") as disk:
        dst = make_tree(disk / "dst", {"a": b"old", "same": Hard("a"), "b": Dir({})})
        with pytest.raises(OSError, match="No space"):
            for number in range(9):
                (disk / str(number)).touch()
        stopped = pcopy(*([source / "a", source / "b"] if many else [source]), dst)
        assert (stopped.returncode, "No space left" in stopped.stderr) == (3, True), stopped.stderr
        assert ((dst / "a").read_bytes(), len(os.listdir(dst))) == (b"old", 3)
        for number in range(3):
            (disk / str(number)).unlink()
        assert pcopy(*([source / "a", source / "b"] if many else [source]), dst).returncode == 0
        assert {name: (dst / name / "f").read_bytes() for name in "ab"} == {"a": b"1", "b": b"2"}


@as_root
def test_directories_give_way_one_after_the_other_where_there_is_room_for_one(tmp_path: Path, pcopy: Run) -> None:
    source = make_tree(tmp_path / "src", {f"f{number}": os.urandom(1_000_000) for number in range(6)})
    with mounted(tmp_path / "mount", "-t", "tmpfs", "-o", "size=4m", "none") as disk:
        dst = make_tree(disk / "dst", {f"f{number}": Dir({"inner": b"keep"}) for number in range(6)})
        (disk / "other").write_bytes(bytes(2_500_000))
        stopped = pcopy("-j", 1, "--delete", source, dst)
        assert (stopped.returncode, "No space left" in stopped.stderr) == (3, True), stopped.stderr
        for place in (dst / f"f{number}" for number in range(6)):
            there = (place / "inner").read_bytes() if place.is_dir() else place.read_bytes()
            assert there in (b"keep", (source / place.name).read_bytes())
        (disk / "other").unlink()
        stopped = pcopy("-j", 1, "--delete", source, dst)
        assert sum(place.is_file() for place in dst.iterdir()) in (3, 4)


def test_a_directory_gives_way_to_a_large_file_only_when_that_is_there(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"x": Holes(LARGE + 5, {5 << 20: b"1" * 5000}), "y": b"2"})
    dst = make_tree(tmp_path / "dst", {"x": Dir({"data": b"3"})})
    calls = "copy_file_range,sendfile,read,pread64"
    done = under_strace(f"-e trace={calls} -e inject={calls}:error=EIO -P {source}/x", "--delete", source, dst, jobs=jobs)
    assert (done.returncode, "Input/output error" in done.stderr) == (1, True), done.stderr
    assert read_tree(dst).keys() == {*read_tree(source), b"x/data"}
    done = under_strace("-e trace=none", "--delete", source, dst, jobs=jobs)
    assert (done.returncode, read_tree(dst)) == (0, read_tree(source)), done.stderr


def test_a_stop_keeps_the_directory_that_a_large_file_is_to_replace(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"x": os.urandom(LARGE + 5)})
    dst = make_tree(tmp_path / "dst", {"x": Dir({"data": b"3"})})
    words = [sys.executable, "-m", "pcopy", "-j", str(jobs), "--delete", "--bwlimit", "8M", str(source), str(dst)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as run:
        while not list(dst.glob(".pcopy-*")):
            assert run.poll() is None
        run.terminate()
    assert run.returncode == 143
    assert read_tree(dst).keys() == {b".", b"x", b"x/data"}


@pytest.mark.parametrize("fails", [False, True], ids=["can be there", "cannot be there"])
def test_a_file_gives_way_to_a_directory_where_the_two_cannot_be_exchanged(tmp_path: Path, fails: bool) -> None:
    source = make_tree(tmp_path / "src", {"a": Dir({"f": b"1"})})
    dst = make_tree(tmp_path / "dst", {"a": b"old"})
    rules = "-e trace=renameat,renameat2 -e inject=renameat2:error=EINVAL"
    done = under_strace(f"{rules} -e inject=renameat:error=ENOSPC:when=2" if fails else rules, source, dst)
    assert done.returncode == (3 if fails else 0), done.stderr
    assert read_tree(dst).keys() == ({b".", b"a"} if fails else read_tree(source).keys())
    assert (dst / "a").is_dir() or (dst / "a").read_bytes() == b"old"


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_directory_that_appears_where_a_file_was_to_give_way_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanged: bool
) -> None:
    """Between the look and the call."""
    if not exchanged:
        monkeypatch.setattr(changes, "renamed", lambda *_: False)
    there = make_tree(tmp_path / "dst", {"a": Dir({"precious": b"1"})})
    names = runs.two_names("01234567", 0, "a")
    handle = os.open(there, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="directory"):
            changes.make_directory_instead("a", names, handle, 0o700)
    finally:
        os.close(handle)
    assert read_tree(there).keys() == {b".", b"a", b"a/precious"}


def test_where_links_are_unknown_every_name_is_copied(tmp_path: Path) -> None:
    """As a FUSE server without them says (ENOSYS)."""
    source = make_tree(tmp_path / "src", {"a": b"text", "b": Hard("a"), "c": Hard("a")})
    done = under_strace("-e trace=linkat -e inject=linkat:error=ENOSYS", source, tmp_path / "dst")
    assert (done.returncode, "hard links" in done.stderr) == (0, True), done.stderr
    assert {(tmp_path / "dst" / name).read_bytes() for name in "abc"} == {b"text"}


@as_root
@pytest.mark.parametrize(("owner", "mode"), [(4321, 0o700), (0, 0o300)], ids=["of another", "ours"])
def test_of_several_copies_one_that_is_closed_keeps_none_from_being_made(tmp_path: Path, owner: int, mode: int) -> None:
    source = make_tree(tmp_path / "src", {name: Dir({"f": b"1"}) for name in "abc"})
    closed = make_tree(tmp_path / "dst", {"a": Dir({})}) / "a"
    os.chown(closed, owner, owner)
    closed.chmod(mode)
    done = unprivileged(*(source / name for name in "abc"), tmp_path / "dst")
    assert done.returncode == done.stderr.count("Permission denied") == (1 if owner else 0), done.stderr
    assert [(tmp_path / "dst" / name / "f").exists() for name in "abc"] == [not owner, True, True]


@as_root
def test_a_copy_of_ours_that_is_closed_is_no_way_past_another_run(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {name: Dir({"f": b"1"}) for name in "ab"})
    closed = make_tree(tmp_path / "dst", {"b": Dir({})}) / "b"
    handle = os.open(closed, os.O_RDONLY)
    closed.chmod(0o300)
    try:
        runs.lock(handle, exclusive=True)
        runs.mark(handle, runs.DELETES)
        done = unprivileged(source / "a", source / "b", tmp_path / "dst")
        assert (done.returncode, "another run deletes" in done.stderr) == (3, True), done.stderr
        assert (stat.S_IMODE(closed.stat().st_mode), os.listdir(tmp_path / "dst")) == (0o300, ["b"])
    finally:
        os.close(handle)
    assert unprivileged(source / "a", source / "b", tmp_path / "dst").returncode == 0


def test_a_source_that_cannot_be_read_at_first_is_tried_again(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {name: Dir({"f": b"1"}) for name in "ab"})
    make_tree(tmp_path / "dst", {"a": b"old"})
    inject = f"-e trace=getdents64 -e inject=getdents64:error=EIO:when=1 -P {source}/a"
    done = under_strace(inject, source / "a", source / "b", tmp_path / "dst")
    assert (done.returncode, (tmp_path / "dst/a/f").read_bytes()) == (0, b"1"), done.stderr


@pytest.mark.parametrize("more", [[], ["--delete"], ["-j", "2"]], ids=str)
def test_nothing_gives_way_to_a_directory_that_cannot_be_read(tmp_path: Path, more: list[str], pcopy: Run) -> None:
    closed, loop = make_tree(tmp_path / "src", {"x": Dir({"f": b"1"}), "y": Dir({"g": b"2"})}), tmp_path / "loop"
    make_tree(tmp_path, {"dst": Dir({"x": b"old", "y": b"old"}), "loop": Dir({"a": Dir({"l": Link("..")})})})
    make_tree(tmp_path, {"copy": Dir({"a": Dir({"l": b"old"})})})
    (closed / "x").chmod(0)
    try:
        done = unprivileged(*more, closed, tmp_path / "dst")
    finally:
        (closed / "x").chmod(0o700)
    assert (done.returncode, "Permission denied" in done.stderr, (tmp_path / "dst/x").read_bytes()) == (1, True, b"old")
    assert (tmp_path / "dst/y/g").read_bytes() == b"2"
    done = pcopy("-L", *more, loop, tmp_path / "copy")
    assert (done.returncode, "a directory above it" in done.stderr) == (1, True), done.stderr
    assert (tmp_path / "copy/a/l").read_bytes() == b"old"


@pytest.mark.parametrize("limit", [None, 30])
def test_a_directory_gives_way_to_what_the_source_has(tmp_path: Path, jobs: int, limit: int | None) -> None:
    inside: dict[str | bytes, object] = {"a": b"1", "b": Dir({"c": b"2", "e": Dir({})})}
    entries = {"file": b"new", "link": Link("x"), "fifo": Fifo(), "one": b"3", "two": Hard("one"), "large": bytes(33 << 20)}
    source = make_tree(tmp_path / "src", entries)
    make_tree(tmp_path / "dst", {name: Dir(inside) for name in entries})
    for place in (source, tmp_path / "dst"):
        make_tree(place / "same", {"f": b"4"})
    without = pcopy.copy(source, tmp_path / "dst", jobs=jobs)
    assert (without.exit_status, without.failed, without.deleted) == (1, len(entries), 0)
    plan = pcopy.copy(source, tmp_path / "dst", jobs=jobs, delete=True, dry_run=True)
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, delete=True, max_delete=limit)
    assert (report.ok, report.deleted, report.failed) == (True, 5 * len(entries), 0), report.errors
    assert (plan.ok, plan.deleted, plan.files) == (True, report.deleted, report.files)
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_a_directory_that_something_is_mounted_on_gives_way_to_nothing(tmp_path: Path, jobs: int) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    source = make_tree(tmp_path / "src", {"f": b"1", "g": b"2"})
    dst = make_tree(tmp_path / "dst", {"f": Dir({"m": Dir({})})})
    if subprocess.run(["mount", "-t", "tmpfs", "none", dst / "f/m"], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        report = pcopy.copy(source, dst, jobs=jobs, delete=True)
    finally:
        subprocess.run(["umount", dst / "f/m"], check=True)
    assert report.exit_status == 1
    assert sorted(os.path.relpath(error.path, tmp_path) for error in report.errors) == ["dst/f/m", "src/f"]
    assert (dst / "g").read_bytes() == b"2"


@as_root
@pytest.mark.parametrize("delete", [True, False])
def test_a_directory_that_is_a_mount_does_not_give_way_and_it_is_said_why(tmp_path: Path, jobs: int, delete: bool) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1", "g": b"2"})
    dst = make_tree(tmp_path / "dst", {"f": Dir({})})
    with mounted(dst / "f", "-t", "tmpfs", "none"):
        foretold = pcopy.copy(source, dst, jobs=jobs, delete=delete, dry_run=True)
        report = pcopy.copy(source, dst, jobs=jobs, delete=delete)
    assert [(error.path, "something is mounted on it" in error.reason) for error in report.errors] == [(f"{source}/f", True)]
    assert (report.exit_status, sorted(os.listdir(dst))) == (1, ["f", "g"])
    assert (foretold.errors, foretold.files) == (report.errors, 1)


# ---- what makes no sense --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max-delete", "1", "src", "dst"], "max-delete goes with delete"),
        (["--delete", "--max-delete", "-1", "src", "dst"], "-1 is not in the range x>=0"),
        (["--delete", "src/f", "dst"], "no source is one"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, pcopy: Run, words: list[str], says: str) -> None:
    make_tree(tmp_path / "src", {"f": b"1"})
    dst = make_tree(tmp_path / "dst", {"x": b"2"})
    done = pcopy(*words)
    assert (done.returncode, says in done.stderr, os.listdir(dst)) == (2, True, ["x"])


@pytest.mark.parametrize(
    ("moment", "limit"),
    [(0, []), (50, []), (700, []), (50, ["--max-delete", "1640"]), (50, ["--max-delete", "9000"])],
    ids=str,
)
def test_a_killed_worker_of_a_deletion_is_replaced(tmp_path: Path, moment: int, limit: list[str]) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1"})
    dst = make_tree(tmp_path / "dst", {f"d{number}": Dir({f"x{count}": b"" for count in range(40)}) for number in range(40)})
    words = [sys.executable, "-c", KILLED, str(moment), "--json", "-q", "-j", "2", "--delete", *limit, str(source), str(dst)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, sorted(os.listdir(dst))) == (0, ["f"]), done.stderr
    report = json.loads(done.stdout)
    assert "a worker process was killed" in " ".join(report["warnings"])
    assert report["deleted"] <= 40 * 41


KILLED = """
import mmap, os, sys
import pcopy.coordinator, pcopy.cli
pcopy.coordinator.FIRST = 0.0  # workers do it all
left = mmap.mmap(-1, 2)  # shared with them
left[:] = int(sys.argv[1]).to_bytes(2, "little")
def hook(event, arguments):
    if event == "os.remove":
        count = int.from_bytes(left[:], "little")
        left[:] = (count - 1 if count else 65535).to_bytes(2, "little")  # so many that it is once
        if not count:
            os.kill(os.getpid(), 9)
sys.addaudithook(hook)
pcopy.cli.main(sys.argv[2:])
"""
