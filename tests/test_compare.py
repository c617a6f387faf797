"""--compare measures fairly, advises by its figures, refuses in time, and leaves nothing behind, whatever ends it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcopy import chart
from pcopy.comparison import compare
from pcopy.errors import UsageError
from pcopy.figures import Comparison, Contender, best_jobs, differ, order_of_round, ratios
from pcopy.report import comparison_json, table
from tests.conftest import Run, as_root
from tests.trees import Dir, Hard, Holes, Link, make_tree

QUICK = ("--compare", "-j", 2, "--rounds", 1)
LONG = ("--compare", "-j", 2, "--rounds", 500)  # goes on until somebody ends it
MARK = "PCOPY_TEST_RUN"  # in the environment of a run and of all its processes
needs_rsync = pytest.mark.skipif(not shutil.which("rsync"), reason="rsync is not installed")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Beside it there is nothing, so that what is left behind is seen."""
    below: dict[str | bytes, object] = {f"f{number}": b"x" * 1000 for number in range(20)}
    return make_tree(tmp_path / "around" / "source", {"a": b"text", "d": Dir({"e": Dir(below)})})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A destination for the copies."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture(scope="module")
def busy_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough files that a signal meets workers who are making more."""
    below: dict[str | bytes, object] = {f"f{number}": b"x" * 100 for number in range(50)}
    directories = {f"d{at}": Dir(below) for at in range(30)}
    return make_tree(tmp_path_factory.mktemp("busy") / "source", directories)


Fake = Callable[[str, str], dict[str, str]]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """Put a program of this name and text first on the PATH of the environment that it gives."""

    def make(name: str, text: str) -> dict[str, str]:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
        return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}

    return make


def binding() -> list[str]:
    """What makes a command obey the modes of files: for root, to take its privileges away."""
    if os.geteuid() != 0:
        return []
    words = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    if not shutil.which("setpriv") or subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("root's privileges cannot be taken away here (setpriv)")
    return words


@pytest.fixture
def bound(tmp_path: Path) -> Run:
    """As pcopy, by somebody to whom the modes of files apply."""

    def run(*arguments: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [*binding(), sys.executable, "-m", "pcopy", *(str(one) for one in arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=env, check=False)

    return run


@pytest.fixture
def witness(tmp_path: Path, fake: Fake) -> Iterator[dict[str, str]]:
    """An environment whose rsync tells that it ran: for command lines that have to be refused before that."""
    yield fake("rsync", f"#!/bin/sh\ntouch {tmp_path}/measured\n")
    assert not (tmp_path / "measured").exists(), "measured before it was refused"


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Status 2, one line, and that says what is wrong."""
    assert (done.returncode, done.stdout) == (2, ""), done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def of(base: list[float], **others: list[float]) -> Comparison:
    """A comparison of wall times: of([2.0], j2=[1.0], cp=[3.0]); none for a contender that failed."""
    contenders = [Contender("pcopy -j 1", (), 1, base, "" if base else "failed with status 1: why")]
    for name, seconds in others.items():
        jobs = int(name[1:]) if name[1:].isdigit() else None
        trouble = "" if seconds else "failed with status 1: why"
        contenders.append(Contender(f"pcopy -j {jobs}" if jobs else name, (), jobs, seconds, trouble))
    return Comparison(100, 2_000_000, len(base) or 1, contenders)


def several(*walls: float) -> list[float]:
    """As many rounds as it takes to tell something, of these."""
    return [*walls] * 5


# ---- statistics -----------------------------------------------------------------------------------------------------

walls = st.floats(0.01, 100.0)
rounds_of_two = st.integers(1, 7).flatmap(
    lambda count: st.tuples(st.lists(walls, min_size=count, max_size=count), st.lists(walls, min_size=count, max_size=count))
)
by_jobs = st.integers(1, 5).flatmap(
    lambda count: st.dictionaries(
        st.sampled_from([1, 2, 3, 4, 8]), st.lists(st.floats(0.5, 2.0), min_size=count, max_size=count), min_size=1
    )
)


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("first", [0, 1, 7])
def test_each_contender_runs_at_each_position_equally_often(count: int, first: int) -> None:
    orders = [order_of_round(count, number) for number in range(first, first + 2 * count)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    for position in range(count):
        assert set(Counter(order[position] for order in orders).values()) == {2}


@pytest.mark.parametrize("count", range(3, 7))
def test_no_contender_always_runs_after_the_same_other(count: int) -> None:
    before: dict[int, set[int]] = {one: set() for one in range(count)}
    for number in range(2 * count):
        for one, after in itertools.pairwise(order_of_round(count, number)):
            before[after].add(one)
    assert all(len(others) > 1 for others in before.values())


@given(rounds_of_two)
def test_ratios_are_of_runs_of_the_same_round(both: tuple[list[float], list[float]]) -> None:
    assert [ratio * other for ratio, other in zip(ratios(*both), both[1], strict=True)] == pytest.approx(both[0])


@given(rounds_of_two)
def test_what_differs_does_so_in_every_round_and_by_more_than_five_percent(both: tuple[list[float], list[float]]) -> None:
    base, other = both
    one_side = all(a > b for a, b in zip(base, other, strict=True)) or all(a < b for a, b in zip(base, other, strict=True))
    middle = statistics.median(a / b for a, b in zip(base, other, strict=True))
    assert differ(base, other) == (len(base) >= 4 and one_side and (middle > 1.05 or middle < 0.95))
    assert not differ(base, base)


@pytest.mark.parametrize(
    ("base", "other", "expected"),
    [
        (several(2.0), several(1.0), True),
        (several(1.0), several(2.0), True),
        (several(1.0), several(0.97), False),  # by 3 % only
        ([1.0] * 4, [0.5, 0.5, 0.5, 1.1], False),  # not in each round
        ([1.0] * 4, [0.5, 0.5, 0.5, 1.0], False),  # a tie is on no side
        ([2.0] * 4, [1.0] * 4, True),
        ([2.0] * 3, [1.0] * 3, False),  # too few to tell
        ([2.0], [1.0], False),
    ],
)
def test_by_hand_what_differs(base: list[float], other: list[float], expected: bool) -> None:
    assert differ(base, other) is expected


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: several(2.0), 2: several(1.0)}, 2),
        ({1: several(1.0), 2: several(2.0)}, 1),
        ({1: several(2.0), 2: several(1.0), 4: several(0.98)}, 2),  # as good, with fewer
        ({1: several(2.0), 2: several(1.0), 4: several(0.5)}, 4),
        ({1: several(2.0, 2.0), 8: several(1.0, 1.0), 4: several(0.99, 1.01)}, 4),
        ({1: several(1.0), None: several(0.1)}, 1),  # other tools have no jobs
        # The fastest median has bad rounds, and so beats nobody; but two do beat one.
        ({1: several(1.0, 1.0, 1.0), 2: several(0.5, 0.5, 0.5), 4: several(0.4, 0.4, 1.1)}, 2),
    ],
)
def test_by_hand_the_best_number_of_jobs(seconds: dict[int | None, list[float]], best: int) -> None:
    assert best_jobs(seconds) == best


@given(by_jobs)
def test_the_best_number_of_jobs_is_the_smallest_that_no_other_beats(seconds: dict[int | None, list[float]]) -> None:
    def beaten(jobs: int | None) -> bool:
        return any(
            differ(seconds[jobs], other) and statistics.median(ratios(seconds[jobs], other)) > 1 for other in seconds.values()
        )

    assert best_jobs(seconds) == min(jobs for jobs in seconds if jobs and not beaten(jobs))


def test_speed_up_is_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    comparison = of([1.0, 4.0, 10.0], j2=[1.0, 1.0, 8.0])
    assert comparison.speed_up(comparison.contenders[1]) == 1.25
    assert comparison.speed_up(comparison.base) == 1.0


@pytest.mark.parametrize(
    ("comparison", "words"),
    [
        (of(several(3.0), j2=several(2.0), j4=several(3.0)), "choose -j 2: 1.50 times as fast"),
        (of(several(3.0), j2=several(2.0), j4=several(1.0)), "choose -j 4: 3.00 times as fast"),
        (of(several(1.0, 1.0), j2=several(0.99, 1.02)), "no difference beyond the noise"),
        (of(several(1.0, 1.0), j2=several(0.5, 1.02)), "no difference beyond the noise"),
        (of(several(1.0, 1.0), j2=several(1.01, 0.99), cp=several(0.1, 0.1)), "no difference beyond the noise"),
        (of(several(1.0, 1.0), j2=several(1.5, 1.4)), "choose -j 1: more processes are slower"),
        (of(several(1.0, 1.0), j2=several(0.5, 0.5), j4=several(0.4, 1.1)), "choose -j 2: 2.00 times as fast"),
        (of(several(1.0), j2=[], j4=several(0.5)), "choose -j 4"),
        (of([3.0], j2=[1.0]), "too few rounds to tell a difference from noise: give --rounds 5"),
        (of([3.0] * 3, j2=[1.0] * 3), "too few rounds"),
        (of(several(3.0)), "only one process was measured"),
        (of(several(3.0), cp=several(1.0)), "only one process was measured"),
        (of(several(3.0), j2=[]), "only one process was measured"),
        (of([], j2=[1.0]), "the single process failed"),
        (of([], j2=[]), "the single process failed"),
    ],
)
def test_by_hand_the_advice(comparison: Comparison, words: str) -> None:
    assert words in comparison.advice
    assert comparison.advice in table(comparison)
    assert json.loads(comparison_json(comparison))["advice"] == comparison.advice


@given(by_jobs)
def test_the_advice_names_the_best_number_of_jobs(seconds: dict[int | None, list[float]]) -> None:
    base = seconds.pop(1, next(iter(seconds.values())))
    comparison = of(base, **{f"j{jobs}": walls for jobs, walls in seconds.items()})
    if len(base) >= 4 and seconds:
        assert f"-j {comparison.best_jobs}" in comparison.advice
    else:
        assert comparison.best_jobs is None
        assert not re.search("choose|difference beyond", comparison.advice)


# ---- the table ------------------------------------------------------------------------------------------------------


def test_the_table_gives_each_figure_and_a_bar_in_proportion_to_the_median() -> None:
    comparison = of([1.0, 2.0, 4.0], j2=[0.5, 1.0, 1.0], cp=[0.25, 0.25, 9.0], rsync=[4.0, 4.0, 4.0])
    lines = {line.partition("  ")[0].strip(): line for line in table(comparison).splitlines()}
    assert table(comparison).startswith("100 files, 2.0 MB; 3 rounds after a warm-up\n")
    # name, median, min-max, MB/s, files/s, speed-up
    assert lines["pcopy -j 1"].split()[3:8] == ["2.000", "1.000-4.000", "1", "50", "1.00x"]
    assert lines["pcopy -j 2"].split()[3:8] == ["1.000", "0.500-1.000", "2", "100", "2.00x"]
    assert lines["cp"].split()[1:6] == ["0.250", "0.250-9.000", "8", "400", "4.00x"]
    bars = {name: line.count("█") for name, line in lines.items()}
    longest = bars["rsync"]
    assert (bars["pcopy -j 1"], bars["pcopy -j 2"]) == (longest / 2, longest / 4)
    assert bars["cp"] == pytest.approx(longest / 16, abs=0.5)


@given(st.lists(walls, min_size=1, max_size=6))
def test_every_bar_is_seen_and_none_is_too_long(medians: list[float]) -> None:
    comparison = of([1.0], **{f"tool{at}": [median] for at, median in enumerate(medians)})
    bars = [line.count("█") for line in table(comparison).splitlines() if "█" in line]
    longest = max(bars)
    assert len(bars) == len(medians) + 1
    for bar, median in zip(bars, [1.0, *medians], strict=True):
        exact = longest * median / max(1.0, *medians)
        assert bar == pytest.approx(max(1.0, exact), abs=0.51)


@pytest.mark.parametrize(("columns", "bar"), [(80, 16), (72, 12), (66, 6), (60, 0), (20, 0)])
def test_bars_take_no_more_than_the_terminal_has(columns: int, bar: int) -> None:
    lines = table(of([1.0, 2.0, 4.0], j2=[0.5, 1.0, 1.0]), columns=columns).splitlines()
    assert max(line.count("█") for line in lines) == bar
    assert [line for line in lines if line.endswith(" ")] == []


def test_the_table_says_how_the_speed_up_can_contradict_the_medians() -> None:
    comparison = of([1.0, 4.0, 10.0], j2=[1.0, 1.0, 8.0])
    assert "4.00x" not in table(comparison)  # the ratio of the medians
    assert "1.25x" in table(comparison)
    assert "speed-up: median of each round's ratio to -j 1" in table(comparison)
    assert all(len(line) <= 80 for line in table(comparison).splitlines())


def test_what_a_tool_said_cannot_drive_the_terminal() -> None:
    comparison = of([1.0], rsync=[])
    comparison.contenders[1].trouble = "failed with status 1: \x1b[2Jname"
    assert "\x1b" not in table(comparison)
    assert "name" in table(comparison)


@pytest.mark.parametrize(("encoding", "block"), [("utf-8", "█"), ("ascii", "#"), ("latin-1", "#")])
def test_bars_are_made_of_what_the_output_can_say(pcopy: Run, source: Path, encoding: str, block: str) -> None:
    done = pcopy(*QUICK, source, env={**os.environ, "PYTHONIOENCODING": encoding}, encoding=encoding)
    rows = [line for line in done.stdout.splitlines() if line.startswith("pcopy -j")]
    assert [set(row.rsplit("  ", 1)[1]) for row in rows] == [{block}, {block}], done


# ---- rounds ---------------------------------------------------------------------------------------------------------


def test_rounds_are_interleaved_in_rotating_order_and_the_first_does_not_count(source: Path, place: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    comparison = compare(source, place, jobs=[2, 3], rounds=2, step=lambda *told: steps.append(told))
    assert [(number, total) for _, number, total in steps] == [(number, 9) for number in range(9)]
    names = [one.name for one in comparison.contenders]
    orders = [[names.index(name) for name, *_ in steps[at : at + 3]] for at in (0, 3, 6)]
    assert orders == [order_of_round(3, number) for number in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert all(len(one.seconds) == 2 and not one.trouble for one in comparison.contenders)
    assert (comparison.files, comparison.bytes, comparison.rounds) == (21, 4 + 20 * 1000, 2)
    assert not any(place.iterdir())


def test_the_round_that_warms_up_is_not_among_the_figures(pcopy: Run, source: Path, tmp_path: Path, fake: Fake) -> None:
    slow_once = f"#!/bin/sh\necho x >>{tmp_path}/runs\n[ $(wc -l <{tmp_path}/runs) -gt 1 ] || sleep 2\n"
    done = pcopy(*QUICK, "--against", "rsync", "--json", source, env=fake("rsync", slow_once))
    [rsync] = [one for one in json.loads(done.stdout)["contenders"] if one["name"] == "rsync"]
    assert len((tmp_path / "runs").read_text().split()) == 2
    assert len(rsync["seconds"]) == 1
    assert rsync["seconds"][0] < 2


@pytest.mark.parametrize(
    ("jobs", "names"),
    [("2,4,8", ["1", "2", "4", "8"]), ("1", ["1"]), ("3,1,3", ["1", "3"])],
)
def test_the_list_of_jobs_names_the_pools_and_one_process_is_always_there(
    pcopy: Run, source: Path, place: Path, jobs: str, names: list[str]
) -> None:
    done = pcopy("--compare", "-j", jobs, "--rounds", 1, "--json", source, place)
    assert done.returncode == 0, done.stderr
    contenders = json.loads(done.stdout)["contenders"]
    assert [one["name"] for one in contenders] == [f"pcopy -j {name}" for name in names]
    assert [one["jobs"] for one in contenders] == [int(name) for name in names]


def test_without_paths_it_makes_a_sample_and_removes_it(pcopy: Run, tmp_path: Path) -> None:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path  # quick: the sample is of some size
    with tempfile.TemporaryDirectory(dir=memory) as place:
        done = pcopy(*QUICK, env={**os.environ, "TMPDIR": place}, timeout=100)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert "files, " in lines[0]
        assert "1 round after a warm-up" in lines[0]
        assert [line.split("  ")[0] for line in lines if "█" in line] == ["pcopy -j 1", "pcopy -j 2"]
        assert lines[-1].startswith("too few rounds")
        assert os.listdir(place) == []
    assert os.listdir(tmp_path) == []


def test_with_a_source_alone_the_copies_are_made_beside_it_and_removed(pcopy: Run, source: Path, fake: Fake) -> None:
    beside = f'#!/bin/sh\ncase "$3" in {source.parent}/*) ;; *) exit 1 ;; esac\n'
    done = pcopy(*QUICK, "--against", "cp", source, env=fake("cp", beside))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines()[1] == f"copies in {source.parent}"
    assert os.listdir(source.parent) == ["source"]


def test_a_source_that_is_a_link_stands_for_its_tree(pcopy: Run, source: Path, place: Path, fake: Fake) -> None:
    """cp, as it is called here, copies a link as a link, and so does pcopy: that would measure nothing."""
    (source.parent / "link").symlink_to("source")
    real = shutil.which("cp")
    env = fake("cp", f'#!/bin/sh\n{real} "$@" && [ -d "$3" ] && [ ! -h "$3" ]\n')
    done = pcopy(*QUICK, "--against", "cp", source.parent / "link", place, env=env)
    assert done.returncode == 0, done.stdout


def test_what_lies_in_the_current_directory_is_not_run(source: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m` imports from there first."""
    here = make_tree(
        source.parent / "here", {"click.py": "raise SystemExit(9)", "pcopy": Dir({"__init__.py": "raise SystemExit(9)"})}
    )
    monkeypatch.chdir(here)
    comparison = compare(source, place, jobs=[2], rounds=1)
    assert [one.trouble for one in comparison.contenders] == ["", ""]


@pytest.mark.parametrize("how", ["from its directory", "relative PYTHONPATH", "python -c"])
def test_what_is_measured_is_the_very_package_that_runs(source: Path, place: Path, tmp_path: Path, how: str) -> None:
    """A checkout, although another version is installed."""
    checkout, witness = tmp_path / "check out", tmp_path / "witness"
    shutil.copytree(Path(chart.__file__).parent, checkout / "pcopy", ignore=shutil.ignore_patterns("__pycache__"))
    with (checkout / "pcopy" / "options.py").open("a") as file:  # which every run imports
        file.write(f"open({str(witness)!r}, 'a').write('x')\n")
    program = "import sys, runpy; sys.argv[0] = 'pcopy'; runpy.run_module('pcopy', run_name='__main__')"
    words = ["-c", program] if how == "python -c" else ["-m", "pcopy"]
    where, path = (tmp_path, "check out") if how == "relative PYTHONPATH" else (checkout, "")
    done = subprocess.run(
        [sys.executable, *words, *map(str, QUICK), "--json", str(source), str(place)],
        cwd=where, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert witness.read_text() == "x" * (1 + 4)  # the comparison itself, and two contenders in two rounds


def test_json_gives_every_figure(pcopy: Run, source: Path, place: Path) -> None:
    done = pcopy("--compare", "-j", 2, "--rounds", 4, "--json", source, place)
    assert (done.returncode, done.stderr) == (0, "")
    whole = json.loads(done.stdout)
    assert (whole["files"], whole["bytes"], whole["rounds"], whole["exit_status"]) == (21, 20004, 4, 0)
    assert whole["best_jobs"] in (1, 2)
    assert f"-j {whole['best_jobs']}" in whole["advice"]
    base = whole["contenders"][0]["seconds"]
    for one in whole["contenders"]:
        check_figures(one, base)


def check_figures(one: dict[str, Any], base: list[float]) -> None:
    median = statistics.median(one["seconds"])
    assert len(one["seconds"]) == len(base)
    assert min(one["seconds"]) > 0
    assert one["median_seconds"] == pytest.approx(median, abs=1e-5)
    assert one["bytes_per_second"] == pytest.approx(20004 / median, rel=1e-3)
    assert one["files_per_second"] == pytest.approx(21 / median, rel=1e-2)
    each = [first / wall for first, wall in zip(base, one["seconds"], strict=True)]
    assert one["speed_up"] == pytest.approx(statistics.median(each), abs=2e-3)
    assert one["trouble"] is None
    assert one["command"]


@pytest.mark.parametrize("how", ["2>/dev/full", "2>&-"])
def test_a_bar_that_nobody_can_see_does_not_lose_the_figures(source: Path, place: Path, how: str) -> None:
    words = ["sh", "-c", f'exec "$0" -m pcopy "$@" {how}', sys.executable, *map(str, QUICK), "--json", "--progress"]
    done = subprocess.run([*words, str(source), str(place)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert [one["trouble"] for one in json.loads(done.stdout)["contenders"]] == [None, None]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"jobs": 2}, ["pcopy -j 1", "pcopy -j 2"]),
        ({"jobs": (1, 3)}, ["pcopy -j 1", "pcopy -j 3"]),
        ({"jobs": 1, "against": "cp"}, ["pcopy -j 1", "cp"]),
        ({"jobs": 1, "against": ["cp", "cp"]}, ["pcopy -j 1", "cp"]),
    ],
)
def test_one_number_and_one_tool_need_no_list(source: Path, place: Path, given: dict[str, Any], names: list[str]) -> None:
    assert [one.name for one in compare(source, place, rounds=1, **given).contenders] == names


def test_the_library_compares_as_the_command_line_does(source: Path, place: Path) -> None:
    comparison = compare(os.fsencode(source), place, jobs=[2], rounds=1)
    assert [one.name for one in comparison.contenders] == ["pcopy -j 1", "pcopy -j 2"]
    assert comparison.exit_status == 0
    assert not any(place.iterdir())


@pytest.mark.parametrize("wrong", [
        {"rounds": 0}, {"rounds": "5"}, {"rounds": True}, {"against": ["tar"]}, {"against": "tar"},
        {"jobs": [0]}, {"jobs": 0}, {"jobs": True}, {"jobs": [True]}, {"jobs": 2.5}, {"jobs": "4"},
        {"source": 5}, {"destination": 5},
    ], ids=str,
)  # fmt: skip
def test_the_library_refuses_by_an_exception(source: Path, place: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        compare(**{"source": source, "destination": place, **wrong})
    assert not any(place.iterdir())


@pytest.mark.parametrize("before", ["", "import pcopy.cli", "import pcopy.report", "pcopy.Comparison", "pcopy.compare"])
def test_the_library_call_is_a_function_whatever_was_imported_before(before: str) -> None:
    """A module of the package must not stand in its place once it is imported."""
    check = f"import pcopy\n{before}\nassert callable(pcopy.compare), pcopy.compare\nassert callable(pcopy.copy)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


# ---- other tools ----------------------------------------------------------------------------------------------------


@needs_rsync
def test_other_tools_are_measured_in_the_same_rounds(pcopy: Run, source: Path, place: Path) -> None:
    done = pcopy(*QUICK, "--against", "cp", "--against", "rsync", "--json", source, place)
    contenders = json.loads(done.stdout)["contenders"]
    assert [one["name"] for one in contenders] == ["pcopy -j 1", "pcopy -j 2", "cp", "rsync"]
    assert all(one["seconds"] and one["speed_up"] for one in contenders)
    assert [one["jobs"] for one in contenders] == [1, 2, None, None]
    assert not any(place.iterdir())


def test_a_tool_that_is_not_known_is_refused(pcopy: Run, source: Path, place: Path, witness: Mapping[str, str]) -> None:
    assert_refused(pcopy(*QUICK, "--against", "rsync", "--against", "tar", source, place, env=witness), "tar", "rsync", "cp")


def test_a_tool_that_is_not_installed_is_refused(pcopy: Run, source: Path, place: Path, witness: Mapping[str, str]) -> None:
    only_the_witness = {**witness, "PATH": witness["PATH"].partition(":")[0]}
    done = pcopy(*QUICK, "--against", "rsync", "--against", "cp", source, place, env=only_the_witness)
    assert_refused(done, "cp", "not installed")


@pytest.mark.parametrize(
    ("program", "why"),
    [("#!/bin/sh\necho no such luck >&2\nexit 3\n", "status 3: no such luck"), ("\x7fELF no program\n", "rror")],
    ids=["fails", "cannot be run"],
)
def test_a_contender_that_fails_is_named_and_the_others_are_measured(
    pcopy: Run, source: Path, place: Path, fake: Fake, program: str, why: str
) -> None:
    env = fake("rsync", program)
    env["PATH"] = env["PATH"].partition(":")[0]  # no other rsync is to be found
    done = pcopy(*QUICK, "--against", "rsync", source, place, env=env)
    assert (done.returncode, done.stderr) == (1, "")
    [line] = [line for line in done.stdout.splitlines() if line.startswith("rsync")]
    assert why in line
    assert [line[:10] for line in done.stdout.splitlines() if "█" in line] == ["pcopy -j 1", "pcopy -j 2"]
    assert not any(place.iterdir())


def test_json_says_which_contender_failed_and_why(pcopy: Run, source: Path, place: Path, fake: Fake) -> None:
    env = fake("rsync", "#!/bin/sh\necho no such luck\nexit 3\n")
    done = pcopy(*QUICK, "--against", "rsync", "--json", source, place, env=env)
    whole = json.loads(done.stdout)
    assert done.returncode == whole["exit_status"] == 1
    [rsync] = [one for one in whole["contenders"] if one["name"] == "rsync"]
    assert "no such luck" in rsync.pop("trouble")
    figures = ("median_seconds", "bytes_per_second", "files_per_second", "speed_up")
    assert (rsync["seconds"], {rsync[figure] for figure in figures}) == ([], {None})
    assert all(one["seconds"] and not one["trouble"] for one in whole["contenders"] if one["jobs"])


@pytest.mark.parametrize("said", [[], ["--json"], ["--chart", "out.png"]])
def test_when_all_contenders_fail_each_is_named(bound: Run, source: Path, place: Path, said: list[str]) -> None:
    """A file that cannot be read fails every copy."""
    (source / "a").chmod(0)
    if "--chart" in said:
        pytest.importorskip("matplotlib")
    done = bound(*QUICK, *said, source, place)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("failed with status 1") == 2
    assert "the single process failed" in done.stdout


# ---- the chart ------------------------------------------------------------------------------------------------------


def test_the_chart_is_a_picture(pcopy: Run, source: Path, tmp_path: Path, fake: Fake) -> None:
    image = pytest.importorskip("matplotlib.image")
    env = fake("rsync", "#!/bin/sh\nexit 3\n")
    for name, against in {"out.png": (), "out.svg": ("--against", "rsync")}.items():
        done = pcopy(*QUICK, *against, "--chart", name, source, env=env)
        assert (done.returncode, done.stderr) == (1 if against else 0, "")
        assert "█" in done.stdout
    pixels = image.imread(tmp_path / "out.png")
    assert pixels.shape[1] > pixels.shape[0] > 100
    assert pixels[..., :3].min() < 0.5 < pixels[..., :3].max()
    top = ElementTree.parse(tmp_path / "out.svg").getroot()
    assert top.tag == "{http://www.w3.org/2000/svg}svg"
    # matplotlib draws words as paths, with the word itself in a comment.
    words = (tmp_path / "out.svg").read_text()
    assert "pcopy -j 2" in words
    assert "rsync" not in words


@pytest.mark.parametrize(
    ("wall", "text"),
    [
        (0.00123, "0.00123"),
        (0.0456, "0.0456"),
        (0.5, "0.500"),
        (1.0, "1.00"),
        (12.34, "12.3"),
        (123.4, "123"),
        (1234.0, "1234"),
    ],
)
def test_the_seconds_on_the_chart_have_three_significant_figures(wall: float, text: str) -> None:
    assert chart.seconds(wall) == text


def test_a_chart_is_drawn_whatever_a_notebook_has_set(pcopy: Run, source: Path, tmp_path: Path) -> None:
    """Jupyter names a module of its own for matplotlib, which need not be installed where pcopy is."""
    pytest.importorskip("matplotlib")
    env = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = pcopy(*QUICK, "--chart", "out.png", source, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named_before_anything_is_measured(
    pcopy: Run, source: Path, place: Path, tmp_path: Path, witness: Mapping[str, str]
) -> None:
    blocker = """
        import sys
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "matplotlib":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.meta_path.insert(0, Blocker())
    """
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(textwrap.dedent(blocker))
    folders = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**witness, "PYTHONPATH": os.pathsep.join(folders)}
    done = pcopy(*QUICK, "--against", "rsync", "--chart", "out.png", source, place, env=env)
    assert_refused(done, "extra 'chart'")
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("chart", "word"), [("no/such/out.png", "no/such"), ("out.txt", ".png"), ("out", ".svg"), ("folder.png", "folder.png")]
)
def test_a_chart_that_cannot_be_written_is_refused_before_anything_is_measured(
    pcopy: Run, source: Path, tmp_path: Path, witness: Mapping[str, str], chart: str, word: str
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "folder.png").mkdir()
    assert_refused(pcopy(*QUICK, "--against", "rsync", "--chart", chart, source, env=witness), "--chart", word)


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["source/a", "missing"])
def test_a_source_that_is_no_directory_is_refused(
    pcopy: Run, source: Path, place: Path, witness: Mapping[str, str], given: str
) -> None:
    before = sorted(os.listdir(source.parent))
    assert_refused(pcopy(*QUICK, "--against", "rsync", source.parent / given, env=witness), given)
    assert_refused(pcopy(*QUICK, "--against", "rsync", source.parent / given, place, env=witness), given)
    assert sorted(os.listdir(source.parent)) == before
    assert not any(place.iterdir())


@pytest.mark.parametrize("given", ["missing", "source/a", "source", "source/", "source/d/e", "link"])
def test_a_destination_that_is_missing_or_a_file_or_in_the_source_is_refused(
    pcopy: Run, source: Path, witness: Mapping[str, str], given: str
) -> None:
    (source.parent / "link").symlink_to("source/d")
    before = sorted(source.parent.rglob("*"))
    done = pcopy(*QUICK, "--against", "rsync", source, f"{source.parent}/{given}", env=witness)
    assert_refused(done, given)
    assert sorted(source.parent.rglob("*")) == before


def test_a_source_that_holds_the_directory_for_temporary_files_is_refused(
    bound: Run, source: Path, witness: Mapping[str, str]
) -> None:
    """pcopy --compare /tmp, by somebody who may not write to / ."""
    source.parent.chmod(0o555)
    try:
        env = {**witness, "TMPDIR": str(source / "d")}
        assert_refused(bound(*QUICK, "--against", "rsync", source, env=env), str(source))
    finally:
        source.parent.chmod(0o755)
    assert os.listdir(source / "d") == ["e"]


@pytest.mark.parametrize("entries", [{}, {"d": Dir({"e": Dir()})}], ids=["nothing", "directories"])
def test_a_source_without_files_is_refused(
    pcopy: Run, tmp_path: Path, place: Path, witness: Mapping[str, str], entries: dict[str, object]
) -> None:
    source = make_tree(tmp_path / "empty", entries)
    assert_refused(pcopy(*QUICK, "--against", "rsync", source, place, env=witness), str(source), "no files")
    assert not any(place.iterdir())


def test_copies_that_contradict_themselves_are_refused(pcopy: Run, source: Path, witness: Mapping[str, str]) -> None:
    words = ("--reflink", "always", "--sparse", "never")
    assert_refused(pcopy(*QUICK, "--against", "rsync", *words, source, env=witness), "leave sparse at 'auto'")


def test_what_makes_no_sense_is_refused(pcopy: Run, source: Path, place: Path) -> None:
    for words in (
        ("-j", "0"), ("-j", "2,x"), ("--rounds", "0"), ("--dry-run",), ("--overwrite", "always"), ("--verbose",), ("more",),
    ):  # fmt: skip
        done = pcopy("--compare", source, place, *words)
        assert done.returncode == 2, words
        assert "Traceback" not in done.stderr
    assert not any(place.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """1 MiB and 60 inodes."""
    (tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=60", "tmpfs", str(tmp_path / "disk")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@as_root
@pytest.mark.parametrize(
    "entries",
    [
        {"large": b"x" * (2 << 20)},
        {f"f{number}": b"" for number in range(100)},
        {"f": b"", **{f"d{number}": Dir() for number in range(100)}},
    ],
    ids=["bytes", "files", "directories"],
)
def test_a_tree_that_has_no_room_is_refused(
    pcopy: Run, tmp_path: Path, small_disk: Path, witness: Mapping[str, str], entries: dict[str, object]
) -> None:
    source = make_tree(tmp_path / "source", entries)
    done = pcopy(*QUICK, "--against", "rsync", source, small_disk, env=witness)
    assert_refused(done, str(small_disk), "needed", "free")
    assert not any(small_disk.iterdir())


@as_root
def test_a_sample_that_has_no_room_is_refused(pcopy: Run, small_disk: Path, witness: Mapping[str, str]) -> None:
    done = pcopy(*QUICK, "--against", "rsync", env={**witness, "TMPDIR": str(small_disk)})
    assert_refused(done, str(small_disk), "needed", "free")
    assert not any(small_disk.iterdir())


@as_root
def test_the_room_is_that_of_what_is_copied(pcopy: Run, tmp_path: Path, small_disk: Path) -> None:
    """Of names of one inode the contents count once, a link's target where they are followed, holes that are filled."""
    many = make_tree(tmp_path / "many", {"a": b"x" * 300_000, **{name: Hard("a") for name in "bcde"}})
    done = pcopy(*QUICK, many, small_disk)
    assert done.returncode == 0, done.stderr
    assert "5 files, 300.0 kB" in done.stdout
    assert_refused(pcopy(*QUICK, "--no-preserve", "links", many, small_disk), str(small_disk), "1.7 MB are needed", "free")
    (tmp_path / "large").write_bytes(b"x" * (2 << 20))
    linked = make_tree(tmp_path / "linked", {"a": b"x", "l": Link("../large"), "round": Link("../linked")})
    assert_refused(pcopy(*QUICK, "-L", linked, small_disk), str(small_disk), "2.3 MB are needed", "free")
    holes = make_tree(tmp_path / "holes", {"a": Holes(2 << 20)})
    assert_refused(pcopy(*QUICK, "--sparse", "never", holes, small_disk), str(small_disk), "2.3 MB are needed", "free")
    assert pcopy(*QUICK, holes, small_disk).returncode == 0
    assert not any(small_disk.iterdir())


@as_root
def test_what_is_on_another_file_system_does_not_count_where_it_is_left_out(pcopy: Run, small_disk: Path, place: Path) -> None:
    (small_disk / "f").write_bytes(b"x" * 1000)
    work = make_tree(small_disk.parent / "top", {"a": b"x" * 24, "mounted": Dir({})})
    subprocess.run(["mount", "--bind", small_disk, work / "mounted"], check=True)
    try:
        for words, what in ((("-x",), "1 file, 24 bytes"), ((), "2 files, 1.0 kB")):
            done = pcopy(*QUICK, *words, work, place)
            assert done.returncode == 0, done.stderr
            assert what in done.stdout
    finally:
        subprocess.run(["umount", work / "mounted"], check=True)


def test_a_sample_that_cannot_be_written_is_named_and_removed(pcopy: Run, place: Path) -> None:
    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = pcopy(*QUICK, env={**os.environ, "TMPDIR": str(place)}, preexec_fn=limit_files)
    assert_refused(done, str(place), "the sample tree cannot be written: File too large")
    assert not any(place.iterdir())


# ---- nothing is left behind -----------------------------------------------------------------------------------------


def still_running(mark: str) -> list[int]:
    """The processes that have this mark in their environment; those that have ended have none."""
    found = []
    for one in Path("/proc").iterdir():
        if one.name.isdigit():
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}\0".encode() in (one / "environ").read_bytes():
                    found.append(int(one.name))
    return found


def started(
    place: Path, *words: object, command: Sequence[str] = (), env: Mapping[str, str] = os.environ, copying: str = "*/*"
) -> subprocess.Popen[str]:
    """A comparison in a session of its own, in the middle of making a copy."""
    line = [*command, sys.executable, "-m", "pcopy", *(str(word) for word in words)]
    process = subprocess.Popen(
        line, env={**env, MARK: str(place), "TMPDIR": str(place)}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(FileNotFoundError):  # one that was whole is removed meanwhile (Python 3.10 tells)
            if any(place.glob(f"pcopy-compare-*/{copying}")):
                return process
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no copy was begun"
        time.sleep(0.005)


def assert_nothing_left(place: Path) -> None:
    assert os.listdir(place) == []
    deadline = time.monotonic() + 5
    while still_running(str(place)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert still_running(str(place)) == []
    assert os.listdir(place) == []


def assert_ended(process: subprocess.Popen[str], place: Path, number: int) -> None:
    """It said so, it left nothing, and no process of it is left that could still write something."""
    try:
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 128 + number, stderr
        assert "interrupted" in stderr
        assert "Traceback" not in stderr
        assert_nothing_left(place)
    finally:
        for one in still_running(str(place)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        process.wait()
        subprocess.run(["chmod", "-R", "u+w", place], check=False)


MOMENTS = [0.0, 0.04, 0.15]


@pytest.mark.parametrize("after", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_copy_runs_leaves_nothing_behind(busy_source: Path, place: Path, number: int, after: float) -> None:
    """Ctrl-C goes to the whole process group, SIGTERM to the process alone."""
    process = started(place, *LONG, busy_source, place)
    time.sleep(after)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    assert_ended(process, place, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_leaves_nothing_behind(busy_source: Path, place: Path, number: int) -> None:
    """As a session does that ends."""
    process = started(place, *LONG, busy_source, place)
    os.killpg(process.pid, number)
    assert_ended(process, place, number)


def test_two_signals_at_once_are_told_as_one(busy_source: Path, place: Path) -> None:
    """As of systemd with SendSIGHUP=yes. Stopped, a process finds both when it goes on."""
    process = started(place, *LONG, busy_source, place)
    for number in (signal.SIGSTOP, signal.SIGHUP, signal.SIGTERM, signal.SIGCONT):
        os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr.splitlines()) == (128 + signal.SIGHUP, ["interrupted: every copy is removed"])
    assert_nothing_left(place)


@as_root
def test_a_copy_that_cannot_be_removed_ends_the_measuring(pcopy: Run, source: Path, place: Path, tmp_path: Path) -> None:
    """Who came after it would find its files unchanged, and be quick."""
    if not shutil.which("bindfs"):
        pytest.skip("needs bindfs")
    (tmp_path / "kept").mkdir()
    words = ["bindfs", "--delete-deny", str(tmp_path / "kept"), str(place)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("FUSE cannot be mounted here")
    try:
        done = pcopy(*QUICK, source, place)
    finally:
        subprocess.run(["umount", place], check=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert "its copy cannot be removed: rm: cannot remove" in done.stdout
    assert "not run: the copy before its own could not be removed" in done.stdout


@pytest.mark.parametrize("between", [0.002, 0.02, 0.1])
def test_somebody_who_keeps_pressing_ctrl_c_leaves_nothing_behind(busy_source: Path, place: Path, between: float) -> None:
    process = started(place, *LONG, busy_source, place)
    for _ in range(6):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(between)
    assert_ended(process, place, signal.SIGINT)


@pytest.mark.parametrize("after", [0.0, 0.1])
def test_another_tool_is_ended_with_all_that_it_has_started(source: Path, place: Path, fake: Fake, after: float) -> None:
    """As fpsync does, it writes by processes of its own, which nobody has told that it is over."""
    program = """
        import contextlib, os, sys, time
        os.mkdir(sys.argv[3])
        os.fork()
        for number in range(60_000):
            with contextlib.suppress(OSError):
                open(f"{sys.argv[3]}/{os.getpid()}-{number}", "w").close()
            time.sleep(0.001)
    """
    env = fake("cp", f"#!{sys.executable}\n" + textwrap.dedent(program))
    process = started(place, *QUICK, "--against", "cp", source, place, env=env, copying="copy/*-*")
    time.sleep(after)
    os.kill(process.pid, signal.SIGTERM)
    assert_ended(process, place, signal.SIGTERM)


INTERRUPTED = """
import os, shutil, signal, subprocess, sys, tempfile
def then_interrupted(function):
    def both(*given, **named):
        result = function(*given, **named)
        if {when}:
            os.kill(os.getpid(), signal.SIGINT)
        return result
    return both
{what} = then_interrupted({what})
from pcopy.cli import main
main()
"""


@pytest.mark.parametrize(
    ("what", "when"),
    [
        ("subprocess.Popen.__init__", "'rsync' in given[1]"),
        ("tempfile.mkdtemp", "'pcopy-compare-' in named['prefix']"),
        ("os.close", "sys._getframe(1).f_code.co_filename == shutil.__file__"),
    ],
)
def test_a_signal_at_the_worst_moment_leaves_nothing_behind(
    source: Path, place: Path, fake: Fake, what: str, when: str
) -> None:
    """When a contender or the directory is there, or a directory of a copy closed, and nobody has been told of it yet."""
    env = fake("rsync", "#!/bin/sh\nexec sleep 30\n")
    words = ["--compare", "-j", "1", "--rounds", "1", "--against", "rsync", str(source), str(place)]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED.format(what=what, when=when), *words], env={**env, MARK: str(place)}, text=True,
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert_ended(process, place, signal.SIGINT)


@pytest.mark.parametrize("after", [0.04 * count for count in range(16)])
def test_a_signal_at_any_moment_leaves_nothing_behind(busy_source: Path, place: Path, after: float) -> None:
    """From before it has read its command line on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pcopy", *map(str, LONG), str(busy_source), str(place)], env={**os.environ, MARK: str(place)},
        text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    try:
        _, stderr = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, stderr = process.communicate()
        if "Exception ignored in" in stderr:
            pytest.skip("the interpreter lost it in a callback of an import")
        raise
    told = "interrupted" in stderr
    if "Fatal Python error" in stderr or "Could not import runpy" in stderr:
        pytest.skip("the interpreter had not started yet")
    assert process.returncode == (128 + signal.SIGINT if told else -signal.SIGINT), stderr
    assert_nothing_left(place)


def test_a_signal_while_the_sample_is_made_leaves_nothing_behind(place: Path) -> None:
    process = started(place, *LONG)
    os.killpg(process.pid, signal.SIGINT)
    assert_ended(process, place, signal.SIGINT)


@pytest.fixture(params=["closed", "deeper than a path is long", "deeper than recursion goes"])
def awkward_source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Directories that may not be written to, or that lie very deep. Holds one file where the last directory is."""
    top = tmp_path / "around" / "awkward"
    if request.param == "closed":
        inner: dict[str | bytes, object] = {f"d{at}": Dir({"l": Dir(mode=0o555)}, mode=0o555) for at in range(100)}
        make_tree(top, {"closed": Dir({**inner, "bottom": b""}, mode=0o555)}, mode=0o555)
    elif request.param == "deeper than a path is long":
        make_deep(top, "a" * 200, 25)
    else:
        make_deep(top, "d", 1050)
    yield top
    # What pytest removes with cannot remove these.
    subprocess.run(["chmod", "-R", "u+w", top], check=True)
    subprocess.run(["rm", "-rf", top], check=True)


def make_deep(top: Path, name: str, levels: int) -> None:
    """A directory in a directory in a directory, and a file at the bottom."""
    top.mkdir(parents=True)
    handle = os.open(top, os.O_PATH)
    for _ in range(levels):
        os.mkdir(name, dir_fd=handle)
        below = os.open(name, os.O_PATH, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=handle))
    os.close(handle)


def test_copies_that_are_hard_to_remove_are_removed(bound: Run, awkward_source: Path, place: Path) -> None:
    done = bound("--compare", "-j", 1, "--rounds", 1, awkward_source, place)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert os.listdir(place) == []
    assert done.stdout.startswith("1 file, ")


def test_copies_that_are_hard_to_remove_are_removed_after_a_signal(awkward_source: Path, place: Path) -> None:
    process = started(place, *LONG, awkward_source, place, command=binding())
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert_ended(process, place, signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_meets_a_finalizer_ends_it_too(number: int) -> None:
    """Popen has one, and what is raised in it goes nowhere."""
    code = f"""
import os, time
from pcopy.terminal import ended_by_signals

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), {number:d})
        time.sleep(0)

with ended_by_signals():
    Finalized()
    time.sleep(20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (128 + number, "interrupted: every copy is removed\n")
