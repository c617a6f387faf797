"""A dry run says what a run would do, entry by entry and why; a run straight after does exactly that."""

from __future__ import annotations

import os
import random
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest

import pcopy as library
from pcopy import mounts, worker
from pcopy.options import Options
from pcopy.outcome import Tally
from pcopy.progress import DRY_RUN
from pcopy.work import Entries, Job, Tree
from tests.conftest import Run, as_root
from tests.test_destination import unprivileged
from tests.trees import WHEN, Dir, Fifo, File, Hard, Holes, Link, make_tree, read_tree

JOBS = pytest.mark.parametrize("jobs", [1, 3])
OVERWRITE = ("changed", "always", "older", "never")
LATER = WHEN + 5_000_000_000
COUNTS = [one.name for one in fields(Tally)]
LARGE = 33 << 20  # bytes: a file of this size is shared out in spans


class Hears(library.Observer):
    def __init__(self) -> None:
        self.events: list[library.Event] = []
        self.failures: list[library.Failure] = []

    def event(self, event: library.Event) -> None:
        self.events.append(event)

    def failure(self, failure: library.Failure) -> None:
        self.failures.append(failure)

    def told(self) -> list[tuple[object, ...]]:
        """What was said of each entry, in an order of its own: slices come back in any."""
        return sorted([*map(tuple, self.events), *map(tuple, self.failures)], key=repr)


def run(source: Path, copy: Path, **options: object) -> tuple[library.Report, Hears]:
    hears = Hears()
    return library.copy(source, copy, verbose=True, observer=hears, **options), hears  # type: ignore[arg-type]


def agrees(source: Path, copy: Path, **options: object) -> Hears:
    """Run twice, the first time dry, and compare all that is told. Gives what was told."""
    before = read_tree(copy.parent)
    planned, said = run(source, copy, dry_run=True, **options)
    assert read_tree(copy.parent) == before, "the dry run touched something"
    done, did = run(source, copy, **options)
    assert said.told() == did.told()
    assert {name: getattr(planned, name) for name in COUNTS} == {name: getattr(done, name) for name in COUNTS}
    told = Counter(event.what for event in did.events)
    assert told["linked"] == done.hardlinks
    assert told["copied"] == done.files + done.symlinks + done.specials
    assert told["skipped"] + told["hidden"] == done.skipped
    assert told["deleted"] == done.deleted
    assert told["unchanged"] <= done.unchanged <= told["unchanged"] + told["updated"]
    assert len(did.events) - done.deleted + done.failed == done.found
    return did


def words(heard: Hears, top: Path) -> dict[str, tuple[str, str]]:
    """{path below the top: (what, why)}"""
    return {os.path.relpath(event.path, top): (event.what, event.why) for event in heard.events}


def reasons(tmp_path: Path) -> tuple[Path, Path]:
    """A source and an older copy of it, with an entry for each reason."""
    source = make_tree(
        tmp_path / "src",
        {
            "new": "1",
            "same": "same",
            "size": "longer",
            "time": File(b"text", mtime_ns=LATER),
            "both": File(b"longer", mtime_ns=LATER),
            "mode": File(b"1", mode=0o600),
            "xattr": File(b"1", xattrs={"user.a": b"1"}),
            "mode-and-xattr": File(b"1", mode=0o600, xattrs={"user.a": b"1"}),
            "snapshot": File(b"1", mode=0o600),
            "link": Link("here"),
            "link-times": Link("same", mtime_ns=LATER),
            "pipe": Fifo(mode=0o600),
            "was-link": "file",
            "was-file": Link("same"),
            "was-empty": "file",
            "was-full": "file",
            "dir": Dir({"a": "1"}),
            "dir-mode": Dir({"a": "1"}, mode=0o700),
            "dir-times": Dir({"a": "1", "b": "1"}, mtime_ns=LATER),
            "dir-was-file": Dir({"a": "1"}),
            "dir-new": Dir({"d": Dir({"a": "1"})}),
            "first": "old",
            "second": Hard("first"),
            "third": Hard("first"),
            "apart": "one",
            "together": Hard("apart"),
        },
    )
    copy = make_tree(
        tmp_path / "dst",
        {
            "same": "same",
            "size": "short",
            "time": File(b"text"),
            "both": File(b"short"),
            "mode": File(b"1", mode=0o644),
            "xattr": File(b"1"),
            "mode-and-xattr": File(b"1"),
            "snapshot": File(b"1", mode=0o644),
            "link": Link("there"),
            "link-times": Link("same"),
            "pipe": Fifo(mode=0o640),
            "was-link": Link("same"),
            "was-file": "file",
            "was-empty": Dir(),
            "was-full": Dir({"in the way": "1"}),
            "dir": Dir({"a": "1"}),
            "dir-mode": Dir({"a": "1"}),
            "dir-times": Dir({"a": "1"}),
            "dir-was-file": "file",
            "first": "old",
            "second": Hard("first"),
            "apart": "one",
            "together": "one",
        },
    )
    os.link(copy / "snapshot", tmp_path / "of-another-day")
    return source, copy


@JOBS
def test_each_reason_is_told(tmp_path: Path, jobs: int) -> None:
    source, copy = reasons(tmp_path)
    heard = agrees(source, copy, jobs=jobs)
    assert words(heard, source) == {
        ".": ("directory", ""),
        "new": ("copied", "new"),
        "same": ("unchanged", ""),
        "size": ("copied", "size"),
        "time": ("copied", "time"),
        "both": ("copied", "size"),
        "mode": ("updated", "mode"),
        "xattr": ("updated", "xattr"),
        "mode-and-xattr": ("updated", "mode, xattr"),
        "snapshot": ("copied", "mode"),
        "link": ("copied", "contents"),
        "link-times": ("updated", "times"),
        "pipe": ("updated", "mode"),
        "was-link": ("copied", "kind"),
        "was-file": ("copied", "kind"),
        "was-empty": ("copied", "kind"),
        "dir": ("directory", ""),
        "dir/a": ("unchanged", ""),
        "dir-mode": ("updated", "mode"),
        "dir-mode/a": ("unchanged", ""),
        "dir-times": ("updated", "times"),
        "dir-times/a": ("unchanged", ""),
        "dir-times/b": ("copied", "new"),
        "dir-was-file": ("made", "kind"),
        "dir-was-file/a": ("copied", "new"),
        "dir-new": ("made", "new"),
        "dir-new/d": ("made", "new"),
        "dir-new/d/a": ("copied", "new"),
        "first": ("unchanged", ""),
        "second": ("unchanged", ""),
        "third": ("linked", "new"),
        "apart": ("unchanged", ""),
        "together": ("linked", "links"),
    }
    assert [(one.path, one.operation) for one in heard.failures] == [(f"{source}/was-full", "remove directory")]


@pytest.mark.parametrize("overwrite", ["changed", "older"])
def test_times_that_no_file_system_ends_with_are_no_end(tmp_path: Path, overwrite: str) -> None:
    """Nothing of 1970 in an archive is of 1980, the first time that it can have; there are such archives in plenty."""
    years = {"early": (0, 315_532_800), "before": (-86_400, -3600), "late": (2**31 + 86_400, 2**31 + 3600)}
    source = make_tree(tmp_path / "src", {name: File(b"1", mtime_ns=one * 10**9) for name, (one, _) in years.items()})
    copy = make_tree(tmp_path / "dst", {name: File(b"2", mtime_ns=two * 10**9) for name, (_, two) in years.items()})
    heard = words(agrees(source, copy, jobs=1, overwrite=overwrite), source)
    skipped = ("skipped", "is not older")
    newer = skipped if overwrite == "older" else ("copied", "time")
    assert [heard[name] for name in years] == [newer, newer, ("copied", "time")]


def test_by_contents_the_times_are_a_reason(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"alone": b"1", "linked": b"2"})
    copy = make_tree(tmp_path / "dst", {"alone": File(b"1", mtime_ns=WHEN - 1), "linked": File(b"2", mtime_ns=WHEN - 1)})
    os.link(copy / "linked", tmp_path / "elsewhere")
    heard = words(agrees(source, copy, jobs=1, checksum=True), source)
    assert (heard["alone"], heard["linked"]) == (("updated", "times"), ("copied", "times"))


@JOBS
@pytest.mark.parametrize("overwrite", OVERWRITE)
def test_a_run_does_what_a_dry_run_said(tmp_path: Path, jobs: int, overwrite: str) -> None:
    source, copy = reasons(tmp_path)
    first = agrees(source, copy, jobs=jobs, overwrite=overwrite)
    again = agrees(source, copy, jobs=jobs, overwrite=overwrite)
    if overwrite == "changed":
        assert {event.what for event in again.events} == {"unchanged", "directory"}
    elif overwrite == "always":
        assert words(again, source)["same"] == words(first, source)["same"] == ("copied", "always")
    else:
        why = {"older": "is not older", "never": "is there"}[overwrite]
        assert words(first, source)["size"] == ("skipped", why)
        assert ("skipped", "is there") in words(first, source).values() or overwrite == "older"


@JOBS
def test_a_large_file_is_told_once_with_its_bytes_and_reason(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"new": b"x" * LARGE, "changed": b"x" * LARGE, "small": b"12345"})
    make_tree(tmp_path / "dst", {"changed": "short"})
    heard = agrees(source, tmp_path / "dst", jobs=jobs)
    files = {os.path.basename(path): (what, why, size) for what, path, why, size in heard.events if path != str(source)}
    assert files == {"new": ("copied", "new", LARGE), "changed": ("copied", "size", LARGE), "small": ("copied", "new", 5)}


@JOBS
@pytest.mark.parametrize("seed", range(8))
def test_it_agrees_on_trees_of_any_shape(tmp_path: Path, jobs: int, seed: int) -> None:
    """Random trees over random older copies: kinds, sizes, times and which names are of one inode differ, or modes do.

    Not both: a name of several is copied anew for its mode, and is one of several as long as the others are there.
    """
    draw = random.Random(seed)
    kinds = ["file", "file", "link", "dir", "full", "pipe", "none", "mode" if seed >= 4 else "hard"]
    source, copy = (make_tree(tmp_path / name, some_tree(draw, kinds)) for name in ("src", "dst"))
    overwrite = OVERWRITE[seed % 4]
    agrees(source, copy, jobs=jobs, overwrite=overwrite)
    agrees(source, copy, jobs=jobs, overwrite=overwrite)
    agrees(source, tmp_path / "fresh", jobs=jobs, overwrite=overwrite)


def some_tree(draw: random.Random, kinds: Sequence[str]) -> dict[str | bytes, object]:
    """The same forty names each time, so that two trees meet in all ways."""
    first: list[str] = []
    return {f"d{number}": Dir(some_entries(draw, kinds, f"d{number}", first)) for number in range(4)}


def some_entries(draw: random.Random, kinds: Sequence[str], below: str, first: list[str]) -> dict[str | bytes, object]:
    entries: dict[str | bytes, object] = {}
    for number in range(10):
        kind, mtime_ns = draw.choice(kinds), draw.choice([WHEN, LATER])
        mode = draw.choice([0o644, 0o600]) if "mode" in kinds else 0o644
        if kind == "hard" and first:
            entries[f"n{number}"] = Hard(draw.choice(first))
        elif kind in ("file", "hard", "mode"):
            entries[f"n{number}"] = File(draw.choice([b"", b"1", b"22"]), mode, mtime_ns)
            first.append(f"{below}/n{number}")
        elif kind == "link":
            entries[f"n{number}"] = Link(draw.choice(["a", "b"]), mtime_ns)
        elif kind in ("dir", "full"):
            entries[f"n{number}"] = Dir({"x": "1"} if kind == "full" else {}, 0o755 if mode == 0o644 else 0o700, mtime_ns)
        elif kind == "pipe":
            entries[f"n{number}"] = Fifo(mode)
    return entries


@JOBS
def test_a_run_deletes_what_a_dry_run_said(tmp_path: Path, jobs: int) -> None:
    source, copy = reasons(tmp_path)
    make_tree(copy / "gone", {"a": "1", "d": Dir({"b": "2"})})
    (copy / "dir/extra").touch()
    heard = agrees(source, copy, jobs=jobs, delete=True)
    assert not heard.failures
    told = words(heard, source)
    assert told["was-full"] == ("copied", "kind")
    gone = {path: what for path, (what, _) in words(heard, copy).items() if what == "deleted"}
    assert gone.keys() == {"was-full", "was-full/in the way", "gone", "gone/a", "gone/d", "gone/d/b", "dir/extra"}
    assert {event.what for event in agrees(source, copy, jobs=jobs, delete=True).events} == {"unchanged", "directory"}


@JOBS
def test_filters_and_links_to_earlier_copies_are_told(tmp_path: Path, jobs: int) -> None:
    source, copy = reasons(tmp_path)
    limits = {"filters": ["dir-*", "mode"], "max_size": 5}
    make_tree(copy / "gone", {"mode": "1", "a": "2"})
    told = words(agrees(source, copy, jobs=jobs, delete=True, **limits), source)
    hidden = {path for path, (what, _) in told.items() if what == "hidden"}
    assert hidden == {"dir-mode", "dir-times", "dir-was-file", "dir-new", "mode", "size", "both"}
    library.copy(source, copy, jobs=jobs, delete=True)
    (source / "new").write_text("changed")
    (source / "dir/a").unlink()
    later = make_tree(tmp_path / "later", {"same": "other", "time": Dir({"full": "1"}), "mode": Dir()})
    told = words(agrees(source, later, jobs=jobs, link_dest=copy, delete=True), source)
    assert {told[path] for path in ("size", "first", "dir-new/d/a")} == {("linked", "earlier")}
    assert (told["same"], told["time"], told["mode"]) == (("linked", "size"), ("linked", "kind"), ("linked", "kind"))
    assert (told["new"], told["second"]) == (("copied", "new"), ("linked", "new"))


@JOBS
@pytest.mark.parametrize("where", ["/dev/shm", "/var/tmp"], ids=["memory", "disk"])
def test_what_is_linked_does_not_depend_on_whether_the_destination_is_there_yet(where: str, jobs: int) -> None:
    """On a disk, a hole in an earlier copy may be what a power cut took; of memory it takes all."""
    kind = mounts.kind_of(where)
    if not os.access(where, os.W_OK) or mounts.is_on_disk(kind) != (where == "/var/tmp"):
        pytest.skip(f"{where} is not there, or on {kind}")
    with tempfile.TemporaryDirectory(dir=where) as name:
        top = Path(name)
        make_tree(top / "day0", {"f": Holes(1 << 20, {})})
        source = make_tree(top / "src", {"f": File(b"x" * (1 << 20), mode=(top / "day0/f").stat().st_mode & 0o777)})
        told = words(agrees(source, top / "day1", jobs=jobs, link_dest=top / "day0"), source)
    assert told["f"] == {"/dev/shm": ("linked", "earlier"), "/var/tmp": ("copied", "new")}[where]


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_on_trees_of_any_shape_where_things_are_deleted(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    kinds = ["file", "file", "link", "dir", "full", "pipe", "none", "hard"]
    source, copy = (make_tree(tmp_path / name, some_tree(draw, kinds)) for name in ("src", "dst"))
    filters = ["n3", "!d1/n3", "n4/", "x", "!n5/x"] if seed % 2 else []
    agrees(source, copy, jobs=1 + seed, delete=True, overwrite=OVERWRITE[seed // 2], filters=filters)
    agrees(source, copy, jobs=1, delete=True, overwrite=OVERWRITE[seed // 2], filters=filters)


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_of_the_names_of_an_inode_the_same_one_is_copied_each_time(tmp_path: Path, jobs: int) -> None:
    """Whoever finds which name first: the names are many, in many directories, and some are there already."""
    names: dict[str | bytes, object] = {"a": Dir({"f": "1"})}
    names |= {f"d{number}": Dir({f"h{name}": Hard("a/f") for name in range(20)}) for number in range(20)}
    source = make_tree(tmp_path / "src", names)
    heard = agrees(source, tmp_path / "new", jobs=jobs)
    assert words(heard, source)["a/f"] == ("copied", "new")
    copy = make_tree(tmp_path / "dst", {"d3": Dir({"h1": "1"})})
    told = words(agrees(source, copy, jobs=jobs), source)
    assert told["d3/h1"] == ("unchanged", "")  # it need not be copied, and all the others become links to it
    assert Counter(what for what, _ in told.values()) == {"unchanged": 1, "linked": 400, "made": 20, "directory": 2}


@JOBS
def test_a_name_that_is_to_be_kept_takes_no_links_from_the_others(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"a": "new", "b": Hard("a"), "c": Hard("a")})
    copy = make_tree(tmp_path / "dst", {"a": "old"})
    told = words(agrees(source, copy, jobs=jobs, overwrite="never"), source)
    assert (told["a"][0], told["b"][0], told["c"][0]) == ("skipped", "copied", "linked")
    assert (copy / "b").stat().st_ino == (copy / "c").stat().st_ino


@JOBS
def test_a_directory_in_the_place_of_a_further_name_fails_in_a_dry_run_too(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {"a": "1", "b": Hard("a"), "c": Hard("a")})
    copy = make_tree(tmp_path / "dst", {"b": Dir({"full": "1"}), "c": Dir()})
    heard = agrees(source, copy, jobs=jobs)
    assert [os.path.basename(one.path) for one in heard.failures] == ["b"]
    assert words(heard, source)["c"] == ("linked", "kind")


def test_several_sources_are_told_as_they_are_copied(tmp_path: Path) -> None:
    make_tree(tmp_path / "src", {"d": Dir({"a": "1"}), "e": Dir({"a": "1"}), "f": "1"})
    make_tree(tmp_path / "dst", {"d": "a file"})
    for overwrite in ("never", "changed"):
        told = []
        for dry_run in (True, False):
            hears = Hears()
            sources = [tmp_path / "src" / name for name in ("d", "e", "f")]
            library.copy(
                sources, tmp_path / "dst", jobs=1, verbose=True, observer=hears, dry_run=dry_run,
                overwrite=overwrite,
            )  # fmt: skip
            told.append(hears.told())
        assert told[0] == told[1]
        assert (("skipped", str(tmp_path / "src/d"), "is there", None) in told[0]) is (overwrite == "never")


def test_without_verbose_only_what_changes_is_told_to_who_wants_it(tmp_path: Path) -> None:
    source, copy = reasons(tmp_path)

    class Wants(Hears):
        wants_events = True

    for observer, expected in ((Hears(), set()), (Wants(), {"copied", "linked", "made", "updated"})):
        library.copy(source, copy, jobs=1, dry_run=True, observer=observer)
        assert {event.what for event in observer.events} == expected


@JOBS
def test_the_lines_of_a_dry_run_are_those_of_the_run_in_other_words(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    reasons(tmp_path)
    lines = []
    for dry in (["-n"], []):
        done = pcopy("-v", "-j", jobs, *dry, "src", "dst")
        assert done.returncode == 1
        lines.append(sorted(done.stderr.splitlines()[:-1]))
    translated = lines[1]
    for what, would in DRY_RUN.items():
        translated = [re.sub(rf"^{what} ", f"{would} ", line) for line in translated]
    assert sorted(translated) == lines[0]
    assert f"would copy {tmp_path}/src/size (size)" in lines[0]
    assert f"copied {tmp_path}/src/size (size)" in lines[1]
    assert f"unchanged {tmp_path}/src/same" in lines[0]


@JOBS
@as_root
def test_another_owner_of_a_directory_is_told_by_the_run_too(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    """Though it gets that before anything comes into it."""
    source = make_tree(tmp_path / "src", {"d": Dir({"f": b"1"})})
    assert pcopy("-q", "src", "dst").returncode == 0
    os.chown(source / "d", 1234, 1234)
    assert f"would update {source}/d (owner)" in pcopy("-n", "-v", "-j", jobs, "src", "dst").stderr
    assert f"updated {source}/d (owner)" in pcopy("-v", "-j", jobs, "src", "dst").stderr
    assert (tmp_path / "dst/d").stat().st_uid == 1234


def test_a_dry_run_says_that_the_destination_cannot_be_made(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"a": "1"})
    (tmp_path / "shut").mkdir(mode=0o555)
    done = [unprivileged("-j", 1, *dry, source, tmp_path / "shut/dst") for dry in ([], ["-n"])]
    assert [one.returncode for one in done] == [3, 3]
    assert done[0].stderr.splitlines()[0] == done[1].stderr.splitlines()[0]


def test_what_another_run_copies_meanwhile_is_no_failure_of_a_dry_run(tmp_path: Path) -> None:
    """It holds no lock: what was not there when a directory was read may be there by now."""
    source = make_tree(tmp_path / "src", {"d": Dir({f"f{number}": b"1" for number in range(3)})})
    dst = make_tree(tmp_path / "dst", {"d": Dir()})

    inodes = [(state.st_dev, state.st_ino) for state in (source.stat(), dst.stat())]
    tree = Tree(str(source), str(dst), inodes[0], inodes[1])
    unit = Entries(0, "d", ("f0", "f1", "f2"), True, True, 1.0)
    make_tree(dst / "d", {f"f{number}": b"1" for number in range(3)})
    outcome = worker.run(Job(Options(dry_run=True), (tree,), "0123abcd", 0o022), [unit], 60.0)
    assert (outcome.failures, outcome.tally.files + outcome.tally.unchanged) == ([], 3)


OLD = 10**18


def test_it_leaves_access_times_as_they_are(tmp_path: Path, pcopy: Run) -> None:
    """Those of directories that would go, are counted, or would give way, too."""
    source = make_tree(tmp_path / "src", {"d": Dir({"f": b"1"}), "g": b"2"})
    copy = make_tree(tmp_path / "dst", {"d": Dir({"f": b"1"}), "g": Dir(), "x": Dir({"y": Dir({"z": b"3"})})})
    directories = [copy, copy / "d", copy / "g", copy / "x", copy / "x/y"]
    for path in directories:
        os.utime(path, ns=(OLD, OLD))
    for words in ((), ("--delete",), ("--delete", "--max-delete", "9"), ("--delete", "--max-delete", "1")):
        done = pcopy("-n", *words, source, copy)
        assert done.returncode == (3 if words[-1:] == ("1",) else 0), done.stderr
        assert [path.stat().st_atime_ns for path in directories] == [OLD] * len(directories), words
    assert pcopy("--delete", "--max-delete", "1", source, copy).returncode == 3
    assert [path.stat().st_atime_ns for path in directories] == [OLD] * len(directories), "a run that does nothing"


@pytest.mark.parametrize("inside", [{}, {"x": b"1"}], ids=["empty", "not empty"])
def test_a_directory_that_a_dead_run_may_have_left_is_told_as_in_the_run(
    tmp_path: Path, inside: dict[str | bytes, object]
) -> None:
    source = make_tree(tmp_path / "src", {"f": b"1"})
    copy = make_tree(tmp_path / "dst", {"f": b"1", f".pcopy-00000001-1-{'0' * 16}": Dir(inside)})
    told = agrees(source, copy, delete=True).events
    assert ["deleted" in (event.what for event in told)] == [bool(inside)]


def test_what_a_dead_run_may_have_left_far_below_keeps_nothing_in_a_dry_run(tmp_path: Path, pcopy: Run) -> None:
    aside = f".pcopy-00000001-1-{'0' * 16}"
    source = make_tree(tmp_path / "src", {"f": b"1", "x": b"2"})
    below = {"x": Dir({"y": Dir({aside: Dir()}), "q": b"1"}), "z": Dir({aside: Dir()}), "f": b"1"}
    copy = make_tree(tmp_path / "dst", dict(below))
    before = read_tree(copy)
    assert pcopy("--delete", "--max-delete", 3, source, copy).returncode == 3
    assert read_tree(copy) == before
    heard = agrees(source, copy, delete=True)
    assert sum(event.what == "deleted" for event in heard.events) == 4


@as_root
@pytest.mark.parametrize("place", ["", "/d"], ids=["the top", "below it"])
def test_what_is_closed_is_said_to_be_no_failure_of_the_run(tmp_path: Path, place: str) -> None:
    source = make_tree(tmp_path / "src", {"d": Dir({"f": b"1"})})
    copy = make_tree(tmp_path / "dst", {"d": Dir()})
    os.chmod(f"{copy}{place}", 0)
    done = unprivileged("-n", source, copy)
    assert done.returncode == (1 if place else 3)
    assert f"{copy}{place}: " in done.stderr
    assert "Permission denied (a run opens it, if it is yours; a dry run touches nothing)" in done.stderr
    assert unprivileged(source, copy).returncode == 0
