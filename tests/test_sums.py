"""What is known by reading: --checksum, --verify, --manifest and --check, on real trees and with real corruption."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import pcopy as library
from pcopy import worker
from pcopy.coordinator import Coordinator, divide
from pcopy.options import Options
from pcopy.result import Observer, Report, Stop
from pcopy.work import Entries, Job, Large, Outcome, Seal, Span, Tree, Verify, Version, large_group
from tests.conftest import Run
from tests.trees import WHEN, Dir, Fifo, File, Hard, Holes, Link, make_tree, read_tree

JOBS = pytest.mark.parametrize("jobs", [1, 3])
LARGE = 33 << 20  # bytes: such a file is copied in spans


def a_tree() -> dict[str | bytes, object]:
    return {
        "plain": File(b"x" * 5000, mode=0o640),
        "empty": b"",
        "d": Dir({f"f{number}": f"{number}" * 700 for number in range(40)}),
        "link": Link("plain"),
        "pipe": Fifo(),
        "other name": Hard("plain"),
        "large": b"".join(number.to_bytes(4, "big") for number in range(LARGE // 4)),
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

/* Storage that goes wrong: of each range copied from a path that holds FLIP, the last byte is another one. */
ssize_t copy_file_range(int source, off64_t *from, int target, off64_t *to, size_t size, unsigned flags) {
    ssize_t (*next)(int, off64_t *, int, off64_t *, size_t, unsigned) = dlsym(RTLD_NEXT, "copy_file_range");
    ssize_t done = next(source, from, target, to, size, flags);
    char link[64], path[8192] = "", byte;
    snprintf(link, sizeof link, "/proc/self/fd/%d", source);
    if (done > 0 && readlink(link, path, sizeof path - 1) > 0 && strstr(path, getenv("FLIP"))) {
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
    return Large(0, "", "large", "large", ".t", 4 * LARGE, False, Version((1, 2), 4 * LARGE, 3, 4), None, 0, 1.0)


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
