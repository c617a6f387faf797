"""The working directory of a process that is ours: a slice goes where it works, for calls that take no directory handle."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Callable, Iterator


class Process:
    """This one. ``roams``: slices may change its working directory; ``home``: where it is between them, if that matters."""

    roams = False
    home: int | None = None


def roam() -> None:
    """From now on it may be any, one of the source too: no module is taken from there, and no core dumped there (core(5))."""
    sys.path[:] = [path for path in map(anchored, sys.path) if path is not None]
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    Process.roams, Process.home = True, None


def roam_in_slices() -> None:
    """As :func:`roam`, but between slices it is what it is now. Nothing changes if nobody could return to that."""
    with contextlib.suppress(OSError):
        home = os.open(".", os.O_RDONLY | os.O_DIRECTORY | getattr(os, "O_PATH", 0))
        roam()
        Process.home = home


@contextlib.contextmanager
def returning() -> Iterator[None]:
    """Around a slice."""
    try:
        yield
    finally:
        if Process.home is not None:
            with contextlib.suppress(
                OSError
            ):  # it is gone from its server, say, or closed by now: nothing is named in it any more
                os.fchdir(Process.home)


def anchored(path: str) -> str | None:
    """What an entry of sys.path means in this directory; None if that is nothing."""
    if not isinstance(path, str) or os.path.isabs(path):  # Python passes over what is no string
        return path
    if os.path.exists(path or "."):
        with contextlib.suppress(OSError):  # the working directory was removed
            return os.path.abspath(path)
        return None
    return path if any(takes(hook, path) for hook in sys.path_hooks) else None  # maybe for something else than a path


def takes(hook: Callable[[str], object], path: str) -> bool:
    """Whether a path hook knows what to do with an entry of sys.path."""
    try:
        hook(path)
        return True
    except ImportError:
        return False
