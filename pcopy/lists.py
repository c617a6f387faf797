"""The files that a command line names: lists of patterns, and of paths to copy. "-" is standard input."""

from __future__ import annotations

import sys

from pcopy.errors import UsageError
from pcopy.select import parse
from pcopy.values import paths_in, patterns_in, relative_path


def read(file: str) -> bytes:
    """All of a file. Raises UsageError."""
    try:
        if file == "-":
            return sys.stdin.buffer.read()
        with open(file, "rb") as opened:
            return opened.read()
    except FileNotFoundError:
        raise UsageError(f"{file or repr('')}: the list does not exist; check the spelling") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file!r}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def patterns_of(file: str) -> list[str]:
    """The lines of a file as gitignore has them. Raises UsageError, which names the line."""
    lines = patterns_in(read(file))
    for number, line in enumerate(lines, 1):
        try:
            parse(line)
        except UsageError as error:
            raise UsageError(f"{file}, line {number}: {error}") from None
    return lines


def paths_of(file: str, null: bool) -> list[str]:
    """The paths that a file lists. Raises UsageError, which names the path."""
    data = read(file)
    try:
        paths = paths_in(data, null)
        for path in paths:
            relative_path(path)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
    return paths
