"""The last run as a file in Prometheus' text format, for the textfile collector of node_exporter.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence

from pcopy.asked import text_of
from pcopy.besides import refusal_of
from pcopy.errors import UsageError
from pcopy.options import Options
from pcopy.outcome import Failure
from pcopy.places import absolute
from pcopy.report import KEYS, shown, warnings
from pcopy.result import Observer, Report

HELP = {
    "last_run_timestamp_seconds": "When the last run ended, in seconds since 1970.",
    "duration_seconds": "Wall time of the last run.",
    "exit_status": "Exit status of the last run: 0 is a copy that is what was asked for.",
    "errors": "Errors of the last run, those that belong to no entry included.",
    "warnings": "Warnings of the last run.",
    "files": "Regular files that the last run copied.",
    "bytes": "Bytes of the files that the last run copied.",
    "directories": "Directories that the last run went through.",
    "symlinks": "Symbolic links that the last run made.",
    "hardlinks": "Further names of files that the last run made.",
    "specials": "FIFOs, sockets and devices that the last run made.",
    "unchanged": "Entries that were up to date.",
    "deleted": "Entries that the last run deleted.",
    "failed": "Entries that could not be copied.",
    "vanished": "Entries that left the source during the last run.",
    "skipped": "Entries that were left as they are.",
}
# For everybody, less the umask: who collects it is another user.
MODE = 0o644

START = b"# HELP pcopy_"  # of each file of metrics


class Metrics(Observer):
    """Replaces a file, at the end of each run, by the figures of that run."""

    def __init__(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
        self.given = text_of("metrics", path)
        self.path = absolute(self.given) if self.given else ""
        self.files = [self.path]
        self.labels: dict[str, str] = {}

    def started(self, sources: Sequence[str], destination: str, options: Options) -> None:
        """See that the file can be written, before anything is touched."""
        directory = os.path.dirname(self.path)
        if options.dry_run:
            raise UsageError(f"metrics {self.given}: a dry run has none; leave out one of the two")
        if not self.path or "\0" in self.path or os.path.isdir(self.path):
            raise UsageError(f"metrics {self.given!r}: is a directory or no name; name a file")
        if not os.path.isdir(directory):
            raise UsageError(f"metrics {self.given}: its directory does not exist: make it first (mkdir -p)")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise UsageError(f"metrics {self.given}: its directory is not to be written by this user: name another file")
        if reason := refusal_of(self.path):
            raise UsageError(f"metrics {self.given}: {reason}; name another")
        if holds_something_else(self.path):
            raise UsageError(f"metrics {self.given}: is there and has no metrics of pcopy; name another file, or remove it")
        self.labels = {"source": os.pathsep.join(sources), "destination": destination}

    def finished(self, report: Report) -> None:
        try:
            replace(self.path, exposition(values_of(report), self.labels).encode("utf-8"))
        except OSError as error:
            report.errors.append(Failure(self.path, "write the metrics", error.errno, error.strerror or str(error)))


def holds_something_else(path: str) -> bool:
    """Whether a file would be lost that nobody meant to give up."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(START))
    except OSError:
        return False
    return bool(start) and start != START


def values_of(report: Report) -> dict[str, float]:
    values: dict[str, float] = {
        "last_run_timestamp_seconds": round(time.time(), 3),
        "duration_seconds": round(report.seconds, 6),
        "exit_status": int(report.exit_status),
        "errors": len(report.errors),
        "warnings": len(warnings(report)),
    }
    return values | {key: getattr(report, key) for key in KEYS}


def exposition(values: Mapping[str, float], labels: Mapping[str, str]) -> str:
    """Metrics as text: for each a line of help, one with its type, one with its value."""
    where = ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())
    lines = []
    for name, value in values.items():
        help_text = HELP.get(name, name.replace("_", " "))
        lines += [f"# HELP pcopy_{name} {help_text}", f"# TYPE pcopy_{name} gauge", f"pcopy_{name}{{{where}}} {value}"]
    return "\n".join(lines) + "\n"


def escaped(value: str) -> str:
    """The value of a label: a backslash before three characters, and only what is text."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}
    return "".join(escapes.get(one) or ("\\\\" + shown(one)[1:] if not one.isprintable() else one) for one in value)


def replace(path: str, data: bytes) -> None:
    """Give a file other contents: whoever reads it sees the old ones or the new ones. Raises OSError."""
    place = f".pcopy-metrics.{os.getpid()}-{os.urandom(4).hex()}"  # the collector reads *.prom only
    temporary = os.path.join(os.path.dirname(path), place)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
