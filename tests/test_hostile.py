"""What somebody else left or planted in the destination, and what a file system refuses: nothing leads out of the tree."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pcopy
import pcopy.asked
import pcopy.mounts
from pcopy.metadata import SHORTLY
from pcopy.options import Options
from pcopy.runs import temporary_name
from pcopy.work import Job, Scan, Tree
from pcopy.work import Link as LinkUnit
from pcopy.worker import run
from tests.conftest import Run, as_root
from tests.test_destination import mounted, unprivileged
from tests.trees import Dir, Fifo, File, Hard, Holes, Link, Socket, make_tree, read_tree

JOBS = pytest.mark.parametrize("jobs", [1, 3])


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Path, Path, Path]]:
    """Two sources, a destination for both, and a directory outside of it."""
    sources = make_tree(tmp_path / "from", {"a": Dir({"f": b"new", "h": b"new"}), "b": Dir({"g": b"new"})})
    (tmp_path / "new").mkdir()
    yield sources / "a", sources / "b", tmp_path / "new"


@JOBS
@pytest.mark.parametrize("overwrite", ["changed", "always", "older", "never"])
def test_a_link_planted_where_a_source_lands_is_not_followed(
    tmp_path: Path, two: tuple[Path, Path, Path], jobs: int, overwrite: pcopy.asked.OverwriteName
) -> None:
    outside = make_tree(tmp_path / "outside", {"f": b"precious"})
    before = read_tree(outside)
    (two[2] / "a").symlink_to(outside)
    report = pcopy.copy(two[:2], two[2], jobs=jobs, overwrite=overwrite)
    assert report.ok, report.errors
    assert read_tree(outside) == before
    assert read_tree(two[2] / "b") == read_tree(two[1])
    if overwrite == "never":
        assert (report.skipped, (two[2] / "a").is_symlink()) == (1, True)
    else:
        assert read_tree(two[2] / "a") == read_tree(two[0])


@JOBS
def test_a_file_where_a_source_directory_lands_is_kept_if_nothing_is_to_be_replaced(
    two: tuple[Path, Path, Path], jobs: int
) -> None:
    (two[2] / "a").write_bytes(b"precious")
    report = pcopy.copy(two[:2], two[2], jobs=jobs, overwrite="never")
    assert report.ok, report.errors
    assert (report.skipped, (two[2] / "a").read_bytes()) == (1, b"precious")
    assert read_tree(two[2] / "b") == read_tree(two[1])


@JOBS
def test_no_name_becomes_a_link_to_one_that_was_skipped(tmp_path: Path, jobs: int) -> None:
    """Without times, the old file of the same length could not be told from a copy."""
    source = make_tree(tmp_path / "src", {"d": Dir({"one": b"wanted"}), "e": Dir({"two": Hard("d/one")})})
    make_tree(tmp_path / "dst", {"d": Dir({"one": b"older."})})
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, overwrite="never", preserve={"links"})
    assert report.ok, report.errors
    assert (tmp_path / "dst/d/one").read_bytes() == b"older."
    assert (tmp_path / "dst/e/two").read_bytes() == b"wanted"


@JOBS
def test_hard_links_between_overlapping_sources_are_kept(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir({"one": b"1"}), "two": Hard("d/one")})
    report = pcopy.copy([source, source / "d"], tmp_path / "dst", jobs=jobs)
    assert report.ok, report.errors
    names = ("src/d/one", "src/two", "d/one")
    assert len({(tmp_path / "dst" / name).stat().st_ino for name in names}) == 1


@JOBS
def test_an_attribute_that_is_too_large_for_the_destination_is_a_loss_and_no_full_disk(on_disk: Path, jobs: int) -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("needs a file system that takes large attributes")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        source = make_tree(Path(other) / "src", {"a": b"1", "b": b"2"})
        try:
            os.setxattr(source / "a", "user.large", bytes(40_000))
        except OSError as error:
            pytest.skip(f"no large attributes on /dev/shm: {error.strerror}")
        (on_disk / "probe").touch()
        try:
            os.setxattr(on_disk / "probe", "user.large", bytes(40_000))
            pytest.skip("the destination takes large attributes too")
        except OSError:
            pass
        report = pcopy.copy(source, on_disk / "dst", jobs=jobs)
        assert (report.exit_status, report.files, report.lost) == (0, 2, {"attributes user.*": 1})
        assert read_tree(on_disk / "dst")[b"b"] == read_tree(source)[b"b"]


@JOBS
@pytest.mark.parametrize("levels", ["9" * 8, "9" * 40, "٣", "40"])
def test_a_name_that_only_looks_like_a_temporary_one_is_left_alone(tmp_path: Path, jobs: int, levels: str) -> None:
    planted = f".pcopy-deadbeef-{levels}-0123456789abcdef"
    source = make_tree(tmp_path / "src", {"d": Dir({"f": b"1"}), "g": b"2"})
    make_tree(tmp_path / "dst", {planted: b"not ours", "d": Dir({planted: b"nor this"})})
    for _ in range(2):
        report = pcopy.copy(source, tmp_path / "dst", jobs=jobs)
        assert report.ok, report.errors
        report = pcopy.copy([source / "g"], f"{tmp_path}/dst/", jobs=jobs)
        assert report.ok, report.errors
    assert (tmp_path / "dst" / planted).read_bytes() == b"not ours"
    assert (tmp_path / "dst/d" / planted).read_bytes() == b"nor this"


def test_a_directory_that_cannot_be_read_leaves_no_empty_copy_below_a_closed_one(tmp_path: Path) -> None:
    """The copy of the directory above is finished, and so closed for writing, before the one below is looked at."""
    source = make_tree(tmp_path / "src", {"d": Dir({"shut": Dir(mode=0o000), "f": b"1"}, mode=0o555)})
    done = unprivileged("-j", 1, source, tmp_path / "dst")
    try:
        assert done.returncode == 1, done.stderr
        assert "d/shut" in done.stderr
        assert os.listdir(tmp_path / "dst/d") == ["f"]
        assert (tmp_path / "dst/d").stat().st_mode & 0o777 == 0o555
        assert (tmp_path / "dst/d").stat().st_mtime_ns == (source / "d").stat().st_mtime_ns
    finally:
        for path in ("src/d", "src/d/shut", "dst/d"):
            os.chmod(tmp_path / path, 0o755)


def test_a_dry_run_says_what_becomes_of_names_that_a_snapshot_shares(tmp_path: Path) -> None:
    """The copy has more names than its source: other attributes mean a new copy, and a dry run has to say so."""
    source = make_tree(tmp_path / "src", {"f": File(b"1", mode=0o600)})
    make_tree(tmp_path / "dst", {"f": File(b"1", mode=0o644)})
    os.link(tmp_path / "dst/f", tmp_path / "snapshot")
    planned = pcopy.copy(source, tmp_path / "dst", jobs=1, dry_run=True)
    done = pcopy.copy(source, tmp_path / "dst", jobs=1)
    assert (planned.files, planned.unchanged) == (done.files, done.unchanged) == (1, 0)
    assert (tmp_path / "snapshot").stat().st_mode & 0o777 == 0o644


@JOBS
@pytest.mark.parametrize("overwrite", ["changed", "always", "older", "never"])
def test_a_dry_run_counts_hard_links_as_the_run_does(tmp_path: Path, jobs: int, overwrite: pcopy.asked.OverwriteName) -> None:
    names: dict[str | bytes, object] = {"a": b"new.", **{f"h{number}": Hard("a") for number in range(5)}}
    source = make_tree(tmp_path / "src", names)
    make_tree(tmp_path / "dst", {"a": File(b"old.", mtime_ns=5), "h1": Hard("a"), "h2": b"other", "h3": Dir()})
    planned = pcopy.copy(source, tmp_path / "dst", jobs=1, overwrite=overwrite, dry_run=True)
    done = pcopy.copy(source, tmp_path / "dst", jobs=jobs, overwrite=overwrite)
    counts = ("files", "hardlinks", "unchanged", "skipped", "failed")
    assert [getattr(planned, one) for one in counts] == [getattr(done, one) for one in counts]


def test_verbose_tells_that_only_attributes_were_brought_up_to_date(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"f": File(b"1", mode=0o600), "g": b"2"})
    make_tree(tmp_path / "dst", {"f": File(b"1", mode=0o644), "g": b"2"})
    seen: list[tuple[str, str]] = []

    class Hears(pcopy.Observer):
        def event(self, event: pcopy.Event) -> None:
            seen.append((event.what, os.path.basename(event.path)))

    for dry_run in (True, False):
        seen.clear()
        pcopy.copy(source, tmp_path / "dst", jobs=1, verbose=True, observer=Hears(), dry_run=dry_run)
        assert sorted(seen)[-2:] == [("unchanged", "g"), ("updated", "f")]


def is_local(directory: str | Path) -> bool:
    return pcopy.mounts.kind_of(str(directory)) in pcopy.mounts.LOCAL


def test_only_file_systems_of_this_machine_count_as_keeping_its_time(tmp_path: Path) -> None:
    """A server's clock may be behind: then a changed source looks older than its copy."""
    assert not is_local("/proc/self")
    if os.access("/dev/shm", os.W_OK):
        assert is_local("/dev/shm")


@as_root
def test_what_is_mounted_over_others_is_what_counts(tmp_path: Path) -> None:
    """A file system of this machine lies below, at a longer path."""
    with mounted(tmp_path / "over", "-t", "tmpfs", "none") as over, mounted(over / "sys", "-t", "tmpfs", "none"):
        with mounted(over, "-t", "proc", "none"):
            assert not is_local(over / "sys")
        assert is_local(over / "sys")


# ---- handles: what is in use stays open -----------------------------------------------------------------------------


def two_chains(top: Path, levels: int, name: str) -> Path:
    """A file at every level of one chain of directories, and a hard link to it at the opposite level of another."""
    handles: dict[str, list[int]] = {}
    for chain in ("A", "B"):
        (top / chain).mkdir(parents=True)
        handles[chain] = [os.open(top / chain, os.O_RDONLY)]
        for _ in range(levels):
            os.mkdir("d", dir_fd=handles[chain][-1])
            handles[chain].append(os.open("d", os.O_RDONLY, dir_fd=handles[chain][-1]))
    for level in range(levels):
        first, other = name.format("a", level), name.format("b", levels - 1 - level)
        with open(os.open(first, os.O_CREAT | os.O_WRONLY, dir_fd=handles["A"][level]), "w") as file:
            file.write(f"{level:05}")
        os.link(first, other, src_dir_fd=handles["A"][level], dst_dir_fd=handles["B"][levels - 1 - level])
    for handle in handles["A"] + handles["B"]:
        os.close(handle)
    return top


@JOBS
@pytest.mark.parametrize("name", ["f", "{}{}"], ids=["one name", "many names"])
@pytest.mark.parametrize("levels", [53, 120])
def test_hard_links_far_from_each_other_in_deep_trees_are_made(tmp_path: Path, jobs: int, name: str, levels: int) -> None:
    source = two_chains(tmp_path / "src", levels, name)
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs)
    assert (report.errors, report.vanished, report.hardlinks) == ([], 0, levels)
    assert read_tree(tmp_path / "dst") == read_tree(source)
    for path in source.rglob("*"):
        if path.is_file() and path.stat().st_nlink == 2 and "A" in path.relative_to(source).parts:
            path.write_text("new" + path.read_text())
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs)
    assert (report.errors, report.vanished) == ([], 0)
    assert read_tree(tmp_path / "dst") == read_tree(source)


@JOBS
def test_deep_trees_are_copied_where_links_are_followed(tmp_path: Path, jobs: int) -> None:
    bottom = tmp_path / "src" / "/".join(["d"] * 130)
    bottom.mkdir(parents=True)
    (bottom / "f").write_bytes(b"1")
    report = pcopy.copy(tmp_path / "src", tmp_path / "dst", jobs=jobs, dereference=True)
    assert (report.errors, report.directories, report.files) == ([], 131, 1)


@JOBS
def test_a_link_into_the_destination_is_not_followed_for_ever(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"m": Dir({"f": b"1"})})
    make_tree(tmp_path / "dst", {"m": Dir()})
    (source / "m/x").symlink_to(tmp_path / "dst/m")
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, dereference=True)
    assert [(one.path, one.reason) for one in report.errors] == [
        (str(source / "m/x"), "a symbolic link leads into the destination")
    ]
    assert (tmp_path / "dst/m/f").read_bytes() == b"1"


@JOBS
def test_where_links_are_followed_a_source_may_lie_in_the_destination(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "dst/src", {"d": Dir({"e": Dir({"f": b"1"})})})
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs, dereference=True)
    assert (report.errors, (tmp_path / "dst/d/e/f").read_bytes()) == ([], b"1")


# ---- reruns ---------------------------------------------------------------------------------------------------------


@JOBS
def test_a_name_that_left_its_hard_link_does_not_change_through_the_others(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"a": b"x", "c": Hard("a"), "z": Dir()})
    assert pcopy.copy(source, tmp_path / "dst", jobs=jobs).ok
    state = (source / "c").stat()
    (source / "c").unlink()
    (source / "c").write_bytes(b"x")
    os.utime(source / "c", ns=(state.st_atime_ns, state.st_mtime_ns))
    os.link(source / "a", source / "z/b")
    os.chmod(source / "a", 0o600)
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs)
    assert report.ok, report.errors
    for name in ("a", "c", "z/b"):
        assert (tmp_path / "dst" / name).stat().st_mode == (source / name).stat().st_mode, name


@JOBS
def test_attributes_that_another_tool_left_out_are_brought_over(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"f": File(b"1", xattrs={"user.x": b"1"})})
    for path in (source / "f", source):
        os.utime(path, ns=(1, 1))
    time.sleep(SHORTLY / 1e9 + 0.1)  # a source that was changed long before its copy
    assert pcopy.copy(source, tmp_path / "dst", jobs=jobs, preserve={"mode", "owner", "times", "links"}).ok
    assert pcopy.copy(source, tmp_path / "dst", jobs=jobs).ok
    assert os.getxattr(tmp_path / "dst/f", "user.x") == b"1"


def test_what_appears_in_the_destination_meanwhile_is_kept_if_nothing_is_to_be_replaced(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {f"f{number:04}": b"1" for number in range(1000)})

    class Plants(pcopy.Observer):
        def progress(self, progress: pcopy.Progress) -> None:
            for path in source.iterdir():
                with contextlib.suppress(FileExistsError), (tmp_path / "dst" / path.name).open("xb") as file:
                    file.write(b"mine")

    report = pcopy.copy(source, tmp_path / "dst", jobs=2, overwrite="never", observer=Plants())
    assert report.ok, report.errors
    kept = sum(path.read_bytes() == b"mine" for path in (tmp_path / "dst").iterdir())
    assert kept == report.skipped > 0


# ---- what was named as the destination ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_a_special_file_named_as_the_destination_is_not_replaced(tmp_path: Path, pcopy: Run, kind: str) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1"})
    make_tree(tmp_path / "there", {"one": Fifo() if kind == "fifo" else Socket()})
    before = read_tree(tmp_path / "there")
    for given in (source / "f", source):
        done = pcopy(given, tmp_path / "there/one")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert read_tree(tmp_path / "there") == before
    make_tree(tmp_path / "other", {"one": Fifo()})
    if kind == "fifo":
        assert pcopy(tmp_path / "other/one", tmp_path / "there/one").returncode == 0


@pytest.mark.parametrize("name", ["x" * 300, f"{'x' * 300}/", f"src/{'x' * 300}", f"{'x' * 300}/y", "src/f/y"])
@pytest.mark.parametrize("given", [["src"], ["src/f"], ["src", "src/f"]], ids=len)
def test_a_destination_that_cannot_be_made_is_one_line(tmp_path: Path, pcopy: Run, name: str, given: list[str]) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1"})
    before = read_tree(source)
    done = pcopy(*given, name)
    assert done.returncode in (1, 2, 3)
    assert done.stderr.startswith("pcopy: ")
    assert "Traceback" not in done.stderr
    assert read_tree(source) == before


def test_a_source_that_is_its_own_copy_is_refused_before_anything_is_made(tmp_path: Path, pcopy: Run) -> None:
    make_tree(tmp_path / "dst", {"b": Dir({"f": b"1"})})
    make_tree(tmp_path / "x", {"f": b"1"})
    before = read_tree(tmp_path / "dst")
    assert pcopy("dst/b", "x", "dst").returncode == 2
    assert read_tree(tmp_path / "dst") == before


def test_a_process_with_many_open_files_can_have_a_pool(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("no more than 1,024 open files here")
    source = make_tree(tmp_path / "src", {f"d{number}": Dir({"f": b"1"}) for number in range(1500)})
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    handles = [os.open("/", os.O_RDONLY) for _ in range(1100)]
    try:
        report = pcopy.copy(source, tmp_path / "dst", jobs=2, start_method="fork")  # the others' workers have few handles
        assert (report.errors, report.warnings) == ([], [])
    finally:
        for handle in handles:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@JOBS
@pytest.mark.parametrize("options", [[], ["-L"], ["--delete"]], ids=str)
def test_where_few_files_may_be_open_deep_trees_are_copied(tmp_path: Path, pcopy: Run, jobs: int, options: list[str]) -> None:
    """As after ulimit -n 64."""
    source = make_tree(tmp_path / "src", {"f": b"0"})
    for depth in range(1, 70):
        make_tree(source / "/".join("d" * depth), {"f": str(depth), "h": Hard("../f")})
    command = ["sh", "-c", 'ulimit -n 64 && exec "$0" -m pcopy "$@"', sys.executable]
    for _ in range(2):
        words = [*command, "-j", str(jobs), *options, str(source), str(tmp_path / "dst")]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert read_tree(tmp_path / "dst").keys() == read_tree(source).keys()
    if "-L" not in options:
        assert read_tree(tmp_path / "dst") == read_tree(source)


@pytest.mark.parametrize("words", [["-j", "0", "a", "b"], ["--nope"], [], ["--overwrite", "x", "a", "b"], ["-j"]], ids=str)
def test_a_wrong_command_line_is_one_line(tmp_path: Path, pcopy: Run, words: list[str]) -> None:
    done = pcopy(*words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith("pcopy: ")
    assert done.stderr.endswith("(see pcopy --help)\n")


@JOBS
@pytest.mark.parametrize("umask", ["0777", "0277", "0"])
def test_a_umask_that_takes_the_owners_own_permissions_stops_no_copy(tmp_path: Path, jobs: int, umask: str) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1", "d": Dir({"g": b"2"}), "large": Holes(40 << 20, {0: b"x" * (34 << 20)})})
    before = os.umask(int(umask, 8))
    try:
        done = [unprivileged("-j", jobs, source, tmp_path / "dst") for _ in range(2)]
    finally:
        os.umask(before)
    assert [one.returncode for one in done] == [0, 0], [one.stderr for one in done]
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_a_copy_that_its_owner_may_not_read_is_brought_up_to_date(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1"})
    assert unprivileged(source, tmp_path / "dst").returncode == 0
    os.chmod(tmp_path / "dst", 0o077)
    (source / "f").write_bytes(b"new")
    done = unprivileged(source, tmp_path / "dst")
    assert done.returncode == 0, done.stderr
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_a_directory_that_is_not_finished_gets_its_mode_though_one_in_it_is_taken_away(tmp_path: Path) -> None:
    """By another worker than the one that finishes it, which may be done before."""
    source = make_tree(tmp_path / "src", {"d": Dir({"loop": Link(".")}, mode=0o555)})
    copy = make_tree(tmp_path / "dst", {"d": Dir({"loop": Dir()}, mode=0o1700)})
    states = [(path.stat().st_dev, path.stat().st_ino) for path in (source, copy)]
    options = Options(preserve=frozenset({"times"}), dereference=True)
    job = Job(options, (Tree(str(source), str(copy), states[0], states[1]),), "0123abcd", 0o022)
    outcome = run(job, [Scan(0, "d/loop", True, 1.0)], 1.0)
    assert [failure.path for failure in outcome.failures] == [str(source / "d/loop")]
    assert os.listdir(copy / "d") == []
    assert (copy / "d").stat().st_mode & 0o7777 == 0o555


def test_a_link_begun_by_a_killed_worker_is_made(tmp_path: Path) -> None:
    """It died between making the link under a temporary name and the rename."""
    source = make_tree(tmp_path / "src", {"a": b"1", "b": Hard("a")})
    copy = make_tree(tmp_path / "dst", {"a": b"1", "b": b"other"})
    states = [(path.stat().st_dev, path.stat().st_ino) for path in (source, copy)]
    job = Job(Options(), (Tree(str(source), str(copy), states[0], states[1]),), "0123abcd", 0o022)
    begun = temporary_name(job.token, 0, "b")
    (copy / begun).write_bytes(b"begun")
    state = (source / "a").stat()
    unit = LinkUnit(0, "", ("b",), None, ((state.st_dev, state.st_ino),), (0, ""), ("a",), 1.0)
    outcome = run(job, [unit], 1.0)
    assert (outcome.failures, outcome.tally.hardlinks) == ([], 1)
    assert sorted(os.listdir(copy)) == ["a", "b"]
    assert (copy / "a").samefile(copy / "b")
