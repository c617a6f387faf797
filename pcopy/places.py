"""Where from and where to: what is there, and whether one is in the way of the other. Raises UsageError, and touches nothing.

What is looked at here goes to paths.land, which says where each source lands; whether that may be is asked here, too.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence

from pcopy import filesystem as fs
from pcopy.asked import Path, listed, text_of
from pcopy.errors import UsageError
from pcopy.options import Options
from pcopy.paths import Destination, Landing, Source
from pcopy.values import relative_paths

ADDRESS = r"[\w.-]+@[\w.-]+:(?!\d)|[\w.-]+:/"  # as rsync and scp have it; home@2026-01-31T18:30 is a name


def look_at_sources(sources: Path | Iterable[Path], options: Options) -> list[Source]:
    return [look_at_source(text_of("source", path), options.dereference) for path in listed(sources)]


def look_at_source(given: str, dereference: bool) -> Source:
    """A symbolic link is copied as a link, unless it ends in a slash or links are to be followed."""
    try:
        state = os.stat(given) if dereference or given.endswith("/") else os.lstat(given)
    except FileNotFoundError:
        refuse_address(given)
        if os.path.islink(given.rstrip("/")):
            raise UsageError(f"{given}: the source is a symbolic link to what does not exist") from None
        raise UsageError(f"{given or repr('')}: the source does not exist; check the spelling") from None
    except OSError as error:
        raise UsageError(f"{given!r}: the source cannot be looked at: {error.strerror}") from None
    inode, leads = (state.st_dev, state.st_ino), stat.S_ISLNK(state.st_mode) and os.path.isdir(given)
    mode = state.st_mode
    return Source(given, absolute(given), stat.S_ISDIR(mode), is_special(mode), inode, leads, stat.S_ISREG(mode))


def is_special(mode: int) -> bool:
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))


def refuse_address(given: str) -> None:
    """Who comes from rsync may expect it."""
    if re.match(ADDRESS, given) and not os.path.lexists(given.partition("/")[0]):
        raise UsageError(
            f"{given}: other machines are not reached; mount it and give that path, or write ./ before such a name"
        )


def look_at_destination(destination: Path) -> Destination:
    given = text_of("destination", destination)
    if not given:
        raise UsageError(f"{given!r}: cannot be a destination")
    path = absolute(given)
    if not os.path.lexists(path):
        refuse_address(given)
    is_directory = os.path.isdir(path)
    if is_directory:
        path = os.path.realpath(path)
    if os.path.islink(path) and not os.path.exists(path) and given.endswith("/"):
        raise UsageError(f"{given}: is a symbolic link to nothing; remove it or give another destination")
    special, parent = False, os.path.dirname(path)
    try:
        special = is_special(os.lstat(path).st_mode)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"{given}: the path, or a name in it, is too long: choose a shorter one") from None
    parent_exists = may_be_directory(parent)
    below_file = os.path.lexists(parent) and not parent_exists
    return Destination(given, path, os.path.lexists(path), is_directory, parent_exists, below_file, special)


def may_be_directory(path: str) -> bool:
    """Whether it is one, or cannot be looked at: whoever makes something in it will say why."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def only_listed(sources: Sequence[Source], landings: Sequence[Landing], files_from: Iterable[Path]) -> Landing:
    """The one source, of which only what a list names is copied."""
    if len(sources) != 1 or not sources[0].is_directory:
        raise UsageError("a list of what to copy (files_from) needs one source, the directory that its paths are below")
    return landings[0]._replace(only=relative_paths(text_of("files_from", path) for path in listed(files_from)))


def refuse_overlap(
    sources: Sequence[Source], destination: Destination, landings: Sequence[Landing], one_file_system: bool
) -> None:
    """No source may hold the destination or be it; by inode, so that no link or bind mount of either hides it.

    It may lie below one on another file system, if that is left out: so systems are backed up to a mounted disk.
    """
    above = inodes_above(destination.path)
    for source in sources:
        if source.is_directory and source.inode in above:
            if destination.exists and source.inode == above[0]:
                raise UsageError(f"{source.given} and {destination.given}: are the same directory; give another destination")
            apart = above[0][0] != source.inode[0]
            if not apart or not one_file_system:
                what, but = "the destination lies in the source, which would never end", ", or one-file-system" * apart
                raise UsageError(f"{source.given} and {destination.given}: {what}; give another destination{but}")
    for landing in landings:
        with contextlib.suppress(OSError):
            if not landing.names and os.path.samestat(os.stat(landing.source), os.lstat(landing.destination)):
                raise UsageError(f"{landing.source}: is the destination itself; give another")
        for name in landing.names:
            with contextlib.suppress(OSError):
                target = os.lstat(os.path.join(landing.destination, landing.rename or name))
                if os.path.samestat(os.lstat(os.path.join(landing.source, name)), target):
                    raise UsageError(f"{os.path.join(landing.source, name)}: is the destination itself")


def refuse_own_place(sources: Sequence[Source], top: str, landings: Sequence[Landing], options: Options) -> None:
    """A source in the destination may have, in another source or in itself, what would be copied to its own place.

    What a filter, a list or a file system may leave out is for the run to find, as is what links lead to.
    """
    whole = [landing for landing in landings if not landing.names and landing.only is None]
    if not whole or options.filters or options.one_file_system:
        return
    above, places = os.path.join(os.path.realpath(top), ""), real_paths(source.path for source in sources)
    inside = [
        (source, place) for source, place in zip(sources, places, strict=True) if place.startswith(above)
    ]  # hardly ever any
    for landing in whole if inside else ():
        for source, place in inside:
            below = within(place, landing.destination)
            inner = os.path.join(os.path.realpath(landing.source), below or "")
            there = os.path.isdir(inner) if source.is_directory else os.path.lexists(inner)
            if below and there and inner == os.path.realpath(inner) and not os.path.samefile(inner, place):
                raise UsageError(f"{inner}: its copy would be written over the source {source.given}; give another destination")


def absolute(path: str) -> str:
    """An absolute path. "x/.." is only taken out where x is no symbolic link."""
    try:
        if ".." in path.split("/"):
            parent, name = os.path.split(path.rstrip("/"))
            return os.path.realpath(path) if name in ("..", ".") else os.path.join(os.path.realpath(parent), name)
        return os.path.abspath(path)
    except FileNotFoundError:  # getcwd(2)
        raise UsageError(f"{path}: the working directory is gone: change to another, or give an absolute path") from None


def place_of(path: str) -> str:
    """Where a name is: links on the way to it are followed, one that it may be itself is not."""
    return os.path.join(os.path.realpath(absolute(os.path.dirname(path) or ".")), os.path.basename(path))


def within(path: str, top: str) -> str | None:
    """A path below a directory, relative to it."""
    top = os.path.realpath(top).rstrip("/") + "/"
    return path[len(top) :] if path.startswith(top) else None


def real_paths(paths: Iterable[str]) -> Iterator[str]:
    """As os.path.realpath, but that each directory is looked up once: most paths are of one."""
    real = functools.cache(os.path.realpath)
    for path in paths:
        above, name = os.path.split(path)
        place = os.path.join(real(above), name)
        yield os.path.realpath(place) if os.path.islink(place) else place


def inodes_above(path: str) -> list[tuple[int, int]]:
    """Of a path, if it exists, and of all the directories above it: (st_dev, st_ino)."""
    path, found = os.path.realpath(path), []
    while True:
        with contextlib.suppress(OSError):  # what cannot be looked at is no source, which could be
            state = os.stat(path)
            found.append((state.st_dev, state.st_ino))
        if path == os.path.dirname(path):
            return found
        path = os.path.dirname(path)


def check_deletion(options: Options, sources: Sequence[Source], landings: Sequence[Landing]) -> None:
    if options.max_delete is not None and not options.delete:
        raise UsageError("max-delete goes with delete")
    if options.delete and all(landing.names for landing in landings):
        link = next((one.given for one in sources if one.leads_to_directory), None)
        advice = f"; write {link}/ for what the link {link} points to" if link else ""
        raise UsageError(f"delete is for copies of directories: no source is one{advice}")
    if options.delete:
        for landing in landings:
            if not landing.names:
                refuse_sources_in(landing.destination, sources)


def refuse_sources_in(copy: str, sources: Sequence[Source]) -> None:
    """A source has nothing of its own name in itself, so delete would take it away while it is copied."""
    try:
        state = os.lstat(copy)
    except OSError:  # it is not there yet
        return
    for source in sources:
        if (state.st_dev, state.st_ino) in inodes_above(source.path):
            raise UsageError(f"{source.given}: lies in {copy}, from which delete would remove it: move it")


def is_empty(directory: str) -> bool:
    try:
        handle = fs.open_directory(directory, fs.HERE, follow=True)
        try:
            return not any(fs.read_directory(handle))
        finally:
            fs.close_read(handle)
    except OSError:  # which the run will meet again
        return False


def check_earlier(given: str, top: str, sources: Sequence[Source], options: Options) -> str:
    """An earlier copy that hard links can be made to. A relative path is relative to the destination, as for rsync."""
    path = os.path.normpath(os.path.join(top, given))
    try:
        state, there = os.stat(path), os.stat(top if os.path.exists(top) else os.path.dirname(top))
    except OSError as error:
        where = "" if os.path.isabs(given) else f" (that is {path}: relative to the destination)"
        raise UsageError(f"link-dest {given}{where}: {error.strerror}") from None
    if not stat.S_ISDIR(state.st_mode):
        raise UsageError(f"link-dest {given}: is not a directory")
    if state.st_dev != there.st_dev:
        raise UsageError(f"link-dest {given}: is on another file system than {top}, and hard links cannot reach there")
    if os.path.samestat(state, there):
        raise UsageError(f"link-dest {given}: is the destination itself; give an earlier copy")
    above = inodes_above(path)
    for source in sources:
        left_out = options.one_file_system and state.st_dev != source.inode[0]
        if source.is_directory and source.inode in above and not left_out:
            raise UsageError(f"link-dest {given}: is in {source.given}, whose own files would be the copy; give an earlier one")
    if options.delete and os.path.exists(top) and (there.st_dev, there.st_ino) in above:
        raise UsageError(f"link-dest {given}: lies in the destination, from which delete would remove it; move it out of there")
    return path
