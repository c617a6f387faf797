"""How to copy, read once, frozen, and sent to every worker."""

# Annotations are no texts here, see work.py.
import enum
from collections.abc import Iterable
from typing import Final, NamedTuple

METHODS = ("fork", "forkserver", "spawn")  # of starting processes (multiprocessing.set_start_method)
ALL_ATTRIBUTES = frozenset({"mode", "owner", "times", "links", "xattr"})


def attributes_from(names: str | Iterable[str]) -> frozenset[str]:
    """Attributes by their names, in one text with commas or in several texts; "all" is each of them. Raises ValueError."""
    try:
        words = frozenset(word.strip() for word in names.split(",")) if isinstance(names, str) else frozenset(names)
        wrong = sorted(map(repr, words - ALL_ATTRIBUTES - {"all"}))
    except TypeError:
        words, wrong = frozenset(), [repr(names)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: must be among {', '.join(['all', *sorted(ALL_ATTRIBUTES)])}")
    return ALL_ATTRIBUTES if "all" in words else words


class Overwrite(str, enum.Enum):
    """What to do with an entry that the destination has already."""

    CHANGED = "changed"
    ALWAYS = "always"
    OLDER = "older"
    NEVER = "never"


class When(str, enum.Enum):
    """When to share blocks, when to make holes."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


AUTO: Final = "auto"  # jobs: a run finds the number by itself


class Hash(str, enum.Enum):
    """Whose checksums a manifest holds: each has a common tool that checks them."""

    SHA256 = "sha256"
    BLAKE3 = "blake3"


class Options(NamedTuple):
    """Every choice of a run.

    ``adapts``: ``jobs`` is what the run begins with, and it finds a better number by itself. ``preserve`` is a subset of
    :data:`ALL_ATTRIBUTES`; ``filters`` are lines as in a gitignore file; sizes are in bytes, ``newer_than`` is in nanoseconds
    since the epoch; ``sums``: outcomes carry the checksums of all files in the copy; ``bwlimit`` is in bytes a second over all
    workers; ``events`` makes outcomes name every entry that changes, ``verbose`` all; ``start_method`` is multiprocessing's,
    ``None`` for the best that is safe here.
    """

    jobs: int = 1
    adapts: bool = False
    overwrite: Overwrite = Overwrite.CHANGED
    checksum: bool = False
    preserve: frozenset[str] = ALL_ATTRIBUTES
    dereference: bool = False
    one_file_system: bool = False
    reflink: When = When.AUTO
    sparse: When = When.AUTO
    atomic: bool = False
    fsync: bool = False
    verify: bool = False
    sums: Hash | None = None
    retries: int = 2
    bwlimit: float | None = None
    filters: tuple[str, ...] = ()
    max_size: int | None = None
    min_size: int | None = None
    newer_than: int | None = None
    dry_run: bool = False
    verbose: bool = False
    events: bool = False
    delete: bool = False
    max_delete: int | None = None
    link_dest: tuple[str, ...] = ()
    start_method: str | None = None

    @property
    def tells(self) -> bool:
        return self.verbose or self.events

    @property
    def whole_files_only(self) -> bool:
        """``older`` and ``never`` would take a half file of a killed run for one to keep."""
        return self.atomic or self.overwrite in (Overwrite.OLDER, Overwrite.NEVER)

    @property
    def limits_deletion(self) -> bool:
        """Whether what is to be deleted is counted before it is: so many it may be, and no more."""
        return self.max_delete is not None and not self.dry_run

    @property
    def limited(self) -> bool:
        """Whether every file has to be looked at before it is known to be one that is copied."""
        return (self.max_size, self.min_size, self.newer_than) != (None, None, None)
