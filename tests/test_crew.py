"""-j auto: as many workers as keep the processors busy, on storage as it may be."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pcopy as library
from pcopy import engines
from pcopy.asked import processors
from pcopy.crew import BASE, MOST, Crew, Effort, queued
from pcopy.options import Options
from pcopy.outcome import Outcome
from pcopy.work import Job, Scan, Tree
from pcopy.worker import run
from tests.conftest import Run
from tests.strace import lines_of, strace
from tests.trees import Dir, Link, make_tree, read_tree

SLICE = 0.1


@dataclass
class Storage:
    """What an entry takes, in seconds, and how many entries a second there can be for so many workers."""

    computes: float
    waits: float
    most: Callable[[int], float] = lambda jobs: float("inf")
    processors: int = 2

    def rate(self, jobs: int) -> float:
        return min(jobs / (self.computes + self.waits), self.processors / self.computes, self.most(jobs))

    def slice(self, jobs: int, seconds: float = SLICE) -> Outcome:
        """What one of so many workers does in a slice."""
        entries = seconds * self.rate(jobs) / jobs
        busy = self.rate(jobs) * self.computes > 0.999 * self.processors
        waits = entries * self.waits if busy else seconds - entries * self.computes  # else for a processor
        return Outcome(computed=entries * self.computes, waited=waits, seconds=seconds)


class Simulated:
    """A run on such storage: how many workers there are, and those of each pool that was opened."""

    def __init__(self, storage: Storage, processors: int = 2) -> None:
        self.opened: list[int] = []
        self.crew, self.now = Crew(processors), 0.0
        storage.processors = processors
        self.crew.note(storage.slice(1, 0.01), self.now)
        self.go(storage, 0)

    def go(self, storage: Storage, seconds: float) -> int:
        if not self.opened:
            self.open()
        end = self.now + seconds
        while self.now < end:
            if self.crew.outgrown:
                self.open()
            self.now += SLICE
            jobs = self.crew.jobs
            for _ in range(jobs):
                self.crew.note(storage.slice(jobs), self.now)
        return self.crew.jobs

    def open(self) -> None:
        self.crew.open(self.now)
        self.opened.append(self.crew.jobs)


MEMORY, STORE, FAR = Storage(20e-6, 0), Storage(0.5e-3, 4.5e-3), Storage(0.5e-3, 0.2)


@pytest.mark.parametrize("count", [1, 2, 16, 100])
def test_where_nothing_waits_there_are_as_many_as_processors(count: int) -> None:
    run = Simulated(Storage(20e-6, 0.05e-6), count)
    assert run.go(Storage(20e-6, 0.05e-6), 60) == count
    assert run.opened == [count]


def test_where_they_wait_there_are_as_many_as_keep_the_processors_busy() -> None:
    """20 of them; the first slice may think of more, but not of more than twice as many."""
    run = Simulated(STORE)
    assert 20 <= run.go(STORE, 20) <= 40
    assert len(run.opened) == 1
    assert Simulated(FAR).opened == [MOST]


def test_a_pool_that_turns_out_too_small_is_opened_again() -> None:
    run = Simulated(MEMORY)
    assert run.opened == [2]
    assert 15 <= run.go(STORE, 3) <= 40
    assert len(run.opened) == 2


def test_a_pool_that_turns_out_too_large_is_used_in_part_until_it_is_not() -> None:
    run = Simulated(STORE)
    assert run.go(MEMORY, 20) == 2
    assert run.go(STORE, 20) >= 20
    assert len(run.opened) == 1


def test_what_the_files_are_like_does_not_matter() -> None:
    """They may be large here and small there, so that more is done in a second by fewer: that is no merit of theirs."""
    run, sizes = Simulated(STORE), random.Random(1)
    for _ in range(100):
        size = sizes.lognormvariate(0, 0.8)
        run.go(Storage(STORE.computes * size, STORE.waits * size), 3)
    assert run.go(STORE, 1) >= 20


def test_what_held_up_a_slice_and_was_not_the_storage_counts_for_nothing() -> None:
    """It was stopped, say, and went on later."""
    run = Simulated(MEMORY)
    run.crew.note(Outcome(computed=0.1, waited=60.0, seconds=60.1), run.now)
    assert run.go(MEMORY, 5) == 2


@pytest.mark.parametrize("most", [lambda jobs: 400 / jobs**0.5, lambda jobs: 400 / jobs**0.3])
def test_where_more_get_in_each_others_way_there_are_fewer(most: Callable[[int], float]) -> None:
    """Such as on a disk that seeks: all wait, and the more of them, the less is done."""
    disk = Storage(0.1e-3, 5e-3, most)
    run = Simulated(disk)
    assert run.opened[0] > 20
    assert run.go(disk, 10 * BASE) <= 4
    assert run.opened == run.opened[:1]


def test_fewer_that_are_not_faster_are_given_up_at_once() -> None:
    """So it costs next to nothing to try."""
    run = Simulated(STORE)
    full, seen = run.crew.jobs, []
    for _ in range(600):
        seen.append(run.go(STORE, SLICE))
    assert set(seen) == {full, full // 2}
    assert seen.count(full // 2) < 20


def test_so_many_that_cannot_be_started_are_not_tried_again() -> None:
    run = Simulated(STORE)
    full = run.crew.jobs
    while run.go(STORE, SLICE) == full:  # until fewer are tried
        pass
    run.crew.refused()
    few = run.crew.jobs
    assert few == full // 4
    run.open()
    seen = [run.go(STORE, SLICE) for _ in range(1000)]
    assert max(seen) == few
    for _ in range(10):
        run.crew.refused()
    assert run.crew.jobs == 2


def test_a_slice_counts_its_computing_and_its_waiting() -> None:
    began, effort = time.monotonic(), Effort()
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass
    time.sleep(0.2)
    outcome = Outcome(seconds=time.monotonic() - began)
    effort.into(outcome)
    assert outcome.computed >= 0.05
    assert outcome.waited >= 0.15


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Others have work for all processors, three times over."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_waiting_for_a_processor_is_no_waiting_for_the_storage() -> None:
    if not os.path.exists("/proc/thread-self/schedstat"):
        pytest.skip("this kernel does not tell")
    with busy():
        began, effort, before = time.monotonic(), Effort(), queued()
        end = time.thread_time() + 0.3
        while time.thread_time() < end:
            pass
        outcome = Outcome(seconds=time.monotonic() - began)
        effort.into(outcome)
        waited_for_it = queued() - before
    assert waited_for_it > 0.1
    assert outcome.waited < waited_for_it / 4


def test_a_small_copy_on_a_busy_machine_starts_no_crowd(tmp_path: Path) -> None:
    """Whoever is put aside for a moment at the wrong place must not take that for slow storage."""
    if not os.path.exists("/proc/thread-self/schedstat"):
        pytest.skip("this kernel does not tell")
    source = make_tree(tmp_path / "src", {name: Dir({"f": b"1", "l": Link("f")}) for name in "abc"})
    with busy():
        for number in range(8):
            words = [sys.executable, "-m", "pcopy", "--json", str(source), str(tmp_path / f"dst{number}")]
            report = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
            assert report["jobs"] <= 2 * len(os.sched_getaffinity(0))


def test_the_time_until_a_source_is_at_rest_is_no_waiting_for_the_storage() -> None:
    effort, outcome = Effort(), Outcome()
    time.sleep(0.1)
    effort.into(outcome)
    assert outcome.waited > 0.05
    effort.into(outcome, rested=0.1)
    assert outcome.waited < 0.05


# ---- real copies ----------------------------------------------------------------------------------------------------


def some_tree(top: Path, directories: int = 40) -> Path:
    return make_tree(
        top, {f"d{number}": Dir({f"f{other}": b"text" * other for other in range(25)}) for number in range(directories)}
    )


def test_a_copy_by_itself_finds_how_many_it_takes(tmp_path: Path, pcopy: Run) -> None:
    source = some_tree(tmp_path / "src")
    done = pcopy("-j", "auto", "--json", "src", "dst")
    report = json.loads(done.stdout)
    assert (done.returncode, report["files"]) == (0, 1000)
    assert processors() <= report["jobs"] <= MOST
    assert read_tree(tmp_path / "dst") == read_tree(source)


@pytest.mark.parametrize("first", [1, 2])
def test_a_pool_that_is_outgrown_makes_room_for_a_larger_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Nothing is lost in between, and nothing is done twice."""
    source = some_tree(tmp_path / "src", 200)
    opened: list[int] = []
    real = engines.engine_for

    def noted(jobs: int, start_method: str | None) -> engines.Engine:
        opened.append(jobs)
        return real(jobs, start_method)

    monkeypatch.setattr("pcopy.drive.engine_for", noted)
    monkeypatch.setattr("pcopy.api.check_jobs", lambda jobs: (first, True))
    monkeypatch.setattr("pcopy.crew.Crew.wanted", property(lambda self: {0: first, first: 3 * first}.get(self.capacity, 7)))
    report = library.copy(source, tmp_path / "dst", jobs="auto", bwlimit=None)
    assert report.ok, report.errors
    assert opened == [first, 3 * first, 7][: len(opened)]
    assert len(opened) > 1
    assert (report.jobs, report.engine) == (opened[-1], "pool")
    assert (report.files, report.directories) == (5000, 201)
    assert read_tree(tmp_path / "dst") == read_tree(source)


def copied_from_afar(tmp_path: Path, handles: int) -> dict[str, Any]:
    """The report of a copy for which the contents of each file take 20 ms, as from a store elsewhere.

    Listing a directory does too, with which the first slice begins: by that the first pool is chosen, and a busy machine may
    leave no time for more.
    """
    source, log, calls = some_tree(tmp_path / "src"), tmp_path / "strace", "copy_file_range,getdents64"
    slow = strace("-e", f"trace={calls}", "-e", f"inject={calls}:delay_enter=20000", log=log)
    words = ["sh", "-c", f'ulimit -n {handles}; exec "$@"', "sh", *slow, sys.executable, "-m", "pcopy", "--json"]
    done = subprocess.run([*words, source, tmp_path / "dst"], capture_output=True, text=True, timeout=100, check=False)
    assert lines_of(log)
    report: dict[str, Any] = json.loads(done.stdout)
    assert (report["exit_status"], report["files"]) == (0, 1000), report["errors"][:3]
    assert read_tree(tmp_path / "dst") == read_tree(source)
    return report


def test_storage_that_waits_gets_more_workers(tmp_path: Path) -> None:
    assert copied_from_afar(tmp_path, 1024)["jobs"] > min(2 * processors(), MOST - 1)


@pytest.mark.skipif(processors() > 4, reason="as many workers as processors there are in any case")
def test_there_are_no_more_than_there_are_handles_for(tmp_path: Path) -> None:
    """Each has two of every worker that was started before it, and needs some for what it copies."""
    assert copied_from_afar(tmp_path, 70)["jobs"] == 4


def test_a_limit_on_bytes_leaves_it_at_the_processors(tmp_path: Path) -> None:
    """Its workers sleep, and do not wait for the storage."""
    source = make_tree(tmp_path / "src", {f"f{number}": b"x" * 100_000 for number in range(20)})
    report = library.copy(source, tmp_path / "dst", jobs="auto", bwlimit="4M")
    assert (report.ok, report.jobs) == (True, processors())


@pytest.mark.parametrize(("jobs", "status"), [("auto", 0), ("1", 0), ("2", 3)])
def test_where_a_module_cannot_be_loaded_any_more_a_run_goes_on_alone(tmp_path: Path, jobs: str, status: int) -> None:
    """No handle or no memory is left for it. Who insists on workers is told that there are none."""
    source = make_tree(tmp_path / "src", {f"d{at}": Dir({f"f{number}": b"1" for number in range(20)}) for at in range(20)})
    program = "import sys; sys.modules['pcopy.drive'] = None; import pcopy.coordinator as c; c.FIRST = 0.0"
    program += "; from pcopy.cli import main; main()"
    words = [sys.executable, "-c", program, "-j", jobs, str(source), str(tmp_path / "dst")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert ("workers cannot be started: " in done.stderr) == (jobs != "1")
    assert (read_tree(tmp_path / "dst") == read_tree(source)) == (not status)


def test_who_may_start_no_processes_copies_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much it waits."""
    monkeypatch.setattr("pcopy.crew.Crew.wanted", property(lambda self: 5))
    some_tree(tmp_path / "src")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        jobs, files = pool.apply(copied_in_a_daemon, (str(tmp_path / "src"), str(tmp_path / "dst")))
    assert (jobs, files) == (1, 1000)


@pytest.mark.parametrize(("options", "done"), [(Options(jobs=1), 3), (Options(jobs=1, adapts=True), 0)])
def test_one_worker_that_may_not_stay_alone_begins_nothing_new_unknown_to_others(
    tmp_path: Path, options: Options, done: int
) -> None:
    """If it is killed, they have to know what it may have begun."""
    make_tree(tmp_path / "src", {f"f{number}": b"1" for number in range(3)})
    make_tree(tmp_path / "dst", {})
    inodes = [(state.st_dev, state.st_ino) for state in ((tmp_path / name).stat() for name in ("src", "dst"))]
    tree = Tree(str(tmp_path / "src"), str(tmp_path / "dst"), inodes[0], inodes[1])
    outcome = run(Job(options, (tree,), "0123abcd", 0o022), [Scan(0, "", False, 1.0)], 60.0)
    assert outcome.tally.files == done


def copied_in_a_daemon(source: str, destination: str) -> tuple[int, int]:
    report = library.copy(source, destination, jobs="auto")
    return report.jobs, report.files


def test_workers_that_cannot_be_started_are_fewer_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = some_tree(tmp_path / "src", 200)
    real = engines.engine_for
    asked: list[int] = []

    class Refusing:
        def open(self) -> contextlib.AbstractContextManager[Executor]:
            raise engines.NotStarted("Resource temporarily unavailable")

    def few(jobs: int, start_method: str | None) -> engines.Engine:
        asked.append(jobs)
        return Refusing() if jobs > processors() else real(jobs, start_method)

    monkeypatch.setattr("pcopy.drive.engine_for", few)
    monkeypatch.setattr("pcopy.crew.Crew.wanted", property(lambda self: min(self.most, 50)))
    report = library.copy(source, tmp_path / "dst", jobs="auto")
    assert report.ok, report.errors
    halved = [50]
    while halved[-1] > processors():
        halved.append(max(processors(), halved[-1] // 2))
    assert asked == halved
    assert read_tree(tmp_path / "dst") == read_tree(source)


@pytest.mark.parametrize("bwlimit", [None, "500M"])
def test_where_no_worker_can_be_started_it_goes_on_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bwlimit: str | None
) -> None:
    """Nobody has asked for any. It is said once."""
    source = some_tree(tmp_path / "src", 2000)
    real = engines.engine_for

    class Refusing:
        def open(self) -> contextlib.AbstractContextManager[Executor]:
            raise engines.NotStarted("Resource temporarily unavailable")

    monkeypatch.setattr("pcopy.drive.engine_for", lambda jobs, method: Refusing() if jobs > 1 else real(jobs, method))
    monkeypatch.setattr("pcopy.crew.Crew.wanted", property(lambda self: min(self.most, 3)))
    report = library.copy(source, tmp_path / "dst", jobs="auto", bwlimit=bwlimit)
    assert (report.ok, report.jobs, report.engine) == (True, 1, "serial"), report.errors
    says = "workers cannot be started: Resource temporarily unavailable; the rest is done in one process"
    assert report.warnings == [says]
    assert read_tree(tmp_path / "dst") == read_tree(source)
    assert library.copy(source, tmp_path / "other", jobs=2).exit_status == 3


@pytest.mark.parametrize("wrong", ["fast", "auto,2", "AUTO", ""])
def test_what_is_neither_a_number_nor_auto_is_refused(tmp_path: Path, pcopy: Run, wrong: str) -> None:
    make_tree(tmp_path / "src", {})
    done = pcopy("-j", wrong, "src", "dst")
    assert done.returncode == 2
    assert f"{wrong!r} is neither a number nor 'auto'" in done.stderr
    with pytest.raises(library.UsageError, match="must be a number from 1 to 1024, or 'auto'"):
        library.copy(tmp_path / "src", tmp_path / "dst", jobs="fast")  # type: ignore[arg-type]
    assert not (tmp_path / "dst").exists()


def test_a_comparison_is_of_numbers(tmp_path: Path, pcopy: Run) -> None:
    make_tree(tmp_path / "src", {"f": b"1"})
    done = pcopy("--compare", "-j", "auto", "src")
    assert done.returncode == 2
    assert "jobs 'auto': must be a number from 1 to 1024" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(library.UsageError, match="jobs 'auto': must be a number from 1 to 1024"):
        library.compare(tmp_path / "src", jobs="auto")  # type: ignore[arg-type]
