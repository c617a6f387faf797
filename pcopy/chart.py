"""A comparison as a picture, by matplotlib (the extra ``chart``)."""

from __future__ import annotations

import math
import os

from pcopy.errors import UsageError
from pcopy.figures import Comparison
from pcopy.report import plural, size

PCOPY, PEER = "#2a6f97", "#a9b4bd"
FORMATS = (".png", ".svg", ".pdf")


def check_chart(path: str) -> None:
    """Before anything is measured: can this picture be drawn? Raises UsageError."""
    if not path:
        raise UsageError("--chart: the name of a file is missing; a variable that is not set?")
    if not path.endswith(FORMATS):
        raise UsageError(f"--chart {path}: must end in one of {', '.join(FORMATS)}")
    if os.path.isdir(path):
        raise UsageError(f"--chart {path}: is a directory; name a file")
    try:
        folder = os.path.dirname(os.path.abspath(path))
    except FileNotFoundError:  # getcwd(2)
        raise UsageError(f"--chart {path}: the working directory is gone: change to another") from None
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UsageError(f"--chart {path}: {folder} is not a directory that can be written to")
    os.environ["MPLBACKEND"] = "Agg"  # a notebook sets its own, which may not be installed here
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        cure = "pip install matplotlib (after pipx: pipx inject pcopy matplotlib)"
        raise UsageError(f"--chart needs matplotlib, pcopy's extra 'chart': {cure}") from None


def draw(comparison: Comparison, path: str) -> None:
    """One bar for each contender: its median wall time, with the fastest and the slowest round as whiskers."""
    ran = [one for one in comparison.contenders if one.seconds]
    if not ran:
        return
    from matplotlib import pyplot

    medians = [one.median for one in ran]
    spread = [[one.median - min(one.seconds) for one in ran], [max(one.seconds) - one.median for one in ran]]
    figure, axes = pyplot.subplots(figsize=(7.5, 1.4 + 0.5 * len(ran)), layout="constrained")
    axes.barh(
        [one.name for one in ran], medians, xerr=spread, height=0.6, ecolor="#333333", capsize=3,
        color=[PCOPY if one.jobs else PEER for one in ran],
    )  # fmt: skip
    for at, one in enumerate(ran):
        axes.annotate(
            f"{seconds(one.median)} s" + (f"  ({comparison.speed_up(one):.2f}x)" if comparison.base.seconds else ""),
            (max(one.seconds), at), xytext=(6, 0), textcoords="offset points", va="center",
        )  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(max(one.seconds) for one in ran))
    axes.set_xlabel("seconds (median; whiskers: fastest and slowest round); less is better")
    axes.set_title(
        f"Copying {plural(comparison.files, 'file')}, {size(comparison.bytes)}: {plural(comparison.rounds, 'round')}",
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def seconds(wall: float) -> str:
    """With three significant figures, and never with an exponent: 0.00123, 12.3, 1234."""
    return f"{wall:.{max(0, 2 - math.floor(math.log10(wall)))}f}"
