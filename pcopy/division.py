"""One unit in several, for workers that have nothing to do."""

from __future__ import annotations

from pcopy.work import Check, Count, Entries, Link, Remove, Span, Sums, Unit, Verify

# Bytes of the smallest span worth sharing out.
SMALLEST_SPAN = 4 << 20
PAGE = 64 << 10  # bytes: the largest that Linux is built for


def pieces(unit: Unit) -> int:
    """Into how many units one can be divided at most."""
    if isinstance(unit, (Entries, Link, Remove, Sums)):
        return len(unit.names)
    if isinstance(unit, Check):
        return unit.length
    if isinstance(unit, Count):
        return len(unit.paths)
    return (unit.stop - unit.start) // SMALLEST_SPAN if isinstance(unit, (Span, Verify)) else 1


def divide(unit: Unit, parts: int) -> list[Unit]:
    """A unit in about so many, if it can be divided."""
    if isinstance(unit, (Entries, Link, Remove, Sums)) and len(unit.names) > 1:
        return divide_names(unit, parts)
    if isinstance(unit, Check) and unit.length > 1:
        size = max(1, unit.length // parts)
        return [unit.part(at, at + size) for at in range(0, unit.length, size)]
    if isinstance(unit, Count):
        size = max(1, len(unit.paths) // parts)
        return [unit._replace(paths=unit.paths[at : at + size]) for at in range(0, len(unit.paths), size)]
    if isinstance(unit, (Span, Verify)) and unit.stop - unit.start >= 2 * SMALLEST_SPAN:
        return divide_bytes(unit, parts)
    return [unit]


def divide_names(unit: Entries | Link | Remove | Sums, parts: int) -> list[Unit]:
    size = max(1, len(unit.names) // parts)
    starts = range(0, len(unit.names), size)
    if isinstance(unit, (Remove, Sums)):
        return [unit._replace(names=unit.names[at : at + size]) for at in starts]
    some = [unit.part(at, at + size) for at in starts]
    return [one._replace(share=unit.share * len(one.names) / len(unit.names)) for one in some]


def divide_bytes(unit: Span | Verify, parts: int) -> list[Unit]:
    size = max(SMALLEST_SPAN, -(-(unit.stop - unit.start) // parts))
    size = -(-size // PAGE) * PAGE  # no page is written by two workers, one of which has verified its part of it
    if isinstance(unit, Span):
        unit = unit._replace(shared=True)
    return [unit._replace(start=start, stop=min(start + size, unit.stop)) for start in range(unit.start, unit.stop, size)]
