"""A copy equals its source in everything the user may set: types, modes, owners, times, links, attributes, holes, names.

What cannot be set (no privilege, no such thing in the target) is said once for each kind, and fails nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import pcopy
from tests.conftest import Run, as_root
from tests.strace import lines_of, strace
from tests.test_destination import mounted, unprivileged
from tests.trees import WHEN, Device, Dir, Fifo, File, Hard, Holes, Link, Socket, State, make_tree, read_tree

NOBODY = 65534
LARGE = 33 << 20  # bytes: a file of this size is shared out in spans
BLOCK = 4096
SHM = Path("/dev/shm")


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody may write into; pytest's own ones are closed to others."""
    path = Path(tempfile.mkdtemp(prefix="test-pcopy-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


AS_NOBODY = """
import ctypes, importlib, os, pkgutil, sys
import pcopy
modules = [f"pcopy.{module.name}" for module in pkgutil.iter_modules(pcopy.__path__) if module.name != "__main__"]
multi = ["connection", "popen_fork", "queues", "reduction", "resource_tracker", "synchronize", "util"]
modules += ["concurrent.futures.process", "_blake2", "difflib", "encodings.ascii", "hashlib", "json", "locale"]
modules += [f"multiprocessing.{name}" for name in multi]
for name in modules:
    importlib.import_module(name)
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as after an exec: or else /proc/self/fd is root's
pcopy.cli.main(sys.argv[1:])
"""


UNSHARED = """
if ctypes.CDLL(None).unshare(0x10000000):  # CLONE_NEWUSER
    os._exit(77)
for name, text in (("setgroups", "deny"), ("uid_map", "65534 65534 1"), ("gid_map", "65534 65534 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())  # as after an exec
"""


def as_nobody(
    *arguments: object, umask: int = 0o022, where: Path | None = None, groups: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the command line without any privilege, in some groups more.

    Not by setpriv: the interpreter may lie where nobody else may read, so all is imported before privilege is dropped.
    """
    program = AS_NOBODY.replace("setgroups([])", f"setgroups({list(groups)})")
    words: list[str] = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(words, cwd=where, capture_output=True, text=True, timeout=60, umask=umask, check=False)


@contextlib.contextmanager
def on_loop_device(kind: str, where: Path) -> Iterator[Path]:
    """A file system of its own, its image beside it."""
    if not shutil.which(f"mkfs.{kind}"):
        pytest.skip(f"needs mkfs.{kind}")
    image = where.with_suffix(".image")
    with open(image, "wb") as file:
        file.truncate(512 << 20)
    try:
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True, capture_output=True)
        with mounted(where, "-o", "loop", image):
            yield where
    finally:
        image.unlink()


@pytest.fixture(scope="module", params=["btrfs", "xfs"])
def sharing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system whose files can share blocks."""
    if os.geteuid():
        pytest.skip("needs root")
    with on_loop_device(request.param, tmp_path_factory.mktemp("sharing") / "mount") as path:
        yield path


def copy_equals(source: Path, destination: Path, jobs: int, **options: Any) -> pcopy.Report:
    report = pcopy.copy(source, destination, jobs=jobs, **options)
    assert report.ok, report.errors
    assert read_tree(destination) == read_tree(source)
    assert not report.lost
    return report


# ---- types, modes, owners -------------------------------------------------------------------------------------------

SPECIAL_MODES = (0o4755, 0o2755, 0o1644, 0o6711, 0o7777, 0o000, 0o444, 0o200, 0o600, 0o4600)


def test_every_type_of_entry_is_made_anew(tmp_path: Path, jobs: int) -> None:
    below: dict[str | bytes, object] = {
        "file": b"text",
        "link": Link("file"),
        "dangling": Link("/nowhere/at all"),
        "fifo": Fifo(),
    }
    below["socket"] = Socket()
    source = make_tree(tmp_path / "src", {**below, "dir": Dir({**below, "empty": Dir()}), "nothing": b""})
    report = copy_equals(source, tmp_path / "dst", jobs)
    counts = (report.files, report.symlinks, report.specials, report.directories)
    assert counts == (3, 4, 4, 3)


@as_root
def test_devices_are_made_anew_and_never_opened(tmp_path: Path, jobs: int) -> None:
    """Nothing answers at these numbers, so that opening one would fail; a FIFO that is opened would wait for ever."""
    devices: dict[str | bytes, object] = {"character": Device(stat.S_IFCHR, 511, 77), "zero": Device(minor=5)}
    devices["block"] = Device(stat.S_IFBLK, 511, 78)
    source = make_tree(tmp_path / "src", {**devices, "fifo": Fifo(0o7640), "d": Dir(devices)})
    copy_equals(source, tmp_path / "dst", jobs)


def test_modes_are_kept_whatever_they_are(tmp_path: Path, jobs: int) -> None:
    modes = [mode for mode in SPECIAL_MODES if not os.geteuid() or mode & 0o400]
    files: dict[str, object] = {f"f{mode:o}": File(b"text", mode) for mode in modes}
    directories: dict[str, object] = {f"d{mode:o}": Dir({"f": b""}, mode) for mode in modes if not os.geteuid() or mode & 0o100}
    source = make_tree(tmp_path / "src", {**files, **directories, "p": Fifo(0o000)}, mode=0o1750)
    copy_equals(source, tmp_path / "dst", jobs)


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_the_umask_has_no_say_in_modes_that_are_kept(tmp_path: Path, pcopy: Run, umask: int) -> None:
    entries = {
        "f": File(b"text", 0o666),
        "own": File(b"text", 0o600),
        "p": Fifo(0o600),
        "d": Dir({"f": File(b"", 0o600)}, 0o777),
    }
    source = make_tree(tmp_path / "src", entries)
    assert pcopy(source, tmp_path / "dst", umask=umask).returncode == 0
    assert read_tree(tmp_path / "dst") == read_tree(source)


@as_root
def test_owner_and_group_are_kept_with_the_special_bits(tmp_path: Path, jobs: int) -> None:
    entries = {
        "f": File(b"text", 0o6755, owner=(1234, 5678)),
        "group": File(b"text", 0o2755, owner=(0, 5678)),
        "l": Link("f"),
        "p": Fifo(),
        "d": Dir({"f": File(b"text", 0o600, owner=(77, 88))}),
    }
    source = make_tree(tmp_path / "src", entries)
    for name in ("l", "p", "d"):
        os.chown(source / name, 1234, 5678, follow_symlinks=False)
    os.chmod(source / "d", 0o3770)
    os.utime(source / "d", ns=(WHEN, WHEN))
    copy_equals(source, tmp_path / "dst", jobs)


@as_root
def test_a_group_that_the_destination_gives_is_not_left_on_copies(tmp_path: Path, jobs: int) -> None:
    """New entries of a set-gid directory get its group, and directories the bit."""
    source = make_tree(tmp_path / "src", {"f": b"text", "d": Dir({"f": b"text", "l": Link("f"), "p": Fifo()})})
    (tmp_path / "dst").mkdir()
    os.chown(tmp_path / "dst", 0, 4321)
    os.chmod(tmp_path / "dst", 0o2777)
    copy_equals(source, tmp_path / "dst", jobs)


# ---- times ----------------------------------------------------------------------------------------------------------


def test_times_are_kept_to_the_nanosecond(tmp_path: Path, jobs: int) -> None:
    inner = Dir({"f": File(mtime_ns=WHEN + 1), "l": Link("f", WHEN + 2), "p": Fifo()}, mtime_ns=WHEN + 3)
    old = File(b"before 1970", mtime_ns=-123_456_789)
    entries = {"d": Dir({"e": Dir({"i": inner}, mtime_ns=WHEN + 4)}, mtime_ns=WHEN + 5), "old": old, "big": Holes(LARGE)}
    source = make_tree(tmp_path / "src", entries)
    before = access_times(source)
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs)
    assert report.ok, report.errors
    assert access_times(tmp_path / "dst") == before
    assert read_tree(tmp_path / "dst") == read_tree(source)


def access_times(top: Path) -> dict[str, int]:
    """In nanoseconds, and without changing any: listing a directory could."""
    found = {"": os.lstat(top).st_atime_ns}
    for name in ("d", "d/e", "d/e/i", "d/e/i/f", "d/e/i/l", "d/e/i/p", "old", "big"):
        found[name] = os.lstat(top / name).st_atime_ns
    return found


def test_the_source_keeps_its_access_times(tmp_path: Path, jobs: int) -> None:
    entries = {
        "f": b"1",
        "empty": b"",
        "big": Holes(LARGE),
        "d": Dir({"e": Dir({"g": b"2"})}),
        "once": b"3",
        "twice": Hard("once"),
    }
    source = make_tree(tmp_path / "src", entries)
    paths = [source, *source.rglob("*")]
    for path in paths:
        os.utime(path, ns=(WHEN - 10**9, WHEN))  # so old that a reader changes it, wherever readers change any
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs)
    assert report.ok, report.errors
    assert {path.stat().st_atime_ns for path in paths} == {WHEN - 10**9}
    (source / "f").read_bytes()
    if (source / "f").stat().st_atime_ns == WHEN - 10**9:
        pytest.skip("this file system keeps no access times")


def test_a_look_at_a_source_before_the_run_keeps_its_access_time(tmp_path: Path) -> None:
    """Whether it is empty, before anything is deleted; and whether it can be read, before anything gives way to it."""
    source = make_tree(tmp_path / "src", {"f": b"1"})
    os.utime(source, ns=(WHEN - 10**9, WHEN))
    assert pcopy.copy(source, tmp_path / "dst", delete=True, jobs=1).ok
    other = make_tree(tmp_path / "into", {"src": b"a file"})
    assert pcopy.copy([source, source / "f"], other, jobs=1).ok
    assert [path.stat().st_atime_ns for path in (source, tmp_path / "dst", other / "src")] == [WHEN - 10**9] * 3


# ---- hard links -----------------------------------------------------------------------------------------------------


def test_hard_links_stay_hard_links_across_directories_and_workers(tmp_path: Path, jobs: int) -> None:
    """An inode with eighty names over forty directories; a large one in three of them; and one within a directory."""
    entries: dict[str | bytes, object] = {"small": b"1", "large": Holes(LARGE, {7: b"x"}), "two": b"2", "three": Hard("two")}
    for number in range(20):
        names: dict[str | bytes, object] = {f"small{count}": Hard("small") for count in range(3)}
        names |= {"large": Hard("large")} if number % 8 == 0 else {}
        entries[f"d{number}"] = Dir({**names, "other": b"other", "e": Dir({"again": Hard("small")})})
    source = make_tree(tmp_path / "src", entries)
    report = copy_equals(source, tmp_path / "dst", jobs)
    assert (report.files, report.hardlinks) == (3 + 20, 20 * 4 + 3 + 1)
    again = copy_equals(source, tmp_path / "dst", jobs)
    assert (again.files, again.hardlinks, again.unchanged) == (0, 0, 3 + 20 + 20 * 4 + 3 + 1)


def test_hard_links_are_seen_across_sources(tmp_path: Path, jobs: int) -> None:
    both = make_tree(tmp_path / "src", {"a": Dir({"one": b"text"}), "b": Dir({"two": Hard("a/one")}), "three": Hard("a/one")})
    report = pcopy.copy([both / "a", both / "b", both / "three"], tmp_path / "dst", jobs=jobs)
    assert report.ok, report.errors
    copies = [tmp_path / "dst" / name for name in ("a/one", "b/two", "three")]
    assert len({path.stat().st_ino for path in copies}) == 1
    assert copies[0].stat().st_nlink == 3


@pytest.mark.parametrize("entry", [Link("target"), Fifo()], ids=["symlink", "fifo"])
def test_hard_links_of_what_is_no_file_stay_hard_links(tmp_path: Path, jobs: int, entry: object) -> None:
    source = make_tree(tmp_path / "src", {"first": entry, "d": Dir({"second": Hard("first")})})
    copy_equals(source, tmp_path / "dst", jobs)


def test_hard_links_made_since_the_last_run_are_made_in_the_copy(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"a": b"same", "b": b"same", "d": Dir({"c": b"same"})})
    copy_equals(source, tmp_path / "dst", jobs)
    os.unlink(source / "d/c")
    os.link(source / "a", source / "d/c")
    copy_equals(source, tmp_path / "dst", jobs)


def test_a_hard_link_parted_since_the_last_run_is_parted_in_the_copy(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"a": b"same", "d": Dir({"b": Hard("a")})})
    copy_equals(source, tmp_path / "dst", jobs)
    os.unlink(source / "d/b")
    make_tree(source / "d", {"b": File(b"other", mtime_ns=WHEN + 1)})
    copy_equals(source, tmp_path / "dst", jobs)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("debugfs"), reason="needs root and debugfs of e2fsprogs")
def test_too_many_links_for_the_destination_become_files(tmp_path: Path, jobs: int) -> None:
    """More names than ext4 allows an inode, which is told that it has nearly as many already."""
    source = make_tree(tmp_path / "src", {"0": File(b"text")})
    where = tmp_path / "disk"
    with on_loop_device("ext4", where):
        assert os.pathconf(where, "PC_LINK_MAX") == 65_000
        copy_equals(source, where / "dst", jobs)
        image = where.with_suffix(".image")
        subprocess.run(["umount", where], check=True)
        subprocess.run(
            ["debugfs", "-w", "-R", "set_inode_field dst/0 links_count 64998", image], check=True, capture_output=True
        )
        subprocess.run(["mount", "-o", "loop", image, where], check=True)
        for number in range(1, 6):
            os.link(source / "0", source / str(number))
        report = pcopy.copy(source, where / "dst", jobs=jobs)
        assert report.ok, report.errors
        assert (report.unchanged, report.hardlinks, report.files) == (1, 2, 3)
        assert report.lost.keys() == {"hard links"}
        assert {(where / "dst" / str(number)).read_bytes() for number in range(6)} == {b"text"}


# ---- extended attributes and ACLs -----------------------------------------------------------------------------------

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep, as setcap writes it


def test_attributes_of_files_and_directories_are_kept(tmp_path: Path, jobs: int) -> None:
    values = {"user.one": b"\x00\xff", "user.empty": b"", "user.long": b"x" * 2000}
    entries = {"f": File(b"text", 0o444, xattrs=values), "d": Dir({"f": File(b"", xattrs=values)}, 0o555, xattrs=values)}
    source = make_tree(tmp_path / "src", {**entries, "big": Holes(LARGE)})
    os.setxattr(source / "big", "user.one", b"1")
    os.setxattr(source, "user.top", b"1")
    copy_equals(source, tmp_path / "dst", jobs)


@as_root
def test_attributes_of_the_system_are_kept(tmp_path: Path, jobs: int) -> None:
    """Capabilities outlive the change of owner, which clears them (chown(2))."""
    source = make_tree(tmp_path / "src", {"f": File(b"text", 0o4755, owner=(12, 34)), "l": Link("f"), "p": Fifo(), "d": Dir()})
    for name in ("f", "l", "p", "d"):
        os.setxattr(source / name, "trusted.name", name.encode(), follow_symlinks=False)
    os.setxattr(source / "f", "security.capability", CAPABILITY)
    copy_equals(source, tmp_path / "dst", jobs)


@pytest.mark.parametrize(
    "name",
    ["user.gone", pytest.param("trusted.gone", marks=as_root), pytest.param("security.capability", marks=as_root)],
)
def test_attributes_follow_the_source_on_a_rerun(tmp_path: Path, jobs: int, name: str) -> None:
    """One that the source has lost is a power or a mark that the copy must not keep."""
    source = make_tree(tmp_path / "src", {"f": File(b"text", 0o755), "g": b"text"})
    os.setxattr(source / "f", name, CAPABILITY)
    copy_equals(source, tmp_path / "dst", jobs)
    os.removexattr(source / "f", name)
    os.setxattr(source / "g", name, CAPABILITY)
    report = copy_equals(source, tmp_path / "dst", jobs)
    assert report.unchanged == 2  # contents; attributes alone do not make a file be copied again


def facl(*arguments: object) -> None:
    if not shutil.which("setfacl"):
        pytest.skip("needs setfacl")
    if subprocess.run(["setfacl", *map(str, arguments)], capture_output=True, check=False).returncode:
        pytest.skip("no ACLs on this file system")


def test_acls_are_kept_and_those_of_the_destination_are_not_inherited(tmp_path: Path, jobs: int) -> None:
    """Into a directory with a default ACL, which every new entry would get."""
    entries = {
        "plain": File(b"1", 0o640),
        "own": File(b"2", 0o600),
        "acl": b"3",
        "d": Dir({"f": b"4", "p": Fifo()}),
        "e": Dir(),
    }
    source = make_tree(tmp_path / "src", {**entries, "big": Holes(LARGE)})
    facl("-m", "u:1234:rw,g:77:r", source / "acl", source / "big")
    facl("-m", "d:u:1234:rwx,d:g:77:r,u:99:rx", source / "e")
    (tmp_path / "dst").mkdir()
    facl("-m", "d:u:4321:rwx,d:g:66:rwx,d:o::-,u:4321:rwx", tmp_path / "dst")
    copy_equals(source, tmp_path / "dst", jobs)
    assert dict(read_tree(tmp_path / "dst")[b"plain"].xattrs) == {}


def test_a_new_file_in_a_directory_with_its_own_default_acl_gets_what_its_source_has(tmp_path: Path, jobs: int) -> None:
    """On a rerun, the copy of the directory has the default ACL already."""
    source = make_tree(tmp_path / "src", {"d": Dir({"old": b"1"})})
    facl("-m", "d:u:1234:rwx", source / "d")
    copy_equals(source, tmp_path / "dst", jobs)
    make_tree(source / "d", {"inherited": File(b"2"), "own": File(b"3", 0o600), "e": Dir({"f": b"4"})})
    facl("-b", source / "d/own", source / "d/e")
    copy_equals(source, tmp_path / "dst", jobs)


def test_an_acl_taken_off_the_source_is_taken_off_the_copy(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1", "d": Dir({"g": b"2"})})
    facl("-m", "u:1234:rw", source / "f")
    facl("-m", "u:1234:rwx,d:u:1234:rwx", source / "d")
    copy_equals(source, tmp_path / "dst", jobs)
    facl("-b", source / "f", source / "d")
    copy_equals(source, tmp_path / "dst", jobs)


GROUP = 1234  # one more in which nobody is


def times_of_changes(top: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_ctime_ns for path in [top, *top.rglob("*")]}


@as_root
@pytest.mark.parametrize("other", "abc")
def test_what_is_refused_for_the_copy_of_another_is_not_refused_for_ours(public: Path, other: str) -> None:
    """In whatever order a directory is read, a group that may be set is set."""
    source = make_tree(public / "src", {name: name.encode() for name in "abcd"})
    for path in (source, *source.iterdir()):
        os.chown(path, NOBODY, GROUP)
    copy = public / "dst"
    subprocess.run(["cp", "-a", source, copy], check=True)
    for name in "abc":
        os.chown(copy / name, NOBODY, NOBODY)
    os.chown(copy / other, 0, 0)
    (copy / "d").unlink()
    done = as_nobody("-j", 1, source, copy, groups=(GROUP,))
    assert done.returncode == 0, done.stderr
    assert "owner: could not be preserved on 1 of the copies" in done.stderr
    assert {path.name for path in copy.iterdir() if path.stat().st_gid == GROUP} == {*"abcd"} - {other}


@as_root
@pytest.mark.parametrize("owner", [NOBODY, 0], ids=["our own", "of another"])
@pytest.mark.parametrize("told", [(), ("-v",)], ids=["quick", "told"])
def test_a_file_of_another_group_than_its_earlier_copy_is_no_link_to_that(
    public: Path, owner: int, told: tuple[str, ...]
) -> None:
    """Not if the group may be set; and of a link that is there, none is made under another name, where it would stay."""
    source = make_tree(public / "src", {"f": b"1", "same": b"2"})
    for path in (source, *source.iterdir()):
        os.chown(path, owner, NOBODY)
    assert as_nobody("-q", source, public / "day1", groups=(GROUP,)).returncode == 0
    os.chown(source / "f", owner, GROUP)
    for _ in range(3):
        done = as_nobody("-j", 1, *told, "--link-dest", public / "day1", source, public / "day2", groups=(GROUP,))
        assert done.returncode == 0, done.stderr
        assert sorted(os.listdir(public / "day2")) == ["f", "same"]
        assert [(public / "day2" / name).stat().st_nlink for name in ("f", "same")] == [1, 2]
        assert (public / "day2/f").stat().st_gid == GROUP
    os.unlink(public / "day2/f")
    os.link(public / "day1/f", public / "day2/f")  # as it was done before
    assert as_nobody("-q", "--link-dest", public / "day1", source, public / "day2", groups=(GROUP,)).returncode == 0
    assert sorted(os.listdir(public / "day2")) == ["f", "same"]
    assert (public / "day2/f").stat().st_gid == GROUP


@as_root
@pytest.mark.parametrize("told", [(), ("-v",)], ids=["quick", "told"])
def test_what_stays_of_other_owner_is_not_touched_again(public: Path, told: tuple[str, ...]) -> None:
    below: dict[str | bytes, object] = {"f": b"1", "g": File(b"2", mode=0o444), "l": Link("x"), "p": Fifo()}
    source = make_tree(public / "src", {**below, "d": Dir(dict(below)), "e": Dir({"f": b"1"})})
    assert as_nobody("-q", source, public / "dst").returncode == 0
    before = times_of_changes(public / "dst")
    done = as_nobody("-j", 1, *told, source, public / "dst")
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith("updated")]
    assert "owner: could not be preserved on 12 of the copies" in done.stderr
    after = times_of_changes(public / "dst")
    assert {path for path in before if after[path] != before[path]} <= {
        str(public / "dst" / name) for name in ("", "d", "e")
    }, "but for times of directories that were read"


@pytest.mark.parametrize("told", [{}, {"verbose": True}], ids=["quick", "told"])
def test_a_directory_with_attributes_is_not_touched_again(tmp_path: Path, told: dict[str, Any]) -> None:
    source = make_tree(
        tmp_path / "src", {"d": Dir({"l": Link("x")}, xattrs={"user.a": b"1"}), "e": Dir(xattrs={"user.a": b"1"})}
    )
    assert pcopy.copy(source, tmp_path / "dst", jobs=1).ok
    before = [(tmp_path / "dst" / name).stat().st_ctime_ns for name in "de"]  # a look into them would change their times
    time.sleep(0.02)
    assert pcopy.copy(source, tmp_path / "dst", jobs=1, **told).ok
    assert [(tmp_path / "dst" / name).stat().st_ctime_ns for name in "de"] == before


@as_root
def test_an_owner_that_one_file_refuses_is_given_to_all_others(tmp_path: Path) -> None:
    if not shutil.which("chattr"):
        pytest.skip("needs chattr")
    below: dict[str | bytes, object] = {"f": b"1", "g": b"2", "l": Link("x"), "d": Dir()}
    tree: dict[str | bytes, object] = {f"d{number}": Dir(below) for number in range(3)}
    source = make_tree(tmp_path / "src", {"a": Dir({"x": b"1"}), **tree})
    subprocess.run(["chown", "-Rh", "1000:1000", source], check=True)
    copy = make_tree(tmp_path / "dst", {"a": Dir({"x": b"1"})})
    os.utime(copy / "a/x", ns=((source / "a/x").stat().st_atime_ns, (source / "a/x").stat().st_mtime_ns))
    if subprocess.run(["chattr", "+i", copy / "a/x"], capture_output=True, check=False).returncode:
        pytest.skip("no file can be immutable here")
    try:
        assert pcopy.copy(source, copy, jobs=1).lost == {"owner": 1}
    finally:
        subprocess.run(["chattr", "-i", copy / "a/x"], check=True)
    assert {str(path.relative_to(copy)) for path in copy.rglob("*") if path.lstat().st_uid != 1000} == {"a/x"}


def without_chown(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line as root, who may not give files to others."""
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv")
    words = ["setpriv", "--bounding-set=-chown", "--inh-caps=-chown", sys.executable, "-m", "pcopy", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@as_root
def test_who_may_give_nothing_away_finds_it_unchanged_and_links_it(tmp_path: Path) -> None:
    """Privilege counts, and not the name of root; a dry run says so too."""
    source = make_tree(tmp_path / "src", {"f": b"1", "g": b"2", "h": Hard("g"), "l": Link("x")})
    subprocess.run(["chown", "-Rh", "5:6", source], check=True)
    assert without_chown("-q", source, tmp_path / "day1").returncode == 0
    for words in (("-n", "-v"), ("-v",)):
        said = without_chown(*words, source, tmp_path / "day1").stderr.splitlines()
        assert not [line for line in said if "update" in line or "would copy /" in line or line.startswith("copied /")], said
    report = json.loads(without_chown("--json", "--link-dest", tmp_path / "day1", source, tmp_path / "day2").stdout)
    assert (report["files"], report["hardlinks"]) == (0, 3)


@as_root
def test_groups_that_mean_nothing_in_a_user_namespace_are_not_waited_for(public: Path) -> None:
    """They all look like one group, of which the user seems to be, and which cannot be set (user_namespaces(7))."""
    source = make_tree(public / "src", {"f": b"1", "g": b"2", "h": Hard("g")})
    for path in (source, *source.iterdir()):
        os.chown(path, 1000, GROUP)
    program = AS_NOBODY.replace("setgroups([])", f"setgroups([{GROUP}])")
    program = program.replace("pcopy.cli.main(", UNSHARED + "pcopy.cli.main(").replace(str(NOBODY), "1000")

    def run(*arguments: object) -> dict[str, Any]:
        words = [sys.executable, "-c", program, "--json", "-j", "1", *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode == 77:
            pytest.skip("no user namespaces here")
        return dict(json.loads(done.stdout))

    assert run(source, public / "day1")["files"] == 2
    assert run("--link-dest", public / "day1", source, public / "day2")["files"] == 0


@as_root
def test_a_mode_that_is_right_is_not_said_to_be_lost(public: Path) -> None:
    source = make_tree(public / "src", {"d": Dir({"f": b"1"})})
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", source], check=True)
    subprocess.run(["cp", "-a", source, public / "dst"], check=True)
    for name in ("d", "d/f"):
        os.chown(public / "dst" / name, 0, 0)
    done = as_nobody("-j", 1, source, public / "dst")
    assert (done.returncode, "mode:" in done.stderr, "owner:" in done.stderr) == (0, False, True), done.stderr


@as_root
@pytest.mark.parametrize("words", [("-j", 1), ("-j", 2), ("-j", 1, "-v")], ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_of_directories_that_cannot_be_entered_none_is_left_empty(public: Path, words: tuple[object, ...], count: int) -> None:
    source = make_tree(public / "src", {"a": Dir({f"d{number}": Dir({"f": b"1"}) for number in range(count)})})
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", source], check=True)
    (source / "a").chmod(0o644)  # its names can be read, and nothing else
    done = as_nobody(*words, "--json", source, public / "dst")
    report = json.loads(done.stdout)
    assert (done.returncode, report["failed"], len(report["errors"])) == (1, count, count), done.stderr
    assert [str(path) for path in (public / "dst").rglob("*")] == [str(public / "dst/a")]


@as_root
def test_a_run_may_start_where_its_user_may_not_be(public: Path) -> None:
    """It does not leave such a directory, since it could not return."""
    source = make_tree(public / "src", {"f": b"f", "d": Dir({"g": b"g"})})
    closed = public / "closed"
    closed.mkdir(mode=0o700)
    for unchanged in (0, 2):
        done = as_nobody("-j", 1, "--json", source, public / "dst", where=closed)
        assert (done.returncode, json.loads(done.stdout)["unchanged"]) == (0, unchanged), done.stderr


@as_root
@pytest.mark.parametrize("first", ["the attribute", "the ACL"])
def test_attributes_beside_an_acl_that_takes_the_right_to_write_are_kept(public: Path, first: str) -> None:
    """Without privilege, whoever may not write to a file may not set its user.* either; the kernel lists what was set first."""
    source = make_tree(public / "src", {"f": b"1", "d": Dir({"g": b"2"})})
    for path in (source / "f", source / "d"):
        steps = [lambda path=path: os.setxattr(path, "user.a", b"1"), lambda path=path: facl("-m", "u:1234:r", path)]
        for step in steps if first == "the attribute" else reversed(steps):
            step()
        path.chmod(0o444 if path.name == "f" else 0o555)
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", source], check=True)
    done = as_nobody("-j", 1, "--json", source, public / "dst")
    assert (done.returncode, json.loads(done.stdout)["warnings"]) == (0, []), done.stderr
    assert [os.getxattr(public / "dst" / name, "user.a") for name in "fd"] == [b"1", b"1"]
    os.removexattr(source / "f", "user.a")
    assert as_nobody("-j", 1, "-q", source, public / "dst").returncode == 0
    assert os.listxattr(public / "dst/f") == os.listxattr(source / "f")


@as_root
@pytest.mark.parametrize("mode", [0o555, 0o500])
def test_of_closed_directories_a_dry_run_and_a_run_say_the_same(public: Path, mode: int) -> None:
    """Their owner has to open them to write into them, which changes their modes and ACLs for the time of the run."""
    source = make_tree(public / "src", {"f": b"1", "d": Dir({"g": b"2"})})
    facl("-m", "u:1234:rx", source / "d")
    for path in (source, source / "d"):
        path.chmod(mode)
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", source], check=True)
    assert as_nobody("-j", 1, "-q", source, public / "dst").returncode == 0
    for changed in ((), (public / "dst", public / "dst/d"), (public / "dst/d",)):
        for path in changed:
            path.chmod(0o755 if path.name == "d" else 0o511)
        lines = [as_nobody("-j", 1, "-v", *dry, source, public / "dst").stderr for dry in (["-n"], [])]
        said, did = ([line.removeprefix("would ") for line in text.splitlines()[:-1]] for text in lines)
        assert [line.replace("update ", "updated ") for line in said] == did
        assert sum(line.startswith("updated ") for line in did) == len(changed), did
        assert [stat.S_IMODE((public / "dst" / name).stat().st_mode) for name in (".", "d")] == [
            mode,
            (source / "d").stat().st_mode & 0o777,
        ]


def test_an_acl_says_what_the_mode_is_where_that_is_not_preserved(tmp_path: Path, jobs: int) -> None:
    """To set the mode that the umask leaves would take rights from the ACL, and each rerun would find another one."""
    source = make_tree(
        tmp_path / "src", {"f": File(b"1", 0o666), "g": Hard("f"), "h": b"2", "d": Dir({"i": b"3"}), "plain": File(b"4", 0o666)}
    )
    facl("-m", "u:1234:rwx", source / "f", source / "h", source / "d")
    for turn in range(3):
        report = pcopy.copy(source, tmp_path / "dst", preserve={"owner", "times", "links", "xattr"}, jobs=jobs, verbose=True)
        assert (report.ok, report.unchanged) == (True, 5 if turn else 0)
        copy, whole = read_tree(tmp_path / "dst"), read_tree(source)
        assert {name: copy[name].xattrs for name in whole} == {name: whole[name].xattrs for name in whole}
        assert stat.S_IMODE((tmp_path / "dst/plain").stat().st_mode) == 0o644
        (tmp_path / "dst/h").chmod(0o600)


@as_root
@pytest.mark.parametrize("mode", [0o400, 0o444, 0o600, 0o300, 0o111, 0])
def test_what_is_told_of_a_closed_copy_changes_nothing_about_its_update(public: Path, mode: int) -> None:
    source = make_tree(public / "src", {"d": Dir({"g": b"2"}, 0o755)})
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", source], check=True)
    for options in ((), ("-v",), ("--log", public / "log"), ("--delete", "-v", "-j", 3)):
        assert as_nobody("-j", 1, "-q", source, public / "dst").returncode == 0
        (public / "dst/d").chmod(mode)
        done = as_nobody("-j", 1, *options, source, public / "dst")
        assert done.returncode == 0, done.stderr
        assert stat.S_IMODE((public / "dst/d").stat().st_mode) == 0o755


def test_without_its_acl_a_file_gives_its_group_no_more_than_before(tmp_path: Path) -> None:
    """What the mode says of the group is the most for all whom an ACL names, as long as there is one."""
    source = make_tree(tmp_path / "src", {"f": File(b"1", 0o600), "d": Dir({}, 0o700)})
    copy_equals(source, tmp_path / "dst", 1)
    for names in ("g::---", "g::r--"):
        facl("-m", f"u:1234:rw,{names},o::---", tmp_path / "dst/f", tmp_path / "dst/d")
        assert pcopy.copy(source, tmp_path / "dst", preserve={"xattr", "times"}, jobs=1).ok
        modes = [stat.S_IMODE((tmp_path / "dst" / name).stat().st_mode) for name in "fd"]
        assert modes == ([0o600, 0o700] if names == "g::---" else [0o640, 0o740])
        assert not os.listxattr(tmp_path / "dst/f") + os.listxattr(tmp_path / "dst/d")


def test_a_directory_that_an_acl_opens_to_everybody_stays_sticky(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir({"f": b"1"})})
    (source / "d").chmod(0o1777)
    facl("-m", "u:1234:rwx", source / "d")
    for _ in range(2):
        assert pcopy.copy(source, tmp_path / "dst", preserve={"xattr", "times"}, jobs=1).ok
        assert stat.S_IMODE((tmp_path / "dst/d").stat().st_mode) == 0o1777


# ---- holes and shared blocks ----------------------------------------------------------------------------------------

HOLES: dict[str | bytes, object] = {
    "leading": Holes(1 << 20, {(1 << 20) - 10: b"the end"}),
    "trailing": Holes(1 << 20, {0: b"the start"}),
    "nothing else": Holes(1 << 20),
    "between": Holes(3 << 20, {0: b"a", 1 << 20: b"b" * 10_000, (3 << 20) - 1: b"c"}),
    "odd": Holes((1 << 20) + 1234, {500_001: b"d" * 5001}),
    "large": Holes(LARGE + 5, {0: b"a", LARGE // 2 + 3: b"b" * 70_000, LARGE: b"c"}),
    "large and nothing else": Holes(LARGE),
}


def stored(path: Path) -> int:
    """Bytes that a file takes on the disk, when all of it is there."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    return path.stat().st_blocks * 512


def test_holes_are_kept(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", HOLES)
    copy_equals(source, tmp_path / "dst", jobs)
    for name in os.listdir(source):
        assert stored(tmp_path / "dst" / name) <= stored(source / name) + BLOCK, name


def test_holes_are_filled_if_that_is_asked_for(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {name: holes for name, holes in HOLES.items() if name != "large"})
    copy_equals(source, tmp_path / "dst", jobs, sparse="never")
    for name in os.listdir(source):
        assert stored(tmp_path / "dst" / name) >= (source / name).stat().st_size, name


@pytest.mark.parametrize("size", [1 << 20, LARGE], ids=["small", "large"])
def test_holes_are_made_of_zeros_if_that_is_asked_for(tmp_path: Path, jobs: int, size: int) -> None:
    zeros = bytes(size)
    entries = {"zeros": zeros, "end": zeros + b"x", "start": b"x" + zeros, "short": bytes(100), "holes": Holes(size)}
    source = make_tree(tmp_path / "src", entries)
    copy_equals(source, tmp_path / "dst", jobs, sparse="always")
    for name in entries:
        assert stored(tmp_path / "dst" / name) <= 2 * BLOCK, name


@pytest.mark.parametrize("size", [1 << 20, LARGE], ids=["small", "large"])
def test_holes_are_made_and_filled_where_blocks_could_be_shared_too(sharing: Path, tmp_path: Path, size: int) -> None:
    """Sharing the blocks as they are would be quicker, and not what was asked for."""
    with tempfile.TemporaryDirectory(dir=sharing) as name:
        source = make_tree(Path(name) / "src", {"zeros": bytes(size), "holes": Holes(size)})
        copy_equals(source, Path(name) / "always", 1, sparse="always")
        copy_equals(source, Path(name) / "never", 1, sparse="never")
        assert stored(Path(name) / "always/zeros") <= 2 * BLOCK
        assert stored(Path(name) / "never/holes") >= size


@pytest.mark.parametrize("reflink", ["auto", "always"])
def test_blocks_are_shared_where_the_file_system_can(sharing: Path, jobs: int, reflink: str) -> None:
    with tempfile.TemporaryDirectory(dir=sharing) as name:
        entries = {"small": os.urandom(1 << 20), "large": os.urandom(LARGE), "empty": b"", "holes": HOLES["between"]}
        source = make_tree(Path(name) / "src", entries)
        copy_equals(source, Path(name) / "dst", jobs, reflink=reflink)
        for file in ("small", "large"):
            assert has_shared_extents(Path(name) / "dst" / file), file


@pytest.mark.parametrize("size", [1 << 20, LARGE], ids=["small", "large"])
def test_blocks_are_not_shared_if_that_is_asked_for(sharing: Path, jobs: int, size: int) -> None:
    with tempfile.TemporaryDirectory(dir=sharing) as name:
        source = make_tree(Path(name) / "src", {"f": os.urandom(size)})
        copy_equals(source, Path(name) / "dst", jobs, reflink="never")
        assert not has_shared_extents(Path(name) / "dst/f")


def has_shared_extents(path: Path) -> bool:
    if not shutil.which("filefrag"):
        pytest.skip("needs filefrag")
    listing = subprocess.run(["filefrag", "-s", "-v", path], capture_output=True, text=True, check=True).stdout
    return "shared" in listing


def test_sharing_blocks_where_that_cannot_be_is_a_named_failure(tmp_path: Path, jobs: int) -> None:
    """On a tmpfs nothing can be shared; what can be made without is made."""
    if not os.access(SHM, os.W_OK):
        pytest.skip("needs a tmpfs")
    with tempfile.TemporaryDirectory(dir=SHM) as name:
        entries = {"small": b"text", "d": Dir({"large": Holes(LARGE, {0: b"x"})}), "l": Link("small"), "p": Fifo()}
        source = make_tree(Path(name) / "src", entries)
        report = pcopy.copy(source, Path(name) / "dst", jobs=jobs, reflink="always")
        assert report.exit_status == 1
        assert {os.path.relpath(error.path, source) for error in report.errors} == {"small", "d/large"}
        assert {error.operation for error in report.errors} == {"share blocks"}
        expected = {path: state for path, state in read_tree(source).items() if path not in (b"small", b"d/large")}
        assert read_tree(Path(name) / "dst") == expected


# ---- names ----------------------------------------------------------------------------------------------------------

ODD_NAMES = [
    b"not \xff\xfe utf-8",
    b"new\nline",
    b"\x1b[31mred",
    b"-rf",
    b" ",
    b"\\",
    b"*?[",
    "é".encode(),
    b"\x01",
    b"~",
    b"a'\"b",
]
ODD_NAMES += [b"n" * 255, b"\xff" * 255, "\N{SNOWMAN}".encode() * 85]


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_names_may_be_any_bytes(tmp_path: Path, pcopy: Run, locale: str) -> None:
    entries: dict[str | bytes, object] = {name: File(name) for name in ODD_NAMES}
    entries.update({b"d" + name[:254]: Dir({name: b"in", b"l" + name[:254]: Link(name)}) for name in ODD_NAMES})
    source = make_tree(tmp_path / "src", entries)
    environment = {**os.environ, "LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    for _ in range(2):  # the second run replaces all of them, under temporary names
        done = pcopy(source, tmp_path / "dst", "-j", 2, "--overwrite", "always", env=environment)
        assert done.returncode == 0, done.stderr
        assert read_tree(tmp_path / "dst") == read_tree(source)


def test_paths_may_be_longer_than_the_kernel_takes_at_once(tmp_path: Path, jobs: int) -> None:
    source = tmp_path / "src"
    source.mkdir()
    make_deep(source, [f"{number:0200}" for number in range(30)])
    for change in (False, True):
        if change:
            change_deepest(source)
        report = pcopy.copy(source, tmp_path / "dst", jobs=jobs)
        assert report.ok, report.errors
        assert read_deep(tmp_path / "dst") == read_deep(source)


def make_deep(top: Path, names: list[str]) -> None:
    handle, above = os.open(top, os.O_RDONLY), []
    for name in names:
        os.mkdir(name, dir_fd=handle)
        os.symlink("f", "l", dir_fd=handle)
        file = os.open("f", os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=handle)
        os.write(file, name.encode())
        os.close(file)
        above.append((handle, name))
        handle = os.open(name, os.O_RDONLY, dir_fd=handle)
    os.close(handle)
    for handle, name in reversed(above):
        os.utime(name, ns=(WHEN, WHEN), dir_fd=handle)
        os.close(handle)


def read_deep(top: Path) -> dict[str, tuple[int, int, bytes]]:
    """{path: (mode, modification time in nanoseconds, contents)}, read by handles of directories."""
    found: dict[str, tuple[int, int, bytes]] = {}
    pending = [("", os.open(top, os.O_RDONLY))]
    while pending:
        path, handle = pending.pop()
        for name in os.listdir(handle):
            state = os.stat(name, dir_fd=handle, follow_symlinks=False)
            content = b""
            if stat.S_ISLNK(state.st_mode):
                content = os.fsencode(os.readlink(name, dir_fd=handle))
            else:
                opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=handle)
                if stat.S_ISDIR(state.st_mode):
                    pending.append((f"{path}/{name}", opened))
                else:
                    content = os.read(opened, 1 << 20)
                    os.close(opened)
            found[f"{path}/{name}"] = (state.st_mode, state.st_mtime_ns, content)
        os.close(handle)
    return found


def change_deepest(top: Path) -> None:
    handle = os.open(top, os.O_RDONLY)
    while below := [name for name in os.listdir(handle) if name not in "fl"]:
        above, handle = handle, os.open(below[0], os.O_RDONLY, dir_fd=handle)
        os.close(above)
    os.symlink("new", "l", dir_fd=handle)
    os.close(handle)


# ---- other file systems ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/proc/version", "/proc/kallsyms", "/proc/cpuinfo", "/sys/kernel/mm/transparent_hugepage/enabled"]
)
@pytest.mark.parametrize("sparse", ["auto", "always", "never"])
def test_files_whose_size_is_a_guess_are_read_to_their_end(tmp_path: Path, path: str, sparse: Any) -> None:
    """In /proc a size is 0, in /sys it is 4096, whatever there is to be read."""
    if not os.access(path, os.R_OK):
        pytest.skip(f"no {path} here")
    contents = Path(path).read_bytes()
    report = pcopy.copy(path, tmp_path / "copy", jobs=1, sparse=sparse)
    assert report.ok, report.errors
    assert contents
    if "cpuinfo" not in path:  # it tells how fast the processors are just now
        assert (tmp_path / "copy").read_bytes() == contents
        assert report.bytes == len(contents)
    assert len((tmp_path / "copy").read_bytes()) > 10


def test_a_copy_to_another_file_system_is_the_same(on_disk: Path, jobs: int) -> None:
    if not os.access(SHM, os.W_OK) or SHM.stat().st_dev == on_disk.stat().st_dev:
        pytest.skip("needs two file systems")
    middle = os.urandom(300_000)  # more than one plain read
    entries = {"f": b"text", "m": middle, "large": Holes(LARGE, {5: middle}), "h": Hard("m"), "l": Link("f"), **HOLES}
    with tempfile.TemporaryDirectory(dir=SHM) as name:
        source = make_tree(Path(name) / "src", {**entries, "d": Dir({**HOLES, "m": middle, "p": Fifo()})})
        copy_equals(source, on_disk / "dst", jobs)
        copy_equals(on_disk / "dst", Path(name) / "back", jobs)
        assert stored(on_disk / "dst/large") < LARGE


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("size", [LARGE + 1, LARGE + BLOCK])
def test_a_large_file_that_another_process_keeps_is_read_past_the_cache(tmp_path: Path, size: int, refused: bool) -> None:
    """And through it, where the file system does not like how it is asked."""
    source, log = make_tree(tmp_path / "src", {"f": os.urandom(size)}), tmp_path / "strace"
    how = ["-e", "trace=readv,sendfile", *(["-e", "inject=readv:error=EINVAL"] if refused else [])]
    with mounted(tmp_path / "mount", "-t", "fuse.bindfs", source) as mount:
        words = [*strace(*how, log=log), sys.executable, "-m", "pcopy", "-q", "-j", "2", str(mount), str(tmp_path / "dst")]
        subprocess.run(words, check=True, timeout=100)
    assert read_tree(tmp_path / "dst") == read_tree(source)
    read = dict.fromkeys(("readv", "sendfile"), 0)
    for line in lines_of(log):
        if found := re.search(r"\b(readv|sendfile)\b.* = (\d+)$", line):
            read[found[1]] += int(found[2])
    past, through = read["readv"], read["sendfile"]
    assert (past == 0 and through > size // 2) if refused else past > size // 2  # ends of slices may be less than a request


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_large_file_that_several_copy_is_read_and_written(tmp_path: Path, jobs: int) -> None:
    """While one has the copy locked, to write to it, the other can read: copy_file_range locks it for both."""
    source, log = make_tree(tmp_path / "src", {"f": os.urandom(3 * LARGE)}), tmp_path / "strace"
    how = strace("-e", "trace=read,copy_file_range", log=log)
    words = [*how, sys.executable, "-c", ALL_IN_WORKERS, source, tmp_path / "dst", jobs]
    subprocess.run([str(word) for word in words], check=True, timeout=100)
    assert read_tree(tmp_path / "dst") == read_tree(source)
    done = {"read": 0, "copy_file_range": 0}
    for line in lines_of(log):
        if found := re.search(r"\b(read|copy_file_range)\b.* = (\d{5,})$", line):  # not the reading of modules
            done[found[1]] += int(found[2])
    if not any(done.values()):
        pytest.skip("the file system shares blocks")
    if jobs == 1:
        assert done["copy_file_range"] == 3 * LARGE
    else:
        assert done["read"] > 2 * LARGE > LARGE > done["copy_file_range"]


ALL_IN_WORKERS = """
import sys, pcopy, pcopy.coordinator
pcopy.coordinator.FIRST = 0.0
assert pcopy.copy(sys.argv[1], sys.argv[2], jobs=int(sys.argv[3])).ok
"""

# ---- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", ["mode", "owner", "times", "links", "xattr"])
@pytest.mark.parametrize("said", ["preserve", "no-preserve"])
def test_what_is_not_to_be_preserved_is_not_and_the_rest_is(tmp_path: Path, pcopy: Run, left_out: str, said: str) -> None:
    entries = {"f": File(b"text", 0o666, xattrs={"user.x": b"1"}), "d": Dir({"h": Hard("f")}, 0o777, xattrs={"user.x": b"1"})}
    source = make_tree(tmp_path / "src", {**entries, "l": Link("f"), "p": Fifo(0o666)}, mode=0o777)
    if not os.geteuid():
        for path in (source, source / "f", source / "d", source / "l"):
            os.chown(path, 12, 34, follow_symlinks=False)
    others = ",".join({"mode", "owner", "times", "links", "xattr"} - {left_out})
    words = ("--preserve", others) if said == "preserve" else ("--no-preserve", left_out)
    done = pcopy(*words, source, tmp_path / "dst", umask=0o027)
    assert done.returncode == 0, done.stderr
    there, here = read_tree(source), read_tree(tmp_path / "dst")
    for name, state in there.items():
        wanted, found = state.__dict__, here[name].__dict__
        assert {key for key in wanted if wanted[key] != found[key]} <= CHANGES[left_out], name
    assert lacks(left_out, here)


CHANGES = {"mode": {"mode"}, "owner": {"owner"}, "times": {"mtime_ns"}, "links": {"names"}, "xattr": {"xattrs"}}


def lacks(what: str, copy: Mapping[bytes, State]) -> bool:
    """Whether a copy is without what was left out."""
    states = [copy[path] for path in (b".", b"f", b"d", b"p")]
    return {
        "mode": [state.mode for state in states] == [0o750, 0o640, 0o750, 0o640],
        "owner": all(state.owner == (os.geteuid(), os.getegid()) for state in states),
        "times": all(state.mtime_ns > WHEN for state in states[1:]),
        "links": not any(state.names for state in copy.values()),
        "xattr": not any(state.xattrs for state in copy.values()),
    }[what]


def test_links_can_be_followed(tmp_path: Path, jobs: int) -> None:
    make_tree(tmp_path / "out", {"f": File(b"outside", 0o640), "d": Dir({"g": b"below", "up": Link("../f")})})
    source = make_tree(
        tmp_path / "src", {"f": b"1", "l": Link("f"), "f2": Link("../out/f"), "d": Link("../out/d"), "p": Fifo()}
    )
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, dereference=True)
    assert report.ok, report.errors
    copy, outside = read_tree(tmp_path / "dst"), read_tree(tmp_path / "out")
    assert copy.keys() == {b".", b"f", b"l", b"f2", b"d", b"d/g", b"d/up", b"p"}
    assert copy[b"l"] == copy[b"f"] == read_tree(source)[b"f"]
    assert copy[b"f2"] == copy[b"d/up"] == outside[b"f"]
    assert (copy[b"d"], copy[b"d/g"]) == (outside[b"d"], outside[b"d/g"])


def test_links_that_are_followed_to_a_hard_link_do_not_part_its_names(tmp_path: Path, jobs: int) -> None:
    """They are names of its inode beyond those that it counts."""
    links = {f"{one}{number}": Link("d/f") if one == "l" else Hard("d/f") for number in range(4) for one in "lh"}
    source = make_tree(tmp_path / "src", {"d": Dir({"f": b"text"}), **links})
    for _ in range(2):
        report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, dereference=True)
        assert report.ok, report.errors
        copies = [tmp_path / "dst" / name for name in (*links, "d/f")]
        assert {(one.lstat().st_ino, one.lstat().st_nlink) for one in copies} == {(copies[0].lstat().st_ino, 9)}


def test_a_link_to_nothing_or_in_a_circle_that_is_to_be_followed_is_a_named_failure(tmp_path: Path, jobs: int) -> None:
    """Circles of links, and directories that lie below themselves: the copy ends, and has all the rest."""
    inner = Dir({"up": Link(".."), "top": Link("../.."), "f": b"text"})
    source = make_tree(
        tmp_path / "src", {"to nothing": Link("nowhere"), "a": Link("b"), "b": Link("a"), "d": Dir({"e": inner})}
    )
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, dereference=True)
    assert report.exit_status == 1
    assert report.vanished == 0
    failed = sorted(os.path.relpath(error.path, source) for error in report.errors)
    assert failed == ["a", "b", "d/e/top", "d/e/up", "to nothing"]
    assert read_tree(tmp_path / "dst").keys() == {b".", b"d", b"d/e", b"d/e/f"}


@as_root
def test_what_is_mounted_below_the_source_can_be_left_out(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"f": b"text", "mount": Dir(), "d": Dir({"mount": Dir()})})
    tmpfs = ("-t", "tmpfs", "none")
    with mounted(source / "mount", *tmpfs), mounted(source / "d/mount", *tmpfs):
        (source / "mount/inside").write_bytes(b"1")
        (source / "d/mount/inside").write_bytes(b"1")
        apart = pcopy.copy(source, tmp_path / "one", jobs=jobs, one_file_system=True)
        every = pcopy.copy(source, tmp_path / "all", jobs=jobs)
    assert apart.ok and every.ok
    assert read_tree(tmp_path / "one").keys() == {b".", b"f", b"mount", b"d", b"d/mount"}
    assert read_tree(tmp_path / "all").keys() == {b".", b"f", b"mount", b"mount/inside", b"d", b"d/mount", b"d/mount/inside"}


@as_root
def test_a_system_is_copied_to_a_disk_that_is_mounted_in_it(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"f": b"text", "mount": Dir(), "d": Dir({"g": b"1"})})
    with mounted(source / "mount", "-t", "tmpfs", "none") as mount:
        with pytest.raises(pcopy.UsageError, match=r"never end; give another destination, or one-file-system$"):
            pcopy.copy(source, mount / "copy", jobs=jobs)
        for there in (mount / "copy", mount):
            for copied in (2, 0):
                report = pcopy.copy(source, there, jobs=jobs, one_file_system=True)
                assert report.ok
                assert (report.files, report.unchanged) == (copied, 2 - copied)
        assert read_tree(mount / "copy").keys() == {b".", b"f", b"mount", b"d", b"d/g"}
        report = pcopy.copy(source, mount / "next", jobs=jobs, one_file_system=True, link_dest=mount / "copy")
        assert (report.ok, report.hardlinks, report.files) == (True, 2, 0)
    with pytest.raises(pcopy.UsageError, match=r"never end; give another destination$"):
        pcopy.copy(source, source / "d/copy", jobs=jobs, one_file_system=True)


@as_root
def test_what_is_told_of_the_root_directory_has_its_path(tmp_path: Path) -> None:
    events: list[pcopy.Event] = []

    class Log(pcopy.Observer):
        def event(self, event: pcopy.Event) -> None:
            events.append(event)

    with mounted(tmp_path / "mount", "-t", "tmpfs", "none") as mount:
        log, there = Log(), mount / "copy"
        assert pcopy.copy("/", there, observer=log, one_file_system=True, dry_run=True, verbose=True, filters=["*"]).ok
    assert {event.path for event in events if event.what == "hidden"} == {f"/{name}" for name in os.listdir("/")}
    assert {event.path for event in events if event.what != "hidden"} == {"/"}


@as_root
def test_a_bind_mount_of_the_same_file_system_is_not_left_out(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir({"f": b"text"}), "mount": Dir()})
    if subprocess.run(["mount", "--bind", str(source / "d"), str(source / "mount")], check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        assert pcopy.copy(source, tmp_path / "dst", jobs=jobs, one_file_system=True).ok
    finally:
        subprocess.run(["umount", str(source / "mount")], check=True)
    assert read_tree(tmp_path / "dst").keys() == {b".", b"d", b"d/f", b"mount", b"mount/f"}


# ---- without privilege ----------------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("jobs", [1, 3])
def test_what_may_not_be_set_is_said_once_with_a_count_and_fails_nothing(public: Path, jobs: int) -> None:
    """Root's files, copied by somebody else: their own, and without the bits that would lend out their rights."""
    files = {f"f{number}": File(b"text", 0o4755 if number % 2 else 0o644) for number in range(20)}
    source = make_tree(public / "src", {**files, "d": Dir({"f": File(b"text", 0o2755)}, 0o2755), "l": Link("d")})
    os.setxattr(source / "f0", "trusted.secret", b"1")
    done = as_nobody("-j", jobs, "--json", source, public / "dst")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["files"], report["failed"]) == (21, 0)
    assert sorted(line.split(":")[0] for line in report["warnings"]) == ["owner", "set-uid and set-gid bits"]
    assert " 24 of" in report["warnings"][0]  # 21 files, 2 directories, 1 link
    assert " 12 of" in report["warnings"][1]
    for warning in report["warnings"]:
        assert done.stderr.count(warning) == 1
    there = read_tree(source)
    for path, state in read_tree(public / "dst").items():
        assert state.owner == (NOBODY, NOBODY)
        assert state.mode == there[path].mode & 0o1777
        assert (state.mtime_ns, state.content) == (there[path].mtime_ns, there[path].content)


@as_root
@pytest.mark.parametrize("jobs", [1, 3])
def test_a_file_of_several_names_whose_owner_cannot_be_kept_is_not_copied_again(public: Path, jobs: int) -> None:
    entries = {
        "f": File(b"text", owner=(0, 5678)),
        "g": Hard("f"),
        "d": Dir({"mine": File(b"1", owner=(0, NOBODY)), "h": Hard("d/mine")}),
    }
    source = make_tree(public / "src", entries)
    give(source / "d", NOBODY)
    os.chown(source / "d/mine", 0, NOBODY)
    assert as_nobody("-j", jobs, source, public / "dst").returncode == 0
    done = as_nobody("-j", jobs, "--json", source, public / "dst")
    report = json.loads(done.stdout)
    assert (done.returncode, report["files"], report["hardlinks"], report["unchanged"]) == (0, 0, 0, 4), done.stderr
    assert report["warnings"][0].startswith("owner: could not be preserved")
    os.chown(public / "dst/f", 1234, 5678)  # the copy of somebody else, who may have had other rights
    done = as_nobody("-j", jobs, "--json", source, public / "dst")
    report = json.loads(done.stdout)
    assert (done.returncode, report["files"], report["hardlinks"], report["unchanged"]) == (0, 1, 1, 2), done.stderr


@as_root
def test_a_device_that_may_not_be_made_is_a_named_failure(public: Path) -> None:
    source = make_tree(public / "src", {"f": b"text", "null": Device()})
    done = as_nobody(source, public / "dst")
    assert done.returncode == 1
    assert f"{source}/null: make special: Operation not permitted" in done.stderr
    assert os.listdir(public / "dst") == ["f"]


@as_root
@pytest.mark.parametrize("mode", [0o555, 0o755, 0o500])
@pytest.mark.parametrize("jobs", [1, 3])
def test_directories_that_may_not_be_written_into_are_copied_and_brought_up_to_date(public: Path, mode: int, jobs: int) -> None:
    source = make_tree(
        public / "src", {"d": Dir({"f": File(b"old", 0o444), "h": Hard("d/f"), "e": Dir({"g": b"1"}, mode)}, mode)}
    )
    give(source, NOBODY)
    assert as_nobody("-j", jobs, source, public / "dst").returncode == 0
    assert read_tree(public / "dst") == read_tree(source)
    os.unlink(source / "d/h")
    make_tree(source / "d", {"f": File(b"new"), "new": b"1", "link": Link("f"), "k": Dir({"x": b"1"}, mode)}, mode)
    os.unlink(source / "d/e/g")
    make_tree(source / "d/e", {"g": Dir({"deep": b"1"}, mode)}, mode)
    give(source, NOBODY)
    done = as_nobody("-j", jobs, source, public / "dst")
    assert done.returncode == 0, done.stderr
    copy = read_tree(public / "dst")
    assert {path: copy[path].mtime_ns for path in (b"d", b"d/e")} == {b"d": WHEN, b"d/e": WHEN}
    assert copy.pop(b"d/h").content.startswith("3 ")  # what the source lacks stays
    assert copy == read_tree(source)


def give(top: Path, owner: int) -> None:
    for where, directories, files in os.walk(top):
        for name in [".", *directories, *files]:
            mode = os.lstat(os.path.join(where, name)).st_mode
            os.chown(os.path.join(where, name), owner, owner, follow_symlinks=False)
            if not stat.S_ISLNK(mode):
                os.chmod(os.path.join(where, name), stat.S_IMODE(mode))


@as_root
def test_attributes_of_a_file_that_may_not_be_written_to_follow_the_source(public: Path) -> None:
    """Its owner may set them all the same: it is the owner's own mode that stands in the way."""
    source = make_tree(public / "src", {"f": File(b"text", 0o444, xattrs={"user.x": b"1"})})
    give(source, NOBODY)
    assert as_nobody(source, public / "dst").returncode == 0
    os.setxattr(source / "f", "user.x", b"2")
    done = as_nobody(source, public / "dst")
    assert done.returncode == 0
    assert "could not be preserved" not in done.stderr
    assert read_tree(public / "dst") == read_tree(source)


@as_root
def test_what_may_not_be_read_is_a_named_failure_and_leaves_no_trace(public: Path) -> None:
    """Nor does it spoil the times of the directory above."""
    entries = {"f": b"text", "closed": File(b"secret", 0o600), "d": Dir({"f": b"1", "closed": Dir({"x": b"1"}, 0o700)})}
    source = make_tree(public / "src", entries)
    done = as_nobody(source, public / "dst")
    assert done.returncode == 1
    assert f"{source}/closed: open to read: Permission denied" in done.stderr
    assert f"{source}/d/closed: open directory: Permission denied" in done.stderr
    copy = read_tree(public / "dst")
    assert copy.keys() == {b".", b"f", b"d", b"d/f"}
    assert {state.mtime_ns for state in copy.values()} == {WHEN}


@as_root
def test_a_directory_that_may_not_be_read_leaves_the_mode_of_the_one_above_alone(public: Path) -> None:
    source = make_tree(public / "src", {"d": Dir({"closed": Dir({}, 0o700)}), "f": b"text"})
    assert as_nobody("--no-preserve", "mode", source, public / "dst", umask=0o077).returncode == 1
    assert {path: f"{state.mode:o}" for path, state in read_tree(public / "dst").items()} == {
        b".": "700",
        b"d": "700",
        b"f": "600",
    }


# ---- what the place of a copy does to what is made there ----


@pytest.mark.parametrize("options", [[], ["--no-preserve", "mode"], ["--verify"]], ids=" ".join)
@pytest.mark.parametrize("acl", ["u::rx,g::rx,o::rx", "u::w,g::-,o::-"])
def test_a_default_acl_that_keeps_the_owner_out_is_no_hurdle(tmp_path: Path, acl: str, options: list[str]) -> None:
    """Under one, the kernel masks the modes of new entries with it, whatever the umask is (acl(5))."""
    if not shutil.which("setfacl"):
        pytest.skip("needs setfacl")
    source = make_tree(tmp_path / "src", {"f": File(b"1", xattrs={"user.a": b"1"}), "d": Dir({"g": "2", "e": Dir({"h": "3"})})})
    (tmp_path / "out").mkdir()
    subprocess.run(["setfacl", "-d", "-m", acl, tmp_path / "out"], check=True)
    done = unprivileged("-j", 1, *options, source, tmp_path / "out/dst")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    subprocess.run(["chmod", "-R", "u+rwX", tmp_path / "out"], check=True)
    assert [(tmp_path / "out/dst" / name).read_text() for name in ("f", "d/g", "d/e/h")] == ["1", "2", "3"]
    assert os.getxattr(tmp_path / "out/dst/f", "user.a") == b"1"


@as_root
def test_times_that_the_destination_cannot_keep_are_set_once(tmp_path: Path) -> None:
    """They become the nearest that it keeps; a rerun cannot tell two such times apart, and leaves the copies as they are."""
    far = 16_725_225_600 * 10**9  # 2500-01-01
    entries = {"f": "1", "l": Link("f"), "p": Fifo(), "x": Dir({"g": "2"}), "y": Dir()}
    source = make_tree(tmp_path / "src", entries)
    for name in ("f", "l", "p", "x"):
        os.utime(source / name, ns=(far, far), follow_symlinks=False)
    os.utime(source / "y", ns=(far, 10**18))
    with on_loop_device("ext4", tmp_path / "mount") as disk:
        pcopy.copy(source, disk / "dst", jobs=1)
        # But for x, in which something was changed after it was last read, as its times say: to read it sets its access time.
        before = {path: os.lstat(path).st_ctime_ns for path in (disk / "dst").rglob("*") if path.name != "x"}
        told: list[str] = []

        class Tells(pcopy.Observer):
            def event(self, event: pcopy.Event) -> None:
                told.append(event.what)

        report = pcopy.copy(source, disk / "dst", jobs=1, verbose=True, observer=Tells())
        assert (report.ok, set(told)) == (True, {"unchanged", "directory"})
        assert {path: os.lstat(path).st_ctime_ns for path in before} == before


def test_a_time_before_1980_is_not_taken_for_what_cannot_be_kept(tmp_path: Path) -> None:
    """As the 1 that some give to all of their files; what is at 0 is there for another reason."""
    source = make_tree(tmp_path / "src", {"d": Dir({"f": "x"}), "p": Fifo(), "l": Link("d"), "g": "y"})
    target = make_tree(tmp_path / "dst", {"d": Dir({"f": "x"}), "p": Fifo(), "l": Link("d"), "g": "y"})
    for name in "dplg":
        os.utime(source / name, ns=(10**9, 10**9), follow_symlinks=False)
        os.utime(target / name, ns=(0, 0), follow_symlinks=False)
    assert pcopy.copy(source, target, jobs=1, checksum=True).ok
    assert [os.lstat(target / name).st_mtime_ns for name in "dplg"] == [10**9] * 4
