"""What every engine promises, serial and pool, under each start method: results, failures, killed workers, no orphans.

Processes are real and killed by real signals. Workers are found in /proc: below this process, or by a mark that a run
carries in its environment and leaves to all its children.
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pcopy
import pcopy.engines
from pcopy.coordinator import WORKER_DIED, Coordinator
from pcopy.engines import Engine, Pool, Serial
from pcopy.metadata import SHORTLY
from pcopy.outcome import Outcome
from pcopy.work import Job
from pcopy.worker import run
from tests.comparer import differences
from tests.conftest import SHARED, as_root, compiled
from tests.trees import WHEN, Dir, File, Hard, Holes, Link, make_tree, read_tree

ROOT = Path(__file__).parent.parent
METHODS = ("fork", "forkserver", "spawn")
JOBS = 3
MARK = "PCOPY_TEST_MARK"
# Seconds after which a run that should have ended counts as hung.
HANG = 60

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")


# ---- processes ----


def parents() -> dict[int, int]:
    """{process: its parent}, without zombies."""
    found = {}
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit():
                state, parent = Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    found[int(name)] = int(parent)
    return found


def command_of(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def state_of(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    return ""


def workers(top: int | None = None) -> list[int]:
    """The worker processes of a run. What multiprocessing keeps for later, once for all runs, is none."""
    top, tree = top or os.getpid(), parents()
    servers = {one for one, parent in tree.items() if parent == top and "multiprocessing.forkserver" in command_of(one)}
    found = [one for one, parent in tree.items() if parent in servers or (parent == top and one not in servers)]
    return [one for one in found if "resource_tracker" not in command_of(one)]


def marked(mark: str) -> set[int]:
    """All processes that have the mark in their environment, however they were started and whoever their parent is."""
    found, wanted = set(), f"{MARK}={mark}".encode()
    for process in parents():
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
                found.add(process)
    return found


def wait_until(true: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


class Script:
    """A Python program in a process group of its own, with a mark on all its processes."""

    def __init__(
        self, command: list[str], where: Path, environment: dict[str, str] | None = None, before: Sequence[str] = ()
    ) -> None:
        self.mark = uuid.uuid4().hex
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        self.process = subprocess.Popen(
            [*before, sys.executable, *command],
            cwd=where,
            env={**os.environ, "PYTHONPATH": path, MARK: self.mark, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def ended(self) -> tuple[int, str, str]:
        """Wait for its end: status, stdout, stderr."""
        out, err = self.process.communicate(timeout=HANG)
        return self.process.returncode, out, err

    def others(self) -> set[int]:
        return marked(self.mark) - {self.process.pid}

    def clean_up(self) -> None:
        for process in marked(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
        self.process.wait(HANG)


Start = Callable[..., Script]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(text, *arguments): run a program from a file; whatever a test leaves of it is ended."""
    scripts: list[Script] = []

    def begin(text: str, *arguments: object, environment: dict[str, str] | None = None) -> Script:
        file = tmp_path / f"script{len(scripts)}.py"
        file.write_text(text)
        scripts.append(Script([str(file), *map(str, arguments)], tmp_path, environment))
        return scripts[-1]

    yield begin
    for script in scripts:
        script.clean_up()


# ---- trees ----


def many_files(directories: int, files: int) -> dict[str, object]:
    below: dict[str | bytes, object] = {f"f{number}": File(b"%d " % number * (number % 50)) for number in range(files)}
    return {f"d{number}": Dir(below) for number in range(directories)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Enough of everything that many slices are needed: files, links across directories, one large file in spans."""
    top = tmp_path_factory.mktemp("source")
    entries = many_files(15, 40)
    entries["d3"] = Dir({"other name": Hard("d0/f1"), "link": Link("../d1"), "empty": Dir({})})
    entries["big"] = Holes(40 << 20, {at << 20: os.urandom(4096) for at in range(0, 40, 2)})
    yield make_tree(top / "src", entries)
    shutil.rmtree(top)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "dst"
    shutil.rmtree(tmp_path / "dst", ignore_errors=True)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Path]:
    """Seconds of work in no room: zeros that are written out with sparse="never", and small files before them."""
    entries = many_files(4, 50) | {"big": Holes(3 << 30), "big too": Holes(3 << 30)}
    yield make_tree(tmp_path / "slow", entries)
    shutil.rmtree(tmp_path / "slow")


@pytest.fixture
def straight_to_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the first slice in this process, so that all of the tree is copied by workers."""
    monkeypatch.setattr("pcopy.coordinator.FIRST", 0.0)


def temporary_names(top: Path) -> list[str]:
    return [name for _, directories, names in os.walk(top) for name in [*directories, *names] if name.startswith(".pcopy-")]


def half_files(source: Path, copy: Path) -> list[str]:
    """What lies in an unfinished copy under a final name and is no whole file with the attributes of its source."""
    half = []
    for where, _, names in os.walk(copy):
        for path in (Path(where, name) for name in names):
            one, two = os.lstat(source / path.relative_to(copy)), os.lstat(path)
            whole = (one.st_size, one.st_mtime_ns, one.st_mode) == (two.st_size, two.st_mtime_ns, two.st_mode)
            small = two.st_size < 1 << 20  # the others are holes, of which nobody can tell a half copy by reading it
            if not whole or (small and path.read_bytes() != (source / path.relative_to(copy)).read_bytes()):
                half.append(str(path))
    return half


# ---- the contract ----

ENGINES = [Serial(), *(Pool(JOBS, method) for method in METHODS)]


@pytest.fixture(params=ENGINES, ids=["serial", *METHODS])
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


def test_results_and_exceptions_come_back_and_nothing_stays(engine: Engine) -> None:
    with engine.open() as executor:
        futures = [executor.submit(operator.mul, number, 2) for number in range(50)]
        bad = executor.submit(int, "no number")
        assert [future.result(HANG) for future in futures] == [number * 2 for number in range(50)]
        with pytest.raises(ValueError, match="no number"):
            bad.result(HANG)
        assert executor.submit(operator.add, 1, 2).result(HANG) == 3
    assert not workers()


def test_an_engine_can_be_opened_again(engine: Engine) -> None:
    for _ in range(2):
        with engine.open() as executor:
            assert executor.submit(operator.add, 1, 2).result(HANG) == 3


def test_an_exception_in_the_caller_ends_the_workers(engine: Engine) -> None:
    with pytest.raises(KeyError), engine.open() as executor:
        executor.submit(time.sleep, 0.01).result(HANG)
        raise KeyError
    assert not workers()


@pytest.mark.parametrize("jobs, method", [(1, None), *((JOBS, method) for method in METHODS)])
def test_a_copy_is_equal_and_nothing_is_said(
    tree: Path, target: Path, jobs: int, method: str | None, straight_to_the_pool: None, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: set[int] = set()

    class Watch(pcopy.Observer):
        def progress(self, progress: pcopy.Progress) -> None:
            seen.update(workers())

    report = pcopy.copy(tree, target, jobs=jobs, start_method=method, observer=Watch())  # type: ignore[arg-type]
    assert report.ok, report.errors
    assert report.engine == ("serial" if jobs == 1 else "pool")
    assert read_tree(target) == read_tree(tree)
    assert len(seen) > 1 if jobs > 1 else not seen
    assert not workers()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", ["there", "removed"])
def test_workers_take_no_module_from_where_they_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, place: str
) -> None:
    """They go into directories of the source, and what is called like a module there is none."""
    name = f"{place}-{method}"  # Python remembers what it found
    (tmp_path / "cwd" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")
    if place == "removed":
        shutil.rmtree(tmp_path / "cwd")
        if method != "fork":
            pytest.skip("Python itself starts no process there")
    monkeypatch.setattr(sys, "path", ["", name, "nothing", None, *sys.path])
    with Pool(1, method).open() as executor:
        paths = executor.submit(eval, "__import__('sys').path").result(HANG)
    if (place, method) == ("there", "fork"):  # others begin where multiprocessing was imported
        assert paths[:2] == [str(tmp_path / "cwd"), str(tmp_path / "cwd" / name)]
    assert [path for path in paths if not os.path.isabs(path)] == []


def test_workers_know_a_path_that_only_a_hook_understands(monkeypatch: pytest.MonkeyPatch) -> None:
    def hook(path: str) -> object:
        if path != "scheme://somewhere":
            raise ImportError
        return SimpleNamespace(find_spec=lambda name, target=None: None)

    monkeypatch.setattr(sys, "path_hooks", [hook, *sys.path_hooks])
    monkeypatch.setattr(sys, "path", ["scheme://somewhere", *sys.path])
    with Pool(1, "fork").open() as executor:
        assert executor.submit(eval, "__import__('sys').path[0]").result(HANG) == "scheme://somewhere"


def test_workers_dump_no_core_where_they_work() -> None:
    """There a file of the source may be called core."""
    limits = "__import__('resource').getrlimit(__import__('resource').RLIMIT_CORE)[0]"
    with Pool(1, "fork").open() as executor:
        assert executor.submit(eval, limits).result(HANG) == 0


def test_a_worker_starts_where_no_module_can_be_read_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that gave up the rights it was started with."""

    class Closed:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name not in sys.builtin_module_names:
                raise ImportError(name)

    with Pool(1, "fork").open() as executor:  # this process has what it needs
        assert executor.submit(operator.add, 1, 2).result(HANG) == 3
    monkeypatch.delitem(sys.modules, "pkgutil", raising=False)
    monkeypatch.setattr(sys, "path", ["nothing", *sys.path])
    monkeypatch.setattr(sys, "meta_path", [Closed, *sys.meta_path])
    with Pool(1, "fork").open() as executor:
        assert executor.submit(operator.add, 1, 2).result(HANG) == 3


def test_workers_find_attributes_that_a_copy_lacks(tmp_path: Path, jobs: int) -> None:
    """In directories of which they come to one after the other, of files that another tool copied without."""
    entries = {f"d{number}": Dir(dict.fromkeys("abc", b"text")) for number in range(9)}
    source, dst = make_tree(tmp_path / "src", entries), tmp_path / "dst"
    os.setxattr(source / "d7/b", "user.a", b"1")
    time.sleep(SHORTLY / 1e9 + 0.1)  # a source that was changed long before its copy
    assert pcopy.copy(source, dst, jobs=jobs).ok
    os.removexattr(dst / "d7/b", "user.a")
    report = pcopy.copy(source, dst, jobs=jobs)
    assert (report.ok, report.unchanged, report.files) == (True, 27, 0)
    assert os.getxattr(dst / "d7/b", "user.a") == b"1"


# ---- killed workers ----


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_killed_in_a_call_breaks_the_executor_and_hangs_nobody(method: str) -> None:
    with Pool(2, method).open() as executor:
        assert executor.submit(operator.add, 1, 2).result(HANG) == 3
        lost = executor.submit(signal.raise_signal, signal.SIGKILL)
        assert isinstance(lost.exception(HANG), BrokenExecutor)
    assert not workers()


class Killer(pcopy.Observer):
    """Kills workers from within a run, once it is well under way."""

    def __init__(self, how_many: int, times: int, idle: bool) -> None:
        self.how_many, self.times, self.idle = how_many, times, idle
        self.killed = 0

    def progress(self, progress: pcopy.Progress) -> None:
        found = workers()
        if not self.times or not found:
            return
        self.times -= 1
        if self.idle:
            time.sleep(0.3)  # three of the longest slices: by now all of them have nothing to do
        found.sort(key=lambda one: (state_of(one) == "S") != self.idle)
        for process in found[: self.how_many]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
                self.killed += 1


@pytest.mark.parametrize(
    "how_many, times, idle",
    [(1, 1, False), (1, 1, True), (JOBS, 1, False), (JOBS, 1, True), (1, 4, False)],
    ids=["one busy", "one idle", "all busy", "all idle", "again and again"],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_worker_is_replaced(
    tree: Path, target: Path, method: str, how_many: int, times: int, idle: bool, straight_to_the_pool: None
) -> None:
    killer = Killer(how_many, times, idle)
    report = pcopy.copy(tree, target, jobs=JOBS, start_method=method, observer=killer)  # type: ignore[arg-type]
    assert killer.killed >= min(times, 2)  # all may be fewer than three: most methods start workers as they are needed
    assert report.ok, report.errors
    assert report.warnings == [WORKER_DIED]
    assert read_tree(target) == read_tree(tree)
    assert not workers()


def be_deaf(job: Job, *portion: Any) -> Outcome:
    """A slice, in a worker that does not hear SIGTERM any more: nor does one that waits for a lock which a killed one held."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    return run(job, *portion)


@pytest.mark.parametrize("others", [run, be_deaf], ids=["others end", "others are deaf"])
@pytest.mark.parametrize("method", METHODS)
def test_a_worker_killed_when_all_is_done_is_told_of(
    tree: Path, target: Path, method: str, others: Any, straight_to_the_pool: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Coordinator.take
    monkeypatch.setattr("pcopy.drive.run", others)

    def take_and_kill(coordinator: Coordinator, running: int) -> object:
        portion = take(coordinator, running)
        if not portion and not running:
            victim = workers()[0]
            os.kill(victim, signal.SIGKILL)
            assert wait_until(lambda: victim not in workers(), HANG)
            time.sleep(0.1)  # a forkserver sees the end of its child, and tells of it then
        return portion

    monkeypatch.setattr(Coordinator, "take", take_and_kill)
    report = within_time(lambda: pcopy.copy(tree, target, jobs=JOBS, start_method=method))  # type: ignore[arg-type]
    assert report.ok, report.errors
    assert report.warnings == [WORKER_DIED]
    assert read_tree(target) == read_tree(tree)
    assert not workers()


def local_of_pool(name: str) -> Any:
    """In a worker: what ProcessPoolExecutor passed to it under this name."""
    frame = sys._getframe()
    while name not in frame.f_locals:
        assert frame.f_back, f"workers have no {name} any more"
        frame = frame.f_back
    return frame.f_locals[name]


def die_in_a_message(job: Job, *portion: Any) -> Outcome:
    """A slice, but the first worker that is asked for one is killed when half of its answer is in the pipe."""
    try:
        os.mkdir(f"{job.trees[0].source}.{job.token}")
    except FileExistsError:
        return run(job, *portion)
    os.write(local_of_pool("result_queue")._writer.fileno(), struct.pack("!i", 1000) + b"half of")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_killed_in_the_middle_of_its_message_hangs_nobody(
    tree: Path, target: Path, method: str, straight_to_the_pool: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcopy.drive.run", die_in_a_message)
    report = within_time(lambda: pcopy.copy(tree, target, jobs=JOBS, start_method=method))  # type: ignore[arg-type]
    assert report.ok, report.errors
    assert len(report.warnings) == 1
    assert read_tree(target) == read_tree(tree)
    assert not workers()


def within_time(call: Callable[[], Any]) -> Any:
    """The result of a call that must not take for ever. Who waits for a thread can still be interrupted."""

    def give_up(*_: object) -> None:
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(HANG)
    try:
        return call()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def keep_the_lock() -> None:
    """Leave the calls locked for all workers, as one does that is killed while it waits for a call."""
    local_of_pool("call_queue")._rlock.acquire()


@pytest.mark.parametrize("method", METHODS)
def test_workers_stuck_in_a_lock_of_the_dead_do_not_keep_a_pool_from_ending(method: str) -> None:
    def end_one() -> None:
        with Pool(1, method).open() as executor:  # a second one would have the lock now and then
            executor.submit(keep_the_lock).result(HANG)

    within_time(end_one)
    assert not workers()


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_killed_as_its_pool_ends_hangs_nobody(method: str) -> None:
    def end_some() -> None:
        for number in range(5):
            with Pool(JOBS, method).open():
                os.kill(workers()[number % JOBS], signal.SIGKILL)

    within_time(end_some)
    assert not workers()


# ---- workers that do not come up ----

NO_INTERPRETER = """
import multiprocessing, sys
multiprocessing.set_executable("/nonexistent")
"""
DEAD_AT_ONCE = """
import os, signal, pcopy.engines
pcopy.engines.begin_worker = lambda: os.kill(os.getpid(), signal.SIGKILL)
"""
LIMITED = """
import os, pcopy.engines
pcopy.engines.safest_method = lambda: os.environ["METHOD"]
"""


def not_started(script: Script, target: Path) -> None:
    """It ends with status 3, one line says why, no entry is blamed, and nothing half is left."""
    status, out, err = script.ended()
    assert (status, out) == (3, ""), err
    (line,) = (line for line in err.splitlines() if "workers cannot be started: " in line)
    assert line.endswith("; run with -j 1")
    assert "pcopy/" not in err  # no traceback of ours; helpers of multiprocessing that do not come up have theirs
    assert "0 failed" in err.splitlines()[-1]
    assert temporary_names(target) == []
    assert wait_until(lambda: not script.others(), 2.0)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_run_whose_workers_have_no_interpreter_says_so(start: Start, tree: Path, target: Path, method: str) -> None:
    environment = {"METHOD": method, "PYTHONWARNINGS": "ignore"}  # multiprocessing warns of its own helper
    not_started(start(NO_INTERPRETER + LIMITED + STRAIGHT_TO_THE_POOL, "-j2", tree, target, environment=environment), target)


def test_a_run_whose_workers_are_killed_as_they_start_says_so(start: Start, tree: Path, target: Path) -> None:
    not_started(start(DEAD_AT_ONCE + STRAIGHT_TO_THE_POOL, "-j2", tree, target), target)


@as_root
@pytest.mark.parametrize("room", [1, 3, JOBS + 1, JOBS + 2], ids=lambda room: f"room for {room}")
def test_a_run_that_may_not_start_processes_says_so(tree: Path, tmp_path: Path, room: int) -> None:
    """As a user that no other process has, because the limit counts all of one's processes and threads."""
    if not (shutil.which("setpriv") and shutil.which("prlimit")):
        pytest.skip("needs setpriv and prlimit")
    file, user = tmp_path / "script.py", 1_900_000_000 + os.getpid() * 8 + room
    file.write_text(LIMITED + STRAIGHT_TO_THE_POOL)
    rights = "-all,+dac_override,+dac_read_search"
    script = Script(
        [str(file), f"-j{JOBS}", str(tree), str(tmp_path / "dst")],
        tmp_path,
        {"METHOD": "fork"},
        ["setpriv", f"--reuid={user}", "--clear-groups", f"--inh-caps={rights}", f"--ambient-caps={rights}",
         "prlimit", f"--nproc={room}"],
    )  # fmt: skip
    try:
        not_started(script, tmp_path / "dst")
    finally:
        script.clean_up()


def servers(top: int) -> list[int]:
    """The processes that multiprocessing keeps for itself."""
    words = ("multiprocessing.forkserver", "resource_tracker")
    return [one for one, parent in parents().items() if parent == top and any(word in command_of(one) for word in words)]


@pytest.mark.parametrize("which", ["multiprocessing.forkserver", "resource_tracker"])
def test_a_killed_server_of_multiprocessing_is_replaced(start: Start, tmp_path: Path, target: Path, which: str) -> None:
    """Workers of a killed forkserver are orphans: they end, too, before others take their place."""
    source = make_tree(tmp_path / "src", many_files(4, 50) | {"big": Holes(400 << 20), "big too": Holes(400 << 20)})
    script = start(BUSY, "forkserver", source, target)
    assert wait_until(lambda: busy(script) and temporary_names(target), HANG)
    lost = workers(script.process.pid)
    (server,) = (one for one in servers(script.process.pid) if which in command_of(one))
    os.kill(server, signal.SIGKILL)
    status, out, err = script.ended()
    assert (status, out) == (0, ""), err
    assert "pcopy/" not in err
    if which != "resource_tracker":
        assert not set(lost) & set(parents())
    assert read_tree(target) == read_tree(source)
    assert wait_until(lambda: not script.others(), 2.0)


# ---- files that kill ----

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* Kills the process that opens a file called "deadly to read". */
static int opened(const char *name, int directory, const char *path, int flags, mode_t mode) {
    int (*next)(int, const char *, int, ...) = dlsym(RTLD_NEXT, name);
    if (strstr(path, "deadly to read")) raise(SIGKILL);
    return next(directory, path, flags, mode);
}

/* Kills the process that sets the times of a file in a directory called "deadly", under whatever name. */
int futimens(int file, const struct timespec times[2]) {
    int (*next)(int, const struct timespec *) = dlsym(RTLD_NEXT, "futimens");
    char link[64], path[4096] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    if (readlink(link, path, sizeof path - 1) > 0 && strstr(path, "/deadly/")) raise(SIGKILL);
    return next(file, times);
}

#define OPENAT(name) int name(int directory, const char *path, int flags, ...) { \
    va_list rest; va_start(rest, flags); mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest); \
    return opened(#name, directory, path, flags, mode); }
OPENAT(openat)
OPENAT(openat64)
"""

STRAIGHT_TO_THE_POOL = """
import sys
import pcopy.coordinator
pcopy.coordinator.FIRST = 0.0
from pcopy.cli import main
if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("shim"), SHIM, *SHARED)


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("name", ["d/deadly to read", "deadly/when written"])
def test_a_file_that_kills_its_worker_each_time_becomes_a_named_failure(
    shim: Path, start: Start, tmp_path: Path, name: str, there: bool
) -> None:
    directory, _, poison = name.partition("/")
    files: dict[str | bytes, object] = {f"f{number}": str(number) for number in range(20)} if directory == "d" else {}
    source = make_tree(tmp_path / "src", many_files(3, 40) | {directory: Dir({**files, poison: "poison"})})
    if there:
        make_tree(tmp_path / "dst", {directory: Dir({poison: "what was there before"})})
    status, out, err = start(STRAIGHT_TO_THE_POOL, "-j2", "src", "dst", environment={"LD_PRELOAD": str(shim)}).ended()
    assert (status, out) == (1, ""), err
    first, *warnings, last = err.strip().splitlines()
    assert f"src/{name}: " in first
    assert "died" in first
    assert len(warnings) <= 1
    assert "1 failed" in last
    wanted, made = read_tree(source), read_tree(tmp_path / "dst")
    del wanted[os.fsencode(name)]
    if there:
        assert (tmp_path / "dst" / name).read_bytes() == b"what was there before"
        del made[os.fsencode(name)]
    # Under its name is what was there before, no temporary name is left, and all the others are there.
    assert set(made) == set(wanted)
    assert {path for path in made if made[path] != wanted[path]} <= {os.fsencode(directory)}


@pytest.mark.parametrize("replaced", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("jobs", [1, JOBS])
def test_an_entry_that_raises_something_unforeseen_is_a_named_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, replaced: bool, straight_to_the_pool: None
) -> None:
    source = make_tree(tmp_path / "src", many_files(4, 20))
    if replaced:
        make_tree(tmp_path / "dst", {"d2": Dir({"f7": "old"})})
    before = os.open

    def broken(path: object, *rest: Any, **keywords: Any) -> int:
        if path == "f7":
            raise RuntimeError("a fault in pcopy")
        return before(path, *rest, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", broken)  # which forked workers inherit
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, start_method="fork")
    assert report.exit_status == 1
    assert sorted(one.path for one in report.errors) == [f"{source}/d{number}/f7" for number in range(4)]
    assert {one.reason for one in report.errors} == {"unforeseen RuntimeError: a fault in pcopy"}
    assert report.failed == 4
    wanted, made = read_tree(source), read_tree(tmp_path / "dst")
    assert made.pop(b"d2/f7", None) is not None if replaced else True
    assert made == {path: state for path, state in wanted.items() if not path.endswith(b"/f7")}


# ---- deep trees ----


def make_chain(top: Path, levels: int) -> None:
    """Directories in each other, with a file in each, so deep that no path leads there."""
    top.mkdir()
    handle = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.close(os.open("f", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=handle))
        os.mkdir("directory", dir_fd=handle)
        os.utime("directory", ns=(WHEN, WHEN), dir_fd=handle)
        above, handle = handle, os.open("directory", os.O_RDONLY, dir_fd=handle)
        os.close(above)
    os.close(handle)


def read_chain(top: Path) -> list[tuple[list[str], int]]:
    """What is in each of its directories, and when that was changed."""
    found, handle = [], os.open(top, os.O_RDONLY)
    while True:
        found.append((sorted(os.listdir(handle)), os.fstat(handle).st_mtime_ns))
        try:
            below = os.open("directory", os.O_RDONLY, dir_fd=handle)
        except FileNotFoundError:
            return found
        finally:
            os.close(handle)
        handle = below


def test_a_chain_of_directories_is_no_work_for_minutes(tmp_path: Path, straight_to_the_pool: None) -> None:
    """Each slice has to go to its directory from the top: with slices of a fixed length that takes all of them."""
    make_chain(tmp_path / "src", 2000)
    try:
        report = within_time(lambda: pcopy.copy(tmp_path / "src", tmp_path / "dst", jobs=8))
        assert report.ok, report.errors
        assert (report.files, report.directories) == (2000, 2001)
        assert read_chain(tmp_path / "dst") == read_chain(tmp_path / "src")
    finally:
        subprocess.run(["rm", "-rf", "src", "dst"], cwd=tmp_path, check=True)  # too deep for shutil


# ---- the end of the coordinator ----

IDLE = """
import sys, time
from pcopy.engines import Pool
if __name__ == "__main__":
    with Pool(3, sys.argv[1]).open() as executor:
        for one in [executor.submit(time.sleep, 0.05) for _ in range(3)]:
            one.result()
        print("ready", flush=True)
        time.sleep(60)
"""
BUSY = """
import sys
import pcopy
if __name__ == "__main__":
    pcopy.copy(sys.argv[2], sys.argv[3], jobs=3, start_method=sys.argv[1], sparse="never")
"""


def busy(script: Script) -> bool:
    """Whether several of its workers are at work."""
    return sum(state_of(one) in "RD" for one in workers(script.process.pid)) >= 2


def has_begun(worker: int) -> bool:
    """Whether a worker has come to the end of begin_worker: it ignores SIGINT, and blocks SIGTERM no more."""
    masks = dict(line.split(":\t") for line in Path(f"/proc/{worker}/status").read_text().splitlines() if line[:3] == "Sig")
    ignored, blocked = int(masks["SigIgn"], 16), int(masks["SigBlk"], 16)
    return bool(ignored >> signal.SIGINT - 1 & 1 and not blocked >> signal.SIGTERM - 1 & 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", ["idle", "busy", "stopped"])
def test_no_process_outlives_a_killed_coordinator(start: Start, slow: Path, target: Path, what: str, method: str) -> None:
    if what == "idle":
        script = start(IDLE, method)
        assert script.process.stdout
        assert script.process.stdout.readline() == "ready\n"
    else:
        script = start(BUSY, method, slow, target)
        assert wait_until(lambda: busy(script) and temporary_names(target), HANG)
    assert len(script.others()) >= 2
    if what == "stopped":
        there = workers(script.process.pid)  # one that is started later is not stopped, or it would be before it has begun
        assert wait_until(lambda: all(has_begun(one) for one in there), 10)
        for worker in there:
            os.kill(worker, signal.SIGSTOP)
        assert wait_until(lambda: all(state_of(one) == "T" for one in there), 5)
    script.process.kill()
    assert wait_until(lambda: not script.others(), 2.0), [command_of(one) for one in script.others()]
    assert script.ended()[:2] == (-signal.SIGKILL, "")


def test_a_handler_does_not_part_a_start_from_its_note(start: Start) -> None:
    script = start(
        """
import signal, time
from pcopy.engines import uninterrupted

class Left(BaseException): pass

def leave(*_):
    raise Left

done = []
signal.signal(signal.SIGALRM, leave)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    uninterrupted(lambda: done.append(time.sleep(0.5)))
except Left:
    print(len(done))
"""
    )
    assert script.ended() == (0, "1\n", "")


COMMAND = """
import os, sys
import pcopy.engines
pcopy.engines.safest_method = lambda: os.environ["METHOD"]
from pcopy.cli import main
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("moment", ["as workers start", "as they work"])
@pytest.mark.parametrize("method", METHODS)
def test_a_signal_to_the_whole_group_leaves_only_whole_files(
    start: Start, slow: Path, target: Path, method: str, moment: str, number: signal.Signals
) -> None:
    script = start(COMMAND, "-j3", "--sparse=never", slow, target, environment={"METHOD": method})
    ready: Callable[[], object] = (
        script.others if moment == "as workers start" else lambda: busy(script) and temporary_names(target)
    )
    assert wait_until(ready, HANG)
    os.killpg(script.process.pid, number)
    status, out, err = script.ended()
    assert (status, out) == (128 + number, ""), err
    assert err.startswith("interrupted: copied ")
    assert len(err.splitlines()) == 1
    assert temporary_names(target) == []
    assert half_files(slow, target) == []
    assert wait_until(lambda: not script.others(), 2.0)


DYING = """
import os, signal, sys
import pcopy.coordinator, pcopy.cli, pcopy.engines
pcopy.coordinator.FIRST = 0.0  # workers do it all
pcopy.engines.safest_method = lambda: "fork"  # with this hook
coordinator, (once, wanted, count, ends) = os.getpid(), sys.argv[1:5]
left, first = int(count), os.environ.get("FIRST", "")
exec(os.environ.get("START", ""))
def hook(event, arguments):
    global left, first
    if first and event == "os.truncate" and os.getpid() != coordinator:
        text, first = first, ""
        exec(text)
    if event != wanted or os.getpid() == coordinator:
        return
    left -= 1
    if left:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # of the pool, if the other dies before the next lines are done
    try:
        if ends != "each time":
            os.mkdir(once)
        exec(os.environ.get("LAST", ""))
        if ends == "TERM":
            os.kill(coordinator, signal.SIGTERM)  # once: the second would end it at once
    except FileExistsError:
        if not ends:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            return
    if event == "os.rmdir":  # what matters there is what comes after
        os.rmdir(arguments[0], dir_fd=arguments[1])
    os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
pcopy.cli.main(sys.argv[5:])
"""


class Dying:
    """Runs in which workers are killed at their n-th call of a kind; then the run is stopped, or one worker alone dies."""

    def __init__(self, tmp_path: Path) -> None:
        self.once = tmp_path / "once"

    def run(
        self,
        event: str,
        count: int,
        ends: bool,
        *words: object,
        start: str = "",
        first: str = "",
        last: str = "",
        status: Sequence[int] = (0,),
    ) -> subprocess.CompletedProcess[str]:
        """``start``: what the run does then; ``first``: a worker when it has begun a large file; ``last``: before it dies."""
        command = [sys.executable, "-c", DYING, self.once, event, count, "TERM" if ends else "", "-j", 2, *words]
        environment = {**os.environ, "START": start, "FIRST": first, "LAST": last}
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=HANG, env=environment)
        assert self.once.exists(), "no worker was killed"
        assert done.returncode in ([143] if ends else status), done.stderr
        return done


@pytest.fixture
def dying(tmp_path: Path) -> Dying:
    return Dying(tmp_path)


def rerun(source: Path, copy: Path, *words: str) -> None:
    command = [sys.executable, "-m", "pcopy", "-j", "2", *words, str(source), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG)
    assert done.returncode == 0, done.stderr
    assert differences(source, copy, extra=True) == []
    assert temporary_names(copy) == []


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("more", [[], ["--delete"]], ids=str)
def test_a_worker_that_is_killed_when_the_run_is_stopped_leaves_no_half_file(
    tmp_path: Path, dying: Dying, depth: int, more: list[str]
) -> None:
    """In a directory that was there before; what somebody had there with the mode of a half file stays."""
    files: dict[str | bytes, object] = {f"f{number}": b"x" * 3000 for number in range(300)}
    below = "/".join(["top", *["d"] * depth])
    source = make_tree(tmp_path / "src", {"other": b"1", "more": Dir(files)})
    make_tree(source / below, files)
    dst = make_tree(tmp_path / "dst", {})
    make_tree(dst / below, {"f29": File(b"old", mode=0o600), **{f"o{number}": b"" for number in range(2000)}})
    there = read_tree(dst).keys()
    dying.run("os.chmod", 1, True, *more, source, dst)
    assert (dst / below / "f29").read_bytes() == b"old"
    assert read_tree(dst).keys() - {b"more"} == there
    rerun(source, dst, *more)


@pytest.mark.parametrize("count", [1, 30])
def test_a_stop_after_a_killed_worker_takes_nothing_that_was_there(tmp_path: Path, dying: Dying, count: int) -> None:
    """Not even what looks like a half file of this run: mode 0600, one name, changed a moment ago when its other name went."""
    new: dict[str | bytes, object] = {f"f{number}": File(b"new", mode=0o600) for number in range(100)}
    old: dict[str | bytes, object] = {f"f{number}": File(b"old!", mode=0o600) for number in range(50)}
    old |= {f"f{number}": Hard(f"f{99 - number}") for number in range(50, 100)}
    source = make_tree(tmp_path / "src", {f"d{number}": Dir(new) for number in range(4)})
    dst = tmp_path / "dst"
    dst.mkdir()
    for number in range(4):
        make_tree(dst / f"d{number}", old)
    there = read_tree(dst).keys()
    dying.run("os.rename", count, True, source, dst)
    assert read_tree(dst).keys() == there
    assert {path.read_bytes() for path in dst.glob("*/f*")} <= {b"new", b"old!"}
    rerun(source, dst)


@as_root
@pytest.mark.parametrize("ends", [True, False], ids=["stopped", "done again"])
@pytest.mark.parametrize("event", ["os.chown", "os.setxattr", "os.chmod", "os.utime"])
def test_a_worker_that_is_killed_between_two_attributes_of_a_file(tmp_path: Path, dying: Dying, event: str, ends: bool) -> None:
    """It has its owner and not yet its mode, or one that its ACL gave it."""
    entries = ((1, 7, -1), (2, 6, 12), (4, 6, -1), (16, 6, -1), (32, 4, -1))  # acl_ea.h: tag, permissions, whose
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *one) for one in entries)
    attributes = {"user.x": b"1", "system.posix_acl_access": acl}
    files: dict[str | bytes, object] = {
        f"f{number}": File(b"text" * 1000, mode=0o4764, owner=(12, 34), xattrs=attributes) for number in range(20)
    }
    source = make_tree(tmp_path / "src", {f"d{number}": Dir(files) for number in range(4)})
    dst = make_tree(tmp_path / "dst", {f"d{number}": Dir({}) for number in range(2)})
    done = dying.run(event, 5, ends, "--json", source, dst)
    if ends:
        whole = read_tree(source)
        assert all(whole[path] == entry for path, entry in read_tree(dst).items() if path.count(b"/"))
    else:
        assert json.loads(done.stdout)["vanished"] == 0
        assert differences(source, dst, extra=True) == []
    rerun(source, dst)


@pytest.mark.parametrize("ends", [True, False], ids=["stopped", "done again"])
@pytest.mark.parametrize("event", ["os.mkdir", "os.remove"])
def test_a_file_that_gives_way_to_a_directory_is_there_until_that_is(
    tmp_path: Path, dying: Dying, event: str, ends: bool
) -> None:
    source = make_tree(tmp_path / "src", {f"x{number}": Dir({"sub": Dir({"f": b"1"})}) for number in range(40)})
    dst = make_tree(tmp_path / "dst", {f"x{number}": Dir({"sub": b"precious"}) for number in range(40)})
    dying.run(event, 3, ends, source, dst)
    for place in dst.glob("x*/sub"):
        assert place.is_dir() or place.read_bytes() == b"precious"
    assert len(list(dst.glob("x*/sub"))) == 40
    assert temporary_names(dst) == []
    rerun(source, dst)


def test_an_empty_directory_gives_way_to_no_half_file(tmp_path: Path, dying: Dying) -> None:
    source = make_tree(tmp_path / "src", {f"f{number}": b"x" * 9000 for number in range(60)})
    dst = make_tree(tmp_path / "dst", {f"f{number}": Dir({}) for number in range(60)})
    dying.run("os.chmod", 3, True, source, dst)
    assert half_files(source, dst) == []
    assert temporary_names(dst) == []
    rerun(source, dst)


VANISHES = {
    "the file": "os.unlink(os.readlink(f'/proc/self/fd/{arguments[0]}').replace('/dst/', '/src/'))",
    "its directory": "os.rename('SRC/d/e', 'SRC.away')",
    "the source": "os.rename('SRC', 'SRC.away')",
    "it is a directory now": "name = os.readlink(f'/proc/self/fd/{arguments[0]}').replace('/dst/', '/src/'); "
    "os.unlink(name); os.mkdir(name)",
}


@pytest.mark.parametrize("ends", [True, False], ids=["stopped", "done again"])
@pytest.mark.parametrize(
    ("what", "old"),
    [
        *((what, old) for what in VANISHES for old in ("nothing", "directories")),
        *((what, "files") for what in ("its directory", "the source")),  # a temporary name does not tell of which file it is
    ],
)
def test_what_a_killed_worker_had_begun_goes_if_its_source_is_gone_by_then(
    tmp_path: Path, dying: Dying, what: str, old: str, ends: bool
) -> None:
    """Its contents are there and its attributes are not, or it has a temporary name."""
    files: dict[str | bytes, object] = {f"f{number}": b"new" * 3000 for number in range(20)}
    source = make_tree(tmp_path / "src", {"d": Dir({"e": Dir(files), **files}), **files})
    dst = tmp_path / "dst"
    if old != "nothing":
        there: dict[str | bytes, object] = {f"f{number}": b"old" for number in range(20)} if old == "files" else {}
        make_tree(dst, {"d": Dir({"e": Dir(there), **there}), **there})
    status = {"the source": [1], "it is a directory now": [0, 1]}.get(what, [0])  # it may be listed again
    done = dying.run("os.chmod", 5, ends, source, dst, last=VANISHES[what].replace("SRC", str(source)), status=status)
    assert temporary_names(dst) == []
    assert {path.read_bytes() for path in dst.rglob("f*") if path.is_file()} <= {b"new" * 3000, b"old"}
    begun = [path for path in dst.rglob("f*") if path.is_file() and path.stat().st_mode & 0o777 == 0o600]
    if old == "nothing" and what != "it is a directory now":  # it could be somebody else's, too
        assert not begun or "may be a part of a file" in done.stderr
    else:
        assert begun == []


@pytest.mark.parametrize("ends", [True, False], ids=["stopped", "done again"])
def test_what_others_put_into_the_directory_of_a_killed_worker_stays(tmp_path: Path, dying: Dying, ends: bool) -> None:
    """With the mode of a half file; also what a filter hides, what is moved or mounted there, and another run's files."""
    files: dict[str | bytes, object] = {f"f{number}": b"new" * 3000 for number in range(20)}
    source = make_tree(tmp_path / "src", {"d": Dir({**files, "hidden": b"its own"}), "e": Dir(files)})
    others = make_tree(tmp_path / "others", {"x": File(b"secret", mode=0o600), "y": Dir({"z": File(b"", mode=0o600)})})
    dst = tmp_path / "dst"
    last = (
        f"import shutil; top = {str(dst)!r}; shutil.copytree({str(others)!r}, top + '/d', dirs_exist_ok=True); "
        "os.rename(shutil.copy(top + '/d/x', top + '/x'), top + '/d/hidden')"
    )
    dying.run("os.chmod", 5, ends, "--exclude", "hidden", source, dst, last=last)
    assert read_tree(others).items() - {(b".", read_tree(others)[b"."])} <= read_tree(dst / "d").items()
    assert (dst / "d/hidden").read_bytes() == b"secret"


@pytest.mark.parametrize("ends", [True, False], ids=["stopped", "done again"])
@pytest.mark.parametrize("last", ["open('SRC/d/big', 'ab').write(b'1')", "os.unlink('SRC/d/big')"], ids=["changes", "vanishes"])
@pytest.mark.parametrize("there", [True, False])
def test_a_large_file_that_a_killed_worker_had_begun_leaves_no_temporary_name_of_another_version(
    tmp_path: Path, dying: Dying, last: str, ends: bool, there: bool
) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir({"big": b"x" * (33 << 20)}), "f": b"1"})
    dst = make_tree(tmp_path / "dst", {"d": Dir({})} if there else {})
    dying.run("os.truncate", 1, ends, source, dst, last=last.replace("SRC", str(source)))
    assert temporary_names(dst) == []
    rerun(source, dst)


@pytest.mark.parametrize("ends", [True, False], ids=["stopped", "done again"])
def test_a_large_file_that_became_a_small_one_is_no_half_file(tmp_path: Path, dying: Dying, ends: bool) -> None:
    source = make_tree(tmp_path / "src", {"big": b"x" * (33 << 20)})
    (tmp_path / "small").write_bytes(b"y" * 90_000)
    dst = make_tree(tmp_path / "dst", {})
    shrinks = f"os.rename({str(tmp_path / 'small')!r}, {str(source / 'big')!r})"
    dying.run("os.chmod", 1, ends, source, dst, first=shrinks)
    assert half_files(source, dst) == []
    assert temporary_names(dst) == []
    rerun(source, dst)


def test_a_large_file_whose_worker_is_killed_when_it_has_given_it_up_is_copied_again(tmp_path: Path, dying: Dying) -> None:
    source = make_tree(tmp_path / "src", {"big": b"x" * (33 << 20)})
    fails = """
def fails(handle):
    if os.getpid() == coordinator or os.path.exists(once) or os.fstat(handle).st_size < 1 << 20:
        sync(handle)
    else:
        raise OSError(5, "Input/output error")
sync, os.fsync = os.fsync, fails
"""
    removed = "os.unlink(arguments[0], dir_fd=arguments[1])"
    dying.run("os.remove", 1, False, "--fsync", source, tmp_path / "dst", start=fails, last=removed)
    rerun(source, tmp_path / "dst")


LATE = """
import glob, time, pcopy.work, pcopy.worker
copy = pcopy.worker.DO[pcopy.work.Span]
def late(*arguments):
    copy(*arguments)
    (made,) = [os.stat(name) for name in glob.glob("DST/d/.pcopy-*")]
    if made.st_blocks * 512 >= made.st_size:
        EVENT
        time.sleep(0.2)  # the slice is over
pcopy.worker.DO[pcopy.work.Span] = late
"""


def run_with_a_late_event(tmp_path: Path, event: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Copy a large file; something happens when it is written and does not have its name yet."""
    source, dst = make_tree(tmp_path / "src", {"d": Dir({"big": b"x" * (33 << 20)})}), tmp_path / "dst"
    script = f"{LATE}\nimport os, pcopy.cli, pcopy.engines\npcopy.engines.safest_method = lambda: 'fork'\n"
    script = script.replace("EVENT", event).replace("SRC", str(source)).replace("DST", str(dst)) + "pcopy.cli.main()"
    command = [sys.executable, "-c", script, *words, str(source), str(dst)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG)
    assert temporary_names(dst) == []
    return done


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_large_file_whose_directory_goes_before_it_gets_its_name_leaves_none(tmp_path: Path, jobs: str) -> None:
    done = run_with_a_late_event(tmp_path, 'os.rename("SRC/d", "SRC.away")', "-j", jobs)
    assert (done.returncode, (tmp_path / "src.away").is_dir()) == (0, True), done.stderr
    assert "vanished from the source before they were copied: 1 of the entries" in done.stderr


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize(
    ("event", "place"),
    [
        ('os.makedirs("DST/d/big", exist_ok=True); open("DST/d/big/p", "w").write("precious")', "d/big/p"),
        ('open("DST/d/big", "w").write("precious")', "d/big"),
        ('os.path.exists("DST/d/big") or (open("DST/d/big", "w").write("precious"), os.utime("SRC/d/big"))', "d/big"),
    ],
    ids=["a directory", "a file", "a file, and the source changes"],
)
def test_what_somebody_puts_in_the_place_of_a_large_file_stays(tmp_path: Path, jobs: str, event: str, place: str) -> None:
    done = run_with_a_late_event(tmp_path, event, "-j", jobs, "--delete")
    assert (done.returncode, (tmp_path / "dst" / place).read_text()) == (1, "precious"), done.stderr
    assert "appeared in the destination" in done.stderr


@pytest.mark.parametrize("old", ["nothing", "directories"])
def test_a_half_file_that_is_too_large_by_then_does_not_stay(tmp_path: Path, dying: Dying, old: str) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir({f"f{number}": b"new" * 3000 for number in range(40)})})
    dst = make_tree(tmp_path / "dst", {"d": Dir({})} if old != "nothing" else {})
    grows = "open(os.readlink(f'/proc/self/fd/{arguments[0]}').replace('/dst/', '/src/'), 'ab').write(b'1' * 20_000)"
    dying.run("os.chmod", 5, False, "--max-size", "10k", source, dst, last=grows)
    assert sorted(path.name for path in (dst / "d").iterdir()) == sorted(
        path.name for path in (source / "d").iterdir() if path.stat().st_size == 9000
    )


def test_a_destination_that_is_moved_away_keeps_no_temporary_name_of_a_killed_worker(tmp_path: Path, dying: Dying) -> None:
    files: dict[str | bytes, object] = {f"f{number}": b"x" * 9000 for number in range(90)}
    source = make_tree(tmp_path / "src", {"d": Dir(files)})
    old: dict[str | bytes, object] = {f"f{number}": b"old" for number in range(90)}
    dst = make_tree(tmp_path / "dst", {"d": Dir(old)})
    dying.run("os.rename", 5, False, source, dst, last=f"os.rename({str(dst)!r}, {str(dst)!r} + '.away')", status=[3])
    assert temporary_names(tmp_path / "dst.away") == []


@pytest.mark.parametrize("old", ["nothing", "directories"])
def test_a_file_of_another_mode_than_a_half_one_is_not_replaced(tmp_path: Path, dying: Dying, old: str) -> None:
    """Somebody makes it under a name that the killed worker was to copy."""
    source = make_tree(tmp_path / "src", {"d": Dir({f"f{number}": b"new" * 3000 for number in range(40)})})
    dst = make_tree(tmp_path / "dst", {"d": Dir({})} if old != "nothing" else {})
    place = f"{dst}/d/f' + str(number)"
    puts = (
        f"for number in range(40):\n if not os.path.exists('{place}):\n"
        f"  open('{place}, 'w').write('precious'); os.chmod('{place}, 0o640)"
    )
    done = dying.run("os.chmod", 5, False, source, dst, last=puts, status=[1])
    assert "appeared in the destination" in done.stderr
    assert [path.stat().st_size for path in (dst / "d").iterdir() if path.stat().st_size not in (9000, 8)] == []
    assert [path for path in (dst / "d").iterdir() if path.stat().st_size == 8]


@pytest.mark.parametrize("mask", [0o777, 0o277])
def test_a_half_file_is_known_whatever_mode_it_was_made_with(tmp_path: Path, dying: Dying, mask: int) -> None:
    source = make_tree(tmp_path / "src", {f"f{number}": b"x" * 9000 for number in range(60)})
    dst = make_tree(tmp_path / "dst", {})
    dying.run("os.chmod", 3, True, source, dst, last=f"os.fchmod(arguments[0], 0o666 & ~{mask})")
    assert half_files(source, dst) == []
    rerun(source, dst)


def test_a_directory_that_kills_its_worker_each_time_leaves_no_temporary_name(tmp_path: Path, dying: Dying) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir({f"x{number}": Dir({"f": b"1"}) for number in range(9)}), "other": b"2"})
    dst = make_tree(tmp_path / "dst", {"d": Dir({f"x{number}": b"old" for number in range(9)})})
    command = [sys.executable, "-c", DYING, "", "os.remove", "1", "each time", "-j", "2", str(source), str(dst)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG)
    assert (done.returncode, "died each time" in done.stderr) == (1, True), done.stderr
    assert temporary_names(dst) == []


def test_a_link_in_the_place_of_an_empty_directory_leaves_no_temporary_name(tmp_path: Path, dying: Dying) -> None:
    both = {"a": b"text", "b": Hard("a")}
    source, dst = tmp_path / "src", tmp_path / "dst"
    for number in range(40):
        make_tree(source / f"x{number}", both)
        make_tree(dst / f"x{number}", {"a": b"text", "b": Dir()})
    dying.run("os.rmdir", 3, False, source, dst)
    assert temporary_names(dst) == []
    rerun(source, dst)


def test_a_half_file_of_several_names_is_taken_for_what_it_is(tmp_path: Path, dying: Dying) -> None:
    """Its worker had begun it as a plain file and was killed when it saw what it is; of its names another may come first."""
    source = tmp_path / "src"
    for number in range(30):
        make_tree(source / f"d{number}", {"b": b"x" * 90_000, "c": Hard("b"), **{f"a{count}": b"x" for count in range(9)}})
    time.sleep(2.1)  # what changed a moment ago is looked at first
    dying.run("os.remove", 1, False, source, tmp_path / "dst", start="import pcopy.plain; pcopy.plain.REST = 2 * 10**9")
    rerun(source, tmp_path / "dst")


def test_workers_that_are_killed_before_they_are_given_anything_are_told_of(
    tree: Path, target: Path, straight_to_the_pool: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    try_out = pcopy.engines.try_out
    killed: list[int] = []

    def kill_and_try_out(executor: Executor) -> None:
        executor.submit(os.getpid).result(HANG)
        for worker in [] if killed else workers():
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)
        try_out(executor)

    monkeypatch.setattr("pcopy.engines.try_out", kill_and_try_out)
    report = pcopy.copy(tree, target, jobs=JOBS)
    assert report.ok, report.errors
    assert (bool(killed), report.warnings) == (True, [WORKER_DIED])
    assert read_tree(target) == read_tree(tree)


def test_a_pool_that_was_closed_leaves_no_thread_that_forbids_to_fork() -> None:
    """One that was joined is still counted for a moment; the next pool would be started by the slower forkserver."""
    words = """
import os
from pcopy.engines import engine_for, safest_method
if __name__ == "__main__":
    for jobs in range(60):
        with engine_for(2 + jobs % 6, None).open() as executor:
            executor.submit(os.getpid).result()
        assert safest_method() == "fork"
"""
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
