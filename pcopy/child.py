"""The other end of a pool: how a worker process begins, what signals mean to it, and how it ends.

A worker ends with the coordinator, however that dies. Ctrl-C is the coordinator's business alone.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from pcopy.roaming import roam
from pcopy.stop import of_this_process

HURRY = signal.SIGUSR1
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, HURRY)
# Objects between two looks for garbage: a slice makes many that live for one entry, and no cycles.
GARBAGE = 50_000


class Terminated(BaseException):
    """SIGTERM came while a worker was in a slice."""


class Worker:
    """The state of this worker process, for its signal handler."""

    in_slice = False
    ending = False


def begin_worker() -> None:
    """Prepare a worker: it ends with the coordinator and leaves Ctrl-C to it."""
    import gc

    gc.freeze()  # what was there before the fork is not looked at, and so not copied
    gc.set_threshold(GARBAGE)
    signal.set_wakeup_fd(-1)  # else a program's event loop takes our signals for its own (asyncio before 3.12)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(HURRY, hurry)
    end_with_parent()
    roam()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def guarded(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """A call in a worker. On SIGTERM it takes away what it was writing, and the process ends."""
    of_this_process().signal = 0  # what an earlier slice was told; the coordinator tells it again
    try:
        Worker.in_slice = True
        try:
            return fn(*args, **kwargs)
        finally:
            Worker.in_slice = False
            if Worker.ending:
                os._exit(128 + signal.SIGTERM)
    except Terminated:  # it came between the end of the call and the line that says so
        os._exit(128 + signal.SIGTERM)


def hurry(number: int, _: object) -> None:
    of_this_process().signal = number


def terminate(*_: object) -> None:
    """Sent by an executor that broke, and by service managers to all processes of a service at once."""
    if not Worker.in_slice:
        os._exit(128 + signal.SIGTERM)
    if not Worker.ending:  # a broken executor sends it again, maybe while the first is being answered
        Worker.ending = True
        raise Terminated


def end_with_parent() -> None:
    """End when the coordinator does: it holds the other end of a pipe, which closes however it dies.

    The kernel then sends SIGIO (O_ASYNC, fcntl(2); pipe_release() in fs/pipe.c), which ends a process that does not handle
    it; on Linux SIGKILL instead, which ends a stopped one too. No thread waits for that: in a process with two, each system
    call on a handle takes and drops a reference to it.
    """
    import fcntl
    import select
    from multiprocessing import parent_process

    parent = parent_process()
    if parent:
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        if sys.platform == "linux":
            fcntl.fcntl(parent.sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
        pipe = select.poll()  # select(2) knows no handles above 1023
        pipe.register(parent.sentinel, select.POLLIN)
        if pipe.poll(0):
            os._exit(1)
