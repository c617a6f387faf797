"""A run as lines of JSON in a file, one an event: who was copied, linked, deleted, what failed, how it ended.

The schema is in the README. Lines are written at the end of each slice, all in one call, so that those of two runs into one
file do not mix. The copy is what matters: a log that cannot be written any more ends no run, but is an error of it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from pcopy import __version__
from pcopy.asked import text_of
from pcopy.errors import UsageError
from pcopy.options import Options
from pcopy.outcome import Event, Failure
from pcopy.places import absolute
from pcopy.report import figures, warnings
from pcopy.result import Observer, Progress, Report

# Not through a link that somebody planted; a FIFO without a reader must not stop us.
FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
# Names of files can be private; less the umask.
MODE = 0o640
CLOSED = -1
REFUSED = {
    errno.ELOOP: "is a symbolic link: give the file that it points to",
    errno.EISDIR: "is a directory: name a file in it",
    errno.ENOENT: "its directory does not exist: make it first (mkdir -p)",
}


class Log(Observer):
    """Appends what happens to a file."""

    wants_events = True
    starts_last = True  # what others refuse is to leave no line

    def __init__(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
        self.given = text_of("log", path)
        self.path = absolute(self.given) if self.given else ""
        self.files = [self.path]
        self.handle = CLOSED
        self.lines: list[str] = []
        self.time = ""  # of these lines: what happened in a slice is told together
        self.always: dict[str, Any] = {}  # in each line
        self.trouble: Failure | None = None
        self.torn = False  # the last line is not whole

    def started(self, sources: Sequence[str], destination: str, options: Options) -> None:
        self.handle, self.trouble, self.lines = open_log(self.path, self.given), None, []
        self.torn = is_torn(self.handle)
        self.always = {"run": f"{os.getpid()}-{os.urandom(4).hex()}"}
        if options.dry_run:
            self.always["dry_run"] = True
        self.add("started", version=__version__, sources=list(sources), destination=destination, jobs=options.jobs)
        self.flush()

    def event(self, event: Event) -> None:
        more: dict[str, Any] = {"why": event.why} if event.why else {}
        if event.bytes is not None:
            more["bytes"] = event.bytes
        self.add(event.what, path=event.path, **more)

    def failure(self, failure: Failure) -> None:
        if self.handle != CLOSED:
            self.add("failed", path=failure.path, operation=failure.operation, errno=failure.errno, reason=failure.reason)

    def progress(self, progress: Progress) -> None:
        self.flush()

    def finished(self, report: Report) -> None:
        self.flush()
        trouble, self.trouble = self.trouble, None  # there may be room again for how it ended
        for warning in warnings(report):
            self.add("warning", reason=warning)
        if trouble:
            report.errors.append(trouble)
            self.failure(trouble)
        self.add("finished", report=figures(report))
        self.flush()
        if self.trouble and not trouble:
            report.errors.append(self.trouble)
        os.close(self.handle)
        self.handle = CLOSED

    # ---- lines ----

    def add(self, what: str, **more: Any) -> None:
        self.time = self.time or now()
        self.lines.append(json.dumps({"time": self.time, **self.always, "event": what, **more}) + "\n")

    def flush(self) -> None:
        """Write what there is, unless that has failed before: then the log ends, and nothing is kept for it."""
        lines, self.lines, self.time = self.lines, [], ""
        if not lines or self.trouble:
            return
        data = ("\n" if self.torn else "") + "".join(lines)
        try:
            self.write(data.encode("ascii"))
        except OSError as error:
            reason = f"{error.strerror}: events of this run are missing in it"
            self.trouble = Failure(self.path, "write the log", error.errno, reason)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self.handle, view)
            self.torn = view[written - 1] != ord("\n")
            view = view[written:]


def now() -> str:
    return datetime.now(timezone.utc).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def open_log(path: str, given: str) -> int:
    """A handle to append to. Raises UsageError."""
    if not path:
        raise UsageError("log '': is no name; name a file")
    try:
        handle = os.open(path, FLAGS, MODE)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        reason = REFUSED.get(number or 0) or getattr(error, "strerror", None) or str(error)
        raise UsageError(f"log {given}: {reason}") from None
    regular = stat.S_ISREG(os.fstat(handle).st_mode)
    if not regular or holds_something_else(handle):
        os.close(handle)
        what = "is there and is no log of pcopy" if regular else "is not a regular file"
        raise UsageError(f"log {given}: {what}: name another")
    return handle


def holds_something_else(handle: int) -> bool:
    """Whether a file would be spoilt that nobody meant for a log."""
    try:
        return os.pread(handle, 1, 0) not in (b"", b"{")
    except OSError:
        return False


def is_torn(handle: int) -> bool:
    """Whether a killed run, or a full disk, left half a line at the end."""
    size = os.fstat(handle).st_size
    with contextlib.suppress(OSError):
        return size > 0 and os.pread(handle, 1, size - 1) != b"\n"
    return False
