"""Progress: what the bar draws on a real terminal of 60 and of 100 columns, the figures behind it, and what observers hear."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import random
import re
import shutil
import struct
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tqdm.utils import disp_len

import pcopy as library
from pcopy.progress import ALMOST, TREMBLE, figures, fit, next_shown, short
from pcopy.result import FILE_COST, Progress
from tests.trees import Dir, File, make_tree, read_tree

WIDTHS = pytest.mark.parametrize("columns", [60, 100])
FILES = 2000  # in the tree of small ones
PICTURE = re.compile(r"^ *(\d+)%\|")


# ---- a terminal -----------------------------------------------------------------------------------------------------


# Pictures ten times as often, so that there are some of a copy that does not last.
OFTEN = "import pcopy.progress as p; p.INTERVAL = 0.01; from pcopy.cli import main; main()"


@dataclass
class Screen:
    """What a terminal of so many columns shows; knows the few controls that a bar needs, and refuses any other.

    A line that is too long wraps, as on a real terminal: ``widest`` then is more than ``columns``.
    """

    columns: int
    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0
    widest: int = 0
    drawn: list[str] = field(default_factory=list)  # each line as it stood when the cursor left it

    def feed(self, text: str) -> None:
        for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x1b]", text):
            self.take(token)

    def take(self, token: str) -> None:
        if token == "\r":
            self.leave()
            self.column = 0
        elif token == "\n":
            self.leave()
            self.row += 1
        elif token == "\x1b[A":
            self.leave()
            self.row = max(0, self.row - 1)
        elif token == "\x1b[K":
            self.lines[self.row] = self.lines[self.row][: self.column]
        else:
            assert token.isprintable(), repr(token)
            self.put(token)
        while self.row >= len(self.lines):
            self.lines.append("")

    def put(self, character: str) -> None:
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1
        self.widest = max(self.widest, self.column)

    def leave(self) -> None:
        self.drawn.append(self.lines[self.row].rstrip())

    @property
    def percentages(self) -> list[int]:
        return [int(match[1]) for line in self.drawn if (match := PICTURE.match(line))]

    @property
    def text(self) -> list[str]:
        """What is left on the screen in the end."""
        return [line.rstrip() for line in self.lines if line.rstrip()]


def on_terminal(
    columns: int, *arguments: object, told: tuple[int, int] | None = None, more: Mapping[str, str] | None = None
) -> tuple[int, Screen]:
    """Run the command line on a terminal. Returns its status and what was on the screen.

    ``told``: the rows and columns that it says it has; ``more``: variables of the environment.
    """
    child, terminal = pty.fork()
    if not child:
        try:
            fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", *(told or (24, columns)), 0, 0))
            environment = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", **(more or {})}
            environment.pop("COLUMNS", None)
            os.execve(sys.executable, [sys.executable, "-c", OFTEN, *map(str, arguments)], environment)
        finally:
            os._exit(127)
    shown = b""
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # EIO: nobody has it open any more
            break
        if not block:
            break
        shown += block
    os.close(terminal)
    screen = Screen(columns)
    screen.feed(shown.decode())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), screen


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A directory for large trees, in memory where there is such a place."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def large(memory: Path) -> Path:
    """One file that takes a second, if each of its blocks is looked at."""
    (memory / "large").mkdir()
    block = os.urandom(1 << 20)
    with open(memory / "large/a-large-file", "wb") as file:
        for _ in range(400):
            file.write(block)
    return memory / "large"


@pytest.fixture(scope="module")
def small(memory: Path) -> Path:
    """Many small files in directories with long names."""
    for one in range(40):
        directory = memory / f"small/{one}-{'a-long-name-' * 6}/{'below-' * 8}"
        directory.mkdir(parents=True)
        for number in range(FILES // 40):
            (directory / f"f{number}").write_bytes(b"x" * number)
    return memory / "small"


def assert_good_pictures(screen: Screen) -> None:
    """No line wraps, no bar goes back or is full, and the report is all that is left."""
    assert screen.widest <= screen.columns, max(screen.drawn, key=len)
    assert screen.percentages, screen.drawn
    assert screen.percentages == sorted(screen.percentages)
    assert screen.percentages[-1] < 100


@pytest.mark.parametrize(("columns", "jobs"), [(60, 1), (100, 2)])
def test_the_bar_moves_smoothly_within_one_large_file(large: Path, tmp_path: Path, columns: int, jobs: int) -> None:
    copy = large.parent / f"copy-{columns}-{jobs}"
    status, screen = on_terminal(columns, "-j", jobs, "--sparse", "always", large / "a-large-file", copy)
    assert status == 0, screen.text
    copy.unlink()
    assert without_report(screen) == []
    screen.widest = max(len(line) for line in screen.drawn if not line.startswith("copied "))
    assert_good_pictures(screen)
    assert len(set(screen.percentages)) >= 4, screen.percentages
    pictures = [line for line in screen.drawn if PICTURE.match(line)]
    assert re.search(r" [01]/1 ", pictures[-1])  # one file: the total is known
    assert "B/s" in pictures[-1]
    assert any("a-large-file" in line for line in screen.drawn)


def test_a_total_that_still_grows_has_a_plus(tmp_path: Path) -> None:
    for number in range(4000):  # directories take longer to read than their few files to copy
        (tmp_path / f"src/{number // 100}/{number}").mkdir(parents=True)
    for number in range(40):
        (tmp_path / f"src/{number}/file").touch()
    status, screen = on_terminal(60, "-j", "1", tmp_path / "src", tmp_path / "dst")
    assert status == 0, screen.text
    totals = [match[1] for line in screen.drawn if (match := re.search(r" \d+/\d+(\+?) ", line))]
    assert "+" in totals
    assert totals == sorted(totals, reverse=True)  # once it is known, it stays known


def without_report(screen: Screen) -> list[str]:
    """What is left on the screen but for the last line."""
    *others, last = screen.text
    assert last.startswith("copied "), screen.text
    assert last.endswith("0 failed")
    return others


@WIDTHS
def test_many_small_files_move_the_bar(small: Path, columns: int) -> None:
    copy = small.parent / f"small-{columns}"
    status, screen = on_terminal(columns, "-j", "1", small, copy)
    assert status == 0, screen.text
    assert read_tree(copy) == read_tree(small)
    assert without_report(screen) == []
    screen.widest = max(len(line) for line in screen.drawn if not line.startswith("copied "))
    assert_good_pictures(screen)


@WIDTHS
def test_verbose_lines_stand_whole_above_the_bar(small: Path, columns: int) -> None:
    copy = small.parent / f"verbose-{columns}"
    status, screen = on_terminal(columns, "-j", "2", "-v", small, copy)
    assert status == 0, screen.text[-1]
    files = {f"copied {path} (new)" for path in small.rglob("f*")}
    directories = {f"made {path} (new)" for path in [small, *small.rglob("*")] if path.is_dir()}
    told = without_report(screen)
    assert len(told) == len(files) + len(directories)
    assert set(told) == files | directories
    assert screen.percentages == sorted(screen.percentages)
    assert [percent for percent in screen.percentages if percent >= 100] == []
    pictures = [line for line in screen.drawn if PICTURE.match(line)]
    assert all(len(line) <= columns for line in pictures)


def test_failures_stand_whole_above_the_bar(small: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    bad = sorted(small.rglob("f1"))[:5]
    for path in bad:
        (copy / path.relative_to(small) / "in the way").mkdir(parents=True)
    status, screen = on_terminal(100, "-j", "2", small, copy)
    assert status == 1
    *failures, last = screen.text
    assert "5 failed" in last
    assert sorted(line.split(": ")[1] for line in failures) == [str(path) for path in bad]


def test_no_progress_and_quiet_leave_a_terminal_alone(large: Path) -> None:
    for option, left in (("--no-progress", 1), ("-q", 0)):
        copy = large.parent / "alone"
        status, screen = on_terminal(80, option, large, copy)
        assert (status, len(screen.text), screen.percentages) == (0, left, [])


def test_a_terminal_that_does_not_say_how_large_it_is_has_a_bar(large: Path) -> None:
    copy = large.parent / "of no size"
    status, screen = on_terminal(80, "--sparse", "always", large / "a-large-file", copy, told=(0, 0))
    assert status == 0, screen.text
    copy.unlink()
    assert without_report(screen) == []
    screen.widest = max(len(line) for line in screen.drawn if not line.startswith("copied "))
    assert_good_pictures(screen)


def test_a_terminal_that_has_no_controls_has_no_bar(large: Path) -> None:
    copy = large.parent / "dumb"
    status, screen = on_terminal(80, "--sparse", "always", large / "a-large-file", copy, more={"TERM": "dumb"})
    copy.unlink()
    assert (status, len(screen.text), screen.percentages) == (0, 1, [])


def test_what_others_set_for_tqdm_is_nothing_to_us(large: Path) -> None:
    copy = large.parent / "tqdm"
    wrong = {"TQDM_MININTERVAL": "", "TQDM_WRITE_BYTES": "1", "TQDM_GUI": "1"}
    status, screen = on_terminal(80, "--sparse", "always", large / "a-large-file", copy, more=wrong)
    copy.unlink()
    assert status == 0, screen.text
    assert without_report(screen) == []
    screen.widest = max(len(line) for line in screen.drawn if not line.startswith("copied "))
    assert_good_pictures(screen)


@pytest.mark.parametrize("name", ["ä" * 70, "目录" * 30], ids=["narrow", "wide"])
def test_names_that_stderr_cannot_show_do_not_break_the_bar(memory: Path, name: str) -> None:
    """They are written as escapes, which are longer."""
    directory = make_tree(memory / "shown" / name[:40], {"file": b""}).parent
    with open(directory / name[:40] / "file", "wb") as file:
        for _ in range(100):
            file.write(os.urandom(1 << 20))
    copy = memory / "copy of it"
    status, screen = on_terminal(60, "--sparse", "always", directory, copy, more={"PYTHONIOENCODING": "ascii:backslashreplace"})
    shutil.rmtree(directory)
    shutil.rmtree(copy)
    assert status == 0, screen.text
    assert without_report(screen) == []
    assert any("\\" in line for line in screen.drawn)
    screen.widest = max(len(line) for line in screen.drawn if not line.startswith("copied "))
    assert_good_pictures(screen)


# ---- the part that is done ------------------------------------------------------------------------------------------


def test_with_an_expected_total_the_part_is_exact() -> None:
    progress = Progress(expected=(10, 10 << 20), growing=True, share=0.9, found=3)
    parts = []
    for done in range(11):
        progress.done, progress.small_bytes = done, done << 20
        parts.append(progress.fraction())
    assert parts == pytest.approx([done / 10 for done in range(11)])


def test_large_files_count_by_their_bytes() -> None:
    progress = Progress(found=1, growing=False, large_found=1 << 40, large_open=1)
    parts = []
    for done in range(0, 101, 10):
        progress.large_done = (1 << 40) * done // 100
        parts.append(progress.fraction())
    assert parts == pytest.approx([done / 100 for done in range(0, 101, 10)], abs=1e-6)


def test_files_not_looked_at_yet_count_like_those_that_were() -> None:
    progress = Progress(found=3, growing=False, large_found=400, large_open=1, large_done=400)
    assert progress.fraction() == pytest.approx(1 / 3, abs=1e-6)


def test_nothing_done_is_nothing_and_all_done_is_one() -> None:
    assert Progress().fraction() == 0
    assert Progress(expected=(0, 0)).fraction() == 0
    assert Progress(done=7, found=7, small_bytes=99, growing=False, share=1.0, large_found=5, large_done=5).fraction() == 1
    assert Progress(done=7, found=7, small_bytes=99, expected=(5, 50)).fraction() == 1  # more than was expected


@pytest.mark.parametrize("seed", range(10))
def test_a_guess_from_the_shape_of_the_tree_never_falls_nor_reaches_the_end_early(seed: int) -> None:
    """Files of one size in a tree that nobody knows beforehand: each directory shares its part among its entries."""
    chance = random.Random(seed)
    progress = Progress(growing=True)
    stack = [(1.0, 5)]
    parts = [0.0]
    while stack:
        share, depth = stack.pop()
        files, directories = chance.randint(0 if depth < 5 else 1, 9), chance.randint(0, 4) if depth else 0
        part = share / max(1, files + directories)
        stack += [(part, depth - 1)] * directories
        progress.found += files
        if not files + directories:
            progress.share += share
            parts.append(progress.fraction())
        for _ in range(files):
            progress.done += 1
            progress.small_bytes += 1000
            progress.share += part
            parts.append(progress.fraction())
    assert parts == sorted(parts)
    assert all(part <= 1 for part in parts)
    assert parts[-1] == pytest.approx(1)
    assert progress.share == pytest.approx(1)


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        ([0.1, 0.2, 0.19, 0.3], [0.1, 0.2, 0.2, 0.3]),  # it trembles
        ([0.5, 0.97, 0.05, 0.06], [0.5, 0.97, 0.05, 0.06]),  # it was wrong
        ([0.9, 1.0, 1.0], [0.9, 0.99, 0.99]),  # the end is not shown before it is there
    ],
)
def test_a_bar_does_not_tremble_but_goes_back_when_it_was_far_off(parts: list[float], shown: list[float]) -> None:
    assert list(itertools.accumulate(parts, next_shown, initial=0.0))[1:] == shown


def test_large_files_found_first_do_not_look_like_all_there_is() -> None:
    alone = Progress(found=1, large_found=1 << 30, large_open=1, large_done=1 << 30, share=0.01, growing=True)
    assert alone.fraction() == pytest.approx(0.5)
    nearly = Progress(found=1, large_found=1 << 30, large_open=1, large_done=1 << 30, share=0.9, growing=True)
    assert nearly.fraction() == pytest.approx(0.9)


def one_large_directory(top: Path) -> None:
    for one in range(200):
        (top / f"d{one}").mkdir(parents=True)
        (top / f"d{one}/f").write_bytes(b"x" * 500)
    (top / "large").mkdir()
    for number in range(5000):
        (top / f"large/f{number}").write_bytes(b"x" * 2000)


def three_large_files(top: Path) -> None:
    top.mkdir()
    for number in range(3):
        (top / f"f{number}").write_bytes(os.urandom(1 << 20) * 60)


def one_large_file_and_many_small(top: Path) -> None:
    for one in range(20):
        (top / f"d{one}").mkdir(parents=True)
        for number in range(150):
            (top / f"d{one}/f{number}").write_bytes(b"x" * 2000)
    (top / "large").write_bytes(os.urandom(1 << 20) * 150)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    ("make", "error_of_guess"), [(one_large_directory, 1.0), (three_large_files, 0.05), (one_large_file_and_many_small, 0.3)]
)
def test_the_bar_is_near_the_truth(memory: Path, make: Callable[[Path], None], error_of_guess: float, jobs: int) -> None:
    """As soon as the total is known; until then, as near as can be guessed. The bar never ends before the copy."""
    source, copy = memory / f"{make.__name__}-{jobs}", memory / "copy"
    make(source)
    listener = Listener()
    report = library.copy(source, copy, jobs=jobs, observer=listener, sparse="always")
    shutil.rmtree(source)
    shutil.rmtree(copy)
    whole = report.bytes + FILE_COST * report.files
    truth = [(size + FILE_COST * done) / whole for done, _, size, _ in listener.history]
    growing = [one[3] for one in listener.history]
    shown = list(itertools.accumulate(listener.parts, next_shown, initial=0.0))[1:]
    assert max(listener.parts) <= 1
    assert listener.parts[-1] == pytest.approx(1)
    for bar, part, true, guessed in zip(shown, listener.parts, truth, growing, strict=True):
        assert part == pytest.approx(true, abs=error_of_guess if guessed else 0.05)
        assert bar <= ALMOST
        assert guessed or bar == pytest.approx(true, abs=TREMBLE + 0.05)
    falls = sum(after < before for before, after in itertools.pairwise(shown))
    assert falls <= (make is one_large_directory)


# ---- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"), (7, "7"), (999, "999"), (999.4, "999"), (1000, "1.0k"), (12_345, "12.3k"),
        (99_949, "99.9k"), (123_456, "123k"),
        (1_000_000, "1.0M"), (847_000_000, "847M"), (5_300_000_000, "5.3G"), (2.5e12, "2.5T"),
        (999.6, "1.0k"), (999_600, "1.0M"), (999_999_999, "1.0G"),
    ],
)  # fmt: skip
def test_a_short_number_has_at_most_five_characters(count: float, text: str) -> None:
    assert short(count) == text
    assert len(text) <= 5


@pytest.mark.parametrize(
    ("path", "columns", "text"),
    [
        ("a/b/c", 5, "a/b/c"),
        ("a/b/c", 80, "a/b/c"),
        ("a/b/cd", 5, "…b/cd"),
        ("directory/file", 5, "…file"),
        ("", 5, ""),
        ("目录/文件", 9, "目录/文件"),
        ("目录/文件", 8, "…录/文件"),
        ("目录/文件", 7, "…/文件"),
        ("目录/文件", 2, "…"),
        ("e\u0301" * 5, 5, "é" * 5),  # as macOS writes it
        ("❤\ufe0f/q\u0301", 3, "❤/q"),  # what takes no column, and has no form with what it belongs to
    ],
)
def test_of_a_long_path_the_end_is_shown(path: str, columns: int, text: str) -> None:
    """Counted in columns of the terminal: wide characters take two, and the end would be cut off."""
    assert fit(path, columns) == text
    assert disp_len(text) <= columns


@pytest.mark.parametrize("narrow", [True, False])
def test_the_figures_say_whether_the_total_grows(narrow: bool) -> None:
    growing = Progress(done=1234, found=5678, bytes=9_000_000, growing=True)
    known = Progress(done=1234, found=5678, bytes=9_000_000, growing=False)
    expected = Progress(done=1234, found=2000, bytes=9_000_000, growing=False, expected=(5678, 10**9))
    texts = [figures(one, 2e6, 61.0, narrow) for one in (growing, known, expected)]
    total = "1.2k/5.7k" if narrow else "1,234/5,678"
    assert total + "+" in texts[0]
    assert total in texts[1]
    assert total in texts[2]
    assert "+" not in texts[1] + texts[2]
    assert all("01:01" in text for text in texts)
    assert "--:--" in figures(known, 0.0, None, narrow)


def test_an_expected_total_does_not_grow() -> None:
    progress = Progress(done=1, found=5, growing=True, expected=(9, 10**9))
    assert "+" not in figures(progress, 0.0, None, True)


def test_narrow_figures_leave_room_for_a_bar_at_sixty_columns() -> None:
    progress = Progress(done=99_999_999, found=999_999_999, bytes=99_999_999_999, growing=True)
    assert len("100%|" + "| " + figures(progress, 99_999_999_999, 359_999, True)) <= 60 - 10


# ---- the library ----------------------------------------------------------------------------------------------------


class Listener(library.Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.parts: list[float] = []
        self.done: list[int] = []
        self.history: list[tuple[int, int, int, bool]] = []
        self.totals: set[tuple[int, int] | None] = set()
        self.events: list[tuple[str, str]] = []
        self.failures: list[library.Failure] = []

    def progress(self, progress: library.Progress) -> None:
        self.parts.append(progress.fraction())
        self.done.append(progress.done)
        self.totals.add(progress.expected)
        self.history.append((progress.done, progress.found, progress.bytes, progress.growing))

    def event(self, event: library.Event) -> None:
        self.events.append((event.what, event.path))

    def failure(self, failure: library.Failure) -> None:
        self.failures.append(failure)


class Ahead(Listener):
    """Wants to know the total early."""

    wants_total = True


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("kind", [Listener, Ahead])
def test_an_observer_is_told_progress_up_to_the_end(small: Path, tmp_path: Path, jobs: int, kind: type[Listener]) -> None:
    listener = kind()
    report = library.copy(small, tmp_path / "dst", jobs=jobs, observer=listener)
    assert report.ok, report.errors
    assert listener.history[-1] == (FILES, FILES, report.bytes, False)
    assert listener.done == sorted(listener.done)
    assert listener.parts[-1] == pytest.approx(1)
    assert all(0 <= part <= 1 for part in listener.parts)
    assert [one for one in listener.parts[:-1] if one == 1] == [] or listener.done[listener.parts.index(1)] == FILES
    assert (listener.events, listener.failures) == ([], [])
    assert read_tree(tmp_path / "dst") == read_tree(small)


def test_an_observer_is_told_events_and_failures(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {"a": "1", "d": Dir({"b": File(b"2")})})
    (tmp_path / "dst/a/in the way").mkdir(parents=True)
    listener = Listener()
    report = library.copy(source, tmp_path / "dst", jobs=1, observer=listener, verbose=True)
    assert sorted(listener.events) == [("copied", f"{source}/d/b"), ("made", f"{source}/d"), ("updated", str(source))]
    assert listener.failures == report.errors
    assert [one.path for one in report.errors] == [f"{source}/a"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_report_of_a_dry_run_makes_the_total_exact(small: Path, tmp_path: Path, jobs: int) -> None:
    dry = library.copy(small, tmp_path / "dst", jobs=jobs, dry_run=True)
    listener = Listener()
    report = library.copy(small, tmp_path / "dst", jobs=jobs, observer=listener, expected=dry)
    assert report.ok, report.errors
    assert listener.totals == {(FILES, report.bytes)}
    assert listener.parts == sorted(listener.parts)
    assert listener.parts[-1] == pytest.approx(1)


def test_the_report_of_a_dry_run_makes_the_total_of_a_rerun_exact(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {f"f{number}": "x" * number for number in range(50)})
    assert library.copy(source, tmp_path / "dst", jobs=1).ok
    (source / "f7").write_text("changed")
    dry = library.copy(source, tmp_path / "dst", jobs=1, dry_run=True)
    listener = Listener()
    assert library.copy(source, tmp_path / "dst", jobs=1, observer=listener, expected=dry).ok
    assert listener.totals == {(50, 7)}
    assert listener.parts[-1] == pytest.approx(1)


def test_what_an_observer_raises_ends_the_run(small: Path, tmp_path: Path) -> None:
    class Tired(library.Observer):
        def progress(self, progress: library.Progress) -> None:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        library.copy(small, tmp_path / "dst", jobs=2, observer=Tired())
    assert list((tmp_path / "dst").rglob(".pcopy-*")) == []
