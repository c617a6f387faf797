"""The rows of the table in their small form: that each can be run, and how long it takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.bench import Bench, Contender, timed
from benchmarks.rows import ROWS, Row

pytestmark = pytest.mark.timeout(0)

ROUNDS = 3
SMALL = 0.02  # of what the table is of: 1,000 small files, large ones of 21 MB


def contenders(row: Row, folder: Path, scale: float) -> list[Contender]:
    return [one for one in row(Bench(folder, SMALL * scale, [sys.executable, "-m", "pcopy"])) if one.is_there]


@pytest.mark.parametrize("row", ROWS, ids=[row.__name__ for row in ROWS])
@pytest.mark.parametrize("number", range(7))
def test_row(benchmark: BenchmarkFixture, folder: Path, scale: float, row: Row, number: int) -> None:
    """One contender of one row; those of a row are a group."""
    there = contenders(row, folder, scale)
    if number >= len(there):
        pytest.skip("the row has no more contenders here")
    one = there[number]
    benchmark.group, benchmark.name = row.__doc__, one.name
    benchmark.pedantic(timed, args=(one._replace(before=lambda: None), 0), setup=one.before, rounds=ROUNDS)  # type: ignore[no-untyped-call]
