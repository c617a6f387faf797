"""The house of pcopy: every file imports only files on floors below its own, and heavy modules live in one place each.

The table is read from the top: who stands on a floor may use whatever stands below it, and nothing beside or above it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pcopy

HOUSE = Path(pcopy.__file__).parent
FLOORS = (
    ("errors", "options", "stop", "roaming", "workers", "sample"),
    ("work", "paths", "select", "values", "child", "pace", "figures"),
    ("outcome",),
    ("result", "filesystem", "lists", "engines", "inodes", "division"),  # engines know no units
    ("changes", "storage", "attributes", "crew", "mounts", "quota"),
    ("extents", "runs"),
    ("contents",),
    ("handles", "failures"),
    ("metadata", "reading", "manifest", "listing", "extra"),
    ("directory", "plain", "symlinks", "audit"),
    ("verdict", "in_the_way"),
    ("halves",),
    ("entry",),
    ("links", "account"),
    ("removal", "large", "sums", "at_once"),
    ("worker", "frontier"),
    ("coordinator", "prepare"),
    ("drive", "asked"),
    ("part", "places"),
    ("besides",),
    ("limit",),
    ("api",),
    ("comparison", "checking"),
    ("report",),
    ("progress", "chart", "log", "metrics"),
    ("terminal",),
    ("command",),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FACE = "__init__"  # what it names, it imports when it is used
# Where each of these may be imported, at the top of a file or inside a function.
HOMES = {
    "click": {"cli", "command"},
    "tqdm": {"progress"},
    "matplotlib": {"chart"},
    "pathspec": {"select"},
    "multiprocessing": {"engines", "child"},
    "concurrent": {"engines", "drive"},
    "subprocess": {"comparison"},
}
# What a face may not reach around the library for, although it stands above it.
NEVER = {
    "cli": {
        "coordinator",
        "drive",
        "worker",
        "engines",
        "filesystem",
        "changes",
        "storage",
        "attributes",
        "handles",
        "directory",
        "extra",
        "listing",
        "entry",
        "verdict",
        "halves",
        "plain",
        "links",
        "metadata",
        "contents",
        "reading",
        "audit",
    },
    "comparison": {"coordinator", "worker", "engines", "filesystem"},
    "report": {"coordinator", "worker", "engines", "filesystem", "api"},
    "progress": {"coordinator", "worker", "engines", "filesystem", "api", "comparison"},
    "chart": {"coordinator", "worker", "engines", "filesystem", "api"},
    "log": {"coordinator", "worker", "engines", "filesystem", "api"},
    "metrics": {"coordinator", "worker", "engines", "filesystem", "api"},
}
FILES = sorted(path.stem for path in HOUSE.rglob("*.py"))


def imports_of(source: str) -> Iterator[str]:
    """The full names of all modules that a file imports, wherever in it; of pcopy's, the module that holds the name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            assert node.module
            if node.module == "pcopy":  # from pcopy import filesystem as fs
                yield from (f"pcopy.{one.name}" if one.name in FILES else "pcopy" for one in node.names)
            else:
                yield node.module


def imported_by(name: str) -> set[str]:
    return set(imports_of((HOUSE / f"{name}.py").read_text("utf-8")))


def of_pcopy(modules: set[str]) -> set[str]:
    return {module.split(".")[1] for module in modules if module.startswith("pcopy.")}


def at_import(source: str) -> Iterator[str]:
    """What a file imports when it is imported itself: not in functions, not for the type checker alone."""
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from imports_of(ast.unparse(node))


def test_every_file_has_a_floor() -> None:
    assert sorted([*FLOOR, FACE]) == FILES


@pytest.mark.parametrize("name", FLOOR)
def test_a_file_imports_only_files_on_lower_floors(name: str) -> None:
    wrong = {other for other in of_pcopy(imported_by(name)) if FLOOR[other] >= FLOOR[name]}
    assert not wrong, f"{name}.py stands on floor {FLOOR[name]}"


@pytest.mark.parametrize("module", HOMES)
def test_a_heavy_module_is_imported_in_its_home_only(module: str) -> None:
    users = {name for name in FILES if module in {one.split(".")[0] for one in imported_by(name)}}
    assert users == HOMES[module]


@pytest.mark.parametrize("name", NEVER)
def test_a_face_does_not_reach_around_the_library(name: str) -> None:
    assert not of_pcopy(imported_by(name)) & NEVER[name]


def test_the_package_imports_nothing_of_its_own_until_it_is_used() -> None:
    imported = set(at_import((HOUSE / "__init__.py").read_text("utf-8")))
    assert imported == {"__future__"}


def test_every_public_name_is_there() -> None:
    for name in pcopy.__all__:
        assert getattr(pcopy, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(pcopy, "no_such_name")  # noqa: B009


def test_the_walk_finds_imports_of_every_form() -> None:
    source = "import a.b as c\nfrom pcopy import work as w, __version__\ndef f():\n if 1:\n  from pcopy.cli import main\n"
    assert set(imports_of(source)) == {"a.b", "pcopy.work", "pcopy", "pcopy.cli"}
    assert set(at_import(source)) == {"a.b", "pcopy.work", "pcopy"}


@pytest.mark.parametrize("arguments", [("-c", "import pcopy"), ("-m", "pcopy", "--version")])
def test_a_start_pays_for_nothing_that_it_does_not_use(arguments: tuple[str, ...]) -> None:
    heavy = {"multiprocessing", "concurrent.futures", "tqdm", "matplotlib", "pathspec", "pcopy.coordinator", "pcopy.worker"}
    assert not loaded_by(*arguments) & heavy


def test_a_small_copy_pays_for_no_pool(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    loaded = loaded_by("-m", "pcopy", "-j", "8", str(tmp_path / "file"), str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_text() == "text"
    assert not loaded & {"multiprocessing", "concurrent.futures", "logging", "pathspec", "pcopy.drive", "pcopy.engines"}


def loaded_by(*arguments: str) -> set[str]:
    command = [sys.executable, "-X", "importtime", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    loaded = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}
    assert "pcopy" in loaded
    return loaded
