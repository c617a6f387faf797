"""What the filters hide. Pure: paths and figures come in, the disk is never touched.

    lines ─▶ Rule, Rule, … ─▶ Selection ─ here(directory) ─▶ Here ─ hidden(names, …) ─▶ the names that are hidden

Patterns are gitignore's (gitignore(5)): the last one that matches an entry decides, and nothing below a hidden directory
comes back. The library pathspec says what a pattern matches, but only of whole paths, one pattern after the other, which
takes longer than to copy a small file. So each pattern is cut at its last slash. What is before it is asked once for each
directory; what is after it is a pattern of names, and all of those are asked at once.
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from pcopy.errors import UsageError
from pcopy.options import Options

NONE = -1  # the number of no rule
Place = tuple[str, bool]  # a pattern of directories, and whether of any directory below them too
EVERYWHERE: Place = ("", True)
# How rules in rsync's lists begin. A name that does is written with a backslash before it.
RSYNC = r"[-+] "
NOTHING_AFTER = "has a backslash with nothing after it that needs one"
SPECIAL = r"[*?\[\\]"
WRONG = r"[\[\\]"  # what a pattern can have wrong is about one of these
# A pattern, then spaces that do not count: those that no backslash goes before.
TRIMMED = r"(?s)((?:\\.|[^\\])*?) *"


class Rule(NamedTuple):
    """A pattern, cut at its last slash."""

    number: int
    hides: bool  # or brings back
    directories_only: bool
    place: Place  # where it holds
    name: str  # a pattern of names


class Branches:
    """Patterns of names as one regular expression, the last pattern first."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.numbers = [rule.number for rule in reversed(rules)]
        self.match = compiled("|".join(f"{expression(rule.name)}()" for rule in reversed(rules))).match

    def last(self, name: str) -> int:
        found = self.match(f"{name}/")
        return self.numbers[found.lastindex - 1] if found and found.lastindex else NONE  # the empty group ends a branch


class Names:
    """Many patterns of names, asked at once: which is the last that a name matches?

    Most patterns are a name, or the end of one, which a dictionary finds however many there are. An expression passes at
    once over branches that begin with another letter. Those that begin with an asterisk are looked for without it.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.whole: dict[str, int] = {}
        ends: dict[int, dict[str, int]] = {}
        heads: list[Rule] = []
        floating: list[Rule] = []
        for rule in rules:
            literal = rule.name.removeprefix("*")
            if re.search(SPECIAL, literal) or not literal:
                (floating if rule.name[0] == "*" else heads).append(rule)
            elif literal == rule.name:
                self.whole[literal] = rule.number
            else:
                ends.setdefault(len(literal), {})[literal] = rule.number
        self.ends = tuple(ends.items())
        self.heads = Branches(heads) if heads else None
        self.floating = Branches(floating) if floating else None
        loose = "|".join(expression(rule.name.lstrip("*")).removeprefix("^") for rule in floating)
        self.search = compiled(loose).search

    def last(self, names: Iterable[str]) -> dict[str, int]:
        """The number of the last rule that matches, for the names that any does."""
        found = {name: self.whole[name] for name in self.whole.keys() & names}
        for length, literals in self.ends:
            hits = [name for name in names if name[-length:] in literals]
            keep_last(found, ((name, literals[name[-length:]]) for name in hits))
        if self.heads:
            match = self.heads.match
            hits = [name for name in names if match(f"{name}/")]
            keep_last(found, ((name, self.heads.last(name)) for name in hits))
        if self.floating:
            search = self.search
            hits = [name for name in names if search(f"{name}/")]
            keep_last(found, ((name, self.floating.last(name)) for name in hits))
        return found


def keep_last(found: dict[str, int], more: Iterable[tuple[str, int]]) -> None:
    for name, number in more:
        if number > found.get(name, NONE):
            found[name] = number


class Here:
    """What the filters hide in one directory."""

    def __init__(self, rules: Sequence[Rule], files: Sequence[Names], directories: Sequence[Names]) -> None:
        self.rules, self.files, self.directories = rules, files, directories

    def hidden(self, names: Iterable[str], are_directories: bool) -> set[str]:
        """Those of these names that are hidden."""
        found: dict[str, int] = {}
        for one in self.directories if are_directories else self.files:
            keep_last(found, one.last(names).items())
        return {name for name, number in found.items() if self.rules[number].hides}

    def hides(self, name: str, is_directory: bool) -> bool:
        return bool(self.hidden((name,), is_directory))


class Selection:
    """What a list of patterns hides below a directory, the top, to which all paths are relative."""

    def __init__(self, lines: Iterable[str]) -> None:
        parsed = [rule for line in lines if (rule := parse(line))]
        self.rules = [rule._replace(number=number) for number, rule in enumerate(parsed)]
        self.by_place: dict[Place, list[Rule]] = {}
        for rule in self.rules:
            self.by_place.setdefault(rule.place, []).append(rule)
        self.everywhere = self.names(self.by_place.pop(EVERYWHERE, []))
        # A place that is the path of one directory is looked up, however many there are.
        self.directories = {place[0]: place for place in self.by_place if not place[1] and not re.search(SPECIAL, place[0])}
        self.others = [place for place in self.by_place if self.directories.get(place[0]) != place]
        self.is_any = compiled("|".join(map(about, self.others))).match if self.others else None
        self.tests: dict[Place, Callable[[str], object]] = {}
        self.known: dict[tuple[Place, ...], Here] = {(): Here(self.rules, *self.everywhere)}
        self.last: tuple[str, Here | None] = ("", self.within(""))

    def names(self, rules: Sequence[Rule]) -> tuple[list[Names], list[Names]]:
        """The patterns that files are asked for, and directories."""
        of_files = [rule for rule in rules if not rule.directories_only]
        return ([Names(of_files)] if of_files else [], [Names(rules)] if rules else [])

    def within(self, directory: str) -> Here:
        """What is hidden in a directory that is not hidden itself."""
        path, places = f"{directory}/", tuple([self.directories[directory]] if directory in self.directories else ())
        if self.is_any is not None and self.is_any(path):
            places += tuple(place for place in self.others if self.is_about(place, path))
        if places not in self.known:
            rules = sorted(rule for place in places for rule in self.by_place[place])
            of_files, of_directories = self.names(rules)
            files, directories = self.everywhere
            self.known[places] = Here(self.rules, files + of_files, directories + of_directories)
        return self.known[places]

    def is_about(self, place: Place, path: str) -> bool:
        """Whether a pattern is about a directory, with a slash at its end. It is compiled when it may be."""
        if place not in self.tests:
            self.tests[place] = compiled(about(place)).match
        return self.tests[place](path) is not None

    def here(self, directory: str) -> Here | None:
        """The same of any directory; None if it is hidden, or lies below one that is."""
        asked, here = self.last  # in one go: another thread may ask too
        if directory != asked:
            here = self.within("")
            names = directory.split("/") if directory else []
            for count, name in enumerate(names, 1):  # a loop, because paths can be deeper than Python's stack
                if here is None or here.hides(name, True):
                    here = None
                    break
                here = self.within("/".join(names[:count]))
            self.last = (directory, here)
        return here

    def hides(self, path: str, is_directory: bool) -> bool:
        """Whether an entry is hidden, by itself or with a directory above it. The top never is."""
        directory, _, name = path.strip("/").rpartition("/")
        here = self.here(directory)
        return here is None or (bool(name) and here.hides(name, is_directory))


@lru_cache(maxsize=8)
def selection(filters: tuple[str, ...]) -> Selection | None:
    """What these lines hide; None if they are no patterns. Compiled once in each process. Raises UsageError."""
    chosen = Selection(filters)
    return chosen if chosen.rules else None


def leaves_out(options: Options, state: os.stat_result) -> bool:
    """Whether a file is too large, too small or too old to be copied."""
    if not stat.S_ISREG(state.st_mode):
        return False
    return (
        (options.max_size is not None and state.st_size > options.max_size)
        or (options.min_size is not None and state.st_size < options.min_size)
        or (options.newer_than is not None and state.st_mtime_ns <= options.newer_than)
    )


# ---- from a line to a rule ------------------------------------------------------------------------------------------


def parse(line: str) -> Rule | None:
    """A line of a gitignore file; None if it is blank or a comment. Raises UsageError."""
    if line.startswith("#"):
        return None
    trimmed = re.fullmatch(TRIMMED, line)
    if not trimmed:
        raise UsageError(f"pattern {line!r}: {NOTHING_AFTER}")
    pattern = trimmed[1]
    if not pattern:
        return None
    glob = pattern.removeprefix("!")
    directories_only = glob.endswith("/")
    parts = glob[: len(glob) - directories_only].split("/")
    if len(parts) == 1:
        parts.insert(0, "**")  # a pattern without a slash is about names in any directory
    elif not parts[0]:
        del parts[0]
    if not all(parts):
        raise UsageError(f"pattern {line!r}: matches nothing; write a name between the slashes")
    if "." in parts or ".." in parts:
        raise UsageError(f"pattern {line!r}: matches nothing; leave out what is . or .., and begin with / for the top")
    if re.match(RSYNC, glob):
        advice = "write the pattern alone, ! before one that brings back, a backslash before such a name"
        raise UsageError(f"pattern {line!r}: is a rule of rsync; {advice}")
    place, name = cut(parts)
    try:
        if re.search(WRONG, glob):
            compiled(expression(name))
            compiled(about(place))
    except ValueError as error:
        raise UsageError(f"pattern {line!r}: {error}") from None
    return Rule(NONE, pattern == glob, directories_only, place, name)


def cut(parts: list[str]) -> tuple[Place, str]:
    """The place that a pattern is about, and the pattern of the names in it."""
    *above, name = parts
    if name == "**":
        above, name = [*above, name], "*"
    deep = False
    while above and above[-1] == "**":
        deep = True
        above.pop()
    return ("/".join(above), deep), name


def about(place: Place) -> str:
    """The regular expression of the directories that a pattern is about, with a slash at their ends; "/" is the top."""
    glob, deep = place
    # A bracket that says what not to match would match a slash too.
    text = expression(glob).replace("[^", "[^/") if glob else "" if deep else "/"
    return text if deep else rf"{text}\Z"


def expression(glob: str) -> str:
    """The regular expression of a pattern that begins at the top, for paths with a slash at their ends. Raises ValueError.

    With the slash pathspec takes it for a pattern of directories, and leaves spaces at its end alone. A lone asterisk is
    written in another way, because pathspec has shorter expressions for it, which hold for whole paths only.
    """
    if not re.search(SPECIAL, glob):  # nor is the library needed, whose import takes as long as to copy a thousand files
        return f"^{re.escape(glob)}/"
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    if "[:" in glob:
        raise ValueError("has a class of characters by name; write them out, as in [a-z]")
    parts = ["?*" if part == "*" else part for part in glob.split("/")]
    if any((len(part) - len(part.rstrip("\\"))) % 2 for part in parts):
        raise ValueError(NOTHING_AFTER)
    text, _ = GitIgnoreSpecPattern.pattern_to_regex(f"/{'/'.join(parts)}/")
    if text is None:
        raise ValueError("has a bracket that is not closed; write \\[ for the character itself")
    return re.sub(r"\(\?P<\w+>", "(?:", str(text))


def compiled(text: str) -> re.Pattern[str]:
    """Raises ValueError."""
    try:
        with warnings.catch_warnings():  # of what brackets may mean in Python to come
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(text, re.DOTALL)  # names can hold newlines
    except re.error as error:
        raise ValueError(f"has a bracket that makes no sense ({error.msg})") from None
