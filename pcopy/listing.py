"""What a scan found in a directory, and in its copy."""

from __future__ import annotations

from dataclasses import dataclass, field

from pcopy.outcome import Failure
from pcopy.select import Here
from pcopy.work import Attributes


@dataclass(eq=False, repr=False)
class Listing:
    """What a scan found, by what is to be done with it."""

    attributes: Attributes
    device: int  # st_dev
    directories: list[tuple[str, bool]] = field(default_factory=list)  # (name, whether its copy is new)
    regular: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    replaced: set[str] = field(default_factory=set)  # those that an entry of another kind gave way to
    begun: set[str] = field(default_factory=set)  # those that were there when their copies were to be made
    skipped: list[str] = field(default_factory=list)  # directories that an entry to be kept stands in the way of
    hidden: list[str] = field(default_factory=list)  # by a filter
    failures: list[Failure] = field(default_factory=list)
    partial: dict[str, str] = field(default_factory=dict)  # of regular files, the temporary names that a cut run left
    there: dict[str, bool] = field(default_factory=dict)  # names in the destination: whether it is a directory
    extra: tuple[tuple[str, bool], ...] = ()  # those of them that the source lacks, to be removed
    below: dict[str, list[str]] | None = None  # of each name that is listed, the paths below it that are; None: all
    differs: str = ""  # in what the copy differs, if that is to be told

    @property
    def gone(self) -> list[str]:
        """Directories in the destination that the source has not, or not any more."""
        known = {name for name, _ in self.directories}
        return [name for name, is_directory in self.there.items() if is_directory and name not in known]

    @property
    def found(self) -> int:
        return len(self.directories) + len(self.regular) + len(self.other) + self.undone

    @property
    def undone(self) -> int:
        return len(self.skipped) + len(self.hidden) + len(self.failures)

    def only(self, name: str) -> tuple[str, ...] | None:
        """What is to be copied of a directory."""
        return None if self.below is None else tuple(self.below.get(name, ()))

    def keep_those_over_directories(self) -> int:
        """Leave out the entries in whose place is no directory: nothing is deleted for them. Returns how many."""
        before = len(self.regular) + len(self.other)
        self.regular = [name for name in self.regular if self.there.get(name)]
        self.other = [name for name in self.other if self.there.get(name)]
        return before - len(self.regular) - len(self.other)

    def hide(self, here: Here) -> None:
        """Put aside what a filter hides."""
        directories = here.hidden([name for name, _ in self.directories], True)
        files = here.hidden((*self.regular, *self.other), False)
        if directories or files:
            self.directories = [one for one in self.directories if one[0] not in directories]
            self.regular = [name for name in self.regular if name not in files]
            self.other = [name for name in self.other if name not in files]
            self.hidden = sorted(directories | files)
