"""pcopy.copy as a library: what it takes, what it leaves alone in the process that calls it, and where it can be called.

Programs that are special in how they are started (threads, no __main__ guard, no file at all) are run as processes.
"""

from __future__ import annotations

import errno
import inspect
import json
import os
import shutil
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pcopy
from pcopy import changes, engines, part
from pcopy.cli import main
from pcopy.options import ALL_ATTRIBUTES
from tests.test_engines import (
    METHODS,
    Script,
    Start,
    busy,
    half_files,
    many_files,
    slow,
    start,
    straight_to_the_pool,
    target,
    temporary_names,
    wait_until,
    workers,
)
from tests.trees import Dir, Link, make_tree, read_tree

__all__ = ["slow", "start", "straight_to_the_pool", "target"]  # fixtures, used by name


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "src", many_files(6, 50) | {"l": Link("d0/f1")})


# ---- what it takes ----

KINDS: list[Callable[[Path], Any]] = [str, os.fsencode, Path, lambda path: [path], lambda path: iter([str(path)])]


@pytest.mark.parametrize("kind", KINDS, ids=["str", "bytes", "PathLike", "list", "iterator"])
def test_paths_of_every_kind_are_taken(source: Path, tmp_path: Path, kind: Callable[[Path], Any]) -> None:
    where = tmp_path / "dst"
    destination = kind(where) if kind in (str, os.fsencode, Path) else where
    report = pcopy.copy(kind(source), destination, jobs=1)
    assert isinstance(report, pcopy.Report)
    assert report.ok
    assert read_tree(where) == read_tree(source)


def test_names_that_are_not_utf_8_are_taken_as_bytes_and_as_text(tmp_path: Path) -> None:
    name = b"\xff\xfe \n"
    make_tree(tmp_path / "a", dict[str | bytes, object]({name: "text"}))
    first = os.fsencode(tmp_path / "a") + b"/" + name
    pcopy.copy(first, os.fsencode(tmp_path / "b") + name)
    pcopy.copy(os.fsdecode(os.fsencode(tmp_path / "b") + name), os.fsdecode(os.fsencode(tmp_path / "c") + name))
    assert Path(os.fsdecode(os.fsencode(tmp_path / "c") + name)).read_text() == "text"


# What is the command line's own: how a report looks to a person, and the choice of the function to call.
OF_THE_COMMAND = {"progress", "quiet", "as_json", "check", "compare", "chart", "version", "help"}
OF_COMPARE = {"against", "rounds"}
SAID_OTHERWISE = {
    "no_preserve": "preserve",
    "exclude": "filters",
    "include": "filters",
    "exclude_from": "filters",
    "null": "files_from",
    "log": "observer",
    "metrics": "observer",
}


def test_every_option_is_a_keyword() -> None:
    keywords = inspect.signature(pcopy.copy).parameters
    of_compare = inspect.signature(pcopy.compare).parameters
    options = {one.name for one in main.params if one.param_type_name == "option"}
    assert OF_THE_COMMAND - {"help"} | OF_COMPARE <= {name for name in options if name}
    for name in options - OF_THE_COMMAND:
        assert name
        where = of_compare if name in OF_COMPARE else keywords
        assert SAID_OTHERWISE.get(name, name) in where, name


def test_the_keywords_have_the_defaults_of_the_options() -> None:
    keywords = inspect.signature(pcopy.copy).parameters
    given = main.make_context("pcopy", ["source", "destination"]).params
    shared = given.keys() & keywords.keys() - {"preserve"}
    assert len(shared) > 5
    assert {name: given[name] for name in shared} == {name: keywords[name].default for name in shared}
    assert given["preserve"] == keywords["preserve"].default


BAD: list[tuple[dict[str, Any], str]] = [
    ({"sources": "missing"}, "missing"),
    ({"sources": []}, "source"),
    ({"destination": ""}, "destination"),
    ({"destination": "a\0b"}, "destination"),
    ({"destination": "below/" * 1000}, "below/: the path, or a name in it, is too long: choose a shorter one"),
    ({"destination": "n" * 256}, "the path, or a name in it, is too long: choose a shorter one"),
    ({"destination": "n" * 256 + "/below"}, "the path, or a name in it, is too long: choose a shorter one"),
    ({"destination": "src/below"}, "the destination lies in the source"),
    ({"destination": "src"}, "same directory"),
    ({"destination": "no/such/parent"}, "mkdir -p"),
    ({"sources": ["src", "other/src"]}, "both"),
    ({"jobs": 0}, "jobs"),
    ({"jobs": 1025}, "jobs"),
    ({"jobs": True}, "jobs True"),
    ({"jobs": 2.0}, "jobs"),
    ({"observer": "x"}, "pcopy.Observer"),
    ({"observer": pcopy.Observer}, "pcopy.Observer"),
    ({"stop": 15}, "pcopy.Stop"),
    ({"expected": 5}, "pcopy.Report"),
    ({"preserve": ["mode", "colour"]}, "preserve 'colour': must be among all, links, mode, owner, times, xattr"),
    ({"preserve": ""}, "preserve '': must be among all"),
    ({"preserve": [5, "x"]}, "preserve 'x', 5: must be among all"),
    ({"preserve": None}, "preserve None: must be among all"),
    ({"preserve": 5}, "preserve 5: must be among all"),
    ({"preserve": [["mode"]]}, "must be among all"),
    ({"sources": None}, "source None: must be a path"),
    ({"sources": 5}, "source 5: must be a path"),
    ({"sources": ["src", None]}, "source None: must be a path"),
    ({"destination": None}, "destination None: must be a path"),
    ({"destination": ["dst"]}, "must be a path"),
    ({"overwrite": "sometimes"}, "sometimes"),
    ({"reflink": "perhaps"}, "perhaps"),
    ({"sparse": "perhaps"}, "perhaps"),
    ({"start_method": "teleport"}, "teleport"),
    ({"manifest": 5}, "manifest 5: must be a path"),
    ({"files_from": ["f", 5]}, "files_from 5: must be a path"),
    ({"files_from": 5}, "files_from 5: must be a path"),
    ({"sources": "a\0b"}, "cannot be the name of a file"),
    ({"link_dest": "a\0b"}, "link_dest .* cannot be the name of a file"),
    ({"filters": 5}, "filters 5: must be a list"),
    ({"filters": None}, "filters None: must be a list"),
    ({"filters": b"*.o"}, "must be a list"),
    ({"filters": ["*.o", 5]}, "must be a list"),
    ({"hash": "nonsense"}, "nonsense"),
    ({"reflink": "always", "sparse": "always"}, "sparse"),
]


@pytest.mark.parametrize(
    "wrong, word", BAD, ids=[" ".join(f"{name}={value}"[:40] for name, value in one.items()) for one, _ in BAD]
)
def test_bad_input_is_a_usage_error_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], word: str
) -> None:
    make_tree(tmp_path / "src", {"a": "text"})
    make_tree(tmp_path / "other" / "src", {"b": "text"})
    monkeypatch.chdir(tmp_path)
    before = read_tree(tmp_path)
    given = {"sources": "src", "destination": "dst", **wrong}
    with pytest.raises(pcopy.UsageError, match=word) as caught:
        pcopy.copy(given.pop("sources"), given.pop("destination"), **given)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, pcopy.PcopyError)
    assert "\n" not in str(caught.value)
    assert read_tree(tmp_path) == before


@pytest.mark.parametrize("what", ["source", "destination", "link_dest", "manifest", "files_from"])
def test_a_text_that_can_be_no_name_is_a_usage_error(tmp_path: Path, source: Path, what: str) -> None:
    """A lone surrogate that stands for no byte."""
    given: dict[str, Any] = {"source": source, "destination": tmp_path / "dst", what: "\ud800"}
    with pytest.raises(pcopy.UsageError, match=f"{what} .*: cannot be the name of a file"):
        pcopy.copy(given.pop("source"), given.pop("destination"), **given)
    assert not (tmp_path / "dst").exists()


def test_filters_may_come_from_an_iterator(tmp_path: Path) -> None:
    source, target = make_tree(tmp_path / "src", {"a.c": "text"}), make_tree(tmp_path / "dst", {"keep.o": "built"})
    assert pcopy.copy(source, target, jobs=1, delete=True, filters=iter(["*.o"])).deleted == 0
    assert sorted(os.listdir(target)) == ["a.c", "keep.o"]


@pytest.mark.parametrize("what", ["all", "all,mode", "mode, all", ["all"], ["mode", "all"]], ids=str)
def test_all_attributes_have_one_name_in_both_faces(source: Path, tmp_path: Path, what: Any) -> None:
    assert pcopy.copy(source, tmp_path / "dst", jobs=1, preserve=what).ok
    assert read_tree(tmp_path / "dst") == read_tree(source)
    if isinstance(what, str):
        for option in ("preserve", "no-preserve"):
            given = main.make_context("pcopy", [f"--{option}", what, "src", "dst"]).params
            assert given[option.replace("-", "_")] == ALL_ATTRIBUTES


def test_a_failure_is_in_the_report_and_raises_and_says_nothing(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_tree(tmp_path / "dst", {"l": Link("x")})
    (tmp_path / "dst" / "l").unlink()
    make_tree(tmp_path / "dst" / "l", {"full": "of something"})
    report = pcopy.copy(source, tmp_path / "dst", jobs=1)
    (failure,) = report.errors
    assert isinstance(failure, pcopy.Failure)
    assert failure.path == f"{source}/l"
    assert failure.errno
    assert not report.ok
    assert report.exit_status == 1
    assert capfd.readouterr() == ("", "")


# ---- what it leaves alone ----


def state_of_the_process() -> dict[str, object]:
    umask = os.umask(0o077)
    os.umask(umask)
    handles = {int(name): os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _open(int(name))}
    return {
        "umask": umask,
        "directory": os.getcwd(),
        "handlers": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "handles": handles,
        "threads": threading.active_count(),
        "environment": dict(os.environ),
    }


def _open(handle: int) -> bool:
    """Not the one that listed them."""
    try:
        os.fstat(handle)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("jobs, method", [(1, None), *((3, method) for method in METHODS)])
def test_the_process_is_as_it_was(
    source: Path, tmp_path: Path, jobs: int, method: Any, straight_to_the_pool: None, capfd: pytest.CaptureFixture[str]
) -> None:
    if method in ("forkserver", "spawn"):  # what multiprocessing starts once, for all that the process will ever do
        pcopy.copy(source, tmp_path / "first", jobs=jobs, start_method=method)
    before = state_of_the_process()
    assert pcopy.copy(source, tmp_path / "dst", jobs=jobs, start_method=method).ok
    assert state_of_the_process() == before
    assert not workers()
    assert capfd.readouterr() == ("", "")


# ---- where it can be called ----

WATCH = """
import os, sys, threading, time
import pcopy, pcopy.coordinator
pcopy.coordinator.FIRST = 0.0  # all by workers, however small the tree

class Watch(pcopy.Observer):
    seen = set()
    def progress(self, progress):
        for task in os.listdir("/proc/self/task"):
            for child in open(f"/proc/self/task/{task}/children").read().split():
                command = open(f"/proc/{child}/cmdline").read()
                kinds = [kind for kind in ("resource_tracker", "forkserver") if kind in command]
                forked = command == open("/proc/self/cmdline").read()
                self.seen.add("fork" if forked else kinds[0] if kinds else "spawn")

def thread_with_a_lock():
    lock, held = threading.Lock(), threading.Event()
    def hold():
        with lock:  # which a fork would hand on, held for ever
            held.set()
            time.sleep(1000)
    threading.Thread(target=hold, daemon=True).start()
    held.wait()
"""
COPY = """
report = pcopy.copy("src", "dst", jobs=2, observer=Watch())
print(int(report.exit_status), *sorted(Watch.seen - {"resource_tracker"}))
"""


def guarded(text: str) -> str:
    return "if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in text.strip().splitlines())


PROGRAMS = {
    "a script with threads": (WATCH + guarded("thread_with_a_lock()\n" + COPY), "0 forkserver"),
    "a script without a guard": (WATCH + COPY, "0 fork"),
    "a function in a script without a guard": (
        WATCH + "def work():\n" + guarded(COPY).partition("\n")[2] + "work()\n",
        "0 fork",
    ),
}
NOTEBOOKS = {
    "python -c": (["-c"], WATCH + COPY, "0 fork"),
    "python -c with threads": (["-c"], WATCH + "thread_with_a_lock()\n" + COPY, "0 forkserver"),
    "python -c and exec": (["-c"], f"import threading; exec({WATCH + 'thread_with_a_lock()' + COPY!r})", "0 forkserver"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_works_in(start: Start, source: Path, tmp_path: Path, name: str) -> None:
    text, expected = PROGRAMS[name]
    assert start(text).ended() == (0, f"{expected}\n", "")
    assert read_tree(tmp_path / "dst") == read_tree(source)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_works_where_there_is_no_file(source: Path, tmp_path: Path, name: str) -> None:
    """A notebook's __main__ has no file that a worker could import, and runs threads."""
    arguments, text, expected = NOTEBOOKS[name]
    script = Script([*arguments, text], tmp_path)
    try:
        assert script.ended() == (0, f"{expected}\n", "")
    finally:
        script.clean_up()
    assert read_tree(tmp_path / "dst") == read_tree(source)


@pytest.mark.parametrize("jobs", [1, 2])
def test_it_works_in_a_thread(source: Path, tmp_path: Path, jobs: int, straight_to_the_pool: None) -> None:
    reports: list[pcopy.Report] = []
    thread = threading.Thread(target=lambda: reports.append(pcopy.copy(source, tmp_path / "dst", jobs=jobs)))
    thread.start()
    thread.join(60)
    assert reports
    assert reports[0].ok
    assert read_tree(tmp_path / "dst") == read_tree(source)


BESIDE = (
    WATCH
    + """
import pickle, signal, socket
class Mine:
    pass
troubles = []
def pickles():  # another thread's work, which needs the main module
    while not done:
        try:
            pickle.loads(pickle.dumps(Mine()))
        except Exception as error:
            troubles.append(repr(error))
def report_mask():
    print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), flush=True)
if __name__ == "__main__":
    done = []
    thread = threading.Thread(target=pickles)
    thread.start()
    report = pcopy.copy("src", "dst", jobs=2, start_method=sys.argv[1])
    done.append(True)
    thread.join()
    print(int(report.exit_status), troubles[:1], flush=True)
    import multiprocessing
    child = multiprocessing.get_context(sys.argv[1]).Process(target=report_mask)
    child.start()
    child.join()
"""
)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_other_threads_and_processes_of_the_program_see_no_difference(
    start: Start, source: Path, tmp_path: Path, method: str
) -> None:
    """While workers are started, and in what the program starts afterwards, by the same server too."""
    assert start(BESIDE, method).ended() == (0, "0 []\n[]\n", "")
    assert read_tree(tmp_path / "dst") == read_tree(source)


LATE = (
    WATCH
    + """
class Waits(pcopy.Observer):
    def progress(self, progress):
        if sys.argv[1] == "in the middle":
            begun.set()
            threading.main_thread().join()
begun = threading.Event()
def go():
    report = pcopy.copy("src", "dst", jobs=2, observer=Waits())
    print(int(report.exit_status), report.files, report.engine, report.warnings, flush=True)
def later():
    threading.main_thread().join()
    go()
if sys.argv[1] == "atexit":
    import atexit
    atexit.register(go)
else:
    threading.Thread(target=go if sys.argv[1] == "in the middle" else later).start()
    if sys.argv[1] == "in the middle":
        begun.wait()
"""
)


@pytest.mark.parametrize("when", ["before", "in the middle", "atexit"])
def test_a_program_that_has_come_to_its_end_still_gets_its_copy(start: Start, source: Path, tmp_path: Path, when: str) -> None:
    """No process can be started any more then, and none is: a script that only starts threads has come to it at once."""
    make_tree(source / "more", many_files(5, 200))
    alone = ["the program's main thread has ended, after which no process can be started: this one copied alone"]
    expected = "pool []" if when == "in the middle" else f"serial {alone}"
    assert start(LATE, when).ended() == (0, f"0 1300 {expected}\n", "")
    assert read_tree(tmp_path / "dst") == read_tree(source)


FULL = (
    WATCH
    + """
os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
print("what nobody can take")
report = pcopy.copy("src", "dst", jobs=2, start_method=sys.argv[1])
sys.stderr.write(f"{report.exit_status} {report.files} {report.warnings}\\n")
os._exit(0)
"""
)


@pytest.mark.parametrize("method", METHODS)
def test_output_of_the_program_that_cannot_be_written_is_its_own_business(
    start: Start, source: Path, tmp_path: Path, method: str
) -> None:
    """Before it starts a process, multiprocessing flushes the standard streams."""
    assert start(FULL, method).ended() == (0, "", "0 300 []\n")


WOKEN = (
    WATCH
    + """
import signal, socket
class Hurries(pcopy.Observer):
    def progress(self, progress):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGUSR1)
            hurried.append(child.pid)
import multiprocessing
hurried, (ours, wakes) = [], socket.socketpair()
wakes.setblocking(False)
ours.setblocking(False)
signal.set_wakeup_fd(wakes.fileno())  # as an event loop does
report = pcopy.copy("src", "dst", jobs=2, start_method="fork", observer=Hurries())
try:
    told = ours.recv(1)
except BlockingIOError:
    told = b""
print(int(report.exit_status), bool(hurried), told)
"""
)


def test_signals_to_workers_do_not_wake_an_event_loop_of_the_program(start: Start, source: Path, tmp_path: Path) -> None:
    make_tree(source / "more", many_files(5, 200))
    assert start(WOKEN).ended() == (0, "0 True b''\n", "")


HELD = (
    WATCH
    + """
import pcopy.engines
pcopy.engines.ONE_AT_A_TIME.setdefault(os.getpid(), threading.Lock()).acquire()  # by a thread that the child does not have
child = os.fork()
if not child:
    print(int(pcopy.copy("src", "dst", jobs=2).exit_status), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
)


def test_a_child_that_was_forked_while_workers_are_started_copies(start: Start, source: Path, tmp_path: Path) -> None:
    assert start(HELD).ended() == (0, "0\n", "")
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_another_thread_may_be_importing_multiprocessing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is among the modules, and has nothing in it yet."""
    monkeypatch.setattr("pcopy.coordinator.FIRST", 60.0)  # no pool is needed, however slow the machine is
    monkeypatch.setitem(sys.modules, "multiprocessing", types.ModuleType("multiprocessing"))
    assert pcopy.copy(source, tmp_path / "dst", jobs=1).ok
    assert pcopy.copy(source, tmp_path / "dst").ok  # -j auto, which asks whether it may start processes


def test_every_observer_hears_of_the_end(source: Path, tmp_path: Path) -> None:
    """Also if one that hears of it before raises something."""

    class Raising(pcopy.Observer):
        def finished(self, report: pcopy.Report) -> None:
            raise Trouble

    log = tmp_path / "log"
    with pytest.raises(Trouble):
        pcopy.copy(source, tmp_path / "dst", jobs=1, observer=[pcopy.Log(log), Raising()])
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()][-1] == "finished"


def test_a_run_that_ends_by_an_exception_says_so_in_its_log(tmp_path: Path) -> None:
    """Whichever call of an observer raises it, and although that one raises again at the end."""

    class Raising(pcopy.Observer):
        def failure(self, failure: pcopy.Failure) -> None:
            raise Trouble("no more")

        def event(self, event: pcopy.Event) -> None:
            raise Trouble("no more")

    make_tree(tmp_path / "failing", {"f": Dir({"x": b""})})  # stays in the way of a file
    for name, verbose in (("dst", True), ("failing", False)):
        log, metrics = tmp_path / f"log of {name}", tmp_path / f"metrics of {name}"
        observers = [Raising(), pcopy.Log(log), pcopy.Metrics(metrics)]
        with pytest.raises(Trouble):
            pcopy.copy(
                make_tree(tmp_path / f"to {name}", {"f": b"1"}), tmp_path / name, jobs=1, observer=observers, verbose=verbose
            )
        last = json.loads(log.read_text().splitlines()[-1])
        assert last["event"] == "finished"
        assert [one["reason"] for one in last["report"]["errors"]][-1] == "the run was ended by Trouble: no more"
        assert "pcopy_exit_status" in metrics.read_text()


def test_a_run_that_is_cut_short_waits_for_no_storage(slow: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr("pcopy.api.make_lasting", lambda handle, path: synced.append(path))
    stop = pcopy.Stop()

    class Stops(pcopy.Observer):
        def progress(self, progress: pcopy.Progress) -> None:
            stop.signal = signal.SIGTERM

    report = pcopy.copy(slow, target, fsync=True, jobs=1, observer=Stops(), stop=stop)
    assert (report.exit_status, synced) == (128 + signal.SIGTERM, [])
    assert pcopy.copy(slow, target, fsync=True, jobs=1).ok
    assert synced == [str(target)]


def test_a_log_has_what_went_wrong_with_what_was_named_after_it(source: Path, tmp_path: Path) -> None:
    class Removes(pcopy.Observer):
        def progress(self, progress: pcopy.Progress) -> None:
            shutil.rmtree(tmp_path / "place", ignore_errors=True)

    (tmp_path / "place").mkdir()
    observers = [Removes(), pcopy.Log(tmp_path / "log"), pcopy.Metrics(tmp_path / "place/metrics")]
    report = pcopy.copy(source, tmp_path / "dst", jobs=1, observer=observers)
    last = json.loads((tmp_path / "log").read_text().splitlines()[-1])["report"]
    assert [one["operation"] for one in last["errors"]] == [one.operation for one in report.errors] == ["write the metrics"]
    with pytest.raises(pcopy.UsageError, match="must be a pcopy"):
        pcopy.copy(source, tmp_path / "dst", observer=[None])  # type: ignore[list-item]


def test_who_refuses_a_run_leaves_no_line_in_the_log_of_another(source: Path, tmp_path: Path) -> None:
    handles = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(pcopy.UsageError, match="metrics"):
            pcopy.copy(source, tmp_path / "dst", observer=[pcopy.Log(tmp_path / "log"), pcopy.Metrics(tmp_path / "no/metrics")])
    assert not (tmp_path / "log").exists()
    assert len(os.listdir("/proc/self/fd")) == handles


IN_A_POOL = """
import json, multiprocessing, sys
import pcopy

def work(destination):
    report = pcopy.copy("src", destination, jobs=2)
    return [int(report.exit_status), report.engine, report.jobs, report.warnings]

if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        print(json.dumps(pool.map(work, ["dst"])))
"""


@pytest.mark.parametrize("method", METHODS)
def test_in_a_process_that_may_start_no_others_it_copies_alone_and_says_so(
    start: Start, source: Path, tmp_path: Path, method: str
) -> None:
    """Such as a worker of multiprocessing.Pool, which is daemonic."""
    make_tree(source / "more", many_files(5, 200))  # more than a first slice does
    status, out, err = start(IN_A_POOL, method).ended()
    assert (status, err) == (0, "")
    ((exit_status, engine, jobs, warnings),) = json.loads(out)
    assert (exit_status, engine, jobs) == (0, "serial", 1)
    assert [warning for warning in warnings if "may not start others" in warning] == warnings != []
    assert read_tree(tmp_path / "dst") == read_tree(source)


# ---- how it ends early ----

INTERRUPTED = """
import sys
import pcopy
if __name__ == "__main__":
    jobs, method, source, destination = sys.argv[1:]
    try:
        pcopy.copy(source, destination, jobs=int(jobs), start_method=method, sparse="never")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize("to_all", [False, True], ids=["to the program", "to its group"])
@pytest.mark.parametrize("jobs, method", [(1, "fork"), *((3, method) for method in METHODS)])
def test_a_keyboard_interrupt_goes_through_and_leaves_only_whole_files(
    start: Start, slow: Path, target: Path, jobs: int, method: str, to_all: bool
) -> None:
    script = start(INTERRUPTED, jobs, method, slow, target)
    assert wait_until(lambda: target.is_dir() and temporary_names(target) and (jobs == 1 or busy(script)), 60)
    (os.killpg if to_all else os.kill)(script.process.pid, signal.SIGINT)
    assert script.process.stdout
    assert script.process.stdout.readline() == "interrupted\n"
    assert wait_until(lambda: not workers(script.process.pid), 2)
    assert temporary_names(target) == []
    assert half_files(slow, target) == []
    assert script.ended() == (0, "", "")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("refused", [False, True], ids=["copied", "refused"])
def test_a_keyboard_interrupt_does_not_keep_the_workers_from_being_closed(
    source: Path, tmp_path: Path, method: Any, refused: bool, straight_to_the_pool: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes in the moment in which they are about to be, also where they had only to count what is not to be deleted."""
    dst = make_tree(tmp_path / "dst", many_files(6, 50) if refused else {})
    first = make_tree(tmp_path / "other", {"f": b"1"}) if refused else source
    limited: dict[str, Any] = {"delete": True, "max_delete": 1} if refused else {}
    close = engines.close

    def interrupted(executor: Any) -> None:
        monkeypatch.setattr(engines, "close", close)
        os.kill(os.getpid(), signal.SIGINT)
        close(executor)

    monkeypatch.setattr(engines, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pcopy.copy(first, dst, jobs=2, start_method=method, **limited)
    assert not workers()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert pcopy.copy(source, dst, jobs=2, start_method=method).ok  # nobody has it locked


def test_a_second_ctrl_c_is_raised_at_once() -> None:
    stop, reached = pcopy.Stop(), []
    with pytest.raises(KeyboardInterrupt), part.stopped_by_ctrl_c(stop):
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(stop.signal)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(0)
    assert reached == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Trouble(Exception):
    """Of the observer's own."""


class Raises(pcopy.Observer):
    def __init__(self, when: int, always: bool) -> None:
        self.when, self.always = when, always
        self.calls = 0

    def progress(self, progress: pcopy.Progress) -> None:
        self.calls += 1
        if self.calls == self.when or (self.always and self.calls > self.when):
            raise Trouble


@pytest.fixture(params=[(1, None), *((3, method) for method in METHODS)], ids=["serial", *METHODS])
def how(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    jobs, method = request.param
    yield {"jobs": jobs, "start_method": method}
    assert not workers()


@pytest.mark.parametrize("when", [1, 3])
@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
def test_an_observer_that_raises_ends_the_run(slow: Path, target: Path, how: dict[str, Any], when: int, always: bool) -> None:
    with pytest.raises(Trouble):
        pcopy.copy(slow, target, sparse="never", observer=Raises(when, always), **how)
    assert not workers()
    assert temporary_names(target) == []
    assert half_files(slow, target) == []


@pytest.mark.parametrize("error", [OSError, BrokenPipeError, Trouble])
def test_what_an_observer_raises_is_never_taken_for_the_destinations(tmp_path: Path, error: type[Exception]) -> None:
    source, dst = make_tree(tmp_path / "src", {"f": b"1"}), make_tree(tmp_path / "dst", many_files(1, 9))
    told = []

    class Fails(pcopy.Observer):
        def failure(self, failure: pcopy.Failure) -> None:
            told.append(failure.operation)
            raise error

    with pytest.raises(error):
        pcopy.copy(source, dst, delete=True, max_delete=2, observer=Fails())
    assert told == ["delete"]


def test_a_stop_set_by_another_thread_stops_the_run(slow: Path, target: Path, how: dict[str, Any]) -> None:
    stop, started = pcopy.Stop(), threading.Event()

    class Starts(pcopy.Observer):
        def progress(self, progress: pcopy.Progress) -> None:
            started.set()
            thread.join(60)

    def set_it() -> None:
        if started.wait(60):
            stop.signal = signal.SIGTERM

    thread = threading.Thread(target=set_it)
    thread.start()
    report = pcopy.copy(slow, target, sparse="never", observer=Starts(), stop=stop, **how)
    assert report.signal == signal.SIGTERM
    assert report.exit_status == 128 + signal.SIGTERM
    assert not report.ok
    assert report.files <= 200  # without the large ones
    assert temporary_names(target) == []
    assert half_files(slow, target) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_an_observer_raises_in_the_midst_is_told_as_the_end_of_the_run(tmp_path: Path, jobs: int) -> None:
    """The log says why, and the caller's stop, which nobody has set, is as it was."""
    source, stop = make_tree(tmp_path / "src", many_files(60, 100)), pcopy.Stop()

    class Bad(pcopy.Observer):
        def progress(self, progress: pcopy.Progress) -> None:
            if progress.done > 500:
                raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        pcopy.copy(source, tmp_path / "dst", jobs=jobs, observer=[Bad(), pcopy.Log(tmp_path / "log")], stop=stop)
    report = json.loads((tmp_path / "log").read_text().splitlines()[-1])["report"]
    assert (report["exit_status"], [one["reason"] for one in report["errors"]], stop.signal) == (
        3,
        ["the run was ended by ValueError: mine"],
        0,
    )


def test_an_observer_may_be_an_empty_list(source: Path, tmp_path: Path) -> None:
    class Events(list[pcopy.Event], pcopy.Observer):
        def event(self, event: pcopy.Event) -> None:
            self.append(event)

    events = Events()
    pcopy.copy(source, tmp_path / "dst", jobs=1, verbose=True, observer=events)
    assert len(events) > 300


def test_what_fails_before_a_directory_is_tried_again_fails_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir({name: Dir() for name in ("one", "two", "three")})})
    make, calls = changes.make_directory, []

    def fails(name: str, parent: int, mode: int) -> None:
        if name in ("one", "two", "three"):
            calls.append(name)
            if name == calls[0]:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            if len(calls) == 2:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        make(name, parent, mode)

    monkeypatch.setattr(changes, "make_directory", fails)
    report = pcopy.copy(source, tmp_path / "dst", jobs=1)
    assert ([one.errno for one in report.errors], report.failed) == ([errno.ENAMETOOLONG], 1)


# ---- what the program does meanwhile ----


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_process_that_the_program_forks_keeps_no_lock(source: Path, tmp_path: Path, jobs: int) -> None:
    """A lock of flock(2) is held by all copies of the handle, in whatever process."""
    forked: list[int] = []

    class Forks(pcopy.Observer):
        def progress(self, progress: pcopy.Progress) -> None:
            if not forked:
                child = os.fork()
                if not child:
                    signal.pause()
                    os._exit(0)
                forked.append(child)

    try:
        assert pcopy.copy(source, tmp_path / "dst", jobs=jobs, observer=Forks()).ok
        again = pcopy.copy(source, tmp_path / "dst", jobs=1, delete=True)
        assert again.ok, again.errors
    finally:
        for child in forked:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


HANDLER = """
import os, signal, sys, threading
import pcopy
from multiprocessing import forkserver
from pcopy import coordinator

def leave(*_):
    sys.exit("left by the handler")

class Server(forkserver.ForkServer):
    def connect_to_new_process(self, fds):
        started = super().connect_to_new_process(fds)
        if sent := os.environ.pop("TO_BE_SENT", ""):
            os.kill(os.getpid(), int(sent))  # between the start of a worker and the note of it
        return started

if __name__ == "__main__":
    forkserver.ForkServer = Server
    coordinator.FIRST = 0.0
    signal.signal(signal.SIGTERM, leave)
    threading.Thread(target=signal.pause, daemon=True).start()  # who takes the signal, which the main thread has blocked
    pcopy.copy(sys.argv[1], sys.argv[2], jobs=3, start_method="forkserver")
"""


def test_a_handler_that_raises_while_workers_are_started_leaves_none_behind(start: Start, source: Path, tmp_path: Path) -> None:
    script = start(HANDLER, source, tmp_path / "dst", environment={"TO_BE_SENT": str(int(signal.SIGTERM))})
    assert script.ended() == (1, "", "left by the handler\n")
    assert wait_until(lambda: not script.others(), 10)


WITHOUT_CTYPES = """
import sys
sys.modules["_ctypes"] = None
import pcopy
source, target = sys.argv[1:]
for more in {}, {"atomic": True}, {"fsync": True}:
    report = pcopy.copy(source, target, jobs=1, overwrite="always", delete=True, **more)
    print(report.exit_status, report.files, report.errors)
"""


def test_python_may_lack_ctypes(start: Start, tmp_path: Path) -> None:
    """As where it was built without libffi. A large file gets its name by renameat2(2), which is called by way of it."""
    source = make_tree(tmp_path / "src", {"large": b"x" * (33 << 20), "d": Dir({"f": b"y"}), "e": b"z"})
    target = make_tree(tmp_path / "dst", {"d": b"a file", "e": Dir({"f": b"in the way"})})
    assert start(WITHOUT_CTYPES, source, target).ended() == (0, "0 3 []\n" * 3, "")
    assert read_tree(target) == read_tree(source)
