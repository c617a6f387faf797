"""A limit on bytes a second, over all workers together. That a copy takes at least so long is no measure of speed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pcopy as library
from pcopy.asked import check_rate
from pcopy.coordinator import Coordinator
from pcopy.options import Options
from pcopy.outcome import Outcome
from pcopy.pace import CREDIT, GAIN, HIGHEST, LEAST, LOWEST, Pace, Throttle
from pcopy.result import Observer, Report, Stop
from pcopy.work import Entries, Job, Tree
from tests.conftest import Run
from tests.trees import Dir, File, Holes, make_tree, read_tree

JOBS = pytest.mark.parametrize("jobs", [1, 2])
MB = 10**6


class Clock:
    """Time that passes only in sleeps, and when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("pcopy.pace.time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


# ---- rates as they are given ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ("50M", 50e6), ("1.5G", 1.5e9), ("500k", 500e3), ("500K", 500e3), ("2000", 2000), (2000, 2000), (2.5e6, 2.5e6),
        ("1T", 1e12), ("50MB", 50e6), ("1.5 GB", 1.5e9), (".5M", 5e5), ("1000", 1000), (None, None),
    ],
)  # fmt: skip
def test_a_rate_is_bytes_in_decimal_units(given: float | str | None, rate: float | None) -> None:
    assert check_rate(given) == rate


WRONG = ["", "0", "999", "-5M", "fast", "5X", "1e9", "nan", "inf", "5M5", "M", "1.2.3M", "50M/s", "\u0665M", "1000000T"]


@pytest.mark.parametrize("given", WRONG)
def test_a_wrong_rate_is_one_line_and_touches_nothing(tmp_path: Path, pcopy: Run, given: str) -> None:
    make_tree(tmp_path / "src", {"a": "1"})
    done = pcopy(f"--bwlimit={given}", "--log", "log", "src", "dst")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert "bwlimit" in line
    assert sorted(os.listdir(tmp_path)) == ["src"]
    for wrong in (True, 0, -1, float("nan"), 10**16):
        with pytest.raises(library.UsageError, match="bwlimit"):
            library.copy(tmp_path / "src", tmp_path / "dst", bwlimit=wrong)


def test_a_limit_is_for_copies_only(tmp_path: Path, pcopy: Run) -> None:
    done = pcopy("--compare", "--bwlimit", "5M", "src")
    assert done.returncode == 2
    assert "--compare" in done.stderr


# ---- decisions ------------------------------------------------------------------------------------------------------


def test_a_slice_copies_no_more_than_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pace = Pace(1000.0)
    for size in (100, 1, 1, 1, 500):
        pace.pay(size)
        assert clock.now >= 100 + pace.paid / 1000 - 0.01
    pace.settle()
    assert clock.now == pytest.approx(100 + 0.603)
    clock.now += 5  # it looked at files meanwhile: what it did not copy then it may copy now
    pace.pay(2000)
    assert clock.now == pytest.approx(105.603)


def test_the_limit_is_shared_out_and_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    throttle = Throttle(10 * MB, 4)
    assert throttle.rate(1) == 10 * MB
    assert throttle.rate(4) == 2.5 * MB
    assert throttle.rate(9) == 2.5 * MB
    clock.now += 1
    throttle.paid = 10 * MB
    assert throttle.rate(2) == pytest.approx(5 * MB)
    throttle.paid += 1 * MB  # a tenth of a second ahead
    assert throttle.rate(1) == pytest.approx(10 * MB * (1 - 0.1 * GAIN))
    throttle.paid += 100 * MB
    assert throttle.rate(1) == pytest.approx(10 * MB * LOWEST)


def test_what_was_not_copied_for_long_is_not_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    throttle = Throttle(10 * MB, 1)
    throttle.rate(1)
    clock.now += 3600
    assert throttle.rate(1) == pytest.approx(10 * MB * HIGHEST)
    throttle.paid += int(CREDIT * 10 * MB)
    assert throttle.rate(1) == pytest.approx(10 * MB)


def coordinator_with(limit: float, jobs: int) -> Coordinator:
    options = Options(jobs=jobs, bwlimit=limit)
    job = Job(options, (Tree("/nonexistent/src", "/nonexistent/dst", (0, 0), (0, 1)),), "00000000", 0o022)
    coordinator = Coordinator(job, Report(jobs=jobs), Observer(), Stop())
    coordinator.add([Entries(0, f"d{number}", ("a", "b"), True, True, 0.1) for number in range(8)])
    return coordinator


def test_each_slice_is_dealt_its_part_and_reports_what_it_copied() -> None:
    coordinator = coordinator_with(4 * MB, 4)
    portions = [coordinator.take(running) for running in range(4)]
    rates = [portion.rate or 0 for portion in portions if portion]
    assert len(rates) == 4
    assert rates[-1] == pytest.approx(MB, rel=0.3)
    assert portions[0]
    coordinator.absorb(portions[0].units, Outcome(paid=2 * MB))  # far more than was due
    portion = coordinator.take(3)
    assert portion and portion.rate
    assert portion.rate < MB / 2
    assert coordinator_with(4 * MB, 4).take_all().rate == pytest.approx(4 * MB, rel=0.3)


def test_a_low_limit_is_kept_by_fewer_workers() -> None:
    """With many, each would sleep long over a single piece."""
    coordinator = coordinator_with(2 * LEAST, 16)
    assert [bool(coordinator.take(running)) for running in range(4)] == [True, True, False, False]


def test_without_a_limit_nothing_is_paced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr("pcopy.pace.Pace.pay", never)
    monkeypatch.setattr("pcopy.pace.Throttle.rate", never)
    source = make_tree(tmp_path / "src", {"a": "1", "b": b"x" * (33 << 20)})
    assert library.copy(source, tmp_path / "dst", jobs=1).ok
    assert library.copy(source, tmp_path / "other", jobs=1, bwlimit="1k", dry_run=True).ok  # which copies nothing


# ---- copies ---------------------------------------------------------------------------------------------------------


def trees() -> dict[str, dict[str | bytes, object]]:
    small: dict[str | bytes, object] = {f"f{number}": b"x" * 10_000 for number in range(200)}
    return {
        "small": {"d": Dir(small), "e": Dir(small)},
        "large": {"f": os.urandom(4 * MB)},
        "both": {"d": Dir(small), "f": File(os.urandom(2 * MB), mode=0o600)},
    }


@JOBS
@pytest.mark.parametrize("kind", ["small", "large", "both"])
def test_a_copy_takes_as_long_as_its_bytes_at_the_rate(tmp_path: Path, pcopy: Run, jobs: int, kind: str) -> None:
    source = make_tree(tmp_path / "src", trees()[kind])
    began = time.monotonic()
    done = pcopy("-j", jobs, "--bwlimit", "2M", "src", "dst")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began >= 0.9 * 2.0  # 4 MB
    assert read_tree(tmp_path / "dst") == read_tree(source)


@JOBS
def test_files_that_are_replaced_count_too(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {f"f{number}": b"x" * 20_000 for number in range(100)})
    make_tree(tmp_path / "dst", {f"f{number}": "old" for number in range(100)})
    for bwlimit, least in (("2M", 0.9), ("2M", 0.0)):
        began = time.monotonic()
        report = library.copy(source, tmp_path / "dst", jobs=jobs, bwlimit=bwlimit)
        assert report.ok, report.errors
        assert time.monotonic() - began >= least
    assert report.unchanged == 100
    assert read_tree(tmp_path / "dst") == read_tree(source)


@JOBS
def test_it_is_smooth_within_a_second(tmp_path: Path, jobs: int) -> None:
    """No more than twice the rate in any second, as far as the reports tell, and never nothing for long."""
    source = make_tree(tmp_path / "src", {"f": os.urandom(3 * MB), "g": os.urandom(3 * MB)})
    told: list[tuple[float, int]] = []

    class Listens(library.Observer):
        def progress(self, progress: library.Progress) -> None:
            told.append((time.monotonic(), progress.bytes))

    assert library.copy(source, tmp_path / "dst", jobs=jobs, bwlimit="2M", observer=Listens()).ok
    for at, size in told:
        assert max(other for when, other in told if when <= at + 1) - size <= 2 * 2 * MB
    steps = [later - size for (_, size), (_, later) in itertools.pairwise(told)]
    assert max(steps) <= MB
    assert len({size for _, size in told}) > 10


@JOBS
def test_holes_are_no_bytes(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    """A terabyte of nothing would take days."""
    source = make_tree(tmp_path / "src", {"f": Holes(1 << 40, {0: b"a" * 4096, 1 << 39: b"b" * 4096})})
    assert pcopy("-j", jobs, "--bwlimit", "100k", "src", "dst").returncode == 0
    with open(source / "f", "rb") as one, open(tmp_path / "dst/f", "rb") as other:
        for at in (0, 1 << 39, (1 << 40) - 10):
            assert os.pread(one.fileno(), 5000, at) == os.pread(other.fileno(), 5000, at)
    assert (tmp_path / "dst/f").stat().st_size == 1 << 40
    assert (tmp_path / "dst/f").stat().st_blocks * 512 < 1 << 20


@JOBS
def test_a_stop_ends_within_a_slice(tmp_path: Path, jobs: int) -> None:
    """However long the rest would take: here an hour and more."""
    make_tree(tmp_path / "src", {"f": os.urandom(5 * MB), "g": os.urandom(5 * MB), "s": b"small"})
    command = [sys.executable, "-m", "pcopy", "-j", str(jobs), "--bwlimit", "1k", "src", "dst"]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 30
    while not list((tmp_path).glob("dst/.pcopy-*")) and time.monotonic() < end:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 130, said
    assert list(tmp_path.glob("dst/.pcopy-*")) == []
