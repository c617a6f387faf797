"""Stable storage, and errors that pass: what ``--fsync`` and ``--retries`` promise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.comparer import differences
from tests.conftest import SHARED, Run, as_root, compiled
from tests.strace import lines_of, strace
from tests.test_fidelity import on_loop_device
from tests.test_order import traced
from tests.trees import Dir, File, Hard, Holes, Link, make_tree, read_tree

LARGE = 33 << 20
JOBS = pytest.mark.parametrize("jobs", [1, 3])


@pytest.fixture
def tmp_path(on_disk: Path) -> Path:
    return on_disk


# ---- fsync ----------------------------------------------------------------------------------------------------------


def syncs_and_names(trace: list[str]) -> list[str]:
    """What was synced, renamed and made under which name, in order."""
    found = []
    for line in trace:
        if match := re.match(r"fsync\(\d+<(.*)>\) += 0", line):
            found.append(f"sync {match[1]}")
        elif match := re.match(r'renameat2?\(\d+<(.*?)>, "(.*?)", \d+<.*?>, "(.*?)"', line):
            found.append(f"rename {match[1]}/{match[3]}")
    return found


def test_every_file_and_every_directory_is_synced_after_its_last_change(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"a": b"1", "d": Dir({"b": b"2", "l": Link("b"), "h": Hard("a")}), "e": Dir()})
    copy = make_tree(tmp_path / "dst", {"d": Dir({"b": b"old"})})
    trace = traced(tmp_path, "--fsync", source, copy)
    done = syncs_and_names(trace)
    for name in ("a", ".", "d", "e"):
        assert done.count(f"sync {copy / name}") >= 1, done
    replaced = done.index(f"rename {copy}/d/b")
    assert done[replaced - 1].startswith(f"sync {copy}/d/.pcopy-")  # its contents before its name
    assert f"sync {copy}/d" in done[replaced:]  # and its name before the end
    assert f"sync {tmp_path}" in done  # the name of the destination itself
    last = {
        directory: max(at for at, line in enumerate(done) if line == f"sync {directory}") for directory in (copy, copy / "d")
    }
    for directory, at in last.items():
        names = [line for line in trace if re.search(rf'(linkat|symlinkat|renameat2?|mkdirat)\(.*<{directory}>, "', line)]
        assert names
        synced = [number for number, line in enumerate(trace) if re.match(rf"fsync\(\d+<{directory}>\)", line)]
        assert max(trace.index(line) for line in names) < synced[-1], at


def test_one_file_is_synced_with_the_directory_that_it_goes_into(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1")
    (tmp_path / "d").mkdir()
    done = syncs_and_names(traced(tmp_path, "--fsync", tmp_path / "f", f"{tmp_path}/d/"))
    before, *after = done
    assert before.startswith(f"sync {tmp_path}/d/.pcopy-")  # nobody looked whether it was there: it is made aside
    assert after == [f"rename {tmp_path}/d/f", f"sync {tmp_path}/d", f"sync {tmp_path}"]


def test_a_large_file_is_synced_before_it_gets_its_name(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/large").write_bytes(b"x" * LARGE)
    done = syncs_and_names(traced(tmp_path, "--fsync", tmp_path / "src", tmp_path / "dst"))
    named = done.index(f"rename {tmp_path}/dst/large")
    assert done[named - 1].startswith(f"sync {tmp_path}/dst/.pcopy-")


def test_without_it_nothing_is_synced(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"a": b"1", "d": Dir({"b": b"2"})})
    assert syncs_and_names(traced(tmp_path, source, tmp_path / "dst")) == []


# ---- a power cut ----------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A loop-mounted ext4 image; its file is beside it, named image."""
    if os.geteuid() or not shutil.which("mkfs.ext4"):
        pytest.skip("needs root and mkfs.ext4")
    image, place = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(300 << 20)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, check=False).returncode:
        pytest.skip("no loop mounts here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def seen_after_a_cut(image: Path, work: Path) -> Path:
    """What is on the disk at this moment, mounted at another place: its journal is replayed, its caches are gone."""
    cut, place = work / "cut", work / "again"
    subprocess.run(["cp", "--sparse=always", image, cut], check=True)
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", cut, place], check=True)
    return place


@as_root
@JOBS
@pytest.mark.parametrize("fsync", [[], ["--fsync"]], ids=["plain", "fsync"])
def test_a_rerun_after_a_power_cut_makes_the_copy_whole(
    tmp_path: Path, disk: Path, pcopy: Run, jobs: int, fsync: list[str]
) -> None:
    """The image is copied in the middle of the run, without a word to anybody, as a cut would leave it."""
    files: dict[str | bytes, object] = {f"f{number}": os.urandom(3000 + number) for number in range(300)}
    source = make_tree(
        tmp_path / "src", {**{f"d{number}": Dir(files) for number in range(8)}, "large": File(os.urandom(LARGE))}
    )
    command = [sys.executable, "-m", "pcopy", "-q", "-j", str(jobs), *fsync, str(source), str(disk / "copy")]
    run = subprocess.Popen(command)
    while not (disk / "copy/d0").exists() and run.poll() is None:
        time.sleep(0.01)
    time.sleep(0.05)
    place = seen_after_a_cut(tmp_path / "image", tmp_path)
    try:
        assert run.wait(60) == 0
        done = pcopy("-j", jobs, source, place / "copy")
        assert done.returncode == 0, done.stderr
        assert read_tree(place / "copy") == read_tree(source)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@as_root
@JOBS
def test_a_power_cut_after_the_exit_status_takes_nothing_away(tmp_path: Path, disk: Path, pcopy: Run, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir({f"f{number}": os.urandom(5000) for number in range(50)}), "l": Link("d")})
    make_tree(disk / "copy", {"d": Dir({"f1": b"old"})})
    subprocess.run(["sync", "-f", disk], check=True)
    done = pcopy("-j", jobs, "--fsync", source, disk / "copy")
    assert done.returncode == 0, done.stderr
    place = seen_after_a_cut(tmp_path / "image", tmp_path)
    try:
        assert read_tree(place / "copy") == read_tree(source)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@as_root
@JOBS
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_lengths_and_times_that_reached_the_disk_before_the_contents_are_not_believed(
    tmp_path: Path, pcopy: Run, jobs: int, kind: str
) -> None:
    """The cut comes when the journal is written and the contents are not: another file was synced after the run."""
    holes = Holes(300_000, {0: os.urandom(100_000)})
    inside = {"large": os.urandom(40_000_000), "holes": holes, "only": Holes(1 << 20), "small": os.urandom(9000)}
    source = make_tree(tmp_path / "src", {**inside, "d": Dir({"large": os.urandom(LARGE + 5)})})
    with on_loop_device(kind, tmp_path / "disk") as disk:
        assert pcopy("-j", jobs, source, disk / "copy").returncode == 0
        with open(disk / "other", "wb") as other:
            os.fsync(other.fileno())
        cut = tmp_path / "cut"
        subprocess.run(["cp", "--sparse=always", tmp_path / "disk.image", cut], check=True)
    place = tmp_path / "again"
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", cut, place], check=True)
    try:
        done = pcopy("-j", jobs, source, place / "copy")
        assert done.returncode == 0, done.stderr
        assert read_tree(place / "copy") == read_tree(source)
        again = pcopy("-j", jobs, source, place / "copy")
        assert again.stderr.startswith("copied 0 files"), again.stderr
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def lose_contents(path: Path, start: int = 0) -> None:
    """As a power cut leaves it: the length and the times are there, blocks are reserved, and what was in them is not."""
    state = path.stat()
    with open(path, "r+b") as file:
        file.truncate(start)
        os.posix_fallocate(file.fileno(), start, state.st_size - start)
        if os.lseek(file.fileno(), start, os.SEEK_HOLE) >= state.st_size:
            pytest.skip("this file system does not tell what was written")
    path.read_bytes()  # as a look at it would: zeros that are in memory do not show any more as what was not written
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@JOBS
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ([], []), (["--bwlimit", "500M"], []), (["--sparse", "always"], []), ([], ["--sparse", "never"]),
        (["--sparse", "always"], ["--atomic"]), ([], ["--fsync"]), ([], ["--overwrite", "older"]),
    ],
    ids=lambda words: " ".join(words) or "plain",
)  # fmt: skip
def test_contents_that_were_lost_are_noticed_whatever_the_size(
    tmp_path: Path, pcopy: Run, jobs: int, first: list[str], then: list[str]
) -> None:
    inside: dict[str | bytes, object] = {"g": b"1", "large": os.urandom(LARGE)}
    ends = os.urandom(5_000_000) + bytes(32 << 10)  # which is a hole with --sparse always
    source = make_tree(tmp_path / "src", {"f": os.urandom(1_000_000), "ends": ends, "d": Dir(inside)})
    assert pcopy("-j", jobs, *first, source, tmp_path / "dst").returncode == 0
    for name in ("f", "ends", "d/g", "d/large"):
        lose_contents(tmp_path / "dst" / name, 0 if name != "d/large" else 30 << 20)
    done = pcopy("-j", jobs, *then, source, tmp_path / "dst")
    assert done.stderr.startswith("copied 4 files"), done.stderr
    assert differences(source, tmp_path / "dst", extra=True) == []
    assert pcopy("-j", jobs, *then, source, tmp_path / "dst").stderr.startswith("copied 0 files")


@JOBS
def test_contents_that_were_lost_below_a_copy_that_fills_holes_are_noticed(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"f": Holes(80 << 20, {70 << 20: os.urandom(5 << 20)})})
    words = ("-j", jobs, "--sparse", "never", source, tmp_path / "dst")
    assert pcopy(*words).returncode == 0
    lose_contents(tmp_path / "dst/f", 25 << 20)
    assert pcopy(*words).stderr.startswith("copied 1 file")
    assert (tmp_path / "dst/f").read_bytes() == (source / "f").read_bytes()


@JOBS
@pytest.mark.parametrize("atomic", [[], ["--atomic"]], ids=["plain", "one by one"])
def test_nothing_is_linked_to_an_earlier_copy_that_lost_its_contents(
    tmp_path: Path, pcopy: Run, jobs: int, atomic: list[str]
) -> None:
    source = make_tree(tmp_path / "src", {"f": os.urandom(90_000), "g": b"1", "large": os.urandom(LARGE)})
    assert pcopy("-j", jobs, source, tmp_path / "day1").returncode == 0
    for name in ("f", "large"):
        lose_contents(tmp_path / "day1" / name)
    done = pcopy("-j", jobs, *atomic, "--link-dest", "../day1", "-v", source, tmp_path / "day2")
    assert (done.returncode, done.stderr.count("linked ")) == (0, 1), done.stderr
    assert read_tree(tmp_path / "day2").keys() == read_tree(source).keys()
    for name in ("f", "large"):
        assert (tmp_path / "day2" / name).read_bytes() == (source / name).read_bytes()


@JOBS
def test_what_was_there_already_is_synced_too(tmp_path: Path, jobs: int) -> None:
    """What an earlier run copied, or a worker that was killed before it could wait, may not be on the disk yet."""
    source = make_tree(tmp_path / "src", {"f": b"1", "d": Dir({"g": b"2"})})
    words: list[str | Path] = [sys.executable, "-m", "pcopy", "-j", str(jobs)]
    assert subprocess.run([*words, source, tmp_path / "dst"], check=False).returncode == 0
    traced = strace("-y", "-e", "trace=syncfs", log=tmp_path / "trace")
    assert subprocess.run([*traced, *words, "--fsync", source, tmp_path / "dst"], check=False).returncode == 0
    assert any(re.search(rf"syncfs\(\d+<{tmp_path}/dst>\) += 0", line) for line in lines_of(tmp_path / "trace"))


@JOBS
def test_a_file_system_that_cannot_be_synced_is_a_failure(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1"})
    failing = strace("-e", "trace=syncfs", "-e", "inject=syncfs:error=EIO")
    words: list[str | Path] = [sys.executable, "-m", "pcopy", "-j", str(jobs), "--fsync", source, tmp_path / "dst"]
    done = subprocess.run([*failing, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, "sync file system: Input/output error" in done.stderr) == (1, True), done.stderr


# ---- errors that pass -----------------------------------------------------------------------------------------------

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
static int left = -1;
static int fails(const char *path) {
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    if (strcmp(name, "flaky")) return 0;
    if (left < 0) left = atoi(getenv("FLAKY_FAILS"));
    return left > 0 && left-- > 0;
}
int openat64(int at, const char *path, int flags, ...) {
    static int (*next)(int, const char *, int, ...);
    va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest);
    if (!next) next = dlsym(RTLD_NEXT, "openat64");
    if (!(flags & O_CREAT) && !(flags & O_WRONLY) && fails(path)) { errno = atoi(getenv("FLAKY_ERRNO")); return -1; }
    return next(at, path, flags, mode);
}
int openat(int at, const char *path, int flags, ...) {
    va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest);
    return openat64(at, path, flags, mode);
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes the first opens of anything named flaky fail."""
    return compiled(tmp_path_factory.mktemp("shim"), SHIM, *SHARED)


def flaky(shim: Path, fails: int, number: int = 5) -> dict[str, str]:
    return {**os.environ, "LD_PRELOAD": str(shim), "FLAKY_FAILS": str(fails), "FLAKY_ERRNO": str(number)}


@pytest.mark.parametrize("number", [5, 11, 110, 116], ids=["EIO", "EAGAIN", "ETIMEDOUT", "ESTALE"])
def test_an_error_that_passes_is_no_failure(tmp_path: Path, pcopy: Run, shim: Path, number: int) -> None:
    source = make_tree(tmp_path / "src", {"a": b"1", "d": Dir({"flaky": b"2", "g": b"3"})})
    done = pcopy("-j", 1, source, tmp_path / "dst", env=flaky(shim, 3, number))
    assert done.returncode == 0, done.stderr
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_a_directory_is_listed_again_after_an_error_that_passes(tmp_path: Path, pcopy: Run, shim: Path) -> None:
    source = make_tree(tmp_path / "src", {"a": b"1", "flaky": Dir({"f": b"2", "g": Dir()})})
    done = pcopy("-j", 1, source, tmp_path / "dst", env=flaky(shim, 2))
    assert done.returncode == 0, done.stderr
    assert read_tree(tmp_path / "dst") == read_tree(source)


@pytest.mark.parametrize(("retries", "fails"), [(0, 2), (2, 99)])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_an_error_that_stays_is_named_once_and_all_else_is_copied(
    tmp_path: Path, pcopy: Run, shim: Path, retries: int, fails: int, kind: str
) -> None:
    source = make_tree(
        tmp_path / "src", {"a": b"1", "d": Dir({"flaky": b"2" if kind == "file" else Dir({"x": b"2"}), "g": b"3"})}
    )
    done = pcopy("-j", 1, "--retries", retries, source, tmp_path / "dst", env=flaky(shim, fails))
    assert done.returncode == 1
    failure, last = done.stderr.splitlines()
    assert failure.startswith(f"pcopy: {source}/d/flaky: ")
    assert "Input/output error" in failure
    assert last.endswith("1 failed")
    wanted = {path: state for path, state in read_tree(source).items() if b"flaky" not in path}
    assert read_tree(tmp_path / "dst") == wanted


def test_an_error_that_does_not_pass_is_not_tried_again(tmp_path: Path, pcopy: Run, shim: Path) -> None:
    source = make_tree(tmp_path / "src", {"flaky": b"2"})
    done = pcopy("-j", 1, "--retries", 9, source, tmp_path / "dst", env=flaky(shim, 2, 13))
    assert (done.returncode, done.stderr.count("Permission denied")) == (1, 1)
    assert not (tmp_path / "dst/flaky").exists()


def test_retries_below_zero_are_refused(tmp_path: Path, pcopy: Run) -> None:
    done = pcopy("--retries", -1, tmp_path, tmp_path / "dst")
    assert (done.returncode, (tmp_path / "dst").exists()) == (2, False)
