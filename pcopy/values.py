"""What words mean: sizes, times, lists of patterns and of paths. Pure: what a file holds comes in as bytes.

Each raises UsageError for what it cannot take, and says what to write instead.
"""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Iterable

from pcopy.errors import UsageError

SIZE = r"(?a)(\d+(?:\.\d+)?) ?([kKMGTP]?)(i?B|)"
AGE = r"(?a)(\d+(?:\.\d+)?)([smhdw])"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
NS = 10**9


def size_of(given: int | str) -> int:
    """Bytes. As in rsync, ``10k`` and ``10KiB`` are 10 * 1024, ``10kB`` is 10,000."""
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    match = re.fullmatch(SIZE, given.strip()) if isinstance(given, str) else None
    try:
        if not match:
            raise ValueError
        number, letter, ending = match.groups()
        return int(float(number) * (1000 if ending == "B" else 1024) ** " KMGTP".index(letter.upper() or " "))
    except (ValueError, OverflowError):
        raise UsageError(f"{given!r} is not a size: write bytes, or 10k, 5M, 1.5G") from None


def moment_of(given: int | str | datetime.datetime) -> int:
    """Nanoseconds since the epoch, of a date, a date and time (here, if it names no zone), or an age such as ``7d``."""
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    match = re.fullmatch(AGE, given.strip()) if isinstance(given, str) else None
    try:
        if match:
            return time.time_ns() - round(float(match[1]) * SECONDS[match[2]] * NS)
        moment = given
        if isinstance(given, str):  # a Z, which Python 3.10 does not know
            moment = datetime.datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", given.strip()))
        if isinstance(moment, datetime.datetime):
            return int(moment.replace(microsecond=0).timestamp()) * NS + moment.microsecond * 1000
        raise ValueError
    except (ValueError, OverflowError, OSError):
        message = f"{given!r} is not a time: write a date (2026-01-31), a date and time (2026-01-31T18:30) or an age (7d, 12h)"
        raise UsageError(message) from None


def patterns_in(data: bytes) -> list[str]:
    """The lines of a gitignore file: as git does, without a byte order mark and the returns of another system."""
    lines = os.fsdecode(data.removeprefix(b"\xef\xbb\xbf")).split("\n")
    return [line.removesuffix("\r") for line in lines]


def paths_in(data: bytes, null: bool) -> list[str]:
    """The paths in a list: one on each line, or each with a NUL after it."""
    if b"\0" in data and not null:
        raise UsageError("holds NUL characters: add -0 if these are what separates the paths")
    return [path for path in os.fsdecode(data).split("\0" if null else "\n") if path]


def relative_path(path: str) -> str:
    """A path below a source, without what says nothing; empty for the source itself."""
    if path.startswith("/"):
        raise UsageError(f"{path!r}: is absolute; write it as it is below the source")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UsageError(f"{path!r}: leads upwards; write it as it is below the source, without ..")
    if "\0" in path:
        raise UsageError(f"{path!r}: holds a NUL character, which no path can")
    return "/".join(parts)


def relative_paths(paths: Iterable[str]) -> tuple[str, ...]:
    """Each once, in order."""
    return tuple(sorted({relative for path in paths if (relative := relative_path(path))}))
