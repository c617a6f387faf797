"""Draws figures of benchmarks.rows for the README: python -m benchmarks.chart FIGURES.json CHART.svg

For each kind of work, how long each tool takes as a multiple of pcopy -j 2: the median of the ratios within the rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from benchmarks.bench import ratios
from benchmarks.rows import ROWS

# What a reader compares at a glance. The rest is in the table.
SHOWN = ("fresh", "rerun", "large", "nightly", "verify", "check")
NO_TOOL = "a bare loop"
MINE = "pcopy -j 2"


def bars(walls: dict[str, list[float]]) -> list[tuple[str, float]]:
    """Each contender's multiple of MINE, the quickest first."""
    found = [(name, statistics.median(ratios(walls, name, MINE))) for name in walls if name != NO_TOOL]
    return sorted(found, key=lambda one: one[1])


def draw(figures: dict[str, dict[str, list[float]]], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pcopy"})  # text as text, and the same file each time
    titles = {row.__name__: row.__doc__ or "" for row in ROWS}
    groups = [(titles[name], bars(figures[name])) for name in SHOWN if name in figures]
    figure = Figure(figsize=(8, 0.26 * sum(len(found) + 1.6 for _, found in groups)), layout="constrained")
    axes = figure.subplots()
    at, ticks, labels = 0.0, [], []
    for title, found in groups:
        axes.text(0, at, title, weight="bold", va="center", ha="left", fontsize=9)
        at += 1
        for name, multiple in found:
            axes.barh(at, multiple, color="#2a6f97" if name == MINE else "#c9c9c9", height=0.8)
            axes.text(multiple, at, f" {multiple:.2f}", va="center", ha="left", fontsize=8)
            ticks.append(at)
            labels.append(name)
            at += 1
        at += 0.6
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("time, as a multiple of pcopy -j 2 (less is better)", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
    except (OSError, ValueError) as error:  # no such file, no figures, no kind of picture
        sys.exit(str(error))


if __name__ == "__main__":
    main()
