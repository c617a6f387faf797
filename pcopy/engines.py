"""Engines: context managers that yield an Executor. What goes on in a worker process is in child.py.

serial   runs each call in place
pool     ProcessPoolExecutor; not multiprocessing.Pool, which loses a call and waits for ever when a worker is killed
         (CPython bpo-22393), where this one says BrokenProcessPool
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, wait
from typing import TYPE_CHECKING, Any, Protocol

from pcopy.child import HURRY, STOPPING, begin_worker, guarded
from pcopy.stop import is_ending

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing.process import BaseProcess

# Seconds for the workers of a pool to end, and of a broken one to take away what they were writing.
GRACE = 0.5
# Seconds after which a silent pool is looked at. A signal that comes as the wait begins is seen only then (the lock is waited
# for all the same, CPython's acquire_timed), and another one until then is the same one to Python.
PATIENCE = 0.2
# Two threads that change multiprocessing for themselves would put back each other's change. By process: a fork meanwhile must
# not leave its child a lock that is held for ever.
ONE_AT_A_TIME: dict[int, threading.Lock] = {}


class NotStarted(BrokenExecutor):
    """An executor broke before it did anything: the text says why."""


class Engine(Protocol):
    """Opens an executor as often as it is asked to: again, when the last one broke. Raises NotStarted."""

    def open(self) -> contextlib.AbstractContextManager[Executor]: ...


class Serial:
    """One process, this one."""

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

    def __init__(self, jobs: int, start_method: str | None = None) -> None:
        self.jobs = jobs
        self.start_method = start_method

    @contextlib.contextmanager
    def open(self) -> Iterator[Executor]:
        try:
            executor = quiet_pool(self.jobs, self.start_method or safest_method())
        except (ImportError, MemoryError, OSError, RuntimeError) as error:  # no semaphores, no handles; Python is ending
            raise NotStarted(reason_of(error)) from error
        try:
            try_out(executor)
            yield executor
        except BaseException:
            end_workers(executor)
            raise
        finally:
            close(executor)


def engine_for(jobs: int, start_method: str | None) -> Engine:
    return Serial() if jobs == 1 or is_ending() else Pool(jobs, start_method)


def try_out(executor: Executor) -> None:
    """See a worker work before it is given anything, so that no call is blamed if none can."""
    try:
        first = executor.submit(os.getpid)
        while not wait([first], PATIENCE).done:
            if is_broken(executor):
                raise EOFError("they ended at once")
        first.result()
    except (MemoryError, RuntimeError, OSError, EOFError) as error:
        raise NotStarted(reason_of(error)) from error


def reason_of(error: Exception) -> str:
    if isinstance(error, BrokenExecutor):
        return "they died at once"
    if isinstance(error, MemoryError):
        return os.strerror(errno.ENOMEM)
    return getattr(error, "strerror", None) or str(error) or "their server died"


def close(executor: Executor) -> None:
    """End a pool of which all workers are idle or about to end.

    Those that take longer are killed: while one waits for a lock that a killed one held, it can miss SIGTERM, and
    ProcessPoolExecutor.shutdown would wait for it for ever.
    """
    processes, thread = workers_of(executor), thread_of(executor)
    feeder: threading.Thread | None = getattr(getattr(executor, "_call_queue", None), "_thread", None)
    broken = is_broken(executor)
    if not broken:  # else the pool's thread is ending them, and has the lock that shutdown takes until they have (Python 3.13)
        executor.shutdown(wait=False)
    if thread and thread.is_alive():
        thread.join(GRACE)
    for process in processes:
        process.kill()
    if thread and thread.is_alive():
        thread.join()
    if broken:
        executor.shutdown(wait=False)
    numbers = [process.pid for process in processes]
    threads = [known.native_id for known in (thread, feeder) if known]
    for process in processes:
        process.join()
        with contextlib.suppress(ValueError):  # a program that ignores SIGCHLD is never told of their end
            process.close()  # and with it the pipe that ends a worker whose forkserver was killed, see end_with_parent
    if server := getattr(executor, "server", None):
        with contextlib.suppress(OSError):
            server._stop()
    end = time.monotonic() + GRACE
    while time.monotonic() < end and (any(number and exists(number) for number in numbers) or any(map(is_thread, threads))):
        time.sleep(0.001)


def is_thread(number: int | None) -> bool:
    """Whether there still is a thread of this process: for a moment after it was joined, :func:`count_threads` counts it."""
    return os.path.exists(f"/proc/self/task/{number}")


def exists(process: int) -> bool:
    try:
        os.kill(process, 0)
        return True
    except OSError:
        return False


def quiet_pool(jobs: int, method: str) -> ProcessPoolExecutor:
    """Its class is made when it is needed: importing multiprocessing takes longer than a small copy."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    class QuietPool(ProcessPoolExecutor):
        """Starts its workers with the stopping signals blocked: until begin_worker, nothing of them is prepared for one.

        All of them at the first call, under every method: started one by one, as ProcessPoolExecutor does unless it
        forks, they change a dict that its other thread may be reading when a worker dies. Then this process closes its
        copies of their ends of the pipes: when all of them are dead, nothing waits for the rest of a message.
        """

        def __init__(self, jobs: int, method: str) -> None:
            super().__init__(jobs, multiprocessing.get_context(method), begin_worker)
            self.method, self.server = method, own_server() if method == "forkserver" else None

        _safe_to_dynamically_spawn_children = property(lambda self: False, lambda self, value: None)

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
            try:
                return super().submit(guarded, fn, *args, **kwargs)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

        def _launch_processes(self) -> None:
            pool: Any = self
            if self.method == "fork":  # by the only thread
                self.launch()
            else:
                uninterrupted(self.launch)
            pool._result_queue._writer.close()
            pool._call_queue._reader.close()
            pool._call_queue._start_thread()  # if it cannot be, this thread has to hear of it, not the pool's own

        def launch(self) -> None:
            with apart(self.method, self.server):
                super()._launch_processes()  # type: ignore[misc]

    return QuietPool(jobs, method)


def uninterrupted(call: Callable[[], None]) -> None:
    """Make a call that no signal handler of the program can leave: Python runs them in the main thread, which waits meanwhile.

    An exception between the start of a worker and the note of it would leave one that nobody ends, and for which its
    forkserver is waited for in vain.
    """
    done: Future[None] = Future()
    begun, may_begin = False, threading.Event()

    def make() -> None:
        may_begin.wait()
        try:
            if begun:
                call()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=make)
    try:
        thread.start()
        begun = True
        may_begin.set()
        done.exception()  # waits, as Thread.join does; but that takes the thread for ended once it was left (before 3.13)
    except BaseException:  # a handler's, maybe in the midst of start(); or no thread can be started
        may_begin.set()
        if begun:
            done.exception()
        raise
    done.result()


@contextlib.contextmanager
def apart(method: str, server: Any) -> Iterator[None]:
    """What this thread starts meanwhile has nothing to do with the program; other threads of that see no difference.

    Before each start, multiprocessing flushes the standard streams: if the program's reader has gone, that is the program's
    business. Under spawn and forkserver a child imports the program's main module first thing, if it finds a file for it:
    workers need nothing of that, and must not run it a second time. And multiprocessing has one forkserver: what that was
    started with, such as blocked signals, all the program's later processes would have, so the workers have their own.
    """
    from multiprocessing import util

    thread = threading.get_ident()

    def replace(module: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
        real = getattr(module, name)
        ours = make(real)
        stack.callback(setattr, module, name, real)
        setattr(module, name, lambda *words: (ours if threading.get_ident() == thread else real)(*words))

    with ONE_AT_A_TIME.setdefault(os.getpid(), threading.Lock()), contextlib.ExitStack() as stack:
        replace(util, "_flush_std_streams", without_errors)
        if method != "fork":
            from multiprocessing import spawn

            replace(spawn, "get_preparation_data", without_main)
        if method == "forkserver":
            from multiprocessing import forkserver

            replace(forkserver, "connect_to_new_process", lambda _: server.connect_to_new_process)
        yield


def without_errors(flush: Callable[[], None]) -> Callable[[], None]:
    def flush_what_can_be() -> None:
        with contextlib.suppress(OSError):
            flush()

    return flush_what_can_be


def without_main(prepare: Callable[[str], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    def prepare_alone(name: str) -> dict[str, Any]:
        return {key: value for key, value in prepare(name).items() if not key.startswith("init_main")}

    return prepare_alone


def own_server() -> Any:
    """A forkserver, which starts with the first process that it is asked for."""
    from multiprocessing.forkserver import ForkServer

    server = ForkServer()
    server.set_forkserver_preload([])
    return server


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


def thread_of(executor: Executor) -> threading.Thread | None:
    """The one that a pool has for itself, once it was given something."""
    thread: threading.Thread | None = getattr(executor, "_executor_manager_thread", None)
    return thread


def is_broken(executor: Executor) -> bool:
    """Whether a worker has ended. The executor sees it too, unless it waits for the rest of that worker's message."""
    thread = thread_of(executor)
    known = getattr(executor, "_broken", False) or (thread and not thread.is_alive())  # its thread takes away exit codes
    return bool(known) or any(process.exitcode is not None for process in workers_of(executor))


def end_workers(executor: Executor) -> None:
    """Kill what is left of a broken pool, so that every pipe of it closes and nothing waits for it."""
    for process in workers_of(executor):
        process.kill()


def hurry_workers(executor: Executor) -> None:
    """Tell workers that are in a slice that the run is to stop, for what they cannot do in parts."""
    for process in workers_of(executor):
        with contextlib.suppress(OSError, ValueError):
            if process.pid and process.exitcode is None:
                os.kill(process.pid, HURRY)
