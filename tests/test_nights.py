"""Thirty nights: a source that is edited at random every day, and a snapshot of it every night, some cut short and run again.

What has to be in a snapshot, in its manifest, and which inodes it may have of its own, is worked out from the source alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.test_engines import wait_until
from tests.test_link_dest import state_of
from tests.trees import Dir, Fifo, File, Hard, Link, State, make_tree, read_tree

NIGHTS = 30
SEED = 20260131
CUT = 5  # every so many nights the first run is killed
SLOWLY = 40_000  # bytes a second of a run that is to be killed in the middle
ROOT = os.geteuid() == 0
BLOCK = 4096  # bytes in which file systems count
ODD = (b"plain %d", b"\xff\xfe%d", b"line\nend %d", b"back\\slash %d", b" blanks %d ", b"-n%d", "\u00fcml\u00e4ut %d".encode())
FILE_MODES = (0o644, 0o600, 0o755, 0o4755, *([0o000, 0o222, 0o440] if ROOT else []))
DIRECTORY_MODES = (0o755, 0o700, 0o1777, *([0o555, 0o2750] if ROOT else []))

Tree = Mapping[bytes, State]
Inode = tuple[int, int]


# ---- days -----------------------------------------------------------------------------------------------------------


class Owner:
    """Whose tree it is: edits it as people and programs do, in no order, but the same in each run of the test."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top, self.random, self.names = os.fsencode(top), random.Random(seed), 0
        self.begun = b""  # the copy that a run has begun
        self.done: Counter[str] = Counter()
        self.edits: dict[str, Callable[[], object]] = {
            "create": self.create, "append": self.append, "rewrite": self.rewrite, "touch": self.touch,
            "delete": lambda: os.unlink(self.some_entry()), "rename": self.rename, "hard link": self.hard_link,
            "symbolic link": lambda: os.symlink(self.random.choice(ODD), self.new_path()), "retarget": self.retarget,
            "chmod": self.chmod, "chmod directory": lambda: os.chmod(self.some_directory(), self.pick(DIRECTORY_MODES)),
            "chown": self.chown, "xattr": self.xattr, "mkdir": self.mkdir, "rmdir": lambda: shutil.rmtree(self.leaf()),
            "directory to file": self.directory_to_file, "file to directory": self.file_to_directory,
        }  # fmt: skip

    def day(self, count: int, begun: Path | None = None) -> None:
        self.begun = os.fsencode(begun) if begun else b""
        for _ in range(count):
            what = self.random.choice(list(self.edits))
            self.edits[what]()
            self.done[what] += 1

    # ---- what there is ----

    def walk(self) -> list[bytes]:
        found = [self.top]
        for path in found:
            if is_directory(path):
                found += [os.path.join(path, name) for name in sorted(os.listdir(path))]
        return found[1:]

    def some(self, of_kind: Callable[[bytes], bool] = lambda path: True) -> bytes:
        """An entry, if there is one among those that a run that was cut has copied already, one of these."""
        paths = [path for path in self.walk() if of_kind(path)]
        copied = [path for path in paths if self.begun and os.path.lexists(path.replace(self.top, self.begun, 1))]
        return self.random.choice(copied or paths)

    def some_directory(self) -> bytes:
        return self.random.choice([self.top, *filter(is_directory, self.walk())])

    def some_file(self) -> bytes:
        return self.some(is_file)

    def some_entry(self) -> bytes:
        """No directory."""
        return self.some(lambda path: not is_directory(path))

    def leaf(self) -> bytes:
        """A directory, made anew if need be, of which nobody would miss much."""
        few = [path for path in self.walk() if is_directory(path) and entries_below(path) < 6]
        return self.random.choice(few) if few else self.mkdir()

    def new_path(self) -> bytes:
        self.names += 1
        return os.path.join(self.some_directory(), self.random.choice(ODD) % self.names)

    def pick(self, modes: tuple[int, ...]) -> int:
        return self.random.choice(modes)

    # ---- what becomes of it ----

    def write(self, path: bytes, size: int) -> None:
        with open(path, "wb") as file:
            file.write(self.random.randbytes(size))

    def create(self, size: int | None = None) -> None:
        self.write(self.new_path(), self.random.choice([0, 1, 700, 4096, 9000]) if size is None else size)

    def append(self) -> None:
        with open(self.some_file(), "ab") as file:
            file.write(self.random.randbytes(self.random.randrange(1, 3000)))

    def rewrite(self) -> None:
        """Other contents of the same size, in the same inode."""
        path = self.some_file()
        with open(path, "r+b") as file:
            file.write(self.random.randbytes(os.lstat(path).st_size))
        os.utime(path)

    def touch(self) -> None:
        when = self.random.randrange(10**9, 1_600_000_000 * 10**9)
        os.utime(self.some_entry(), ns=(when, when), follow_symlinks=False)

    def rename(self) -> None:
        old, new = self.some(), self.new_path()
        if not new.startswith(old + b"/"):
            os.rename(old, new)

    def hard_link(self) -> None:
        os.link(self.some_file(), self.new_path())

    def retarget(self) -> None:
        path = self.new_path()
        os.symlink(b"elsewhere", path)
        os.rename(path, self.some_entry())

    def chmod(self) -> None:
        os.chmod(self.some_file(), self.pick(FILE_MODES))

    def chown(self) -> None:
        owner = self.random.choice([0, 12, 65534]) if ROOT else -1
        os.chown(self.some(), owner, owner, follow_symlinks=False)

    def xattr(self) -> None:
        with contextlib.suppress(OSError):  # not every file system has them
            os.setxattr(self.random.choice([self.some_file(), self.some_directory()]), "user.a", self.random.randbytes(5))

    def mkdir(self) -> bytes:
        path = self.new_path()
        os.mkdir(path)
        return path

    def directory_to_file(self) -> None:
        path = self.leaf()
        shutil.rmtree(path)
        self.write(path, 300)

    def file_to_directory(self) -> None:
        path = self.some_file()
        os.unlink(path)
        os.mkdir(path)
        self.write(os.path.join(path, b"inside"), 300)


def is_directory(path: bytes) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


def entries_below(path: bytes) -> int:
    return sum(len(directories) + len(others) for _, directories, others in os.walk(path))


def is_file(path: bytes) -> bool:
    return stat.S_ISREG(os.lstat(path).st_mode)


def first_day(tmp_path: Path) -> Path:
    """About 150 entries."""
    files: dict[str | bytes, object] = {f"f{number}": File(b"%d" % number * number * 40) for number in range(20)}
    special: dict[str | bytes, object] = {
        "link": Link("f1"),
        "pipe": Fifo(),
        "one": b"1",
        b"\xff": b"2",
        "x": File(b"3", mode=0o600),
    }
    below = {f"d{number}": Dir({**files, **special, "e": Dir({"deep": b"4"})}) for number in range(5)}
    return make_tree(tmp_path / "src", {**below, "two": Hard("d1/one"), "three": Hard("d1/one"), "empty": Dir()})


# ---- nights ---------------------------------------------------------------------------------------------------------


def manifest_of(source: Path) -> set[bytes]:
    """The lines that ``sha256sum`` would write."""
    lines = set()
    for path, state in read_tree(source).items():
        if state.kind == "file":
            digest = hashlib.sha256(Path(os.fsdecode(os.path.join(os.fsencode(source), path))).read_bytes()).hexdigest()
            name = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
            lines.add(b"\\" * (name != path) + digest.encode() + b"  " + name)
    return lines


def cut_short(owner: Owner, line: Sequence[object], snapshot: Path) -> Tree:
    """Begin a run, kill it, and edit what it has copied. Gives the source as it was for that run."""
    for _ in range(4):
        owner.create(SLOWLY // 2)
    source = Path(os.fsdecode(owner.top))
    day = state_of(source)
    command = [sys.executable, "-m", "pcopy", *map(str, line), "--bwlimit", str(SLOWLY)]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        assert wait_until(lambda: snapshot.exists() and any(snapshot.iterdir()), 20)
        time.sleep(owner.random.uniform(0.3, 1))
    finally:
        run.kill()
        assert run.wait(10) == -9, "it had ended already"
    assert state_of(snapshot) != day
    owner.day(10, snapshot)  # nobody stops working because a run was cut
    return day


@dataclass
class Space:
    """What the snapshots take, inode by inode, and what they may."""

    inodes: dict[Inode, int] = field(default_factory=dict)  # bytes
    changed: int = 0  # files
    allowed: int = 0  # bytes
    before: Tree = field(default_factory=dict)

    def add(self, source: Path, now: Tree, snapshot: Path, cut: Tree | None) -> None:
        """A file that is what it was, under each of its names, is an inode of an earlier day; any other is one of its own.

        One that is what it was under some of its names may be either; so may one that changed, or lost a name, after a run was
        ``cut``, which had copied what the source was then.
        """
        for names in groups_of(now):
            same = {name for name in names if is_same(now[name], self.before.get(name))}
            state = os.lstat(os.path.join(os.fsencode(snapshot), min(names)))
            shared = (state.st_dev, state.st_ino) in self.inodes
            if same == names and (cut is None or all(now[name] == cut.get(name) for name in names)):
                assert shared, names
            elif not same and cut is None:
                assert not shared, names
            if not shared:
                self.changed += 1
                self.allowed += room_for(os.lstat(os.path.join(os.fsencode(source), min(names))), now[min(names)])
                self.inodes[state.st_dev, state.st_ino] = state.st_blocks * 512
        self.before = now


def groups_of(tree: Tree) -> Iterator[frozenset[bytes]]:
    """The names of each regular file."""
    yield from {state.names or frozenset({path}) for path, state in tree.items() if state.kind == "file"}


def is_same(one: State, other: State | None) -> bool:
    return other is not None and replace(one, names=frozenset()) == replace(other, names=frozenset())


def room_for(state: os.stat_result, entry: State) -> int:
    """Bytes that a file like this one takes at most: its blocks, and one for its attributes."""
    return max(state.st_blocks * 512, -(-state.st_size // BLOCK) * BLOCK + BLOCK * bool(entry.xattrs))


def taken_by(snapshots: list[Path]) -> dict[Inode, int]:
    """Bytes of each inode of all regular files, as du would count them."""
    found = {}
    for top in snapshots:
        for where, _, names in os.walk(os.fsencode(top)):
            for name in names:
                state = os.lstat(os.path.join(where, name))
                if stat.S_ISREG(state.st_mode):
                    found[state.st_dev, state.st_ino] = state.st_blocks * 512
    return found


def check_log(log: Path) -> None:
    """Every line can be read; each run begins once, and ends once unless it was killed."""
    runs: dict[str, list[str]] = {}
    statuses = set()
    for line in log.read_text().splitlines():
        event = json.loads(line)
        runs.setdefault(event["run"], []).append(event["event"])
        if event["event"] == "finished":
            statuses.add(event["report"]["exit_status"])
    assert statuses == {0}
    assert len(runs) == NIGHTS + NIGHTS // CUT
    assert all(events[0] == "started" and events.count("started") == 1 for events in runs.values())
    ended = [events for events in runs.values() if "finished" in events]
    assert len(ended) == NIGHTS
    assert all(events[-1] == "finished" and events.count("finished") == 1 for events in ended)


@pytest.mark.timeout(600)
def test_thirty_nights_of_snapshots_are_their_days_and_take_the_space_of_what_changed(tmp_path: Path, pcopy: Run) -> None:
    source, home = first_day(tmp_path), make_tree(tmp_path / "snapshots", {})
    owner, space, log = Owner(source, SEED), Space(), tmp_path / "log"
    days: dict[Path, Tree] = {}
    for night in range(1, NIGHTS + 1):
        snapshot, manifest = home / f"{night:02}", home / f"{night:02}.sha256"
        owner.day(8 if days else 0)
        earlier = ["--link-dest", f"../{night - 1:02}"] if days else []
        line = ["-j", 1 + night % 2, "--delete", *earlier, "--log", log, "--manifest", manifest, source, snapshot]
        cut = cut_short(owner, line, snapshot) if night % CUT == 0 else None
        assert not manifest.exists()
        done = pcopy(*line)
        assert done.returncode == 0, done.stderr
        days[snapshot] = state_of(source)
        assert state_of(snapshot) == days[snapshot]
        assert set(manifest.read_bytes().splitlines()) == manifest_of(source)
        checked = pcopy("--check", manifest, snapshot)
        assert checked.returncode == 0, checked.stderr
        space.add(source, days[snapshot], snapshot, cut)
        if night == 1:
            first = dict(space.inodes)
            space.changed = space.allowed = 0
    assert set(owner.done) == set(owner.edits)
    for snapshot, day in days.items():  # and nobody has touched one since
        assert state_of(snapshot) == day
        sums = subprocess.run(["sha256sum", "--quiet", "--strict", "-c", f"{snapshot}.sha256"], cwd=snapshot, check=False)
        assert sums.returncode == 0
    taken = taken_by(list(days))
    assert len(taken) == len(first) + space.changed
    assert sum(taken.values()) <= sum(first.values()) + space.allowed
    check_log(log)
