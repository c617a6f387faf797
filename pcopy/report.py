"""Reports and comparisons as text and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pcopy.outcome import Failure
from pcopy.result import Report

if TYPE_CHECKING:  # it is only used by comparisons, and takes long to import
    from pcopy.figures import Comparison, Contender

UNITS = ("", "kB", "MB", "GB", "TB", "PB")
KEYS = (
    "files", "bytes", "directories", "symlinks", "hardlinks", "specials", "unchanged", "deleted", "failed", "vanished",
    "skipped",
)  # fmt: skip
BAR, SHORT_BAR = 16, 5  # columns of the longest bar in a table; where there is no room for a short one, there is none
SPEED_UP = "speed-up: median of each round's ratio to -j 1, not the ratio of the medians"


def shown(text: str) -> str:
    """A name as a terminal may see it: no control characters, no escape sequences, no bytes that are not text."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else escaped(one) for one in text)


def escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def size(count: float) -> str:
    """Bytes in decimal units: 847.0 MB."""
    number, unit = float(count), 0
    while number >= 999.95 and unit < len(UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:,.1f} {UNITS[unit]}" if unit else plural(round(number), "byte")


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def failure_line(failure: Failure) -> str:
    return f"{shown(failure.path)}: {failure.operation}: {shown(failure.reason)}"


def last_line(report: Report) -> str:
    """What a run did, in one line."""
    rates = f"{size(report.bytes_per_second)}/s, {report.files_per_second:,.0f} files/s"
    counts = [f"{report.unchanged:,} unchanged", f"{report.deleted:,} deleted", f"{report.failed:,} failed"]
    counts = counts[2:] if report.checked else counts
    counts += [f"{count:,} {what}" for what in ("vanished", "skipped") if (count := getattr(report, what))]
    verb = "checked" if report.checked else "would copy" if report.dry_run else "copied"
    what = f"{verb} {plural(report.files, 'file')}, {size(report.bytes)} in {report.seconds:.2f} s ({rates})"
    line = f"{what}; {', '.join(counts)}"
    if report.signal:
        return f"interrupted: {line}; run the same line again to go on"
    return f"stopped early: {line}" if report.stopped else line


def warnings(report: Report) -> list[str]:
    """What could not be preserved, once for each kind, and whatever else is worth a line."""
    lost = [f"{kind}: could not be preserved on {count:,} of the copies" for kind, count in sorted(report.lost.items())]
    gone = [f"vanished from the source before they were copied: {report.vanished:,} of the entries"] if report.vanished else []
    return report.warnings + gone + lost


def as_json(report: Report) -> str:
    """The report as one line of JSON. Bytes of names that are not UTF-8 are lone surrogates (os.fsdecode)."""
    import json

    return json.dumps(figures(report))


def figures(report: Report) -> dict[str, Any]:
    """All that a report tells, as JSON has it."""
    numbers: dict[str, Any] = {key: getattr(report, key) for key in KEYS}
    numbers["seconds"] = round(report.seconds, 6)
    numbers["bytes_per_second"] = round(report.bytes_per_second)
    numbers["files_per_second"] = round(report.files_per_second, 1)
    numbers["jobs"], numbers["engine"] = report.jobs, report.engine
    numbers["errors"] = [
        {"path": one.path, "operation": one.operation, "errno": one.errno, "reason": one.reason} for one in report.errors
    ]
    numbers["warnings"] = warnings(report)
    numbers["exit_status"] = int(report.exit_status)
    return numbers


# ---- comparisons ----------------------------------------------------------------------------------------------------


def table(comparison: Comparison, block: str = "█", columns: int = 1000) -> str:
    """A comparison for a terminal of so many columns; the shorter the bar, made of ``block``, the better."""
    head = f"{plural(comparison.files, 'file')}, {size(comparison.bytes)}; {plural(comparison.rounds, 'round')} after a warm-up"
    titles = ("", "median s", "min-max s", "MB/s", "files/s", "speed-up")
    rows = [row(one, comparison) for one in comparison.contenders]
    widths = [max(len(line[column]) for line in [titles, *rows]) for column in range(len(titles))]
    room = min(BAR, columns - sum(widths) - 2 * len(widths))
    longest = max((one.median for one in comparison.contenders if one.seconds), default=1.0)
    place = [f"copies in {shown(comparison.place)}"] if comparison.place else []
    lines = [head, *place, "", line_of(titles, widths)]
    for one, cells in zip(comparison.contenders, rows, strict=True):
        if not one.seconds:
            bar = shown(one.trouble)
        else:
            bar = block * max(1, round(room * one.median / longest)) if room >= SHORT_BAR else ""
        lines.append(f"{line_of(cells, widths)}  {bar}".rstrip())
    return "\n".join([*lines, "", SPEED_UP, comparison.advice])


def row(one: Contender, comparison: Comparison) -> tuple[str, ...]:
    if not one.seconds:
        return (one.name, "", "", "", "", "")
    return (
        one.name,
        f"{one.median:.3f}",
        f"{min(one.seconds):.3f}-{max(one.seconds):.3f}",
        f"{comparison.bytes / 1e6 / one.median:,.0f}",
        f"{comparison.files / one.median:,.0f}",
        f"{comparison.speed_up(one):.2f}x" if comparison.base.seconds else "",
    )


def line_of(cells: tuple[str, ...], widths: list[int]) -> str:
    name, *numbers = cells
    return "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))])


def comparison_json(comparison: Comparison) -> str:
    contenders = [
        {
            "name": one.name,
            "jobs": one.jobs,
            "command": list(one.command),
            "seconds": [round(wall, 6) for wall in one.seconds],
            "median_seconds": round(one.median, 6) if one.seconds else None,
            "bytes_per_second": round(comparison.bytes / one.median) if one.seconds else None,
            "files_per_second": round(comparison.files / one.median, 1) if one.seconds else None,
            "speed_up": round(comparison.speed_up(one), 3) if one.seconds and comparison.base.seconds else None,
            "trouble": one.trouble or None,
        }
        for one in comparison.contenders
    ]
    whole = {
        "files": comparison.files,
        "bytes": comparison.bytes,
        "rounds": comparison.rounds,
        "place": comparison.place,
        "contenders": contenders,
        "best_jobs": comparison.best_jobs,
        "advice": comparison.advice,
        "exit_status": comparison.exit_status,
    }
    import json

    return json.dumps(whole)
