"""A large file of a run that was cut goes on where it was, if it can be told that its source is the same.

What was there of it is marked: a byte of it is changed. If the mark is in the copy, that part was not copied again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import pcopy as library
from pcopy.extents import MARGIN
from pcopy.runs import TEMPORARY
from tests.conftest import as_root
from tests.test_destination import mounted
from tests.test_engines import Script, wait_until

JOBS = pytest.mark.parametrize("jobs", [1, 3])
SIZE = 80 << 20  # bytes
BLOCK = 64 << 10  # bytes


@pytest.fixture
def tmp_path(on_disk: Path) -> Path:
    return on_disk


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "src"
    (top / "d").mkdir(parents=True)
    (top / "d/large").write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
    (top / "small").write_bytes(b"small")
    return top


def temporary(top: Path) -> list[Path]:
    return [path for path in top.rglob(".pcopy-*") if re.match(TEMPORARY, path.name)]


def cut(source: Path, destination: Path, jobs: int) -> Path:
    """Kill a run, workers and all, when a good part of its large file is written. Returns the file's temporary name."""
    run = Script(["-m", "pcopy", "-q", "-j", str(jobs), "--bwlimit", "20M", str(source), str(destination)], source.parent)

    def begun() -> bool:
        return any(written(path)[1] > 4 * MARGIN for path in temporary(destination.parent))

    try:
        assert wait_until(begun, 30), "nothing was written"
    finally:
        run.clean_up()
    assert wait_until(lambda: is_free(destination if destination.is_dir() else destination.parent), 5)
    (path,) = temporary(destination.parent)
    return path


def is_free(directory: Path) -> bool:
    """A process that was killed holds its lock for a moment."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def written(path: Path) -> tuple[int, int]:
    """Where the longest stretch begins that is written of a file, and how many bytes it has."""
    found, at = [(0, 0)], 0
    with open(path, "rb") as file, contextlib.suppress(OSError):  # ENXIO: no more data
        while True:
            start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, at - start))
    return max(found, key=lambda one: one[1])


def mark(path: Path, before_end: int | None = None) -> int:
    """Change a byte of what is written, in the middle, or so many bytes before its end. Returns where."""
    start, length = written(path)
    offset = start + (length // 2 if before_end is None else length - before_end)
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    return offset


def offsets(one: Path, other: Path) -> list[int]:
    """Where two files of one length differ."""
    left, right = one.read_bytes(), other.read_bytes()
    assert len(left) == len(right)
    blocks = [at for at in range(0, len(left), BLOCK) if left[at : at + BLOCK] != right[at : at + BLOCK]]
    return [at + byte for at in blocks for byte in range(BLOCK) if left[at + byte] != right[at + byte]]


@JOBS
def test_a_large_file_goes_on_where_it_was(tmp_path: Path, source: Path, jobs: int) -> None:
    marked = mark(cut(source, tmp_path / "dst", jobs))
    report = library.copy(source, tmp_path / "dst", jobs=jobs)
    copy = tmp_path / "dst/d/large"
    assert (report.ok, report.failed) == (True, 0), report.errors
    assert offsets(source / "d/large", copy) == [marked]
    assert copy.stat().st_mtime_ns == (source / "d/large").stat().st_mtime_ns
    assert not temporary(tmp_path)


@JOBS
def test_the_end_of_what_is_written_is_not_believed(tmp_path: Path, source: Path, jobs: int) -> None:
    """A page, and it can be of 2 MiB, shows as data from the first byte that was written to it."""
    mark(cut(source, tmp_path / "dst", jobs), before_end=3 << 20)
    assert library.copy(source, tmp_path / "dst", jobs=jobs).ok
    assert offsets(source / "d/large", tmp_path / "dst/d/large") == []


@as_root
@JOBS
@pytest.mark.parametrize("below", ["", "dst/d"], ids=["all of it", "a mount below"])
def test_where_holes_do_not_tell_what_was_written_it_begins_anew(tmp_path: Path, source: Path, jobs: int, below: str) -> None:
    """A page of 2 MiB shows as data in whole; between two of them no hole may be left of what nobody has written."""
    (tmp_path / "out" / below).mkdir(parents=True)
    with mounted(tmp_path / "out" / below, "-t", "tmpfs", "-o", "mode=755", "none"):
        mark(cut(source, tmp_path / "out/dst", jobs))
        assert library.copy(source, tmp_path / "out/dst", jobs=jobs).ok
        assert offsets(source / "d/large", tmp_path / "out/dst/d/large") == []
        assert not temporary(tmp_path)


@JOBS
def test_with_checksum_it_begins_anew(tmp_path: Path, source: Path, jobs: int) -> None:
    """Contents alone are believed then, and nobody has compared these."""
    mark(cut(source, tmp_path / "dst", jobs))
    assert library.copy(source, tmp_path / "dst", jobs=jobs, checksum=True).ok
    assert offsets(source / "d/large", tmp_path / "dst/d/large") == []
    assert not temporary(tmp_path)


@JOBS
def test_a_single_file_goes_on_too(tmp_path: Path, source: Path, jobs: int) -> None:
    (tmp_path / "dst").mkdir()
    marked = mark(cut(source / "d/large", tmp_path / "dst/renamed", jobs))
    report = library.copy(source / "d/large", tmp_path / "dst/renamed", jobs=jobs)
    assert (report.ok, report.files, report.bytes) == (True, 1, SIZE), report.errors
    assert offsets(source / "d/large", tmp_path / "dst/renamed") == [marked]
    assert not temporary(tmp_path)


@JOBS
def test_verify_covers_what_was_there_already(tmp_path: Path, source: Path, jobs: int) -> None:
    mark(cut(source, tmp_path / "dst", jobs))
    report = library.copy(source, tmp_path / "dst", jobs=jobs, verify=True)
    assert [(error.path, error.operation) for error in report.errors] == [(f"{source}/d/large", "verify")]
    assert not (tmp_path / "dst/d/large").exists() and not temporary(tmp_path)
    assert library.copy(source, tmp_path / "dst", jobs=jobs, verify=True).ok
    assert offsets(source / "d/large", tmp_path / "dst/d/large") == []


def written_to(source: Path, partial: Path) -> None:
    with open(source / "d/large", "r+b") as file:
        file.write(b"changed")


def touched(source: Path, partial: Path) -> None:
    os.utime(source / "d/large")


def other_mode(source: Path, partial: Path) -> None:
    partial.chmod(0o644)


def other_name(source: Path, partial: Path) -> None:
    """Somebody who may write there has a second name for it, by which to change it."""
    os.link(partial, partial.parent.parent / "elsewhere")


def other_owner(source: Path, partial: Path) -> None:
    os.chown(partial, 12345, -1)


def without_holes(source: Path, partial: Path) -> None:
    """As file systems have it that fill a file with zeros when its length is set."""
    with open(partial, "r+b") as file:
        while (hole := os.lseek(file.fileno(), 0, os.SEEK_HOLE)) < SIZE:
            os.pwrite(file.fileno(), bytes(BLOCK), hole)


def writable_by_others(source: Path, partial: Path) -> None:
    """Who may write into the directory can give the partial of another file its name."""
    partial.parent.chmod(0o777)


def of_somebody(source: Path, partial: Path) -> None:
    os.chown(partial.parent, 12345, -1)


def symbolic_link(source: Path, partial: Path) -> None:
    partial.rename(partial.parent.parent / "elsewhere")
    partial.symlink_to("../elsewhere")


DEEDS = [
    written_to, touched, other_mode, other_name, without_holes, symbolic_link, writable_by_others,
    pytest.param(other_owner, marks=as_root), pytest.param(of_somebody, marks=as_root),
]  # fmt: skip


@JOBS
@pytest.mark.parametrize("deed", DEEDS)
def test_it_begins_anew_if_it_could_be_something_else(
    tmp_path: Path, source: Path, jobs: int, deed: Callable[[Path, Path], None]
) -> None:
    partial = cut(source, tmp_path / "dst", jobs)
    mark(partial)
    deed(source, partial)
    report = library.copy(source, tmp_path / "dst", jobs=jobs)
    assert report.ok, report.errors
    assert offsets(source / "d/large", tmp_path / "dst/d/large") == []
    assert not temporary(tmp_path)
    elsewhere = tmp_path / "dst/elsewhere"
    assert not elsewhere.exists() or elsewhere.stat().st_size == SIZE  # never written through


@JOBS
@pytest.mark.parametrize("way", ["gone", "hidden", "unlike", "small"])
def test_nothing_is_left_of_what_nobody_goes_on_with(tmp_path: Path, source: Path, jobs: int, way: str) -> None:
    partial = cut(source, tmp_path / "dst", jobs)
    large, options = source / "d/large", {}
    if way == "gone":
        large.unlink()
    elif way == "hidden":
        options = {"filters": ["large"]}
    elif way == "unlike":
        large.unlink()
        large.symlink_to("../small")
    else:
        os.truncate(large, 5)
    assert partial.exists()
    report = library.copy(source, tmp_path / "dst", jobs=jobs, **options)  # type: ignore[arg-type]
    assert report.ok and not temporary(tmp_path), report.errors


@JOBS
def test_a_directory_with_such_a_file_can_be_deleted(tmp_path: Path, source: Path, jobs: int) -> None:
    cut(source, tmp_path / "dst", jobs)
    (source / "d/large").unlink()
    (source / "d").rmdir()
    plan = library.copy(source, tmp_path / "dst", jobs=jobs, delete=True, dry_run=True)
    report = library.copy(source, tmp_path / "dst", jobs=jobs, delete=True)
    assert (report.ok, report.deleted, plan.deleted) == (True, 1, 1), report.errors
    assert sorted(os.listdir(tmp_path / "dst")) == ["small"]
