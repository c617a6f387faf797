"""Progress on a terminal, by tqdm: one line with a bar and figures, one with the name of what is being copied."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pcopy.options import Options
from pcopy.outcome import Event, Failure
from pcopy.report import failure_line, shown, size
from pcopy.result import Observer, Progress

if TYPE_CHECKING:
    from tqdm import tqdm

DRY_RUN = {
    "copied": "would copy",
    "deleted": "would delete",
    "linked": "would link",
    "made": "would make",
    "skipped": "would skip",
    "updated": "would update",
}
# Seconds between two pictures: fewer look smoother and cost more.
INTERVAL = 0.1
STEPS = 1000
ROWS = 24  # of a terminal: enough for two lines, where it does not say how many it has
ALMOST = 0.99  # what is shown at most before the end
TREMBLE = 0.1  # by how much an estimate may fall without the bar going back
NARROW = 90  # columns below which figures are short
WINDOW = 5.0  # seconds over which the rate is taken
FIGURES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


class Unheard:
    """stderr, but a reader who has gone is no reason to end a copy."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:  # fileno, encoding, isatty
        return getattr(sys.stderr, name)


class Lines(Observer):
    """Names failures, and entries if they are told; for when there is no bar."""

    words: Mapping[str, str] = MappingProxyType({})  # what to say instead of what is told

    def __init__(self) -> None:
        self.stream = Unheard()
        self.verbose = True

    def started(self, sources: Sequence[str], destination: str, options: Options) -> None:
        self.verbose = options.verbose  # else what is told is for others, such as a log
        if options.dry_run:
            self.words = DRY_RUN

    def event(self, event: Event) -> None:
        if not self.verbose:
            return
        why = f" ({event.why})" if event.why else ""
        self.write(f"{self.words.get(event.what, event.what)} {shown(event.path)}{why}")

    def failure(self, failure: Failure) -> None:
        self.write(f"pcopy: {failure_line(failure)}")

    def write(self, line: str) -> None:
        self.stream.write(f"{line}\n")  # in one piece: others may write to the same stream
        self.stream.flush()

    def close(self) -> None:
        """Leave the terminal as it was."""


class Bars(Lines):
    """The same above two lines that show how far the run is."""

    wants_total = True

    def __init__(self) -> None:
        super().__init__()
        self.began = self.drawn = time.monotonic()
        self.shown = 0.0
        self.history: list[tuple[float, int]] = [(self.began, 0)]
        self.opened = False
        self.lines: list[str] = []  # for above the bar, written with the next picture

    def open(self) -> None:
        """At the first picture: what ends before that does not wait for tqdm, and the workers do not either."""
        bar = bar_of_tqdm()
        bar.set_lock(threading.RLock())  # instead of one that imports multiprocessing
        self.bar: tqdm[Any] = bar(total=STEPS, bar_format="{percentage:3.0f}%|{bar}| {desc}", **self.place())
        self.name: tqdm[Any] = bar(total=0, position=1, bar_format="{desc}", **self.place())
        self.opened = True

    def place(self) -> dict[str, Any]:
        return {"ncols": terminal_width(), "nrows": ROWS, "leave": False, "file": self.stream}

    def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self.drawn < INTERVAL:
            return
        if not self.opened:
            self.open()
        self.drawn = now
        self.history = [*[one for one in self.history if one[0] > now - WINDOW], (now, progress.bytes)]
        part = progress.fraction()
        self.shown = next_shown(self.shown, part)
        self.bar.ncols = self.name.ncols = columns = terminal_width()
        self.bar.n = int(self.shown * STEPS)
        self.bar.desc = figures(progress, self.rate(), self.left(now, part), columns < NARROW)
        self.name.desc = fit(shown(progress.current), columns - 1)
        self.write_lines()
        self.bar.refresh()
        self.name.refresh()

    def rate(self) -> float:
        """Bytes a second of the last seconds."""
        (first, before), (last, now) = self.history[0], self.history[-1]
        return (now - before) / (last - first) if last > first else 0.0

    def left(self, now: float, part: float) -> float | None:
        """Seconds, or None while nobody can tell."""
        return (now - self.began) * (1 - part) / part if part > 0.01 else None

    def write(self, line: str) -> None:
        if self.opened:
            self.lines.append(line)
        else:
            super().write(line)

    def write_lines(self) -> None:
        """All in one go: to take the bar away and draw it again for each would take longer than to copy a file."""
        if self.lines:
            self.bar.write("\n".join(self.lines), file=self.stream)
            self.lines = []

    def close(self) -> None:
        if self.opened:
            self.write_lines()
            self.name.close()
            self.bar.close()


def next_shown(shown: float, part: float) -> float:
    """An estimate may tremble, a bar may not. But if it was far too high the bar goes back: to stand still says nothing."""
    part = min(part, ALMOST)
    return part if part < shown - TREMBLE else max(shown, part)


def terminal_width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def figures(progress: Progress, rate: float, left: float | None, narrow: bool) -> str:
    """What stands beside the bar. A plus says that the total is still growing."""
    from tqdm import tqdm

    more = "+" if progress.growing and not progress.expected else ""
    time_left = "--:--" if left is None else tqdm.format_interval(left)
    total = progress.expected[0] if progress.expected else progress.found
    if narrow:
        return f"{short(progress.done)}/{short(total)}{more} {short(progress.bytes)}B {short(rate)}B/s {time_left}"
    return f"{progress.done:,}/{total:,}{more} files, {size(progress.bytes)}, {size(rate)}/s, {time_left} left"


def short(count: float) -> str:
    """A number in at most five characters: 12.3k."""
    for suffix, factor in reversed(FIGURES.items()):
        if count >= 0.9995 * factor:
            return f"{count / factor:.1f}{suffix}" if count < 99.95 * factor else f"{count / factor:.0f}{suffix}"
    return f"{count:.0f}"


def fit(path: str, columns: int) -> str:
    """The end of a path, where the names differ, as stderr writes it. Wide characters, as of Chinese, take two columns."""
    from tqdm.utils import disp_len

    path, dots = as_written(composed(path)), "…" if as_written("…") == "…" else "..."
    if disp_len(path) <= columns:
        return path
    begin, room = len(path), columns - len(dots)
    while (room := room - disp_len(path[begin - 1])) >= 0:
        begin -= 1
    return (dots + path[begin:])[: max(columns, 0)]


def composed(text: str) -> str:
    """Without marks that take no column of their own. tqdm counts one for each, and would leave the end of a longer line."""
    if text.isascii():
        return text
    import unicodedata

    return "".join(one for one in unicodedata.normalize("NFC", text) if unicodedata.category(one) not in ("Mn", "Me"))


def as_written(text: str) -> str:
    """What stderr makes of a text: what its encoding lacks becomes several characters."""
    encoding, errors = sys.stderr.encoding or "utf-8", sys.stderr.errors or "strict"
    return text.encode(encoding, errors).decode(encoding, "replace")


def bar_of_tqdm() -> type[tqdm[Any]]:
    """tqdm, which takes defaults for everything from the environment, once, and fails if they make no sense."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("TQDM_")}
    from tqdm import tqdm

    os.environ.update(kept)
    tqdm.monitor_interval = 0  # its thread would forbid fork to the pool
    return tqdm


class Runs:
    """A bar over the runs of a comparison."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] = bar_of_tqdm()(
            bar_format="{n_fmt}/{total_fmt} |{bar}| {desc}", ncols=terminal_width(), nrows=ROWS, leave=False, file=Unheard()
        )

    def step(self, name: str, done: int, total: int) -> None:
        self.bar.total, self.bar.n, self.bar.ncols = total, done, terminal_width()
        self.bar.set_description_str(name)

    def close(self) -> None:
        self.bar.close()
