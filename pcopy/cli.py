"""The command line: a thin face on pcopy.copy and pcopy.compare."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pcopy.command import (
    HOW,
    MEASURE,
    SAY,
    WHAT,
    Command,
    Figure,
    FileName,
    JobList,
    Number,
    Option,
    WhatList,
    choice,
    order_of,
    print_version,
    some_file,
    some_tool,
)
from pcopy.errors import ExitStatus, UsageError
from pcopy.options import Hash, Overwrite, When
from pcopy.terminal import block, emit, ended_by_signals, interruptible, leave, say

if TYPE_CHECKING:
    from pcopy.progress import Lines
    from pcopy.result import Observer, Report

EXAMPLES = """\b
Examples:
  pcopy photos /mnt/backup/photos        copy a tree; once more: update it
  pcopy -j 4 /nfs/data /scratch/data     no more than four workers
  pcopy notes.txt letters /mnt/usb/      several sources go into a directory
  pcopy -n -v photos /mnt/backup/photos  say what would be done, touch nothing
  pcopy --check photos.sha256 /mnt/backup/photos
                                         is the copy what its manifest says?
  pcopy --compare photos                 is more than one process worth it?

\b
Exit status: 0 the destination is what was asked for; 1 some entries failed,
each is named; 2 the command line is wrong, nothing was touched; 3 stopped
early (no space, destination unusable, another run holds it); 129, 130, 143
interrupted."""


# fmt: off
@click.command(cls=Command, epilog=EXAMPLES, context_settings={"max_content_width": 100})
@click.argument("paths", nargs=-1, metavar="SOURCE... DESTINATION", shell_complete=some_file)
@click.option("-j", "--jobs", cls=Option, group=HOW, type=JobList(),
              help="Worker processes; 1 copies in this process; 'auto' begins with the processors that it may use, and takes "
                   "more where they wait for the storage.  [default: auto]")
@click.option("--overwrite", cls=Option, group=WHAT, type=choice(Overwrite), default="changed", show_default=True,
              help="What to do with a file that is there; 'changed': its size or modification time differs.")
@click.option("-c", "--checksum", cls=Option, group=WHAT, is_flag=True,
              help="'changed' looks at contents, not at times.  [default: size and modification time]")
@click.option("--preserve", cls=Option, group=WHAT, type=WhatList(), default="all", show_default=True,
              help="Preserve only these: mode, owner, times, links, xattr (ACLs with it), separated by commas.")
@click.option("--no-preserve", cls=Option, group=WHAT, type=WhatList(), help="Do not preserve these.  [default: none]")
@click.option("-L", "--dereference", cls=Option, group=WHAT, is_flag=True,
              help="Copy what symbolic links point to.  [default: copy links]")
@click.option("-x", "--one-file-system", cls=Option, group=WHAT, is_flag=True,
              help="Leave out other file systems mounted below a source, but not bind mounts of its own.  [default: copy them]")
@click.option("--exclude", cls=Option, group=WHAT, multiple=True, metavar="P",
              help="Hide what matches this gitignore pattern, below each SOURCE directory; repeatable. Of all patterns, in the "
                   "order given, the last that matches decides.  [default: none]")
@click.option("--include", cls=Option, group=WHAT, multiple=True, metavar="P",
              help="Bring back what an earlier pattern hides; nothing below a hidden directory.  [default: none]")
@click.option("--exclude-from", cls=Option, group=WHAT, multiple=True, metavar="FILE", shell_complete=some_file,
              help="The lines of a gitignore file, in their place in the order; '-' is stdin.  [default: none]")
@click.option("--files-from", cls=Option, group=WHAT, metavar="FILE", shell_complete=some_file,
              help="Copy only the paths in this list, relative to the one SOURCE: directories without their contents, and "
                   "those above each path; '-' is stdin.  [default: all]")
@click.option("-0", "--null", cls=Option, group=WHAT, is_flag=True,
              help="The list of --files-from has NULs, as of find -print0.  [default: lines]")
@click.option("--max-size", cls=Option, group=WHAT, type=Figure("SIZE", "size_of"),
              help="Leave out files larger than this: 10k, 5M, 1.5G, or 10kB for thousands.  [default: none]")
@click.option("--min-size", cls=Option, group=WHAT, type=Figure("SIZE", "size_of"),
              help="Leave out files smaller than this.  [default: none]")
@click.option("--newer-than", cls=Option, group=WHAT, type=Figure("WHEN", "moment_of"),
              help="Leave out files not modified since a date (2026-01-31), a date and time (2026-01-31T18:30) or so long ago "
                   "(12h, 7d); dates are local.  [default: none]")
@click.option("--reflink", cls=Option, group=HOW, type=choice(When), default="auto", show_default=True,
              help="Share blocks with the source where the file system can; 'always': fail where it cannot.")
@click.option("--sparse", cls=Option, group=HOW, type=choice(When), default="auto", show_default=True,
              help="Keep holes; 'always': make holes of zeros; 'never': fill them.")
@click.option("--atomic", cls=Option, group=HOW, is_flag=True,
              help="New files too appear only whole, for destinations that others read meanwhile.  [default: those replaced]")
@click.option("--fsync", cls=Option, group=HOW, is_flag=True,
              help="Wait until all that was copied is on stable storage.  [default: the system writes it when it likes]")
@click.option("--verify", cls=Option, group=HOW, is_flag=True,
              help="Read every copied file back from the storage and compare.  [default: trust the system's calls]")
@click.option("--manifest", cls=Option, group=HOW, type=FileName(), shell_complete=some_file,
              help="Write the checksums of all files in the copy, for --check or sha256sum -c.  [default: none]")
@click.option("--hash", cls=Option, group=HOW, type=choice(Hash), default="sha256", show_default=True,
              help="Whose checksums: sha256sum's or b3sum's (the extra blake3).")
@click.option("--retries", cls=Option, group=HOW, metavar="N", type=Number(min=0), default=2, show_default=True,
              help="Tries more for errors that may pass (EIO, ESTALE, EAGAIN, ETIMEDOUT).")
@click.option("--delete", cls=Option, group=WHAT, is_flag=True,
              help="Remove what the source lacks; an empty source is refused.  [default: keep it]")
@click.option("--max-delete", cls=Option, group=WHAT, metavar="N", type=Number(min=0),
              help="With --delete: do nothing at all if that is more than N entries; the source may be empty.  [default: any"
                   " number]")
@click.option("--link-dest", cls=Option, group=HOW, multiple=True, metavar="DIR", shell_complete=some_file,
              help="Make files that have not changed since an earlier copy hard links to it; relative to DESTINATION; "
                   "repeatable.  [default: none]")
@click.option("--bwlimit", cls=Option, group=HOW, metavar="RATE",
              help="Bytes a second over all workers together: 500k, 50M, 1.5G.  [default: as fast as it goes]")
@click.option("-n", "--dry-run", cls=Option, group=WHAT, is_flag=True,
              help="Say what would be done; touch nothing.  [default: do it]")
@click.option("--progress/--no-progress", cls=Option, group=SAY, default=None,
              help="Bars on stderr.  [default: if stderr is a terminal]")
@click.option("-q", "--quiet", cls=Option, group=SAY, is_flag=True, help="Errors only.  [default: a report at the end]")
@click.option("-v", "--verbose", cls=Option, group=SAY, is_flag=True,
              help="Name every entry, on stderr.  [default: failures]")
@click.option("--json", "as_json", cls=Option, group=SAY, is_flag=True,
              help="The report on stdout as one JSON object.  [default: a line on stderr]")
@click.option("--log", cls=Option, group=SAY, type=FileName(), shell_complete=some_file,
              help="Append a line of JSON for each event.  [default: none]")
@click.option("--metrics", cls=Option, group=SAY, type=FileName(), shell_complete=some_file,
              help="Write the figures of the run for Prometheus' textfile collector.  [default: none]")
@click.option("--check", cls=Option, group=MEASURE, type=FileName(), shell_complete=some_file,
              help="Check files against a manifest: pcopy --check FILE [DIRECTORY]; its names begin there, else here.  "
                   "[default: none]")
@click.option("--compare", is_flag=True, cls=Option, group=MEASURE,
              help="Measure one process against many: pcopy --compare [SOURCE [DESTINATION]]. Without SOURCE it makes a "
                   "sample tree; -j 2,4,8 lists the pools to try.")
@click.option("--against", cls=Option, group=MEASURE, multiple=True, metavar="TOOL", shell_complete=some_tool,
              help="Also cp, rsync, rclone, fpsync, xcp or fcp; repeatable.  [default: none]")
@click.option("--rounds", cls=Option, group=MEASURE, metavar="N", type=Number(min=1), default=5, show_default=True,
              help="Rounds that count, after one that warms up.")
@click.option("--chart", cls=Option, group=MEASURE, type=FileName(), shell_complete=some_file,
              help="Draw the result (.png, .svg, .pdf).  [default: none]")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=print_version,
              help="Show the version and exit.")
@click.pass_context
def main(context: click.Context, /, **given: Any) -> NoReturn:
    """Copy directory trees, faithfully and in parallel.

    One SOURCE directory: DESTINATION becomes a copy of it; run the line again to bring it up to date. One SOURCE file:
    DESTINATION is its new name or the directory it goes into. Several: DESTINATION is the directory they go into.
    """
    try:
        refuse_repeated(context)
        status = way(given)(context, given)
    except UsageError as error:
        from pcopy.report import shown

        say(f"pcopy: {shown(str(error))}")
        status = ExitStatus.USAGE
    leave(status)
# fmt: on


def way(given: dict[str, Any]) -> Callable[[click.Context, dict[str, Any]], int]:
    return run_check if given["check"] is not None else run_compare if given["compare"] else run_copy


def run_copy(context: click.Context, given: dict[str, Any]) -> int:
    """pcopy SOURCE... DESTINATION"""
    refuse(context, ("against", "rounds", "chart"), "goes with --compare")
    if not given["manifest"]:
        refuse(context, ("hash",), "goes with --manifest or --check")
    if len(given["paths"]) < 2:
        raise click.UsageError("a source and a destination are needed: pcopy SOURCE... DESTINATION", context)
    refuse_two_ways(context, given)
    if given["null"] and given["files_from"] is None:
        raise click.UsageError("--null goes with --files-from", context)
    written = [given[name] for name in ("log", "metrics", "manifest") if given[name] is not None]
    if len(set(written)) < len(written):
        raise click.UsageError("--log, --metrics and --manifest need a file each", context)
    from pcopy.api import copy
    from pcopy.result import Stop
    from pcopy.roaming import roam_in_slices

    roam_in_slices()
    filters, files_from = patterns(context, given), listed(given)
    *sources, destination = given["paths"]
    stop = Stop()
    with interruptible(stop), observer_for(given) as observer:
        report = copy(
            sources, destination, jobs=given["jobs"] and given["jobs"][0], preserve=preserved(given),
            observer=[observer, *records(given)], stop=stop, verbose=given["verbose"], filters=filters,
            files_from=files_from,
            **{name: given[name] for name in PASSED_ON},
        )  # fmt: skip
    return report.exit_status if tell(report, given) else report.exit_status or ExitStatus.FAILED


OF_FILTERS = ("exclude", "include", "exclude_from", "files_from", "null", "max_size", "min_size", "newer_than")
PASSED_ON = (
    "overwrite", "checksum", "dereference", "one_file_system", "reflink", "sparse", "atomic", "fsync", "verify",
    "manifest", "hash", "retries", "bwlimit", "dry_run", "max_size", "min_size", "newer_than", "delete", "max_delete",
    "link_dest",
)  # fmt: skip
NOT_COMPARED = (
    "dry_run", "verbose", "quiet", "overwrite", "checksum", "verify", "manifest", "hash", "retries", "bwlimit", "log",
    "metrics", "delete", "max_delete", "link_dest", *OF_FILTERS,
)  # fmt: skip
NOT_CHECKED = (
    "overwrite", "checksum", "preserve", "no_preserve", "dereference", "one_file_system", "reflink", "sparse", "atomic",
    "fsync", "verify", "manifest", "bwlimit", "dry_run", "log", "metrics", "delete", "max_delete", "link_dest", *OF_FILTERS,
    "compare", "against", "rounds", "chart",
)  # fmt: skip
ONCE = ("preserve", "no_preserve", "files_from", "max_delete", "manifest", "check", "log", "metrics", "chart")
STDIN = "-"


def patterns(context: click.Context, given: dict[str, Any]) -> list[str]:
    """The lines of all the options that hide and bring back, in the order of the command line."""
    if [*given["exclude_from"], given["files_from"]].count(STDIN) > 1:
        raise click.UsageError("standard input can be one list only: name a file for the other", context)
    values = {name: iter(given[name]) for name in ("exclude", "include", "exclude_from")}
    if not any(given[name] for name in values):
        return []
    lines: list[str] = []
    for name in order_of(context):
        if name in values:
            lines += lines_of(name, next(values[name]))
    return lines


def lines_of(option: str, value: str) -> list[str]:
    from pcopy.lists import patterns_of
    from pcopy.select import parse

    if option == "exclude_from":
        return patterns_of(value)
    if option == "include" and not value:
        raise UsageError("--include '': is no pattern and matches nothing; write a name")
    line = value if option == "exclude" else f"!{value}"
    if parse(line) is None:  # an empty variable of a script, or a comment
        raise UsageError(f"--{option} {value!r}: is no pattern; write a backslash before a # that a name begins with")
    return [line]


def listed(given: dict[str, Any]) -> list[str] | None:
    from pcopy.lists import paths_of

    return None if given["files_from"] is None else paths_of(given["files_from"], given["null"])


def run_check(context: click.Context, given: dict[str, Any]) -> int:
    """pcopy --check MANIFEST [DIRECTORY]"""
    refuse(context, NOT_CHECKED, "does not go with --check")
    refuse_two_ways(context, given)
    if len(given["paths"]) > 1:
        raise click.UsageError("--check takes one directory: pcopy --check MANIFEST [DIRECTORY]", context)
    from pcopy.checking import check, read
    from pcopy.result import Stop

    lines, stop = read(given["check"]), Stop()  # it may come from a pipe: until it has, a signal ends the process
    with interruptible(stop), observer_for(given) as observer:
        report = check(
            lines, *given["paths"], jobs=given["jobs"] and given["jobs"][0], hash=given["hash"],
            retries=given["retries"], verbose=given["verbose"], observer=observer, stop=stop,
        )  # fmt: skip
    return report.exit_status if tell(report, given) else report.exit_status or ExitStatus.FAILED


def refuse_two_ways(context: click.Context, given: dict[str, Any]) -> None:
    if given["quiet"] and given["verbose"]:
        raise click.UsageError("--quiet and --verbose exclude each other", context)
    if given["jobs"] and len(given["jobs"]) > 1:
        raise click.UsageError("several numbers of jobs are for --compare", context)


def run_compare(context: click.Context, given: dict[str, Any]) -> int:
    """pcopy --compare [SOURCE [DESTINATION]]"""
    refuse(context, NOT_COMPARED, "does not go with --compare")
    if len(given["paths"]) > 2:
        raise click.UsageError("--compare takes one source and one destination at most", context)
    import shutil

    from pcopy.asked import check_sharing
    from pcopy.chart import check_chart, draw
    from pcopy.comparison import compare
    from pcopy.report import comparison_json, shown, table

    check_sharing(given["reflink"], given["sparse"])
    if given["chart"] is not None:
        check_chart(given["chart"])
    with ended_by_signals(), steps(given) as step:
        comparison = compare(
            *given["paths"], jobs=given["jobs"], against=given["against"], rounds=given["rounds"],
            options=copy_options(given), step=step,
        )  # fmt: skip
    columns = shutil.get_terminal_size().columns
    written = emit(comparison_json(comparison) if given["as_json"] else table(comparison, block(), columns))
    if given["chart"]:
        try:
            draw(comparison, given["chart"])
        except OSError as error:
            say(f"pcopy: --chart {shown(given['chart'])}: {error.strerror or error}: name another file")
            written = False
    return comparison.exit_status if written else comparison.exit_status or ExitStatus.FAILED


def refuse(context: click.Context, names: Sequence[str], why: str) -> None:
    """An option that would do nothing is an error, not a surprise."""
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} {why}", context)


def refuse_repeated(context: click.Context) -> None:
    """Of these the last would be taken, and what the first says be lost without a word."""
    if any(context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE for name in ONCE):
        names = order_of(context)
        for name in ONCE:
            if names.count(name) > 1:
                raise click.UsageError(f"--{name.replace('_', '-')} is given twice: give one", context)


def preserved(given: dict[str, Any]) -> frozenset[str]:
    return frozenset(given["preserve"] - (given["no_preserve"] or frozenset()))


def copy_options(given: dict[str, Any]) -> list[str]:
    """The same choices for each pcopy that a comparison runs."""
    words = ["--preserve", ",".join(sorted(preserved(given)))] if preserved(given) else ["--no-preserve", "all"]
    words += ["--reflink", given["reflink"], "--sparse", given["sparse"]]
    return words + [
        flag for flag in ("--dereference", "--one-file-system", "--atomic", "--fsync") if given[flag[2:].replace("-", "_")]
    ]


# ---- what a person sees ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def observer_for(given: dict[str, Any]) -> Iterator[Lines]:
    from pcopy.progress import Bars, Lines

    observer = Bars() if wants_bars(given) else Lines()
    try:
        yield observer
    finally:
        observer.close()


def records(given: dict[str, Any]) -> list[Observer]:
    """What is kept of a run in files. The log last: it touches its file when the run starts, if nobody else refuses."""
    kept: list[Observer] = []
    if given["metrics"] is not None:
        from pcopy.metrics import Metrics

        kept.append(Metrics(given["metrics"]))
    if given["log"] is not None:
        from pcopy.log import Log

        kept.append(Log(given["log"]))
    return kept


def wants_bars(given: dict[str, Any]) -> bool:
    if given["progress"] is None:
        return not given["quiet"] and sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return bool(given["progress"])


@contextlib.contextmanager
def steps(given: dict[str, Any]) -> Iterator[Any]:
    """A bar over the runs of a comparison."""
    if not wants_bars(given):
        yield None
        return
    from pcopy.progress import Runs

    runs = Runs()
    try:
        yield runs.step
    finally:
        runs.close()


def tell(report: Report, given: dict[str, Any]) -> bool:
    """True if all that was asked for could be written."""
    from pcopy.report import as_json, last_line, shown, warnings

    if not given["quiet"]:
        for warning in warnings(report):
            say(f"pcopy: {shown(warning)}")
        say(last_line(report))
    return not given["as_json"] or emit(as_json(report))
