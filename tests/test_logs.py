"""Records of a run: the log as lines of JSON, the metrics for Prometheus, and the schemas in the README."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from referencing import Registry
from referencing.jsonschema import DRAFT202012

import pcopy as library
from pcopy.metrics import HELP, exposition
from tests.conftest import Run, as_root
from tests.test_destination import mounted
from tests.trees import Dir, Hard, Link, make_tree, read_tree

README = Path(__file__).parent.parent / "README.md"
JOBS = pytest.mark.parametrize("jobs", [2])
ODD = b'\xff\xfe \x1b[31m "\\ \n caf\xe9'


def schema(name: str) -> dict[str, Any]:
    """As it stands in the README."""
    found = re.search(rf"<!-- schema: {name} -->\n```json\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert found, name
    return json.loads(found[1])  # type: ignore[no-any-return]


REGISTRY: Registry[Any] = Registry().with_resources(
    [(name, DRAFT202012.create_resource(schema(name))) for name in ("report", "log")]
)
VALIDATORS = {name: jsonschema.Draft202012Validator(schema(name), registry=REGISTRY) for name in ("report", "log")}


def check(value: object, name: str) -> None:
    VALIDATORS[name].validate(value)


def lines_of(log: Path) -> list[dict[str, Any]]:
    """All lines of a log, each checked against the schema."""
    text = log.read_text("ascii")
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        check(line, "log")
    return lines


def events_of(lines: list[dict[str, Any]]) -> Counter[str]:
    return Counter(line["event"] for line in lines)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    below: dict[str | bytes, object] = {f"f{number}": "x" * number for number in range(20)}
    return make_tree(tmp_path / "src", {"a": "text", "d": Dir(below), "l": Link("a"), "h": Hard("a")})


# ---- the schemas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["report", "log"])
def test_the_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))


@pytest.mark.parametrize(
    "line",
    [
        {"event": "copied"},
        {"event": "copied", "path": b"/a".decode(), "bytes": -1},
        {"event": "copied", "path": "/a", "colour": 1},
        {"event": "invented", "path": "/a"},
        {"event": "failed", "path": "/a"},
        {"event": "finished"},
        {"event": "finished", "report": {"files": 1}},
    ],
    ids=str,
)
def test_the_schema_of_the_log_refuses_what_is_wrong(line: dict[str, Any]) -> None:
    good = {"time": "2026-01-02T03:04:05.000006Z", "run": "1-0123abcd"}
    check({**good, "event": "copied", "path": "/a", "bytes": 1, "why": "new"}, "log")
    with pytest.raises(jsonschema.ValidationError):
        check({**good, **line}, "log")


@JOBS
def test_a_log_tells_the_same_with_verbose_but_for_what_stays_as_it_is(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    """Without, directories that hold nothing but plain files are done another way, and so are runs of these."""
    below: dict[str | bytes, object] = {f"f{number}": "x" * number for number in range(20)}
    entries: dict[str | bytes, object] = {f"d{number}": Dir({**below, "e": Dir(below)}) for number in range(4)}
    entries["mixed"] = Dir({**below, "link": Link("f1"), "hard": Hard("d1/f3"), "x": Dir({})})
    source = make_tree(tmp_path / "src", {**entries, "top": "text"})

    def change() -> None:
        (source / "d1/f3").write_text("changed")
        (source / "d2/e/f4").unlink()
        (source / "d3/new").write_text("new")
        (source / "d3/e").chmod(0o700)
        (source / "mixed/f5").chmod(0o600)

    for step in ("first", "again", "changed"):
        if step == "changed":
            change()
        if step != "again":
            time.sleep(2.1)  # what is younger is done by the general way
        told: list[Counter[tuple[object, ...]]] = []
        for copy, more in (("brief", []), ("verbose", ["-v"])):
            log = tmp_path / f"log-{copy}"
            log.unlink(missing_ok=True)
            assert pcopy("-j", jobs, *more, "--delete", "--log", log, "src", copy).returncode == 0
            lines = [line for line in lines_of(log) if line["event"] not in ("started", "finished", "unchanged", "directory")]
            paths = [line["path"].replace(f"/{copy}/", "/") for line in lines]
            told.append(
                Counter(
                    (line["event"], path, line.get("why"), line.get("bytes")) for line, path in zip(lines, paths, strict=True)
                )
            )
        assert told[0] == told[1]
        assert bool(told[0]) == (step != "again")
    assert {what for what, *_ in told[0]} == {"copied", "linked", "updated", "deleted"}


@JOBS
def test_the_report_is_as_its_schema_says(tmp_path: Path, source: Path, pcopy: Run, jobs: int) -> None:
    (tmp_path / "dst/a/in the way").mkdir(parents=True)
    for status in (1, 1):
        done = pcopy("-j", jobs, "--json", "src", "dst")
        assert done.returncode == status
        check(json.loads(done.stdout), "report")
    report = json.loads(done.stdout)
    for key in report:
        with pytest.raises(jsonschema.ValidationError):
            check({name: value for name, value in report.items() if name != key}, "report")
        with pytest.raises(jsonschema.ValidationError):
            check({**report, key: object()}, "report")


# ---- the log --------------------------------------------------------------------------------------------------------


@JOBS
def test_the_log_tells_a_run_from_its_start_to_its_end(tmp_path: Path, source: Path, pcopy: Run, jobs: int) -> None:
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    done = pcopy("-j", jobs, "--json", "--log", "log", "src", "dst")
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 1, "the log is no reason to name entries on the terminal"
    lines = lines_of(tmp_path / "log")
    assert events_of(lines) == {"started": 1, "copied": 22, "linked": 1, "made": 2, "finished": 1}
    assert (lines[0]["event"], lines[-1]["event"]) == ("started", "finished")
    assert (lines[0]["sources"], lines[0]["destination"], lines[0]["jobs"]) == ([str(source)], f"{tmp_path}/dst", jobs)
    assert lines[-1]["report"] == json.loads(done.stdout)
    assert len({line["run"] for line in lines}) == 1
    times = [datetime.strptime(line["time"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc) for line in lines]
    assert before < times[0] <= times[-1] <= datetime.now(timezone.utc)
    assert times == sorted(times)
    sizes = {os.path.relpath(line["path"], source): line.get("bytes") for line in lines if line["event"] == "copied"}
    assert sizes == {"a": 4, "l": None, **{f"d/f{number}": number for number in range(20)}}


@JOBS
def test_deletions_links_to_earlier_copies_and_what_is_hidden_are_in_the_log(
    tmp_path: Path, source: Path, pcopy: Run, jobs: int
) -> None:
    assert pcopy("-j", jobs, "src", "day1").returncode == 0
    dst = make_tree(tmp_path / "dst", {"gone": Dir({"x": "1"}), "a": Dir({"y": "2"})})
    words = ("-j", jobs, "--delete", "--link-dest", "../day1", "--exclude", "f1?", "src", "dst")
    for more in (["-n"], []):
        for verbose in ([], ["-v"]):
            if not more and verbose:
                break
            log = tmp_path / f"log{len(more)}{len(verbose)}"
            assert pcopy("--log", log, *more, *verbose, *words).returncode == 0
            lines = lines_of(log)
            deleted = {line["path"] for line in lines if line["event"] == "deleted"}
            assert deleted == {f"{dst}/gone", f"{dst}/gone/x", f"{dst}/a", f"{dst}/a/y"}
            linked = {os.path.relpath(line["path"], source): line["why"] for line in lines if line["event"] == "linked"}
            assert linked == {"a": "kind", "h": "new", **{f"d/f{n}": "earlier" for n in range(20) if not 10 <= n < 20}}
            hidden = {line["path"] for line in lines if line["event"] == "hidden"}
            assert hidden == ({f"{source}/d/f1{n}" for n in range(10)} if verbose else set())
            report = lines[-1]["report"]
            assert (report["deleted"], report["hardlinks"], report["skipped"]) == (4, 12, 10)


@JOBS
def test_later_runs_append_and_tell_what_is_unchanged_only_if_asked(
    tmp_path: Path, source: Path, pcopy: Run, jobs: int
) -> None:
    for options in ([], [], ["-v"]):
        assert pcopy("-j", jobs, *options, "--log", "log", "src", "dst").returncode == 0
        (source / "d/f1").chmod(0o600)
    lines = lines_of(tmp_path / "log")
    runs = list(dict.fromkeys(line["run"] for line in lines))
    first, second, third = ([line for line in lines if line["run"] == run] for run in runs)
    assert events_of(first)["copied"] == 22
    assert events_of(second) == {"started": 1, "updated": 1, "finished": 1}
    assert next(line["why"] for line in second if line["event"] == "updated") == "mode"
    assert events_of(third) == {"started": 1, "directory": 2, "unchanged": 23, "finished": 1}


@JOBS
def test_failures_and_warnings_are_in_the_log(tmp_path: Path, source: Path, pcopy: Run, jobs: int) -> None:
    (tmp_path / "dst/d/f7/in the way").mkdir(parents=True)
    done = pcopy("-j", jobs, "--log", "log", "src", "dst")
    assert done.returncode == 1
    (failed,) = [line for line in lines_of(tmp_path / "log") if line["event"] == "failed"]
    assert (failed["path"], failed["operation"]) == (f"{source}/d/f7", "remove directory")
    assert "move or remove it" in failed["reason"]
    assert lines_of(tmp_path / "log")[-1]["report"]["exit_status"] == 1


def test_warnings_are_in_the_log(tmp_path: Path) -> None:
    log = library.Log(tmp_path / "log")
    log.started(["/a"], "/b", library.options.Options())
    log.finished(library.Report(warnings=["beware"], lost={"owner": 3}))
    told = [line["reason"] for line in lines_of(tmp_path / "log") if line["event"] == "warning"]
    assert told == ["beware", "owner: could not be preserved on 3 of the copies"]


def test_names_come_back_from_the_log_byte_for_byte(tmp_path: Path, pcopy: Run) -> None:
    entries: dict[str | bytes, object] = {ODD: "text"}
    source = make_tree(tmp_path / "src", entries)
    assert pcopy("--log", "log", "src", "dst").returncode == 0
    (copied,) = [line for line in lines_of(tmp_path / "log") if line["event"] == "copied"]
    assert os.fsencode(copied["path"]) == os.fsencode(source) + b"/" + ODD


def test_each_line_of_a_dry_run_says_that_it_is_one(tmp_path: Path, source: Path, pcopy: Run) -> None:
    assert pcopy("-n", "--log", "log", "src", "dst").returncode == 0
    planned = lines_of(tmp_path / "log")
    assert all(line["dry_run"] for line in planned)
    assert not (tmp_path / "dst").exists()
    assert pcopy("--log", "log", "src", "dst").returncode == 0
    done = lines_of(tmp_path / "log")[len(planned) :]
    assert not any("dry_run" in line for line in done)

    def told(lines: list[dict[str, Any]]) -> list[str]:
        return sorted(f"{line['event']} {line.get('path')} {line.get('why')} {line.get('bytes')}" for line in lines)

    assert told(planned) == told(done)


def test_an_interrupted_run_is_logged_as_far_as_it_came(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {f"f{number}": "x" * 10 for number in range(100)})

    class Ends(library.Observer):
        def progress(self, progress: library.Progress) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    log, metrics = library.Log(tmp_path / "log"), library.Metrics(tmp_path / "m.prom")
    with pytest.raises(KeyboardInterrupt):
        library.copy(source, tmp_path / "dst", jobs=1, observer=[log, metrics, Ends()])
    assert lines_of(tmp_path / "log")[-1]["report"]["exit_status"] == 130
    assert values_of(tmp_path / "m.prom")["exit_status"] == 130


def test_lines_are_in_the_log_while_the_run_goes_on(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", {f"f{number}": "x" for number in range(600)})
    seen: list[int] = []

    class Looks(library.Observer):
        def progress(self, progress: library.Progress) -> None:
            seen.append(len(lines_of(tmp_path / "log")) - progress.done)

    report = library.copy(source, tmp_path / "dst", jobs=1, observer=[library.Log(tmp_path / "log"), Looks()])
    assert report.ok
    assert set(seen) == {2}  # the start and the directory, besides the files


def test_the_modes_of_the_files_are_as_the_readme_says(tmp_path: Path, source: Path, pcopy: Run) -> None:
    assert pcopy("--log", "log", "--metrics", "m.prom", "src", "dst", umask=0o022).returncode == 0
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("log", "m.prom")]
    assert modes == [0o640, 0o644]
    text = README.read_text("utf-8")
    assert "made with mode 0640" in text


def test_half_a_line_of_a_killed_run_spoils_no_line_of_the_next(tmp_path: Path, source: Path, pcopy: Run) -> None:
    (tmp_path / "log").write_text('{"half": "a li')
    assert pcopy("--log", "log", "src", "dst").returncode == 0
    half, *lines = (tmp_path / "log").read_text().splitlines()
    assert half == '{"half": "a li'
    assert json.loads(lines[0])["event"] == "started"


@JOBS
@as_root
def test_a_log_on_a_full_disk_stops_no_copy_but_is_an_error(tmp_path: Path, pcopy: Run, jobs: int) -> None:
    names: dict[str | bytes, object] = {f"{number}-{'long' * 40}": "x" for number in range(1000)}
    source = make_tree(tmp_path / "src", names)
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=64k", "none") as small:
        done = pcopy("-j", jobs, "--log", small / "log", "--metrics", "m.prom", "src", "dst")
        error, last = done.stderr.splitlines()
        lines = (small / "log").read_text().splitlines()
    assert done.returncode == 1
    assert error.startswith(f"pcopy: {small}/log: write the log: No space left on device")
    assert last.startswith("copied 1,000 files") and last.endswith(" 0 failed")
    assert read_tree(tmp_path / "dst") == read_tree(source)
    assert json.loads(lines[0])["event"] == "started"
    values = values_of(tmp_path / "m.prom")
    assert (values["exit_status"], values["errors"], values["failed"]) == (1, 1, 0)


def test_when_there_is_room_again_the_end_is_in_the_log(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one error, and the torn line closed."""
    write, calls = os.write, iter([30, 0])

    def full(handle: int, data: bytes) -> int:
        if os.readlink(f"/proc/self/fd/{handle}") != str(tmp_path / "log") or b'"started"' in bytes(data):
            return write(handle, data)
        part = next(calls, None)
        if part == 0:
            raise OSError(28, "No space left on device")
        return write(handle, data[:part])

    monkeypatch.setattr(os, "write", full)
    report = library.copy(source, tmp_path / "dst", jobs=1, observer=library.Log(tmp_path / "log"))
    assert [one.operation for one in report.errors] == ["write the log"]
    assert report.exit_status == 1
    _, torn, *rest = (tmp_path / "log").read_text().splitlines()
    assert len(torn) == 30
    assert [json.loads(line)["event"] for line in rest] == ["failed", "finished"]
    assert json.loads(rest[-1])["report"]["exit_status"] == 1


def test_a_destination_that_cannot_be_used_is_logged(tmp_path: Path, source: Path, pcopy: Run) -> None:
    import fcntl

    (tmp_path / "dst").mkdir()
    handle = os.open(tmp_path / "dst", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    done = pcopy("--log", "log", "--metrics", "m.prom", "src", "dst")
    os.close(handle)
    assert done.returncode == 3
    assert events_of(lines_of(tmp_path / "log")) == {"started": 1, "failed": 1, "finished": 1}
    assert values_of(tmp_path / "m.prom")["exit_status"] == 3


# ---- metrics --------------------------------------------------------------------------------------------------------

SAMPLE = re.compile(r'pcopy_([a-z_]+)\{((?:[a-z]+="(?:[^"\\\n]|\\\\|\\"|\\n)*",?)*)\} (-?[0-9.e+]+)')


def values_of(metrics: Path) -> dict[str, float]:
    """The values of a file in Prometheus' text format, which is checked by its grammar."""
    text = metrics.read_text("utf-8")
    assert text.endswith("\n")
    values: dict[str, float] = {}
    lines = iter(text.splitlines())
    for help_line in lines:
        type_line, sample = next(lines), next(lines)
        found = SAMPLE.fullmatch(sample)
        assert found, sample
        assert help_line.startswith(f"# HELP pcopy_{found[1]} ")
        assert type_line == f"# TYPE pcopy_{found[1]} gauge"
        assert found[1] not in values
        values[found[1]] = float(found[3])
    return values


@JOBS
def test_the_metrics_are_those_of_the_last_run(tmp_path: Path, source: Path, pcopy: Run, jobs: int) -> None:
    for _ in range(2):
        began = time.time()
        done = pcopy("-j", jobs, "--json", "--metrics", "m.prom", "src", "dst")
        assert done.returncode == 0
        report, values = json.loads(done.stdout), values_of(tmp_path / "m.prom")
        assert began - 1 < values.pop("last_run_timestamp_seconds") < time.time() + 1
        assert values.pop("duration_seconds") == pytest.approx(report["seconds"])
        assert (values.pop("errors"), values.pop("warnings")) == (0, 0)
        assert values == {key: report[key] for key in values}
        assert {"files", "bytes", "failed", "unchanged", "deleted", "exit_status"} <= set(values)
    assert f'{{source="{source}",destination="{tmp_path}/dst"}}' in (tmp_path / "m.prom").read_text()
    assert set(HELP) == set(values_of(tmp_path / "m.prom"))
    assert sorted(os.listdir(tmp_path)) == ["dst", "m.prom", "src"]  # and no temporary file


def test_labels_are_escaped(tmp_path: Path, pcopy: Run) -> None:
    text = exposition({"files": 1}, {"source": 'a"b\\c\nd\x1b\udcff\u2028é'})
    assert text.splitlines()[-1] == 'pcopy_files{source="a\\"b\\\\c\\nd\\\\x1b\\\\xff\\\\u2028é"} 1'
    name = os.fsdecode(ODD)
    make_tree(tmp_path / name, {"a": "1"})
    assert pcopy("--metrics", "m.prom", name, "dst").returncode == 0
    assert values_of(tmp_path / "m.prom")["files"] == 1


def test_a_failed_run_has_metrics_too(tmp_path: Path, source: Path, pcopy: Run) -> None:
    (tmp_path / "dst/a/in the way").mkdir(parents=True)
    assert pcopy("--metrics", "m.prom", "--no-preserve", "links", "src", "dst").returncode == 1
    values = values_of(tmp_path / "m.prom")
    assert (values["exit_status"], values["failed"], values["errors"]) == (1, 1, 1)


def test_the_metrics_are_replaced_whole(tmp_path: Path, source: Path, pcopy: Run) -> None:
    old_text = "# HELP pcopy_files old\n"
    (tmp_path / "m.prom").write_text(old_text)
    with open(tmp_path / "m.prom") as old:
        assert pcopy("--metrics", "m.prom", "src", "dst").returncode == 0
        assert old.read() == old_text
    assert values_of(tmp_path / "m.prom")["files"] == 21


def test_metrics_that_cannot_be_written_at_the_end_are_an_error(tmp_path: Path, source: Path) -> None:
    class Removes(library.Observer):
        def progress(self, progress: library.Progress) -> None:
            if (tmp_path / "gone").exists():
                (tmp_path / "gone").rmdir()

    (tmp_path / "gone").mkdir()
    report = library.copy(source, tmp_path / "dst", jobs=1, observer=[library.Metrics(tmp_path / "gone/m.prom"), Removes()])
    assert [(one.operation, one.errno) for one in report.errors] == [("write the metrics", 2)]
    assert (report.exit_status, report.files) == (1, 21)


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--log", "missing/log"], "log missing/log: its directory does not exist"),
        (["--log", "directory"], "log directory: is a directory"),
        (["--log", "link"], "log link: is a symbolic link"),
        (["--log", "dangling"], "log dangling: is a symbolic link"),
        (["--log", "pipe"], "log pipe: is not a regular file"),
        (["--log", "target"], "log target: is there and is no log of pcopy"),
        (["--log", "/dev/null"], "is not a regular file"),
        (["--log", ""], "log"),
        (["--metrics", "missing/m.prom"], "metrics missing/m.prom: its directory does not exist"),
        (["--metrics", "directory"], "is a directory"),
        (["--metrics", ""], "is a directory"),
        (["--metrics", "pipe"], "metrics pipe: is there and is no regular file"),
        (["--metrics", "/dev/null"], "is there and is no regular file"),
        (["--metrics", "m" * 300], "File name too long"),
        (["--log", "l" * 300], "File name too long"),
        (["--manifest", "s" * 300], "File name too long"),
        (["--metrics", "target"], "has no metrics of pcopy"),
        (["--metrics", "m.prom", "-n"], "a dry run has none"),
        (["--log", "new", "--metrics", "directory"], "is a directory"),
        (["--log", "new", "--metrics", "new"], "a file each"),
        (["--log", "new", "missing"], "missing"),
        (["--compare", "--log", "new"], "--compare"),
        (["--compare", "--metrics", "new"], "--compare"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_touches_nothing(
    tmp_path: Path, source: Path, pcopy: Run, options: list[str], says: str
) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    before = read_tree(tmp_path)
    done = pcopy(*options, "src", "dst")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("pcopy: ") and says in line
    assert read_tree(tmp_path) == before


@pytest.mark.parametrize("option", ["--log", "--metrics", "--manifest"])
def test_a_record_may_have_as_long_a_name_as_there_can_be(tmp_path: Path, source: Path, pcopy: Run, option: str) -> None:
    assert pcopy(option, "n" * 255, "src", "dst").returncode == 0
    assert (tmp_path / ("n" * 255)).stat().st_size


@pytest.mark.parametrize("option", ["--log", "--metrics"])
def test_the_copy_of_something_does_not_take_the_place_of_a_record(tmp_path: Path, pcopy: Run, option: str) -> None:
    """As in a chain of copies, each with its log in it: the first one's log is in the second one's source."""
    source = make_tree(tmp_path / "src", {"f": b"1", "record": b"", "d": Dir({"record": b""})})
    before = read_tree(source)
    for place in ("dst/record", "dst/d/record"):
        (tmp_path / place).parent.mkdir(parents=True)
        done = pcopy(option, place, "src", "dst")
        assert (done.returncode, "would take the place of the copy of" in done.stderr) == (2, True), done.stderr
        done = pcopy(option, place, "src/record", "src/f", os.path.dirname(place))
        assert (done.returncode, "would take the place of the copy of" in done.stderr) == (2, True), done.stderr
        assert [name for *_, names in os.walk(tmp_path / "dst") for name in names] == []
        shutil.rmtree(tmp_path / "dst")
    assert read_tree(source) == before
    (tmp_path / "dst").mkdir()
    for words in (["--exclude", "record"], ["--files-from", "list"]):
        (tmp_path / "list").write_text("f\n")
        assert pcopy(option, "dst/record", *words, "src", "dst").returncode == 0
        assert (tmp_path / "dst/record").stat().st_size > 100


# ---- the library ----------------------------------------------------------------------------------------------------


def test_observers_are_started_and_finished_in_turn(tmp_path: Path, source: Path) -> None:
    told: list[str] = []

    class Tells(library.Observer):
        def __init__(self, name: str) -> None:
            self.name = name

        def started(self, sources: Any, destination: str, options: Any) -> None:
            told.append(f"{self.name} started {sources} {destination}")
            assert not (tmp_path / "dst").exists()

        def finished(self, report: library.Report) -> None:
            told.append(f"{self.name} finished {report.files} {report.seconds > 0}")

    assert library.copy(source, tmp_path / "dst", jobs=1, observer=[Tells("a"), Tells("b")]).ok
    where = f"{[str(source)]} {tmp_path}/dst"
    assert told == [f"a started {where}", f"b started {where}", "b finished 21 True", "a finished 21 True"]
    with pytest.raises(library.UsageError, match=r"must be a pcopy\.Observer"):
        library.copy(source, tmp_path / "other", observer=[Tells("a"), 3])  # type: ignore[list-item]


def test_a_run_without_a_log_imports_neither_json_nor_the_log(tmp_path: Path, source: Path) -> None:
    program = (
        "import sys, pcopy; pcopy.copy('src', 'dst', jobs=1);"
        "sys.exit(bool({'json', 'pcopy.log', 'pcopy.metrics'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False).returncode == 0
