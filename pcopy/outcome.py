"""What comes back from a slice: what it did, what failed, and the units that it leaves to others."""

# Annotations are no texts here, see work.py.
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from pcopy.work import Clear, Group, Remove, Shared, Unit


class Event(NamedTuple):
    """What became of one entry, and why. Words and reasons are in the README; ``bytes`` of a file that was copied."""

    what: str
    path: str
    why: str = ""
    bytes: int | None = None


class Failure(NamedTuple):
    """One entry that could not be copied. ``fatal``: neither could any other be (no space, read-only)."""

    path: str
    operation: str
    errno: int | None
    reason: str
    fatal: bool = False


@dataclass(eq=False, repr=False)
class Tally:
    """What was found and what became of it, counted in entries; ``bytes`` in bytes of copied files."""

    found: int = 0
    files: int = 0
    bytes: int = 0
    directories: int = 0
    symlinks: int = 0
    hardlinks: int = 0
    specials: int = 0
    unchanged: int = 0
    deleted: int = 0
    failed: int = 0
    vanished: int = 0
    skipped: int = 0

    def add(self, other: "Tally") -> None:
        for one in fields(Tally):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    @property
    def accounted(self) -> int:
        """Equals ``found`` when every entry met one fate."""
        copied = self.files + self.directories + self.symlinks + self.hardlinks + self.specials
        return copied + self.unchanged + self.failed + self.vanished + self.skipped


@dataclass(eq=False, repr=False)
class Outcome:
    """What one slice did, and what it leaves to others."""

    tally: Tally = field(default_factory=Tally)
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)  # what could not be preserved: how often
    events: list[Event] = field(default_factory=list)  # if the options ask for them
    sums: list[bytes] = field(default_factory=list)  # records of the manifest
    leftover: list[Unit] = field(default_factory=list)  # the last is the next to do
    uncounted: list[Remove | Clear] = field(default_factory=list)  # left over until they are, if deletions are limited
    shared: list[Shared] = field(default_factory=list)
    broken: dict[Group, Failure] = field(default_factory=dict)  # large files of which a span failed, and why
    ruined: set[Group] = field(default_factory=set)  # these, and whatever else must not be taken for copied
    listed: int = 0  # entries found that are no directories
    share: float = 0.0  # of the run, without large files
    large_found: int = 0  # bytes
    large_done: int = 0  # bytes
    large_sealed: int = 0  # bytes
    large_open: int = 0  # files begun, less those that came to an end
    current: str = ""
    seconds: float = 0.0
    computed: float = 0.0  # seconds of a processor, and the next: without one, of no use for it; if the options ask for them
    waited: float = 0.0
    paid: int = 0  # bytes copied, if there is a limit on them
    undeleted: int = 0  # entries of those that the slice might have deleted, if there is a limit on them

    @property
    def fatal(self) -> bool:
        return any(failure.fatal for failure in (*self.failures, *self.broken.values()))
