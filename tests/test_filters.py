"""What filters hide, and what a list of paths brings. git itself says what its patterns mean."""

from __future__ import annotations

import datetime
import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import pcopy as library
from pcopy import select
from pcopy.options import Options
from pcopy.select import Selection, selection
from pcopy.values import moment_of, size_of
from tests.conftest import Run
from tests.test_order import traced
from tests.trees import WHEN, Dir, Fifo, File, Hard, Link, make_tree, read_tree

JOBS = pytest.mark.parametrize("jobs", [3])  # workers do what one process does: what is hidden is the scan's
Entries = dict[str | bytes, object]


def names(top: Path) -> set[str]:
    """The paths of a tree, without the top."""
    return {os.fsdecode(path) for path in read_tree(top)} - {"."}


# ---- patterns: the same as git's ------------------------------------------------------------------------------------

NAMES = ("a", "b", "ab", "a.o", "b.o", "a b", "#a", "!a", "[a]", "a\\", "aXb", "**")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bool]]:
    """A tree of files and directories, three deep, and its paths: whether each is a directory."""
    top = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "-q", top], check=True)
    paths: dict[str, bool] = {}
    for first in NAMES:
        for path in (first, *(f"{first}/{name}" for name in NAMES), *(f"{first}/ab/{name}" for name in NAMES)):
            paths[path] = path in (first, f"{first}/ab", f"{first}/a", f"{first}/ab/b") and first not in ("a.o", "#a")
    paths = {path: kind for path, kind in paths.items() if not path.startswith(("a.o/", "#a/"))}
    for path, is_directory in paths.items():
        (top / path).mkdir() if is_directory else (top / path).touch()
    return top, paths


def ignored(repository: tuple[Path, dict[str, bool]], lines: Sequence[str]) -> set[str]:
    top, paths = repository
    (top / ".git/info/exclude").write_text("".join(f"{line}\n" for line in lines))
    command = ["git", "-c", "core.excludesFile=/dev/null", "check-ignore", "--stdin", "-z"]
    done = subprocess.run(command, cwd=top, input="\0".join(paths), capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return set(done.stdout.split("\0")) - {""}


def accepted(line: str) -> bool:
    try:
        Selection([line])
    except library.UsageError:
        return False
    return True


PIECES = [
    "a",
    "b",
    ".o",
    "ab",
    "*",
    "*",
    "?",
    "[ab]",
    "[!a]",
    "[^b]",
    "[a-b]",
    "[",
    "]",
    "\\*",
    "\\[",
    "\\#",
    "\\",
    " ",
    "#",
    "!",
]
SEGMENT = st.one_of(
    st.just("**"), st.sampled_from(NAMES), st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join)
)
LINE = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "", "!", "/", "!/", "#", "\\!"]),
    st.lists(SEGMENT, min_size=1, max_size=4).map("/".join),
    st.sampled_from(["", "", "/", "//"]),
    st.sampled_from(["", "", " ", "\\ ", "  "]),
)


# Slashes after backslashes and in brackets are refused here and mean something there; a bracket does not end with one that is
# first in it, or after a backslash. Two asterisks beside something else are one to gitignore(5); git 2.39 lets them pass a
# slash where the addresses of its strings happen to say so (wildmatch.c).
LEFT_OUT = re.compile(r"\\/|\[[!^]?]?(?:\\.|[^]\\])*/|[^/!]\*\*.*/|/.*[^/]\*\*|\*\*[^/ ].*/|/.*\*\*[^/ ]")


@given(lines=st.lists(LINE.filter(lambda line: not LEFT_OUT.search(line)), max_size=6))
@example(lines=["*", "!*/", "!*.o"])
@example(lines=["ab/**", "!ab/ab/"])
@example(lines=["**/ab/**/b", "!ab/ab/b"])
@example(lines=["ab/**/"])
@example(lines=["a\\\\/ab", "!ab\\/"])
@example(lines=["a[!b]b", "ab/a[!b]b", "ab[!a]a/b"])
@example(lines=["*b*", "!*.o", "a*", "!ab", "*b", "!a?b"])
def test_patterns_mean_what_they_mean_to_git(repository: tuple[Path, dict[str, bool]], lines: list[str]) -> None:
    """What is refused here matches nothing there."""
    chosen = Selection([line for line in lines if accepted(line)])
    hidden = {path for path, is_directory in repository[1].items() if chosen.hides(path, is_directory)}
    assert hidden == ignored(repository, lines)


def test_a_hundred_patterns_of_all_kinds_mean_the_same_together(repository: tuple[Path, dict[str, bool]]) -> None:
    lines = [f"{sign}{place}{name}{end}" for place in ("", "ab/", "**/ab/") for name in NAMES[:6] for sign, end in
             (("", ""), ("!", ""), ("", "*"), ("!*", ""), ("", "/"))]  # fmt: skip
    assert len(lines) == 90
    for count in range(1, len(lines), 7):
        chosen = Selection(lines[:count])
        hidden = {path for path, is_directory in repository[1].items() if chosen.hides(path, is_directory)}
        assert hidden == ignored(repository, lines[:count]), lines[:count]


def test_an_entry_is_hidden_with_a_directory_above_it_and_the_top_never_is() -> None:
    chosen = Selection(["b", "!b/keep", "*.o"])
    assert chosen.hides("a/b/keep", False)
    assert chosen.hides("b/c/d/e", True)
    assert not chosen.hides("a/c", False)
    assert not Selection(["*"]).hides("", True)
    below = "/".join(["d"] * 3000)
    assert (chosen.hides(f"{below}/x.o", False), chosen.hides(f"{below}/x", False)) == (True, False)


def test_names_that_are_not_utf_8_and_names_with_newlines_are_matched() -> None:
    name = os.fsdecode(b"\xff\xfe")
    for lines in (["*.o"], [f"{name}.o"], [f"{name}*"], ["??.o"], [f"[{name[0]}]?.o"], ["a\nb/*.o"], ["**/*.o"], ["a*b/??.o"]):
        assert Selection(lines).hides(f"a\nb/{name}.o", False), lines
    assert not Selection(["*.o"]).hides("a.o\n", False)
    assert not Selection(["a"]).hides("a\n", False)


def test_patterns_are_compiled_once_and_cross_processes_as_lines() -> None:
    options = Options(filters=("*.o", "!a.o"))
    again = pickle.loads(pickle.dumps(options))
    assert again == options
    assert selection(again.filters) is selection(options.filters)
    assert selection(()) is selection(("# nothing", "")) is None


@pytest.mark.parametrize("above", ["/d{}", "/d{}*", "d{}/**"])
def test_thousands_of_places_are_compiled_once_each(monkeypatch: pytest.MonkeyPatch, above: str) -> None:
    """Not for each directory: that made a copy with 1,100 patterns take ten times as long as one with 1,000."""
    compiled: list[str] = []
    compile_ = select.compiled

    def noted(text: str) -> re.Pattern[str]:
        compiled.append(text)
        return compile_(text)

    monkeypatch.setattr(select, "compiled", noted)
    lines = tuple(f"{above.format(number)}/f{number}" for number in range(1500))
    chosen = select.Selection(lines)
    for number in range(0, 1500, 50):
        here = chosen.within(f"d{number}")
        names = {f"f{number}", f"f{number + 1}", "g"}
        assert here.hidden(names, False) == {f"f{number}"}
    assert len(compiled) < 4 * len(lines)


# ---- on trees -------------------------------------------------------------------------------------------------------

TREE: Entries = {
    "a.o": "1",
    "keep.o": "2",
    "a.c": "3",
    "build": Dir({"a.c": "4", "keep.o": "5"}),
    "sub": Dir({"a.o": "6", "build": Dir({"x": "7"}), "link": Link("build"), "keep.o": Dir({"y": "8"})}),
}
PLACES = {"build", "sub", "sub/build", "sub/keep.o"}
ALL = {"a.o", "keep.o", "a.c", "build", "build/a.c", "build/keep.o", "sub", "sub/a.o", "sub/build", "sub/build/x", "sub/link",
       "sub/keep.o", "sub/keep.o/y"}  # fmt: skip
OBJECTS = {"a.o", "keep.o", "build/keep.o", "sub/a.o", "sub/keep.o", "sub/keep.o/y"}
BUILDS = {"build", "build/a.c", "build/keep.o", "sub/build", "sub/build/x"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "src", TREE)


CASES: list[tuple[list[str], set[str]]] = [
    (["--exclude", "*.o"], OBJECTS),
    (["--exclude", "*.o", "--include", "keep.o"], {"a.o", "sub/a.o"}),
    (["--include", "keep.o", "--exclude", "*.o"], OBJECTS),
    (["--exclude=*.o", "--exclude", "*.c", "--include=/a.?"], (OBJECTS | {"build/a.c"}) - {"a.o"}),
    (["--exclude", "build/"], BUILDS),
    (["--exclude", "/build"], {"build", "build/a.c", "build/keep.o"}),
    (["--exclude", "build", "--include", "keep.o"], BUILDS),
    (["--exclude", "link/"], set()),
    (["--exclude", "src"], set()),
    (["--exclude", "*"], ALL),
    (["--exclude", "*", "--include", "*/", "--include", "*.c"], ALL - PLACES - {"a.c", "build/a.c"}),
    (["--exclude", "!a.o", "--exclude", "a.*", "--include", "a.c"], {"a.o", "sub/a.o"}),
    (["--exclude", "*.o", "--exclude-from", "F", "--exclude", "sub/a.o"], {"sub/a.o", "build", "build/a.c", "build/keep.o"}),
    (["--exclude-from", "F", "--exclude", "*.o"], OBJECTS | {"build", "build/a.c"}),
    (["--exclude-from", "-"], {"a.c", "build/a.c"}),
]  # fmt: skip


@JOBS
@pytest.mark.parametrize(("options", "hidden"), CASES, ids=[" ".join(options) for options, _ in CASES])
def test_what_is_hidden_is_left_out_and_nothing_else(
    tmp_path: Path, source: Path, pcopy: Run, options: list[str], hidden: set[str], jobs: int
) -> None:
    (tmp_path / "F").write_bytes(b"\xef\xbb\xbf# what git ignores\r\n\r\n/build \r\n!*.o\r\n")
    done = pcopy("-j", jobs, *options, "src", "dst", input="*.c\n")
    assert done.returncode == 0, done.stderr
    whole, copy = read_tree(source), read_tree(tmp_path / "dst")
    assert names(tmp_path / "dst") == ALL - hidden
    assert copy == {path: whole[path] for path in copy}


@JOBS
def test_what_is_hidden_is_told_counted_once_and_left_alone_in_the_destination(
    tmp_path: Path, source: Path, pcopy: Run, jobs: int
) -> None:
    make_tree(tmp_path / "dst", {"a.o": "mine", "build": Dir({"mine": "too"})})
    before = read_tree(tmp_path / "dst")
    words = ["-v", "--json", "--exclude", "*.o", "--exclude", "build/", source, "dst"]
    dry, wet = pcopy("-j", jobs, "-n", *words), pcopy("-j", jobs, *words)
    hidden = {"a.o", "keep.o", "build", "sub/a.o", "sub/build", "sub/keep.o"}
    for done in (dry, wet):
        assert done.returncode == 0, done.stderr
        said = [line.split(" ", 1)[1] for line in done.stderr.splitlines() if line.startswith("hidden ")]
        assert sorted(said) == sorted(f"{source}/{path}" for path in hidden)
        report = json.loads(done.stdout)
        assert (report["skipped"], report["files"], report["symlinks"], report["failed"]) == (len(hidden), 1, 1, 0)
    after = read_tree(tmp_path / "dst")
    assert {path: after[path] for path in before if path != b"."} == {path: before[path] for path in before if path != b"."}
    assert names(tmp_path / "dst") == {"a.o", "a.c", "build", "build/mine", "sub", "sub/link"}


def test_patterns_hold_below_each_source_directory_and_not_for_a_named_file(tmp_path: Path, source: Path, pcopy: Run) -> None:
    make_tree(tmp_path / "two", {"a.o": "1", "src": Dir({"a.o": "2"}), "x": "3"})
    (tmp_path / "named.o").touch()
    assert pcopy("--exclude", "*.o", "--exclude", "/src", "src", "two", "named.o", "dst").returncode == 0
    assert names(tmp_path / "dst") == {"named.o", "two", "two/x", "src"} | {f"src/{path}" for path in ALL - OBJECTS}


def test_a_hidden_directory_is_never_opened(tmp_path: Path) -> None:
    make_tree(tmp_path / "src", {"cache": Dir({"deep": Dir({"f": "1"})}), "d": Dir({"cache": Dir({"g": "2"}), "h": "3"})})
    trace = traced(tmp_path, "--exclude", "cache/", tmp_path / "src", tmp_path / "dst")
    assert any(re.search(r'openat\(.*"d"', line) for line in trace)
    assert not [line for line in trace if re.search(r'"(.*/)?cache"|"deep"', line) and "execve" not in line]


def test_a_run_without_filters_does_not_load_what_they_need(tmp_path: Path, source: Path) -> None:
    def loads(*words: str) -> bool:
        command = [sys.executable, "-X", "importtime", "-m", "pcopy", "-j", "1", *words, str(source), str(tmp_path / "dst")]
        return "pathspec" in subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr

    assert not loads()
    assert not loads("--exclude", "x", "--exclude", "*.o", "--exclude", "/x/y/")
    assert loads("--exclude", "x?")


def test_a_library_call_takes_lines_and_does_not_mix_them_up(tmp_path: Path, source: Path) -> None:
    report = library.copy(source, tmp_path / "dst", filters=["*.o", "!keep.o", "# a comment"], jobs=1)
    assert (report.ok, report.skipped) == (True, 2)
    assert library.copy(source, tmp_path / "other", jobs=1).skipped == 0
    assert names(tmp_path / "other") == ALL


# ---- sizes and times ------------------------------------------------------------------------------------------------

LIMITED: list[tuple[list[str], set[str]]] = [
    (["--max-size", "1k"], {"large", "again"}),
    (["--max-size", "1023"], {"large", "again", "k"}),
    (["--min-size", "1k"], {"empty", "small"}),
    (["--min-size", "1025"], {"empty", "small", "k"}),
    (["--min-size", "1", "--max-size", "1kB"], {"empty", "k", "large", "again"}),
    (["--newer-than", "2017-07-14"], {"small"}),
    (["--newer-than", "2017-07-14T02:40:00.123456Z"], {"small"}),
    (["--newer-than", "2017-07-14T02:40:01Z"], {"empty", "small", "k", "large", "again"}),
    (["--newer-than", "1d"], {"empty", "small", "k", "large", "again"}),
    (["--newer-than", "36500w"], set()),
]


@JOBS
@pytest.mark.parametrize("rerun", [False, True], ids=["new", "again"])
@pytest.mark.parametrize(("options", "hidden"), LIMITED, ids=[" ".join(options) for options, _ in LIMITED])
def test_sizes_and_times_hide_regular_files_only(
    tmp_path: Path, pcopy: Run, options: list[str], hidden: set[str], jobs: int, rerun: bool
) -> None:
    entries: Entries = {"empty": b"", "small": File(b"x", mtime_ns=WHEN - 10**15), "k": b"x" * 1024, "large": b"x" * 3000}
    entries |= {"again": Hard("large"), "link": Link("large"), "pipe": Fifo(), "d": Dir({"e": Dir()})}
    source = make_tree(tmp_path / "src", entries)
    environment = {**os.environ, "TZ": "UTC"}
    for turn in range(1 + rerun):
        done = pcopy("-j", jobs, "-v", "--json", *options, source, "dst", env=environment)
        assert done.returncode == 0, done.stderr
        said = {line.split(" ", 1)[1] for line in done.stderr.splitlines() if line.startswith("hidden ")}
        assert said == {f"{source}/{path}" for path in hidden}
        report = json.loads(done.stdout)
        assert (report["skipped"], report["unchanged"]) == (len(hidden), (7 - len(hidden)) * turn)
    assert names(tmp_path / "dst") == names(source) - hidden


def test_a_source_that_is_a_file_has_a_size_and_a_time_too(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"f": b"12345"})
    (tmp_path / "dst").mkdir()
    assert library.copy(source / "f", tmp_path / "dst", max_size=4, jobs=1).skipped == 1
    assert not (tmp_path / "dst/f").exists()
    assert library.copy(source / "f", tmp_path / "dst", max_size=5, newer_than=WHEN - 1, jobs=1).files == 1


SIZES = [("0", 0), ("10", 10), ("10k", 10 << 10), ("10K", 10 << 10), ("10KiB", 10 << 10), ("10kB", 10_000), ("1.5G", 3 << 29),
         ("5M", 5 << 20), ("2TB", 2 * 10**12), ("10B", 10), (" 7 M ", 7 << 20)]  # fmt: skip


@pytest.mark.parametrize(("word", "size"), SIZES)
def test_sizes(word: str, size: int) -> None:
    assert size_of(word) == size_of(size) == size


NO_SIZES = ["", "k", "-1", "1x", "1kk", "1e3", "0x10", "1,5M", "٣", "1" * 400, "9" * 5000, -1, True, 1.5, None]


@pytest.mark.parametrize("word", NO_SIZES, ids=lambda word: repr(word)[:9])
def test_what_is_no_size(word: Any) -> None:
    with pytest.raises(library.UsageError, match=re.escape(f"{word!r} is not a size: write bytes, or 10k")):
        size_of(word)


def test_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    midnight = 1_769_814_000 * 10**9
    assert moment_of("2026-01-31") == midnight
    assert moment_of("2026-01-31T01:00") == moment_of("2026-01-31 00:00:00Z") == midnight + 3600 * 10**9
    assert moment_of("2026-01-31T00:00:00.000001+01:00") == midnight + 1000
    assert moment_of(datetime.datetime(1960, 1, 1, tzinfo=datetime.timezone.utc)) == -315_619_200 * 10**9
    assert moment_of(midnight) == midnight
    for age, seconds in (("30s", 30), ("2m", 120), ("12h", 43_200), ("7d", 604_800), ("1.5w", 907_200)):
        assert abs(time.time_ns() - moment_of(age) - seconds * 10**9) < 5 * 10**9
    monkeypatch.undo()
    time.tzset()


NO_TIMES = ["", "yesterday", "7", "7y", "-7d", "2026-13-01", "2026-02-30", "12:00", "1" * 400 + "d", True, 1.5, None]


@pytest.mark.parametrize("word", NO_TIMES, ids=lambda word: repr(word)[:12])
def test_what_is_no_time(word: Any) -> None:
    with pytest.raises(library.UsageError, match=re.escape(f"{word!r} is not a time: write a date (2026-01-31)")):
        moment_of(word)


# ---- a list of paths ------------------------------------------------------------------------------------------------


@JOBS
def test_a_list_brings_what_it_names_and_the_directories_above(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    deep = Dir({"d2": Dir({"f": "1", "other": "2"}, mode=0o711, mtime_ns=WHEN + 1), "more": "3"}, mode=0o750, mtime_ns=WHEN + 2)
    tree: Entries = {"d1": deep, "whole": Dir({"not": "4"}, mode=0o700), "f": "5", "no": "6", "l": Link("no"), "p": Fifo()}
    tree |= {"h": Dir({"1": "7", "2": Hard("h/1"), "3": Hard("h/1")})}
    source = make_tree(tmp_path / "src", tree)
    (tmp_path / "list").write_text("./d1//d2/f\n\nf\nwhole/\nf\nl\np\n.\nh/1\nh/3\n")
    for report in [json.loads(pcopy("-j", jobs, "--json", "--files-from", "list", source, "dst").stdout) for _ in range(2)]:
        assert (report["exit_status"], report["skipped"]) == (0, 0)
    copy, whole = read_tree(tmp_path / "dst"), read_tree(source)
    assert names(tmp_path / "dst") == {"d1", "d1/d2", "d1/d2/f", "whole", "f", "l", "p", "h", "h/1", "h/3"}
    same = [b".", b"d1", b"d1/d2", b"d1/d2/f", b"whole", b"f", b"l", b"p", b"h"]
    assert {path: copy[path] for path in same} == {path: whole[path] for path in same}
    assert copy[b"h/1"].names == {b"h/1", b"h/3"}


ODD: list[bytes] = [
    b"\xff\xfe",
    b"a b",
    b"#a",
    b"-n",
    b"!x",
    b"*",
    b"line\nbreak",
    b"\x1b[31m",
    "é".encode(),
    b"n" * 255,
    b"r\r",
]


def test_a_list_touches_no_copy_that_is_named_like_a_temporary_file(tmp_path: Path, pcopy: Run) -> None:
    """Its source has the name, too, whether it is listed or not."""
    named: Entries = {".pcopy-0123abcd-0-0123456789abcdef": "1", ".pcopy-0123abcd-0-0123456789abcdef-1a": Dir({})}
    source = make_tree(tmp_path / "src", {**named, "a": "2", "d": Dir(named)})
    pcopy(source, "dst")
    left = ".pcopy-0123abcd-0-0123456789abcdee"
    (tmp_path / "dst" / left).write_bytes(b"of a run that was killed")
    done = pcopy("--files-from", "-", source, "dst", input="a\nd\n")
    assert done.returncode == 0, done.stderr
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_a_list_takes_any_name(tmp_path: Path, pcopy: Run) -> None:
    below: Entries = dict.fromkeys(ODD, b"x")
    top: Entries = {**below, "not": "1", "d": Dir({b"\xff": Dir(below)})}
    source = make_tree(tmp_path / "src", top)
    paths = [*ODD, *(b"d/\xff/" + name for name in ODD)]
    (tmp_path / "list").write_bytes(b"\0".join(paths))
    done = pcopy("-0", "--files-from", "list", source, "dst")
    assert done.returncode == 0, done.stderr
    assert read_tree(tmp_path / "dst").keys() == read_tree(source).keys() - {b"not"}
    (tmp_path / "lines").write_bytes(b"\n".join(path for path in paths if b"\n" not in path) + b"\n")
    assert pcopy("--files-from", "lines", source, "two").returncode == 0
    assert len(read_tree(tmp_path / "dst").keys() - read_tree(tmp_path / "two").keys()) == 2
    assert pcopy("--files-from", "-", "-0", source, "three", input="a b\0#a").returncode == 0
    assert names(tmp_path / "three") == {"a b", "#a"}


@JOBS
def test_a_list_of_thousands_is_shared_out(tmp_path: Path, jobs: int) -> None:
    source = make_tree(tmp_path / "src", {f"d{one}": Dir({f"f{two}": "x" for two in range(300)}) for one in range(20)})
    wanted = [f"d{one}/f{two}" for one in range(20) for two in range(0, 300, 2)]
    report = library.copy(source, tmp_path / "dst", files_from=wanted, jobs=jobs)
    assert (report.ok, report.files, report.directories) == (True, 3000, 21)
    assert names(tmp_path / "dst") == {*wanted, *(f"d{one}" for one in range(20))}


def test_a_list_goes_deeper_than_a_path_can(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    handle = os.open(tmp_path / "src", os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d" * 100, dir_fd=handle)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(os.open("f", os.O_CREAT, dir_fd=handle))
    os.close(os.open("not", os.O_CREAT, dir_fd=handle))
    os.close(handle)
    report = library.copy(tmp_path / "src", tmp_path / "dst", files_from=["/".join(["d" * 100] * 60 + ["f"])], jobs=1)
    assert (report.ok, report.files, report.directories) == (True, 1, 61)


@JOBS
def test_what_a_list_names_and_is_not_there_fails_by_name_and_the_rest_is_copied(
    tmp_path: Path, source: Path, pcopy: Run, jobs: int
) -> None:
    paths = ["a.c", "nothing", "sub/nothing", "no/where", "no/thing", "a.o/below", "sub/link/x", "sub/build/x"]
    done = pcopy("-j", jobs, "--json", "--files-from", "-", source, "dst", input="\n".join(paths))
    assert done.returncode == 1
    report = json.loads(done.stdout)
    reasons = {os.path.relpath(one["path"], source): one["reason"] for one in report["errors"]}
    assert reasons.keys() == set(paths[1:-1])
    assert (report["failed"], report["files"]) == (6, 2)
    assert reasons["a.o/below"] == "a.o is no directory"
    assert reasons["sub/link/x"] == "link is a symbolic link: follow it with --dereference"
    assert {reasons[path] for path in ("nothing", "sub/nothing", "no/where")} == {"No such file or directory"}
    assert names(tmp_path / "dst") == {"a.c", "sub", "sub/build", "sub/build/x"}
    assert pcopy("-L", "--files-from", "-", source, "two", input="sub/link/x").returncode == 0
    assert names(tmp_path / "two") == {"sub", "sub/link", "sub/link/x"}


def test_filters_hold_for_what_a_list_names(tmp_path: Path, source: Path) -> None:
    wanted = ["a.o", "a.c", "build/a.c", "sub/build/x", "sub/link"]
    report = library.copy(source, tmp_path / "dst", files_from=wanted, filters=["*.o", "/build"], jobs=1)
    assert (report.ok, report.skipped) == (True, 2)
    assert names(tmp_path / "dst") == {"a.c", "sub", "sub/build", "sub/build/x", "sub/link"}


def test_a_dry_run_of_a_list_says_what_a_run_does(tmp_path: Path, source: Path, pcopy: Run) -> None:
    words = ["-j", 1, "-v", "--exclude", "a.o", "--files-from", "-", source, "dst"]
    dry, wet = [pcopy(*more, *words, input="a.c\nsub/build/x\nbuild\na.o\n").stderr for more in (["-n"], [])]
    told = [[line for line in text.splitlines() if " files" not in line] for text in (dry, wet)]
    assert [line.replace("would copy", "copied").replace("would make", "made") for line in told[0]] == told[1]
    assert len(told[1]) == 7


# ---- bad input ------------------------------------------------------------------------------------------------------

BAD: list[tuple[list[str], str]] = [
    (["--exclude", "[abc"], "pattern '[abc': has a bracket that is not closed"),
    (["--exclude", "a\\"], "has a backslash with nothing after it"),
    (["--exclude", "a\\/b"], "has a backslash with nothing after it"),
    (["--exclude", "[z-a]"], "pattern '[z-a]': has a bracket that makes no sense"),
    (["--exclude", "x[z-a]/y"], "pattern 'x[z-a]/y': has a bracket that makes no sense"),
    (["--exclude", "[[:alpha:]]"], "write them out, as in [a-z]"),
    (["--exclude", "a//b"], "pattern 'a//b': matches nothing"),
    (["--exclude", "./a"], "pattern './a': matches nothing; leave out what is . or .."),
    (["--include", "a/../b/"], "pattern '!a/../b/': matches nothing"),
    (["--exclude", ".."], "pattern '..': matches nothing"),
    (["--exclude", "- *.tmp"], "is a rule of rsync"),
    (["--exclude", "/"], "matches nothing"),
    (["--exclude", ""], "--exclude '': is no pattern"),
    (["--exclude", "#x"], "--exclude '#x': is no pattern; write a backslash"),
    (["--include", ""], "matches nothing"),
    (["--include", ""], "--include '': is no pattern"),
    (["--exclude-from", "missing"], "missing: the list does not exist; check the spelling"),
    (["--exclude-from", "src"], "'src': cannot be read: Is a directory"),
    (["--exclude-from", "bad"], "bad, line 2: pattern '[abc': has a bracket that is not closed"),
    (["--files-from", "missing"], "missing: the list does not exist; check the spelling"),
    (["--files-from", ""], "'': the list does not exist"),
    (["--files-from", "-", "--exclude-from", "-"], "standard input can be one list only"),
    (["--files-from", "up"], "up: 'a/../../b': leads upwards"),
    (["--files-from", "absolute"], "absolute: '/etc/passwd': is absolute; write it as it is below the source"),
    (["--files-from", "nul"], "nul: holds NUL characters: add -0"),
    (["--files-from", "good", "src/sub"], "needs one source"),
    (["--files-from", "good", "src/a.c", "--"], "needs one source"),
    (["-0"], "--null goes with --files-from"),
    (["--max-size", "10q"], "'10q' is not a size: write bytes, or 10k, 5M, 1.5G"),
    (["--min-size=-1"], "'-1' is not a size"),
    (["--min-size", "2k", "--max-size", "1k"], "max_size 1,024 is less than min_size 2,048"),
    (["--newer-than", "yesterday"], "'yesterday' is not a time: write a date (2026-01-31)"),
    (["--compare", "--exclude", "x"], "--exclude does not go with --compare"),
    (["--compare", "--files-from", "good"], "--files-from does not go with --compare"),
    (["--compare", "--newer-than", "7d"], "--newer-than does not go with --compare"),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=[" ".join(options) for options, _ in BAD])
def test_bad_input_is_one_line_that_says_what_to_do(
    tmp_path: Path, source: Path, pcopy: Run, options: list[str], says: str
) -> None:
    for name, data in (
        ("bad", b"ok\n[abc\n"),
        ("up", b"ok\na/../../b\n"),
        ("absolute", b"/etc/passwd\n"),
        ("nul", b"a\0b"),
        ("good", b"a.c\n"),
    ):
        (tmp_path / name).write_bytes(data)
    before = read_tree(tmp_path)
    done = pcopy(*options, *([] if options[-1] == "--" else ["src"]), "dst", input="")
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert read_tree(tmp_path) == before


OF_THE_LIBRARY: list[tuple[dict[str, Any], str]] = [
    ({"filters": "*.o"}, "must be a list of lines"),
    ({"filters": [b"*.o"]}, "must be a list of lines"),
    ({"filters": ["[a"]}, "not closed"),
    ({"delete": "no"}, "delete 'no': must be True or False"),
    ({"verify": 1}, "verify 1: must be True or False"),
    ({"files_from": ["../a"]}, "leads upwards"),
    ({"files_from": ["a\0b"]}, "NUL"),
    ({"max_size": -1}, "max_size: -1 is not a size"),
    ({"min_size": "x"}, "min_size: 'x' is not a size"),
    ({"newer_than": 1.5}, "newer_than: 1.5 is not a time"),
]


@pytest.mark.parametrize(("wrong", "says"), OF_THE_LIBRARY, ids=[str(wrong) for wrong, _ in OF_THE_LIBRARY])
def test_the_library_refuses_the_same_by_an_exception(tmp_path: Path, source: Path, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(library.UsageError, match=says):
        library.copy(source, tmp_path / "dst", **wrong)
    assert not (tmp_path / "dst").exists()
