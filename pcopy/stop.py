"""How a process that runs slices hears that the run is to stop."""

from __future__ import annotations

import threading


class Stop:
    """Asks a run to stop: set ``signal`` to the number to report, from a signal handler or another thread.

    One that is sent to a worker becomes the worker's own there, which a signal of the coordinator sets: what cannot be done in
    parts, the checksum of a large file, looks at it now and then.
    """

    signal = 0

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return of_this_process, ()


HERE = Stop()


def of_this_process() -> Stop:
    """The one of a worker; slices that run in the coordinator's process have the run's own."""
    return HERE


def is_ending() -> bool:
    """Whether the program has come to the end of its main thread: then concurrent.futures takes nothing more from others."""
    return getattr(threading, "_SHUTTING_DOWN", False) or not threading.main_thread().is_alive()
