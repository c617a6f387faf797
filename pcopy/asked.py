"""What was asked for: does each value make sense, and what does it mean? Raises UsageError. Places are for places.py."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

from pcopy.errors import UsageError
from pcopy.manifest import hasher
from pcopy.options import AUTO, Hash, Options, Overwrite, When, attributes_from
from pcopy.result import Observer, Several
from pcopy.select import selection
from pcopy.stop import is_ending

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
OverwriteName = Literal["changed", "always", "older", "never"]
Jobs = int | Literal["auto"]
HashName = Literal["sha256", "blake3"]
WhenName = Literal["auto", "always", "never"]
Choice = TypeVar("Choice", Overwrite, When, Hash)
Given = TypeVar("Given")
RATE = r"(?ia)(\d+\.?\d*|\.\d+)\s*([kmgt]?)b?"
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
            f" (after pipx: pipx inject pcopy {kind.value})"
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


def listed(given: object) -> Iterable[object]:
    """Several of what is asked for, or the one that stands for itself."""
    return given if isinstance(given, Iterable) and not isinstance(given, (str, bytes, os.PathLike)) else [given]


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
