"""What is in the place of a new entry: may it be lost, does it give way, and how does the new one get its name."""

from __future__ import annotations

import errno
import os
import stat

from pcopy import changes
from pcopy.directory import APPEARED
from pcopy.extra import MOUNTED
from pcopy.handles import Pair
from pcopy.mounts import is_mount
from pcopy.options import Options
from pcopy.plain import CLOSED, abandon

IN_ITS_PLACE = "a directory that is not empty is in its place: move or remove it"
OR_DELETE = ", or give delete"
STAYS = "a directory in its place holds something that is not to be deleted: move or remove that"
FOLLOWED = "a directory that is not empty is in its place, and a link may lead into it: move or remove it"
LEADS_THERE = "is a symbolic link to what is in its place in the destination, which would be lost"


class InTheWay:
    """What is there: a directory gives way to something else only if nothing is lost by that."""

    def __init__(self, options: Options, of_files: bool) -> None:
        """``of_files``: no directory is copied as a whole, so nothing can be deleted."""
        self.options, self.of_files = options, of_files

    def gives_way(self, target: str, parent: int, pretend: bool = False) -> bool:
        """An empty directory gives way to something else; one that holds anything only if that may be deleted first."""
        try:
            if pretend and is_mount(target, parent):
                raise OSError(errno.EBUSY, MOUNTED)
            changes.remove_directory(target, parent, pretend)
        except OSError as error:
            if error.errno == errno.EBUSY:
                error.strerror = MOUNTED
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not self.options.delete or self.options.dereference:
                # With max-delete it was given, and what is to go could not be counted; of files alone it cannot be.
                advice = "" if self.options.max_delete is not None or self.of_files else OR_DELETE
                error.strerror = FOLLOWED if self.options.delete else IN_ITS_PLACE + advice
                raise
            return False
        return True

    def would_give_way(self, target: str, parent: int) -> bool:
        """The same, but it stays. One that we may not read is asked when it comes to that."""
        try:
            return self.gives_way(target, parent, pretend=True)
        except PermissionError:
            if self.options.dry_run:
                raise
            return True

    def put_in_place(self, place: str, target: str, directory: int, replaces: bool, over: bool) -> bool:
        """Give what is made its name. False if it is taken away again: a directory is there that has to be emptied first."""
        if place == target:
            return True
        placed = False
        try:
            if not over or self.gives_way(target, directory):
                give_name(place, target, directory, replaces and not over)
                placed = True
        finally:
            if not placed:
                abandon(CLOSED, place, directory)
        return placed


def refuse_loss(pair: Pair, name: str, state: os.stat_result, copy: os.stat_result | None) -> None:
    """A symbolic link does not take the place of what it leads to, which would be lost: nor does it for cp and mv."""
    if not copy or not stat.S_ISLNK(state.st_mode):
        return
    try:
        lost = os.path.samestat(os.stat(name, dir_fd=pair.source), copy)
    except OSError:  # it leads nowhere
        return
    if lost:
        raise OSError(errno.EEXIST, LEADS_THERE)


def give_name(place: str, target: str, directory: int, replaces: bool) -> None:
    try:
        changes.rename(place, target, directory, replaces)
    except FileExistsError as error:
        error.strerror = APPEARED
        raise
