"""One process against many, and against other tools, on the same tree.

    for each round (the first warms up and does not count):
        for each contender, in an order that rotates:
            copy the tree into a fresh directory as a whole process ─▶ wall time ─▶ remove the copy

The figures that are told are medians, and ratios of runs of one round: what else the machine did then met both.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from pcopy.asked import Path, check_number, listed, processors, text_of, words_of
from pcopy.errors import UsageError
from pcopy.figures import ROUNDS, Comparison, Contender, order_of_round
from pcopy.places import absolute
from pcopy.sample import SAMPLE_ENTRIES, SAMPLE_SIZE, make_sample, measure

GRACE = 3.0  # seconds for a contender to end by itself
PEERS = {
    "cp": ("cp", "-a", "{source}", "{copy}"),
    "rsync": ("rsync", "-a", "{source}/", "{copy}/"),
    "rclone": ("rclone", "copy", "-q", "--config=", "--links", "--metadata", "--create-empty-src-dirs", "{source}", "{copy}"),
    "fpsync": ("fpsync", "-t", "{scratch}", "{source}/", "{copy}/"),
    "xcp": ("xcp", "-r", "{source}", "{copy}"),
    "fcp": ("fcp", "{source}", "{copy}"),
}


# ---- the runs -------------------------------------------------------------------------------------------------------


def compare(
    source: Path | None = None,
    destination: Path | None = None,
    *,
    jobs: int | Iterable[int] | None = None,
    against: str | Iterable[str] = (),
    rounds: int = ROUNDS,
    options: Sequence[str] = (),
    step: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Copy one tree with one process and with several, in turn, and measure.

    :param source: a directory; without it a sample tree is made
    :param destination: a directory in which the copies are made and removed; by default beside the source, or where temporary
        files go if that may not be written to: ``place`` in the result says which
    :param jobs: pools to try; by default as many as processors, and twice as many
    :param against: other tools to try: cp, rsync, rclone, fpsync, xcp, fcp
    :param rounds: rounds that count; one more warms up
    :param options: more arguments for each ``pcopy`` that runs
    :param step: called before each run with the contender's name, the number of the run, and how many there are
    :raises UsageError: no such source, nothing in it, not enough room, a tool that is not installed

    Leaves nothing behind, whatever exception ends it; for SIGTERM, a program has to have a handler that raises one.
    """
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
        raise UsageError(f"rounds {rounds!r}: must be a number, at least 1")
    options = words_of("options", options, "arguments for pcopy")
    contenders = [pcopy_with(count, options) for count in [1, *check_pools(jobs)]]
    contenders += [peer(str(name)) for name in dict.fromkeys([against] if isinstance(against, str) else listed(against))]
    with workplace(source, destination) as work:
        tree = os.path.join(work, "sample")
        if source is None:
            check_room(work, 2 * SAMPLE_ENTRIES, 2 * SAMPLE_SIZE)
            try:
                make_sample(tree)
            except OSError as error:
                reason = f"the sample tree cannot be written: {error.strerror or error}; name another DESTINATION"
                raise UsageError(f"{os.path.dirname(work)}: {reason}") from None
        else:
            tree = os.path.realpath(text_of("source", source))
        files, size, used, inodes = measure(tree, options)
        if not files:
            raise UsageError(f"{tree}: holds no files; a comparison needs a tree that takes a while to copy")
        check_room(work, inodes, used)
        comparison = Comparison(files, size, rounds, contenders, os.path.dirname(work))
        run_rounds(comparison, tree, work, step)
    return comparison


def check_pools(jobs: int | Iterable[int] | None) -> list[int]:
    """The numbers of processes to try beside the single one."""
    if jobs is None:
        jobs = (max(2, processors()), 2 * max(2, processors()))
    return sorted({check_number(count) for count in listed(jobs)} - {1})


def pcopy_with(jobs: int, options: Sequence[str]) -> Contender:
    command = (sys.executable, "-m", "pcopy", "-q", "--no-progress", *options, "-j", str(jobs), "{source}", "{copy}")
    return Contender(f"pcopy -j {jobs}", command, jobs)


def peer(name: str) -> Contender:
    if name not in PEERS:
        raise UsageError(f"against {name!r}: must be one of {', '.join(PEERS)}")
    if not shutil.which(PEERS[name][0]):
        raise UsageError(f"against {name!r}: is not installed")
    return Contender(name, PEERS[name])


def run_rounds(comparison: Comparison, tree: str, work: str, step: Callable[[str, int, int], None] | None) -> None:
    contenders, done = comparison.contenders, 0
    total = len(contenders) * (comparison.rounds + 1)
    for number in range(comparison.rounds + 1):
        for index in order_of_round(len(contenders), number):
            one = contenders[index]
            if step:
                step(one.name, done, total)
            done += 1
            if one.trouble:
                continue
            wall, one.trouble = run_once(one, tree, work)
            if one.trouble:
                one.seconds = []
            elif number:
                one.seconds.append(wall)


def run_once(one: Contender, tree: str, work: str) -> tuple[float, str]:
    """One copy by one contender: its wall time in seconds, and what went wrong."""
    copy, scratch = os.path.join(work, "copy"), os.path.join(work, "scratch")
    if os.path.lexists(copy):  # it would only be compared
        return 0.0, "not run: the copy before its own could not be removed"
    os.makedirs(scratch, exist_ok=True)
    names = {"{source}": tree, "{copy}": copy, "{scratch}": scratch, "{source}/": tree + "/", "{copy}/": copy + "/"}
    argv = [names.get(word, word) for word in one.command]
    started = time.perf_counter()
    process = None
    try:
        with undisturbed():
            # In a session of its own: Ctrl-C is for us to pass on. In an empty directory: python -m imports from where it is.
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                cwd=scratch, start_new_session=True, env=same_places() if one.jobs else None,
            )  # fmt: skip
        output, _ = process.communicate()
    except BaseException as error:
        if process:
            with undisturbed():
                end(process)
        elif isinstance(error, OSError):
            return 0.0, f"failed to start: {error.strerror}"
        raise
    wall = time.perf_counter() - started
    left = remove_tree(copy)
    if process.returncode:
        words = " ".join(output.decode(errors="replace").split())
        return wall, f"failed with status {process.returncode}: {words[:200]}"
    return wall, f"its copy cannot be removed: {left}" if left else ""


def same_places() -> dict[str, str]:
    """An environment in which Python imports what this one does, from wherever it runs: the very package that is running."""
    places = [place for place in sys.path if os.path.isabs(place)]
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places if home in places else [home, *places])}


def end(process: subprocess.Popen[bytes]) -> None:
    """End a contender and all that it has started: first politely, so that it cleans up."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# ---- the place ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def workplace(source: Path | None, destination: Path | None) -> Iterator[str]:
    """A fresh directory for the copies, removed at the end, on Ctrl-C and SIGTERM too."""
    base = tree = None
    if "" in (source, destination) or b"" in (source, destination):
        raise UsageError("'': is no path; a variable that is not set?")
    if source is not None:
        tree = os.path.realpath(absolute(text_of("source", source)))
        if not os.path.isdir(tree):
            missing = "the source does not exist; check the spelling"
            what = "is not a directory; a comparison copies a tree" if os.path.lexists(tree) else missing
            raise UsageError(f"{os.fsdecode(source)}: {what}")
        base = os.path.dirname(tree) if os.access(os.path.dirname(tree), os.W_OK) else None
    if destination is not None:
        base = absolute(text_of("destination", destination))
        if not os.path.isdir(base):
            raise UsageError(f"{os.fsdecode(destination)}: is not a directory; the copies are made in one that exists")
    base = base or tempfile.gettempdir()
    if tree and os.path.commonpath([tree, os.path.realpath(base)]) == tree:
        given = base if destination is None else os.fsdecode(destination)
        raise UsageError(f"{given}: the copies would lie in the source {tree}; give another DESTINATION")
    work = None
    try:
        with undisturbed():
            work = make_directory(base)
        yield work
    finally:
        if work:
            remove_tree(work)


def make_directory(base: str) -> str:
    try:
        return tempfile.mkdtemp(prefix="pcopy-compare-", dir=base)
    except OSError as error:
        raise UsageError(f"{base}: cannot make a directory in it: {error.strerror}; name another as DESTINATION") from None


def act_on(arrived: list[int]) -> None:
    for number in arrived[:1]:
        signal.raise_signal(number)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that arrive meanwhile are acted on afterwards. They are not blocked, which who is started would inherit."""
    arrived: list[int] = []
    with contextlib.ExitStack() as afterwards:  # does all of it, also if a signal strikes in the middle
        afterwards.callback(act_on, arrived)
        if threading.current_thread() is threading.main_thread():  # no other is disturbed
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    afterwards.callback(signal.signal, number, signal.getsignal(number))
                    signal.signal(number, lambda number, frame: arrived.append(number))
        yield


@undisturbed()  # if a signal's exception met the close() of a directory, rmtree would close it again, and raise EBADF instead
def remove_tree(path: str) -> str:
    """Remove a copy, with directories in it that may not be written to, or that lie too deep for recursion.

    Returns why it is still there, if it is.
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except (OSError, RecursionError):
        # In sessions of their own: Ctrl-C is not for them.
        subprocess.run(["chmod", "-R", "u+rwx", path], stderr=subprocess.DEVNULL, check=False, start_new_session=True)
        done = subprocess.run(["rm", "-rf", path], stderr=subprocess.PIPE, check=False, start_new_session=True)
        if done.returncode:
            return done.stderr.decode(errors="replace").partition("\n")[0]
    return ""


def check_room(work: str, entries: int, used: int) -> None:
    """One copy at a time has to fit, with a tenth to spare."""
    room = os.statvfs(work)
    free = room.f_bavail * room.f_frsize
    needed, inodes = used * 11 // 10, entries * 11 // 10
    if needed > free:
        megabytes = f"{needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free"
        raise UsageError(f"{os.path.dirname(work)}: {megabytes}; name another DESTINATION")
    if room.f_files and inodes > room.f_favail:
        counts = f"{inodes:,} inodes are needed, {room.f_favail:,} are free"
        raise UsageError(f"{os.path.dirname(work)}: {counts}; name another DESTINATION")
