"""What a command has to do with the terminal and with signals: lines, data, closed streams, Ctrl-C, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from pcopy.errors import ExitStatus

if TYPE_CHECKING:
    from types import FrameType

    from pcopy.stop import Stop


def say(line: str) -> None:
    """A line for people. A reader who has gone is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def emit(text: str) -> bool:
    """Data. True unless it could not be written; a reader who has gone wants no more of it."""
    try:
        print(text.encode(sys.stdout.encoding or "utf-8", "replace").decode(sys.stdout.encoding or "utf-8"), flush=True)
    except BrokenPipeError:
        pass
    except (OSError, ValueError) as error:
        say(f"pcopy: standard output: {getattr(error, 'strerror', None) or error}")
        return False
    return True


def block() -> str:
    """What a bar in a table is made of, in what the standard output is encoded in."""
    full = "█"
    return full if full.encode(sys.stdout.encoding or "utf-8", "replace") != b"?" else "#"


def open_closed_streams() -> None:
    """Started with closed streams (2>&-), Python has None for them, and the next file opened would get their number.

    What is written to stdout is to fail: data that were asked for would be lost. So is what is read from stdin, for an empty
    list would do another thing.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            ways = {"stdin": os.O_WRONLY, "stdout": os.O_RDONLY, "stderr": os.O_RDWR}
            os.open(os.devnull, ways[name])  # the lowest number that is free: this one
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


class Whole(io.FileIO):
    """Writes all that it is given, as a buffer would: a signal, or a stop (SIGSTOP), can end a call early (signal(7))."""

    def write(self, data: Any) -> int:
        left = memoryview(data)
        while left:
            count = super().write(left)
            if count is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            left = left[count:]
        return len(data)


def unbuffer_stderr() -> None:
    """What cannot be written (a closed pipe, a full disk) is to be lost, and not to wait in a buffer.

    Whatever starts a process empties the buffers first, and would fail by that (multiprocessing.popen_fork).
    """
    raw = Whole(sys.stderr.fileno(), "w", closefd=False)
    sys.stderr = io.TextIOWrapper(raw, sys.stderr.encoding, sys.stderr.errors, write_through=True)


def leave(status: int) -> NoReturn:
    """End with a status, without a word about a pipe that was closed, and without the interpreter's tidying up.

    All is closed and flushed by now; to take the modules down one by one would take longer than a small copy.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()  # stderr has no buffer
    os._exit(status)


# ---- signals --------------------------------------------------------------------------------------------------------

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SOON = 0.01  # seconds


@contextlib.contextmanager
def handled(handler: Any) -> Iterator[None]:
    """Handle the signals that ask to stop, except those that the caller had ignored (nohup)."""
    before = {number: signal.getsignal(number) for number in ASKING}
    for number in ASKING:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, old)


def interruptible(stop: Stop) -> contextlib.AbstractContextManager[None]:
    """The first signal asks the run to stop, the second ends it at once."""
    from pcopy.stop import Interrupts

    interrupts = Interrupts()

    def ask(number: int, frame: FrameType | None) -> None:
        if interrupts.note():
            os._exit(ExitStatus.SIGNAL + number)
        stop.signal = stop.signal or number

    return handled(ask)


def ignored(number: int, frame: FrameType | None) -> None:
    """A second signal. Python writes an error of one that it has taken in when SIG_IGN is set, so that comes later."""


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """A comparison ends by an exception, which takes its directory away."""
    hook, alarm = sys.unraisablehook, signal.getsignal(signal.SIGALRM)

    def end(number: int, frame: FrameType | None) -> None:
        for one in ASKING:  # cleaning up takes a moment, and must not be cut short
            if signal.getsignal(one) is end:
                signal.signal(one, ignored)
        raise SystemExit(ExitStatus.SIGNAL + number)

    def once_more(lost: Any) -> None:
        """The exception met a finalizer, such as that of Popen, which lets none out: in a moment it will not."""
        if not isinstance(lost.exc_value, SystemExit):
            hook(lost)
            return
        status = lost.exc_value.code
        signal.signal(signal.SIGALRM, lambda *_: sys.exit(status))
        signal.setitimer(signal.ITIMER_REAL, SOON)

    sys.unraisablehook = once_more
    try:
        with handled(end):
            yield
    except SystemExit:
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        for one in ASKING:
            signal.signal(one, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
        say("interrupted: every copy is removed")
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        sys.unraisablehook = hook
