"""What is known by reading: --checksum, --verify, --manifest and --check, on real trees and with real corruption."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pcopy as library
from pcopy import audit as library_audit
from pcopy import manifest as library_manifest
from pcopy import worker
from pcopy.coordinator import Coordinator
from pcopy.division import divide
from pcopy.handles import Pair
from pcopy.manifest import parse
from pcopy.metadata import SHORTLY
from pcopy.options import Hash, Options
from pcopy.outcome import Outcome
from pcopy.prepare import current_umask
from pcopy.result import Observer, Report, Stop
from pcopy.work import Check, Entries, Job, Large, Seal, Span, Sums, Temporary, Tree, Verify, Version, large_group
from tests.conftest import Run
from tests.test_engines import wait_until
from tests.trees import WHEN, Dir, Fifo, File, Hard, Holes, Link, make_tree, read_tree

JOBS = pytest.mark.parametrize("jobs", [1, 3])
OF_YESTERDAY = f"{'0' * 64}  x\n"
LARGE = 33 << 20  # bytes: such a file is copied in spans


@functools.cache
def numbers() -> bytes:
    """The contents of a large file, in which no four bytes at their place are like any others: made once, which takes long."""
    return b"".join(number.to_bytes(4, "big") for number in range(LARGE // 4))


def a_tree() -> dict[str | bytes, object]:
    return {
        "plain": File(b"x" * 5000, mode=0o640),
        "empty": b"",
        "d": Dir({f"f{number}": f"{number}" * 700 for number in range(40)}),
        "link": Link("plain"),
        "pipe": Fifo(),
        "other name": Hard("plain"),
        "large": numbers(),
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "src", a_tree())


def flip(path: Path, offset: int) -> None:
    """Change a byte of a file behind everybody's back: its times are what they were."""
    state = path.stat()
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Storage that goes wrong: of each range copied, or read, from a path that holds FLIP, the last byte is another one. */
int goes_wrong(int source) {
    char link[64], path[8192] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", source);
    return readlink(link, path, sizeof path - 1) > 0 && strstr(path, getenv("FLIP"));
}
ssize_t read(int file, void *to, size_t size) {
    ssize_t done = syscall(SYS_read, file, to, size);
    if (done > 0 && goes_wrong(file)) ((char *)to)[done - 1] ^= 1;
    return done;
}
ssize_t copy_file_range(int source, off64_t *from, int target, off64_t *to, size_t size, unsigned flags) {
    ssize_t (*next)(int, off64_t *, int, off64_t *, size_t, unsigned) = dlsym(RTLD_NEXT, "copy_file_range");
    ssize_t done = next(source, from, target, to, size, flags);
    char byte;
    if (done > 0 && goes_wrong(source)) {
        off_t last = lseek(source, 0, SEEK_CUR) - 1;
        syscall(SYS_pread64, source, &byte, 1, last);
        byte ^= 1;
        syscall(SYS_pwrite64, target, &byte, 1, last);
    }
    return done;
}
"""


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc")
    if not compiler:
        pytest.skip("needs gcc")
    where = tmp_path_factory.mktemp("flip")
    (where / "flip.c").write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", where / "flip.so", where / "flip.c", "-ldl"], check=True)
    return where / "flip.so"


def flipping(shim: Path, needle: str) -> dict[str, str]:
    return {**os.environ, "LD_PRELOAD": str(shim), "FLIP": needle}


def leftovers(top: Path) -> list[Path]:
    return list(top.rglob(".pcopy-*"))


# ---- --checksum -----------------------------------------------------------------------------------------------------


@JOBS
@pytest.mark.parametrize(("name", "offset"), [("plain", 0), ("d/f7", 699), ("large", LARGE - 1)])
def test_a_copy_with_other_contents_and_the_right_times_is_replaced(
    tmp_path: Path, source: Path, jobs: int, name: str, offset: int
) -> None:
    library.copy(source, tmp_path / "dst", jobs=jobs)
    flip(tmp_path / "dst" / name, offset)
    assert library.copy(source, tmp_path / "dst", jobs=jobs).files == 0  # it looks unchanged
    report = library.copy(source, tmp_path / "dst", jobs=jobs, checksum=True)
    assert (report.files, report.exit_status) == (1, 0)
    assert read_tree(tmp_path / "dst") == read_tree(source)


@JOBS
def test_an_equal_file_with_other_times_gets_them_and_counts_as_unchanged(tmp_path: Path, source: Path, jobs: int) -> None:
    library.copy(source, tmp_path / "dst", jobs=jobs)
    inodes = {name: (tmp_path / "dst" / name).stat().st_ino for name in ("d/f1", "large")}
    for name in inodes:
        os.utime(tmp_path / "dst" / name, ns=(7, 7))
    (tmp_path / "dst/d/f1").chmod(0o600)
    report = library.copy(source, tmp_path / "dst", jobs=jobs, checksum=True)
    assert (report.files, report.unchanged) == (0, report.found - report.directories)
    assert inodes == {name: (tmp_path / "dst" / name).stat().st_ino for name in inodes}
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_a_copy_of_another_length_is_replaced_without_being_read(tmp_path: Path, source: Path) -> None:
    library.copy(source, tmp_path / "dst", jobs=1)
    with open(tmp_path / "dst/d/f3", "ab") as file:
        file.write(b"more")
    os.utime(tmp_path / "dst/d/f3", ns=(WHEN, WHEN))
    assert library.copy(source, tmp_path / "dst", jobs=1, checksum=True).files == 1
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_what_checksum_would_do_is_what_it_does(tmp_path: Path, source: Path) -> None:
    library.copy(source, tmp_path / "dst", jobs=1)
    flip(tmp_path / "dst/d/f7", 1)
    flip(tmp_path / "dst/plain", 1)
    os.utime(tmp_path / "dst/large", ns=(7, 7))
    dry, wet = (library.copy(source, tmp_path / "dst", jobs=1, checksum=True, dry_run=dry) for dry in (True, False))
    assert counts(dry) == counts(wet)
    assert wet.files == 2


def counts(report: Report) -> tuple[int, ...]:
    return report.files, report.hardlinks, report.unchanged, report.skipped, report.found


def slices_of(job: Job, unit: Entries) -> list[Outcome]:
    """The outcomes of slices without any time, each going on where the last one stopped."""
    outcomes = [worker.run(job, [unit], 0.0)]
    while outcomes[-1].leftover:
        outcomes.append(worker.run(job, outcomes[-1].leftover, 0.0))
        assert len(outcomes) < 100, "it does not come any further"
    return outcomes


def test_a_large_file_is_compared_slice_by_slice_and_again_if_it_changed_meanwhile(tmp_path: Path, source: Path) -> None:
    library.copy(source, tmp_path / "dst", jobs=1)
    states = [(state.st_dev, state.st_ino) for state in (os.stat(source), os.stat(tmp_path / "dst"))]
    trees = (Tree(str(source), str(tmp_path / "dst"), states[0], states[1]),)
    job = Job(Options(checksum=True), trees, "0123abcd", 0o022)
    unit = Entries(0, "", ("large", "empty"), False, True, 1.0)
    outcomes = slices_of(job, unit)
    assert len(outcomes) == (LARGE >> 20) + 1  # megabytes, and the other file
    assert sum(outcome.tally.unchanged for outcome in outcomes) == 2
    begun = worker.run(job, [unit], 0.0).leftover[0]
    assert isinstance(begun, Entries) and begun.compared and begun.compared.position == 1 << 20
    flip(tmp_path / "dst/large", 5)  # before the place where the comparison would go on
    assert sum(outcome.tally.files + outcome.large_open for outcome in slices_of(job, begun)) == 1
    assert read_tree(tmp_path / "dst")[b"large"] == read_tree(source)[b"large"]


@pytest.mark.parametrize("overwrite", ["always", "never", "older"])
def test_checksum_goes_with_changed_only(tmp_path: Path, source: Path, pcopy: Run, overwrite: str) -> None:
    done = pcopy("--checksum", "--overwrite", overwrite, source, "dst")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "checksum" in done.stderr
    assert not (tmp_path / "dst").exists()


def test_without_checksum_nothing_is_read_that_looks_unchanged(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.copy(source, tmp_path / "dst", jobs=1)
    reads = itertools.count()
    monkeypatch.setattr(os, "preadv", lambda *_: next(reads))
    assert library.copy(source, tmp_path / "dst", jobs=1).files == 0
    assert next(reads) == 0


# ---- --verify -------------------------------------------------------------------------------------------------------


@JOBS
@pytest.mark.parametrize("name", ["d/f7", "large"])
def test_a_new_file_that_went_bad_on_its_way_is_named_and_does_not_stay(
    tmp_path: Path, source: Path, pcopy: Run, shim: Path, jobs: int, name: str
) -> None:
    environment = flipping(shim, f"/src/{name}")
    done = pcopy("-j", jobs, "--verify", source, "dst", env=environment)
    assert done.returncode == 1
    assert f"{source}/{name}: verify: read back, the copy differs from its source" in done.stderr
    assert "; 0 unchanged, 0 deleted, 1 failed" in done.stderr
    copy, whole = read_tree(tmp_path / "dst"), read_tree(source)
    assert set(whole) - set(copy) == {name.encode()}
    assert all(copy[path] == whole[path] for path in copy)
    assert leftovers(tmp_path / "dst") == []
    pcopy("-j", jobs, source, "dst", env=environment)  # the same storage without --verify: nobody sees it
    assert (tmp_path / "dst" / name).exists()
    assert read_tree(tmp_path / "dst")[name.encode()].content != whole[name.encode()].content


@JOBS
@pytest.mark.parametrize("name", ["d/f7", "large"])
def test_of_a_file_that_is_replaced_the_old_one_stays_if_the_new_one_is_bad(
    tmp_path: Path, source: Path, pcopy: Run, shim: Path, jobs: int, name: str
) -> None:
    library.copy(source, tmp_path / "dst", jobs=1)
    (tmp_path / "dst" / name).write_bytes(b"of an older day")
    done = pcopy("-j", jobs, "--verify", source, "dst", env=flipping(shim, f"/src/{name}"))
    assert (done.returncode, "verify: read back" in done.stderr) == (1, True)
    assert (tmp_path / "dst" / name).read_bytes() == b"of an older day"
    assert leftovers(tmp_path / "dst") == []


@JOBS
@pytest.mark.parametrize("options", [{}, {"sparse": "always"}, {"fsync": True, "atomic": True}], ids=str)
def test_what_is_verified_is_copied_as_ever(tmp_path: Path, source: Path, jobs: int, options: dict[str, bool]) -> None:
    make_tree(source, {"holes": Holes(LARGE + 5000, {1 << 20: b"data", LARGE: b"more"}), "few": Holes(90_000, {40_000: b"x"})})
    make_tree(source, {"secret": File(b"unreadable", mode=0)})
    report = library.copy(source, tmp_path / "dst", jobs=jobs, verify=True, **options)  # type: ignore[arg-type]
    assert (report.errors, report.exit_status) == ([], 0)
    assert read_tree(tmp_path / "dst") == read_tree(source)
    again = library.copy(source, tmp_path / "dst", jobs=jobs, verify=True)
    assert (again.files, again.exit_status) == (0, 0)


def test_the_copy_is_written_out_and_dropped_from_memory_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done to a copy, in its order; a large one is dropped at once, which makes the storage begin early."""
    source = make_tree(tmp_path / "src", {"small": b"1" * 10_000, "large": b"2" * LARGE})
    calls: list[tuple[str, str]] = []

    def noting(name: str) -> None:
        real = getattr(os, name)

        def call(handle: int, *rest: object) -> object:
            path = os.readlink(f"/proc/self/fd/{handle}")
            if "/dst/" in path and (name, path) not in calls[-1:]:
                calls.append((name, path))
            return real(handle, *rest)

        monkeypatch.setattr(os, name, call)

    for name in ("fdatasync", "posix_fadvise", "preadv"):
        noting(name)
    assert library.copy(source, tmp_path / "dst", jobs=1, verify=True).ok
    by_file = [[name for name, path in calls if path.endswith("/small") is small] for small in (True, False)]
    assert by_file[0] == ["fdatasync", "posix_fadvise", "preadv"]
    assert by_file[1][0] == "posix_fadvise"
    reads = [at for at, name in enumerate(by_file[1]) if name == "preadv"]
    assert reads and all(by_file[1][at - 2 : at] == ["fdatasync", "posix_fadvise"] for at in reads)


def test_each_byte_of_a_large_file_is_verified_once_by_many(tmp_path: Path, source: Path) -> None:
    unit = Verify(a_large(), 0, 4 * LARGE)
    parts = [part for part in divide(unit, 4) if isinstance(part, Verify)]
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert (len(parts), parts[0].start, parts[-1].stop) == (4, 0, 4 * LARGE)
    assert all(part.start % 4096 == 0 for part in parts)  # no page is written by two


def a_large() -> Large:
    temporary, version = Temporary(".t", (1, 3), (0, 0), False), Version((1, 2), 4 * LARGE, 3, 4)
    return Large(0, "", "large", "large", temporary, 4 * LARGE, False, version, (), 0, 1.0)


def test_what_is_left_of_a_file_that_is_bad_is_not_done(tmp_path: Path) -> None:
    job = Job(Options(verify=True), (Tree("/s", "/d", (0, 0), (0, 1)),), "0123abcd", 0o022)
    coordinator = Coordinator(job, Report(), Observer(), Stop())
    bad, half = a_large(), 2 * LARGE
    coordinator.add([Seal(bad), Span(bad, half, 4 * LARGE), Verify(bad, 0, half)])
    first = coordinator.take(0)
    assert first and first.units == [Verify(bad, 0, half)]
    coordinator.absorb(first.units, Outcome(ruined={large_group(bad)}))
    rest = coordinator.take(0)
    assert rest and rest.units == [Span(bad, 4 * LARGE, 4 * LARGE)]
    coordinator.absorb(rest.units, Outcome())
    last = coordinator.take(0)
    assert last and last.units == [Seal(bad, discard=True)]


def test_a_source_that_changes_while_it_is_verified_is_copied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tree(tmp_path / "src", {"small": b"1" * 10_000, "large": b"2" * LARGE})
    left = ["small", "large"]
    real = os.fdatasync

    def rewrite(handle: int) -> None:
        real(handle)
        if left:
            name = "large" if os.fstat(handle).st_size == LARGE else "small"
            if name in left:
                left.remove(name)
                flip(source / name, 5000)

    monkeypatch.setattr(os, "fdatasync", rewrite)
    report = library.copy(source, tmp_path / "dst", jobs=1, verify=True)
    assert (report.errors, left, report.files) == ([], [], 2)
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_verify_reads_nothing_of_what_is_unchanged(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.copy(source, tmp_path / "dst", jobs=1)
    reads = itertools.count()
    monkeypatch.setattr(os, "preadv", lambda *_: next(reads))
    assert library.copy(source, tmp_path / "dst", jobs=1, verify=True).files == 0
    assert next(reads) == 0


# ---- --manifest -----------------------------------------------------------------------------------------------------

ODD: dict[str | bytes, object] = {
    "back\\slash": b"1",
    "line\nend": b"2",
    "return\r": b"3",
    b"not utf-8 \xff": b"4",
    " blanks ": b"5",
    "*star": b"6",
    "d\\\n": Dir({"deep\\name": b"7", "plain": b"8"}),
}


def sha256sum(manifest: Path, where: Path) -> subprocess.CompletedProcess[bytes]:
    if not shutil.which("sha256sum"):
        pytest.skip("needs sha256sum")
    return subprocess.run(["sha256sum", "-c", "--strict", manifest], cwd=where, capture_output=True, check=False)


def lines_of(manifest: Path) -> list[bytes]:
    return manifest.read_bytes().splitlines(keepends=True)


def files_in(top: Path) -> set[bytes]:
    return {path for path, state in read_tree(top).items() if state.kind == "file"}


@JOBS
def test_a_manifest_lists_every_file_of_the_copy_for_sha256sum(tmp_path: Path, source: Path, jobs: int) -> None:
    make_tree(source, ODD)
    report = library.copy(source, tmp_path / "dst", jobs=jobs, manifest=tmp_path / "sums")
    assert (report.errors, report.exit_status) == ([], 0)
    done = sha256sum(tmp_path / "sums", tmp_path / "dst")
    assert (done.returncode, done.stderr) == (0, b"")
    lines = (tmp_path / "sums").read_bytes().split(b"\n")[:-1]
    names = [parse(line) for line in lines]
    assert {os.fsencode(name[0]) for name in names if name} == files_in(source)
    assert len(lines) == len(files_in(source))
    assert [line.lstrip(b"\\")[66:] for line in lines] == sorted(line.lstrip(b"\\")[66:] for line in lines)
    assert list(tmp_path.glob(".pcopy-*")) == []
    assert stat.S_IMODE((tmp_path / "sums").stat().st_mode) == 0o666 & ~current_umask()


def test_a_name_that_is_a_dash_is_not_the_standard_input(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"-": b"1", "d": Dir({"-": b"2"})})
    assert library.copy(source, tmp_path / "dst", jobs=1, manifest=tmp_path / "sums").ok
    assert [line[66:] for line in lines_of(tmp_path / "sums")] == [b"./-\n", b"d/-\n"]
    assert sha256sum(tmp_path / "sums", tmp_path / "dst").returncode == 0
    assert library.check(tmp_path / "sums", tmp_path / "dst", jobs=1).files == 2
    (source / "-").unlink()
    assert library.copy(source, tmp_path / "other", jobs=1, manifest=tmp_path / "other/-").ok
    assert [line[66:] for line in lines_of(tmp_path / "other/-")] == [b"d/-\n"]


@JOBS
def test_after_a_rerun_the_manifest_is_as_complete_and_right(tmp_path: Path, source: Path, jobs: int) -> None:
    make_tree(tmp_path / "dst", {"extra": b"not of the source"})
    time.sleep(SHORTLY / 1e9 + 0.1)  # what was touched a moment before it was copied is looked at by another way
    for day in range(3):
        (source / f"new {day}").write_text(f"of day {day}")
        (source / "d/f1").write_text(f"changed on day {day}")
        (source / f"d/f{20 + day}").unlink()
        report = library.copy(source, tmp_path / "dst", jobs=jobs, manifest=tmp_path / "sums")
        assert report.exit_status == 0 and (report.unchanged > 30 or not day)
        assert sha256sum(tmp_path / "sums", tmp_path / "dst").returncode == 0
        assert len(lines_of(tmp_path / "sums")) == len(files_in(source))
    kept = library.copy(source, tmp_path / "dst", jobs=jobs, overwrite="never", manifest=tmp_path / "sums")
    assert kept.skipped
    assert len(lines_of(tmp_path / "sums")) == len(files_in(source))


def test_several_sources_are_listed_from_the_destination(tmp_path: Path) -> None:
    one = make_tree(tmp_path / "one", {"a": b"1", "d": Dir({"b": b"2"})})
    single = make_tree(tmp_path / "two", {"file": b"3"}) / "file"
    (tmp_path / "all").mkdir()
    assert library.copy([one, single], tmp_path / "all", jobs=1, manifest=tmp_path / "sums").ok
    assert [line[66:] for line in lines_of(tmp_path / "sums")] == [b"file\n", b"one/a\n", b"one/d/b\n"]
    assert library.copy(single, tmp_path / "all/renamed", jobs=1, manifest=tmp_path / "sums").ok
    assert [line[66:] for line in lines_of(tmp_path / "sums")] == [b"renamed\n"]
    assert sha256sum(tmp_path / "sums", tmp_path / "all").returncode == 0


@JOBS
@pytest.mark.parametrize("name", ["d/f7", "large"])
def test_a_copy_that_went_bad_on_its_way_does_not_match_its_manifest(
    tmp_path: Path, source: Path, pcopy: Run, shim: Path, jobs: int, name: str
) -> None:
    environment = flipping(shim, f"/src/{name}")
    assert pcopy("-j", jobs, "--manifest", "sums", source, "dst", env=environment).returncode == 0
    done = sha256sum(tmp_path / "sums", tmp_path / "dst")
    assert re.findall(rb"^(.*): FAILED", done.stdout, re.MULTILINE) == [name.encode()]
    library.copy(source, tmp_path / "dst", jobs=1, manifest=tmp_path / "sums")  # it looks unchanged: listed as it is
    assert sha256sum(tmp_path / "sums", tmp_path / "dst").returncode == 0


def test_a_source_that_changes_before_it_is_summed_up_is_not_taken_for_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_tree(tmp_path / "src", {"a": b"before"})
    real = library_audit.Auditor.sum

    def later(*arguments: object) -> object:
        (source / "a").write_bytes(b"beyond")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(library_audit.Auditor, "sum", later)
    library.copy(source, tmp_path / "dst", jobs=1, manifest=tmp_path / "sums")
    assert (tmp_path / "dst/a").read_bytes() == b"before"
    assert sha256sum(tmp_path / "sums", tmp_path / "dst").returncode == 0


def test_many_lines_are_sorted_in_parts(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.copy(source, tmp_path / "dst", jobs=1, manifest=tmp_path / "whole")
    monkeypatch.setattr(library_manifest, "PART", 3)
    parts: list[int] = []
    real = library_manifest.Spool.part

    def noted(spool: library_manifest.Spool) -> object:
        parts.append(len(spool.lines))
        return real(spool)

    monkeypatch.setattr(library_manifest.Spool, "part", noted)
    library.copy(source, tmp_path / "dst", jobs=1, overwrite="always", manifest=tmp_path / "parts")
    assert parts and (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_no_room_for_the_parts_is_a_failure_of_the_manifest_alone(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(library_manifest, "PART", 3)
    monkeypatch.setattr(library_manifest.Spool, "part", full)
    (tmp_path / "sums").write_text(OF_YESTERDAY)
    report = library.copy(source, tmp_path / "dst", jobs=1, manifest=tmp_path / "sums")
    assert [(one.path, one.operation) for one in report.errors] == [(str(tmp_path / "sums"), "write the manifest")]
    assert report.exit_status == 1
    assert (tmp_path / "sums").read_text() == OF_YESTERDAY
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_a_manifest_in_the_copy_lists_not_itself_and_changes_no_times(tmp_path: Path, source: Path) -> None:
    for _ in range(2):
        assert library.copy(source, tmp_path / "dst", jobs=1, manifest=tmp_path / "dst/SUMS").ok
        assert sha256sum(tmp_path / "dst/SUMS", tmp_path / "dst").returncode == 0
        copy = read_tree(tmp_path / "dst")
        del copy[b"SUMS"]
        assert copy == read_tree(source)
    assert not any(line.endswith(b"  SUMS\n") for line in lines_of(tmp_path / "dst/SUMS"))


def test_a_source_that_came_under_the_name_of_the_manifest_is_not_listed(tmp_path: Path) -> None:
    with contextlib.closing(library_manifest.Spool()) as spool:
        spool.add(library_manifest.record(name, "0" * 64, Hash.SHA256) for name in ("b", "my\nsums", "a"))
        library_manifest.write(spool, str(tmp_path / "my\nsums"), b"my\\nsums", 0o022, lasting=True)
    assert lines_of(tmp_path / "my\nsums") == [b"0" * 64 + b"  a\n", b"0" * 64 + b"  b\n"]


def test_a_manifest_is_not_written_through_a_link(tmp_path: Path, source: Path) -> None:
    (tmp_path / "precious").write_text(OF_YESTERDAY)
    (tmp_path / "sums").symlink_to("precious")
    assert library.copy(source, tmp_path / "dst", jobs=1, manifest=tmp_path / "sums").ok
    assert (tmp_path / "precious").read_text() == OF_YESTERDAY
    assert sha256sum(tmp_path / "sums", tmp_path / "dst").returncode == 0
    assert not (tmp_path / "sums").is_symlink()


@JOBS
def test_a_run_that_is_cut_short_leaves_the_old_manifest(tmp_path: Path, source: Path, jobs: int) -> None:
    (tmp_path / "sums").write_text(OF_YESTERDAY)
    stop = Stop()
    stop.signal = signal.SIGTERM
    report = library.copy(source, tmp_path / "dst", jobs=jobs, manifest=tmp_path / "sums", stop=stop)
    assert any("sums: not written, because the run was cut short" in warning for warning in report.warnings)
    assert (tmp_path / "sums").read_text() == OF_YESTERDAY


def test_a_dry_run_writes_no_manifest(tmp_path: Path, source: Path) -> None:
    assert library.copy(source, tmp_path / "dst", jobs=1, manifest=tmp_path / "sums", dry_run=True).ok
    assert not (tmp_path / "sums").exists()


@pytest.mark.parametrize("again", [False, True], ids=["copied", "unchanged"])
def test_the_copies_of_a_directory_that_goes_away_are_listed(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """They are whole, and are read in its place."""
    if again:
        assert library.copy(source, tmp_path / "dst", jobs=1).ok
    take = worker.DO[Sums]

    def take_later(work: worker.Slice, unit: Sums) -> None:
        if unit.path == "d" and (source / "d").exists():
            (source / "d").rename(tmp_path / "gone")
            work.stack.append(unit)  # for another slice, which has no directory open yet
            work.deadline = 0.0
        else:
            take(work, unit)

    monkeypatch.setitem(worker.DO, Sums, take_later)
    report = library.copy(source, tmp_path / "dst", jobs=1, manifest=tmp_path / "sums")
    assert report.ok, report.errors
    names = {line.partition("  ")[2] for line in (tmp_path / "sums").read_text().splitlines()}
    assert {f"d/f{number}" for number in range(40)} < names
    assert library.check(tmp_path / "sums", tmp_path / "dst", jobs=1).ok


def test_an_error_of_the_source_that_passes_lists_no_copy_that_went_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checksum is the source's, of which the directory cannot be opened for a moment."""
    source, take = make_tree(tmp_path / "src", {"f": b"good"}), worker.DO[Sums]

    def take_badly(work: worker.Slice, unit: Sums) -> None:
        monkeypatch.setitem(worker.DO, Sums, take)
        copy, pair = tmp_path / "dst/f", work.handles.pair
        when = copy.stat().st_mtime_ns
        copy.write_bytes(b"evil")
        os.utime(copy, ns=(when, when))

        def stale(tree: int, path: str) -> Pair:
            monkeypatch.setattr(work.handles, "pair", pair)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

        monkeypatch.setattr(work.handles, "pair", stale)
        take(work, unit)

    monkeypatch.setitem(worker.DO, Sums, take_badly)
    report = library.copy(source, tmp_path / "dst", jobs=1, manifest=tmp_path / "sums")
    assert report.ok, report.errors
    assert (tmp_path / "sums").read_text().partition(" ")[0] == hashlib.sha256(b"good").hexdigest()


@JOBS
def test_ctrl_c_does_not_wait_for_the_checksum_of_a_large_file(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"huge": Holes(400 << 30, {0: b"x"})})
    command = [sys.executable, "-m", "pcopy", "-j", str(jobs), "--manifest", "sums", str(source), "dst"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert wait_until(lambda: (tmp_path / "dst/huge").exists(), 30)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, time.monotonic() - began < 10) == (130, True), err
    assert "interrupted: copied 1 file" in err
    assert not (tmp_path / "sums").exists()


@pytest.mark.parametrize(
    "name", ["missing/sums", "dst", "sums/", "src/plain/sums", "pipe", "dst/plain", "dst/d/f1", "src/d/f1"]
)
def test_a_manifest_that_cannot_be_written_is_refused_before_anything_is(
    tmp_path: Path, source: Path, pcopy: Run, name: str
) -> None:
    make_tree(tmp_path, {"dst": Dir({"d": Dir({})}), "pipe": Fifo()})
    done = pcopy("--manifest", name, source, "dst")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "manifest" in done.stderr
    assert os.listdir(tmp_path / "dst") == ["d"]
    assert (source / "d/f1").read_text() == "1" * 700


def test_a_manifest_in_the_place_of_the_destination_is_refused(tmp_path: Path, source: Path, pcopy: Run) -> None:
    done = pcopy("--manifest", "new", source, "new")
    assert (done.returncode, "is the destination itself" in done.stderr, (tmp_path / "new").exists()) == (2, True, False)


def test_a_manifest_in_the_place_of_a_source_is_refused(tmp_path: Path, source: Path, pcopy: Run) -> None:
    done = pcopy("--manifest", source / "plain", source / "plain", "dst")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert (source / "plain").read_bytes() == b"x" * 5000


def test_blake3_is_what_b3sum_writes(tmp_path: Path, source: Path) -> None:
    blake3 = pytest.importorskip("blake3")
    assert library.copy(source, tmp_path / "dst", jobs=2, manifest=tmp_path / "sums", hash="blake3").ok
    names = dict(filter(None, map(parse, (tmp_path / "sums").read_bytes().split(b"\n"))))
    assert set(map(os.fsencode, names)) == files_in(source)
    assert all(digest == blake3.blake3((source / name).read_bytes()).hexdigest() for name, digest in names.items())


def test_b3sum_reads_odd_names(tmp_path: Path) -> None:
    """It does not escape a carriage return, and reads nothing but UTF-8."""
    pytest.importorskip("blake3")
    names: dict[str | bytes, object] = {"-": b"0", "a\rb": b"1", "c\rd\\e\nf": b"2", **ODD}
    source = make_tree(tmp_path / "src", {name: what for name, what in names.items() if isinstance(name, str)})
    assert library.copy(source, tmp_path / "dst", jobs=1, manifest=tmp_path / "sums", hash="blake3").ok
    assert library.check(tmp_path / "sums", tmp_path / "dst", jobs=1, hash="blake3").files == len(files_in(source))
    lines = (tmp_path / "sums").read_bytes().split(b"\n")[:-1]
    written = [line.lstrip(b"\\")[66:] for line in lines]
    assert {b"./-", b"a\rb", b"c\rd\\\\e\\nf"} <= set(written)
    if shutil.which("b3sum"):
        known = [line + b"\n" for line in lines if b"return" not in line]  # at the end of a name it takes it for the line's
        done = subprocess.run(["b3sum", "-c"], cwd=tmp_path / "dst", input=b"".join(known), capture_output=True, check=False)
        assert (done.returncode, done.stdout.count(b": OK\n")) == (0, len(known)), done


def test_without_the_module_blake3_the_extra_is_named(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(library.UsageError, match=r"pip install 'pcopy\[blake3\]'"):
        library.copy(source, tmp_path / "dst", manifest=tmp_path / "sums", hash="blake3")
    assert not (tmp_path / "dst").exists()


def test_a_hash_without_a_manifest_is_refused(source: Path, pcopy: Run) -> None:
    done = pcopy("--hash", "blake3", source, "dst")
    assert (done.returncode, "--hash goes with --manifest" in done.stderr) == (2, True)


# ---- --check --------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path, source: Path) -> Path:
    """A copy with odd names, and its manifest beside it."""
    make_tree(source, ODD)
    assert library.copy(source, tmp_path / "dst", jobs=2, manifest=tmp_path / "sums").ok
    return tmp_path / "dst"


@JOBS
def test_a_good_copy_is_good(tmp_path: Path, copied: Path, pcopy: Run, jobs: int) -> None:
    done = pcopy("-j", jobs, "--check", "sums", copied)
    assert (done.returncode, done.stdout) == (0, "")
    count = len(files_in(copied))
    assert re.fullmatch(rf"checked {count} files, [0-9.]+ MB in .*; 0 failed\n", done.stderr)
    assert pcopy("-j", jobs, "--check", tmp_path / "sums", cwd=copied).returncode == 0  # where the names start
    quiet = pcopy("-j", jobs, "-q", "--check", "sums", copied)
    assert (quiet.returncode, quiet.stderr) == (0, "")


@JOBS
def test_what_differs_or_is_missing_is_named_and_the_rest_is_checked(
    tmp_path: Path, copied: Path, pcopy: Run, jobs: int
) -> None:
    bad = ["d/f7", "large", "line\nend"]
    for name in bad:
        flip(copied / name, 0)
    (copied / "d/f8").unlink()
    (copied / "d/f9").unlink()
    (copied / "d/f9").mkdir()
    done = pcopy("-j", jobs, "-v", "--check", "sums", copied)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    said = {line for line in lines if line.startswith("pcopy: ")}
    expected = {f"pcopy: {copied}/{name}: check: differs from the manifest".replace("\n", "\\n") for name in bad}
    expected |= {f"pcopy: {copied}/d/f8: check: is missing", f"pcopy: {copied}/d/f9: check: is no regular file"}
    assert said == expected
    assert len([line for line in lines if line.startswith("good ")]) == len(files_in(copied)) - len(bad)
    assert lines[-1].endswith("; 5 failed")
    as_json = pcopy("-j", jobs, "-q", "--json", "--check", "sums", copied)
    report = json.loads(as_json.stdout)
    assert (report["failed"], report["files"], report["exit_status"]) == (5, len(files_in(copied)) - len(bad), 1)
    assert {one["operation"] for one in report["errors"]} == {"check"}


@JOBS
def test_broken_lines_are_named_by_number_and_the_rest_is_checked(tmp_path: Path, copied: Path, pcopy: Run, jobs: int) -> None:
    good = (tmp_path / "sums").read_bytes().split(b"\n")[:-1]
    digest = b"0" * 64
    broken = {
        1: b"nonsense",
        5: digest[1:] + b"  short",
        9: digest + b" one blank",
        50: b"\\" + digest + b"  a\\tb",
        51: digest,
    }
    lines = [*good]
    for number, line in broken.items():
        lines.insert(number - 1, line)
    lines += [b"", b"# a comment", good[0].replace(b"  ", b" *") + b"\r", good[1].upper()[:64] + good[1][64:]]
    (tmp_path / "sums").write_bytes(b"\n".join(lines))  # and no end of the last line
    done = pcopy("-j", jobs, "--check", "sums", copied)
    assert done.returncode == 1
    assert sorted(int(number) for number in re.findall(r"sums: check: line (\d+): ", done.stderr)) == sorted(broken)
    assert f"checked {len(good) + 2} files" in done.stderr
    assert f"; {len(broken)} failed" in done.stderr
    assert "reconcile" not in done.stderr


@pytest.mark.parametrize("size", [1, 2, 3])
def test_of_a_line_without_an_end_only_the_beginning_is_kept(tmp_path: Path, copied: Path, pcopy: Run, size: int) -> None:
    """A disk image that was given for a manifest, say."""
    good = (tmp_path / "sums").read_bytes()
    long = b"x" * (size * library_manifest.LONGEST + (size == 2))
    (tmp_path / "sums").write_bytes(long + b"\n" + good + long)
    with open(tmp_path / "sums", "rb") as file:
        texts = [one.text for one in library_manifest.portions(file)]
    assert max(map(len, texts)) <= library_manifest.LONGEST + library_manifest.PORTION + 1
    done = pcopy("--check", "sums", copied)
    count = good.count(b"\n")
    assert re.findall(r"sums: check: line (\d+): ", done.stderr) == ["1", str(count + 2)]
    assert (done.returncode, f"checked {count} files" in done.stderr) == (1, True)


def test_each_portion_of_a_manifest_knows_its_line(tmp_path: Path) -> None:
    lines = [b"x" * (number % 300) for number in range(2000)]
    (tmp_path / "sums").write_bytes(b"\n".join(lines) + b"\n")
    with open(tmp_path / "sums", "rb") as file:
        units = [Check("sums", *one) for one in library_manifest.portions(file)]
    assert len(units) > 10
    parts = [part for unit in units for part in divide(unit, 7) if isinstance(part, Check)]
    assert len(parts) > 5 * len(units)
    assert [(part.first + at, line) for part in parts for at, line in enumerate(part.lines)] == list(enumerate(lines, 1))


@pytest.mark.parametrize("text", [b"", b"# nothing\n\n"])
def test_a_manifest_without_a_checksum_is_no_good_one(tmp_path: Path, pcopy: Run, text: bytes) -> None:
    (tmp_path / "sums").write_bytes(text)
    done = pcopy("--check", "sums", tmp_path)
    assert (done.returncode, "holds no checksums" in done.stderr) == (1, True)


def test_a_signal_ends_a_check_whose_manifest_has_not_come_yet(tmp_path: Path, copied: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "pcopy", "--check", str(tmp_path / "pipe"), str(copied)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with open(tmp_path / "pipe", "wb"):  # which waits until it is opened to be read
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (-signal.SIGTERM, 128 + signal.SIGTERM)
    process.communicate()


def test_a_check_tells_several_observers_and_keeps_no_log(tmp_path: Path, copied: Path) -> None:
    told: list[str] = []

    class Tells(library.Observer):
        def failure(self, failure: library.Failure) -> None:
            told.append(failure.reason)

    (tmp_path / "sums").write_text("nothing\n")
    assert not library.check(tmp_path / "sums", copied, observer=[Tells(), Tells()]).ok
    assert len(told) == 2 * len(set(told)) > 0
    for record in (library.Log(tmp_path / "log"), library.Metrics(tmp_path / "metrics")):
        with pytest.raises(library.UsageError, match="are of copies; leave them out"):
            library.check(tmp_path / "sums", copied, observer=record)
    for bad in ({"manifest": 5}, {"directory": None}):
        with pytest.raises(library.UsageError, match="must be a path"):
            library.check(**{"manifest": tmp_path / "sums", "directory": copied, **bad})  # type: ignore[arg-type]
    assert not (tmp_path / "log").exists()


def test_a_manifest_of_sha256sum_is_understood(tmp_path: Path, copied: Path, pcopy: Run) -> None:
    names = sorted(files_in(copied))
    with open(tmp_path / "theirs", "wb") as file:
        subprocess.run(["sha256sum", *names], cwd=copied, stdout=file, check=True)
    assert pcopy("--check", "theirs", copied).returncode == 0
    assert sorted((tmp_path / "theirs").read_bytes().split(b"\n")) == sorted((tmp_path / "sums").read_bytes().split(b"\n"))


def test_a_manifest_of_blake3_is_checked_with_blake3(tmp_path: Path, source: Path, pcopy: Run) -> None:
    pytest.importorskip("blake3")
    assert pcopy("--manifest", "sums", "--hash", "blake3", source, "dst").returncode == 0
    assert pcopy("--check", "sums", "--hash", "blake3", "dst").returncode == 0
    assert pcopy("--check", "sums", "dst").returncode == 1  # of sha256, unless told
    flip(tmp_path / "dst/d/f7", 3)
    done = pcopy("--check", "sums", "--hash", "blake3", "dst")
    assert (done.returncode, done.stderr.count("differs")) == (1, 1)


def test_names_deeper_than_a_call_takes_are_checked(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {})
    handle = os.open(source, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("n" * 200, dir_fd=handle)
        handle, above = os.open("n" * 200, os.O_RDONLY, dir_fd=handle), handle
        os.close(above)
    with open(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=handle), "wb") as file:
        file.write(b"deep down")
    os.close(handle)
    assert library.copy(source, tmp_path / "dst", jobs=1, manifest=tmp_path / "sums").ok
    report = library.check(tmp_path / "sums", tmp_path / "dst", jobs=1)
    assert (report.files, report.errors) == (1, [])
    for top in (source, tmp_path / "dst"):  # what pytest itself could not take away
        subprocess.run(["rm", "-rf", top], check=True)


def test_an_error_that_passes_is_tried_again(tmp_path: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failing = os.preadv, [errno.EIO, errno.ESTALE]

    def read(*arguments: object) -> int:
        if failing:
            raise OSError(failing.pop(), "passing")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", read)
    report = library.check(tmp_path / "sums", copied, jobs=1)
    assert (report.errors, report.files) == ([], len(files_in(copied)))
    failing += [errno.EIO]
    assert [one.errno for one in library.check(tmp_path / "sums", copied, jobs=1, retries=0).errors] == [errno.EIO]


def is_open(path: Path) -> bool:
    """By whatever process."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == str(path):
                return True
    return False


@JOBS
def test_ctrl_c_ends_the_check_of_a_large_file(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    make_tree(tmp_path, {"huge": Holes(400 << 30, {0: b"x"})})
    (tmp_path / "sums").write_bytes(b"0" * 64 + b"  huge\n")
    command = [sys.executable, "-m", "pcopy", "-j", str(jobs), "--check", "sums"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert wait_until(lambda: is_open(tmp_path / "huge"), 30)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, time.monotonic() - began < 10) == (130, True), err
    assert err.startswith("interrupted: checked 0 files")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--check", "missing"], "missing"),
        (["--check", "dst"], "Is a directory"),
        (["--check", "sums", "nowhere"], "nowhere"),
        (["--check", "sums", "sums"], "is not a directory"),
        (["--check", "sums", "x" * 256], "cannot be looked at: File name too long"),
        (["--check", "sums", "src", "dst"], "--check takes one directory"),
        (["--check", ""], "cannot be read"),
        (["--check", "sums", "--verify", "dst"], "--verify does not go with --check"),
        (["--check", "sums", "--checksum", "dst"], "--checksum does not go with --check"),
        (["--check", "sums", "--manifest", "other", "dst"], "--manifest does not go with --check"),
        (["--check", "sums", "--dry-run", "dst"], "--dry-run does not go with --check"),
        (["--check", "sums", "--compare", "dst"], "--compare does not go with --check"),
        (["--check", "sums", "-q", "-v", "dst"], "exclude each other"),
        (["--check", "sums", "-j", "2,3", "dst"], "--compare"),
        (["--check", "sums", "--hash", "md5", "dst"], "md5"),
        (["--compare", "--manifest", "sums", "src"], "--manifest does not go with --compare"),
    ],
    ids=str,
)
def test_a_check_that_makes_no_sense_is_refused_in_one_line(copied: Path, pcopy: Run, arguments: list[str], says: str) -> None:
    done = pcopy(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert says in done.stderr


# ---- with what else a night's run does ----


@JOBS
def test_files_of_the_run_in_the_copy_are_spared_by_delete_and_not_counted(tmp_path: Path, source: Path, jobs: int) -> None:
    top = tmp_path / "dst"
    (top / "kept").mkdir(parents=True)
    files = {"manifest": top / "sums", "observer": [library.Log(top / "kept/log"), library.Metrics(top / "metrics")]}
    for night in range(2):
        (top / "kept/extra").write_bytes(b"goes")
        report = library.copy(source, top, jobs=jobs, delete=True, max_delete=1, **files)  # type: ignore[arg-type]
        assert (report.ok, report.deleted) == (True, 1), report.errors
        assert sorted(path.name for path in top.iterdir() if not (source / path.name).exists() and not path.is_symlink()) == [
            "kept", "metrics", "sums",
        ]  # fmt: skip
        assert [path.name for path in (top / "kept").iterdir()] == ["log"]
        lines = (top / "kept/log").read_text().splitlines()
        assert [json.loads(line)["event"] for line in lines].count("finished") == night + 1
    assert subprocess.run(["sha256sum", "--quiet", "-c", "sums"], cwd=top, check=False).returncode == 0


@JOBS
@pytest.mark.parametrize("limit", [[], ["--max-size", "34M"]], ids=["all", "small"])
def test_a_manifest_lists_what_was_linked_to_an_earlier_copy_and_not_what_is_hidden(
    tmp_path: Path, source: Path, jobs: int, limit: list[str], pcopy: Run
) -> None:
    pcopy(source, tmp_path / "day1", "--quiet")
    (source / "hidden").write_bytes(b"hidden")
    (source / "new").write_bytes(b"new")
    if limit:
        (source / "too large").touch()
        os.truncate(source / "too large", 35 << 20)
    words = ["-j", jobs, "--exclude", "/hidden", *limit, "--link-dest", "../day1", "--manifest", tmp_path / "sums", "--json"]
    done = pcopy(source, tmp_path / "day2", *words)
    assert (done.returncode, json.loads(done.stdout)["hardlinks"] > 30) == (0, True), done.stderr
    listed = {parse(line)[0] for line in (tmp_path / "sums").read_bytes().splitlines()}  # type: ignore[index]
    files = {os.path.relpath(path, source) for path in source.rglob("*") if path.is_file() and not path.is_symlink()}
    assert listed == files - {"hidden", "too large"}
    assert subprocess.run(["sha256sum", "--quiet", "-c", "../sums"], cwd=tmp_path / "day2", check=False).returncode == 0


@JOBS
def test_with_checksum_nothing_is_linked_to_an_earlier_copy_that_went_bad(tmp_path: Path, source: Path, jobs: int) -> None:
    library.copy(source, tmp_path / "day1", jobs=jobs)
    flip(tmp_path / "day1/d/f3", 5)
    flip(tmp_path / "day1/large", LARGE - 1)
    report = library.copy(source, tmp_path / "day2", jobs=jobs, link_dest="../day1", checksum=True)
    assert (report.ok, report.files) == (True, 2), report.errors
    assert read_tree(tmp_path / "day2").keys() == read_tree(source).keys()
    for name in ("d/f3", "large"):
        assert (
            (tmp_path / "day2" / name).read_bytes() == (source / name).read_bytes() != (tmp_path / "day1" / name).read_bytes()
        )
    assert (tmp_path / "day2/d/f4").samefile(tmp_path / "day1/d/f4")


@JOBS
def test_a_file_of_the_run_is_spared_beside_a_source_that_is_left_out(tmp_path: Path, jobs: int) -> None:
    """A file that is to be kept stands in the way of the first source, so the second is the first that is copied."""
    make_tree(tmp_path, {"a": Dir({"f": b"1"}), "b": Dir({"g": b"2"}), "dst": Dir({"a": b"kept", "b": Dir({"goes": b"3"})})})
    log = library.Log(tmp_path / "dst/b/log")
    report = library.copy(
        [tmp_path / "a", tmp_path / "b"], tmp_path / "dst", jobs=jobs, overwrite="never", delete=True, observer=log
    )
    assert (report.ok, report.deleted, report.skipped) == (True, 1, 1), report.errors
    assert sorted(os.listdir(tmp_path / "dst/b")) == ["g", "log"]
