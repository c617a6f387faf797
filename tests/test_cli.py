"""The command line as a process: what it prints where, its exit statuses, its report, and what signals do to it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pcopy as library
from pcopy.report import size
from tests.conftest import Run
from tests.strace import lines_of, strace
from tests.trees import Dir, Hard, Link, make_tree, read_tree

ESCAPES = b"red \x1b[31m\nline\x07\r\x7f"
NOT_UTF8 = b"\xff\xfe caf\xe9"
KEYS = [
    *("files", "bytes", "directories", "symlinks", "hardlinks", "specials", "unchanged", "deleted", "failed", "vanished"),
    *("skipped", "seconds", "bytes_per_second", "files_per_second", "jobs", "engine", "errors", "warnings", "exit_status"),
]
SIZE = r"[\d,.]+ (bytes?|[kMGTP]B)"
LAST_LINE = re.compile(
    rf"(would copy|copied) [\d,]+ files?, {SIZE} in \d+\.\d\d s \({SIZE}/s, [\d,]+ files/s\); "
    r"[\d,]+ unchanged, [\d,]+ deleted, [\d,]+ failed(, [\d,]+ vanished)?(, [\d,]+ skipped)?"
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    below: dict[str | bytes, object] = {f"f{number}": "x" * number for number in range(30)}
    return make_tree(tmp_path / "src", {"a": "text", "d": Dir(below), "l": Link("a"), "h": Hard("a")})


# ---- help, version, wrong command lines -----------------------------------------------------------------------------


def test_the_version_is_printed_by_module_and_by_script(pcopy: Run) -> None:
    assert pcopy("--version").stdout.split()[-1] == library.__version__
    script = Path(sys.executable).parent / "pcopy"
    if not script.exists():
        pytest.skip("pcopy is not installed beside this Python")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"pcopy {library.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-a", "src", "dst"], "-a is not needed: directories are copied whole, with all that they and their files have"),
        (["--recursive", "src", "dst"], "--recursive is not needed"),
        (["-H", "src", "dst"], "-H is not needed: all that is said by it is kept"),
        (["--update", "src", "dst"], "--update is --overwrite here: older, never or always"),
        (["-L", "to nothing", "dst"], "to nothing: the source is a symbolic link to what does not exist"),
        (["to nothing/", "dst"], "to nothing/: the source is a symbolic link to what does not exist"),
        (["-u", "src", "dst"], "-u is --overwrite older here"),
        (["--ignore-existing", "src", "dst"], "--ignore-existing is --overwrite never here"),
        (["--manifest", "-", "src", "dst"], "'-' is no stream here; write ./- for a file of that name"),
        (["--log=-", "src", "dst"], "'-' is no stream here"),
        (["--metrics", "-", "src", "dst"], "'-' is no stream here"),
        (["--check", "-", "src"], "'-' is no stream here"),
        (["--log", "a", "--log", "b", "src", "dst"], "--log is given twice: give one"),
        (["--preserve", "mode", "--preserve=times", "src", "dst"], "--preserve is given twice"),
        (["--files-from", "a", "--files-from", "b", "src", "dst"], "--files-from is given twice"),
        (["--check", "a", "--check", "b", "src"], "--check is given twice"),
        (["src", "me@host:dst"], "me@host:dst: other machines are not reached; mount it"),
        (["host:/src", "dst"], "host:/src: other machines are not reached"),
        (["--delete", "way", "dst"], "no source is one; write way/ for what the link way points to"),
    ],
)
def test_what_works_elsewhere_is_refused_with_what_to_do_here(
    pcopy: Run, tmp_path: Path, source: Path, words: list[str], says: str
) -> None:
    (tmp_path / "way").symlink_to("src")
    (tmp_path / "to nothing").symlink_to("nothing")
    done = pcopy(*words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert says in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["src", "to nothing", "way"]


def test_a_name_with_a_colon_is_a_name(pcopy: Run, tmp_path: Path, source: Path) -> None:
    make_tree(tmp_path, {"me@host:there": Dir(), "vol:": Dir()})
    for words in (
        ["src", "vol:/new"],
        ["src", "./host:/"],
        ["src", "me@host:there"],
        ["src", "day@18:30"],
        ["src", "a:b"],
        ["-j", "1", "-j", "2", "src", "last"],
    ):
        assert pcopy(*words).returncode == 0, words


def test_a_link_to_a_directory_is_copied_as_a_link_and_that_is_said(pcopy: Run, tmp_path: Path, source: Path) -> None:
    (tmp_path / "way").symlink_to("src")
    for words, said in ((["way"], 1), (["way/"], 0), (["-L", "way"], 0), (["way", "src"], 0), (["src/l"], 0)):
        done = pcopy(*words, "to/" if len(words) == 2 and words[0] == "way" else f"to{said}{len(words)}")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("is a symbolic link and copied as one; write a / after it") == said


@pytest.mark.parametrize("option", ["--files-from", "--exclude-from"])
def test_a_list_from_a_closed_stdin_is_not_an_empty_one(tmp_path: Path, source: Path, option: str) -> None:
    command = f'exec "$0" -m pcopy {option} - src dst 0<&-'
    done = subprocess.run(["sh", "-c", command, sys.executable], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "pcopy: '-': cannot be read: Bad file descriptor\n")


def test_the_console_script_copies(tmp_path: Path, source: Path) -> None:
    script = Path(sys.executable).parent / "pcopy"
    if not script.exists():
        pytest.skip("pcopy is not installed beside this Python")
    assert subprocess.run([script, "-q", "src", "dst"], cwd=tmp_path, check=False).returncode == 0
    assert read_tree(tmp_path / "dst") == read_tree(source)


def test_help_is_grouped_tells_defaults_and_ends_with_examples(pcopy: Run) -> None:
    done = pcopy("--help", env={**os.environ, "COLUMNS": "100"})
    assert (done.returncode, done.stderr) == (0, "")
    headings = re.findall(r"^(\S.*):$", done.stdout, re.MULTILINE)
    assert headings[:5] == ["What is copied", "How it is copied", "What is said", "Checking and measuring", "Other"]
    options, _, examples = done.stdout.partition("Examples:")
    assert len(re.findall(r"^\s+pcopy .* \S+", examples, re.MULTILINE)) >= 4
    records = re.split(r"^  (?=-)", options, flags=re.MULTILINE)[1:]
    assert len(records) >= 19
    without_default = [record.split()[0] for record in records if "[default:" not in " ".join(record.split())]
    assert [one for one in without_default if one not in ("--compare", "--version", "-h,")] == []
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


def test_help_has_every_option_and_no_option_of_later_work(pcopy: Run) -> None:
    shown = set(re.findall(r"--[a-z][a-z-]+", pcopy("--help").stdout))
    wanted = (
        "jobs overwrite preserve no-preserve dereference one-file-system reflink sparse atomic dry-run progress no-progress"
    )
    wanted += " quiet verbose json log metrics bwlimit compare against rounds chart version help delete max-delete link-dest"
    wanted += " exclude include exclude-from files-from null max-size min-size newer-than"
    assert {f"--{word}" for word in wanted.split()} <= shown
    assert not shown & {"--scheduler"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "SOURCE"),
        (["src"], "a source and a destination are needed"),
        (["-j", "0", "src", "dst"], "from 1 to 1024"),
        (["-j", "-1", "src", "dst"], "from 1 to 1024"),
        (["-j", "1025", "src", "dst"], "from 1 to 1024"),
        (["-j", "x", "src", "dst"], "neither a number nor 'auto'"),
        (["-j", "", "src", "dst"], "neither a number nor 'auto'"),
        (["-j", "2,4", "src", "dst"], "--compare"),
        (["--frobnicate", "src", "dst"], "--frobnicate"),
        (["--overwrite", "sometimes", "src", "dst"], "sometimes"),
        (["--preserve", "mode,colour", "src", "dst"], "'colour': must be among all, links, mode, owner, times, xattr"),
        (["--preserve=", "src", "dst"], "'': must be among all, "),
        (["--no-preserve", "colour", "src", "dst"], "colour"),
        (["--reflink", "perhaps", "src", "dst"], "perhaps"),
        (["--reflink", "always", "--sparse", "always", "src", "dst"], "leave sparse at 'auto'"),
        (["--compare", "--reflink", "always", "--sparse", "always", "src"], "leave sparse at 'auto'"),
        (["missing", "dst"], "missing: the source does not exist; check the spelling"),
        (["--against", "cp", "src", "dst"], "--compare"),
        (["--rounds", "3", "src", "dst"], "--compare"),
        (["--chart", "out.png", "src", "dst"], "--compare"),
        (["--compare", "--rounds", "0", "src"], "rounds"),
        (["--compare", "-n", "src"], "--compare"),
        (["--compare", "-v", "src"], "--compare"),
        (["--compare", "src", "dst", "more"], "--compare"),
        (["--compare", "--retries", "0", "src"], "--retries does not go with --compare"),
        (["--retries", "many", "src", "dst"], "'many' is not a valid whole number"),
        (["--compare", "--max-delete", "0", "src"], "--max-delete does not go with --compare"),
        (["--compare", "--chart=", "src"], "--chart: the name of a file is missing"),
        (["--chart=", "src", "dst"], "--chart goes with --compare"),
        (["--compare", "nothing"], "does not exist"),
    ],
    ids=str,
)
def test_a_wrong_command_line_is_refused(tmp_path: Path, source: Path, pcopy: Run, arguments: list[str], says: str) -> None:
    before = read_tree(tmp_path)
    done = pcopy(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert says in done.stderr
    assert len(done.stderr.splitlines()[-1]) < 200
    assert read_tree(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["{here}/src", "dst"],
        ["{here}/src", "../dst"],
        [".", "{here}/dst"],
        ["--compare", "src"],
        ["--compare", "{here}/src", "."],
        ["--compare", "{here}/src", "--chart", "a.png"],
        ["--log", "l", "{here}/src", "{here}/dst"],
        ["--metrics", "l", "{here}/src", "{here}/dst"],
        ["--manifest", "l", "{here}/src", "{here}/dst"],
        ["--check", "{here}/src/a"],
    ],
    ids=str,
)
def test_a_working_directory_that_is_gone_is_named_in_one_line(tmp_path: Path, source: Path, arguments: list[str]) -> None:
    before = read_tree(tmp_path)
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$0" -m pcopy "$@"'
    command = ["sh", "-c", script, sys.executable, *(word.format(here=tmp_path) for word in arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert "the working directory is gone: change to another" in line
    after = read_tree(tmp_path)
    assert [name for name in after if name != b"."] == [name for name in before if name != b"."]


@pytest.mark.parametrize("count", [1, 2])
def test_slices_go_where_they_work_and_names_mean_where_the_run_was_started(
    pcopy: Run, tmp_path: Path, source: Path, count: int
) -> None:
    """Nearer to the source, attributes take a third of the time to look at."""
    here = tmp_path / "here"
    here.mkdir()
    assert pcopy("-j", count, "../src", "../dst", cwd=here).returncode == 0
    log = tmp_path / "calls"
    calls = strace("-e", "trace=llistxattr,fchdir", log=log)
    words = [*calls, sys.executable, "-m", "pcopy", "-j", str(count), "../src", "../dst"]
    words += ["--log", "log", "--metrics", "metrics", "--manifest", "sums"]
    done = subprocess.run(words, cwd=here, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(here)) == ["log", "metrics", "sums"]
    asked = [line for line in lines_of(log) if "llistxattr" in line]
    assert asked and not [line for line in asked if "/proc" in line]


def test_a_slice_comes_back_from_where_it_worked(tmp_path: Path, source: Path) -> None:
    program = """if True:
        import os, pcopy
        from pcopy import attributes, roaming

        roaming.roam_in_slices()
        home = os.getcwd()
        asked, places = attributes.way_to, []
        attributes.way_to = lambda directory: (asked(directory), places.append(os.getcwd()))[0]
        for _ in range(3):
            assert pcopy.copy("src", "dst", jobs=1).ok
            assert os.getcwd() == home
        print(*places, sep="\\n")
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"{source}/d" in done.stdout.split("\n"), done.stderr


def test_the_completion_script_of_the_shell_is_printed(pcopy: Run) -> None:
    script = Path(sys.executable).parent / "pcopy"
    if not script.exists():
        pytest.skip("pcopy is not installed beside this Python")
    environment = {**os.environ, "_PCOPY_COMPLETE": "zsh_source"}
    done = subprocess.run([script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_PCOPY_COMPLETE=zsh_complete" in done.stdout
    if shutil.which("bash"):
        environment["_PCOPY_COMPLETE"] = "bash_source"
        done = subprocess.run([script], env=environment, capture_output=True, text=True, check=True)
        assert "_PCOPY_COMPLETE=bash_complete" in done.stdout
        assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("--against r", ["plain,rsync", "plain,rclone"]),
        ("--preserve mo", ["plain,mode"]),
        ("--preserve mode,ow", ["plain,mode,owner"]),
        ("--no-preserve a", ["plain,all"]),
        ("--no-preserve times,", [f"plain,times,{name}" for name in ("links", "mode", "owner", "xattr")]),
        ("--overwrite n", ["plain,never"]),
        ("pho", ["file,pho"]),
        ("photos /mn", ["file,/mn"]),
        ("caf\udce9", ["file,caf?"]),
        ("--chart o", ["file,o"]),
    ],
)
def test_the_shell_completes_values_and_paths(pcopy: Run, words: str, completed: list[str]) -> None:
    program = "import sys; sys.argv[0] = 'pcopy'; from pcopy.cli import main; main()"
    environment = {**os.environ, "_PCOPY_COMPLETE": "bash_complete", "COMP_WORDS": f"pcopy {words}"}
    environment["COMP_CWORD"] = str(len(words.split()))
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == completed


def test_paths_that_are_not_utf_8_and_cannot_be_read_reach_the_copy(tmp_path: Path, pcopy: Run) -> None:
    name = os.fsdecode(NOT_UTF8)
    (tmp_path / name).write_text("text")
    (tmp_path / name).chmod(0)
    done = pcopy("-j", 1, name, name + "2")
    if os.geteuid() == 0:
        assert (done.returncode, (tmp_path / (name + "2")).read_text()) == (0, "text")
    assert done.returncode < 2  # an entry that failed, at most, and no wrong command line


# ---- what is said ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_without_a_terminal_the_last_line_is_all_that_is_said(source: Path, pcopy: Run, jobs: int) -> None:
    done = pcopy("-j", jobs, "src", "dst")
    assert (done.returncode, done.stdout) == (0, "")
    (line,) = done.stderr.splitlines()
    assert LAST_LINE.fullmatch(line), line
    assert line.startswith("copied 31 files, 439 bytes in ")
    (again,) = pcopy("src", "dst").stderr.splitlines()
    assert LAST_LINE.fullmatch(again), again
    assert again.startswith("copied 0 files, 0 bytes in ")
    assert again.endswith("; 33 unchanged, 0 deleted, 0 failed")
    (dry,) = pcopy("-n", "src", "other").stderr.splitlines()
    assert LAST_LINE.fullmatch(dry), dry
    assert dry.startswith("would copy 31 files")


@pytest.mark.parametrize("jobs", [1, 2])
def test_json_has_the_documented_keys_and_they_add_up(source: Path, pcopy: Run, jobs: int) -> None:
    done = pcopy("-j", jobs, "--json", "src", "dst")
    (line,) = done.stdout.splitlines()
    report = json.loads(line)
    assert sorted(report) == sorted(KEYS)
    counts = {key: value for key, value in report.items() if isinstance(value, int) and value}
    entries = {"files": 31, "bytes": 439, "directories": 2, "symlinks": 1, "hardlinks": 1}
    for key, value in {**entries, "jobs": jobs}.items():
        assert counts.pop(key) == value
    assert set(counts) <= {"seconds", "bytes_per_second", "files_per_second"}
    assert report["engine"] == ("serial" if jobs == 1 else "pool")
    assert (report["errors"], report["warnings"], report["exit_status"]) == ([], [], 0)
    assert report["bytes_per_second"] == pytest.approx(439 / report["seconds"], rel=0.01)
    assert report["files_per_second"] == pytest.approx(31 / report["seconds"], rel=0.01)
    again = json.loads(pcopy("-j", jobs, "--json", "src", "dst").stdout)
    assert [again[key] for key in ("files", "bytes", "directories", "unchanged")] == [0, 0, 2, 33]


def test_one_byte_is_one_byte(tmp_path: Path, pcopy: Run) -> None:
    make_tree(tmp_path / "src", {"a": "x"})
    assert "copied 1 file, 1 byte in " in pcopy("src", "dst").stderr
    assert [size(count) for count in (0, 0.6, 1, 2, 999, 1000)] == [
        "0 bytes",
        "1 byte",
        "1 byte",
        "2 bytes",
        "999 bytes",
        "1.0 kB",
    ]


def break_one(destination: Path, name: bytes) -> None:
    """Put something in the place of a file that a copy may not remove: a directory that is not empty."""
    os.makedirs(os.path.join(os.fsencode(destination), name, b"in the way"))


def test_quiet_says_nothing_but_names_errors(tmp_path: Path, source: Path, pcopy: Run) -> None:
    done = pcopy("-q", "src", "dst")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    break_one(tmp_path / "other", b"a")
    done = pcopy("-q", "--no-preserve", "links", "src", "other")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith(f"pcopy: {source}/a: ")
    assert "move or remove it, or give delete" in line


def test_delete_is_not_advised_where_it_cannot_be_given(tmp_path: Path, source: Path, pcopy: Run) -> None:
    break_one(tmp_path / "other", b"a")
    done = pcopy("src/a", "other")
    line = done.stderr.splitlines()[0]
    assert (done.returncode, line.partition("is in its place: ")[2]) == (1, "move or remove it")
    assert "delete is for copies of directories" in pcopy("--delete", "src/a", "other").stderr


@pytest.mark.parametrize("jobs", [1, 2])
def test_verbose_names_every_entry(source: Path, pcopy: Run, jobs: int) -> None:
    def told(*arguments: object) -> list[tuple[str, str]]:
        *lines, _ = pcopy("-v", "-j", jobs, *arguments, "src", "dst").stderr.splitlines()
        bare = [line.partition(" (")[0] for line in lines]
        return sorted((line[: line.index(" /")], line[line.index(" /") + 1 :]) for line in bare)

    files = [f"{source}/d/f{number}" for number in range(30)]
    words = (("would copy", "would link", "would make"), ("copied", "linked", "made"))
    for lines, (copied, linked, made) in ((told("-n"), words[0]), (told(), words[1])):
        directories = [(made, str(source)), (made, f"{source}/d")]
        hard = [one for one in lines if one[1] in (f"{source}/a", f"{source}/h")]
        assert sorted(what for what, _ in hard) == [copied, linked]
        assert sorted(set(lines) - set(hard)) == sorted([*directories, *((copied, path) for path in [*files, f"{source}/l"])])
        assert len(lines) == 35
    again = told()
    paths = sorted(str(path) for path in source.rglob("*") if path.is_symlink() or not path.is_dir())
    assert [path for what, path in again if what == "unchanged"] == paths


@pytest.mark.parametrize("name", [ESCAPES, NOT_UTF8, "né\u202e\u2028".encode()], ids=["control", "not UTF-8", "direction"])
def test_names_are_escaped_for_people_and_lossless_in_json(tmp_path: Path, pcopy: Run, name: bytes) -> None:
    entries: dict[str | bytes, object] = {name: "text", b"d" + name: Dir({name: "below"})}
    source = make_tree(tmp_path / "src", entries)
    break_one(tmp_path / "dst", name)
    done = pcopy("-v", "--json", "src", "dst", env={**os.environ, "PYTHONIOENCODING": "utf-8:surrogateescape"})
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if not line.isprintable()] == []
    assert len(done.stderr.splitlines()) == 5  # two directories, a file, a failure, the last line
    (error,) = json.loads(done.stdout)["errors"]
    assert sorted(error) == ["errno", "operation", "path", "reason"]
    assert os.fsencode(error["path"]) == os.path.join(os.fsencode(source), name)
    assert (tmp_path / "dst" / os.fsdecode(b"d" + name) / os.fsdecode(name)).read_text() == "below"


def test_names_that_the_terminal_cannot_show_break_nothing(tmp_path: Path, pcopy: Run) -> None:
    """In a C locale stderr may be ASCII alone."""
    entries: dict[str | bytes, object] = {"snow\u2603": "1", NOT_UTF8: "2"}
    make_tree(tmp_path / "src", entries)
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}
    done = pcopy("-v", "--json", "src", "dst", env={**os.environ, **ascii_only})
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["files"] == 2


def test_refusals_escape_names_too(tmp_path: Path, pcopy: Run) -> None:
    done = pcopy(ESCAPES, "dst")
    (line,) = done.stderr.split("\n")[:-1]
    assert done.returncode == 2
    assert line.isprintable()


@pytest.mark.parametrize(
    "options", [["--json", "src", "dst"], ["--json", "-v", "src", "dst"], ["--help"], ["--version"]], ids=str
)
def test_a_reader_of_stdout_that_has_gone_is_no_trouble(tmp_path: Path, source: Path, pcopy: Run, options: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = pcopy(*options, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert done.returncode == 0
    if "src" in options:
        assert read_tree(tmp_path / "dst") == read_tree(source)


def test_a_completion_script_that_nobody_takes_is_no_traceback() -> None:
    script = Path(sys.executable).parent / "pcopy"
    if not script.exists():
        pytest.skip("pcopy is not installed beside this Python")
    environment = {**os.environ, "_PCOPY_COMPLETE": "zsh_source"}
    with open("/dev/full", "w") as full:
        done = subprocess.run([script], env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "pcopy: No space left on device\n")


@pytest.mark.parametrize(
    ("options", "status"), [(["--help"], 1), (["--version"], 1), (["-j", "1", "--json", "src", "dst"], 1), ([], 2)], ids=str
)
def test_a_stdout_that_is_full_is_named_in_one_line(source: Path, pcopy: Run, options: list[str], status: int) -> None:
    with open("/dev/full", "w") as full:
        done = pcopy(*options, capture_output=False, stdout=full, stderr=subprocess.PIPE)
        nobody = pcopy(*options, capture_output=False, stdout=full, stderr=full)
    assert (done.returncode, nobody.returncode) == (status, status)
    if status == 1:
        said = [line for line in done.stderr.splitlines() if not line.startswith("copied ")]
        assert said == ["pcopy: standard output: No space left on device"]


@pytest.mark.parametrize(
    ("options", "status"), [(["--help"], 1), (["--compare", "--rounds", "1", "--json", "src"], 1), (["src", "dst"], 0)], ids=str
)
def test_a_stdout_that_is_closed_fails_what_is_written_to_it(
    tmp_path: Path, source: Path, options: list[str], status: int
) -> None:
    words = ["sh", "-c", 'exec "$0" -m pcopy "$@" >&-', sys.executable, *options]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.splitlines()
    assert (line == "pcopy: standard output: Bad file descriptor") == (status == 1)


SHORT = """
import sys, pcopy.coordinator, pcopy.cli
pcopy.coordinator.FIRST = 1e-3  # a line or more is written, and then a pool is needed
pcopy.cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize(("options", "jobs"), [([], 1), (["-v"], 1), (["-v"], 2), (["--progress"], 2)], ids=str)
@pytest.mark.parametrize("full", [False, True])
def test_a_stderr_that_takes_nothing_is_no_trouble(
    tmp_path: Path, source: Path, options: list[str], jobs: int, full: bool
) -> None:
    (source / "more").mkdir()
    for number in range(500):
        (source / "more" / str(number)).touch()
    reader, writer = os.pipe()
    os.close(reader)
    if full:
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    words = [sys.executable, "-c", SHORT, "-j", str(jobs), "--json", *options, "src", "dst"]
    done = subprocess.run(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=writer, check=False, timeout=60)
    os.close(writer)
    report = json.loads(done.stdout)
    assert (done.returncode, report["errors"], report["jobs"]) == (0, [], jobs)
    assert read_tree(tmp_path / "dst") == read_tree(source)


@pytest.mark.parametrize("bars", ["--progress", "--no-progress"])
def test_no_line_is_lost_to_a_slow_reader_when_the_run_is_stopped_and_goes_on(tmp_path: Path, bars: str) -> None:
    """A call that writes can end early then; with bars many lines are one call."""
    (tmp_path / "src").mkdir()
    names = [f"file-{number:05d}" for number in range(5000)]
    for name in names:
        (tmp_path / "src" / name).touch()
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    words = [sys.executable, "-m", "pcopy", "-j", "1", "-v", bars, "src", "dst"]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=writer)
    os.close(writer)
    said, pauses = bytearray(), 0
    while text := os.read(reader, 3000):
        said += text
        if pauses < 20 and process.poll() is None:
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.005)
            process.send_signal(signal.SIGCONT)
            pauses += 1
    os.close(reader)
    assert (process.wait(), pauses) == (0, 20)
    assert sorted(set(re.findall("file-[0-9]{5}", said.decode()))) == names


def test_each_line_is_written_in_one_piece(tmp_path: Path) -> None:
    """So the lines of several runs into one stream stay lines. A socket of this kind keeps what was written apart."""
    (tmp_path / "src").mkdir()
    for number in range(100):
        (tmp_path / "src" / str(number)).touch()
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", "pcopy", "-j", "1", "-v", "src", "src/x/no", "dst"], cwd=tmp_path, stderr=writer.fileno()
    )
    refused = reader.recv(1 << 16)
    assert process.wait() == 2
    process = subprocess.Popen(
        [sys.executable, "-m", "pcopy", "-j", "1", "-v", "src", "dst"], cwd=tmp_path, stderr=writer.fileno()
    )
    writer.close()
    pieces = [refused, *iter(lambda: reader.recv(1 << 16), b"")]
    reader.close()
    assert process.wait() == 0
    assert len(pieces) == 103
    assert [piece for piece in pieces if piece.count(b"\n") != 1 or not piece.endswith(b"\n")] == []


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_streams_that_were_closed_from_the_start_are_no_trouble(tmp_path: Path, source: Path, closed: str) -> None:
    command = f'exec "$0" -m pcopy -j 2 -v --json src dst {closed}'
    done = subprocess.run(["sh", "-c", command, sys.executable], cwd=tmp_path, capture_output=True, text=True, check=False)
    lost = [line for line in done.stderr.splitlines() if "standard output" in line]
    assert "Traceback" not in done.stderr
    assert done.returncode == ("1>&-" in closed), done.stderr  # the JSON could not be written
    assert lost == (["pcopy: standard output: Bad file descriptor"] if closed == "1>&-" else [])
    assert read_tree(tmp_path / "dst") == read_tree(source)
    if "1>&-" not in closed:
        assert json.loads(done.stdout)["files"] == 31  # and what was meant for stderr does not go here


# ---- signals --------------------------------------------------------------------------------------------------------


def test_ctrl_c_while_the_command_line_is_read_is_no_failure(tmp_path: Path) -> None:
    """Status 1 would say that some entries failed."""
    program = "import os; from pcopy import cli; cli.JobList.convert = lambda *given: os.kill(os.getpid(), 2); cli.main()"
    command = [sys.executable, "-c", program, "-j", "2", "src", "dst"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory for large trees, in memory where there is such a place."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        yield Path(name)


@pytest.fixture
def long_copy(memory: Path) -> Path:
    """A source that takes a second or more: many small files, and a large one."""
    block = os.urandom(1 << 20)
    for one in range(12):
        directory = memory / f"src/d{one}"
        directory.mkdir(parents=True)
        for number in range(300):
            (directory / f"f{number}").write_bytes(block[number : number + 5000])
    (memory / "src/d5/large").write_bytes(block * 200)
    return memory / "src"


def begun(source: Path, destination: Path, jobs: int) -> subprocess.Popen[str]:
    """A copy that is under way: files are there, and the large one has not its name yet.

    On a busy machine it can be over before anybody has looked: then another one is begun.
    """
    command = [sys.executable, "-m", "pcopy", "-j", str(jobs), "--sparse", "always", str(source), str(destination)]
    for _ in range(3):
        shutil.rmtree(destination, ignore_errors=True)
        run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        end = time.monotonic() + 30
        while time.monotonic() < end and run.poll() is None:
            with contextlib.suppress(OSError):
                if sum(1 for one in destination.rglob("f*")) > 100 and (jobs == 1 or len(processes_of(run.pid)) > jobs):
                    return run
            time.sleep(0.002)
        said = run.communicate()
    raise AssertionError(f"the copy did not begin, or was too short: {said}")


def processes_of(session: int) -> list[int]:
    """Those that live in a session."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            state, _, _, of = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found.append(int(name))
    return found


@contextlib.contextmanager
def workers_stopped(run: subprocess.Popen[str]) -> Iterator[None]:
    """Whoever asks a run to end has to wait for them."""
    workers = [worker for worker in processes_of(run.pid) if worker != run.pid]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGCONT)


def assert_stopped_cleanly(source: Path, destination: Path, run: subprocess.Popen[str], status: int) -> None:
    out, err = run.communicate(timeout=30)
    assert (run.returncode, out) == (status, ""), err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("interrupted: copied ")
    assert last.endswith("; run the same line again to go on")
    assert len(err.splitlines()) == 1
    end = time.monotonic() + 2
    while processes_of(run.pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert processes_of(run.pid) == []
    copies = [path for path in destination.rglob("*") if path.is_file()]
    assert [path for path in copies if ".pcopy-" in path.name] == []
    assert [path for path in copies if path.read_bytes() != (source / path.relative_to(destination)).read_bytes()] == []


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["INT", "TERM", "HUP"]
)
def test_a_signal_leaves_whole_files_and_a_rerun_goes_on(long_copy: Path, jobs: int, number: int, status: int) -> None:
    destination = long_copy.parent / "dst"
    run = begun(long_copy, destination, jobs)
    run.send_signal(number)
    assert_stopped_cleanly(long_copy, destination, run, status)
    there = sum(1 for path in destination.rglob("*") if path.is_file())
    report = library.copy(long_copy, destination, jobs=2)
    assert report.ok, report.errors
    assert (report.unchanged, report.files) == (there, 3601 - there)
    assert report.files
    assert read_tree(destination) == read_tree(long_copy)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_a_signal_to_the_whole_group_is_one_signal(long_copy: Path, number: int) -> None:
    """As a terminal sends Ctrl-C, and a service manager SIGTERM: to the workers too."""
    destination = long_copy.parent / "dst"
    run = begun(long_copy, destination, jobs=2)
    os.killpg(run.pid, number)
    assert_stopped_cleanly(long_copy, destination, run, 128 + number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGHUP, 129), (signal.SIGINT, 130)], ids=["HUP", "INT"])
def test_signals_that_come_together_are_one(long_copy: Path, number: int, status: int) -> None:
    """As timeout(1) sends its own to the command and then to the group, and systemd SIGHUP beside SIGTERM (SendSIGHUP=)."""
    destination = long_copy.parent / "dst"
    run = begun(long_copy, destination, jobs=2)
    with workers_stopped(run):
        run.send_signal(number)
        run.send_signal(signal.SIGTERM)  # the larger number: if both are pending, Python takes it in second
        time.sleep(0.1)
    assert_stopped_cleanly(long_copy, destination, run, status)


def test_a_second_ctrl_c_ends_the_run_at_once(long_copy: Path) -> None:
    destination = long_copy.parent / "dst"
    run = begun(long_copy, destination, jobs=2)
    with workers_stopped(run):
        run.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert run.poll() is None
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=2) == 130
    end = time.monotonic() + 2
    while processes_of(run.pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert processes_of(run.pid) == []
    _, err = run.communicate()
    assert "Traceback" not in err
    assert library.copy(long_copy, destination, jobs=2).ok
    assert read_tree(destination) == read_tree(long_copy)


def test_a_signal_that_the_caller_ignores_is_ignored(long_copy: Path) -> None:
    """As under nohup."""
    destination = long_copy.parent / "dst"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = begun(long_copy, destination, jobs=2)
    finally:
        signal.signal(signal.SIGHUP, before)
    run.send_signal(signal.SIGHUP)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    assert read_tree(destination) == read_tree(long_copy)
