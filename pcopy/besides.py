"""What a run writes besides the copy: whether a log, metrics, a manifest are in the way of anything. Raises UsageError."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence

from pcopy.errors import UsageError
from pcopy.manifest import PORTION, BadLine, parse
from pcopy.options import Options
from pcopy.paths import Landing
from pcopy.places import place_of, within
from pcopy.select import selection


def check_files(files: Iterable[str], landings: Sequence[Landing], options: Options) -> None:
    """Refuse what a run writes besides the copy, such as its log, where the copy of something else is to be."""
    chosen = selection(options.filters)
    for file in files:
        path = place_of(file)
        for landing in landings:
            source = copied_to(path, landing)
            below = source and os.path.relpath(source, landing.source)
            if not below or (landing.only is not None and below not in landing.only):
                continue
            if landing.names or not chosen or not chosen.hides(below, False):
                raise UsageError(
                    f"{file}: would take the place of the copy of {source}; name another file, or exclude that one"
                )


def refuse_one_file(files: Iterable[str]) -> None:
    """What a run writes besides the copy needs a file each: of two, one would take the place of the other."""
    seen: set[str] = set()
    for file in files:
        if (place := place_of(file)) in seen:
            raise UsageError(f"{file}: is to be written twice; name a file each for log, metrics and manifest")
        seen.add(place)


def check_place(given: str, top: str, landings: Sequence[Landing]) -> str:
    """Where a manifest goes, as an absolute path. Raises UsageError if it cannot, or would replace what it lists."""
    name = os.path.basename(given)
    if not name or "\0" in given or os.path.isdir(given):
        raise UsageError(f"manifest {given!r}: is a directory or no name; name a file")
    path, real_top = place_of(given), os.path.realpath(top)
    where = os.path.dirname(path)
    if path == real_top:
        raise UsageError(f"manifest {given}: is the destination itself; name a file")
    if where != real_top and not os.path.isdir(where):  # the destination will be there
        raise UsageError(f"manifest {given}: {where} is not a directory that exists; make it first (mkdir -p)")
    if os.path.isdir(where) and not os.access(where, os.W_OK | os.X_OK):
        raise UsageError(f"manifest {given}: {where} may not be written to; name a file elsewhere")
    if reason := refusal_of(path):
        raise UsageError(f"manifest {given}: {reason}; name another")
    if holds_something_else(path):
        raise UsageError(f"manifest {given}: is there and is no manifest; name another file, or remove it")
    for landing in landings:
        if listed_as := source_of(path, landing):
            raise UsageError(f"manifest {given}: would take the place of {listed_as} or its copy; name another file")
    return path


def refusal_of(path: str) -> str:
    """Why a file cannot be put in a place, if it cannot. Opens nothing: a FIFO would wait for somebody."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    return "" if regular else "is there and is no regular file"


def holds_something_else(path: str) -> bool:
    """Whether a file would be lost that nobody meant to give up."""
    try:
        with open(path, "rb") as file:
            line = file.readline(PORTION)
        return bool(line) and parse(line.removesuffix(b"\n")) is None
    except BadLine:
        return True
    except OSError:
        return False


def source_of(path: str, landing: Landing) -> str | None:
    """The source that is this file, or whose copy it would be."""
    for name in landing.names:
        source = os.path.join(landing.source, name)
        if os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
            return source
    return copied_to(path, landing)


def copied_to(path: str, landing: Landing) -> str | None:
    """The source whose copy a file would be."""
    below = within(path, landing.destination)
    for name in landing.names:
        if below == (landing.rename or name):
            return os.path.join(landing.source, name)
    source = os.path.join(landing.source, below or "")
    return source if below and not landing.names and os.path.lexists(source) else None
