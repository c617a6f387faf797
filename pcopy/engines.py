"""Engines: context managers that yield an Executor. Everything else about processes is in here.

serial   runs each call in place
pool     ProcessPoolExecutor; not multiprocessing.Pool, which loses a call and waits for ever when a worker is killed
         (CPython bpo-22393), where this one says BrokenProcessPool
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing.process import BaseProcess

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Objects between two looks for garbage: a slice makes many that live for one entry, and no cycles.
GARBAGE = 50_000
# Seconds for the workers of a broken pool to take away what they were writing.
GRACE = 0.5
METHODS = ("fork", "forkserver", "spawn")


class Engine(Protocol):
    """Opens an executor as often as it is asked to: again, when the last one broke."""

    name: str
    jobs: int

    def open(self) -> contextlib.AbstractContextManager[Executor]: ...


class Serial:
    """One process, this one."""

    name = "serial"
    jobs = 1

    @contextlib.contextmanager
    def open(self) -> Iterator[Executor]:
        yield InPlace()


class InPlace(Executor):
    """Runs a call when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Pool:
    """Many processes on this machine."""

    name = "pool"

    def __init__(self, jobs: int, start_method: str | None = None) -> None:
        self.jobs = jobs
        self.start_method = start_method

    @contextlib.contextmanager
    def open(self) -> Iterator[Executor]:
        import multiprocessing

        context = multiprocessing.get_context(self.start_method or safest_method())
        executor = pool_class()(self.jobs, context, initializer=begin_worker)
        try:
            yield executor
        except BaseException:
            end_workers(executor)
            raise
        finally:
            if dead_workers(executor):  # SIGTERM can be lost on one that waits for a lock of the dead
                end = time.monotonic() + GRACE
                while time.monotonic() < end and living_workers(executor):
                    time.sleep(0.005)
                end_workers(executor)
            executor.shutdown()


def pool_class() -> type[ProcessPoolExecutor]:
    """Made when it is needed: importing multiprocessing takes longer than a small copy."""
    from concurrent.futures import ProcessPoolExecutor

    class QuietPool(ProcessPoolExecutor):
        """Starts its workers with the stopping signals blocked: until begin_worker, nothing of them is prepared for one.

        All of them at the first call, under every method: started one by one, as ProcessPoolExecutor does unless it
        forks, they change a dict that its other thread may be reading when a worker dies.
        """

        started = False
        _safe_to_dynamically_spawn_children = property(lambda self: False, lambda self, value: None)

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
            try:
                with contextlib.nullcontext() if self.started else hidden_main():
                    return super().submit(guarded, fn, *args, **kwargs)
            finally:
                self.started = True
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    return QuietPool


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """While workers are started: they need nothing of the program's main module, and must not run it a second time.

    Under spawn and forkserver a child imports it first thing, if it finds a file for it.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = type(sys)("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def safest_method() -> str:
    """Fork is the fastest, but a child of a process with threads can find locks held for ever (fork(2))."""
    if sys.platform != "linux":
        return "spawn"
    return "fork" if count_threads() == 1 else "forkserver"


def count_threads() -> int:
    """Those of C libraries too, which the threading module does not know."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def workers_of(executor: Executor) -> list[BaseProcess]:
    """The processes of a pool; none of an executor that has none, or has let go of them."""
    return list((getattr(executor, "_processes", None) or {}).values())


def dead_workers(executor: Executor) -> bool:
    """Whether a worker has ended. The executor sees it too, unless it waits for the rest of that worker's message."""
    return any(process.exitcode is not None for process in workers_of(executor))


def living_workers(executor: Executor) -> bool:
    return any(process.exitcode is None for process in workers_of(executor))


def end_workers(executor: Executor) -> None:
    """Kill what is left of a broken pool, so that every pipe of it closes and nothing waits for it."""
    for process in workers_of(executor):
        process.kill()


# ---- in the worker --------------------------------------------------------------------------------------------------


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)
    end_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def guarded(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """A call in a worker. On SIGTERM it takes away what it was writing, and the process ends."""
    Worker.in_slice = True
    try:
        return fn(*args, **kwargs)
    except Terminated:
        os._exit(128 + signal.SIGTERM)
    finally:
        Worker.in_slice = False


def terminate(*_: object) -> None:
    """Sent by an executor that broke, and by service managers to all processes of a service at once."""
    if Worker.ending:  # a broken executor sends it again, maybe while the first is being answered
        return
    Worker.ending = True
    if Worker.in_slice:
        raise Terminated
    os._exit(128 + signal.SIGTERM)


def end_with_parent() -> None:
    """End when the coordinator does: it holds the other end of a pipe, which closes however it dies.

    The kernel then sends SIGIO (O_ASYNC, fcntl(2); pipe_release() in fs/pipe.c), which ends a process that does not handle
    it. No thread waits for that: in a process with two, each system call on a handle takes and drops a reference to it.
    """
    import fcntl
    import select
    from multiprocessing import parent_process

    parent = parent_process()
    if parent:
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
        if select.select([parent.sentinel], [], [], 0)[0]:
            os._exit(1)
