"""The main job: a tree becomes a copy."""

from __future__ import annotations

from pathlib import Path

import pytest

import pcopy
from tests.trees import Dir, File, Hard, Link, make_tree, read_tree


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_tree_becomes_an_equal_tree(tmp_path: Path, jobs: int) -> None:
    below: dict[str | bytes, object] = {f"f{number}": str(number) for number in range(300)}
    source = make_tree(
        tmp_path / "src",
        {"a": File(b"text", mode=0o640), "d": Dir({"l": Link("../a"), "e": Dir(below)}), "h": Hard("a")},
    )
    report = pcopy.copy(source, tmp_path / "dst", jobs=jobs)
    assert report.ok, report.errors
    assert read_tree(tmp_path / "dst") == read_tree(source)
    assert (report.files, report.symlinks, report.hardlinks, report.directories) == (301, 1, 1, 3)
