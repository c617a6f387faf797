"""What the world does to a run, for real: full and read-only disks, read errors, sources that change, hostile trees, kills.

Errors that no small file system gives come from a library put before the C library (LD_PRELOAD), compiled here. A rule of it
is ``call:what:times:needle``: the next so many calls of that name on a path that holds the needle do ``what``, which is the
number of an error, or one of the deeds below. Each writes a byte to a log, which is how the tests count them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pty
import random
import re
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import pcopy as library
from pcopy.audit import TICK
from pcopy.metadata import SHORTLY
from tests.comparer import differences
from tests.conftest import SHARED, Run, as_root, compiled
from tests.strace import lines_of, strace
from tests.test_destination import loop_mounted, messages, mounted, unprivileged
from tests.test_engines import Script, state_of, wait_until
from tests.trees import WHEN, Dir, Fifo, File, Hard, Holes, Link, make_tree, read_tree

JOBS = pytest.mark.parametrize("jobs", [1, 3])
LARGE = 33 << 20  # bytes: such a file is copied in spans
EACH = 1 << 20  # times: at each call

# ---- the library that makes calls fail ------------------------------------------------------------------------------

SWAP, GROW, SHRINK, REWRITE, PAUSE = -1, -2, -3, -4, -5

SHIM = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BLOCK (1 << 20)

static void place(char *path, int file) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, 8191);
    path[size > 0 ? size : 0] = 0;
}

static void below(char *path, int directory, const char *name) {
    if (name[0] == '/') { snprintf(path, 8192, "%s", name); return; }
    if (directory == AT_FDCWD) path[0] = 0; else place(path, directory);
    size_t size = strlen(path);
    snprintf(path + size, 8192 - size, "/%s", name);
}

static void change(const char *path, int flags, long at, const char *text, size_t size) {
    int file = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | flags);
    if (file < 0) return;
    if (!text) syscall(SYS_ftruncate, file, at);
    else for (size_t done = 0; done < size; done += BLOCK) {
        size_t part = size - done < BLOCK ? size - done : BLOCK;
        syscall(SYS_pwrite64, file, text, part, at + done);
    }
    syscall(SYS_close, file);
}

static int did(int what, const char *path) {
    char other[8200];
    static char block[BLOCK];
    struct stat state;
    memset(block, 'B', sizeof block);
    snprintf(other, sizeof other, "%s.swap", path);
    switch (what) {
    case -1: syscall(SYS_rename, other, path); return 0;
    case -2: change(path, O_APPEND, 0, block, 4096); return 0;
    case -3: change(path, 0, 10, NULL, 0); return 0;
    case -4: if (!stat(path, &state)) change(path, 0, 0, block, state.st_size); return 0;
    case -5: usleep(2000); return 0;
    }
    errno = what;
    return 1;
}

/* A needle that ends in a dollar sign is the end of the path. */
static int holds(const char *path, const char *needle) {
    size_t size = strlen(needle) - 1, length = strlen(path);
    if (needle[size] != '$') return strstr(path, needle) != NULL;
    return length >= size && !strncmp(path + length - size, needle, size);
}

/* 1 if the call is to fail, with errno set. */
static int fails(const char *call, const char *path) {
    static const char *rules;
    static int log = -1;
    if (!rules) {
        rules = getenv("FAULTS") ? getenv("FAULTS") : "";
        if (*rules) log = syscall(SYS_openat, AT_FDCWD, getenv("FAULT_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    }
    for (const char *rule = rules; rule && *rule; rule = strchr(rule, '|') ? strchr(rule, '|') + 1 : NULL) {
        char name[32], needle[256];
        int what, times;
        struct stat state;
        if (sscanf(rule, "%31[^:]:%d:%d:%255[^|]", name, &what, &times, needle) != 4) continue;
        if (strcmp(name, call) || !holds(path, needle)) continue;
        if (fstat(log, &state) || state.st_size >= times) continue;
        syscall(SYS_write, log, "x", 1);
        return did(what, path);
    }
    return 0;
}

static int fails_on(const char *call, int file) {
    char path[8192];
    int before = errno;
    place(path, file);
    errno = before;
    return fails(call, path);
}

static int fails_at(const char *call, int directory, const char *name) {
    char path[8192];
    int before = errno;
    below(path, directory, name);
    errno = before;
    return fails(call, path);
}

#define NEXT(type, name, ...) type (*next)(__VA_ARGS__) = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define OPENAT(call) int call(int directory, const char *path, int flags, ...) { \
    NEXT(int, #call, int, const char *, int, ...); \
    va_list rest; va_start(rest, flags); mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest); \
    return fails_at(flags & O_CREAT ? "create" : "open", directory, path) ? -1 : next(directory, path, flags, mode); }
OPENAT(openat)
OPENAT(openat64)

ssize_t read(int file, void *to, size_t size) {
    NEXT(ssize_t, "read", int, void *, size_t);
    if (fails_on("read", file)) return -1;
    ssize_t done = next(file, to, size);
    fails_on("ranged", file);
    return done;
}
ssize_t write(int file, const void *from, size_t size) {
    NEXT(ssize_t, "write", int, const void *, size_t);
    return fails_on("write", file) ? -1 : next(file, from, size);
}
/* "range" before the bytes are copied, "ranged" afterwards, or when they are read; the path is that of the source. "into": of
   the copy. */
ssize_t copy_file_range(int source, off64_t *from, int target, off64_t *to, size_t size, unsigned flags) {
    NEXT(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    if (fails_on("range", source) || fails_on("into", target)) return -1;
    ssize_t done = next(source, from, target, to, size, flags);
    fails_on("ranged", source);
    return done;
}
#define SENDFILE(call, kind) ssize_t call(int target, int source, kind *from, size_t size) { \
    NEXT(ssize_t, #call, int, int, kind *, size_t); \
    return fails_on("range", source) || fails_on("into", target) ? -1 : next(target, source, from, size); }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

#define READDIR(call, kind) struct kind *call(DIR *directory) { \
    NEXT(struct kind *, #call, DIR *); \
    if (telldir(directory) && fails_on("list", dirfd(directory))) return NULL; \
    return next(directory); }
READDIR(readdir, dirent)
READDIR(readdir64, dirent64)

int mkdirat(int directory, const char *path, mode_t mode) {
    NEXT(int, "mkdirat", int, const char *, mode_t);
    return fails_at("mkdir", directory, path) ? -1 : next(directory, path, mode);
}
int fchmod(int file, mode_t mode) {
    NEXT(int, "fchmod", int, mode_t);
    return fails_on("chmod", file) ? -1 : next(file, mode);
}
int flock(int file, int what) {
    NEXT(int, "flock", int, int);
    return fails_on("flock", file) ? -1 : next(file, what);
}
int close(int file) {
    NEXT(int, "close", int);
    if (fails_on("close", file)) { int why = errno; next(file); errno = why; return -1; }
    return next(file);
}
"""


class Faults:
    """Runs the command line with calls that fail, and counts them."""

    def __init__(self, shim: Path, where: Path) -> None:
        self.shim, self.where, self.log = shim, where, where / "faults"

    def environment(self, *rules: tuple[str, int, int, str]) -> dict[str, str]:
        text = "|".join(f"{call}:{what}:{times}:{needle}" for call, what, times, needle in rules)
        self.log.unlink(missing_ok=True)
        return {"LD_PRELOAD": str(self.shim), "FAULTS": text, "FAULT_LOG": str(self.log)}

    def run(self, *arguments: object, rules: list[tuple[str, int, int, str]]) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "pcopy", *map(str, arguments)],
            env={**os.environ, **self.environment(*rules)},
            capture_output=True, text=True, errors="surrogateescape", timeout=60, check=False, cwd=self.where,
        )  # fmt: skip
        assert self.count, "the fault did not happen"
        return done

    @property
    def count(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("shim"), SHIM, *SHARED)


@pytest.fixture
def faults(shim: Path, tmp_path: Path) -> Faults:
    return Faults(shim, tmp_path)


# ---- what a run leaves ----------------------------------------------------------------------------------------------


def many(directories: int = 6, files: int = 30, size: int = 20_000) -> dict[str | bytes, object]:
    rng = random.Random(directories * files)
    return {
        f"d{one}": Dir({f"f{number}": rng.randbytes(size) for number in range(files)}, mtime_ns=WHEN + one)
        for one in range(directories)
    }


def temporary(top: Path) -> list[Path]:
    return [path for path in top.rglob("*") if re.fullmatch(r"\.pcopy-[0-9a-f]{8}-\d+(-[0-9a-f]{16}){1,2}", path.name)]


def assert_whole(source: Path, copy: Path, before: dict[str, bytes] | None = None) -> None:
    """Each file is the source's, byte for byte, or what was there before; and all that was there before still is."""
    assert temporary(copy) == []
    for path in copy.rglob("*"):
        name = str(path.relative_to(copy))
        if path.is_file() and not path.is_symlink():
            text = path.read_bytes()
            known = (before or {}).get(name)
            assert text == known or text == (source / name).read_bytes(), name
    for name in before or {}:
        assert (copy / name).exists(), name


def assert_stopped(done: subprocess.CompletedProcess[str], reason: str) -> None:
    """Status 3, and one line besides the last."""
    lines = messages(done)
    assert done.returncode == 3, done.stderr[-3000:]
    assert len(lines) == 2, done.stderr[-3000:]
    assert reason in lines[0]
    assert lines[1].startswith("stopped early: ")


# ---- nothing more can be written ------------------------------------------------------------------------------------

GOING_DOWN = 0x8004587D  # XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32)
OLD = {"d1/f0": b"an older day", "extra": b"mine"}


def an_older_day() -> dict[str | bytes, object]:
    return {"d1": Dir({"f0": File(OLD["d1/f0"], mtime_ns=WHEN - 1)}), "extra": File(OLD["extra"])}


@JOBS
@pytest.mark.parametrize("call", ["into", "create", "mkdir", "close"])
@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC], ids=["quota", "space"])
def test_a_quota_that_is_used_up_stops_the_run(faults: Faults, tmp_path: Path, jobs: int, call: str, number: int) -> None:
    """Whatever call says so: the last one does on network file systems."""
    source = make_tree(tmp_path / "src", many())
    copy = make_tree(tmp_path / "dst", an_older_day())
    needle = "/dst/d3" if call == "mkdir" else "/dst/d3/f" if call != "create" else "/dst/d3/"
    done = faults.run("-j", jobs, source, copy, rules=[(call, number, EACH, needle)])
    assert_stopped(done, os.strerror(number))
    assert "free some space and run the same line again" in done.stderr
    assert_whole(source, copy, OLD)
    assert library.copy(source, copy, jobs=1).ok
    assert differences(source, copy, extra=True) == []


@as_root
@JOBS
def test_a_real_quota_stops_the_run(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    """That of a subvolume of btrfs, which most kernels have."""
    if not shutil.which("mkfs.btrfs"):
        pytest.skip("mkfs.btrfs is not installed")
    source = make_tree(tmp_path / "src", {**many(4, 40, 100_000), "large": os.urandom(LARGE)})
    with open(tmp_path / "image", "wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.btrfs", "-q", tmp_path / "image"], check=True, capture_output=True)
    with mounted(tmp_path / "mount", "-t", "btrfs", "-o", "loop", tmp_path / "image") as top:
        for words in (f"quota enable {top}", f"subvolume create {top}/sub", f"qgroup limit 12M {top}/sub"):
            subprocess.run(["btrfs", *words.split()], check=True, capture_output=True)
        copy = make_tree(top / "sub/dst", an_older_day())
        assert_stopped(pcopy("-j", jobs, source, copy), os.strerror(errno.EDQUOT))
        assert_whole(source, copy, OLD)
        subprocess.run(["btrfs", "qgroup", "limit", "none", top / "sub"], check=True, capture_output=True)
        assert library.copy(source, copy, jobs=jobs).ok
        assert differences(source, copy, extra=True) == []


@JOBS
def test_a_large_file_that_stops_the_run_counts_as_failed_and_those_under_way_do_not(
    faults: Faults, tmp_path: Path, jobs: int
) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir({name: Holes(LARGE, {0: b"x" * LARGE}) for name in "abc"})})
    words = ("-j", jobs, "--json", "--sparse", "always", source, tmp_path / "dst")
    done = faults.run(*words, rules=[("write", errno.ENOSPC, 1, "/dst/d/.pcopy-")])
    report = json.loads(done.stdout)
    assert_stopped(done, "No space left on device")
    assert (report["failed"], len(report["errors"])) == (1, 1)
    assert "1 failed" in done.stderr
    assert os.listdir(tmp_path / "dst" / "d") == []


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@JOBS
def test_a_file_larger_than_the_limit_is_named_all_others_are_copied_and_the_signal_does_not_end_the_run(
    tmp_path: Path, pcopy: Run, jobs: int
) -> None:
    source = make_tree(tmp_path / "src", {**many(), "d2": Dir({"large": b"x" * 150_000, "small": b"1"})})
    copy = make_tree(tmp_path / "dst", an_older_day())
    done = pcopy("-j", jobs, source, copy, preexec_fn=limit_files)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "File too large" in line]
    assert line.startswith(f"pcopy: {source}/d2/large: ")
    assert "1 failed" in done.stderr
    assert_whole(source, copy, OLD)
    here, there = read_tree(source), read_tree(copy)
    assert {path for path, state in here.items() if there.get(path) != state} == {b"d2/large"}


@JOBS
def test_a_disk_that_becomes_read_only_stops_the_run(faults: Faults, tmp_path: Path, jobs: int) -> None:
    """As ext4 does when it finds an error in itself."""
    source = make_tree(tmp_path / "src", many())
    copy = make_tree(tmp_path / "dst", an_older_day())
    rules = [(call, errno.EROFS, EACH, "/dst/d3") for call in ("create", "mkdir", "into", "chmod")]
    done = faults.run("-j", jobs, source, copy, rules=rules)
    assert_stopped(done, "Read-only file system (mount the destination read-write)")
    assert_whole(source, copy, OLD)


@as_root
@JOBS
def test_a_small_disk_with_an_older_copy_keeps_it(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    """A real ext4, and files to be replaced: the old ones are whole until the new ones are."""
    source = make_tree(tmp_path / "src", many(files=60, size=100_000))
    with loop_mounted(tmp_path, "ext4", "-q") as disk:
        older: dict[str | bytes, object] = {f"f{number}": File(b"old" * 1000, mtime_ns=7) for number in range(60)}
        before = {f"d{one}/f{number}": b"old" * 1000 for one in range(6) for number in range(60)}
        make_tree(disk / "copy", {f"d{one}": Dir(older) for one in range(6)})
        assert_stopped(pcopy("-j", jobs, source, disk / "copy"), "No space left on device")
        assert_whole(source, disk / "copy", before)


# Before a file is made, and while it has its temporary name.
SLOWLY = [("create", PAUSE, EACH, "/dst/"), ("chmod", PAUSE, EACH, "/.pcopy-")]


@pytest.fixture
def start(faults: Faults, tmp_path: Path) -> Iterator[Callable[..., Script]]:
    """A copy under way, slow enough to be disturbed; whatever is left of it is ended."""
    scripts: list[Script] = []

    def begin(*arguments: object, rules: list[tuple[str, int, int, str]] | None = None) -> Script:
        environment = faults.environment(*(SLOWLY if rules is None else rules))
        scripts.append(Script(["-m", "pcopy", *map(str, arguments)], tmp_path, environment))
        return scripts[-1]

    yield begin
    for script in scripts:
        script.clean_up()


def is_under_way(faults: Faults, script: Script) -> bool:
    """Whether it has made some files, or is done already."""
    return faults.count > 3 or script.process.poll() is not None


def is_alone(script: Script) -> bool:
    return not script.others()


def files_in(top: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(top))


@as_root
@JOBS
def test_a_destination_that_is_unmounted_stops_the_run(start: Callable[..., Script], tmp_path: Path, jobs: int) -> None:
    """A cable is pulled: nothing is written into the directory that lay below, and nothing is said of each file."""
    source = make_tree(tmp_path / "src", many(20, 40, 100))
    with mounted(tmp_path / "dst", "-t", "tmpfs", "none") as disk:
        script = start("-j", jobs, source, disk)
        assert wait_until(lambda: files_in(disk) > 50, 30)
        subprocess.run(["umount", "-l", str(disk)], check=True)
        status, out, err = script.ended()
        subprocess.run(["mount", "-t", "tmpfs", "none", str(disk)], check=True)  # for who takes it away
    assert_stopped(subprocess.CompletedProcess([], status, out, err), "")
    assert os.listdir(tmp_path / "dst") == []


@as_root
@JOBS
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("empty", [False, True], ids=["files", "directories"])
def test_a_file_system_that_is_shut_down_stops_the_run(
    start: Callable[..., Script], tmp_path: Path, jobs: int, kind: str, empty: bool
) -> None:
    """As it does itself when it finds an error in itself: every call fails, and nothing is said of each file."""
    directories = Dir({f"e{number}": Dir({}) for number in range(40)})
    source = make_tree(tmp_path / "src", {f"d{x}": directories for x in range(40)} if empty else many(40, 40, 100))
    with loop_mounted(tmp_path, kind, size=320 << 20) as disk:
        make_tree(disk / "dst", {})
        script = start("-j", jobs, "--retries", 0, source, disk / "dst")
        assert wait_until(lambda: files_in(disk / "dst") > 50 or len(list((disk / "dst").glob("*/e0"))) > 5, 30)
        handle = os.open(disk, os.O_RDONLY)
        fcntl.ioctl(handle, GOING_DOWN, struct.pack("I", 2))
        os.close(handle)
        status, out, err = script.ended()
        for copy in (disk / "dst", disk / "new", disk):
            again = [sys.executable, "-m", "pcopy", "-j", str(jobs), str(source), str(copy)]
            done = subprocess.run(again, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 3, done.stderr
            assert "Input/output error" in done.stderr or "its file system fails as a whole" in done.stderr
    assert_stopped(subprocess.CompletedProcess([], status, out, err), "its file system fails as a whole")


@JOBS
@pytest.mark.parametrize("how", ["removed", "moved away", "replaced"])
def test_a_destination_that_goes_away_stops_the_run(start: Callable[..., Script], tmp_path: Path, jobs: int, how: str) -> None:
    source = make_tree(tmp_path / "src", many(20, 40, 100))
    copy = make_tree(tmp_path / "dst", {})
    script = start("-j", jobs, source, copy)
    assert wait_until(lambda: files_in(copy) > 50, 30)
    copy.rename(tmp_path / "away")
    if how == "removed":
        while (tmp_path / "away").exists():
            shutil.rmtree(tmp_path / "away", ignore_errors=True)
    if how == "replaced":
        copy.mkdir()
    status, out, err = script.ended()
    assert_stopped(subprocess.CompletedProcess([], status, out, err), "")
    assert not copy.exists() or os.listdir(copy) == []
    if how != "removed":
        assert_whole(source, tmp_path / "away")


@JOBS
@pytest.mark.parametrize("gone", ["src", "dst"])
@pytest.mark.parametrize("asked", [True, False], ids=["signal", "by itself"])
def test_what_goes_away_is_not_needed_to_take_away_half_a_file(
    start: Callable[..., Script], tmp_path: Path, jobs: int, gone: str, asked: bool
) -> None:
    """Large files have their temporary names for long."""
    source = make_tree(tmp_path / "src", {"d": Dir({f"big{number}": Holes(LARGE, {0: b"1"}) for number in range(8)})})
    make_tree(tmp_path / "dst", {})
    script = start("-j", jobs, "--sparse", "never", "--bwlimit", "30M", source, tmp_path / "dst", rules=[])
    assert wait_until(lambda: temporary(tmp_path / "dst"), 30)
    (tmp_path / gone).rename(tmp_path / "away")
    if asked:
        script.process.send_signal(signal.SIGTERM)
    status, _, err = script.ended()
    assert status in ([143] if asked else []) + [3 if gone == "dst" else 1], err
    assert temporary(tmp_path / ("away" if gone == "dst" else "dst")) == []


@JOBS
@pytest.mark.parametrize(("shorter", "more"), [(False, []), (True, []), (False, ["--verify"])], ids=str)
def test_a_name_that_leads_elsewhere_for_a_while_makes_no_mixture(
    start: Callable[..., Script], tmp_path: Path, jobs: int, shorter: bool, more: list[str]
) -> None:
    """The source of a large file is opened by its name for each of its spans, and is itself never changed."""
    for number in (1, 2):
        make_tree(tmp_path / f"v{number}", {"big": File(b"%d" % number * (LARGE >> shorter * (number - 1)))})
    source = make_tree(tmp_path / "src", {"current": Link("../v1")})
    time.sleep(2 * TICK / 1e9)
    script = start("-j", jobs, "-L", "--bwlimit", "40M", *more, source, tmp_path / "dst", rules=[])
    assert wait_until(lambda: temporary(tmp_path / "dst"), 30)
    for version in (2, 1):
        time.sleep(0.2)
        (tmp_path / "new").symlink_to(f"../v{version}")
        (tmp_path / "new").rename(source / "current")
    status, _, err = script.ended()
    assert status == 0, err
    assert set((tmp_path / "dst/current/big").read_bytes()) == {ord("1")}


# Writes a file in one call, which stops in the middle until a line comes: its second half lies in memory that this process
# itself provides (userfaultfd(2)).
STALLED = """
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
static char *text;
static size_t size;
static int file;
static void *writes(void *unused) {
    return (void *)(long)(pwrite(file, text, size, 0) != (ssize_t)size);
}
int main(int count, char **words) {
    pthread_t thread;
    void *failed;
    char line;
    struct uffd_msg fault;
    struct uffdio_api api = {.api = UFFD_API};
    size = strtoul(words[2], 0, 10);
    file = open(words[1], O_WRONLY);
    size_t half = (size / 2 + 4095) & ~4095UL;  /* the second one begins with a page */
    char *room = mmap(0, 2 * half, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(room, 2 * half, MADV_NOHUGEPAGE);
    text = memset(room + half - size / 2, 'B', size / 2);
    int user = syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_register part = {{(unsigned long)room + half, half}, UFFDIO_REGISTER_MODE_MISSING, 0};
    if (file < 0 || user < 0 || ioctl(user, UFFDIO_API, &api) || ioctl(user, UFFDIO_REGISTER, &part)) return 2;
    pthread_create(&thread, 0, writes, 0);
    if (read(user, &fault, sizeof fault) != sizeof fault || write(1, ".", 1) != 1) return 3;
    if (read(0, &line, 1) < 0) return 4;
    char *rest = malloc(half + 4096);
    memset(rest, 'B', half + 4096);
    struct uffdio_copy copy = {part.range.start, ((unsigned long)rest + 4095) & ~4095UL, half, 0, 0};
    if (ioctl(user, UFFDIO_COPY, &copy)) return 5;
    pthread_join(thread, &failed);
    return failed != 0;
}
"""


@pytest.fixture(scope="session")
def stalled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("stalled"), STALLED, "-pthread")


@as_root
@pytest.mark.parametrize(
    ("kind", "size", "more", "seconds"),
    [
        *((kind, 64 << 10, [], 2 * TICK / 1e9) for kind in ("tmpfs", "ext4", "xfs", "btrfs")),
        ("tmpfs", 64 << 10, ["-c"], 2 * TICK / 1e9),
        ("tmpfs", LARGE, ["-j", "3"], 2 * TICK / 1e9),
        *((kind, 64 << 10, ["-j", "1"], 2.5) for kind in ("tmpfs", "ext4")),
        *((kind, 4000, ["-j", "1"], 2.5) for kind in ("tmpfs", "ext4")),
    ],
    ids=str,
)
def test_a_write_that_has_begun_is_waited_for(
    stalled: Path, tmp_path: Path, kind: str, size: int, more: list[str], seconds: float
) -> None:
    """The times of its file were set when it began, so half of it would look like a file that nobody changes.

    Nor has for a while: after more than two seconds a file is taken for one that is at rest.
    """
    mount = mounted(tmp_path / "mount", "-t", kind, "none") if kind == "tmpfs" else loop_mounted(tmp_path, kind, size=320 << 20)
    with mount as place:
        others = 20 if size > 4000 else 0  # with which the next one is looked at in another way
        make_tree(place / "src", {"f": b"A" * size, **{f"g{number}": b"1" for number in range(others)}})
        make_tree(tmp_path / "dst", {"f": b"A" * size} if seconds < 1 else {})
        words = [str(stalled), str(place / "src/f"), str(size)]
        writer = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert writer.stdout and writer.stdin
        if not writer.stdout.read(1):
            pytest.skip(f"no userfaultfd here: {writer.wait()}")
        time.sleep(seconds)
        copying = subprocess.Popen([sys.executable, "-m", "pcopy", "-q", *more, place / "src", tmp_path / "dst"])
        with contextlib.suppress(subprocess.TimeoutExpired):
            copying.wait(1)
        writer.communicate(b"go")
        assert (writer.returncode, copying.wait(60)) == (0, 0)
        assert set((tmp_path / "dst/f").read_bytes()) == {ord("B")}


@JOBS
@pytest.mark.parametrize("reason", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_where_no_mode_can_be_set_large_files_are_copied_too(faults: Faults, tmp_path: Path, jobs: int, reason: int) -> None:
    source = make_tree(tmp_path / "src", {"large": Holes(LARGE + 5, {1 << 20: b"text"}), "f": b"1"})
    done = faults.run("-j", jobs, source, tmp_path / "dst", rules=[("chmod", reason, EACH, "/dst/")])
    assert done.returncode == 0, done.stderr
    assert "mode: could not be preserved" in done.stderr
    assert (tmp_path / "dst/large").read_bytes() == (source / "large").read_bytes()


# ---- what cannot be read --------------------------------------------------------------------------------------------


@JOBS
@pytest.mark.parametrize("size", [20_000, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
def test_a_file_with_a_read_error_is_named_and_all_else_is_copied(
    faults: Faults, tmp_path: Path, jobs: int, size: int, old: bool
) -> None:
    source = make_tree(tmp_path / "src", {**many(3), "d1": Dir({"bad": b"x" * size, "good": b"1"}), "bad": File(b"2" * 300)})
    copy = tmp_path / "dst"
    if old:
        make_tree(copy, {"d1": Dir({"bad": b"old"}), "bad": b"old"})
    rules = [(call, errno.EIO, EACH, "/src/" + name) for call in ("range", "read") for name in ("d1/bad", "bad")]
    done = faults.run("-j", jobs, "--json", source, copy, rules=rules)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    assert sorted(error["path"] for error in report["errors"]) == [f"{source}/bad", f"{source}/d1/bad"]
    assert {error["errno"] for error in report["errors"]} == {errno.EIO}
    assert (report["failed"], report["vanished"]) == (2, 0)
    found = differences(source, copy)
    if old:
        assert ((copy / "bad").read_bytes(), (copy / "d1/bad").read_bytes()) == (b"old", b"old")
        assert {line.partition(":")[0] for line in found} == {"b'bad'", "b'd1/bad'"}
    else:
        assert found == ["b'bad': is missing", "b'd1/bad': is missing"]
    assert temporary(copy) == []


@JOBS
@pytest.mark.parametrize("retries", [0, 2])
def test_a_large_file_of_which_many_spans_fail_is_named_once(faults: Faults, tmp_path: Path, jobs: int, retries: int) -> None:
    source = make_tree(tmp_path / "src", {**many(3), "bad": Holes(6 * LARGE, {at << 20: b"x" for at in range(6 * 33)})})
    rules = [(call, errno.EIO, EACH, "/src/bad") for call in ("range", "read")]
    done = faults.run("-j", jobs, "--json", "--retries", retries, source, tmp_path / "dst", rules=rules)
    report = json.loads(done.stdout)
    assert [error["path"] for error in report["errors"]] == [f"{source}/bad"]
    assert (done.returncode, report["failed"]) == (1, 1)
    assert len([line for line in messages(done) if "Input/output error" in line]) == 1
    assert differences(source, tmp_path / "dst") == ["b'bad': is missing"]


@JOBS
@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
def test_a_large_file_that_meets_an_error_at_its_end_is_copied_once_more(
    faults: Faults, tmp_path: Path, jobs: int, old: bool
) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir({"big": b"x" * LARGE}), "f": b"1"})
    copy = make_tree(tmp_path / "dst", {"d": Dir({"big": b"old"})} if old else {})
    once, always = ([("chmod", errno.EIO, times, "/dst/d/.pcopy-")] for times in (2, EACH))  # it is set twice
    done = faults.run("-j", jobs, "--json", source, copy, rules=always)
    (error,) = json.loads(done.stdout)["errors"]
    assert (done.returncode, error["path"], error["errno"]) == (1, f"{source}/d/big", errno.EIO), done.stderr
    assert differences(source, copy) == ["b'd/big': is missing"] if not old else (copy / "d/big").read_bytes() == b"old"
    assert faults.run("-j", jobs, "--retries", 0, source, copy, rules=once).returncode == 1
    done = faults.run("-j", jobs, source, copy, rules=once)
    assert done.returncode == 0, done.stderr
    assert differences(source, copy, extra=True) == []


UNOPENED = """
import os, sys, pcopy.cli
first, count = int(sys.argv[1]), 0
def hook(event, arguments):
    global count
    if event == "open" and arguments[0] == "d":
        count += 1
        if first <= count < first + 2:
            raise OSError(5, "Input/output error")
sys.addaudithook(hook)
pcopy.cli.main(sys.argv[2:])
"""


@pytest.mark.parametrize("retries", [0, 2])
def test_a_directory_of_a_large_file_that_cannot_be_opened_for_a_moment(tmp_path: Path, retries: int) -> None:
    """Whatever it was to be opened for: at the end too, when the file is to get its name."""
    source = make_tree(tmp_path / "src", {"d": Dir({"big": b"x" * LARGE})})
    copied = []
    for first in range(1, 9):
        copy = tmp_path / str(first)
        words = [sys.executable, "-c", UNOPENED, str(first), "-q", "-j", "1", "--retries", str(retries), str(source), str(copy)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        copied.append(done.returncode == 0)
        assert (done.returncode, "Input/output error" in done.stderr) in [(0, False), (1, True)], done.stderr
        assert list(copy.rglob(".pcopy-*")) == []
        assert (differences(source, copy) == []) == copied[-1]
        shutil.rmtree(copy)
    assert all(copied) if retries else False in copied


FAILING = """
import os, sys, pcopy.cli
left, place = int(sys.argv[1]), sys.argv[2]
wanted = ("os.mkdir", "e") if place.endswith("/f/f3") else ("open", "f3")
def hook(event, arguments):
    global left
    if (event, arguments[0] if arguments else "") == wanted and left:
        left -= 1
        if not left:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "w") as file:
                file.write("precious")
        raise OSError(5, "Input/output error")
sys.addaudithook(hook)
pcopy.cli.main(sys.argv[3:])
"""


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("there", [True, False])
def test_what_somebody_makes_while_an_error_passes_is_not_taken_for_ours(tmp_path: Path, times: int, there: bool) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir({f"f{number}": b"1" for number in range(6)})})
    copy = make_tree(tmp_path / "dst", {"d": Dir({})} if there else {})
    place = copy / "d/f3"
    command = [sys.executable, "-c", FAILING, str(times), str(place), "-j", "1", str(source), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, place.read_text(), "appeared in the destination" in done.stderr) == (1, "precious", True)


@pytest.mark.parametrize("times", [1, 2])
def test_a_directory_that_somebody_makes_while_an_error_passes_is_not_taken_for_ours(tmp_path: Path, times: int) -> None:
    """The directories that were made when the error came are made once more."""
    below: dict[str | bytes, object] = {f"f{number}": b"1" for number in range(6)}
    source = make_tree(tmp_path / "src", {"d": Dir({name: Dir(below) for name in "abcef"})})
    place = tmp_path / "dst/d/f/f3"
    command = [sys.executable, "-c", FAILING, str(times), str(place), "-j", "1", "--delete", str(source), str(tmp_path / "dst")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, place.read_text()) == (1, "precious"), done.stderr
    assert differences(source / "d/e", tmp_path / "dst/d/e") == []


@JOBS
@pytest.mark.parametrize("old", [False, True], ids=["new", "there"])
def test_a_directory_whose_listing_fails_halfway_is_named_and_never_taken_for_a_shorter_one(
    faults: Faults, tmp_path: Path, jobs: int, old: bool
) -> None:
    bad: dict[str | bytes, object] = {f"f{number}": b"1" for number in range(50)}
    source = make_tree(tmp_path / "src", {**many(3), "bad": Dir(bad), "d1": Dir({"bad": Dir({"x": b"1"}), "good": b"1"})})
    copy = make_tree(tmp_path / "dst", {"bad": Dir({"f1": b"kept", "old": b"kept"})} if old else {})
    rules = [("list", errno.EIO, EACH, "/src/bad"), ("list", errno.EIO, EACH, "/src/d1/bad")]
    done = faults.run("-j", jobs, "--json", source, copy, rules=rules)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert sorted(error["path"] for error in report["errors"]) == [f"{source}/bad", f"{source}/d1/bad"]
    assert all(error["reason"].startswith("Input/output error") for error in report["errors"])
    assert report["vanished"] == 0
    if old:
        assert {path.name: path.read_bytes() for path in (copy / "bad").iterdir()} == {"f1": b"kept", "old": b"kept"}
    else:
        assert differences(source, copy) == ["b'bad': is missing", "b'd1/bad': is missing"]


@JOBS
@pytest.mark.parametrize("side", ["src", "dst"])
@pytest.mark.parametrize("call", ["list", "open"])
def test_a_directory_that_cannot_be_listed_is_named_with_its_side_and_the_operation(
    faults: Faults, tmp_path: Path, jobs: int, side: str, call: str
) -> None:
    source = make_tree(tmp_path / "src", {**many(2), "bad": Dir({"a": b"1", "b": b"1"})})
    make_tree(tmp_path / "dst", {"bad": Dir({"a": b"old", "b": b"old"})})
    needle = f"/{side}/bad" if call == "list" else f"/{side}/bad$"
    done = faults.run("-j", jobs, "--json", source, tmp_path / "dst", rules=[(call, errno.EIO, EACH, needle)])
    (error,) = json.loads(done.stdout)["errors"]
    operation = "read directory" if call == "list" else "open directory"
    assert (done.returncode, error["path"], error["operation"]) == (1, str(tmp_path / side / "bad"), operation)
    assert f"pcopy: {tmp_path}/{side}/bad: {operation}: Input/output error" in done.stderr
    assert (tmp_path / "dst/bad/a").read_bytes() == b"old"


@JOBS
def test_a_source_that_cannot_be_listed_leaves_no_empty_copy_and_stops_no_other(
    faults: Faults, tmp_path: Path, jobs: int
) -> None:
    """Its copy is gone, but not the destination: an error elsewhere is one of its entry."""
    bad = make_tree(tmp_path / "bad", {"a": b"1", "b": b"1"})
    good = make_tree(tmp_path / "good", {**many(3), "x": b"1"})
    rules = [("list", errno.EIO, EACH, "/bad"), ("range", errno.EIO, EACH, "/good/x"), ("read", errno.EIO, EACH, "/good/x")]
    done = faults.run("-j", jobs, "--json", "--retries", 0, good, bad, tmp_path / "dst", rules=rules)
    report = json.loads(done.stdout)
    assert (done.returncode, report["failed"]) == (1, 2), done.stderr
    assert sorted(error["path"] for error in report["errors"]) == [str(bad), f"{good}/x"]
    assert os.listdir(tmp_path / "dst") == ["good"]
    assert differences(good, tmp_path / "dst" / "good") == ["b'x': is missing"]


@JOBS
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT], ids=errno.errorcode.get)
def test_what_cannot_be_opened_is_never_taken_for_vanished(faults: Faults, tmp_path: Path, jobs: int, number: int) -> None:
    source = make_tree(tmp_path / "src", {**many(2), "bad": b"1", "shut": Dir({"x": b"1"})})
    rules = [("open", number, EACH, "/src/bad"), ("open", number, EACH, "/src/shut")]
    done = faults.run("-j", jobs, "--json", source, tmp_path / "dst", rules=rules)
    report = json.loads(done.stdout)
    assert (done.returncode, report["failed"], report["vanished"]) == (1, 2, 0), done.stderr
    assert differences(source, tmp_path / "dst") == ["b'bad': is missing", "b'shut': is missing"]


# ---- sources that change --------------------------------------------------------------------------------------------


@JOBS
@pytest.mark.parametrize("size", [20_000, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("what", [GROW, SHRINK, REWRITE], ids=["grows", "shrinks", "is rewritten"])
@pytest.mark.parametrize("times", [1, EACH], ids=["once", "always"])
def test_a_source_that_changes_while_it_is_read_is_never_a_mixture(
    faults: Faults, tmp_path: Path, jobs: int, size: int, what: int, times: int
) -> None:
    """Its first bytes are read, then it changes. The copy is one version or the other, or it is not there and is named."""
    source = make_tree(tmp_path / "src", {"d": Dir({"busy": b"A" * size, "quiet": b"1"})})
    done = faults.run("-j", jobs, "--json", source, tmp_path / "dst", rules=[("ranged", what, times, "/src/d/busy")])
    assert json.loads(done.stdout)["exit_status"] == done.returncode
    copy = tmp_path / "dst/d/busy"
    if done.returncode:
        assert (done.returncode, times) == (1, EACH)
        assert "d/busy" in done.stderr
        assert not copy.exists()
    else:
        assert copy.read_bytes() == (source / "d/busy").read_bytes()
        assert differences(source / "d", tmp_path / "dst/d") == []
    assert temporary(tmp_path / "dst") == []
    assert (tmp_path / "dst/d/quiet").read_bytes() == b"1"


@as_root
@JOBS
@pytest.mark.parametrize("size", [100_000, LARGE], ids=["small", "large"])
def test_a_second_change_within_a_second_is_not_missed(faults: Faults, tmp_path: Path, jobs: int, size: int) -> None:
    """The file system keeps whole seconds, so no time of the file tells of it."""
    with loop_mounted(tmp_path, "ext4", "-q", "-I", "128", size=128 << 20) as disk:
        source = make_tree(disk / "src", {"f": b"x" * size})
        time.sleep(1.05 - time.time() % 1)  # the kernel's clock lags behind by up to a tick
        (source / "f").write_bytes(b"y" * size)
        done = faults.run("-j", jobs, source, disk / "dst", rules=[("ranged", REWRITE, 1, "/src/f$")])
        assert done.returncode == 0, done.stderr
        assert differences(source, disk / "dst") == []


@as_root
@JOBS
def test_a_file_that_is_changed_all_the_time_is_not_copied_where_that_may_not_show(tmp_path: Path, jobs: int) -> None:
    """The file system keeps whole seconds: what is read within one may be of many versions."""
    writer = "import os, itertools\nfor n in itertools.count(): os.pwrite(1, bytes([65 + n % 26]) * 900_000, 0)"
    with loop_mounted(tmp_path, "ext4", "-q", "-I", "128") as disk:
        source = make_tree(disk / "src", {"busy": b"x" * 900_000, "quiet": b"1"})
        with open(source / "busy", "r+b") as file:
            busy = subprocess.Popen([sys.executable, "-c", writer], stdout=file)
        try:
            assert wait_until(lambda: (source / "busy").read_bytes()[:1] != b"x", 5)
            report = library.copy(source, tmp_path / "dst", jobs=jobs)
        finally:
            busy.kill()
            busy.wait()
        assert [(error.path, error.errno) for error in report.errors] == [(f"{source}/busy", errno.EBUSY)]
        assert (report.exit_status, report.files) == (1, 1)
        assert os.listdir(tmp_path / "dst") == ["quiet"]


@JOBS
@pytest.mark.parametrize("kind", ["link", "secret", "fifo", "file"])
@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
def test_what_takes_the_place_of_a_file_before_it_is_opened_is_not_read_through(
    faults: Faults, tmp_path: Path, jobs: int, kind: str, old: bool
) -> None:
    """The name is swapped between the look at it and the opening of it."""
    (tmp_path / "secret").write_bytes(b"secret")
    secret = Link(str(tmp_path / "secret"))
    kinds: dict[str, object] = {"link": Link("other"), "secret": secret, "fifo": Fifo(), "file": b"another"}
    source = make_tree(tmp_path / "src", {"d": Dir({"victim": b"one", "victim.swap": kinds[kind], "other": b"2"})})
    if old:
        make_tree(tmp_path / "dst", {"d": Dir({"victim": b"an older day"})})
    done = faults.run("-j", jobs, "--json", source, tmp_path / "dst", rules=[("open", SWAP, 1, "/src/d/victim$")])
    assert not os.path.lexists(source / "d/victim.swap")
    report = json.loads(done.stdout)
    assert "Traceback" not in done.stderr
    found = [line for line in differences(source / "d", tmp_path / "dst/d", extra=True) if line.startswith("b'victim'")]
    if done.returncode:
        assert (done.returncode, {error["path"] for error in report["errors"]}) == (1, {f"{source}/d/victim"})
        assert (tmp_path / "dst/d/victim").read_bytes() == b"an older day" if old else found == ["b'victim': is missing"]
    else:
        assert found == []


@JOBS
def test_what_takes_the_place_of_an_unchanged_copy_gets_no_attributes(faults: Faults, tmp_path: Path, jobs: int) -> None:
    """The name is swapped between the look at the copy and its update."""
    source = make_tree(tmp_path / "src", {"d": Dir({"victim": b"one", "other": b"2"})})
    assert library.copy(source, tmp_path / "dst", jobs=1).ok
    (source / "d/victim").chmod(0o4755)
    another = tmp_path / "dst/d/victim.swap"
    another.write_bytes(b"another")
    another.chmod(0o600)
    done = faults.run("-j", jobs, "--json", source, tmp_path / "dst", rules=[("open", SWAP, 1, "/dst/d/victim$")])
    assert not another.exists(), "it was not swapped"
    swapped = (tmp_path / "dst/d/victim").stat()
    assert (swapped.st_mode & 0o7777, swapped.st_size) == (0o600, len(b"another"))
    assert done.returncode == 1
    assert [(one["path"], one["errno"]) for one in json.loads(done.stdout)["errors"]] == [(f"{source}/d/victim", errno.EBUSY)]
    assert library.copy(source, tmp_path / "dst", jobs=jobs).ok
    assert differences(source, tmp_path / "dst") == []


@JOBS
def test_a_large_file_that_is_cut_short_under_way_does_not_get_its_name(faults: Faults, tmp_path: Path, jobs: int) -> None:
    """Each time that its temporary file is closed somebody cuts it; so it is when all of it was copied."""
    source = make_tree(tmp_path / "src", {"d": Dir({"big": b"x" * LARGE, "other": b"2"})})
    done = faults.run("-j", jobs, "--json", source, tmp_path / "dst", rules=[("close", SHRINK, 1000, "/.pcopy-")])
    assert done.returncode == 1
    assert [one["path"] for one in json.loads(done.stdout)["errors"]] == [f"{source}/d/big"]
    assert sorted(path.name for path in (tmp_path / "dst/d").iterdir()) == ["other"]
    assert library.copy(source, tmp_path / "dst", jobs=jobs).ok
    assert differences(source, tmp_path / "dst") == []


# ---- hostile destinations -------------------------------------------------------------------------------------------


@JOBS
def test_links_planted_at_every_level_are_replaced_and_not_followed(tmp_path: Path, jobs: int) -> None:
    out = make_tree(tmp_path / "out", {"f": b"mine", "d": Dir({"f": b"mine", "d": Dir({"f": b"mine"})})})
    subprocess.run(["cp", "-a", out, tmp_path / "as it was"], check=True)
    deep: dict[str | bytes, object] = {"f": b"new", "l": Link("f"), "p": Fifo(), "h": Hard("f")}
    below = Dir({**deep, "d": Dir({**deep, "d": Dir(deep)})})
    source = make_tree(tmp_path / "src", {**deep, "big": Holes(LARGE, {0: b"new"}), "d": below})
    for level in range(4):
        copy = tmp_path / f"dst{level}"
        planted: dict[str | bytes, object] = {name: Link(str(out / "f")) for name in ("f", "l", "p", "h")}
        if level < 3:
            planted["d"] = Link(str(out / "d") if level else "/")
        for _ in range(level):
            planted = {"d": Dir(planted)}
        make_tree(copy, {**planted, "big": Link(str(out / "f"))})
        report = library.copy(source, copy, jobs=jobs)
        assert report.ok, report.errors
        assert differences(source, copy) == []
        assert differences(tmp_path / "as it was", out) == []


RACE = """
import os, sys
here, out = sys.argv[1:]
print("ready", flush=True)
while True:
    for name in ("d0", "d1", "d2", "d3"):
        try:
            os.rename(f"{here}/{name}", f"{here}/.aside")
            os.symlink(out, f"{here}/{name}")
            os.unlink(f"{here}/{name}")
            os.rename(f"{here}/.aside", f"{here}/{name}")
        except OSError:
            try:
                os.rename(f"{here}/.aside", f"{here}/{name}")
            except OSError:
                pass
"""


def test_a_directory_that_is_swapped_for_a_link_all_the_time_does_not_lead_out(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", many(4, 30, 10))
    out = make_tree(tmp_path / "out", {})
    copy = make_tree(tmp_path / "dst", {})
    racer = subprocess.Popen([sys.executable, "-c", RACE, copy, out], stdout=subprocess.PIPE)
    try:
        assert racer.stdout and racer.stdout.readline() == b"ready\n"
        for number in range(16):
            report = library.copy(source, copy, jobs=1, overwrite="always", atomic=bool(number % 2))
            assert report.exit_status in (0, 1, 3)
            assert os.listdir(out) == []
            for path in list(copy.iterdir()) if number % 5 == 0 else ():
                shutil.rmtree(path, ignore_errors=True)
    finally:
        racer.kill()
        racer.communicate()
    assert out.stat().st_mtime_ns == WHEN
    shutil.rmtree(copy)
    assert library.copy(source, copy, jobs=1).ok


@as_root
@JOBS
def test_nobody_else_can_read_or_run_a_file_before_it_is_done(tmp_path: Path, jobs: int) -> None:
    """Every state that a new file passes through: mode 0600 until the owner is right, special bits only after that."""
    modes = enumerate((0o4755, 0o2755, 0o666, 0o6777))
    files: dict[str | bytes, object] = {f"f{number}": File(b"text", mode, owner=(12, 34)) for number, mode in modes}
    source = make_tree(tmp_path / "src", {**files, "d": Dir({**files, "l": Link("f0")}), "big": Holes(LARGE)})
    os.chown(source / "big", 12, 34)
    os.chmod(source / "big", 0o4755)
    make_tree(tmp_path / "dst", {"f1": b"old", "d": Dir({"f0": b"old"})})
    log = tmp_path / "strace"
    calls = "openat,fchown,fchmod,fchmodat,chmod,fchownat,chown"
    words = [*strace("-y", "-e", f"trace={calls}", log=log), sys.executable, "-m", "pcopy"]
    words += ["-j", str(jobs), str(source), str(tmp_path / "dst")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    lines = lines_of(log)
    assert done.returncode == 0, done.stderr
    owned: set[str] = set()
    made = 0
    for line in lines:
        call = line.split(maxsplit=1)[1]
        target = re.search(r"<([^>]*/dst/[^>]*)>", call)
        if call.startswith("openat") and "O_CREAT" in call and "/dst" in call:
            assert re.search(r"O_EXCL.*, 0600\b", call), call
            made += 1
        elif target and re.match(r"f?chown", call):
            owned.add(target[1])
        elif target and call.startswith("fchmod("):
            mode = int(re.findall(r", (0\d+)", call)[-1], 8)
            assert mode & 0o6077 == 0 or target[1] in owned or stat.S_ISDIR(os.lstat(target[1]).st_mode), call
    assert made >= 9
    assert differences(source, tmp_path / "dst") == []


@JOBS
@pytest.mark.parametrize("mode", [0o700, 0o750, 0o500])
def test_nobody_reaches_new_files_through_a_directory_that_was_open_before(
    tmp_path: Path, jobs: int, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its source was closed since: it is to be before they come, whenever its other attributes are set."""
    monkeypatch.setattr("pcopy.coordinator.FIRST", 0.0)
    monkeypatch.setattr("pcopy.coordinator.LONG", 0.001)
    inside: dict[str | bytes, object] = {f"f{number}": b"1" for number in range(200)}
    source = make_tree(tmp_path / "src", {**inside, "d": Dir(inside)})
    copy = make_tree(tmp_path / "dst", {"d": Dir({})})
    for place in ("d", "."):
        (source / place).chmod(mode)
        (copy / place).chmod(0o775)
    seen = []

    class Looks(library.Observer):
        def progress(self, progress: library.Progress) -> None:
            for place in (copy, copy / "d"):
                count = len(list(place.glob("f*")))
                seen.append(0 < count < len(inside))
                assert not count or stat.S_IMODE(place.stat().st_mode) & ~mode & 0o077 == 0

    assert library.copy(source, copy, jobs=jobs, observer=Looks()).ok
    assert any(seen)
    assert [stat.S_IMODE((copy / place).stat().st_mode) for place in ("d", ".")] == [mode, mode]
    for place in ("d", "."):
        (source / place).chmod(0o700)
        (copy / place).chmod(0o700)


@as_root
@JOBS
@pytest.mark.parametrize("before", ["chown 12:34", "chown :34", "setfacl -m u:12:rwx"])
def test_nobody_reaches_new_files_who_was_let_in_by_other_means(
    tmp_path: Path, jobs: int, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The modes of the two directories are equal."""
    if not shutil.which("setfacl"):
        pytest.skip("needs setfacl")
    monkeypatch.setattr("pcopy.coordinator.FIRST", 0.0)
    monkeypatch.setattr("pcopy.coordinator.LONG", 0.001)
    source = make_tree(tmp_path / "src", {f"f{number}": b"1" for number in range(200)})
    copy = make_tree(tmp_path / "dst", {})
    for place in (source, copy):
        place.chmod(0o770)
    subprocess.run([*before.split(), copy], check=True)
    seen = []

    class Looks(library.Observer):
        def progress(self, progress: library.Progress) -> None:
            count = len(list(copy.glob("f*")))
            if 0 < count < 200:
                state = copy.stat()
                seen.append((state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)))

    assert library.copy(source, copy, jobs=jobs, observer=Looks()).ok
    assert set(seen) == {(0, 0, 0o700)}
    assert differences(source, copy) == []


@as_root
def test_an_owner_to_be_gets_no_more_than_is_his(tmp_path: Path) -> None:
    """Of a copy that is only brought up to date."""
    source = make_tree(tmp_path / "src", {"f": File(b"1", 0o640, owner=(12, 34))})
    copy = make_tree(tmp_path / "dst", {"f": File(b"1", 0o4664, owner=(0, 0))})
    log = tmp_path / "strace"
    words = [*strace("-e", "trace=chmod,fchmodat,chown,fchownat", log=log), sys.executable, "-m", "pcopy"]
    done = subprocess.run([*words, "-j", "1", str(source), str(copy)], capture_output=True, text=True, timeout=60, check=False)
    lines = lines_of(log)
    assert done.returncode == 0 and "1 unchanged" in done.stderr, done.stderr
    calls = [line.split(maxsplit=1)[1] for line in lines if "/proc/self/fd/" in line]
    assert [re.sub(r"^f?(ch...).*?, (0\d+|\d+, \d+).*", r"\1 \2", call) for call in calls] == [
        "chmod 0640",
        "chown 12, 34",
        "chmod 0640",
    ]
    assert differences(source, copy) == []


@as_root
@JOBS
def test_special_bits_are_dropped_and_said_where_the_owner_cannot_be_set(tmp_path: Path, jobs: int) -> None:
    files: dict[str | bytes, object] = {f"f{number}": File(b"1", 0o6755, owner=(12, 34)) for number in range(5)}
    source = make_tree(tmp_path / "src", {**files, "d": Dir(files)})
    done = unprivileged("-j", jobs, source, tmp_path / "dst")
    assert done.returncode == 0, done.stderr
    assert [line for line in messages(done) if "set-uid and set-gid bits: could not be preserved on 10" in line]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "dst").rglob("f*")}
    assert modes == {0o755}


# ---- hostile names --------------------------------------------------------------------------------------------------

NAMES = [
    b"\x1b[2J\x1b[H", b"\x1b]0;owned\x07", b"a\nb", b"a\rb", b"\x7f\x08", b"\xc2\x9b31m", b"\xff\xfe", b"\xe2\x80\xaemoc.exe",
    b"tab\there", b"\x01\x02", b"x" * 255, b"\xed\xb2\x80", b"pcopy: f: copied 9 files", b"%s%n", b"\\n",
]  # fmt: skip


def on_a_terminal(*arguments: object) -> tuple[int, bytes]:
    """The status of a run, and all that it wrote to the terminal that was its stdout and stderr."""
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-m", "pcopy", *map(str, arguments)])
    text = b""
    with contextlib.suppress(OSError), open(terminal, "rb", buffering=0) as stream:
        while block := stream.read(1 << 16):
            text += block
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


@JOBS
@pytest.mark.parametrize("options", [["-v", "--no-progress"], ["-v", "--progress"]], ids=["lines", "bars"])
def test_no_name_reaches_a_terminal_as_it_is(tmp_path: Path, jobs: int, options: list[str]) -> None:
    """Copied, and failed because a full directory is in the way. What tqdm writes moves the cursor and no more."""
    entries: dict[str | bytes, object] = {name: os.fsdecode(name).encode("utf-8", "replace") for name in NAMES}
    source = make_tree(tmp_path / "src", {**entries, "d": Dir(entries), **many(2, 100, 10)})
    make_tree(tmp_path / "dst", {"d": Dir({name: Dir({"mine": b"1"}) for name in NAMES})})
    status, text = on_a_terminal("-j", jobs, *options, source, tmp_path / "dst")
    assert status == 1
    text = re.sub(rb"\x1b\[A|\r|\n", b"", text) if "--progress" in options else re.sub(rb"\r\n", b"", text)
    seen = text.decode("utf-8")
    assert [hex(ord(one)) for one in seen if not one.isprintable()] == []
    assert "\\x1b[2J" in seen


@JOBS
def test_names_come_back_from_json_without_loss(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    entries: dict[str | bytes, object] = dict.fromkeys(NAMES, b"1")
    source = make_tree(tmp_path / "src", {"d": Dir(entries)})
    make_tree(tmp_path / "dst", {"d": Dir({name: Dir({"mine": b"1"}) for name in NAMES})})
    done = pcopy("-j", jobs, "--json", "-q", source, tmp_path / "dst")
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert line.isascii()
    assert {os.path.basename(os.fsencode(error["path"])) for error in json.loads(line)["errors"]} == set(NAMES)


@JOBS
def test_a_source_that_cannot_be_closed_is_copied_all_the_same(faults: Faults, tmp_path: Path, jobs: int) -> None:
    """All that was read of it is there. FUSE can report an error there."""
    source = make_tree(tmp_path / "src", {**many(40), "extra": Dir({"e": b"1"})})
    make_tree(tmp_path / "dst", {"extra": Dir({"gone": b"2"})})
    time.sleep(SHORTLY / 1e9 + 0.1)  # what was changed just now is copied by another way
    done = faults.run("-j", jobs, "--delete", source, tmp_path / "dst", rules=[("close", errno.EREMOTEIO, EACH, "/src")])
    assert done.returncode == 0, done.stderr
    assert differences(source, tmp_path / "dst") == []


@JOBS
def test_directories_that_cannot_be_closed_are_copied_all_the_same(faults: Faults, tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"a": Dir({"b": Dir({})}), "c": Dir({})})
    for _ in range(2):
        rules = [("close", errno.EREMOTEIO, EACH, needle) for needle in ("/src", "/dst")]
        done = faults.run("-j", jobs, "--delete", "--fsync", source, tmp_path / "dst", rules=rules)
        assert done.returncode == 0, done.stderr
        assert differences(source, tmp_path / "dst", extra=True) == []


# ---- two runs at once, and runs that are killed ---------------------------------------------------------------------


@JOBS
def test_a_second_run_stops_and_a_killed_one_does_not_lock_it_out(
    start: Callable[..., Script], tmp_path: Path, pcopy: Run, jobs: int
) -> None:
    source = make_tree(tmp_path / "src", many(20, 40, 100))
    copy = make_tree(tmp_path / "dst", {})
    first = start("-j", jobs, source, copy)
    assert wait_until(lambda: files_in(copy) > 20, 30)
    first.process.send_signal(signal.SIGSTOP)  # it cannot end meanwhile
    second = pcopy("-j", jobs, source, copy)
    assert_stopped(second, "another run is copying into it")
    first.process.kill()
    first.process.wait()
    assert wait_until(lambda: not first.others(), 2.0)
    third = pcopy("-j", jobs, source, copy)
    assert third.returncode == 0, third.stderr
    assert differences(source, copy) == []


@JOBS
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_where_nothing_can_be_locked_a_run_leaves_the_temporary_names_of_another(
    start: Callable[..., Script], faults: Faults, tmp_path: Path, jobs: int, number: int
) -> None:
    """The first is stopped while it has one, for as long as the second one runs over the same directories."""
    source, copy = make_tree(tmp_path / "src", many()), make_tree(tmp_path / "dst", {})
    other = make_tree(tmp_path / "other", {f"d{one}": Dir({"other": b"1"}, mtime_ns=WHEN + one) for one in range(6)})
    no_locks = ("flock", number, EACH, "/dst")
    slowly = [(call, PAUSE, EACH, "/.pcopy-") for call in ("into", "chmod", "close")]
    first = start("-j", 1, "--atomic", source, copy, rules=[no_locks, *slowly])
    names: list[Path] = []
    while not names:
        assert wait_until(lambda: temporary(copy), 30)
        first.process.send_signal(signal.SIGSTOP)
        assert wait_until(lambda: state_of(first.process.pid) == "T", 5)
        names = temporary(copy)
        if not names:
            first.process.send_signal(signal.SIGCONT)
    second = faults.run("-j", jobs, other, copy, rules=[no_locks])
    assert second.returncode == 0, second.stderr
    assert [line for line in messages(second) if "cannot be locked" in line] == messages(second)[:-1]
    assert len(messages(second)) == 2
    assert temporary(copy) == names
    first.process.send_signal(signal.SIGCONT)
    status, _, err = first.ended()
    assert status == 0, err
    assert differences(source, copy, extra=True) == differences(other, copy, extra=True) == []


BIG = Holes(LARGE, {at << 20: b"x" * 5000 for at in range(33)})
MINE: dict[str | bytes, object] = {
    ".pcopy-foo": b"mine", ".pcopy-0123ABCD-0-0123456789abcdef": b"mine", ".pcopy-0123abcd-0-0123456789abcdef.bak": b"mine",
}  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_a_coordinator_killed_at_any_moment_leaves_no_process_and_a_rerun_heals(
    start: Callable[..., Script], faults: Faults, tmp_path: Path, pcopy: Run, seed: int
) -> None:
    """Files that are new, files that replace others, a large one; killed some time after the first of them appears."""
    rng = random.Random(seed)
    source = make_tree(tmp_path / "src", {**many(6, 40, 5000), "big": BIG})
    old: dict[str | bytes, object] = {f"f{number}": File(b"old", mtime_ns=5) for number in range(0, 40, 2)}
    copy = make_tree(tmp_path / "dst", {**MINE, "d1": Dir({**old, **MINE}), "d2": Dir(old)})
    for _ in range(3):
        script = start("-j", 3 if seed % 3 else 1, *(["--atomic"] if seed % 2 else []), source, copy)
        assert wait_until(partial(is_under_way, faults, script), 30)
        time.sleep(rng.uniform(0, 0.15))
        script.process.kill()
        script.process.wait()
        assert wait_until(partial(is_alone, script), 2.0), script.others()
    done = pcopy("-j", 2, source, copy)
    assert done.returncode == 0, done.stderr
    assert differences(source, copy, extra=True) == []
    assert temporary(copy) == []
    assert {path.name for path in copy.iterdir()} == {*map(str, MINE), "big", *(f"d{one}" for one in range(6))}
    assert {name for name in os.listdir(copy / "d1") if name.startswith(".")} == set(MINE)


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_at_any_moment_leaves_whole_files_and_a_line(
    start: Callable[..., Script], faults: Faults, tmp_path: Path, jobs: int, number: signal.Signals
) -> None:
    rng = random.Random(jobs * 100 + number)
    source = make_tree(tmp_path / "src", {**many(6, 40, 5000), "big": BIG})
    copy = make_tree(tmp_path / "dst", {"d1": Dir({f"f{n}": File(b"old", mtime_ns=5) for n in range(40)})})
    before = {f"d1/f{n}": b"old" for n in range(40)}
    there = 0
    for _ in range(3):
        script = start("-j", jobs, source, copy)
        assert wait_until(partial(is_under_way, faults, script), 30)
        time.sleep(rng.uniform(0, 0.1))
        script.process.send_signal(number)
        status, out, err = script.ended()
        if status == 0:
            break  # it was done before the signal came
        assert (status, out) == (128 + number, ""), err
        *others, last = err.splitlines()
        assert others == []
        assert re.fullmatch(r"interrupted: copied [\d,]+ files?, .*; run the same line again to go on", last), err
        assert wait_until(partial(is_alone, script), 2.0)
        assert_whole(source, copy, before)
        assert files_in(copy) >= there
        there = files_in(copy)
    assert library.copy(source, copy, jobs=1).ok
    assert differences(source, copy) == []
