"""How a command runs: from its arguments to an open index, and from an error to one line and an exit code."""

from __future__ import annotations

import functools
import inspect
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from retriever.command_line.display import BadRows, note
from retriever.command_line.options import embedder_of, limits_of, reading_of, with_parameters
from retriever.command_line.terminal import printable

if TYPE_CHECKING:
    from retriever import Example, Fields, Retriever
    from retriever.example import Json

Result = TypeVar("Result")
_OUTPUT = "standard output"
_state = {"debug": False}
_DEBUG = inspect.Parameter(
    "debug",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", hidden=True)],
)


def show_tracebacks(wanted: bool) -> None:
    """Whether an error that is reported is raised as well."""
    _state["debug"] = wanted


def reported(command: Callable[..., Result]) -> Callable[..., Result]:
    """The command with its errors in one line and as exit codes; a traceback only with --debug, before it or after."""

    @functools.wraps(command)
    def run(*args: object, debug: bool = False, **kwargs: object) -> Result:
        from retriever.errors import RetrieverError

        if debug:
            show_tracebacks(True)
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            _write_no_more()  # the reader of our output has gone
            raise typer.Exit(0) from None
        except (RetrieverError, OSError) as error:
            raise typer.Exit(told(error)) from None

    return with_parameters(run, [*inspect.signature(command, eval_str=True).parameters.values(), _DEBUG])


def told(error: Exception) -> int:
    """Tells an error on standard error; what the program exits with."""
    if _state["debug"]:
        traceback.print_exception(error)
    seen = str(error)
    if isinstance(error, OSError) and error.filename == _OUTPUT:
        _write_no_more()
        seen = f"{_OUTPUT} cannot be written: {error.strerror}"
    typer.echo(f"error: {printable(seen)}", err=True)
    return getattr(error, "exit_code", 1)


def _write_no_more() -> None:
    """Gives up standard output; Python must not complain about it while it exits."""
    sys.stdout = open("/dev/null", "w", encoding="utf-8")  # noqa: PTH123, SIM115


class _Output(io.FileIO):
    """Standard output; its errors name it, as those of a file name the file."""

    def write(self, data: Any) -> int:  # noqa: ANN401  all that has a buffer
        try:
            return super().write(data)
        except OSError as error:
            error.filename = _OUTPUT
            raise


def open_streams() -> None:
    """Makes the standard streams ones that can be used, where they are the system's own.

    A closed one gets a descriptor, so that no file that is opened later is taken for it; to use it fails as the system
    fails it, but for standard error, where nobody is to be told.
    """
    if sys.stdin is None:
        sys.stdin = open(os.open(os.devnull, os.O_WRONLY), encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        descriptor = os.open(os.devnull, os.O_RDONLY) if sys.stdout is None else sys.stdout.fileno()
        raw = _Output(descriptor, "w", closefd=False)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=raw.isatty())
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def opened(
    index: Path, embedder: Mapping[str, object], *, trust: bool = False, limits: Mapping[str, object] | None = None
) -> Retriever:
    """The index that a command works on, with the embedder and the limits that its options name."""
    from retriever import Retriever

    return Retriever.open(index, embedder=embedder_of(embedder), trust=trust, limits=limits_of(limits or {}), note=note)


def read_asked(queries: Path, fields: Fields, source: Mapping[str, object], bad: BadRows) -> Iterator[Example]:
    """The queries of a file; at their end an error if all of them were set aside.

    Args:
        queries: The file; `-` for standard input.
        fields: Where the attributes of a query are.
        source: How the file is read, the group `SOURCE`.
        bad: Takes what cannot be used.
    """
    from retriever.formats import read_queries

    return _some(read_queries(str(queries), fields=fields, **reading_of(source), on_bad=bad), bad)


def read_if_named(
    queries: Path | None, fields: Fields, source: Mapping[str, object], bad: BadRows
) -> Iterator[Example] | None:
    """What `read_asked` gives, if a file was named."""
    return None if queries is None else read_asked(queries, fields, source, bad)


def _some(found: Iterator[Example], bad: BadRows) -> Iterator[Example]:
    count = 0
    for count, example in enumerate(found, start=1):  # noqa: B007  counted for what comes after
        yield example
    check_usable(count, bad)


def check_usable(usable: int, bad: BadRows) -> None:
    """Refuses a file of which every row was set aside.

    Args:
        usable: How many rows were not.
        bad: What took the others.

    Raises:
        BadRows: Of `retriever.errors`; there were rows, and none could be used.
    """
    from retriever import errors

    if bad.count and not usable:
        seen = "the only row was" if bad.count == 1 else f"all {bad.count:,} rows were"
        fix = "mend what is told above, or name the fields and the format (--input, --output, --format)"
        raise errors.BadRows([], seen=f"no usable row: {seen} set aside", fix=fix)


def read_query(query: str) -> str | dict[str, Json]:
    """The query; on standard input a JSON object gives further fields, anything else is its text.

    Raises:
        InvalidInput: It is not UTF-8, standard input cannot be read, or it is a JSON object without an input.
    """
    from retriever.errors import InvalidInput
    from retriever.formats.values import short

    try:
        # Programs of Windows begin a stream with a byte-order mark and end a line with two characters.
        text = sys.stdin.read().removeprefix("\ufeff").strip("\r\n") if query == "-" else query
        text.encode()
    except UnicodeError:
        raise InvalidInput("a query that is not UTF-8", expected="text in UTF-8") from None
    except OSError as error:
        raise InvalidInput(f"standard input cannot be read: {error.strerror}", expected="a query") from error
    if query != "-":
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if not isinstance(value, dict):
        return text
    if "input" not in value:
        raise InvalidInput(
            f"a JSON object without 'input' on standard input: {short(text)}",
            expected='text, or an object such as {"input": "where is my order"}',
            fix='to ask for this very text, put it into one: {"input": "..."}',
        )
    return value
