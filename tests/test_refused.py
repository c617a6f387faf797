"""Extended attributes that a destination refuses, or has by itself: copies that cannot have others are up to date."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import pcopy as library
from pcopy.metadata import changes
from tests.conftest import Run, as_root
from tests.test_destination import messages, mounted, unprivileged
from tests.test_fidelity import CAPABILITY
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
def test_who_may_not_give_capabilities_copies_a_file_once(unlocked: Path) -> None:
    source = make_tree(unlocked / "src", {"ping": b"1", "ping6": Hard("ping"), "one": b"2"})
    for name in ("ping", "one"):
        os.setxattr(source / name, "security.capability", CAPABILITY)
    for counts in ("copied 2 files", "copied 0 files"):
        done = unprivileged("-j", 1, source, unlocked / "dst")
        assert done.returncode == 0, done.stderr
        *said, last = messages(done)
        assert [line for line in said if "owner" not in line] == [
            "pcopy: attributes security.*: could not be preserved on 2 of the copies"
        ]
        assert last.startswith(counts)
    assert not os.listxattr(unlocked / "dst/ping")


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
        ({}, {"system.nfs4_acl": b"1", "security.selinux": b"2"}, {}),
        ({}, {"btrfs.compression": b"zstd"}, {}),
        ({}, {"system.posix_acl_access": b"1"}, {"system.posix_acl_access": (None, b"1")}),
        ({}, {"user.x": b"1", "security.capability": b"2"}, {"user.x": (None, b"1"), "security.capability": (None, b"2")}),
        ({"user.x": b"1"}, {}, {"user.x": (b"1", None)}),
        ({"security.selinux": b"1"}, {"security.selinux": b"2"}, {"security.selinux": (b"1", b"2")}),
    ],
)
def test_what_the_system_gives_to_copies_is_left_to_it(
    wanted: dict[str, bytes], there: dict[str, bytes], found: dict[str, tuple[bytes | None, bytes | None]]
) -> None:
    """NFSv4 shows an ACL on each file, SELinux a label; a file that is new on btrfs has what its directory has."""
    assert changes(wanted, there) == found
