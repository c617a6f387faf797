"""Extended attributes that a destination refuses, or has by itself: copies that cannot have others are up to date."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pcopy as library
from pcopy import mounts
from pcopy.metadata import ACL, differing
from tests.conftest import Run, as_root
from tests.test_destination import messages, mounted, unprivileged
from tests.trees import Dir, File, Hard, make_tree, read_tree

X = {"user.x": b"1"}
TREE = {"a": File(b"1", xattrs=X), "d": Dir({"c": File(b"2", xattrs=X), "plain": b"3"}), "b": Hard("a"), "e": Hard("d/plain")}


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Path]:
    """A file system without extended attributes: ramfs. tmpfs has them."""
    source = make_tree(tmp_path / "test", {"f": File(b"1", xattrs=X)})
    with mounted(tmp_path / "bare", "-t", "ramfs", "none") as place:
        if library.copy(source, place / "test").lost != {"attributes user.*": 1}:
            pytest.skip("ramfs has extended attributes here")
        yield place


def inodes(top: Path) -> dict[Path, int]:
    """Of the files in a tree."""
    return {path.relative_to(top): path.stat().st_ino for path in top.rglob("*") if path.is_file()}


@as_root
@pytest.mark.parametrize(("verbose", "checksum"), [(False, False), (True, False), (False, True)])
def test_what_lacks_only_what_it_cannot_have_is_unchanged(
    tmp_path: Path, bare: Path, jobs: int, verbose: bool, checksum: bool
) -> None:
    """Files with several names would be copied anew in each run."""
    source = make_tree(tmp_path / "src", TREE)
    first = library.copy(source, bare / "dst", jobs=jobs)
    assert (first.ok, first.files, first.hardlinks) == (True, 3, 2), first.errors
    before = inodes(bare / "dst")
    again = library.copy(source, bare / "dst", jobs=jobs, verbose=verbose, checksum=checksum)
    assert (again.ok, again.files, again.hardlinks, again.unchanged) == (True, 0, 0, 5), again.errors
    assert again.lost == first.lost == {"attributes user.*": 2}
    assert inodes(bare / "dst") == before


@as_root
def test_a_dry_run_foretells_it(tmp_path: Path, bare: Path, pcopy: Run) -> None:
    source = make_tree(tmp_path / "src", TREE)
    pcopy(source, bare / "dst")
    for words in (["-n", "-v"], ["-v"]):
        said = messages(pcopy(*words, source, bare / "dst"))
        assert any("could not be preserved on 2 " in line for line in said) == ("-n" not in words)
        assert sum(line.startswith("unchanged ") for line in said) == 5, said
        assert said[-1].split("; ")[1].startswith("5 unchanged")


@as_root
def test_snapshots_are_links_though_they_lack_what_none_can_have(tmp_path: Path, bare: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", TREE)
    library.copy(source, bare / "day1", jobs=jobs)
    before = inodes(bare / "day1")
    times = {path: os.stat(path).st_mtime_ns for path in (bare / "day1", bare / "day1/d")}
    foretold = library.copy(source, bare / "day2", jobs=jobs, link_dest="../day1", dry_run=True)
    report = library.copy(source, bare / "day2", jobs=jobs, link_dest="../day1")
    assert (report.ok, report.files, report.hardlinks) == (True, 0, 5), report.errors
    assert (foretold.files, foretold.hardlinks) == (0, 5)
    assert report.lost == {"attributes user.*": 2}
    assert inodes(bare / "day2") == before
    assert {path: os.stat(path).st_mtime_ns for path in times} == times


@as_root
@pytest.mark.parametrize(("bare", "other"), [("a", "b"), ("b", "a")])
def test_what_one_file_system_refuses_another_in_the_same_tree_gets(tmp_path: Path, jobs: int, bare: str, other: str) -> None:
    tree = {name: Dir({str(number): File(b"1", xattrs=X) for number in range(3)}) for name in "ab"}
    source = make_tree(tmp_path / "src", tree)
    dst = make_tree(tmp_path / "dst", {"a": Dir(), "b": Dir()})
    with mounted(dst / bare, "-t", "ramfs", "none"):
        assert library.copy(source, dst, jobs=jobs).ok
        for file in (dst / other).iterdir():
            os.removexattr(file, "user.x")
        report = library.copy(source, dst, jobs=jobs)
        assert (report.ok, report.files, report.unchanged) == (True, 0, 6)
        assert [os.listxattr(file) for file in (dst / other).iterdir()] == [["user.x"]] * 3


@as_root
def test_what_the_lower_file_system_of_an_overlay_refuses_its_upper_one_gets(tmp_path: Path, bare: Path, jobs: int) -> None:
    """It asks the lower one as long as it has the file, and copies that up when an attribute is set."""
    source = make_tree(tmp_path / "src", {"a": File(b"1", xattrs=X)})
    assert library.copy(source, bare / "lower", jobs=jobs).lost == {"attributes user.*": 1}
    make_tree(tmp_path, {"upper": Dir(), "work": Dir()})
    options = f"lowerdir={bare}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    with mounted(tmp_path / "over", "-t", "overlay", "none", "-o", options) as over:
        report = library.copy(source, over, jobs=jobs)
        assert (report.ok, report.lost, os.listxattr(over / "a")) == (True, {}, ["user.x"])


@as_root
def test_another_value_that_can_be_set_is_no_refusal(tmp_path: Path, jobs: int) -> None:
    """Neither is one that a copy has too much. A file with another name in a snapshot is copied anew for it."""
    source = make_tree(tmp_path / "src", TREE)
    library.copy(source, tmp_path / "dst", jobs=jobs)
    os.setxattr(tmp_path / "dst/a", "user.x", b"2")
    os.setxattr(tmp_path / "dst/d/plain", "user.more", b"2")
    os.link(tmp_path / "dst/d/c", tmp_path / "kept")
    os.setxattr(tmp_path / "kept", "user.x", b"2")
    report = library.copy(source, tmp_path / "dst", jobs=jobs)
    assert (report.ok, report.lost) == (True, {})
    assert read_tree(tmp_path / "dst") == read_tree(source)
    assert os.getxattr(tmp_path / "kept", "user.x") == b"2"


@as_root
def test_what_is_refused_for_its_value_alone_is_no_refusal_of_the_name(unlocked: Path) -> None:
    """Nobody can name a user in a user namespace that does not map it; the ACLs of the other files can be set."""
    source = make_tree(unlocked / "src", dict.fromkeys("abcdef", b"1"))
    library.copy(source, unlocked / "dst", preserve=["mode", "times"])
    for user, names in ((5000, "af"), (0, "bcde")):
        for name in names:
            subprocess.run(["setfacl", "-m", f"u:{user}:r", source / name], check=True)
    done = unprivileged("-j", 1, source, unlocked / "dst")
    assert done.returncode == 0, done.stderr
    assert [name for name in "abcdef" if ACL in os.listxattr(unlocked / "dst" / name)] == list("bcde")


@as_root
def test_what_belongs_to_another_user_namespace_is_lost_and_fails_nothing(unlocked: Path) -> None:
    """Its capabilities cannot even be read."""
    source = make_tree(unlocked / "src", {"f": File(b"1", xattrs=X)})
    os.setxattr(source / "f", "security.capability", struct.pack("<6I", 0x03000001, 0x2000, 0, 0, 0, 12345))
    for counts in ("copied 1 file,", "copied 0 files,"):
        done = unprivileged("-j", 1, source, unlocked / "dst")
        assert (done.returncode, messages(done)[-1].startswith(counts)) == (0, True), done.stderr
    assert os.listxattr(unlocked / "dst/f") == ["user.x"]


@as_root
def test_labels_are_no_difference_where_none_can_be_set(tmp_path: Path, jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a share without them SELinux shows the same label for all files, and sets none."""
    label = {"security.selinux": b"user_home_t"}
    source = make_tree(tmp_path / "src", {"a": File(b"1", xattrs=label), "b": Hard("a"), "c": File(b"2", xattrs=label)})
    library.copy(source, tmp_path / "day1", jobs=jobs)
    for name in "ac":
        os.setxattr(tmp_path / "day1" / name, "security.selinux", b"nfs_t")
    before = inodes(tmp_path / "day1")
    monkeypatch.setattr("pcopy.mounts.takes_labels", lambda path: False)
    again = library.copy(source, tmp_path / "day1", jobs=jobs)
    snapshot = library.copy(source, tmp_path / "day2", jobs=jobs, link_dest="../day1")
    assert (again.files, again.unchanged, again.lost) == (0, 3, {"attributes security.*": 2})
    assert (snapshot.files, snapshot.hardlinks, snapshot.lost) == (0, 3, {"attributes security.*": 2})
    assert inodes(tmp_path / "day1") == inodes(tmp_path / "day2") == before
    monkeypatch.undo()
    assert library.copy(source, tmp_path / "day2", jobs=jobs).files == 2
    assert os.getxattr(tmp_path / "day2/b", "security.selinux") == b"user_home_t"
    assert os.getxattr(tmp_path / "day1/b", "security.selinux") == b"nfs_t"


@pytest.mark.parametrize(
    ("mount", "at_work", "takes"),
    [
        ("ext4 /dev/sda1 rw,seclabel,noquota", True, True),
        ("nfs4 nas:/home rw,vers=4.1,addr=10.0.0.1", True, False),
        ("nfs4 nas:/home rw,vers=4.1,addr=10.0.0.1", False, True),
        ("", True, True),
    ],
)
def test_selinux_says_where_labels_can_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mount: str, at_work: bool, takes: bool
) -> None:
    monkeypatch.setattr("pcopy.mounts.mount_at", lambda path: mount)
    monkeypatch.setattr("pcopy.mounts.SELINUX", str(tmp_path if at_work else tmp_path / "none"))
    assert mounts.takes_labels("/") == takes


@as_root
def test_what_is_lost_is_counted_once(tmp_path: Path, bare: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", TREE)
    library.copy(source, bare / "day1", jobs=jobs)
    for name in ("a", "d/c"):
        os.utime(source / name)
    report = library.copy(source, bare / "day1", jobs=jobs, checksum=True)
    assert (report.ok, report.lost) == (True, {"attributes user.*": 2}), report.errors


@as_root
def test_what_a_file_system_keeps_for_itself_is_no_attribute_of_a_file(tmp_path: Path, jobs: int) -> None:
    """Lustre shows the first on each of its files."""
    source = make_tree(tmp_path / "src", {"f": b"1", "g": b"2", "d": Dir({"h": b"3"})})
    for place in (source / "f", source / "d", source / "d/h"):
        os.setxattr(place, "trusted.lov", b"1")
    os.setxattr(source / "g", "trusted.lovely", b"1")
    first = library.copy(source, tmp_path / "dst", jobs=jobs)
    assert (first.ok, first.lost) == (True, {})
    assert [os.listxattr(tmp_path / "dst" / name) for name in ("f", "g", "d", "d/h")] == [[], ["trusted.lovely"], [], []]
    os.setxattr(tmp_path / "dst/g", "trusted.lov", b"2")
    again = library.copy(source, tmp_path / "dst", jobs=jobs)
    assert (again.ok, again.unchanged) == (True, 3)
    assert os.getxattr(tmp_path / "dst/g", "trusted.lov") == b"2"


@pytest.mark.parametrize(
    ("wanted", "there", "found"),
    [
        ({}, {"system.nfs4_acl": b"1", "security.selinux": b"2"}, []),
        ({}, {"btrfs.compression": b"zstd"}, []),
        ({}, {ACL: b"1"}, [ACL]),
        ({}, {"user.x": b"1", "security.capability": b"2"}, ["user.x", "security.capability"]),
        ({"user.x": b"1"}, {}, ["user.x"]),
        ({"security.selinux": b"1"}, {"security.selinux": b"2"}, ["security.selinux"]),
    ],
)
def test_what_the_system_gives_to_copies_is_left_to_it(
    wanted: dict[str, bytes], there: dict[str, bytes], found: list[str]
) -> None:
    """NFSv4 shows an ACL on each file, SELinux a label; a file that is new on btrfs has what its directory has."""
    assert differing(wanted, there) == found
