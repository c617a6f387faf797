"""How to copy, read once, frozen, and sent to every worker."""

from __future__ import annotations

import enum
from dataclasses import dataclass

ALL_ATTRIBUTES = frozenset({"mode", "owner", "times", "links", "xattr"})


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


class Hash(str, enum.Enum):
    """Whose checksums a manifest holds: each has a common tool that checks them."""

    SHA256 = "sha256"
    BLAKE3 = "blake3"


@dataclass(frozen=True)
class Options:
    """Every choice of a run.

    ``preserve`` is a subset of :data:`ALL_ATTRIBUTES`; ``sums``: outcomes carry the checksums of all files in the copy;
    ``verbose`` makes outcomes name every entry; ``start_method`` is multiprocessing's, ``None`` for the best that is safe here.
    """

    jobs: int = 1
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
    dry_run: bool = False
    verbose: bool = False
    start_method: str | None = None

    @property
    def whole_files_only(self) -> bool:
        """``older`` and ``never`` would take a half file of a killed run for one to keep."""
        return self.atomic or self.overwrite in (Overwrite.OLDER, Overwrite.NEVER)
