"""Whatever is in a tree, whatever is edited in it, and whoever is killed meanwhile: in the end the copy is equal.

Each copy runs in a forked process with a pool of its own, so that a kill is real and leaves nothing here. The n-th call by
which a worker or the coordinator changes something is where it dies, or it dies after some time. The comparer shares no code
with pcopy. ``HYPOTHESIS_PROFILE=soak`` tries thousands of trees; ``python -m tests.test_properties SECONDS`` goes on for
so long, and tells how much of everything there was.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import pcopy
import pcopy.api  # before the fork, and so once for all
import pcopy.coordinator
from tests.comparer import differences

SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
ROOT = os.geteuid() == 0
WHEN = 1_400_000_000_000_000_001
HANG = 60  # seconds after which a copy of a small tree counts as hung
LARGE = 33 << 20  # bytes: such a file is copied in spans

pytestmark = [
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc"),
    pytest.mark.timeout(0 if SOAK else 120),
]

figures: Counter[str] = Counter()


def quick(examples: int) -> settings:
    """Few examples, unless a longer setting was asked for; to make a failing one small takes longer than a test may."""
    if SOAK:
        return settings.get_profile("soak")
    return settings(max_examples=examples, phases=[Phase.explicit, Phase.reuse, Phase.generate])


@pytest.fixture(scope="module", autouse=True)
def told(request: pytest.FixtureRequest) -> Iterator[None]:
    """The figures, at the end of a longer run."""
    yield
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if SOAK and reporter:
        reporter.write_line(f"\n{shown_figures()}")


def shown_figures() -> str:
    return ", ".join(f"{count:,} {what}" for what, count in sorted(figures.items()))


# ---- trees ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One entry to be made. ``link`` is taken modulo the number of those that it can mean."""

    kind: str
    mode: int = 0o644
    size: int = 0
    holes: bool = False
    mtime: int = WHEN
    xattr: bytes = b""
    owner: int = 0
    link: int = 0
    target: bytes = b"nowhere"
    below: tuple[tuple[bytes, Entry], ...] = ()


ODD = [
    b"\n", b"a\nb", b"\x1b[2J\x1b]0;x\x07", b"\xff\xfe", b"\x80", b"\x01\x7f", b" ", b"-rf", b"--", b"...", b"..a", b"\\", b"*",
    b"x" * 255, "\u00e9".encode() * 127, b"\xf0" * 255, b"\xed\xa0\x80", "\u202eabc".encode(), b"\t", b"\r", b'"', b"'",
    b".pcopy-foo", b".pcopy-", b".pcopy-0123abcd-0-0123456789abcdef", b".pcopy-0123abcd-1-fedcba9876543210",
]  # fmt: skip
names = st.one_of(
    st.sampled_from(ODD),
    st.binary(min_size=1, max_size=20).map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"_")).filter(
        lambda name: name not in (b".", b"..")
    ),
    st.sampled_from([b"a", b"b", b"c"]),
)  # fmt: skip
sizes = st.sampled_from([0, 1, 2, 511, 4095, 4096, 4097, 8192, 65_537, 262_144, 262_145])
times = st.one_of(st.integers(0, 2**33 * 10**9), st.sampled_from([0, 1, 10**9 - 1, WHEN, -1, -(10**9)]))
file_modes = st.sampled_from(
    [0o644, 0o600, 0o755, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777, *([0o000, 0o222] if ROOT else [0o444])]
)
directory_modes = st.sampled_from([0o755, 0o700, 0o1777, 0o2755, 0o555, *([0o000, 0o4000, 0o300] if ROOT else [0o500])])
owners = st.sampled_from([0, 0, 12, 65534]) if ROOT else st.just(0)
xattrs = st.one_of(st.just(b""), st.binary(max_size=40))
KINDS = ["file"] * 8 + ["holes", "link", "link", "hard", "hard", "fifo", "socket", "chain", *(["device"] if ROOT else [])]


@st.composite
def leaves(draw: st.DrawFn) -> Entry:
    kind = draw(st.sampled_from(KINDS))
    if kind == "chain":
        return Entry("chain", size=draw(st.sampled_from([2, 60, 300])), mtime=draw(times))
    target = draw(st.one_of(names, st.binary(min_size=1, max_size=300).map(lambda text: text.replace(b"\0", b"0"))))
    return Entry(
        kind, draw(file_modes), draw(sizes), kind == "holes", draw(times), draw(xattrs), draw(owners),
        draw(st.integers(0, 99)), target,
    )  # fmt: skip


def directories(entries: st.SearchStrategy[Entry], least: int = 0) -> st.SearchStrategy[Entry]:
    below = st.lists(st.tuples(names, entries), min_size=least, max_size=7, unique_by=lambda one: one[0]).map(tuple)
    return st.builds(Entry, st.just("directory"), directory_modes, mtime=times, xattr=xattrs, owner=owners, below=below)


trees = directories(st.recursive(leaves(), directories, max_leaves=25), least=3)


class Maker:
    """Makes entries with what is below them, on directory handles; remembers what hard links can be made to."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top, self.rng = top, random.Random(seed)
        self.firsts: list[tuple[int, bytes]] = []
        self.handles: list[int] = []

    def make(self, parent: int, name: bytes, entry: Entry) -> None:
        figures["entries"] += 1
        figures["hostile names"] += name in ODD or not name.isascii() or not name.decode().isprintable()
        if entry.kind == "hard":
            if self.firsts:
                directory, first = self.firsts[entry.link % len(self.firsts)]
                os.link(first, name, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)
            return
        if entry.kind == "chain":
            self.chain(parent, name, entry)
        elif entry.kind == "directory":
            os.mkdir(name, 0o700, dir_fd=parent)
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=parent)
            self.handles.append(handle)
            for other, one in entry.below:
                self.make(handle, other, one)
        else:
            self.leaf(parent, name, entry)
        self.dress(parent, name, entry)

    def leaf(self, parent: int, name: bytes, entry: Entry) -> None:
        if entry.kind in ("file", "holes"):
            handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent)
            if entry.holes:
                length = (3 << 20) + entry.size if entry.link else LARGE + entry.size
                os.truncate(handle, length)
                os.pwrite(handle, self.rng.randbytes(5000), self.rng.randrange(length))
            else:
                os.write(handle, self.rng.randbytes(entry.size))
            os.close(handle)
        elif entry.kind == "link":
            os.symlink(entry.target, name, dir_fd=parent)
        else:
            kind = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "device": stat.S_IFCHR}[entry.kind]
            os.mknod(name, kind | 0o600, os.makedev(1, 3) if entry.kind == "device" else 0, dir_fd=parent)
        self.firsts.append((parent, name))

    def chain(self, parent: int, name: bytes, entry: Entry) -> None:
        """Directories in directories, with paths longer than the kernel takes at once."""
        handle = os.dup(parent)
        for _ in range(entry.size):
            os.mkdir(name, dir_fd=handle)
            before, handle = handle, os.open(name, os.O_RDONLY, dir_fd=handle)
            os.close(before)
            name = b"n" * 30
        os.close(os.open(b"end", os.O_WRONLY | os.O_CREAT, dir_fd=handle))
        os.close(handle)

    def dress(self, parent: int, name: bytes, entry: Entry) -> None:
        place = f"/proc/self/fd/{parent}/{os.fsdecode(name)}"
        if entry.kind in ("file", "holes", "directory") and entry.xattr:
            with contextlib.suppress(OSError):  # none on this file system
                os.setxattr(place, "user.test", entry.xattr, follow_symlinks=False)
        if ROOT:
            os.chown(name, entry.owner, entry.owner, dir_fd=parent, follow_symlinks=False)
        if entry.kind not in ("link", "chain"):
            os.chmod(name, entry.mode, dir_fd=parent)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def close(self) -> None:
        for handle in self.handles:
            os.close(handle)


def make(top: Path, entry: Entry, seed: int) -> None:
    parent = os.open(top.parent, os.O_RDONLY)
    maker = Maker(top, seed)
    try:
        maker.make(parent, os.fsencode(top.name), entry)
    finally:
        maker.close()
        os.close(parent)


# ---- edits ----------------------------------------------------------------------------------------------------------

edits = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "remove", "rewrite", "same size", "touch", "chmod", "replace", "relink", "part", "xattr", "own"]
        ),
        st.integers(0, 999),
        st.integers(0, 999),
        st.one_of(leaves(), directories(leaves())).filter(lambda entry: entry.kind != "chain"),
        names,
    ),
    max_size=8,
)


class Editor:
    """Changes a tree as its owner would between two runs. A full directory gives way to nothing: that needs --delete."""

    def __init__(self, top: Path, copy: Path, seed: int) -> None:
        self.top, self.copy, self.seed, self.clock = os.fsencode(top), os.fsencode(copy), seed, 0

    def edit(self, what: str, one: int, two: int, entry: Entry, name: bytes) -> None:
        paths = [path for path in walk(self.top) if path != self.top]
        directories = [self.top, *(path for path in paths if is_directory(path))]
        files = [path for path in paths if stat.S_ISREG(os.lstat(path).st_mode)]
        figures["edits"] += 1
        if what == "add":
            self.place(os.path.join(directories[one % len(directories)], name), entry)
        elif what in ("remove", "replace") and paths:
            path = paths[one % len(paths)]
            if what == "remove" or not self.in_the_way(path):
                remove(path)
            if what == "replace":
                self.place(path, entry)
        elif what in ("rewrite", "same size", "touch") and files:
            path = files[one % len(files)]
            if what != "touch":
                size = os.lstat(path).st_size if what == "same size" else two * 100
                if size < 1 << 20:
                    write(path, random.Random(two).randbytes(size))
            self.tick(path)
        elif what == "relink" and len(files) > 1:
            first, path = files[one % len(files)], files[two % len(files)]
            if first != path:
                os.unlink(path)
                os.link(first, path)
                self.tick(path)  # two files can have had the same size and time
        elif what == "part" and files:
            path = files[one % len(files)]
            state = os.lstat(path)
            if state.st_size < 1 << 20:
                text = Path(os.fsdecode(path)).read_bytes()
                os.unlink(path)
                write(path, text)
                os.chmod(path, stat.S_IMODE(state.st_mode) & ~0o6000)
                self.tick(path)
        elif paths:
            self.attribute(what, paths[one % len(paths)], entry)

    def attribute(self, what: str, path: bytes, entry: Entry) -> None:
        state = os.lstat(path)
        if what == "chmod" and not stat.S_ISLNK(state.st_mode):
            os.chmod(path, entry.mode | (0o700 if stat.S_ISDIR(state.st_mode) else 0))
        elif what == "xattr" and (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
            with contextlib.suppress(OSError):
                os.setxattr(path, "user.test", entry.xattr) if entry.xattr else os.removexattr(path, "user.test")
        elif what == "own" and ROOT:
            os.chown(path, entry.owner, 34, follow_symlinks=False)

    def in_the_way(self, path: bytes) -> bool:
        copy = os.path.join(self.copy, os.path.relpath(path, self.top))
        return is_directory(copy) and bool(os.listdir(copy))

    def place(self, path: bytes, entry: Entry) -> None:
        """Make an entry where there is none, unless the copy has a full directory there."""
        if os.path.lexists(path) or (self.in_the_way(path) and entry.kind != "directory"):
            return
        parent = os.open(os.path.dirname(path), os.O_RDONLY)
        maker = Maker(Path(os.fsdecode(path)), self.seed)
        try:
            maker.make(parent, os.path.basename(path), entry)
        finally:
            maker.close()
            os.close(parent)
        if os.path.lexists(path):
            self.tick(path)

    def tick(self, path: bytes) -> None:
        """A time that nothing had before: what has the same size and the same time counts as the same."""
        self.clock += 1
        when = WHEN + 10**15 + self.clock * 3_000_000_001
        os.utime(path, ns=(when, when), follow_symlinks=False)


def walk(top: bytes) -> list[bytes]:
    """All paths that the kernel takes at once."""
    found = [top]
    for path in found:
        if is_directory(path) and len(path) < 3500:
            found += [os.path.join(path, name) for name in sorted(os.listdir(path))]
    return [path for path in found if len(path) < 3500]


def is_directory(path: bytes) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def remove(path: bytes) -> None:
    if is_directory(path):
        subprocess.run(["chmod", "-R", "u+rwx", "--", path], check=False) if not ROOT else None
        subprocess.run(["rm", "-rf", "--", path], check=True)
    else:
        os.unlink(path)


def write(path: bytes, text: bytes) -> None:
    with open(path, "wb") as file:
        file.write(text)


# ---- copies, and who is killed in them ------------------------------------------------------------------------------

CHANGES = frozenset({
    "open", "os.mkdir", "os.link", "os.symlink", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.chown", "os.utime",
    "os.setxattr", "os.removexattr", "os.truncate", "os.scandir", "os.listdir", "os.listxattr", "os.getxattr",
})  # fmt: skip


@dataclass(frozen=True)
class Kill:
    """Who dies at which call, or after how many milliseconds, and how many times."""

    who: str
    moment: int
    times: int
    by_clock: bool


kills = st.builds(
    Kill, st.sampled_from(["worker", "worker", "coordinator"]), st.integers(1, 120), st.integers(1, 2), st.booleans()
)


class Countdown:
    """An audit hook: it ends the process in which so many calls were made. In shared memory is how often it still may."""

    def __init__(self, kill: Kill, left: mmap.mmap) -> None:
        self.kill, self.left, self.coordinator = kill, left, os.getpid()
        self.process, self.calls = os.getpid(), 0

    def __call__(self, event: str, arguments: object) -> None:
        if event not in CHANGES:
            return
        process = os.getpid()
        if process != self.process:
            self.process, self.calls = process, 0
        self.calls += 1
        if (
            self.calls == self.kill.moment
            and self.left[0]
            and (process == self.coordinator) == (self.kill.who == "coordinator")
        ):
            self.left[0] = self.left[0] - 1
            os.kill(process, signal.SIGKILL)


def copied(source: Path, destination: Path, jobs: int, kill: Kill | None = None) -> tuple[int, str] | None:
    """Copy in a forked process. Its exit status and errors, or None if it was killed."""
    left = mmap.mmap(-1, 1)
    left[0] = kill.times if kill and not kill.by_clock else 0
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        forked(source, destination, jobs, kill if left[0] else None, left, writer)
    os.close(writer)
    figures["copies"] += 1
    try:
        if kill and kill.by_clock:
            figures["kills"] += kill_by_clock(child, kill)
        with open(reader, "rb") as pipe:
            answer = pipe.read()  # ends when the last process of the run has ended
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if kill and not kill.by_clock:
        figures["kills"] += kill.times - left[0]
    if kill and kill.who == "coordinator" and not answer:
        return None
    assert answer, f"the run said nothing, and ended with {status}"
    result: tuple[int, str] = pickle.loads(answer)
    return result


def forked(source: Path, destination: Path, jobs: int, kill: Kill | None, left: mmap.mmap, writer: int) -> None:
    """The other side of the fork; never returns."""
    result = (99, "")
    try:
        signal.alarm(HANG)  # ends a run that hangs, and with it its workers
        pcopy.coordinator.FIRST = 0.0  # all of the tree is copied by workers
        if kill:
            sys.addaudithook(Countdown(kill, left))
        report = pcopy.copy(source, destination, jobs=jobs)
        result = (report.exit_status, f"{report.errors} {report.warnings}")
    except BaseException:
        result = (99, traceback.format_exc())
    finally:
        os.write(writer, pickle.dumps(result))
        os._exit(0)


def kill_by_clock(coordinator: int, kill: Kill) -> int:
    """Kill from outside, some time after there are workers. How many were killed."""
    killed = 0
    for _ in range(kill.times if kill.who == "worker" else 1):
        end = time.monotonic() + 1
        while not (found := children(coordinator)) and time.monotonic() < end:
            time.sleep(0.0002)
        time.sleep(kill.moment / 5000)
        victim = coordinator if kill.who == "coordinator" else next(iter(children(coordinator) or found), 0)
        if victim and is_running(victim):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                killed += 1
    return killed


def children(process: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def is_running(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@contextlib.contextmanager
def place() -> Iterator[Path]:
    top = tempfile.mkdtemp(prefix="pcopy-properties-")
    try:
        yield Path(top)
    finally:
        remove(os.fsencode(top))


def temporary_names(source: Path, copy: Path) -> list[bytes]:
    """Names of runs in a copy that are not those of entries."""
    there = {os.path.relpath(path, os.fsencode(source)) for path in walk(os.fsencode(source))}
    found = (os.path.relpath(path, os.fsencode(copy)) for path in walk(os.fsencode(copy)))
    return [path for path in found if os.path.basename(path).startswith(b".pcopy-") and path not in there]


# ---- the properties -------------------------------------------------------------------------------------------------


def check(tree: Entry, jobs: int, kill: Kill | None, changes: list[tuple[str, int, int, Entry, bytes]], seed: int) -> None:
    """Copy, compare, edit, copy again, compare again."""
    figures["trees"] += 1
    with place() as top:
        source, copy = top / "src", top / "dst"
        make(source, tree, seed)
        bring_up_to_date(source, copy, jobs, kill)
        assert differences(source, copy) == []
        editor = Editor(source, copy, seed)
        for one in changes:
            editor.edit(*one)
        odd = set(temporary_names(source, copy))  # a user's own, that a source had and lacks by now
        bring_up_to_date(source, copy, jobs, kill)
        assert differences(source, copy, extra=True) == []
        assert set(temporary_names(source, copy)) <= odd
        assert copied(source, copy, jobs) == (0, "[] []")  # and again: there is nothing to do
        assert differences(source, copy, extra=True) == []


def bring_up_to_date(source: Path, copy: Path, jobs: int, kill: Kill | None) -> None:
    """A run in which somebody is killed, and another one if that was the coordinator."""
    done = copied(source, copy, jobs, kill)
    if done is None:
        done = copied(source, copy, jobs)
    assert done and done[0] == 0, done


SEEDS = st.integers(0, 2**32)


@quick(10)
@given(trees, edits, SEEDS)
def test_any_tree_and_any_change_of_it_is_copied_by_one_process(tree: Entry, changes: Any, seed: int) -> None:
    check(tree, 1, None, changes, seed)


@quick(8)
@given(trees, edits, SEEDS)
def test_any_tree_and_any_change_of_it_is_copied_by_three_processes(tree: Entry, changes: Any, seed: int) -> None:
    check(tree, 3, None, changes, seed)


@quick(12)
@given(trees, edits, SEEDS, kills)
def test_any_tree_and_any_change_of_it_is_copied_whoever_is_killed(tree: Entry, changes: Any, seed: int, kill: Kill) -> None:
    check(tree, 3, kill, changes, seed)


# ---- the comparer itself --------------------------------------------------------------------------------------------


def spoil(what: str) -> Callable[[Path], object]:
    return {
        "contents": lambda top: change_a_byte(top / "d/f"),
        "size": lambda top: os.truncate(top / "d/f", 3),
        "time of a file": lambda top: os.utime(top / "d/f", ns=(WHEN, WHEN + 1)),
        "time of a directory": lambda top: os.utime(top / "d", ns=(WHEN, WHEN + 1)),
        "time of a link": lambda top: os.utime(top / "l", ns=(WHEN, WHEN + 1), follow_symlinks=False),
        "time of the top": lambda top: os.utime(top, ns=(WHEN, WHEN + 1)),
        "mode": lambda top: os.chmod(top / "d/f", 0o640),
        "set-uid": lambda top: os.chmod(top / "d/f", 0o4644),
        "target": lambda top: replace(top / "l", lambda path: os.symlink("elsewhere", path)),
        "kind": lambda top: replace(top / "p", lambda path: os.mknod(path, stat.S_IFSOCK | 0o644)),
        "attribute": lambda top: os.setxattr(top / "d/f", "user.test", b"other"),
        "attribute of a directory": lambda top: os.setxattr(top / "d", "user.test", b"other"),
        "hard link": lambda top: replace(top / "h", lambda path: shutil.copy2(top / "d/f", path)),
        "another hard link": lambda top: replace(top / "g", lambda path: os.link(top / "d/f", path)),
        "holes": lambda top: fill(top / "holes"),
        "missing": lambda top: os.unlink(top / "d/f"),
        "more": lambda top: (top / "d/more").touch(),
        "deep": lambda top: os.utime(end_of_chain(top), ns=(WHEN, WHEN)),
    }[what]


def replace(path: Path, again: Callable[[Path], object]) -> None:
    path.unlink()
    again(path)
    os.utime(path, ns=(WHEN, WHEN), follow_symlinks=False)


def change_a_byte(path: Path) -> None:
    text = path.read_bytes()
    path.write_bytes(text[:-1] + bytes([text[-1] ^ 1]))
    os.utime(path, ns=(WHEN, WHEN))


def fill(path: Path) -> None:
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(WHEN, WHEN))


def end_of_chain(top: Path) -> str:
    path = top / "chain"
    while (path / ("n" * 30)).exists():
        path = path / ("n" * 30)
    return str(path)


@pytest.mark.parametrize(
    "what",
    [
        "contents", "size", "time of a file", "time of a directory", "time of a link", "time of the top", "mode", "set-uid",
        "target", "kind", "attribute", "attribute of a directory", "hard link", "another hard link", "holes", "missing", "more",
        "deep",
    ],
)  # fmt: skip
def test_the_comparer_sees_what_is_not_equal(tmp_path: Path, what: str) -> None:
    below = ((b"f", Entry("file", size=9000)), (b"e", Entry("directory", 0o755)))
    tree = Entry("directory", 0o755, below=(
        (b"d", Entry("directory", 0o755, below=below)), (b"h", Entry("hard", link=0)), (b"l", Entry("link")),
        (b"g", Entry("file", size=9000)), (b"p", Entry("fifo")), (b"holes", Entry("holes", holes=True, link=1)),
        (b"chain", Entry("chain", size=40)),
    ))  # fmt: skip
    make(tmp_path / "one", tree, 1)
    subprocess.run(["cp", "-a", tmp_path / "one", tmp_path / "two"], check=True)
    assert differences(tmp_path / "one", tmp_path / "two") == []
    try:
        spoil(what)(tmp_path / "two")
    except OSError as error:
        pytest.skip(f"cannot be done here: {error.strerror}")
    assert differences(tmp_path / "one", tmp_path / "two") != []
    assert differences(tmp_path / "one", tmp_path / "two", extra=True) != [] or what == "more"


# ---- for as long as one likes ---------------------------------------------------------------------------------------


def soak(seconds: float) -> None:
    """All properties in turn, each time with other examples; tells the figures at the end, and of the first that fails."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            for jobs, kill in ((1, st.none()), (3, st.none()), (3, kills)):
                property_of = given(trees, st.just(jobs), kill, edits, SEEDS)(check)
                settings(max_examples=20, database=None, deadline=None, suppress_health_check=list(HealthCheck))(property_of)()
            print(f"{end - time.monotonic():,.0f} s left: {shown_figures()}", flush=True)
    finally:
        print(shown_figures())


if __name__ == "__main__":
    soak(float(sys.argv[1]) if len(sys.argv) > 1 else 3600.0)
