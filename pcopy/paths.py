"""Where each source lands. Pure: what the file system says comes in as facts.

one directory      DESTINATION becomes a copy of it
one other entry    DESTINATION is its new name, or the directory that it goes into
several            DESTINATION is a directory, each goes to DESTINATION/its-name
"""

# Annotations are no texts here, see work.py.
import os
from collections.abc import Sequence
from typing import NamedTuple

from pcopy.errors import UsageError


class Source(NamedTuple):
    """A source as it was given, and what is there."""

    given: str
    path: str  # absolute
    is_directory: bool
    is_special: bool = False
    inode: tuple[int, int] = (0, 0)  # st_dev and st_ino
    leads_to_directory: bool = False  # a symbolic link, which is copied as one
    is_regular: bool = False  # a file

    @property
    def name(self) -> str:
        return os.path.basename(self.path)


class Destination(NamedTuple):
    """The destination as it was given, and what is there."""

    given: str
    path: str  # absolute
    exists: bool
    is_directory: bool
    parent_exists: bool
    below_file: bool = False  # what should be its directory is something else
    is_special: bool = False  # a device, FIFO or socket


class Landing(NamedTuple):
    """A source directory and the directory that its entries go into.

    Of them ``names``, or all if there are none; of all, those on the way to and at the end of a path in ``only``, if any.
    ``regular``: those of the names that are files.
    """

    source: str
    destination: str
    names: tuple[str, ...] = ()
    rename: str | None = None
    only: tuple[str, ...] | None = None
    regular: frozenset[str] = frozenset()


def land(sources: Sequence[Source], destination: Destination) -> tuple[str, list[Landing]]:
    """The directory that the run writes into, and where each source lands in it. Raises UsageError."""
    if not sources:
        raise UsageError("no source was given")
    if not destination.parent_exists:
        parent = os.path.dirname(destination.path)
        what = "is not a directory" if destination.below_file else "does not exist; make it first (mkdir -p)"
        raise UsageError(f"{destination.given}: {parent} {what}")
    if destination.is_special and not (len(sources) == 1 and sources[0].is_special):
        raise UsageError(f"{destination.given}: is a device, FIFO or socket and would be replaced; remove it first")
    if len(sources) == 1:
        return land_one(sources[0], destination)
    refuse_file(destination, "several sources need a directory to go into")
    refuse_equal_names(sources)
    landings = [Landing(one.path, os.path.join(destination.path, one.name)) for one in sources if one.is_directory]
    by_parent: dict[str, list[Source]] = {}
    for one in sources:
        if not one.is_directory:
            by_parent.setdefault(os.path.dirname(one.path), []).append(one)
    landings += [land_in(destination.path, parent, some) for parent, some in by_parent.items()]
    return destination.path, landings


def land_in(directory: str, parent: str, sources: Sequence[Source], rename: str | None = None) -> Landing:
    """Where entries of one directory land that are no directories."""
    names = tuple(one.name for one in sources)
    regular = frozenset(name for name, one in zip(names, sources, strict=True) if one.is_regular)
    return Landing(parent, directory, names, rename, regular=regular)


def land_one(source: Source, destination: Destination) -> tuple[str, list[Landing]]:
    if source.is_directory:
        refuse_file(destination, f"{source.given} is a directory and cannot become a file")
        return destination.path, [Landing(source.path, destination.path)]
    parent, name = os.path.split(source.path)
    if destination.is_directory or destination.given.endswith("/"):
        refuse_file(destination, "it ends in / and so has to be a directory")
        return destination.path, [land_in(destination.path, parent, [source])]
    top, rename = os.path.split(destination.path)
    return top, [land_in(top, parent, [source], rename if rename != name else None)]


def refuse_file(destination: Destination, why: str) -> None:
    if destination.exists and not destination.is_directory:
        raise UsageError(f"{destination.given}: is there and is not a directory; {why}")


def refuse_equal_names(sources: Sequence[Source]) -> None:
    seen: dict[str, Source] = {}
    for one in sources:
        name = one.name
        if not name:
            raise UsageError(f"{one.given}: has no name to go by in the destination; copy it alone")
        other = seen.setdefault(name, one)
        if other is not one:
            raise UsageError(f"{other.given} and {one.given}: would both become {name}; copy them one by one")
