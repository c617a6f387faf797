"""The one place where an OSError becomes a Failure."""

from __future__ import annotations

import errno
from types import TracebackType

from pcopy import attributes, changes, extents, filesystem, storage
from pcopy.outcome import Failure

# A function there is named after its operation, but for these.
CALLS = frozenset(module.__file__ for module in (filesystem, changes, storage, extents, attributes))
WORDS = {
    **dict.fromkeys(["hold", "held", "by_name"], "open"),
    **dict.fromkeys(["open_deep", "open_top", "pass_through", "reopen_directory", "shortened", "way_to"], "open directory"),
    **dict.fromkeys(["has_hole", "has_unwritten", "next_extent", "seek"], "look for holes"),
    **dict.fromkeys(["attributes_of", "attributes_by_name"], "list attributes"),
    "lacks_data": "read",
    "remove_if_there": "remove",
    "renamed": "rename",
}
# Nothing else can be written to the destination either.
FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
ADVICE = {
    errno.ENAMETOOLONG: "the destination's file system does not allow so long a name",
    errno.EILSEQ: "the destination's file system does not allow this name",
    errno.ENOSPC: "free some space and run the same line again: it continues; df -i tells if it is inodes that lack",
    errno.EDQUOT: "free some space and run the same line again: it continues",
    errno.EFBIG: "the destination's file system, or a limit (ulimit -f), does not allow so large a file",
    errno.EROFS: "mount the destination read-write",
}
CLOSED = " (a run opens it, if it is yours; a dry run touches nothing)"


class CopyError(OSError):
    """An OSError that knows which path to name, by its ``filename``: that of a directory's copy, say, and not of its source."""


def of(path: str, error: OSError) -> Failure:
    """Turn an OSError into the Failure of ``path``, with the operation that raised it and advice where there is some."""
    if isinstance(error, CopyError):
        path = error.filename
    reason = error.strerror or str(error)
    if error.errno in ADVICE:
        reason += f" ({ADVICE[error.errno]})"
    return Failure(path, operation(error.__traceback__), error.errno, reason, error.errno in FATAL)


def operation(trace: TracebackType | None) -> str:
    """The name of the innermost system call in a traceback, in words."""
    name = "copy"
    while trace:
        code = trace.tb_frame.f_code
        if code.co_filename in CALLS and not code.co_name.startswith("<"):  # a comprehension is no function
            name = code.co_name
        trace = trace.tb_next
    return WORDS.get(name, name.replace("_", " "))
