"""The loop that hands slices to an executor, and takes their outcomes in; on another executor if that one breaks."""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait

from pcopy.coordinator import Coordinator, Portion
from pcopy.engines import PATIENCE, NotStarted, end_workers, engine_for, hurry_workers, is_broken
from pcopy.outcome import Outcome
from pcopy.result import Observer
from pcopy.stop import is_ending
from pcopy.work import Job, Unit
from pcopy.worker import run
from pcopy.workers import Workers

PAUSE = 0.1  # seconds between two starts of an executor: what it lacks may come back in a moment
ENDING = 1.0  # seconds for the calls of a broken executor to end
# What the calls of an executor that broke end with: some learn it from the pipe to the workers.
BROKEN = (BrokenExecutor, OSError, EOFError)


def drive(coordinator: Coordinator, workers: Workers) -> None:
    """Do what is left to do on as many executors, one after the other, as it takes. The last one stays open."""
    died = False
    while coordinator.has_work:
        try:
            executor = executor_for(coordinator, workers)
        except NotStarted as error:
            died = died or isinstance(error.__cause__, BrokenExecutor)
            coordinator.not_started(str(error))
            time.sleep(PAUSE)
            continue
        coordinator.opened()
        if died and coordinator.jobs > 1:  # and others did not
            coordinator.warn_of_death()
        try:
            if not work_off(coordinator, executor):
                workers.close()
        except BaseException as error:
            workers.__exit__(type(error), error, error.__traceback__)
            raise


def executor_for(coordinator: Coordinator, workers: Workers) -> Executor:
    """The one that is open, if it has as many workers as there are jobs. Raises NotStarted."""
    if workers.executor and workers.jobs == coordinator.jobs:
        executor: Executor = workers.executor
    else:
        workers.close()
        executor = workers.enter_context(engine_for(coordinator.jobs, coordinator.job.options.start_method).open())
        workers.executor, workers.jobs = executor, coordinator.jobs
    return executor


def work_off(coordinator: Coordinator, executor: Executor) -> bool:
    """Submit slices and take their outcomes in, until nothing is left, the executor breaks or is to be another.

    Returns whether the executor can be used again.
    """
    running: dict[Future[Outcome], list[Unit]] = {}
    try:
        while True:
            while portion := coordinator.take(len(running)):
                running[submit(executor, coordinator.job, portion)] = portion.units
            if not running:
                broken = is_broken(executor)
                if broken and not is_ending():  # when nothing was left to do
                    coordinator.warn_of_death()
                return not broken and not coordinator.outgrown
            if collect(coordinator, executor, running):
                return False
    except BaseException:  # the observer raised, or a signal handler
        coordinator.report.stopped = True
        coordinator.observer = Observer()
        while running:
            collect(coordinator, executor, running)
        raise


def submit(executor: Executor, job: Job, portion: Portion) -> Future[Outcome]:
    """A slice under way; if the executor broke a moment ago, one that says so."""
    try:
        return executor.submit(run, job, *portion)
    except (RuntimeError, *BROKEN) as error:  # or one that says it was shut down, while its thread takes note of it
        lost: Future[Outcome] = Future()
        lost.set_exception((NotStarted if is_ending() else BrokenExecutor)(str(error)))
        return lost


def collect(coordinator: Coordinator, executor: Executor, running: dict[Future[Outcome], list[Unit]]) -> bool:
    """Wait for a slice and take in what is done. True if the executor is broken; then nothing is running any more."""
    done, _ = wait(running, PATIENCE, FIRST_COMPLETED)
    broken = any(isinstance(future.exception(), BROKEN) for future in done)
    if not done and coordinator.stopped:
        hurry_workers(executor)
    if not done and is_broken(executor):
        end_workers(executor)  # the executor waits for the rest of a message: now it sees the end of it
        broken = True
    if broken:
        done, _ = wait(running, ENDING)
    lost = []
    for future in list(running) if broken else done:
        units, error = running.pop(future), future.exception() if future.done() else BrokenExecutor()
        if isinstance(error, NotStarted):
            coordinator.put_back(units)
        elif isinstance(error, BROKEN):
            lost.append(units)
        elif error:
            for unit in units:
                coordinator.give_up(unit, f"unforeseen {type(error).__name__}: {error}")
        else:
            coordinator.absorb(units, future.result())
    if lost:
        coordinator.requeue(lost)
    return broken
