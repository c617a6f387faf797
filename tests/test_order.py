"""The order of operations: at no moment is data lost, half written under a final name, or readable for the wrong user."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import pcopy
from pcopy import changes, mounts, plain, runs
from pcopy import filesystem as fs
from pcopy.contents import Contents
from pcopy.metadata import SHORTLY
from pcopy.options import Options
from pcopy.outcome import Failure, Outcome
from pcopy.report import warnings
from pcopy.work import Attributes, Entries, Finish, Job, Scan, Tree, Unit
from pcopy.worker import run
from tests.conftest import SHARED, Run, as_root, compiled
from tests.strace import lines_of, strace
from tests.test_destination import mounted
from tests.trees import WHEN, Dir, Fifo, File, Hard, Holes, Link, make_tree, read_tree

LARGE = 33 << 20  # bytes: a file of this size is shared out in spans
DEAD = ".pcopy-{}-{}-0123456789abcdef"  # what a run calls a file that is not whole: whose, how far below its lock

JOBS = pytest.mark.parametrize("jobs", [1, 3])


# ---- the calls, in their order --------------------------------------------------------------------------------------


def traced(tmp_path: Path, *arguments: object, inject: str = "") -> list[str]:
    """The system calls of a run, one to a line; handles with the paths that they had."""
    log = tmp_path / "strace"
    words = strace("-y", "-s", "4096", *(["-e", inject] if inject else []), log=log)
    words += [sys.executable, "-m", "pcopy", "-j", "1", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    lines = lines_of(log)
    assert inject or done.returncode == 0, done.stderr
    return [line.split(maxsplit=1)[1] for line in lines if "resumed>" not in line]


def calls_on(trace: list[str], path: Path) -> list[str]:
    """Names of the calls that were given a handle of this file, from its making to its closing."""
    return [line.partition("(")[0] for line in trace if f"<{path}>" in line]


def index(trace: list[str], pattern: str) -> int:
    """Where the one line stands that matches."""
    found = [number for number, line in enumerate(trace) if re.search(pattern, line)]
    assert len(found) == 1, (pattern, [trace[number] for number in found])
    return found[0]


@as_root
def test_a_new_file_is_made_alone_and_closed_and_its_times_come_last(tmp_path: Path) -> None:
    """Owner, then mode, so that no set-uid bit is ever on a file of the wrong owner; times last say that it is whole."""
    source = make_tree(tmp_path / "src", {"f": File(b"text" * 1000, 0o4755, xattrs={"user.x": b"1"}, owner=(12, 34))})
    trace = traced(tmp_path, source, tmp_path / "dst")
    copy = tmp_path / "dst/f"
    made = trace[index(trace, rf"openat\(.*= \d+<{copy}>")]
    assert all(flag in made for flag in ("O_CREAT", "O_EXCL", "O_NOFOLLOW", "0600")), made
    calls = calls_on(trace, copy)
    order = [calls.index(name) for name in ("openat", "fchown", "fsetxattr", "fchmod", "utimensat", "close")]
    assert order == sorted(order)
    assert [calls.count(name) for name in ("fchown", "fchmod", "utimensat")] == [1, 1, 1]
    assert calls[-2:] == ["utimensat", "close"]


@pytest.mark.parametrize(
    ("kind", "rest", "times"), [("fuse.sshfs", 60, 0), ("overlay", 60, 30), ("tmpfs", 60, 30), ("tmpfs", 1, 1)]
)
def test_only_a_source_that_this_machine_keeps_is_asked_for_writes_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rest: int, times: int
) -> None:
    """A question for each file is what takes long where somebody else keeps it, and the answer means nothing.

    Nor are files asked that were last changed so long ago that such a write would take more than a minute, but the first.
    """
    assert plain.REST == 60 * 10**9
    monkeypatch.setattr(plain, "REST", rest * 10**9)
    monkeypatch.setattr("pcopy.coordinator.FIRST", 60.0)  # each slice asks of its first file
    source = make_tree(tmp_path / "src", {"d": Dir({str(number): File(b"text", mtime_ns=WHEN) for number in range(30)})})
    time.sleep(SHORTLY / 1e9 + 0.1)  # what was changed just now is copied by another way
    asked: list[int] = []
    seek = os.lseek

    def spied(handle: int, position: int, how: int) -> int:
        asked.append(how)
        return seek(handle, position, how)

    monkeypatch.setattr(os, "lseek", spied)
    monkeypatch.setattr(mounts, "kind_of", lambda path: kind)
    assert pcopy.copy(source, tmp_path / "dst", jobs=1).ok
    assert asked.count(os.SEEK_DATA) == times
    kinds = {"nfs4": True, "fuse.sshfs": True, "ext4": False, "overlay": False, "": False}
    assert {one: mounts.is_elsewhere(one) for one in kinds} == kinds
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_what_somebody_else_keeps_is_fetched_during_requests_for_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question is a round trip. Contents are asked for after the first look at a file, or no change since would be seen;
    its list of attributes after they are read, or one could be missed; and many files are closed by one call.
    """
    monkeypatch.setattr("pcopy.coordinator.FIRST", 60.0)
    count, some = 40, {"user.x": b"1"}
    tree = Dir({str(number): File(b"text", xattrs={} if number % 9 else some) for number in range(count)})
    source = make_tree(tmp_path / "src", {"d": tree})
    time.sleep(SHORTLY / 1e9 + 0.1)
    calls: list[tuple[str, int]] = []

    def spy(name: str) -> None:
        real = getattr(os, name)

        def spied(handle: Any, *rest: Any, **more: Any) -> Any:
            calls.append((name, handle))
            return real(handle, *rest, **more)

        monkeypatch.setattr(os, name, spied)

    for name in ("fstat", "posix_fadvise", "listxattr", "copy_file_range", "closerange", "sendfile"):
        spy(name)
    handles = len(os.listdir("/proc/self/fd"))
    assert pcopy.copy(source, tmp_path / "here", jobs=1).ok
    assert not any(name in ("posix_fadvise", "closerange") for name, _ in calls)
    calls.clear()
    monkeypatch.setattr(mounts, "kind_of", lambda path: "nfs4")
    assert pcopy.copy(source, tmp_path / "there", jobs=1).ok
    starts = [at for at, (name, _) in enumerate(calls) if name == "posix_fadvise"]
    assert len(starts) == count
    early = 0
    for at in starts:
        handle = calls[at][1]
        assert calls[at - 1] == ("fstat", handle)
        reads = [name for name, one in calls[at + 1 :] if one == handle][:3]
        assert reads[0] in ("copy_file_range", "sendfile") and reads[1:] == ["fstat", "listxattr"], reads
        early += calls[at + 1] != (reads[0], handle)
    assert early >= count - 2
    assert 2 <= [name for name, _ in calls].count("closerange") <= count / 4
    assert len(os.listdir("/proc/self/fd")) == handles
    assert read_tree(tmp_path / "there") == read_tree(source)


def test_a_handler_that_raises_while_many_are_closed_leaves_none_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handles = [os.open(tmp_path, os.O_RDONLY) for _ in range(6)]
    os.close(handles.pop(2))  # so that they are no neighbours
    real = os.closerange

    def raising(first: int, stop: int) -> None:
        real(first, stop)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "closerange", raising)
    numbers = list(handles)
    with pytest.raises(KeyboardInterrupt):
        fs.close_all_read(handles)
    assert not any(os.path.exists(f"/proc/self/fd/{number}") for number in numbers) and not handles


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    """O_PATH gives a handle that stands for an entry and does not open it."""
    source = make_tree(tmp_path / "src", {"fifo": Fifo(), "link": Link("fifo"), "d": Dir({"fifo": Fifo(0o600)})})
    trace = traced(tmp_path, source, tmp_path / "dst")
    opened = [line for line in trace if re.match(r'openat\(.*"(fifo|link)"', line)]
    assert len(opened) == 6  # the source and the copy of three
    assert all("O_PATH" in line and "O_NOFOLLOW" in line for line in opened), opened


def test_a_directory_gets_its_times_when_its_last_entry_is_in_place(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir({"f": b"1", "l": Link("f"), "e": Dir({"g": b"2"}), "h": Hard("d/f")})})
    trace = traced(tmp_path, source, tmp_path / "dst")
    above = re.escape(str(tmp_path / "dst/d"))
    changes = [number for number, line in enumerate(trace) if is_change(line, above)]
    times = [number for number, line in enumerate(trace) if re.match(rf"utimensat\(\d+<{above}>", line)]
    assert len(changes) >= 4
    assert times and times[-1] > changes[-1]


def test_a_directory_that_cannot_be_made_is_tried_again(tmp_path: Path) -> None:
    """So are those beside it: what was made of them goes first, so that what is there by then is somebody else's."""
    source = make_tree(tmp_path / "src", {name: Dir({"f": b"1"}) for name in ("a", "b", "c")})
    trace = traced(tmp_path, source, tmp_path / "dst", inject="inject=mkdirat:error=EIO:when=2")
    assert sum("AT_REMOVEDIR" in line or line.startswith("rmdir(") for line in trace) == 1
    assert not any("EEXIST" in line for line in trace if line.startswith("mkdirat("))
    assert read_tree(tmp_path / "dst") == read_tree(source)


def is_change(line: str, directory: str) -> bool:
    calls = r"(mkdirat|symlinkat|linkat|renameat2?|unlinkat|openat(?=.*O_CREAT))"
    return bool(re.match(rf"{calls}\(.*<{directory}>", line))


@pytest.mark.parametrize(
    ("there", "options"),
    [({"f": b"old"}, []), ({}, ["--atomic"]), ({}, ["--overwrite", "older"]), ({}, ["--overwrite", "never"])],
    ids=["replaced", "atomic", "older", "never"],
)
def test_a_file_appears_whole_by_a_rename(tmp_path: Path, there: dict[str, object], options: list[str]) -> None:
    source = make_tree(tmp_path / "src", {"f": File(b"new text", 0o640)})
    make_tree(tmp_path / "dst", there)
    trace = traced(tmp_path, *options, source, tmp_path / "dst")
    temporary = r"\.pcopy-[0-9a-f]{8}-0-[0-9a-f]{16}"
    made = index(trace, rf'openat\(\d+<[^>]*>, "{temporary}", .*O_EXCL.*, 0600\)')
    times = index(trace, rf"utimensat\(\d+<[^>]*/{temporary}>")
    renamed = index(trace, rf'rename\w*\(.*"{temporary}".*"f"')
    assert made < times < renamed
    assert not [line for line in trace if re.search(r'openat\([^"]*<[^"]*/dst>, "f", .*O_(WRONLY|RDWR|CREAT)', line)]
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_a_run_that_is_killed_before_a_rename_leaves_the_old_file_whole_and_the_next_one_clears_up(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"f": b"new", "d": Dir({"g": b"new"})})
    make_tree(tmp_path / "dst", {"f": b"old!", "d": Dir({"g": b"old!"})})
    for _ in range(2):  # the second run is killed over what the first one left
        traced(tmp_path, source, tmp_path / "dst", inject="inject=rename,renameat,renameat2:signal=SIGKILL")
        assert (tmp_path / "dst/f").read_bytes() == b"old!"
        assert [name for name in os.listdir(tmp_path / "dst") if name.startswith(".pcopy-")] != []
    copy_equals(source, tmp_path / "dst", 1)


# ---- replacing ------------------------------------------------------------------------------------------------------


def copy_equals(source: Path, destination: Path, jobs: int) -> pcopy.Report:
    report = pcopy.copy(source, destination, jobs=jobs)
    assert report.ok, report.errors
    assert read_tree(destination) == read_tree(source)
    return report


@JOBS
@pytest.mark.parametrize("size", [10, LARGE], ids=["small", "large"])
def test_whoever_reads_the_old_file_goes_on_reading_it(tmp_path: Path, jobs: int, size: int) -> None:
    source = make_tree(tmp_path / "src", {"f": Holes(size, {0: b"new"})})
    destination = make_tree(tmp_path / "dst", {"f": File(b"old text", mtime_ns=WHEN - 1), "other": Hard("f")})
    with open(destination / "f", "rb") as reader:
        report = pcopy.copy(source, destination, jobs=jobs)
        assert report.ok, report.errors
        assert reader.read() == b"old text"
        assert os.fstat(reader.fileno()).st_ino != (destination / "f").stat().st_ino
    assert (destination / "f").read_bytes()[:3] == b"new"
    assert (destination / "other").read_bytes() == b"old text"  # a snapshot's, say


KINDS = {
    "file": File(b"text", 0o640),
    "set-uid": File(b"text", 0o4755),
    "large": Holes(LARGE, {3: b"x"}),
    "symlink": Link("somewhere"),
    "link to a directory": Link("../out"),
    "fifo": Fifo(),
    "empty directory": Dir(),
}


@JOBS
@pytest.mark.parametrize("wanted", [*KINDS, "directory", "hard link"])
def test_an_entry_of_another_kind_is_replaced_and_never_gone_through(tmp_path: Path, jobs: int, wanted: str) -> None:
    out = make_tree(tmp_path / "out", {"keep": b"mine", "x": b"mine"})
    before = read_tree(out)
    kinds: dict[str, object] = {**KINDS, "directory": Dir({"x": b"1", "e": Dir({"y": b"2"})}), "hard link": Hard("a")}
    names = {f"over {kind}": kind for kind in KINDS} | {"over a link to a file": "", "over nothing": ""}
    source = make_tree(tmp_path / "src", {"a": b"linked", **dict.fromkeys(names, kinds[wanted])})
    there = {name: KINDS[kind] for name, kind in names.items() if kind}
    make_tree(tmp_path / "dst", {**there, "over a link to a file": Link("../out/keep"), "a": Link("../out/x")})
    copy_equals(source, tmp_path / "dst", jobs)
    assert read_tree(out) == before


@JOBS
@pytest.mark.parametrize("wanted", ["file", "large", "symlink", "fifo"])
def test_a_directory_that_holds_something_is_not_replaced(tmp_path: Path, jobs: int, wanted: str) -> None:
    source = make_tree(tmp_path / "src", {"d": KINDS[wanted], "other": b"text", "e": Dir({"d": KINDS[wanted]})})
    full = Dir({"mine": b"mine"})
    make_tree(tmp_path / "dst", {"d": full, "e": Dir({"d": full})})
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs)
    assert report.exit_status == 1
    assert {os.path.relpath(error.path, source) for error in report.errors} == {"d", "e/d"}
    assert all("a directory that is not empty is in its place" in error.reason for error in report.errors)
    copy = read_tree(tmp_path / "dst")
    assert copy.keys() == {b".", b"d", b"d/mine", b"other", b"e", b"e/d", b"e/d/mine"}
    assert (copy[b"."].mtime_ns, copy[b"e"].mtime_ns) == (WHEN, WHEN)


@JOBS
def test_a_source_among_several_never_goes_into_what_a_link_points_to(tmp_path: Path, jobs: int) -> None:
    both = make_tree(tmp_path / "src", {"a": Dir({"f": b"1"}), "b": b"2"})
    out = make_tree(tmp_path / "out", {"b": b"mine"})
    before = read_tree(out)
    make_tree(tmp_path / "dst", {"a": Link("../out"), "b": Link("../out/b")})
    report = pcopy.copy([both / "a", both / "b"], tmp_path / "dst", jobs=jobs)
    assert report.ok, report.errors
    assert read_tree(out) == before
    assert read_tree(tmp_path / "dst/a") == read_tree(both / "a")
    assert not (tmp_path / "dst/b").is_symlink()


# ---- temporary names ------------------------------------------------------------------------------------------------

NEARLY = [
    ".pcopy-0123ABCD-0-0123456789abcdef",
    ".pcopy-0123abcd-0-0123456789abcde",
    ".pcopy-0123abcd-0-0123456789abcdef0",
    ".pcopy-0123abcd-0-0123456789abcdef.txt",
    ".pcopy-0123abcd-0-0123456789abcdef\n",
    ".pcopy-0123abcd-x-0123456789abcdef",
    ".pcopy-0123abcd--0123456789abcdef",
    "pcopy-0123abcd-0-0123456789abcdef",
    " .pcopy-0123abcd-0-0123456789abcdef",
    ".pcopy-",
]


@JOBS
def test_what_dead_runs_left_is_cleared_and_nothing_else(tmp_path: Path, jobs: int) -> None:
    """Of runs into this destination, into one above it, and into one below it."""
    source = make_tree(tmp_path / "src", {"f": b"text", "d": Dir({"e": Dir({"f": b"1"})})})
    left: dict[str | bytes, object] = {DEAD.format("0123abcd", depth): b"half" for depth in range(4)}
    nearly: dict[str | bytes, object] = dict.fromkeys(NEARLY, b"mine")
    make_tree(tmp_path / "dst", {**left, **nearly, "d": Dir({**left, **nearly, "e": Dir(left)})})
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs)
    assert report.ok, report.errors
    expected = {b".", b"f", b"d", b"d/e", b"d/e/f"} | {os.fsencode(top + name) for name in NEARLY for top in ("", "d/")}
    assert read_tree(tmp_path / "dst").keys() == expected


def test_what_dead_runs_left_is_not_touched_by_a_dry_run(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"f": b"text", "d": Dir()})
    left = {DEAD.format("0123abcd", 0): b"half"}
    make_tree(tmp_path / "dst", {**left, "d": Dir({DEAD.format("0123abcd", 1): b"half"})})
    before = read_tree(tmp_path / "dst")
    assert pcopy.copy(source, tmp_path / "dst", jobs=1, dry_run=True).ok
    assert read_tree(tmp_path / "dst") == before


@JOBS
@pytest.mark.parametrize("kind", ["file", "large", "symlink", "fifo", "empty directory", "directory"])
def test_an_entry_of_the_source_that_looks_like_a_temporary_one_is_an_entry(tmp_path: Path, jobs: int, kind: str) -> None:
    """It is copied, and the next run finds it there and lets it be."""
    entry = {**KINDS, "directory": Dir({"x": b"1"})}[kind]
    name = DEAD.format("0123abcd", 0)
    source = make_tree(tmp_path / "src", {name: entry, "d": Dir({name: entry, DEAD.format("0123abcd", 1): entry})})
    copy_equals(source, tmp_path / "dst", jobs)
    inodes = [os.lstat(tmp_path / "dst" / path).st_ino for path in (name, f"d/{name}")]
    report = copy_equals(source, tmp_path / "dst", jobs)
    assert [os.lstat(tmp_path / "dst" / path).st_ino for path in (name, f"d/{name}")] == inodes
    assert (report.files, report.symlinks, report.specials) == (0, 0, 0)


@JOBS
def test_a_directory_with_a_temporary_name_is_not_ours(tmp_path: Path, jobs: int) -> None:
    """If it holds anything; that it cannot be removed is no reason to stop."""
    source = make_tree(tmp_path / "src", {"f": b"text", "d": Dir({"f": b"text"})})
    name = DEAD.format("0123abcd", 0)
    make_tree(tmp_path / "dst", {name: Dir({"mine": b"1"}), "d": Dir({name: Dir({"mine": b"1"})})})
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs)
    assert report.ok, report.errors
    copy = read_tree(tmp_path / "dst")
    assert {os.fsencode(path) for path in (f"{name}/mine", f"d/{name}/mine", "f", "d/f")} <= copy.keys()


@contextlib.contextmanager
def live_run(directory: Path) -> Iterator[None]:
    """Holds what a run into this directory would hold."""
    handle = os.open(directory, os.O_RDONLY)
    runs.lock(handle, exclusive=True)
    try:
        yield
    finally:
        os.close(handle)


@pytest.mark.parametrize("locked", ["dst/d", "."], ids=["below", "above"])
def test_what_a_live_run_is_writing_is_left_alone(tmp_path: Path, pcopy: Run, locked: str) -> None:
    """A run into a directory below the destination, or into one above it."""
    source = make_tree(tmp_path / "src", {"f": b"text", "d": Dir({"e": Dir({"f": b"1"})})})
    depth = 0 if locked == "dst/d" else 2
    one, two = DEAD.format("0123abcd", depth), DEAD.format("0123abcd", depth + 1)
    make_tree(tmp_path / "dst", {"d": Dir({one: b"half", "e": Dir({two: b"half"})})})
    with live_run(tmp_path / locked):
        assert pcopy(source, tmp_path / "dst").returncode == 0
        assert (tmp_path / "dst/d" / one).exists()
        assert (tmp_path / "dst/d/e" / two).exists()
    assert pcopy(source, tmp_path / "dst").returncode == 0
    assert read_tree(tmp_path / "dst") == read_tree(source)


# ---- sources that change --------------------------------------------------------------------------------------------

OVERWRITE = """
import contextlib, os, sys
with contextlib.suppress(PermissionError):
    os.nice(-15)  # they have their turns, however busy the machine is
handle = os.open(sys.argv[1], os.O_WRONLY)
print("ready", flush=True)
while True:
    os.pwrite(handle, os.urandom(8), 0)
"""


@contextlib.contextmanager
def kept_changing(path: Path) -> Iterator[None]:
    """Somebody writes to a file all the time; two of them, so that one does while the other waits for a processor."""
    writers = [subprocess.Popen([sys.executable, "-c", OVERWRITE, path], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for writer in writers:
            assert writer.stdout and writer.stdout.readline() == b"ready\n"
        yield
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


@JOBS
@pytest.mark.parametrize("size", [30 << 20, LARGE], ids=["whole", "in spans"])
@pytest.mark.parametrize("old", [b"", b"old"], ids=["new", "replaced"])
def test_a_source_that_changes_all_the_time_is_reported_and_leaves_nothing(
    tmp_path: Path, jobs: int, size: int, old: bytes
) -> None:
    """Holes are looked for in it, which takes so long that the writers have their turns whatever the machine is doing."""
    source = make_tree(tmp_path / "src", {"busy": b"x" * size, "quiet": b"text"})
    make_tree(tmp_path / "dst", {"busy": old} if old else {})
    with kept_changing(source / "busy"):
        report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, sparse="always")
    assert report.exit_status == 1
    assert [os.path.basename(error.path) for error in report.errors] == ["busy"]
    assert "changed each time it was copied" in report.errors[0].reason
    assert (report.files, report.failed, report.vanished) == (1, 1, 0)
    assert sorted(os.listdir(tmp_path / "dst")) == (["busy", "quiet"] if old else ["quiet"])
    if old:
        assert (tmp_path / "dst/busy").read_bytes() == old
    assert (tmp_path / "dst").stat().st_mtime_ns == WHEN
    copy_equals(source, tmp_path / "dst", jobs)  # now that nobody writes to it


@pytest.mark.parametrize("way", ["looked at once", "waited for", "by another clock", "changed just now"])
@pytest.mark.parametrize("change", [b"appended", b""], ids=["grown", "rewritten"])
def test_a_source_that_changes_while_it_is_read_is_copied_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, change: bytes
) -> None:
    """Sources that nobody has touched of late are looked at after they are read only. Each way, each change is seen."""
    source = make_tree(tmp_path / "src", {f"f{number}": b"before" for number in range(9)})
    time.sleep(0.02)  # longer than the ticks in which the kernel keeps change times
    monkeypatch.setattr("pcopy.plain.SHORTLY", 10**10 if way == "changed just now" else 0)
    monkeypatch.setattr("pcopy.plain.REST", 60 * 10**9 if way == "waited for" else 0)
    if way == "by another clock":
        monkeypatch.setattr("pcopy.mounts.LOCAL", frozenset())
    monkeypatch.setattr("pcopy.coordinator.FIRST", 60.0)  # each slice begins with two looks
    looks, read = Counter[int](), os.copy_file_range
    look = os.fstat

    def fstat(handle: int) -> os.stat_result:
        state = look(handle)
        looks[state.st_ino] += 1
        return state

    def copy_file_range(source: int, target: int, *rest: int) -> int:
        count = read(source, target, *rest)
        path = os.readlink(f"/proc/self/fd/{source}")
        if path.endswith("f5") and os.path.getsize(path) == 6 and Path(path).read_bytes() == b"before":
            with open(path, "r+b") as file:
                file.write(b"after!" + change)
        return count

    monkeypatch.setattr(os, "fstat", fstat)
    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    report = pcopy.copy(source, tmp_path / "dst", jobs=1)
    assert (report.ok, report.files) == (True, 9)
    assert (tmp_path / "dst/f5").read_bytes() == b"after!" + change
    assert read_tree(tmp_path / "dst") == read_tree(source)
    assert sorted({looks[(source / f"f{number}").stat().st_ino] for number in (1, 2, 3)}) == [
        {"looked at once": 1, "waited for": 1, "by another clock": 2, "changed just now": 3}[way]
    ]


@pytest.mark.parametrize("behind", [0, 3600], ids=["this machine's", "another's"])
def test_what_was_changed_just_now_is_waited_for_by_this_machines_clock_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    """Times to come are those of a server, or of a disk that was written to in another time zone: each file would wait."""
    source = make_tree(tmp_path / "src", {f"f{number}": b"1" for number in range(3)})
    waits: list[float] = []
    clock, now = time.time_ns, (source / "f1").stat().st_ctime_ns + 10**6
    monkeypatch.setattr(time, "time_ns", lambda: min(now, clock()) - behind * 10**9)
    monkeypatch.setattr(time, "sleep", waits.append)
    report = pcopy.copy(source, tmp_path / "dst", jobs=1)
    assert (report.ok, report.files) == (True, 3)
    assert bool(waits) == (not behind)


def test_a_clock_that_is_set_back_hides_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes a source then has a time that is older than the run."""
    source = make_tree(tmp_path / "src", {f"f{number}": b"before" for number in range(9)})
    time.sleep(0.02)
    monkeypatch.setattr("pcopy.plain.SHORTLY", 0)
    monkeypatch.setattr("pcopy.plain.REST", 0)
    monkeypatch.setattr("pcopy.coordinator.FIRST", 60.0)
    ahead, read, clock = 3600 * 10**9, os.copy_file_range, time.time_ns

    def copy_file_range(source: int, target: int, *rest: int) -> int:
        nonlocal ahead
        count = read(source, target, *rest)
        path = os.readlink(f"/proc/self/fd/{source}")
        if path.endswith("f5") and ahead:
            ahead = 0
            with open(path, "r+b") as file:
                file.write(b"after!")
        return count

    monkeypatch.setattr(time, "time_ns", lambda: clock() + ahead)
    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    report = pcopy.copy(source, tmp_path / "dst", jobs=1)
    assert (report.ok, ahead) == (True, 0)
    assert read_tree(tmp_path / "dst") == read_tree(source)
    assert (tmp_path / "dst/f5").read_bytes() == b"after!"


@as_root
@pytest.mark.parametrize("moment", ["span", "seal"])
@pytest.mark.parametrize("same_number", [True, False], ids=["inode number used again", "another inode"])
def test_another_file_in_the_place_of_a_temporary_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, same_number: bool
) -> None:
    """Who may write into the destination's directory puts a file of their own there, and would get what is secret into it."""
    source = make_tree(tmp_path / "src", {"large": File(b"x" * (33 << 20), mode=0o4700), "f": b"1"})
    before = changes.open_to_write
    left = 1 if moment == "span" else 2  # the first opening is for the span, the second for the seal

    def open_to_write(name: str, directory: int) -> int:
        nonlocal left
        left -= os.path.lexists(tmp_path / "dst" / name)  # at first it is looked for whether a killed run left one
        if not left:
            number = os.stat(name, dir_fd=directory).st_ino
            os.unlink(name, dir_fd=directory)
            handle = os.open(name, os.O_WRONLY | os.O_CREAT, 0o666, dir_fd=directory)
            os.ftruncate(handle, 33 << 20)
            os.fchown(handle, 1234, 1234)
            state = os.fstat(handle)
            os.close(handle)
            if same_number and state.st_ino != number:
                monkeypatch.setattr(os, "fstat", with_number(os.fstat, state.st_ino, number))
        return before(name, directory)

    monkeypatch.setattr(changes, "open_to_write", open_to_write)
    report = pcopy.copy(source, tmp_path / "dst", jobs=1)
    assert (report.exit_status, report.files, report.failed, left <= 0) == (1, 1, 1, True)
    assert "somebody put another file in the place of its temporary one" in report.errors[0].reason
    assert os.listdir(tmp_path / "dst") == ["f"]


@as_root
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_another_file_in_the_place_of_a_link_or_a_pipe_gets_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Who may write into the directory moves a file of root's there: it must not become theirs."""
    source = make_tree(tmp_path / "src", {"x": Link("f") if kind == "link" else Fifo(mode=0o644), "f": b"1"})
    os.chown(source / "x", 1234, 1234, follow_symlinks=False)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    secret.chmod(0o600)
    call = "make_symbolic_link" if kind == "link" else "make_special"
    before = getattr(changes, call)

    def make(*arguments: object) -> None:
        before(*arguments)
        os.rename(secret, tmp_path / "dst/x")

    monkeypatch.setattr(changes, call, make)
    with open(secret) as opened:
        report = pcopy.copy(source, tmp_path / "dst", jobs=1)
        state = os.fstat(opened.fileno())
    assert (state.st_uid, stat.S_IMODE(state.st_mode)) == (0, 0o600)
    assert [(one.path, one.errno) for one in report.errors] == [(f"{source}/x", errno.EBUSY)]


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
def test_a_stop_after_a_worker_died_leaves_nothing_that_it_had_begun(tmp_path: Path, there: bool) -> None:
    source = make_tree(tmp_path / "src", {"a": b"1", "d": Dir({"e": Dir({"deadly": b"x" * 9000, "f": b"2"})})})
    if there:
        make_tree(tmp_path / "dst", {"a": b"old", "d": Dir({"e": Dir({"deadly": b"older", "f": b"old"})})})
    script = f"""
import os, signal
import pcopy, pcopy.coordinator, pcopy.filesystem as fs
before = os.copy_file_range
def dies(source, target, *rest, **more):
    if os.fstat(source).st_size == 9000:
        os.write(target, b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return before(source, target, *rest, **more)
os.copy_file_range = dies
requeue = pcopy.coordinator.Coordinator.requeue
def stops(self, slices):
    requeue(self, slices)
    self.stop.signal = signal.SIGTERM
pcopy.coordinator.Coordinator.requeue = stops
pcopy.coordinator.FIRST = 0.0
report = pcopy.copy("{source}", "{tmp_path}/dst", jobs=2, start_method="fork")
print(int(report.exit_status))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "143\n", done.stderr
    names = [path.name for path in (tmp_path / "dst").rglob("*")]
    assert not [name for name in names if name.startswith(".pcopy-")]
    assert (tmp_path / "dst/d/e/deadly").exists() == there
    assert not there or (tmp_path / "dst/d/e/deadly").read_bytes() == b"older"


@JOBS
def test_directories_that_a_killed_run_had_not_finished_get_their_modes_even_if_these_are_not_preserved(
    tmp_path: Path, jobs: int
) -> None:
    source = make_tree(tmp_path / "src", {f"d{n}": Dir({"e": Dir({"f": os.urandom(300_000)}, mode=0o711)}) for n in range(12)})
    words = [sys.executable, "-m", "pcopy", "-q", "-j", jobs, "--no-preserve", "mode", source, tmp_path / "dst"]
    command = [str(word) for word in words]
    umask = os.umask(0o022)
    try:
        run = subprocess.Popen([*command, "--bwlimit", "2M"])
        end = time.monotonic() + 20
        while not list(tmp_path.glob("dst/*/e/f")) and time.monotonic() < end:
            time.sleep(0.01)
        run.kill()
        run.wait()
        closed = tmp_path / "dst/d0"
        closed.chmod(0o700)  # its owner did
        for _ in range(200):  # workers that are about to end have the lock still
            if not (status := subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode):
                break
            time.sleep(0.02)
    finally:
        os.umask(umask)
    modes = {path.relative_to(tmp_path / "dst"): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("dst/**/")}
    wanted = {path: 0o711 if path.name == "e" else 0o755 for path in modes}
    assert (status, len(modes)) == (0, 25)
    assert modes == {**wanted, Path("d0"): 0o700}


@JOBS
def test_a_large_file_that_has_its_name_when_its_worker_dies_is_done(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"large": os.urandom(33 << 20), "f": b"1"})
    script = f"""
import os, signal, sys
from pcopy import changes
before = changes.rename
def rename(old, new, directory, replaces):
    before(old, new, directory, replaces)
    if new == "large" and not os.path.exists("{tmp_path}/died"):
        open("{tmp_path}/died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
changes.rename = rename
import pcopy.coordinator
pcopy.coordinator.FIRST = 0.0
import pcopy
if __name__ == "__main__":
    report = pcopy.copy("{source}", "{tmp_path}/dst", jobs={max(jobs, 2)}, start_method="fork")
    print(report.exit_status.value, report.files + report.unchanged, report.errors)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, (tmp_path / "died").exists()) == ("0 2 []\n", True), done.stderr
    assert read_tree(tmp_path / "dst") == read_tree(source)


def with_number(fstat: Callable[[int], os.stat_result], seen: int, told: int) -> Callable[[int], os.stat_result]:
    """As a file system that gives the number of an inode that is gone to the next one."""

    def other(handle: int) -> os.stat_result:
        state = fstat(handle)
        if state.st_ino != seen:
            return state
        return os.stat_result(
            (state[0], told, *state[2:]), {"st_mtime_ns": state.st_mtime_ns, "st_ctime_ns": state.st_ctime_ns}
        )

    return other


# Names that a file system does not tell apart: looked up in lower case below the directory CI_TOP.
CASELESS = r"""
#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static const char *name(int at, const char *path, char *lower) {
    char link[64], top[4096];
    ssize_t size;
    snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    size = readlink(link, top, sizeof top - 1);
    if (size < 0 || path[0] == '/' || path[0] == '.') return path;
    top[size] = 0;
    if (strncmp(top, getenv("CI_TOP"), strlen(getenv("CI_TOP")))) return path;
    for (size = 0; path[size]; size++) lower[size] = tolower(path[size]);
    lower[size] = 0;
    return lower;
}
#define NEXT(type, function, ...) static type (*next)(__VA_ARGS__); if (!next) next = dlsym(RTLD_NEXT, function)
#define OPEN(function) int function(int at, const char *path, int flags, ...) { \
    char lower[4096]; va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
    NEXT(int, #function, int, const char *, int, ...); return next(at, name(at, path, lower), flags, mode); }
#define STAT(function, kind) int function(int at, const char *path, struct kind *state, int flags) { \
    char lower[4096]; NEXT(int, #function, int, const char *, struct kind *, int); \
    return next(at, name(at, path, lower), state, flags); }
OPEN(openat) OPEN(openat64) STAT(fstatat, stat) STAT(fstatat64, stat64)
int mkdirat(int at, const char *path, mode_t mode) {
    char lower[4096]; NEXT(int, "mkdirat", int, const char *, mode_t); return next(at, name(at, path, lower), mode); }
int unlinkat(int at, const char *path, int flags) {
    char lower[4096]; NEXT(int, "unlinkat", int, const char *, int); return next(at, name(at, path, lower), flags); }
int renameat(int from, const char *old, int to, const char *new) {
    char one[4096], two[4096]; NEXT(int, "renameat", int, const char *, int, const char *);
    return next(from, name(from, old, one), to, name(to, new, two)); }
int symlinkat(const char *to, int at, const char *path) {
    char lower[4096]; NEXT(int, "symlinkat", const char *, int, const char *); return next(to, at, name(at, path, lower)); }
int linkat(int from, const char *old, int to, const char *new, int flags) {
    char one[4096], two[4096]; NEXT(int, "linkat", int, const char *, int, const char *, int);
    return next(from, name(from, old, one), to, name(to, new, two), flags); }
int mkfifoat(int at, const char *path, mode_t mode) {
    char lower[4096]; NEXT(int, "mkfifoat", int, const char *, mode_t); return next(at, name(at, path, lower), mode); }
int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    char one[4096], two[4096]; NEXT(int, "renameat2", int, const char *, int, const char *, unsigned);
    return next(from, name(from, old, one), to, name(to, new, two), flags); }
"""


@pytest.mark.parametrize("options", [[], ["--atomic"]], ids=["plain", "atomic"])
@pytest.mark.parametrize("count", [1, 3])
def test_names_that_the_destination_cannot_tell_apart_are_failures(
    tmp_path: Path, pcopy: Run, count: int, options: list[str]
) -> None:
    caseless = compiled(tmp_path, CASELESS, *SHARED)
    entries = {"README": b"upper", "readme": b"lower", "D": Dir({"f": b"1"}), "d": Dir({"g": b"2"}), "other": b"3"}
    entries |= {"l": Link("lower"), "L": Link("upper"), "h": Hard("other"), "H": Hard("readme")}
    source = make_tree(tmp_path / "src", entries)
    dst = tmp_path / "dst"
    env = {**os.environ, "LD_PRELOAD": str(caseless), "CI_TOP": str(dst)}
    for _ in range(2):  # a rerun changes nothing
        done = pcopy("-j", count, *options, source, dst, env=env)
        assert done.returncode == 1, done.stderr
        failed = sorted(line.split(": ")[1] for line in done.stderr.splitlines()[:-1])
        assert sorted(os.path.basename(path).lower() for path in failed) == ["d", "h", "l", "readme"]
        assert "appeared in the destination during the run" in done.stderr
        assert (dst / "readme").read_bytes() in (b"upper", b"lower")  # the other one is whole


ONCE_MORE = """
import os, sys
from pcopy.options import Options
from pcopy.work import Entries, Job, Scan, Tree
from pcopy.worker import run
source, copy = sys.argv[1:3]
inodes = [(state.st_dev, state.st_ino) for state in map(os.stat, (source, copy))]
job = Job(Options(), (Tree(source, copy, *inodes),), "0123abcd", 0o022)
failed, units = [], [Scan(0, "", True, 1.0, again=True)] if "d" in os.listdir(source) else [
    Entries(0, "", tuple(os.listdir(source)), True, True, 1.0, again=True)
]
while units:
    outcome = run(job, units, 60.0)
    failed += [os.path.basename(one.path) for one in outcome.failures if "appeared" in one.reason]
    units = outcome.leftover
print(*sorted(failed, key=str.lower))
"""


@pytest.mark.parametrize("made", ["all", "none", "no files"])
def test_what_a_killed_worker_made_is_not_taken_for_the_copy_of_a_name_that_cannot_be_told_apart(
    tmp_path: Path, made: str
) -> None:
    """It made those in lower case, or none. What it held is done again, and what is found then is not all its own."""
    caseless = compiled(tmp_path, CASELESS, *SHARED)
    lower: dict[str | bytes, object] = {"readme": b"lower", "link": Link("lower"), "fifo": Fifo(), "d": Dir({"g": b"2"})}
    upper: dict[str | bytes, object] = {"README": b"UPPER", "LINK": Link("UPPER"), "FIFO": Fifo(), "D": Dir({"f": b"1"})}
    if made == "no files":
        lower, upper = {"readme": b"lower"}, {"README": b"UPPER"}
    source = make_tree(tmp_path / "src", {**lower, **upper})
    dst = make_tree(tmp_path / "dst", lower if made == "all" else {})
    env = {**os.environ, "LD_PRELOAD": str(caseless), "CI_TOP": str(dst)}
    words = [sys.executable, "-c", ONCE_MORE, str(source), str(dst)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)
    if made != "all":  # which of two comes first is chance
        failed = ["readme"] if made == "no files" else ["d", "fifo", "link", "readme"]
        assert (done.stdout.lower().split(), done.stderr) == (failed, "")
        return
    assert (done.stdout, done.stderr) == ("D FIFO LINK README\n", "")
    assert {name: state for name, state in read_tree(dst).items() if name} == {
        name: state for name, state in read_tree(make_tree(tmp_path / "whole", lower)).items() if name
    }


MEANWHILE = """
import errno, os, sys
import pcopy.entry, pcopy.large, pcopy.filesystem as fs
from pcopy.entry import SourceChanged
def meanwhile(error):  # another worker makes what cannot be told apart, and ours is begun once more
    if not os.listdir(sys.argv[2]) or "readme" not in os.listdir(sys.argv[2]):
        with open(os.path.join(sys.argv[2], "readme"), "w") as file:
            file.write("theirs")
        raise error
open_to_read, complete = fs.open_to_read, pcopy.large.complete
def open_once_more(name, *words):
    meanwhile(OSError(errno.EIO, "Input/output error"))
    return open_to_read(name, *words)
def complete_once_more(*words):
    meanwhile(SourceChanged())
    return complete(*words)
if sys.argv[3] == "large":
    pcopy.entry.LARGE = 1 << 20
    pcopy.large.complete = complete_once_more
else:
    fs.open_to_read = open_once_more
"""


@pytest.mark.parametrize("kind", ["tried again", "large"])
def test_what_is_copied_once_more_does_not_replace_a_name_that_cannot_be_told_apart(tmp_path: Path, kind: str) -> None:
    caseless = compiled(tmp_path, CASELESS, *SHARED)
    source = make_tree(tmp_path / "src", {"README": b"ours" * (1 << 19)})
    (dst := tmp_path / "dst").mkdir()
    env = {**os.environ, "LD_PRELOAD": str(caseless), "CI_TOP": str(dst)}
    words = [sys.executable, "-c", MEANWHILE + ONCE_MORE.replace(", again=True", ""), str(source), str(dst), kind]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("README\n", "")
    assert [(one.name, one.read_bytes()) for one in dst.iterdir()] == [("readme", b"theirs")]


@pytest.mark.parametrize("kind", ["file", "large", "link", "fifo"])
def test_what_appears_under_a_name_before_its_copy_gets_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It may be the copy of a name that the destination cannot tell apart, which another worker has just made."""
    monkeypatch.setattr("pcopy.entry.LARGE", 1 << 20)
    entries = {"file": b"ours", "large": b"o" * (2 << 20), "link": Link("ours"), "fifo": Fifo()}
    source, dst = make_tree(tmp_path / "src", {"name": entries[kind]}), tmp_path / "dst"
    dress = pcopy.metadata.Metadata.dress

    def appears(*words: Any) -> None:  # when all is done but to give the name
        (dst / "name").write_bytes(b"theirs")
        dress(*words)

    monkeypatch.setattr("pcopy.metadata.Metadata.dress", appears)
    report = pcopy.copy(source, dst, jobs=1, atomic=True)
    assert (report.ok, report.failed) == (False, 1)
    assert "appeared in the destination" in str(report.errors[0])
    assert [(one.name, one.read_bytes()) for one in dst.iterdir()] == [("name", b"theirs")]


@pytest.mark.parametrize("number", ["EINVAL", "ENOSYS", "EPERM"])
def test_where_no_call_tells_what_is_there_a_file_gets_its_name_all_the_same(tmp_path: Path, number: str) -> None:
    """Not every file system has RENAME_NOREPLACE, nor has every kernel."""
    source = make_tree(tmp_path / "src", {"f": b"1", "l": Link("f")})
    trace = traced(tmp_path, "--atomic", source, tmp_path / "dst", inject=f"inject=renameat2:error={number}")
    assert any("renameat2(" in line and "INJECTED" in line for line in trace)
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_a_run_that_is_killed_while_it_measures_what_is_kept_of_a_time_leaves_nothing(tmp_path: Path) -> None:
    """It does when the times of a file and of its copy nearly agree."""
    source, dst = make_tree(tmp_path / "src", {"f": b"1"}), make_tree(tmp_path / "dst", {"f": b"1"})
    os.utime(dst / "f", ns=(WHEN, WHEN + 1))
    trace = traced(tmp_path, source, dst, inject="inject=utimensat:signal=SIGKILL:when=1")
    assert trace[-1].startswith("+++ killed by SIGKILL")
    assert "1000000001" in trace[-2], trace[-2]  # seconds of the time that is tried
    assert os.listdir(dst) == ["f"]


class Deleter(pcopy.Observer):
    """Takes something away from the source when the first slice is done that leaves so many entries ``found``."""

    def __init__(self, delete: Callable[[], None], found: int = 0) -> None:
        self.delete, self.found, self.done = delete, found, False

    def progress(self, progress: pcopy.Progress) -> None:
        if not self.done and progress.found >= self.found:
            self.done = True
            self.delete()


@JOBS
def test_files_that_vanish_are_counted_and_fail_nothing(tmp_path: Path, jobs: int) -> None:
    """They are listed in the first slice, which ends long before all of them are copied."""
    names = [f"f{number}" for number in range(3000)]
    source = make_tree(tmp_path / "src", {"stays": b"text"})
    for name in names:
        (source / name).touch()

    def delete() -> None:
        for name in names:
            (source / name).unlink()

    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, observer=Deleter(delete))
    assert report.ok, report.errors
    assert report.vanished > 0
    assert report.files + report.vanished == 3001
    assert len(os.listdir(tmp_path / "dst")) == report.files


@JOBS
def test_directories_that_vanish_are_counted_and_leave_nothing(tmp_path: Path, jobs: int) -> None:
    """One that had been listed by then stays: the file in it is what vanished."""
    names = [f"d{number}" for number in range(1000)]
    source = make_tree(tmp_path / "src", {name: Dir({"f": b"1"}) for name in names})

    def move() -> None:
        """At one stroke each: one that is emptied first can be found empty."""
        for name in names:
            (source / name).rename(tmp_path / name)

    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, observer=Deleter(move))
    assert report.ok, report.errors
    assert report.vanished > 0
    copied = [len(os.listdir(tmp_path / "dst" / name)) for name in os.listdir(tmp_path / "dst")]
    assert (report.directories, report.files) == (len(copied) + 1, sum(copied))  # and the top
    assert report.files + report.vanished == 1000


@JOBS
def test_a_directory_vanishes_below_the_longest_path_too(tmp_path: Path, jobs: int) -> None:
    """PATH_MAX: by that path nothing can be looked at. It is listed long before all of its files are copied at this rate."""
    source = make_tree(tmp_path / "src", {"stays": b"text"})
    handle = os.open(source, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("n" * 255, dir_fd=handle)
        above, handle = handle, os.open("n" * 255, os.O_RDONLY, dir_fd=handle)
        os.close(above)
    os.mkdir("last", dir_fd=handle)
    last = os.open("last", os.O_RDONLY, dir_fd=handle)
    for number in range(100):
        file = os.open(f"f{number}", os.O_WRONLY | os.O_CREAT, dir_fd=last)
        os.write(file, b"x" * 10_000)
        os.close(file)
    os.close(last)

    observer = Deleter(lambda: os.rename("last", tmp_path / "gone", src_dir_fd=handle), found=101)
    try:
        report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, bwlimit="500k", observer=observer)
        assert report.ok, report.errors
        assert report.vanished > 0
        assert report.files + report.vanished == 101
    finally:
        os.close(handle)
        subprocess.run(["rm", "-rf", source, tmp_path / "dst"], check=True)  # which pytest cannot, so deep


@JOBS
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("what", ["d/big", "d"])
def test_a_large_file_that_vanishes_while_it_is_copied_fails_nothing(
    tmp_path: Path, jobs: int, what: str, verify: bool
) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir({"big": b"x" * LARGE}), "stays": b"text"})

    class Beside(pcopy.Observer):
        """Takes it away as soon as it is under way."""

        def __init__(self) -> None:
            self.done = False

        def progress(self, progress: pcopy.Progress) -> None:
            if not self.done and list((tmp_path / "dst/d").glob(".pcopy-*")):
                self.done = True
                shutil.rmtree(source / what) if what == "d" else (source / what).unlink()

    observer = Beside()
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, verify=verify, bwlimit="30M", observer=observer)
    assert observer.done
    assert report.ok, report.errors
    assert (report.files, report.vanished, report.failed) == (1, 1, 0)
    assert sorted((tmp_path / "dst").rglob("*")) == [tmp_path / "dst/d", tmp_path / "dst/stays"]


class Taker(pcopy.Observer):
    """Runs a command as soon as a directory has been read."""

    def __init__(self, place: Path, command: list[str]) -> None:
        self.place, self.command = str(place), command

    def event(self, event: pcopy.Event) -> None:
        if event.what in ("made", "directory") and event.path == self.place:
            subprocess.run(self.command, check=True)


@as_root
@JOBS
@pytest.mark.parametrize("kind", ["files", "directories"])
@pytest.mark.parametrize("unmounted", [True, False], ids=["unmounted", "removed"])
def test_what_was_on_a_file_system_that_is_unmounted_has_not_vanished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, kind: str, unmounted: bool
) -> None:
    """The names are gone in the same way, but what they stood for is not: it was to be copied."""
    monkeypatch.setattr("pcopy.coordinator.LONG", 0.01)
    entry: object = b"1" if kind == "files" else Dir({"f": b"1"})
    source = make_tree(tmp_path / "src", {"stays": b"text"})
    with mounted(source / "m", "-t", "tmpfs", "none") as place:
        make_tree(place, {f"e{number}": entry for number in range(3000)})
        taker = Taker(place, ["umount", "-l", str(place)] if unmounted else ["find", str(place), "-mindepth", "1", "-delete"])
        report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, observer=taker, verbose=True)
        if unmounted:
            subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)  # for who takes it away
    assert report.found == report.accounted
    assert (tmp_path / "dst/stays").read_bytes() == b"text"
    if unmounted:
        assert (report.exit_status, report.vanished) == (1, 0)
        assert report.failed == len(report.errors) > 0
        assert {error.reason for error in report.errors} == {
            "is not on the file system any more that it was listed on: was it unmounted?"
        }
    else:
        assert (report.exit_status, report.failed) == (0, 0)
        assert report.vanished > 0
        assert warnings(report) == [f"vanished from the source before they were copied: {report.vanished:,} of the entries"]


# ---- units, as a worker gets them -----------------------------------------------------------------------------------


def do(tmp_path: Path, unit: Unit, token: str = "0123abcd") -> Outcome:
    """Run one unit over the trees "src" and "dst"."""
    inodes = [(state.st_dev, state.st_ino) for state in ((tmp_path / name).stat() for name in ("src", "dst"))]
    tree = Tree(str(tmp_path / "src"), str(tmp_path / "dst"), inodes[0], inodes[1])
    return run(Job(Options(), (tree,), token, 0o022), [unit], 60.0)


@pytest.mark.parametrize("regular", [True, False])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_name_that_is_gone_when_its_turn_comes_has_vanished(tmp_path: Path, fresh: bool, regular: bool) -> None:
    make_tree(tmp_path / "src", {"there": b"text"})
    make_tree(tmp_path / "dst", {})
    outcome = do(tmp_path, Entries(0, "", ("gone", "there"), fresh, regular, 1.0))
    assert (outcome.tally.vanished, outcome.tally.files, outcome.tally.failed) == (1, 1, 0)
    assert not outcome.failures
    assert os.listdir(tmp_path / "dst") == ["there"]


def test_a_copy_whose_directory_is_gone_from_the_destination_has_failed(tmp_path: Path) -> None:
    """The error is the same as that of a source that vanished; what it means is not."""
    make_tree(tmp_path / "src", {"d": Dir({"f": b"text"})})
    make_tree(tmp_path / "dst", {})
    outcome = do(tmp_path, Entries(0, "d", ("f",), True, True, 1.0))
    assert (outcome.tally.vanished, outcome.tally.failed) == (0, 1)
    assert [os.path.relpath(failure.path, tmp_path) for failure in outcome.failures] == ["src/d/f"]


@pytest.mark.parametrize("path", ["d", "d/e"])
def test_a_directory_that_becomes_a_link_in_the_destination_is_not_followed(tmp_path: Path, path: str) -> None:
    """Between the making of the directory and the copy of its files."""
    make_tree(tmp_path / "src", {"d": Dir({"f": b"text", "e": Dir({"f": b"text"})})})
    out = make_tree(tmp_path / "out", {"e": Dir()})
    before = read_tree(out)
    make_tree(tmp_path / "dst", {"d": Link("../out")})
    finish = Finish(0, path, Attributes(0o777, 0, 0, WHEN, WHEN))
    for unit in (Entries(0, path, ("f",), True, True, 1.0), Scan(0, path, True, 1.0), finish):
        assert do(tmp_path, unit).failures
    assert read_tree(out) == before


@pytest.mark.parametrize("path", ["d", "d/e"])
def test_a_directory_that_becomes_a_link_in_the_source_is_not_followed(tmp_path: Path, path: str) -> None:
    make_tree(tmp_path / "out", {"f": b"secret", "e": Dir({"f": b"secret"})})
    make_tree(tmp_path / "src", {"d": Link("../out")})
    make_tree(tmp_path / "dst", {"d": Dir({"e": Dir()})})
    for unit in (Entries(0, path, ("f",), True, True, 1.0), Scan(0, path, False, 1.0)):
        assert do(tmp_path, unit).failures
    assert not [name for name in read_tree(tmp_path / "dst") if name.endswith(b"f")]


@pytest.mark.parametrize(
    "entry", [Fifo(), Link("other"), Link("/etc/passwd"), Dir()], ids=["fifo", "link", "secret", "directory"]
)
def test_a_file_that_became_something_else_is_copied_as_what_it_is_or_has_failed(tmp_path: Path, entry: object) -> None:
    """A FIFO that took the place of a file must not be waited for, nor a link be followed."""
    make_tree(tmp_path / "src", {"f": entry})
    make_tree(tmp_path / "dst", {})
    outcome = do(tmp_path, Entries(0, "", ("f",), True, True, 1.0))
    if isinstance(entry, Dir):
        assert outcome.tally.failed == 1
        assert os.listdir(tmp_path / "dst") == []
    else:
        assert not outcome.failures
        assert read_tree(tmp_path / "dst")[b"f"] == read_tree(tmp_path / "src")[b"f"]


def test_a_unit_that_is_done_twice_changes_nothing(tmp_path: Path) -> None:
    """A killed worker's units are given to another, which finds what the first one did."""
    source = make_tree(tmp_path / "src", {"f": b"text", "l": Link("f"), "p": Fifo(), "h": b"1", "h2": Hard("h")})
    make_tree(tmp_path / "dst", {})
    for again in (False, True):
        outcome = do(tmp_path, Entries(0, "", ("f",), True, True, 1.0, again=again))
        assert not outcome.failures
        outcome = do(tmp_path, Entries(0, "", ("l", "p"), True, False, 1.0, again=again))
        assert not outcome.failures
    copy = read_tree(tmp_path / "dst")
    assert {path: copy[path] for path in (b"f", b"l", b"p")} == {path: read_tree(source)[path] for path in (b"f", b"l", b"p")}


@as_root
def test_a_directory_that_a_killed_worker_finished_tells_nothing_of_new_entries(tmp_path: Path) -> None:
    """It has its own owner already; what is made in it now still has to get one."""
    source = make_tree(tmp_path / "src", {"d": Dir({"f": File(b"1", owner=(12, 12)), "e": Dir({})})})
    make_tree(tmp_path / "dst", {"d": Dir({})})
    for path in (source / "d", source / "d/e", tmp_path / "dst/d"):
        os.chown(path, 12, 12)
    outcome = do(tmp_path, Scan(0, "d", True, 1.0, again=True))
    assert not outcome.failures
    wanted = read_tree(source)
    assert {path: state for path, state in read_tree(tmp_path / "dst").items() if path != b"."} == {
        path: state for path, state in wanted.items() if path != b"."
    }


def test_a_half_file_of_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"f": b"the whole text"})
    make_tree(tmp_path / "dst", {})
    (tmp_path / "dst/f").write_bytes(b"the whole")
    outcome = do(tmp_path, Entries(0, "", ("f",), True, True, 1.0, again=True))
    assert not outcome.failures
    assert read_tree(tmp_path / "dst")[b"f"] == read_tree(source)[b"f"]


# ---- what a run says of itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fate", ["files", "directories", "symlinks", "hardlinks", "specials", "unchanged", "vanished", "skipped"]
)
def test_a_run_that_cannot_account_for_all_it_found_fails(fate: str) -> None:
    report = pcopy.Report(found=10, files=8, directories=1)
    setattr(report, fate, getattr(report, fate) + 1)
    report.reconcile("/there")
    assert report.ok
    for found in (11, 9):
        report = pcopy.Report(found=found, files=10)
        report.reconcile("/there")
        assert report.exit_status == 1
        (error,) = report.errors
        assert (error.path, error.operation) == ("/there", "reconcile")
        assert f"found {found} entries, but can account for 10" in error.reason


def test_failures_are_accounted_for_and_a_run_that_was_stopped_owes_no_account() -> None:
    report = pcopy.Report(found=2, files=1, failed=1, errors=[Failure("/f", "read", 5, "Input/output error")])
    report.reconcile("/there")
    assert (len(report.errors), report.exit_status) == (1, 1)
    for stopped in (pcopy.Report(found=9, stopped=True), pcopy.Report(found=9, signal=2)):
        stopped.reconcile("/there")
        assert not stopped.errors


@JOBS
def test_times_of_directories_are_right_after_failures(tmp_path: Path, jobs: int) -> None:
    """Files that fail in them, directories that do, and what stands in the way of both."""
    deep = Dir(
        {"bad": File(b"1"), "good": b"2", "e": Dir({"bad": b"1", "l": Link("nothing")}, mtime_ns=WHEN + 1)}, mtime_ns=WHEN + 2
    )
    source = make_tree(tmp_path / "src", {"bad": b"1", "d": deep, "big": Holes(LARGE)})
    full = Dir({"mine": b"mine"})
    make_tree(tmp_path / "dst", {"bad": full, "big": full, "d": Dir({"bad": full, "e": Dir({"bad": full})})})
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs)
    assert (report.exit_status, report.failed) == (1, 4)
    copy, wanted = read_tree(tmp_path / "dst"), read_tree(source)
    for path in (b".", b"d", b"d/e", b"d/good", b"d/e/l"):
        assert copy[path] == wanted[path]


@JOBS
@pytest.mark.parametrize("size", [100_000, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("half", ["shorter", "of the full length", "empty"])
def test_a_half_file_is_replaced_by_the_next_run(tmp_path: Path, jobs: int, size: int, half: str) -> None:
    """Its times are those of the moment when the power went, even where its length is right."""
    source = make_tree(tmp_path / "src", {"f": b"x" * size, "g": b"whole"})
    copy_equals(source, tmp_path / "dst", jobs)
    os.truncate(tmp_path / "dst/f", 0 if half == "empty" else size // 2)
    if half == "of the full length":
        os.truncate(tmp_path / "dst/f", size)
    report = copy_equals(source, tmp_path / "dst", jobs)
    assert (report.files, report.unchanged) == (1, 1)


def test_a_file_that_is_half_written_has_never_the_times_of_a_whole_one(tmp_path: Path) -> None:
    """Killed when its bytes are there and its times are to be set: the next run copies it again."""
    source = make_tree(tmp_path / "src", {"f": File(b"text", 0o640)})
    traced(tmp_path, source, tmp_path / "dst", inject="inject=fchmod:signal=SIGKILL")
    half = os.stat(tmp_path / "dst/f")
    assert half.st_mtime_ns != WHEN
    assert stat.S_IMODE(half.st_mode) == 0o600  # nobody else could read it meanwhile
    assert copy_equals(source, tmp_path / "dst", 1).files == 1


@as_root
@JOBS
def test_a_set_uid_file_whose_owner_changed_gets_the_new_owner_and_keeps_the_bit(tmp_path: Path, jobs: int) -> None:
    """On a rerun that finds the contents unchanged, in place; a change of owner takes the bit away (chown(2))."""
    source = make_tree(tmp_path / "src", {"f": File(b"text", 0o4755, owner=(12, 34)), "d": Dir({"g": File(b"1", 0o2755)})})
    copy_equals(source, tmp_path / "dst", jobs)
    for name, mode in (("f", 0o4755), ("d/g", 0o2755)):
        os.chown(source / name, 56, 78)
        os.chmod(source / name, mode)
    assert copy_equals(source, tmp_path / "dst", jobs).unchanged == 2


@as_root
@JOBS
def test_special_bits_are_not_kept_without_the_owner(tmp_path: Path, jobs: int) -> None:
    """Somebody's set-uid program must not become root's."""
    files = {"uid": File(b"1", 0o4755, owner=(12, 0)), "gid": File(b"1", 0o2755, owner=(0, 34)), "own": File(b"1", 0o6755)}
    source = make_tree(tmp_path / "src", files)
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, preserve={"mode", "times", "links", "xattr"})
    assert report.ok, report.errors
    modes = {path: f"{state.mode:o}" for path, state in read_tree(tmp_path / "dst").items() if path != b"."}
    assert modes == {b"uid": "755", b"gid": "755", b"own": "6755"}
    assert report.lost == {"set-uid and set-gid bits": 2}


@JOBS
def test_what_dead_runs_left_is_cleared_where_single_files_go_too(tmp_path: Path, jobs: int) -> None:
    """But not what is being copied itself, under whatever name, nor a directory that holds anything."""
    one, two, three, four = (DEAD.format(f"{number:08x}", 0) for number in range(4))
    source = make_tree(tmp_path / "src", {one: b"text", "f": b"text"})
    make_tree(tmp_path / "dst", {one: File(b"text"), two: b"half", three: Dir({"f": b"1"}), four: Dir()})
    inode = (tmp_path / "dst" / one).stat().st_ino
    report = pcopy.copy([source / one, source / "f"], tmp_path / "dst", jobs=jobs)
    assert report.ok, report.errors
    assert read_tree(tmp_path / "dst").keys() == {b".", b"f", *map(os.fsencode, (one, three, f"{three}/f"))}
    assert (tmp_path / "dst" / one).stat().st_ino == inode


@pytest.mark.parametrize(("slow", "expected"), [("stream", [2, 1, 1]), ("close", [1, 1, 1, 1])])
def test_a_slice_whose_time_is_over_begins_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str, expected: list[int]
) -> None:
    """Whatever took the time: what follows the first bytes of a file that is not small, or writing them out at its end."""
    large = File(bytes(2 * plain.FIRST))
    make_tree(tmp_path / "src", {"f0": b"x", "f1": large, "f2": large, "f3": large})
    make_tree(tmp_path / "dst", {})
    monkeypatch.setattr(plain, "SHORTLY", 0)
    monkeypatch.setattr(plain, "REST", 0)
    place = Contents if slow == "stream" else os
    real = getattr(place, slow)

    def slowly(*given: Any, **named: Any) -> Any:
        time.sleep(0.1)
        return real(*given, **named)

    monkeypatch.setattr(place, slow, slowly)
    inodes = [(state.st_dev, state.st_ino) for state in ((tmp_path / name).stat() for name in ("src", "dst"))]
    tree = Tree(str(tmp_path / "src"), str(tmp_path / "dst"), inodes[0], inodes[1], one_clock=True)
    job = Job(Options(), (tree,), "0123abcd", 0o022)
    done = []
    units: Sequence[Unit] = [Entries(0, "", ("f0", "f1", "f2", "f3"), True, True, 1.0)]
    while units:
        outcome = run(job, units, 0.09)
        assert not outcome.failures
        done.append(outcome.tally.files)
        units = outcome.leftover
    assert done == expected
