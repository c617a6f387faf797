"""How a process that runs slices hears that the run is to stop."""

from __future__ import annotations

import threading
import time

# Seconds. Shorter, a wrapper on a busy machine may take longer to pass a signal on; longer, whoever presses Ctrl-C twice has to
# do so once more.
TOGETHER = 0.2


class Stop:
    """Asks a run to stop: set ``signal`` to the number to report, from a signal handler or another thread.

    One that is sent to a worker becomes the worker's own there, which a signal of the coordinator sets: what cannot be done in
    parts, the checksum of a large file, looks at it now and then.
    """

    signal = 0

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return of_this_process, ()


class Interrupts:
    """The signals that ask one run to stop, of which the second is to end it at once."""

    first: float | None = None

    def note(self) -> bool:
        """Take in one. True if it is another request; not for the first, and what comes with it: one request can arrive twice.

        coreutils' ``timeout`` sends its signal to the command, then to the whole group (timeout.c, ``cleanup``), and each
        process of a terminal's group hears Ctrl-C, also a wrapper that passes it on.
        """
        now = time.monotonic()
        if self.first is None:
            self.first = now
        return now - self.first > TOGETHER


HERE = Stop()


def of_this_process() -> Stop:
    """The one of a worker; slices that run in the coordinator's process have the run's own."""
    return HERE


def is_ending() -> bool:
    """Whether the program has come to the end of its main thread: then concurrent.futures takes nothing more from others."""
    return getattr(threading, "_SHUTTING_DOWN", False) or not threading.main_thread().is_alive()
