"""What was asked for: does it make sense, and what does it mean? Raises UsageError, and touches nothing."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeVar

from pcopy import filesystem as fs
from pcopy.errors import UsageError
from pcopy.manifest import absolute, copied_to, hasher, place_of, within
from pcopy.options import AUTO, Hash, Options, Overwrite, When, attributes_from
from pcopy.paths import Destination, Landing, Source
from pcopy.result import Observer, Several
from pcopy.select import selection
from pcopy.stop import is_ending
from pcopy.values import relative_paths

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
OverwriteName = Literal["changed", "always", "older", "never"]
Jobs = int | Literal["auto"]
HashName = Literal["sha256", "blake3"]
WhenName = Literal["auto", "always", "never"]
Choice = TypeVar("Choice", Overwrite, When, Hash)
Given = TypeVar("Given")
RATE = r"(?ia)(\d+\.?\d*|\.\d+)\s*([kmgt]?)b?"
ADDRESS = r"[\w.-]+@[\w.-]+:(?!\d)|[\w.-]+:/"  # as rsync and scp have it; home@2026-01-31T18:30 is a name
FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
# Slower, a single block would take seconds.
SLOWEST, FASTEST = 1000, 10**15


def processors() -> int:
    """Those that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def why_alone() -> str:
    """Why this process may not start others; nothing if it may."""
    # Without multiprocessing it is not daemonic, nor while another thread is importing it: it is not imported only to ask.
    current = getattr(sys.modules.get("multiprocessing"), "current_process", None)
    if current and current().daemon:
        return "this process is daemonic, as a worker of multiprocessing.Pool is, and may not start others: it copied alone"
    if is_ending():
        return "the program's main thread has ended, after which no process can be started: this one copied alone"
    return ""


def check_jobs(jobs: int | str | None) -> tuple[int, bool]:
    """The number of workers, and whether a run only begins with it and finds a better one by itself."""
    if jobs in (None, AUTO):
        return processors(), not why_alone()
    return check_number(jobs, f", or {AUTO!r}"), False


def check_number(jobs: object, otherwise: str = "") -> int:
    if not isinstance(jobs, int) or isinstance(jobs, bool) or not 1 <= jobs <= 1024:
        raise UsageError(f"jobs {jobs!r}: must be a number from 1 to 1024{otherwise}")
    return jobs


def check_count(name: str, count: int) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise UsageError(f"{name} {count!r}: must be 0 or more")
    return count


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


def check_files(files: Iterable[str], landings: Sequence[Landing], options: Options) -> None:
    """Refuse what a run writes besides the copy, such as its log, where the copy of something else is to be."""
    chosen = selection(options.filters)
    for file in files:
        path = place_of(file)
        for landing in landings:
            source = copied_to(path, landing)
            below = source and os.path.relpath(source, landing.source)
            if not below or (landing.only is not None and below not in landing.only):
                continue
            if landing.names or not chosen or not chosen.hides(below, False):
                raise UsageError(
                    f"{file}: would take the place of the copy of {source}; name another file, or exclude that one"
                )


def refuse_one_file(files: Iterable[str]) -> None:
    """What a run writes besides the copy needs a file each: of two, one would take the place of the other."""
    seen: set[str] = set()
    for file in files:
        if (place := place_of(file)) in seen:
            raise UsageError(f"{file}: is to be written twice; name a file each for log, metrics and manifest")
        seen.add(place)


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


def is_empty(directory: str) -> bool:
    try:
        handle = fs.open_directory(directory, fs.HERE, follow=True)
        try:
            return not any(fs.read_directory(handle))
        finally:
            fs.close_read(handle)
    except OSError:  # which the run will meet again
        return False


def check_rate(rate: float | str | None) -> float | None:
    """Bytes a second. Raises UsageError."""
    if rate is None:
        return None
    found = re.fullmatch(RATE, str(rate).strip()) if not isinstance(rate, bool) else None
    if not found:
        raise UsageError(f"bwlimit {rate!r}: must be bytes a second, such as 500k, 50M or 1.5G")
    number = float(found[1]) * FACTORS[found[2].lower()]
    if not SLOWEST <= number <= FASTEST:
        raise UsageError(f"bwlimit {rate!r}: must be from {SLOWEST:,} bytes a second to {FASTEST // 10**12} TB")
    return number


def check_observer(observer: Observer | Iterable[Observer] | None) -> Observer:
    if observer is None or isinstance(observer, Observer):
        return Observer() if observer is None else observer
    observers = list(observer) if isinstance(observer, Iterable) else [observer]
    for one in observers:
        if not isinstance(one, Observer):
            raise UsageError(f"observer {one!r}: must be a pcopy.Observer")
    return Several(observers)


def check_kind(name: str, value: object, kind: type[object]) -> None:
    if value is not None and not isinstance(value, kind):
        raise UsageError(f"{name} {value!r}: must be a pcopy.{kind.__name__}")


def check_sharing(reflink: str, sparse: str) -> None:
    if reflink == When.ALWAYS and sparse != When.AUTO:
        raise UsageError("reflink 'always' shares the blocks as they are: leave sparse at 'auto'")


def check_hash(name: str, needed: bool) -> Hash | None:
    kind = check_choice("hash", Hash, name)
    if not needed:
        return None
    try:
        hasher(kind)
    except ImportError:
        raise UsageError(
            f"hash '{kind.value}' needs a module that is not installed: pip install 'pcopy[{kind.value}]'"
        ) from None
    return kind


def check_choice(name: str, kind: type[Choice], value: str) -> Choice:
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"{name} {value!r}: must be one of {', '.join(one.value for one in kind)}") from None


def check_preserve(preserve: str | Iterable[str]) -> frozenset[str]:
    try:
        return attributes_from(preserve)
    except ValueError as error:
        raise UsageError(f"preserve {error}") from None


def check_flags(**flags: object) -> None:
    for name, flag in flags.items():
        if not isinstance(flag, bool):  # "no" would mean yes
            raise UsageError(f"{name} {flag!r}: must be True or False")


def check_filters(filters: Iterable[str]) -> tuple[str, ...]:
    lines = words_of("filters", filters, "lines as in a gitignore file")
    selection(lines)
    return lines


def words_of(name: str, given: Iterable[str], what: str) -> tuple[str, ...]:
    """Texts that were given as a list or by an iterator, which gives them once."""
    words = None if isinstance(given, (str, bytes)) or not isinstance(given, Iterable) else tuple(given)
    if words is None or not all(isinstance(word, str) for word in words):
        raise UsageError(f"{name} {given!r}: must be a list of {what}")
    return words


def check_value(name: str, meaning: Callable[[Given], int], given: Given) -> int:
    try:
        return meaning(given)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def check_sizes(options: Options) -> None:
    if options.max_size is not None and options.min_size is not None and options.max_size < options.min_size:
        raise UsageError(f"max_size {options.max_size:,} is less than min_size {options.min_size:,}: no file is left to copy")


def only_listed(sources: Sequence[Source], landings: Sequence[Landing], files_from: Iterable[Path]) -> Landing:
    """The one source, of which only what a list names is copied."""
    if len(sources) != 1 or not sources[0].is_directory:
        raise UsageError("a list of what to copy (files_from) needs one source, the directory that its paths are below")
    return landings[0]._replace(only=relative_paths(text_of("files_from", path) for path in listed(files_from)))


def look_at_sources(sources: Path | Iterable[Path], options: Options) -> list[Source]:
    return [look_at_source(text_of("source", path), options.dereference) for path in listed(sources)]


def listed(paths: Path | Iterable[Path]) -> Iterable[object]:
    """Several paths, or the one that stands for itself."""
    several = isinstance(paths, Iterable) and not isinstance(paths, (str, bytes, os.PathLike))
    return paths if several else [paths]  # type: ignore[return-value]


def text_of(what: str, path: object) -> str:
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]
        if b"\0" not in os.fsencode(text):
            return text
    except TypeError:
        raise UsageError(f"{what} {path!r}: must be a path: str, bytes or os.PathLike") from None
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        raise UsageError(f"{what} {path!r}: cannot be the name of a file") from None
    raise UsageError(f"{what} {path!r}: cannot be the name of a file, which holds no NUL")


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
