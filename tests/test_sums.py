"""What is known by reading: --checksum, --verify, --manifest and --check, on real trees and with real corruption."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

import pcopy as library
from pcopy import worker
from pcopy.options import Options
from pcopy.result import Report
from pcopy.work import Entries, Job, Outcome, Tree
from tests.conftest import Run
from tests.trees import WHEN, Dir, Fifo, File, Hard, Link, make_tree, read_tree

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
    assert sum(outcome.tally.files for outcome in slices_of(job, begun)) == 1
    assert read_tree(tmp_path / "dst") == read_tree(source)


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
