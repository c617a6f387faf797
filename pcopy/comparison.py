"""One process against many, and against other tools, on the same tree.

    for each round (the first warms up and does not count):
        for each contender, in an order that rotates:
            copy the tree into a fresh directory as a whole process ─▶ wall time ─▶ remove the copy

The figures that are told are medians, and ratios of runs of one round: what else the machine did then met both.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pcopy.asked import Path, absolute, check_number, listed, processors, text_of
from pcopy.errors import ExitStatus, UsageError

Inode = tuple[int, int]  # (st_dev, st_ino)
# Ratios nearer to 1 are taken for noise, as are those of which not all rounds agree on the side.
NOISE = 0.05
ROUNDS = 5
ENOUGH = 4  # rounds: with three, noise alone falls on one side in one of four comparisons
GRACE = 3.0  # seconds for a contender to end by itself
# The sample tree: enough for about a second of one process.
SAMPLE_FILES, SAMPLE_DIRECTORIES, SAMPLE_FILE = 4000, 250, 6000
SAMPLE_LARGE, SAMPLE_LARGE_FILE = 2, 64 << 20
# What it takes at most, with blocks of 4 KiB.
SAMPLE_SIZE = SAMPLE_FILES * (SAMPLE_FILE + 4096) + SAMPLE_DIRECTORIES * 4096 + SAMPLE_LARGE * SAMPLE_LARGE_FILE
PEERS = {
    "cp": ("cp", "-a", "{source}", "{copy}"),
    "rsync": ("rsync", "-a", "{source}/", "{copy}/"),
    "rclone": (
        "rclone",
        "copy",
        "-q",
        "--config",
        "",
        "--links",
        "--metadata",
        "--create-empty-src-dirs",
        "{source}",
        "{copy}",
    ),
    "fpsync": ("fpsync", "-t", "{scratch}", "{source}/", "{copy}/"),
    "xcp": ("xcp", "-r", "{source}", "{copy}"),
    "fcp": ("fcp", "{source}", "{copy}"),
}


@dataclass
class Contender:
    """Something that copies a tree, and the wall times in seconds of its counted rounds."""

    name: str
    command: tuple[str, ...]
    jobs: int | None = None  # None: not pcopy
    seconds: list[float] = field(default_factory=list)
    trouble: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class Comparison:
    """What a comparison found. The first contender is the single process."""

    files: int
    bytes: int
    rounds: int
    contenders: list[Contender]

    @property
    def base(self) -> Contender:
        return self.contenders[0]

    def speed_up(self, one: Contender) -> float:
        """How many times as fast as the single process, as the median over the rounds."""
        return statistics.median(ratios(self.base.seconds, one.seconds))

    @property
    def best_jobs(self) -> int | None:
        """The fewest processes that are as fast as any, within the noise; None if that cannot be told."""
        if self.untold:
            return None
        return best_jobs({one.jobs: one.seconds for one in self.contenders if one.jobs and one.seconds})

    @property
    def pools(self) -> list[Contender]:
        """Of more than one process; those that could be measured."""
        return [one for one in self.contenders if one.jobs and one.jobs > 1 and one.seconds]

    @property
    def untold(self) -> str:
        """Why nothing can be told from this, if that is so."""
        if not self.base.seconds:
            return "the single process failed: nothing to compare with"
        if any(one.jobs and one.jobs > 1 for one in self.contenders) and not self.pools:
            return "only one process was measured, because no pool came to its end: nothing to compare with"
        if not self.pools:
            return "only one process was measured: nothing to compare with; list more, such as -j 2,4"
        if self.rounds < ENOUGH:
            return f"too few rounds to tell a difference from noise: give --rounds {ROUNDS}"
        return ""

    @property
    def advice(self) -> str:
        if self.untold:
            return self.untold
        best, pools = self.best_jobs, self.pools
        if best == 1 and not any(differ(self.base.seconds, one.seconds) for one in pools):
            return "no difference beyond the noise: -j 1 does as well here"
        if best == 1:
            return "choose -j 1: more processes are slower here"
        chosen = next(one for one in pools if one.jobs == best)
        return f"choose -j {best}: {self.speed_up(chosen):.2f} times as fast as one process here"

    @property
    def exit_status(self) -> int:
        return ExitStatus.FAILED if any(one.trouble for one in self.contenders) else ExitStatus.OK


# ---- statistics: pure functions over wall times of the same rounds --------------------------------------------------


def ratios(base: Sequence[float], other: Sequence[float]) -> list[float]:
    """How many times as fast the other was, round by round."""
    return [one / two for one, two in zip(base, other, strict=True)]


def differ(base: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two differ beyond the noise: by more than 5 % in the median, and every round on the same side.

    With five rounds and no difference, all fall on one side by chance in one of 16 comparisons (sign test). With fewer
    than four rounds nobody can tell, and nothing is called a difference.
    """
    both = ratios(base, other)
    return len(both) >= ENOUGH and abs(statistics.median(both) - 1) > NOISE and (min(both) > 1 or max(both) < 1)


def best_jobs(seconds: dict[int | None, list[float]]) -> int:
    """The fewest jobs that no others beat beyond the noise."""
    by_jobs = sorted((jobs, walls) for jobs, walls in seconds.items() if jobs)
    return next((jobs for jobs, walls in by_jobs if not any(beats(other, walls) for _, other in by_jobs)), 1)


def beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is faster than the other beyond the noise. Never goes in a circle: it is faster in every round."""
    return differ(other, one) and min(ratios(other, one)) > 1


def order_of_round(count: int, number: int) -> list[int]:
    """Each contender runs first in its turn, and forwards and backwards alternate, so no neighbour is always the same."""
    step = 1 if number % 2 else -1
    return [(number + step * at) % count for at in range(count)]


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
    :param destination: a directory in which the copies are made and removed; by default beside the source
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
    contenders = [pcopy_with(count, options) for count in [1, *check_pools(jobs)]]
    contenders += [peer(str(name)) for name in dict.fromkeys([against] if isinstance(against, str) else listed(against))]
    with workplace(source, destination) as work:
        tree = os.path.join(work, "sample")
        if source is None:
            check_room(work, 2 * (SAMPLE_FILES + SAMPLE_DIRECTORIES), 2 * SAMPLE_SIZE)
            try:
                make_sample(tree)
            except OSError as error:
                reason = f"the sample tree cannot be written: {error.strerror or error}; name another DESTINATION"
                raise UsageError(f"{os.path.dirname(work)}: {reason}") from None
        else:
            tree = os.path.realpath(os.fsdecode(source))
        files, size, used, inodes = measure(tree, options)
        if not files:
            raise UsageError(f"{tree}: holds no files; a comparison needs a tree that takes a while to copy")
        check_room(work, inodes, used)
        comparison = Comparison(files, size, rounds, contenders)
        run_rounds(comparison, tree, work, step)
    return comparison


def check_pools(jobs: int | Iterable[int] | None) -> list[int]:
    """The numbers of processes to try beside the single one."""
    if jobs is None:
        jobs = (max(2, processors()), 2 * max(2, processors()))
    return sorted({check_number(count) for count in (jobs if isinstance(jobs, Iterable) else [jobs])} - {1})


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
    with undisturbed():
        remove_tree(copy)
    if process.returncode:
        words = " ".join(output.decode(errors="replace").split())
        return wall, f"failed with status {process.returncode}: {words[:200]}"
    return wall, ""


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
            with undisturbed():
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


def remove_tree(path: str) -> None:
    """Remove a copy, with directories in it that may not be written to, or that lie too deep for recursion.

    Undisturbed: rmtree closes a directory once more if a signal's exception meets its close(), and raises EBADF instead of it.
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except (OSError, RecursionError):
        # In sessions of their own: Ctrl-C is not for them.
        subprocess.run(["chmod", "-R", "u+rwx", path], stderr=subprocess.DEVNULL, check=False, start_new_session=True)
        subprocess.run(["rm", "-rf", path], check=False, start_new_session=True)


def make_sample(tree: str) -> None:
    """Many small files and a few large ones, the same each time."""
    rng = random.Random(1)
    block = rng.randbytes(1 << 20)
    os.makedirs(tree)
    directories = [tree]
    while len(directories) < SAMPLE_DIRECTORIES:
        directories.append(os.path.join(rng.choice(directories[-40:]), f"d{len(directories)}"))
        os.mkdir(directories[-1])
    for number in range(SAMPLE_FILES):
        with open(os.path.join(rng.choice(directories), f"f{number}"), "wb") as file:
            file.write(block[: min(len(block), int(rng.expovariate(1 / SAMPLE_FILE)))])
    for number in range(SAMPLE_LARGE):
        with open(os.path.join(tree, f"large{number}"), "wb") as file:
            for _ in range(SAMPLE_LARGE_FILE // len(block)):
                file.write(block)


def measure(tree: str, options: Sequence[str] = ()) -> tuple[int, int, int, int]:
    """Files, their bytes, the bytes that their copies take, and the entries, by what the options of ``pcopy`` leave out or add.

    By directory handles, for trees deeper than a path is long, and without recursion.
    """
    found = Measure(options)
    stack: list[tuple[int | None, list[str], tuple[Inode, ...]]] = [(None, [tree], ())]
    while stack:
        parent, names, above = stack[-1]
        name = names.pop()
        handle = None
        with contextlib.suppress(OSError):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if found.follow else os.O_NOFOLLOW)
            handle = os.open(name, flags, dir_fd=parent)
        if not names:  # closed as soon as it can be: a chain of directories takes two handles, however long
            stack.pop()
            if parent is not None:
                os.close(parent)
        if handle is None:
            continue
        here = inode_of(os.fstat(handle))
        below = [] if here in above or (above and found.stays and here[0] != above[0][0]) else found.look_into(handle)
        if below:
            stack.append((handle, below, (*above, here) if found.follow else above or (here,)))
        else:
            os.close(handle)
    return found.files, found.bytes, found.used, found.entries


class Measure:
    """What is found in a tree. ``follow``: links; ``stays`` on one file system; ``fills`` holes; keeps ``links``."""

    def __init__(self, options: Sequence[str]) -> None:
        self.follow = not {"-L", "--dereference"}.isdisjoint(options)
        self.stays = not {"-x", "--one-file-system"}.isdisjoint(options)
        self.fills, self.links = "never" in chosen(options, "--sparse"), keeps_links(options)
        self.files = self.bytes = self.used = self.entries = 0
        self.seen: set[Inode] = set()  # those that have several names

    def look_into(self, handle: int) -> list[str]:
        """Count what is in a directory. Returns the names of those in it."""
        below = []
        with contextlib.suppress(OSError), os.scandir(handle) as found:
            for one in found:
                with contextlib.suppress(OSError):  # a link to nothing
                    if one.is_dir(follow_symlinks=self.follow):
                        below.append(one.name)
                    self.count(one.stat(follow_symlinks=self.follow))
        return below

    def count(self, state: os.stat_result) -> None:
        self.entries += 1
        regular = not stat.S_ISDIR(state.st_mode)
        self.files += regular
        if regular and self.links and state.st_nlink > 1:  # the contents once: the other names are links
            if inode_of(state) in self.seen:
                return
            self.seen.add(inode_of(state))
        self.bytes += state.st_size if regular else 0
        self.used += max(state.st_blocks * 512, state.st_size if self.fills and regular else 0)


def inode_of(state: os.stat_result) -> Inode:
    return state.st_dev, state.st_ino


def chosen(options: Sequence[str], name: str) -> set[str]:
    """What is given to an option of ``pcopy``, a list of words."""
    given = [one.partition("=")[2] for one in options if one.startswith(f"{name}=")]
    given += [value for one, value in itertools.pairwise(options) if one == name]
    return {word for value in given for word in value.split(",")}


def keeps_links(options: Sequence[str]) -> bool:
    kept = chosen(options, "--preserve") or {"all"}
    return bool(kept & {"all", "links"}) and not chosen(options, "--no-preserve") & {"all", "links"}


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
