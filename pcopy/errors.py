"""What can go wrong, as exceptions for a refused command and as exit statuses for a finished run."""

from __future__ import annotations

import enum


class ExitStatus(enum.IntEnum):
    """What a script can rely on."""

    OK = 0
    FAILED = 1  # some entries failed, all the others are copied
    USAGE = 2  # the command line is wrong, nothing was touched
    STOPPED = 3  # stopped early: no space, destination unusable, another run holds it
    SIGNAL = 128  # plus the signal's number

    __str__ = int.__repr__  # a number where it is printed, before Python 3.11 too


class PcopyError(Exception):
    """The request was refused. The text says what to do."""


class UsageError(PcopyError, ValueError):
    """The request makes no sense as it stands; nothing was touched."""
