"""Click, as pcopy uses it: options under headings, values that are lists or sizes, completion, one way to end."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pcopy import __version__
from pcopy.errors import ExitStatus, UsageError
from pcopy.options import ALL_ATTRIBUTES, AUTO, Hash, Overwrite, When, attributes_from
from pcopy.terminal import emit, leave, open_closed_streams, say, unbuffer_stderr

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

GIVEN = "pcopy.given"
WHAT, HOW, SAY, OTHER = "What is copied", "How it is copied", "What is said", "Other"
MEASURE = "Checking and measuring"
# Options of cp and rsync, and what to do without them.
WHOLE = "is not needed: directories are copied whole, with all that they and their files have"
ELSEWHERE = {
    **dict.fromkeys(["-a", "-r", "-R", "--archive", "--recursive"], WHOLE),
    **dict.fromkeys(["-A", "-H", "-X", "-g", "-o", "-p"], "is not needed: all that is said by it is kept"),
    "-u": "is --overwrite older here",
    "--update": "is --overwrite here: older, never or always",
    **dict.fromkeys(["--ignore-existing", "--no-clobber"], "is --overwrite never here"),
    "--partial": "is not needed: a large file of a run that was cut goes on where it was",
    "--numeric-ids": "is not needed: owners are copied as numbers",
}


class Command(click.Command):
    """One that ends by :func:`leave` whatever happens, with its options under headings in the help."""

    def main(self, *arguments: Any, **keywords: Any) -> NoReturn:
        open_closed_streams()
        unbuffer_stderr()
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to stop: Click would end with status 1
        try:
            super().main(*arguments, **{**keywords, "standalone_mode": False})
        except click.ClickException as error:
            from pcopy.report import shown

            said = " ".join(error.format_message().split())
            if isinstance(error, click.NoSuchOption) and error.option_name in ELSEWHERE:
                said = f"{error.option_name} {ELSEWHERE[error.option_name]}"
            say(f"pcopy: {shown(said)} (see pcopy --help)")
            leave(error.exit_code)
        except SystemExit as end:  # of completion, which Click ends itself
            leave(end.code if isinstance(end.code, int) else ExitStatus.OK)
        except OSError as error:  # likewise: whoever asked for the script has gone, or has no room for it
            say(f"pcopy: {error.strerror or error}")
            leave(ExitStatus.FAILED)
        leave(ExitStatus.OK)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[GIVEN] = list(args)
        return super().parse_args(ctx, args)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        return HELP

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title in (WHAT, HOW, SAY, MEASURE, OTHER):
            options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
            records = [one.get_help_record(ctx) for one in options if getattr(one, "group", OTHER) == title]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record])


def order_of(ctx: click.Context) -> list[str | None]:
    """The options by their names, as often as they were given and in that order: Click keeps the values of each together."""
    return [param.name for param in ctx.command.make_parser(ctx).parse_args(args=list(ctx.meta[GIVEN]))[2]]


class Figure(click.ParamType):  # type: ignore[type-arg]
    """A word that stands for a number."""

    def __init__(self, name: str, meaning: str) -> None:
        self.name, self.meaning = name, meaning

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from pcopy import values

        try:
            return int(getattr(values, self.meaning)(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class FileName(click.ParamType):  # type: ignore[type-arg]
    """A file that is written, or read more than once: no stream."""

    name = "FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "-":
            self.fail("'-' is no stream here; write ./- for a file of that name", param, ctx)
        return str(value)


class Option(click.Option):
    """An option that stands under a heading."""

    def __init__(self, *arguments: Any, group: str = OTHER, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.group = group


class JobList(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions
    """One number, "auto", or several numbers for --compare."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int | str, ...]:
        if isinstance(value, tuple):
            return value
        if value == AUTO:
            return (AUTO,)
        try:
            jobs = tuple(int(word) for word in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is neither a number nor {AUTO!r}", param, ctx)
        if not all(1 <= count <= 1024 for count in jobs):
            self.fail(f"{value}: must be from 1 to 1024", param, ctx)
        return jobs


class Number(click.IntRange):
    """A whole number; "integer range", as Click has it, is no word for what is wanted."""

    name = "whole number"


class WhatList(click.ParamType):  # type: ignore[type-arg]
    """Attributes, separated by commas."""

    name = "WHAT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[str]:
        if isinstance(value, frozenset):
            return value
        try:
            return attributes_from(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        before, comma, begun = incomplete.rpartition(",")
        names = ALL_ATTRIBUTES - set(before.split(",")) if comma else ALL_ATTRIBUTES | {"all"}
        return [CompletionItem(f"{before}{comma}{name}") for name in sorted(names) if name.startswith(begun)]


def choice(kind: type[Overwrite] | type[When] | type[Hash]) -> click.Choice[str]:
    return click.Choice([one.value for one in kind])


def some_file(context: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Let the shell complete it. Not click.Path, which would look at each and refuse some."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(begun.encode(errors="replace").decode(), type="file")]


def some_tool(context: click.Context, param: click.Parameter, begun: str) -> list[str]:
    from pcopy.comparison import PEERS

    return [name for name in PEERS if name.startswith(begun)]


def print_help(context: click.Context, param: click.Parameter, given: bool) -> None:
    if given:
        leave(ExitStatus.OK if emit(context.get_help()) else ExitStatus.FAILED)


# Click's own looks for a translation of its one line first, which takes a millisecond.
HELP = click.Option(
    ["-h", "--help"], is_flag=True, is_eager=True, expose_value=False, callback=print_help, help="Show this message and exit."
)


def print_version(context: click.Context, param: click.Parameter, given: bool) -> None:
    if given:
        leave(ExitStatus.OK if emit(f"pcopy {__version__}") else ExitStatus.FAILED)
