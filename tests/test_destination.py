"""Where sources land, what is refused before anything is touched, what a rerun does, and what unusable destinations bring.

Refusals end with status 2 and one line that says what to do; runs that have to stop early end with status 3, and what is
in the destination then is whole or was there before.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import pcopy as library
from pcopy import mounts, prepare
from tests.conftest import Run, as_root
from tests.strace import lines_of, strace
from tests.trees import WHEN, Dir, Fifo, File, Hard, Link, State, make_tree, read_tree

SERIAL_AND_POOL = pytest.mark.parametrize("jobs", [1, 4])
SECOND = 10**9


def state_of(path: Path) -> State | dict[bytes, State]:
    """All of a tree, or of one entry that is no directory."""
    if path.is_dir() and not path.is_symlink():
        return read_tree(path)
    return read_tree(path.parent)[os.fsencode(path.name)]


def messages(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines on stderr, none of them of a traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()


def assert_no_temporary_names(top: Path) -> None:
    assert not [path for path in read_tree(top) if b".pcopy-" in path]


@contextlib.contextmanager
def mounted(place: Path, *arguments: object) -> Iterator[Path]:
    """Something mounted for a while; a test is skipped where the machine cannot do it."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *map(str, arguments), str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip().splitlines()[0]}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@contextlib.contextmanager
def loop_mounted(work: Path, kind: str, *make: str, size: int = 32 << 20) -> Iterator[Path]:
    """A small file system of this kind in a file."""
    tool = shutil.which(f"mkfs.{kind}")
    if not tool:
        pytest.skip(f"mkfs.{kind} is not installed")
    image = work / "image"
    with open(image, "wb") as file:
        file.truncate(size)
    subprocess.run([tool, *make, str(image)], check=True, capture_output=True)
    with mounted(work / "mount", "-t", kind, "-o", "loop", image) as place:
        yield place


# ---- where sources land ---------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with sources and destinations of every kind."""
    where = tmp_path / "here"
    make_tree(
        where,
        {
            "src": Dir({"a": File(b"1", mode=0o640), "d": Dir({"b": "2"}), "l": Link("a")}),
            "one": "first",
            "two": File(b"second", mode=0o755),
            "sub": Dir({"one": "another", "src": Dir({"z": "26"})}),
            "there": Dir(),
            "hard": Hard("one"),
            "to-src": Link("src"),
            "to-one": Link("one"),
            "to-there": Link("there"),
            "to-nothing": Link("nothing"),
        },
    )
    monkeypatch.chdir(where)
    return where


@pytest.mark.parametrize(
    ("sources", "destination", "landed"),
    [
        # one directory: the destination becomes its copy, whatever is there and whatever the slashes
        (["src"], "new", {"new": "src"}),
        (["src/"], "new", {"new": "src"}),
        (["src"], "new/", {"new": "src"}),
        (["src//"], "new//", {"new": "src"}),
        (["src"], "there", {"there": "src"}),
        (["src/"], "there/", {"there": "src"}),
        (["src"], "there/src", {"there/src": "src"}),
        (["./src"], "./new", {"new": "src"}),
        (["src/."], "new/.", {"new": "src"}),
        (["there/../src"], "there/../new", {"new": "src"}),
        (["src/d/.."], "new", {"new": "src"}),
        (["to-src/d/.."], "new", {"new": "src"}),  # not the directory that to-src lies in
        # one file: a new name, or a directory to go into
        (["one"], "new", {"new": "one"}),
        (["./one"], "there/../new", {"new": "one"}),
        (["one"], "there", {"there/one": "one"}),
        (["one"], "there/", {"there/one": "one"}),
        (["one"], "there/.", {"there/one": "one"}),
        (["one"], "there/other", {"there/other": "one"}),
        (["one"], "new/", {"new/one": "one"}),
        (["one"], "two", {"two": "one"}),
        (["sub/one"], "src", {"src/one": "sub/one"}),
        # several: each goes into the directory, under its own name
        (["one", "two"], "new", {"new/one": "one", "new/two": "two"}),
        (["one", "two"], "there/", {"there/one": "one", "there/two": "two"}),
        (["src/", "two"], "new/", {"new/src": "src", "new/two": "two"}),
        (["src", "sub/one", "two"], "there", {"there/src": "src", "there/one": "sub/one", "there/two": "two"}),
        (["src", "sub"], "there", {"there/src": "src", "there/sub": "sub"}),
        # a symbolic link is copied as a link, unless it ends in a slash
        (["to-src"], "new", {"new": "to-src"}),
        (["to-src/"], "new", {"new": "src"}),
        (["to-src"], "there", {"there/to-src": "to-src"}),
        (["to-one"], "new", {"new": "to-one"}),
        (["to-nothing"], "new", {"new": "to-nothing"}),
        (["to-src/", "one"], "new", {"new/to-src": "src", "new/one": "one"}),
        # a destination that is a link to a directory is that directory
        (["src"], "to-there", {"there": "src", "to-there": "to-there"}),
        (["src"], "to-there/", {"there": "src", "to-there": "to-there"}),
        (["one"], "to-there", {"there/one": "one", "to-there": "to-there"}),
        (["one", "two"], "to-there", {"there/one": "one", "there/two": "two", "to-there": "to-there"}),
    ],
    ids=str,
)
def test_each_source_lands_where_the_rules_say(
    here: Path, sources: list[str], destination: str, landed: dict[str, str]
) -> None:
    expected = {to: state_of(here / source) for to, source in landed.items()}
    before = set(os.listdir(here))
    report = library.copy(sources, destination, jobs=1)
    assert report.ok, report.errors
    for to, state in expected.items():
        assert without_names(state_of(here / to)) == without_names(state), to
    assert set(os.listdir(here)) == before | {to.split("/")[0] for to in landed}


def without_names(state: State | dict[bytes, State]) -> object:
    """But for the other hard links of an entry: a copy of a part of a tree does not have them."""
    if isinstance(state, State):
        return state.kind, state.mode, state.owner, state.mtime_ns, state.content, state.xattrs
    return {path: without_names(one) for path, one in state.items()}


@pytest.mark.parametrize(
    ("where", "source", "destination", "landed"),
    [
        ("there", "../src", ".", "there"),
        ("there", "../src/", "./", "there"),
        ("src", ".", "../new", "new"),
        ("src/d", "..", "../../new", "new"),
    ],
)
def test_dots_mean_the_directories_that_they_stand_for(
    here: Path, monkeypatch: pytest.MonkeyPatch, where: str, source: str, destination: str, landed: str
) -> None:
    monkeypatch.chdir(here / where)
    assert library.copy(source, destination, jobs=1).ok
    assert read_tree(here / landed) == read_tree(here / "src")


def test_where_links_are_followed_their_targets_land(here: Path) -> None:
    assert library.copy("to-src", "new", jobs=1, dereference=True).ok
    assert not (here / "new/l").is_symlink()
    assert (here / "new/l").read_text() == "1"
    assert library.copy("to-one", "name", jobs=1, dereference=True).ok
    assert without_names(state_of(here / "name")) == without_names(state_of(here / "one"))


def test_running_the_line_again_lands_in_the_same_place(here: Path, pcopy: Run) -> None:
    for _ in range(2):
        done = pcopy("src/", "new/", cwd=here)
        assert done.returncode == 0, done.stderr
        assert read_tree(here / "new") == read_tree(here / "src")


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing", "new"], "nothing: the source does not exist"),
        (["to-nothing/", "new"], "does not exist"),
        (["one", "nothing", "there"], "nothing: the source does not exist"),
        (["one/", "new"], "one/"),
        (["", "new"], "''"),
        (["src", ""], "cannot be a destination"),
        (["src", "one"], "is not a directory"),
        (["src", "one/"], "is not a directory"),
        (["one", "two/"], "has to be a directory"),
        (["one", "src", "two"], "need a directory"),
        (["src", "one/below"], "one is not a directory"),
        (["src", "src/new"], "give another destination"),
        (["src", "src/d"], "give another destination"),
        (["src/", "./src/d/new"], "give another destination"),
        (["src", "to-src/new"], "give another destination"),
        (["to-src/", "src/d"], "give another destination"),
        (["-L", "to-src", "src/d"], "give another destination"),
        (["one", "src", "src/d"], "give another destination"),
        (["src", "src"], "same directory"),
        (["src/", "src"], "same directory"),
        (["src/.", "src/d/.."], "same directory"),
        (["src", "to-src"], "same directory"),
        (["to-src/", "src"], "same directory"),
        (["two", "src", "."], "destination"),
        (["one", "sub/one", "new"], "would both become one"),
        (["src", "sub/src/", "new"], "would both become src"),
        (["src", "sub/src", "there"], "would both become src"),
        (["one", "one", "there"], "would both become one"),
        (["src", "no/new"], "mkdir -p"),
        (["one", "no/such/new"], "mkdir -p"),
        (["one", "no/new/"], "mkdir -p"),
        (["one", "one"], "is the destination itself"),
        (["one", "./there/../one"], "is the destination itself"),
        (["one", "."], "is the destination itself"),
        (["one", "hard"], "is the destination itself"),
        (["src", "to-nothing/"], "link to nothing"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_and_nothing_is_touched(here: Path, pcopy: Run, arguments: list[str], says: str) -> None:
    before = read_tree(here)
    done = pcopy(*arguments, cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = messages(done)
    assert line.startswith("pcopy: ")
    assert says in line
    assert read_tree(here) == before


def test_a_source_in_the_destination_is_refused_only_where_something_has_its_place(
    tmp_path: Path, jobs: int, pcopy: Run
) -> None:
    """Not for what is beside a single file, what a link leads to that is copied as a link, or another file system."""
    make_tree(tmp_path / "D", {"sub": Dir({"file": b"1"}), "x": Dir({"y": Dir({"a": b"3"})})})
    make_tree(tmp_path / "X", {"sub": Dir({"other": b"2"})})
    make_tree(tmp_path / "else", {"y": Dir({})})
    done = pcopy("-j", jobs, "D/sub/file", "X/sub", "D")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "D/sub")) == ["file", "other"]
    (tmp_path / "D/x/y/x").symlink_to("../../../else")
    done = pcopy("-j", jobs, "D/x/y", "D")
    assert (done.returncode, (tmp_path / "D/a").read_bytes()) == (1, b"3"), done.stderr  # a directory is in the link's place
    make_tree(tmp_path / "X" / "sub", {"file": b"4"})
    done = pcopy("-j", jobs, "D/sub/file", "X/sub", "D")
    assert (done.returncode, (tmp_path / "D/sub/file").read_bytes()) == (2, b"1")
    assert "X/sub/file: its copy would be written over the source D/sub/file" in done.stderr


@pytest.mark.parametrize("where", ["s", "a/s"])
def test_a_source_in_the_destination_is_not_written_over_by_what_it_holds(
    tmp_path: Path, jobs: int, where: str, pcopy: Run
) -> None:
    """Its own directory of that name would be copied to where it is: refused, or, where a filter may hide it, a failure."""
    make_tree(tmp_path / "top" / where, {"f": b"A", "g": b"A", where.partition("/")[0]: Dir({"h": b"C"})})
    inner = make_tree(tmp_path / "inner", {"f": b"B", "d": Dir({"i": b"D"})})
    shutil.copytree(inner, tmp_path / "top" / where / where, dirs_exist_ok=True)
    source, before = tmp_path / "top" / where, read_tree(tmp_path / "top" / where)
    done = pcopy("-j", jobs, source, tmp_path / "top")
    assert (done.returncode, len(messages(done))) == (2, 1)
    assert f"{source / where}: its copy would be written over the source {source}" in done.stderr
    assert sorted(os.listdir(tmp_path / "top")) == [where.partition("/")[0]]
    report = library.copy(source, tmp_path / "top", jobs=jobs, filters=["nothing"])
    (failure,) = report.errors
    assert (failure.path, report.exit_status) == (str(source), 1)
    assert "is a source of this run, which would be written over" in failure.reason
    assert {path: one for path, one in read_tree(source).items() if path != b"."} == {
        path: one for path, one in before.items() if path != b"."
    }
    assert (tmp_path / "top/f").read_bytes() == b"A"
    assert library.copy(source, tmp_path / "top", jobs=jobs, filters=[f"/{where}"]).exit_status == 0


@as_root
def test_a_bind_mount_does_not_hide_that_the_destination_lies_in_the_source(here: Path, pcopy: Run) -> None:
    with mounted(here / "bind", "--bind", here / "src"):
        before = read_tree(here)
        for destination in ("bind/new", "bind/d", "bind"):
            done = pcopy("src", destination, cwd=here)
            (line,) = messages(done)
            assert done.returncode == 2
            assert "give another destination" in line
        assert read_tree(here) == before


@as_root
def test_a_mount_of_an_odd_name_is_one_as_any_other(here: Path, pcopy: Run) -> None:
    """The kernel's table of mounts has names as they are, but for spaces, tabs, newlines and backslashes."""
    odd = here / "two\n \\lines\r\x0c\u2003\udcff - x"
    odd.mkdir()
    with mounted(odd, "-t", "tmpfs", "none"):
        assert mounts.kind_of(str(odd)) == "tmpfs"
        assert pcopy("src", odd / "new", cwd=here).returncode == 0
        assert mounts.kind_of(str(here / "src")) == mounts.kind_of(str(here))


# ---- a rerun --------------------------------------------------------------------------------------------------------


def many(count: int) -> dict[str | bytes, object]:
    return {f"d{number % 7}": Dir({f"f{number}.{one}": f"{number} {one}" for one in range(count // 7)}) for number in range(7)}


@SERIAL_AND_POOL
def test_a_rerun_copies_what_changed_and_counts_the_rest(tmp_path: Path, jobs: int) -> None:
    source, copy = (
        make_tree(tmp_path / "src", {**many(210), "longer": "x", "touched": "same size", "link": Link("a")}),
        tmp_path / "dst",
    )
    assert library.copy(source, copy, jobs=jobs).files == 212
    inodes = {path: os.lstat(copy / os.fsdecode(path)).st_ino for path in read_tree(copy)}
    (source / "longer").write_text("xx")
    (source / "touched").write_text("same-size")
    (source / "new").write_text("new")
    (source / "link").unlink()
    (source / "link").symlink_to("b")
    report = library.copy(source, copy, jobs=jobs)
    assert report.ok, report.errors
    assert (report.files, report.symlinks, report.unchanged) == (3, 1, 210)
    assert report.bytes == 2 + 9 + 3
    assert read_tree(copy) == read_tree(source)
    again = {path: os.lstat(copy / os.fsdecode(path)).st_ino for path in read_tree(copy)}
    assert {path for path in inodes if inodes[path] != again[path]} == {b"longer", b"touched", b"link"}


COPIED, UNCHANGED, SKIPPED = "source", "unchanged", "skipped"


@pytest.mark.parametrize(
    ("overwrite", "older", "newer", "same", "shorter"),
    [
        ("changed", COPIED, COPIED, UNCHANGED, COPIED),
        ("always", COPIED, COPIED, COPIED, COPIED),
        ("older", COPIED, SKIPPED, UNCHANGED, SKIPPED),
        ("never", SKIPPED, SKIPPED, SKIPPED, SKIPPED),
    ],
)
@SERIAL_AND_POOL
def test_overwrite_decides_which_files_are_replaced(
    tmp_path: Path, pcopy: Run, jobs: int, overwrite: str, older: str, newer: str, same: str, shorter: str
) -> None:
    fates = {"older": older, "newer": newer, "same": same, "shorter": shorter, "absent": COPIED}
    times = {"older": WHEN - SECOND * 10, "newer": WHEN + SECOND * 10}
    source = make_tree(tmp_path / "src", dict.fromkeys(fates, "source"))
    there = {name: File(b"there!", mtime_ns=times.get(name, WHEN)) for name in fates if name != "absent"}
    copy = make_tree(tmp_path / "dst", {**there, "shorter": "there"})
    done = pcopy("-j", jobs, "--overwrite", overwrite, "--json", source, copy)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for name, fate in fates.items():
        text = (copy / name).read_text()
        assert text == ("source" if fate == COPIED else "there" if name == "shorter" else "there!"), name
    counts = [report["files"], report["unchanged"], report["skipped"]]
    assert counts == [list(fates.values()).count(fate) for fate in (COPIED, UNCHANGED, SKIPPED)]


def set_attribute(path: Path) -> None:
    try:
        os.setxattr(path, "user.colour", b"green")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error.strerror}")


def own_and_set_uid(path: Path) -> None:
    os.chown(path, 12, 34)
    os.chmod(path, 0o4755)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: os.chmod(path, 0o751), id="mode"),
        pytest.param(set_attribute, id="xattr"),
        pytest.param(lambda path: os.removexattr(path, "user.shape"), id="xattr removed"),
        pytest.param(lambda path: os.setxattr(path, "user.shape", b"square"), id="xattr's value"),
        pytest.param(lambda path: os.chown(path, 12, 34), id="owner", marks=as_root),
        pytest.param(own_and_set_uid, id="owner and set-uid", marks=as_root),
    ],
)
@pytest.mark.parametrize("entry", ["file", "directory"])
@pytest.mark.parametrize("where", ["src", "dst"])
def test_attributes_that_differ_are_brought_over_without_copying_data(
    tmp_path: Path, change: Callable[[Path], object], entry: str, where: str
) -> None:
    source, copy = make_tree(tmp_path / "src", {"file": "text", "directory": Dir({"below": "b"})}), tmp_path / "dst"
    try:
        os.setxattr(source / entry, "user.shape", b"round")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error.strerror}")
    assert library.copy(source, copy, jobs=1).ok
    inode = os.stat(copy / entry).st_ino
    change(tmp_path / where / entry)
    report = library.copy(source, copy, jobs=1)
    assert report.ok, report.errors
    assert (report.files, report.bytes, report.unchanged) == (0, 0, 2)
    assert os.stat(copy / entry).st_ino == inode
    assert read_tree(copy) == read_tree(source)


@as_root
@pytest.mark.parametrize(("kind", "make"), [("ext3", ["-q", "-I", "128"]), ("vfat", [])])
def test_times_are_compared_as_coarsely_as_the_destination_keeps_them(
    tmp_path: Path, pcopy: Run, kind: str, make: list[str]
) -> None:
    odd: dict[str | bytes, object] = {f"f{number}": File(b"x", mtime_ns=WHEN + number * 777_777_777) for number in range(20)}
    source = make_tree(tmp_path / "src", {**odd, "d": Dir(odd)})
    with loop_mounted(tmp_path, kind, *make) as place:
        assert pcopy("-q", source, place / "copy").returncode == 0
        for jobs, dry in ((1, []), (1, ["-n"]), (4, [])):
            report = json.loads(pcopy("-j", jobs, "--json", *dry, source, place / "copy").stdout)
            assert (report["files"], report["unchanged"], report["exit_status"]) == (0, 40, 0)
        os.utime(source / "f3", ns=(WHEN, WHEN + 4 * SECOND))
        report = json.loads(pcopy("--json", source, place / "copy").stdout)
        assert (report["files"], report["unchanged"]) == (1, 39)


@as_root
@SERIAL_AND_POOL
@pytest.mark.parametrize(
    ("kind", "make", "year"),
    [("ext4", ["-q"], 2500), ("ext4", ["-q", "-I", "128"], 2100), ("ext4", ["-q", "-I", "128"], 1890), ("vfat", [], 1970)],
)
def test_times_beyond_what_the_destination_keeps_are_said_and_copied_once(
    tmp_path: Path, pcopy: Run, jobs: int, kind: str, make: list[str], year: int
) -> None:
    """The kernel makes of them the nearest time that can be kept."""
    time = (year - 1970) * 31_556_952 * SECOND + SECOND
    far: dict[str | bytes, object] = {f"f{number}": File(b"x", mtime_ns=time + number * 777_777_777) for number in range(20)}
    with mounted(tmp_path / "src", "-t", "tmpfs", "none") as source, loop_mounted(tmp_path, kind, *make) as place:
        make_tree(source, {**far, "d": Dir(far, mtime_ns=time), "h": Hard("f1")})
        done = pcopy("-j", jobs, source, place / "copy")
        assert done.returncode == 0, done.stderr
        assert len([line for line in messages(done) if "times: could not be preserved on " in line]) == 1
        if kind == "ext4":
            assert (place / "copy/h").samefile(place / "copy/f1")
        for dry in ([], ["-n"]):
            report = json.loads(pcopy("-j", jobs, "--json", *dry, source, place / "copy").stdout)
            assert (report["files"], report["hardlinks"], report["unchanged"]) == (0, 0, 41), dry
            assert report["exit_status"] == 0
        os.utime(source / "f3", ns=(WHEN, WHEN))
        report = json.loads(pcopy("-j", jobs, "--json", source, place / "copy").stdout)
        assert (report["files"], report["unchanged"]) == (1, 40)
        assert_no_temporary_names(place / "copy")


# ---- a dry run ------------------------------------------------------------------------------------------------------


COUNTS = ("files", "bytes", "directories", "symlinks", "hardlinks", "specials", "unchanged", "deleted", "failed", "skipped")


@pytest.fixture
def day(tmp_path: Path) -> tuple[Path, Path]:
    """A source, and an older copy of it with differences of every kind."""
    new: dict[str | bytes, object] = {"n": "new", "l": Link("n"), "h": Hard("same-hard")}
    source = make_tree(
        tmp_path / "src",
        {
            **many(140),
            "same": "same",
            "same-hard": "linked",
            "changed": "longer than before",
            "within-a-second": File(b"1234", mtime_ns=WHEN),
            "was-link": "now a file",
            "was-file": Dir({"x": "x"}),
            "was-empty": "now a file",
            "link": Link("a"),
            "other-link": Link("a"),
            "new": Dir(new),
            "h2": Hard("same-hard"),
        },
    )
    copy = make_tree(
        tmp_path / "dst",
        {
            "d1": many(140)["d1"],
            "same": "same",
            "same-hard": "linked",
            "changed": "short",
            "within-a-second": File(b"abcd", mtime_ns=WHEN // SECOND * SECOND),
            "was-link": Link("same"),
            "was-file": "a file",
            "was-empty": Dir(),
            "link": Link("a"),
            "other-link": Link("b"),
            "extra": "not in the source",
        },
    )
    return source, copy


@pytest.mark.parametrize("overwrite", ["changed", "always", "older", "never"])
@SERIAL_AND_POOL
def test_a_dry_run_touches_nothing_and_counts_what_the_run_will_do(day: tuple[Path, Path], overwrite: str, jobs: int) -> None:
    source, copy = day
    before = read_tree(copy)
    options = {"jobs": jobs, "overwrite": overwrite}
    predicted = library.copy(source, copy, dry_run=True, **options)  # type: ignore[arg-type]
    assert read_tree(copy) == before
    done = library.copy(source, copy, **options)  # type: ignore[arg-type]
    assert done.ok, done.errors
    assert {key: getattr(predicted, key) for key in COUNTS} == {key: getattr(done, key) for key in COUNTS}


@SERIAL_AND_POOL
def test_a_dry_run_after_a_run_finds_nothing_to_do(day: tuple[Path, Path], jobs: int) -> None:
    source, copy = day
    for dry_run in (False, True, False):
        report = library.copy(source, copy, jobs=jobs, dry_run=dry_run)
    predicted = library.copy(source, copy, jobs=jobs, dry_run=True)
    assert (predicted.files, predicted.symlinks, predicted.hardlinks) == (0, 0, 0)
    assert {key: getattr(predicted, key) for key in COUNTS} == {key: getattr(report, key) for key in COUNTS}


@pytest.mark.parametrize("arguments", [["src", "new"], ["src", "new/"], ["src/same", "new/"], ["src", "src/same", "new"]])
def test_a_dry_run_into_nothing_makes_nothing(day: tuple[Path, Path], pcopy: Run, arguments: list[str]) -> None:
    work = day[0].parent
    before = read_tree(work)
    predicted = pcopy("-n", "--json", *arguments)
    assert (predicted.returncode, read_tree(work)) == (0, before)
    assert "would copy" in messages(predicted)[-1]
    done = pcopy("--json", *arguments)
    assert done.returncode == 0, done.stderr
    assert {key: json.loads(predicted.stdout)[key] for key in COUNTS} == {key: json.loads(done.stdout)[key] for key in COUNTS}


# ---- without privilege ----------------------------------------------------------------------------------------------


@as_root
def test_without_proc_a_plain_tree_is_copied(tmp_path: Path) -> None:
    """In a container that has none."""
    source = make_tree(tmp_path / "src", {"f": b"1", "d": Dir({"g": b"2"})})
    script = 'mount -t tmpfs none /proc && exec "$0" -m pcopy -j "$1" "$2" "$3"'
    for jobs in ("1", "2"):
        words = ["unshare", "--mount", "sh", "-c", script, sys.executable, jobs, str(source), str(tmp_path / f"dst{jobs}")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        if "unshare" in done.stderr or "mount:" in done.stderr:
            pytest.skip("/proc cannot be hidden here")
        assert done.returncode == 0, done.stderr
        assert read_tree(tmp_path / f"dst{jobs}") == read_tree(source)


def unprivileged(*arguments: object, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command line, with such words ``before`` it, as a user who owns what we own, and has no privilege.

    In a user namespace of its own: unlike after setuid(2), the interpreter may lie in a directory that is ours alone.
    """
    command = [*before, *without_privilege(), sys.executable, "-m", "pcopy", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def without_privilege() -> list[str]:
    """What runs the command that follows so."""
    drop = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if not os.geteuid() else []
    if drop and subprocess.run([*drop, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    return drop


@as_root
@pytest.mark.parametrize("group", [34, 0], ids=["another group", "our group"])
def test_owners_that_were_refused_are_not_tried_for_each_file(unlocked: Path, group: int) -> None:
    """Copies of what others own are compared like any others, and what they lack is told in each run."""
    tree: dict[str | bytes, object] = {f"d{one}": Dir({f"f{two}": "1" for two in range(40)}) for one in range(10)}
    source, copy, log = make_tree(unlocked / "src", tree), unlocked / "dst", unlocked / "log"
    for path in [source, *source.rglob("*")]:
        os.chown(path, 12, group)
    tracing = strace("-e", "trace=/ch(own|mod)", log=log)
    for what in ("copied 400 files", " 400 unchanged"):
        done = unprivileged("-j", 1, source, copy, before=tracing)
        assert done.returncode == 0, done.stderr
        assert what in done.stderr
        assert "owner: could not be preserved on 411 of the copies" in done.stderr
    assert len(lines_of(log)) < 40  # of the second run
    (source / "d3/f7").chmod(0o645)
    done = unprivileged("-j", 1, "--link-dest", copy, "--json", source, unlocked / "day2")
    assert json.loads(done.stdout)["hardlinks"] == 399
    assert (unlocked / "day2/d3/f7").stat().st_mode & 0o777 == 0o645
    os.chown(copy / "d5/f5", 12, group)
    (copy / "d4/f4").chmod(0o600)
    assert unprivileged("-j", 1, source, copy).returncode == 0
    assert {path.stat().st_mode & 0o777 for path in copy.rglob("f*")} == {0o644, 0o645}
    assert (copy / "d4/f4").stat().st_mode & 0o777 == 0o644


# Runs the command line in a user namespace that knows these users and groups.
WITHIN = """
import ctypes, os, sys
ready, go = os.pipe(), os.pipe()
child = os.fork()
if not child:
    if ctypes.CDLL(None).unshare(0x10000000):  # CLONE_NEWUSER
        os._exit(77)
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    os.execv(sys.executable, [sys.executable, "-m", "pcopy", *sys.argv[3:]])
os.close(ready[1])
if os.read(ready[0], 1):
    for name, text in zip(("uid_map", "gid_map"), sys.argv[1:3]):
        with open(f"/proc/{child}/{name}", "w") as file:
            file.write(text)
    os.write(go[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@as_root
@SERIAL_AND_POOL
@pytest.mark.parametrize(("users", "groups"), [("0 0 1", "0 0 1"), ("0 0 100", "0 0 1"), ("0 0 1", "0 0 100")])
def test_root_of_a_user_namespace_cannot_give_copies_to_owners_that_this_does_not_know(
    unlocked: Path, jobs: int, users: str, groups: str
) -> None:
    """As in a rootless container (user_namespaces(7)): that makes no file changed, neither for a rerun nor for a snapshot."""
    tree: dict[str | bytes, object] = {**many(30), "other": Hard("d0/f0.0"), "ours": "o"}
    source, copy = make_tree(unlocked / "src", tree), unlocked / "day1"
    for path in [source, *source.rglob("*")]:
        os.chown(path, 12, 34)
    os.chown(source / "ours", 0, 0)

    def run(*arguments: object) -> dict[str, Any]:
        words = [sys.executable, "-c", WITHIN, users, groups, "-j", str(jobs), "--json", *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode == 77:
            pytest.skip("no user namespaces here")
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    (first,) = run(source, copy)["warnings"]
    again = run(source, copy)
    assert (again["unchanged"], again["files"], again["warnings"]) == (30, 0, [first])
    assert run("-n", source, copy)["unchanged"] == 30
    day2 = run("--link-dest", copy, source, unlocked / "day2")
    assert (day2["files"], day2["hardlinks"]) == (0, 30)
    os.unlink(unlocked / "day2/ours")
    os.chown(copy / "ours", 0, 5)  # which can be mended
    assert run(source, copy)["unchanged"] == 30
    assert os.stat(copy / "ours").st_gid == 0


@as_root
def test_an_owner_that_a_directory_cannot_get_is_told_once(unlocked: Path) -> None:
    """Though it is tried twice, before anything comes into the directory and when all is there. Its group can be mended."""
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed")
    source = make_tree(unlocked / "src", {"d": Dir({"f": "1"})})
    copy = make_tree(unlocked / "dst", {"d": Dir({})})
    os.chown(source / "d", 12, 0)
    os.chown(copy / "d", 0, 34)
    without = ["setpriv", "--bounding-set", "-chown", "--inh-caps", "-chown"]
    for _ in range(2):
        command = [*without, sys.executable, "-m", "pcopy", str(source), str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert "owner: could not be preserved on 1 of the copies" in done.stderr
    assert os.stat(copy / "d").st_gid == 0


@as_root
def test_a_deep_path_is_looked_at_from_a_working_directory_that_may_not_be_searched(unlocked: Path) -> None:
    deep, locked = unlocked / "/".join(["n" * 200] * 6), unlocked / "locked"
    deep.mkdir(parents=True)
    (deep / "f").write_text("123")
    locked.mkdir(mode=0)
    program = "import sys; from pcopy import filesystem as fs; print(fs.look_deep(sys.argv[1]).st_size)"
    command = [*without_privilege(), sys.executable, "-P" if sys.version_info >= (3, 11) else "-I", "-c", program, deep / "f"]
    done = subprocess.run(command, cwd=locked, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "3\n", done.stderr


@SERIAL_AND_POOL
def test_what_cannot_be_read_is_named_and_all_else_is_copied(unlocked: Path, jobs: int) -> None:
    shut: dict[str | bytes, object] = {"secret": File(b"s", mode=0), "shut": Dir({"below": "b"}, mode=0)}
    source = make_tree(unlocked / "src", {**many(210), **shut, "e": Dir(shut)})
    done = unprivileged("-j", jobs, "--json", source, unlocked / "copy")
    report = json.loads(done.stdout)
    assert (done.returncode, report["failed"], len(report["errors"])) == (1, 4, 4)
    *failures, last = messages(done)
    assert "4 failed" in last
    unreadable = ["secret", "shut", "e/secret", "e/shut"]
    assert sorted(line.split(": ")[1] for line in failures) == sorted(f"{source}/{path}" for path in unreadable)
    assert all("Permission denied" in line for line in failures)
    for path in unreadable:
        assert not (unlocked / "copy" / path).exists()
        (source / path).chmod(0o700)
    when = {path: os.stat(source / path).st_mtime_ns for path in (".", "e")}
    for path in unreadable:
        shutil.rmtree(source / path) if (source / path).is_dir() else (source / path).unlink()
    for path, mtime in when.items():
        os.utime(source / path, ns=(mtime, mtime))
    assert read_tree(unlocked / "copy") == read_tree(source)


@SERIAL_AND_POOL
@pytest.mark.parametrize("options", [[], ["--fsync"], ["-n"], ["--delete"]], ids=str)
def test_a_source_that_cannot_be_read_leaves_no_empty_copy(unlocked: Path, jobs: int, options: list[str]) -> None:
    """But what was there before stays."""
    shut = make_tree(unlocked / "shut", {"a": "1"}, mode=0)
    make_tree(unlocked / "old", {})
    for copy in ("new", "old"):
        done = unprivileged("-j", jobs, *options, shut, unlocked / copy)
        failure, last = messages(done)
        assert (done.returncode, "1 failed" in last) == (1, True)
        assert failure.startswith(f"pcopy: {shut}: ")
        assert "Permission denied" in failure
    assert sorted(os.listdir(unlocked)) == ["old", "shut"]


@SERIAL_AND_POOL
def test_of_several_sources_one_that_cannot_be_read_leaves_no_empty_copy(unlocked: Path, jobs: int) -> None:
    """And the others are copied."""
    shut = make_tree(unlocked / "shut", {"a": "1"}, mode=0)
    good = make_tree(unlocked / "good", many(70))
    done = unprivileged("-j", jobs, shut, good, unlocked / "copies")
    failure, last = messages(done)
    assert (done.returncode, "1 failed" in last) == (1, True)
    assert failure.startswith(f"pcopy: {shut}: ")
    assert os.listdir(unlocked / "copies") == ["good"]
    assert read_tree(unlocked / "copies" / "good") == read_tree(good)


@as_root
@SERIAL_AND_POOL
@pytest.mark.parametrize("place", ["theirs", "theirs/new", "theirs/old", "shut"])
def test_a_destination_without_permission_stops_the_run(tmp_path: Path, jobs: int, place: str) -> None:
    source = make_tree(tmp_path / "src", many(70))
    theirs = make_tree(tmp_path / "theirs", {"kept": "kept", "old": Dir({"kept": "kept"})})
    for path in (theirs, theirs / "old", make_tree(tmp_path / "shut", {}, mode=0o700)):
        os.chown(path, 12, 34)
    before = read_tree(tmp_path)
    done = unprivileged("-j", jobs, source, tmp_path / place)
    assert done.returncode == 3, done.stderr
    *failures, last = messages(done)
    assert last.startswith("stopped early: ")
    assert len(failures) == 1, done.stderr
    assert "Permission denied" in failures[0]
    assert read_tree(tmp_path) == before


@as_root
@pytest.mark.parametrize("place", ["theirs", "theirs/new"])
def test_a_file_for_a_directory_without_permission_stops_the_run(tmp_path: Path, place: str) -> None:
    source = make_tree(tmp_path / "src", {"a": "1"})
    os.chown(make_tree(tmp_path / "theirs", {}), 12, 34)
    before = read_tree(tmp_path)
    done = unprivileged(source / "a", tmp_path / place)
    assert done.returncode == 3, done.stderr
    failure, last = messages(done)
    assert "Permission denied" in failure
    assert last.startswith("stopped early: ")
    assert read_tree(tmp_path) == before


# ---- destinations that cannot take it -------------------------------------------------------------------------------


@as_root
@SERIAL_AND_POOL
def test_names_that_vfat_does_not_allow_are_named_and_all_else_is_copied(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {**many(70), "a:b": "1", "what?": Dir({"x": "x"})})
    with loop_mounted(tmp_path, "vfat") as place:
        done = pcopy("-j", jobs, source, place / "copy")
        assert done.returncode == 1, done.stderr
        assert [name for name in ("a:b", "what?") if str(source / name) not in done.stderr] == []
        assert {path.name for path in (place / "copy").iterdir()} == {os.fsdecode(name) for name in many(70)}


@as_root
@SERIAL_AND_POOL
def test_names_that_the_destination_cannot_make_are_named_and_all_else_is_made(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    """The kernel's own file system for BPF objects knows directories and links, and allows no dot in a name."""
    good = {f"d{number}": Dir({"l": Link("x"), "e": Dir()}) for number in range(20)}
    source = make_tree(tmp_path / "src", {**good, "no.link": Link("x"), "no.directory": Dir({"below": Link("x")})})
    with mounted(tmp_path / "mount", "-t", "bpf", "none") as place:
        done = pcopy("-j", jobs, "--json", source, place / "copy")
        report = json.loads(done.stdout)
        assert (done.returncode, report["failed"]) == (1, 2), done.stderr
        *failures, _ = [line for line in messages(done) if "could not be preserved" not in line]
        assert sorted(line.split(": ")[1] for line in failures) == [f"{source}/no.directory", f"{source}/no.link"]
        assert {path.name for path in (place / "copy").iterdir()} == set(good)
        assert {os.readlink(place / "copy" / name / "l") for name in good} == {"x"}


@as_root
@SERIAL_AND_POOL
@pytest.mark.parametrize(
    ("limit", "large"), [("size=2m", 0), ("nr_inodes=60", 0), ("size=40m", 48)], ids=["bytes", "inodes", "large file"]
)
def test_a_full_disk_stops_the_run_with_whole_files_only(tmp_path: Path, pcopy: Run, jobs: int, limit: str, large: int) -> None:
    data = os.urandom(100_000)
    below = {f"d{one}": Dir({f"f{number}": data + bytes([one, number]) for number in range(12)}) for one in range(6)}
    source = make_tree(tmp_path / "src", {**below, **({"large": os.urandom(1 << 20) * large} if large else {})})
    with mounted(tmp_path / "mount", "-t", "tmpfs", "-o", limit, "none") as place:
        make_tree(place, {"d3": Dir({"f0": "an older day"}), "extra": "not in the source"})
        done = pcopy("-j", jobs, source, place)
        assert done.returncode == 3, done.stderr
        *failures, last = messages(done)
        assert last.startswith("stopped early: ")
        assert len(failures) == 1, done.stderr
        assert "No space left on device" in failures[0]
        assert "free some space and run the same line again" in failures[0]
        assert (place / "extra").read_text() == "not in the source"
        assert (place / "d3/f0").read_bytes() in (b"an older day", data + bytes([3, 0]))
        assert_whole(source, place, but={"extra", "d3/f0"})


def assert_whole(source: Path, copy: Path, but: set[str]) -> None:
    """Every file in the copy is the source's, byte for byte, and no temporary name is left."""
    assert_no_temporary_names(copy)
    for path in copy.rglob("*"):
        name = str(path.relative_to(copy))
        if path.is_file() and name not in but:
            assert path.read_bytes() == (source / name).read_bytes(), name


@as_root
@SERIAL_AND_POOL
@pytest.mark.parametrize("place", ["copy", "new", "old/"])
def test_a_read_only_destination_stops_the_run(tmp_path: Path, pcopy: Run, jobs: int, place: str) -> None:
    source = make_tree(tmp_path / "src", many(70))
    target = make_tree(tmp_path / "target", {"copy": Dir({"kept": "kept"}), "old": Dir(many(7))})
    with mounted(target, "--bind", target):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(target)], check=True)
        before = read_tree(target)
        done = pcopy("-j", jobs, source, f"{target}/{place}")
        assert done.returncode == 3, done.stderr
        *failures, last = messages(done)
        assert last.startswith("stopped early: ")
        assert len(failures) == 1, done.stderr
        assert "Read-only file system (mount the destination read-write)" in failures[0]
        assert read_tree(target) == before


@pytest.mark.parametrize("sources", [["src"], ["src", "one"], ["one"]], ids=str)
@pytest.mark.parametrize("kind", [fcntl.LOCK_EX, fcntl.LOCK_SH], ids=["held alone", "held together"])
def test_a_destination_that_another_run_holds_stops_the_run(here: Path, pcopy: Run, sources: list[str], kind: int) -> None:
    before = read_tree(here / "there")
    handle = os.open(here / "there", os.O_RDONLY)
    try:
        fcntl.flock(handle, kind)
        done = pcopy("-j", 4, *sources, "there", cwd=here)
    finally:
        os.close(handle)
    if sources == ["one"] and kind == fcntl.LOCK_SH:  # single files may go into one directory side by side
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 3
    failure, last = messages(done)
    assert "another run" in failure
    assert "wait" in failure
    assert last.startswith("stopped early: ")
    assert read_tree(here / "there") == before
    assert pcopy("-q", *sources, "there", cwd=here).returncode == 0  # the lock went with its run


def test_a_directory_made_for_several_sources_has_the_mode_of_a_new_one(tmp_path: Path, pcopy: Run) -> None:
    make_tree(tmp_path / "one", {"f": b"1"})
    make_tree(tmp_path / "two", {"f": b"2"})
    assert pcopy("one", "two", "new", umask=0o027).returncode == 0
    assert (tmp_path / "new").stat().st_mode & 0o7777 == 0o750


def test_runs_of_single_files_into_one_directory_do_not_refuse_each_other(tmp_path: Path) -> None:
    """Each has the directory alone for a moment, to clear what dead runs left in it."""
    dst = make_tree(tmp_path / "dst", {f"f{number}": b"" for number in range(2000)})
    make_tree(tmp_path, {f"one{number}": b"1" for number in range(4)})
    for _ in range(5):
        words = [sys.executable, "-m", "pcopy", "-q", "-j", "1"]
        runs = [subprocess.Popen([*words, tmp_path / f"one{number}", f"{dst}/"]) for number in range(4)]
        assert [run.wait(60) for run in runs] == [0] * 4


@as_root
def test_an_entry_that_a_damaged_disk_cannot_show_keeps_no_other_from_being_copied(tmp_path: Path, pcopy: Run) -> None:
    """Where a directory does not tell the types of what is in it, each is looked at."""
    source, debug = make_tree(tmp_path / "src", {"a": Dir({"bad": "1", "new": "2"})}), shutil.which("debugfs")
    with loop_mounted(tmp_path, "ext4", "-O", "^filetype") as disk:
        make_tree(disk / "dst", {"a": Dir({"bad": "older"})})
    assert debug
    subprocess.run([debug, "-w", "-R", "clri dst/a/bad", tmp_path / "image"], check=True, capture_output=True)
    with mounted(disk, "-o", "loop", tmp_path / "image"):
        done = pcopy("-j", 1, source, disk / "dst")
        failure, _ = messages(done)
        assert (done.returncode, failure) == (1, f"pcopy: {source}/a/bad: look at: Structure needs cleaning")
        assert (disk / "dst/a/new").read_text() == "2"


@pytest.mark.parametrize("options", [[], ["--delete"], ["--atomic"], ["-n"]], ids=" ".join)
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_link_does_not_take_the_place_of_what_it_leads_to(
    tmp_path: Path, pcopy: Run, jobs: int, kind: str, options: list[str]
) -> None:
    """As in a tree of links to where things are kept, copied over that: only the links would be left."""
    make_tree(tmp_path / "home", {"rc": "kept" if kind == "file" else Dir({"f": "kept"})})
    make_tree(tmp_path / "dot", {"rc": Link("../home/rc"), "other": "new"})
    done = pcopy("-j", jobs, *options, "dot", "home", cwd=tmp_path)
    failure, _ = messages(done)
    assert done.returncode == 1
    assert failure.startswith(f"pcopy: {tmp_path}/dot/rc: ")
    assert failure.endswith("is a symbolic link to what is in its place in the destination, which would be lost")
    kept = tmp_path / "home/rc" if kind == "file" else tmp_path / "home/rc/f"
    assert (kept.read_text(), kept.is_symlink()) == ("kept", False)
    if options != ["-n"]:
        assert (tmp_path / "home/other").read_text() == "new"


def test_nor_does_another_name_of_a_link(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    """Of which the first is there already, so that the second would become a hard link to it."""
    source = make_tree(tmp_path / "src", {"a": Link(str(tmp_path / "dst/b")), "b": Hard("a"), "c": "1"})
    target = make_tree(tmp_path / "dst", {"a": Link(str(tmp_path / "dst/b")), "b": "precious"})
    when = os.lstat(source / "a").st_mtime_ns
    os.utime(target / "a", ns=(when, when), follow_symlinks=False)
    assert pcopy("-j", jobs, source, target).returncode == 1
    assert (target / "b").read_text() == "precious"


def test_a_link_given_alone_does_not_either(tmp_path: Path, pcopy: Run) -> None:
    make_tree(tmp_path, {"s": Dir({"f": "kept"}), "lf": Link("s/f"), "elsewhere": Link("s")})
    assert pcopy("lf", "s/f", cwd=tmp_path).returncode == 1
    assert (tmp_path / "s/f").read_text() == "kept"
    make_tree(tmp_path / "to", {"f": "old"})
    assert pcopy("lf", "to/f", cwd=tmp_path).returncode == 0  # another file of that name does give way
    assert os.readlink(tmp_path / "to/f") == "s/f"


@pytest.mark.parametrize("size", [3, 33 << 20], ids=["small", "large"])
def test_a_source_given_by_name_that_goes_away_is_a_failure(
    tmp_path: Path, jobs: int, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """What a scan found and is gone is in the source no more; but a file that was asked for was not copied."""
    make_tree(tmp_path, {"a": "a" * size, "b": "b", "to": Dir()})

    def and_then(*arguments: Any) -> Any:
        prepared = prepare.prepare(*arguments)
        (tmp_path / "a").unlink()
        return prepared

    monkeypatch.setattr("pcopy.api.prepare", and_then)
    report = library.copy([tmp_path / "a", tmp_path / "b"], tmp_path / "to", jobs=jobs)
    assert [(one.path, one.errno) for one in report.errors] == [(str(tmp_path / "a"), errno.ENOENT)]
    assert (report.exit_status, report.vanished, os.listdir(tmp_path / "to")) == (1, 0, ["b"])


def test_a_source_directory_that_goes_away_at_once_is_a_failure_of_its_own(tmp_path: Path, jobs: int) -> None:
    make_tree(tmp_path, {"one": Dir({"f": "1"}), "two": Dir({"g": "2"}), "to": Dir()})

    class Removes(library.Observer):
        def started(self, *_: Any) -> None:
            shutil.rmtree(tmp_path / "one")

    report = library.copy([tmp_path / "one", tmp_path / "two"], tmp_path / "to", jobs=jobs, observer=Removes())
    assert [(one.path, one.errno) for one in report.errors] == [(str(tmp_path / "one"), errno.ENOENT)]
    assert (report.exit_status, os.listdir(tmp_path / "to")) == (1, ["two"])


def test_files_of_a_directory_that_goes_away_at_once_are_failures(tmp_path: Path, jobs: int) -> None:
    make_tree(tmp_path, {"one": Dir({"f": "1", "g": "1"}), "two": Dir({"h": "2"}), "to": Dir()})

    class Removes(library.Observer):
        def started(self, *_: Any) -> None:
            shutil.rmtree(tmp_path / "one")

    sources = [tmp_path / "one/f", tmp_path / "one/g", tmp_path / "two/h"]
    report = library.copy(sources, tmp_path / "to", jobs=jobs, observer=Removes())
    assert [(one.path, one.errno) for one in report.errors] == [(str(tmp_path / "one"), errno.ENOENT)]
    assert (report.failed, report.files, os.listdir(tmp_path / "to")) == (2, 1, ["h"])


@as_root
def test_of_a_directory_at_which_another_file_system_begins_the_mode_is_kept_too(tmp_path: Path, pcopy: Run) -> None:
    source = make_tree(tmp_path / "src", {"m": Dir(), "n": Dir()})
    (source / "n").chmod(0o1777)
    with mounted(source / "m", "-t", "tmpfs", "-o", "mode=1777", "none"):
        line = ["-x", "--no-preserve", "mode", source, tmp_path / "dst"]
        assert pcopy(*line).returncode == 0
        for name in "mn":
            (tmp_path / "dst" / name).chmod(0o700)
        assert pcopy(*line).returncode == 0
    assert [(tmp_path / "dst" / name).stat().st_mode & 0o7777 for name in "mn"] == [0o700, 0o700]


@pytest.mark.parametrize("words", [["--log", "x", "--manifest", "./x"], ["--log", "x", "--metrics", "./x"]], ids=" ".join)
def test_two_files_of_a_run_are_not_one(tmp_path: Path, pcopy: Run, words: list[str]) -> None:
    make_tree(tmp_path / "src", {"f": "1"})
    done = pcopy(*words, "src", "dst", cwd=tmp_path)
    (line,) = messages(done)
    assert (done.returncode, "is to be written twice" in line) == (2, True), line
    assert sorted(os.listdir(tmp_path)) == ["src"]


@as_root
def test_a_source_that_failed_is_not_told_as_skipped_too(unlocked: Path) -> None:
    make_tree(unlocked, {"a": Dir({"f": "1"}), "b": Dir({"g": "2"}), "dst": Dir({"a": "in the way"})})
    (unlocked / "a").chmod(0)
    done = unprivileged("-j", 1, "-v", unlocked / "a", unlocked / "b", unlocked / "dst")
    (unlocked / "a").chmod(0o755)
    assert (done.returncode, "skipped" in done.stderr, "Permission denied" in done.stderr) == (1, False, True), done.stderr


# ---- many files, given one by one ----

MANY = {f"f{number}": f"{number}" for number in range(300)}


def given_one_by_one(top: Path) -> Path:
    """As a shell writes them out for ``*``: files, two of which are one, a symbolic link, a FIFO and a directory."""
    entries = {**MANY, "two": Hard("f0"), "one": Link("f1"), "pipe": Fifo(), "dir": Dir({"f": b"below"})}
    return make_tree(top, entries)


@SERIAL_AND_POOL
def test_many_files_given_one_by_one_are_copied_as_their_directory_would_be(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    source, target = given_one_by_one(tmp_path / "src"), tmp_path / "dst"
    make_tree(target, {"f2": b"older, and to be replaced", "f3": Dir(), "other": b"nobody's business"})
    done = pcopy("-j", jobs, "--json", *sorted(os.listdir(source)), target, cwd=source)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["files"], report["hardlinks"], report["symlinks"], report["specials"]) == (301, 1, 1, 1)
    copied, expected = read_tree(target), read_tree(source)
    del copied[b"other"], copied[b"."], expected[b"."]  # the directory they are in is no copy
    assert copied == expected
    again = json.loads(pcopy("-j", jobs, "--json", *sorted(os.listdir(source)), target, cwd=source).stdout)
    assert (again["files"], again["unchanged"], again["failed"]) == (0, 304, 0)


def test_of_many_entries_given_one_by_one_no_pipe_is_opened(tmp_path: Path) -> None:
    source, target, log = given_one_by_one(tmp_path / "src"), make_tree(tmp_path / "dst", {}), tmp_path / "log"
    command = [*strace("-e", "trace=openat", log=log), sys.executable, "-m", "pcopy", "-q", "-j", "1"]
    subprocess.run([*command, "pipe", *sorted(MANY), str(target)], cwd=source, check=True)
    assert [line for line in lines_of(log) if '"f7"' in line]
    assert not [line for line in lines_of(log) if '"pipe"' in line and "O_PATH" not in line]


def test_a_dry_run_of_many_files_given_one_by_one_tells_what_the_run_does(tmp_path: Path, pcopy: Run) -> None:
    """Of two names of an inode, the second is there already."""
    source, target = make_tree(tmp_path / "src", {**MANY, "f170": Hard("f101")}), make_tree(tmp_path / "dst", {"f170": "101"})
    os.utime(target / "f170", ns=(WHEN, WHEN))
    os.utime(source / "f101", ns=(WHEN, WHEN))
    names = sorted(os.listdir(source))
    would, did = (pcopy(*words, "-j", 1, "--json", *names, target, cwd=source) for words in (["-n"], []))
    counts = [[json.loads(done.stdout)[what] for what in ("files", "hardlinks", "unchanged")] for done in (would, did)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("given", ["straight", "by a link"])
def test_a_source_in_the_destination_that_a_copy_would_replace_is_refused_by_any_way(
    tmp_path: Path, pcopy: Run, given: str
) -> None:
    for top, text in ("src", b"new"), ("dst/src", b"old"):
        make_tree(tmp_path / top, {"sub": Dir({"file": text})})
    (tmp_path / "way").symlink_to("dst/src/sub")
    place = "dst/src/sub/file" if given == "straight" else "way/file"
    done = pcopy("src", place, "dst", cwd=tmp_path)
    assert done.returncode == 2
    assert "its copy would be written over the source" in done.stderr
    assert (tmp_path / "dst/src/sub/file").read_bytes() == b"old"
