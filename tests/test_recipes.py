"""The recipes of the README, run as they stand: only their paths are replaced, by places that belong to the test.

A recipe is a block below a comment that names it. Whoever adds one adds a test, or the last two tests here fail.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from tests.comparer import differences
from tests.conftest import Run
from tests.test_engines import wait_until
from tests.test_link_dest import shared, state_of
from tests.test_sums import flip
from tests.trees import Dir, Fifo, File, Hard, Link, State, make_tree, read_tree

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
SECTION = README[README.index("\n## Backups\n") : README.index("\n## Limits\n")]
RECIPES = dict(re.findall(r"<!-- recipe: (\w+) -->\n```\w+\n(.*?)```\n", SECTION, re.DOTALL))
ABSOLUTE = re.compile(r"(?<![\w./])/[a-z][\w./-]*")
COMMANDS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # where commands lie; nothing is written there
DATES = re.compile(r"20\d\d-\d\d-\d\d")
FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))  # minute, hour, day of month, month, day of week
Done = subprocess.CompletedProcess[str]
Test = TypeVar("Test", bound=Callable[..., object])
shown: set[str] = set()


def shows(name: str) -> Callable[[Test], Test]:
    """A mark for a test that runs this recipe."""
    shown.add(name)
    return lambda test: test


# ---- the machine ----------------------------------------------------------------------------------------------------


def a_tree() -> dict[str | bytes, object]:
    return {
        "ann": Dir(
            {
                "a letter": b"Dear",
                "photo": File(b"x" * 9000, mode=0o600),
                "l": Link("a letter"),
                b"\xff\n": b"odd",
                "letters": Dir({"1": b"Hello"}),
            }
        ),
        "bob": Dir({"run": File(b"#!", mode=0o755), "same": Hard("ann/photo"), "pipe": Fifo(), "empty": Dir()}, mode=0o700),
        " ": b"blank",
    }


# What the recipes call, as far as it would reach beyond the test; each notes what it is given, or does what it is told.
STUBS = {
    "mail": 'printf "%s\\n" "$@" >"$0.words"; cat >"$0.text"; exit "$(cat "$0.status" 2>/dev/null || echo 0)"',
    "logger": 'printf "%s\\n" "$@" >"$0.words"',
    "journalctl": 'printf "%s\\n" "$@" >"$0.words"; echo "from the journal"',
    "date": 'day=$(cat "$0.today"); if [ "$1" = -d ]; then day="$day $2"; shift 2; fi; exec DATE -d "$day" "$@"',
}


class Machine:
    """Where the recipes are at home: what they call /home, /mnt/backup and so on lies below one directory."""

    def __init__(self, top: Path, blank: str = " ") -> None:
        self.top, self.bin = top, top / "bin"
        self.source = make_tree(top / f"all{blank}users", a_tree())
        self.disk = top / f"the{blank}disk"
        self.home = self.disk / "home"
        self.log = top / "pcopy.log"
        self.places = {
            "/home": self.source, "/mnt/backup": self.disk, "/var/log/pcopy.log": self.log, "/usr/local/sbin": self.bin,
        }  # fmt: skip
        for directory in (self.bin, self.disk, self.home):
            directory.mkdir()
        for name, what in STUBS.items():
            self.script(name, f"#!/bin/sh\n{what.replace('DATE', shutil.which('date') or 'date')}\n")
        self.script("pcopy", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pcopy "$@"\n')
        self.today("2026-01-31")

    def script(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def today(self, day: str) -> None:
        (self.bin / "date.today").write_text(day)

    def recipe(self, name: str, *paths: str) -> str:
        """A recipe with these paths of its replaced; it has to have them all, and no other."""
        text, found = RECIPES[name], set()

        def place(match: re.Match[str]) -> str:
            found.add(match[0])
            return str(self.places[match[0]])

        others = {one for one in ABSOLUTE.findall(text) if not one.startswith(paths)} - {*COMMANDS.split(":"), "/bin/sh"}
        assert not others, "a path that the test does not know, and would really use"
        text = re.sub("|".join(rf"(?<![\w./]){re.escape(path)}(?![\w-])" for path in paths), place, text)
        assert found == set(paths), "the recipe lacks a path that the test replaces"
        return text

    def install(self, *names: str) -> None:
        """The scripts among the recipes, under the names that the README gives them."""
        paths = {"snapshot": ("/mnt/backup", "/home", "/var/log/pcopy.log"), "keep": ("/mnt/backup",)}
        for name in names:
            assert f"`/usr/local/sbin/backup-{name}`" in SECTION
            self.script(f"backup-{name}", self.recipe(name, *paths.get(name, ("/var/log/pcopy.log",))))

    def run(self, *words: object, path: str | None = None, **more: str) -> Done:
        """A command, with little of an environment."""
        environment = {"PATH": path or f"{self.bin}:{COMMANDS}", "LC_ALL": "C", "HOME": str(self.top), **more}
        return subprocess.run(
            [str(word) for word in words], env=environment, cwd=self.top, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="surrogateescape", timeout=60, check=False,
        )  # fmt: skip

    def noted(self, name: str, what: str = "words") -> str | None:
        """What a stub was given, once."""
        path = self.bin / f"{name}.{what}"
        text = path.read_text("utf-8", "surrogateescape") if path.exists() else None
        path.unlink(missing_ok=True)
        return text

    # ---- what there is ----

    def latest(self) -> str | None:
        link = self.home / "latest"
        return os.readlink(link) if link.is_symlink() else None

    def days(self) -> list[str]:
        return sorted(path.name for path in self.home.iterdir() if DATES.fullmatch(path.name))

    def names(self) -> list[str]:
        return sorted(os.listdir(self.home))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """With blanks in the names of its places."""
    return Machine(tmp_path)


@pytest.fixture
def plain(tmp_path: Path) -> Machine:
    """Without: a crontab and a unit show their paths as they are."""
    return Machine(tmp_path, blank="-")


def is_good(machine: Machine, day: str) -> bool:
    """Whether all that the manifest of a snapshot lists is there, and nothing else."""
    copy, manifest = machine.home / day, machine.home / f"{day}.sha256"
    files = [path for path in copy.rglob("*") if path.is_file() and not path.is_symlink()]
    done = subprocess.run(["sha256sum", "--quiet", "--strict", "-c", manifest], cwd=copy, capture_output=True, check=False)
    return not done.returncode and len(manifest.read_bytes().splitlines()) == len(files)


def is_at_work(machine: Machine) -> bool:
    """Whether the snapshot of a run that is still going on has something in it."""
    with contextlib.suppress(FileNotFoundError):
        return any((machine.home / "unfinished").iterdir())
    return False


@contextlib.contextmanager
def another_run(directory: Path) -> Iterator[None]:
    """As long as it copies, it has a lock on what it copies into."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def without_privilege(*words: object) -> list[str]:
    """A command that may read no more than modes say, even if root runs it."""
    if os.geteuid():
        return [str(word) for word in words]
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv")
    less = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={less}", f"--inh-caps={less}", *map(str, words)]


# ---- crontabs -------------------------------------------------------------------------------------------------------


class Crontab(NamedTuple):
    environment: dict[str, str]
    entries: list[tuple[list[str], str]]  # the five fields, the command


def read_crontab(text: str) -> Crontab:
    """As crontab(5) has it."""
    table = Crontab({}, [])
    for line in text.splitlines():
        if variable := re.fullmatch(r"\s*(\w+)\s*=\s*(.*)", line):
            table.environment[variable[1]] = variable[2]
        elif line.strip() and not line.lstrip().startswith("#"):
            *fields, command = line.split(None, 5)
            assert len(fields) == 5, line
            assert not re.search(r"(?<!\\)%", command), f"a new line for cron: {command}"
            table.entries.append((fields, command.replace("\\%", "%")))
    return table


def is_in_range(value: str, lowest: int, highest: int) -> bool:
    return value == "*" or all(one.isdecimal() and lowest <= int(one) <= highest for one in re.split("[,-]", value))


def by_cron(machine: Machine, table: Crontab, number: int) -> Done:
    """What cron does with an entry when its time has come."""
    environment = {"PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", **table.environment}
    return machine.run("/bin/sh", "-c", table.entries[number][1], path=environment["PATH"])


def mirror_of(machine: Machine) -> Crontab:
    return read_crontab(machine.recipe("mirror", "/home", "/mnt/backup", "/var/log/pcopy.log", "/usr/local/sbin"))


@pytest.mark.parametrize("name", ["mirror", "crontab"])
def test_the_lines_of_a_crontab_are_such(name: str) -> None:
    table = read_crontab(RECIPES[name])
    assert table.environment == {"PATH": COMMANDS}
    assert len(table.entries) == {"mirror": 1, "crontab": 2}[name]
    for fields, _ in table.entries:
        assert all(is_in_range(value, *limits) for value, limits in zip(fields, FIELDS, strict=True)), fields


def test_what_is_no_crontab_is_seen() -> None:
    for line in ("30 1 * * pcopy", "* * * * * date +%F"):
        with pytest.raises((AssertionError, ValueError)):
            read_crontab(line)
    assert not is_in_range("60", *FIELDS[0]) and not is_in_range("1x", *FIELDS[0]) and is_in_range("1,2-3", *FIELDS[0])


# ---- a mirror -------------------------------------------------------------------------------------------------------


@shows("mirror")
def test_a_mirror_is_the_source_every_night(plain: Machine) -> None:
    table = mirror_of(plain)
    for _ in range(2):
        done = by_cron(plain, table, 0)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "cron would mail"
        assert differences(plain.source, plain.home / "mirror") == []
        (plain.source / "ann/a letter").write_text("Dear all")
        (plain.source / "bob/run").unlink(missing_ok=True)
        (plain.source / "new").mkdir(exist_ok=True)
    assert plain.log.read_text().count('"event": "finished"') == 2


@shows("mirror")
@pytest.mark.parametrize("trouble", ["no disk", "empty source", "no source", "another run", "unreadable"])
def test_a_mirror_that_cannot_be_made_is_mailed_by_cron_and_stays(plain: Machine, trouble: str) -> None:
    table = mirror_of(plain)
    assert by_cron(plain, table, 0).returncode == 0
    before = read_tree(plain.home / "mirror")
    (plain.source / "ann/a letter").write_text("Dear all")
    done, files = in_trouble(plain, trouble, lambda: by_cron(plain, table, 0), plain.home / "mirror")
    status = {"no disk": 2, "no source": 2, "unreadable": 1}.get(trouble, 3)
    assert done.stdout == f"mirror of {plain.source}: status {status}\n"
    assert done.stderr.startswith("pcopy: ")
    if trouble == "no disk":
        assert files == [], "something was written below a disk that is not mounted"
    after = read_tree(plain.home / "mirror")
    changed = {path for path in before if before[path] != after.get(path)}
    assert changed == ({b".", b"ann/a letter"} if trouble == "unreadable" else set())


def in_trouble(machine: Machine, trouble: str, run: Callable[[], Done], busy: Path) -> tuple[Done, list[str]]:
    """Run while something is wrong, and set it right again. Gives what lies where the disk would be mounted, too."""
    away = machine.top / "away"
    with contextlib.ExitStack() as later:
        if trouble == "no disk":
            machine.disk.rename(away)
            machine.disk.mkdir()
            later.callback(away.rename, machine.disk)  # over the empty one
        elif trouble in ("no source", "empty source"):
            machine.source.rename(away)
            later.callback(away.rename, machine.source)
            if trouble == "empty source":
                machine.source.mkdir()
                later.callback(machine.source.rmdir)
        elif trouble == "another run":
            busy.mkdir(exist_ok=True)
            later.enter_context(another_run(busy))
        else:
            unreadable = machine.source / "new and unreadable"
            unreadable.write_text("secret")
            unreadable.chmod(0)
            words = without_privilege(sys.executable, "-m", "pcopy")
            machine.script("pcopy", f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            later.callback(unreadable.unlink)
            later.callback(machine.script, "pcopy", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pcopy "$@"\n')
        return run(), sorted(os.listdir(machine.disk))


# ---- snapshots ------------------------------------------------------------------------------------------------------


@shows("snapshot")
@pytest.mark.parametrize("shell", ["sh", "bash", "busybox sh"])
def test_a_snapshot_is_its_day_and_shares_what_did_not_change(machine: Machine, shell: str) -> None:
    if not shutil.which(shell.split()[0]):
        pytest.skip(f"needs {shell}")
    machine.install("snapshot")
    before: dict[str, dict[bytes, State]] = {}
    for day in ("2026-01-31", "2026-02-01", "2026-02-02"):
        machine.today(day)
        done = machine.run(*shell.split(), machine.bin / "backup-snapshot")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert differences(machine.source, machine.home / day) == []
        assert is_good(machine, day)
        assert machine.latest() == day
        before[day] = state_of(machine.home / day)
        (machine.source / "ann/a letter").write_text(f"Dear of {day}")
        (machine.source / "bob/empty").rmdir()
        (machine.source / "bob/empty").mkdir()
    assert {day: state_of(machine.home / day) for day in before} == before
    one, two, three = (machine.home / day for day in before)
    same = {"ann/photo", "bob/run", "bob/same", "ann/\udcff\n", "ann/letters/1", " "}
    assert shared(one, two) == shared(two, three) == same
    assert machine.names() == sorted([*before, *(f"{day}.sha256" for day in before), "latest"])
    assert " --fsync " in RECIPES["snapshot"], "what has its name has to be on the disk"


@shows("snapshot")
def test_on_a_day_that_has_its_snapshot_nothing_is_done(machine: Machine) -> None:
    machine.install("snapshot")
    assert machine.run("backup-snapshot").returncode == 0
    before, inode = read_tree(machine.home), (machine.home / "2026-01-31").stat().st_ino
    (machine.source / "ann/a letter").write_text("Dear all")
    (machine.home / "latest").unlink()  # as if the first run had been killed before its last step
    assert machine.run("backup-snapshot").returncode == 0
    after = read_tree(machine.home)
    assert {path for path in before if path not in (b".", b"latest") and before[path] != after[path]} == set()
    assert (machine.latest(), (machine.home / "2026-01-31").stat().st_ino) == ("2026-01-31", inode)


@shows("snapshot")
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("trouble", ["no disk", "empty source", "no source", "another run", "unreadable"])
def test_a_snapshot_that_fails_is_never_the_latest_and_the_next_run_goes_on(
    machine: Machine, trouble: str, first: bool
) -> None:
    machine.install("snapshot", "alert")
    if not first:
        assert machine.run("backup-snapshot").returncode == 0
        machine.today("2026-02-01")
    (machine.source / "ann/a letter").write_text("Dear all")
    days, latest = machine.days(), machine.latest()
    done, files = in_trouble(
        machine, trouble, lambda: machine.run("backup-alert", "backup-snapshot"), machine.home / "unfinished"
    )
    status = {"no source": 2, "unreadable": 1}.get(trouble, 3)
    assert done.returncode == status
    assert (machine.days(), machine.latest()) == (days, latest)
    assert f"status {status}" in (machine.noted("mail") or "")
    assert (files == []) is (trouble == "no disk")
    begun = inodes(machine.home / "unfinished")
    assert bool(begun) is (trouble == "unreadable")
    assert machine.run("backup-alert", "backup-snapshot").returncode == 0
    day = "2026-01-31" if first else "2026-02-01"
    assert (machine.days(), machine.latest()) == ([*days, day], day)
    assert differences(machine.source, machine.home / day) == []
    assert is_good(machine, day)
    assert begun.items() <= inodes(machine.home / day).items(), "what was there was copied again"
    assert machine.noted("mail") is None


@shows("snapshot")
def test_a_file_that_fails_every_night_holds_no_snapshot_up_if_that_is_asked_for(machine: Machine) -> None:
    machine.install("snapshot")
    [more] = re.findall(r"`(\|\| .*)` behind pcopy's line", SECTION)
    script = (machine.bin / "backup-snapshot").read_text()
    machine.script("backup-snapshot", re.sub("^( +pcopy .*)", lambda line: f"{line[0]} {more}", script, flags=re.MULTILINE))
    done, _ = in_trouble(machine, "unreadable", lambda: machine.run("backup-snapshot"), machine.home)
    assert (done.returncode, machine.latest()) == (0, "2026-01-31")
    assert "Permission denied" in done.stderr
    assert {"unfinished", "new and unreadable"} & {*machine.names(), *os.listdir(machine.home / "latest")} == set()
    assert read_tree(machine.home / "latest/ann") == read_tree(machine.source / "ann")
    machine.today("2026-02-01")
    done, _ = in_trouble(machine, "empty source", lambda: machine.run("backup-snapshot"), machine.home)
    assert (done.returncode, machine.latest()) == (3, "2026-01-31")


@shows("snapshot")
def test_what_was_lost_comes_back_from_a_snapshot(machine: Machine) -> None:
    machine.install("snapshot")
    assert machine.run("backup-snapshot").returncode == 0
    shutil.rmtree(machine.source / "ann/letters")
    [line] = re.findall(r"To restore, copy: `([^`]*)`", SECTION)
    words = [re.sub("^/home", str(machine.source), word).replace("/mnt/backup", str(machine.disk)) for word in line.split()]
    assert machine.run(*words).returncode == 0
    assert (machine.source / "ann/letters/1").read_text() == "Hello"


def inodes(top: Path) -> dict[str, int]:
    return {str(path.relative_to(top)): path.lstat().st_ino for path in top.rglob("*") if path.is_file()}


@shows("snapshot")
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_snapshot_that_is_killed_is_never_the_latest_and_is_gone_on_with_another_day(machine: Machine, jobs: int) -> None:
    machine.install("snapshot")
    machine.script("pcopy", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pcopy -j {jobs} "$@"\n')
    assert machine.run("backup-snapshot").returncode == 0
    machine.today("2026-02-01")
    make_tree(machine.source / "many", {f"f{number}": f"{number}" * 900 for number in range(400)})
    environment = {**os.environ, "PATH": f"{machine.bin}:{COMMANDS}"}
    night = subprocess.Popen(["sh", machine.bin / "backup-snapshot"], env=environment, start_new_session=True)
    try:
        assert wait_until(lambda: is_at_work(machine), 20)
    finally:
        os.killpg(night.pid, signal.SIGKILL)
        night.wait(10)
    assert (machine.days(), machine.latest()) == (["2026-01-31"], "2026-01-31")
    assert differences(machine.source, machine.home / "unfinished") != [], "it had ended already"
    machine.today("2026-02-02")
    assert machine.run("backup-snapshot").returncode == 0
    assert (machine.days(), machine.latest()) == (["2026-01-31", "2026-02-02"], "2026-02-02")
    assert differences(machine.source, machine.home / "2026-02-02") == []
    assert is_good(machine, "2026-02-02")
    assert differences_are_of(machine.home / "2026-01-31", machine.source) == {b"many"}


def differences_are_of(copy: Path, source: Path) -> set[bytes]:
    """The entries of the top that one of two trees has alone."""
    return set(os.listdir(os.fsencode(copy))) ^ set(os.listdir(os.fsencode(source)))


@shows("snapshot")
@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_snapshot_that_is_killed_between_its_last_steps_is_whole_and_so_is_what_latest_says(
    machine: Machine, step: int, done: bool
) -> None:
    """The n-th call of ``mv`` or ``ln`` kills the script that called it, before or after doing what it does."""
    machine.install("snapshot")
    assert machine.run("backup-snapshot").returncode == 0
    machine.today("2026-02-01")
    (machine.source / "ann/a letter").write_text("Dear all")
    for name in ("mv", "ln"):
        real = shlex.quote(shutil.which(name) or name)
        calls = f"cat {shlex.quote(str(machine.bin))}/*.calls | wc -l"
        lines = ['echo >>"$0.calls"', f'[ "$({calls})" = {step} ] || exec {real} "$@"', f'{real} "$@"' if done else ":"]
        machine.script(name, "\n".join(["#!/bin/sh", *lines, "kill -9 $PPID", ""]))
    assert machine.run("sh", machine.bin / "backup-snapshot").returncode == -9
    latest = machine.latest()
    assert latest == ("2026-02-01" if (step, done) == (4, True) else "2026-01-31")
    for day in machine.days():
        assert is_good(machine, day)
    if "2026-02-01" in machine.days():
        assert differences(machine.source, machine.home / "2026-02-01") == []
    assert machine.run("backup-snapshot").returncode == 0
    assert (machine.latest(), machine.days()) == ("2026-02-01", ["2026-01-31", "2026-02-01"])
    assert differences(machine.source, machine.home / "2026-02-01") == []
    assert is_good(machine, "2026-02-01")
    assert not {"unfinished", "unfinished.sha256", "latest.new"} & set(machine.names())


# ---- the last N -----------------------------------------------------------------------------------------------------


def days_of(machine: Machine, count: int) -> list[str]:
    """So many snapshots, with what else can lie beside them."""
    days = [f"2026-{month:02}-{day:02}" for month in (1, 2) for day in range(1, 29)][:count]
    first = make_tree(machine.home / days[0], a_tree())
    (first / "ann/photo").chmod(0 if os.geteuid() == 0 else 0o400)
    for day in days[1:]:
        subprocess.run(["cp", "-al", first, machine.home / day], check=True)
    for day in days:
        (machine.home / f"{day}.sha256").write_text("sums")
    (machine.home / "latest").symlink_to(days[-1])
    make_tree(machine.home, {"mirror": Dir({"f": b"1"}), "unfinished": Dir(), "2026-01-01.bak": b"", "2026-01": Dir()})
    return days


def kept(machine: Machine) -> int:
    return int(re.findall(r"^keep=(\d+)$", RECIPES["keep"], re.MULTILINE)[0])


@shows("keep")
@pytest.mark.parametrize("more", [-1, 0, 1, 4])
def test_the_last_snapshots_are_kept_and_all_else(machine: Machine, more: int) -> None:
    machine.install("keep")
    count = kept(machine)
    days, before = days_of(machine, count + more), set(machine.names())
    last = state_of(machine.home / days[-1])
    done = machine.run("backup-keep")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    removed = days[:-count] if more > 0 else []
    assert machine.days() == days[-count:]
    assert before - set(machine.names()) == {*removed, *(f"{day}.sha256" for day in removed)}
    assert set(machine.names()) <= before
    assert state_of(machine.home / days[-1]) == last
    assert f"**Keep the last {count}**" in SECTION


@shows("keep")
def test_what_is_the_latest_is_kept_however_old_it_is(machine: Machine) -> None:
    machine.install("keep")
    days = days_of(machine, kept(machine) + 3)
    (machine.home / "latest").unlink()
    (machine.home / "latest").symlink_to(days[1])
    assert machine.run("backup-keep").returncode == 0
    assert machine.days() == [days[1], *days[3:]]
    assert (machine.home / "latest/ann/a letter").read_text() == "Dear"


@shows("keep")
@pytest.mark.parametrize("trouble", ["no latest", "no disk", "no snapshot"])
def test_nothing_is_removed_where_nothing_is_the_latest(machine: Machine, trouble: str) -> None:
    machine.install("keep")
    days = [] if trouble == "no snapshot" else days_of(machine, kept(machine) + 3)
    if trouble == "no disk":
        machine.home.rename(machine.disk / "away")
    elif days:
        (machine.home / "latest").unlink()
    assert machine.run("backup-keep").returncode == (3 if trouble == "no disk" else 1)
    if trouble == "no disk":
        (machine.disk / "away").rename(machine.home)
    assert machine.days() == days


@shows("keep")
def test_a_removal_that_is_killed_leaves_no_half_snapshot_and_the_next_one_finishes_it(machine: Machine) -> None:
    machine.install("keep")
    days = days_of(machine, kept(machine) + 2)
    real = shlex.quote(shutil.which("rm") or "rm")
    half = f'[ $# = 2 ] && exec {real} "$@"; {real} -rf removed/ann; kill -9 $PPID'  # the first call is for an earlier one
    machine.script("rm", f"#!/bin/sh\n{half}\n")
    assert machine.run("sh", machine.bin / "backup-keep").returncode == -9
    assert machine.days() == days[1:]
    assert sorted(os.listdir(machine.home / "removed")) == [" ", "bob"]
    (machine.bin / "rm").unlink()
    assert machine.run("backup-keep").returncode == 0
    assert machine.days() == days[2:]
    assert "removed" not in machine.names()


# ---- alerts ---------------------------------------------------------------------------------------------------------


@shows("alert")
@pytest.mark.parametrize("status", [0, 1, 2, 3, 129, 130, 143, 137])
def test_any_status_but_0_is_told_by_mail(machine: Machine, status: int) -> None:
    machine.install("alert")
    machine.log.write_text("".join(f"line {number}\n" for number in range(9)))
    done = machine.run("backup-alert", "sh", "-c", f"echo one; echo two >&2; exit {status}")
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    words, text = machine.noted("mail"), machine.noted("mail", "text")
    if status == 0:
        assert words is text is None
        return
    meaning = {1: "some files are not", 2: "nothing was done", 3: "stopped early", 137: "failed"}.get(status, "interrupted")
    assert words and words.startswith("-s\nbackup on ") and words.endswith(f"(status {status})\nroot\n")
    assert f": {meaning}" in words
    assert text and text.splitlines()[1:] == ["one", "two", *(f"line {number}" for number in range(4, 9))]
    assert machine.noted("logger") is None


@shows("alert")
def test_where_there_is_no_mail_syslog_is_told(machine: Machine) -> None:
    machine.install("alert")
    (machine.bin / "mail.status").write_text("1")
    assert machine.run("backup-alert", "false").returncode == 1
    words = (machine.noted("logger") or "").splitlines()
    assert words[:2] == ["-p", "user.err"]
    assert "some files are not" in words[2]


@shows("alert")
def test_an_alert_names_each_file_that_failed_and_has_the_end_of_the_log(machine: Machine) -> None:
    machine.install("snapshot", "alert")
    in_trouble(machine, "unreadable", lambda: machine.run("backup-alert", "backup-snapshot"), machine.home)
    text = machine.noted("mail", "text") or ""
    assert f"pcopy: {machine.source}/new and unreadable: open to read: Permission denied" in text
    assert text.splitlines()[-1] == machine.log.read_text().splitlines()[-1]
    assert '"event": "finished"' in text


# ---- by cron, by systemd, and what watches them ---------------------------------------------------------------------


@shows("crontab")
def test_every_night_by_cron_and_a_check_every_month(plain: Machine) -> None:
    plain.install("snapshot", "keep", "alert")
    table = read_crontab(plain.recipe("crontab", "/mnt/backup", "/usr/local/sbin"))
    plain.today("2026-01-04")
    days_before = [f"2025-12-{day:02}" for day in range(1, 32)]
    for day in days_before:
        (plain.home / day).mkdir()
    done = by_cron(plain, table, 0)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert plain.latest() == "2026-01-04"
    assert differences(plain.source, plain.home / "2026-01-04") == []
    assert plain.days() == [*days_before, "2026-01-04"][-kept(plain) :]
    plain.today("2026-02-01")
    done = by_cron(plain, table, 1)
    assert (done.returncode, done.stdout, done.stderr, plain.noted("mail")) == (0, "", "", None)
    flip(plain.home / "2026-01-04/ann/photo", 4000)
    assert by_cron(plain, table, 1).returncode == 1
    assert "(status 1)" in (plain.noted("mail") or "")
    assert f"{plain.home}/2026-01-04/ann/photo: check: " in (plain.noted("mail", "text") or "")
    plain.today("2026-03-01")  # whose snapshot of four weeks ago was never made
    assert by_cron(plain, table, 1).returncode == 2
    assert "(status 2)" in (plain.noted("mail") or "")


@shows("crontab")
def test_a_night_that_fails_by_cron_removes_no_snapshot(plain: Machine) -> None:
    plain.install("snapshot", "keep", "alert")
    days = days_of(plain, kept(plain) + 3)
    table = read_crontab(plain.recipe("crontab", "/mnt/backup", "/usr/local/sbin"))
    plain.today("2026-03-01")
    in_trouble(plain, "empty source", lambda: by_cron(plain, table, 0), plain.home)
    assert (plain.days(), plain.latest()) == (days, days[-1])
    assert "(status 3)" in (plain.noted("mail") or "")


def units(machine: Machine) -> dict[str, str]:
    """The text of each unit by its name."""
    parts = re.split(
        r"^# (backup[\w-]*\.\w+)\n", machine.recipe("systemd", "/usr/local/sbin", "/mnt/backup", "/home"), flags=re.MULTILINE
    )
    assert parts[0] == ""
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def values(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)


@shows("systemd")
def test_the_units_are_such_as_systemd_reads(plain: Machine) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze")
    plain.install("snapshot", "keep")
    where = plain.top / "units"
    where.mkdir()
    for name, text in units(plain).items():
        (where / name).write_text(text)
    assert about_units(where) == (0, "")
    (where / "backup.service").write_text(units(plain)["backup.service"].replace("oneshot", "oneshit"))
    assert "oneshit" in about_units(where)[1]
    [when] = values(units(plain)["backup.timer"], "OnCalendar")
    assert subprocess.run(["systemd-analyze", "calendar", when], capture_output=True, check=False).returncode == 0


def about_units(where: Path) -> tuple[int, str]:
    """What ``systemd-analyze`` says of the units in a directory; it also looks at those of the machine."""
    paths = sorted(where.iterdir())
    words = ["systemd-analyze", "verify", "--man=no", *map(str, paths)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if any(path.name in line for path in paths)]
    return done.returncode if said else 0, "\n".join(said)


@shows("systemd")
def test_the_service_makes_a_snapshot_at_a_quiet_hour_and_one_that_fails_is_mailed(plain: Machine) -> None:
    plain.install("snapshot", "keep")
    found = units(plain)
    assert set(found) == {"backup.service", "backup.timer", "backup-failed.service"}
    service, timer, failed = found["backup.service"], found["backup.timer"], found["backup-failed.service"]
    assert (values(service, "Type"), values(service, "OnFailure")) == (["oneshot"], ["backup-failed.service"])
    assert (values(timer, "Persistent"), values(timer, "WantedBy")) == (["true"], ["timers.target"])
    for line in values(service, "ExecStart"):
        assert plain.run(*shlex.split(line)).returncode == 0
    assert plain.latest() == "2026-01-31"
    assert differences(plain.source, plain.home / "2026-01-31") == []
    [line] = values(failed, "ExecStart")
    assert plain.run(*(word.replace("%H", "thehost") for word in shlex.split(line))).returncode == 0
    assert plain.noted("mail") == "-s\nbackup on thehost failed\nroot\n"
    assert plain.noted("mail", "text") == "from the journal\n"
    assert "-u\nbackup.service\n" in (plain.noted("journalctl") or "")


@shows("prometheus")
def test_the_rules_for_prometheus_ask_for_what_pcopy_writes(tmp_path: Path, machine: Machine, pcopy: Run) -> None:
    assert pcopy("--metrics", tmp_path / "home.prom", machine.source, machine.home / "mirror").returncode == 0
    metrics = re.findall(r"^(pcopy_\w+)\{", (tmp_path / "home.prom").read_text(), re.MULTILINE)
    rules = re.findall(r"^ +- alert: \w+\n +expr: (.+)$", RECIPES["prometheus"], re.MULTILINE)
    assert len(rules) == RECIPES["prometheus"].count("alert:") == 2
    assert {name for rule in rules for name in re.findall(r"pcopy_\w+", rule)} <= set(metrics)
    if shutil.which("promtool"):
        (tmp_path / "rules.yml").write_text(RECIPES["prometheus"])
        subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], check=True)


# ---- all of them ----------------------------------------------------------------------------------------------------


def test_every_recipe_has_a_test() -> None:
    assert set(RECIPES) == shown


def test_every_block_of_the_section_is_a_recipe() -> None:
    assert SECTION.count("\n```") == 2 * len(RECIPES)
    assert README.count("<!-- recipe:") == len(RECIPES)
